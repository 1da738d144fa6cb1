//! What carries the bytes: TLS on both sides, unix sockets, keepalive, a balancer's header, and too many clients.

mod pki;
mod wire;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use cachefence::demo::client::encode;
use cachefence::demo::servers::{Cachefence, Postgres, Redis, RedisOptions, free_port, wait_for, wait_until};
use pki::Pki;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::{BINARY, Fallible, Outcome, PATIENCE, Wire, postgres, settings};

/// A Redis that speaks TLS as well, with this certificate, and where it does.
async fn redis(pki: &Pki, certificate: &str, auth_clients: &str) -> Fallible<(Redis, String)> {
    let port = free_port()?;
    let options = RedisOptions::default()
        .args(&["--tls-port", &port.to_string(), "--tls-auth-clients", auth_clients])
        .args(&["--tls-cert-file", &pki.file(&format!("{certificate}.pem"))])
        .args(&["--tls-key-file", &pki.file(&format!("{certificate}.key"))])
        .args(&["--tls-ca-cert-file", &pki.file("ca.pem")]);
    Ok((Redis::start(options).await?, format!("rediss://127.0.0.1:{port}/0")))
}

/// Settings with these lines in `[proxy]`.
fn with_proxy(postgres: &Postgres, redis: &Redis, slot: &str, lines: &str) -> String {
    settings(postgres, redis, slot, &[("[postgres]\n", &format!("[proxy]\n{lines}\n[postgres]\n"))])
}

/// ... and with this URL and `redis.tls`.
fn with_redis_tls(settings: &str, redis: &Redis, url: &str, tls: &str) -> String {
    settings.replace(&format!("url = \"{}\"", redis.url()), &format!("url = \"{url}\"\ntls = {{ {tls} }}"))
}

fn server_tls(pki: &Pki) -> String {
    format!("tls = {{ cert = {:?}, key = {:?} }}", pki.path("server.pem"), pki.path("server.key"))
}

/// A proxy with this log filter, once it is ready.
async fn logging(settings: &str) -> Fallible<Cachefence> {
    let mut proxy =
        Cachefence::launch_logging(Path::new(BINARY), settings, Some("info,cachefence::proxy=debug"))?;
    proxy.ready().await?;
    Ok(proxy)
}

async fn tls_wire(pki: &Pki, proxy: &Cachefence, certificate: Option<&str>) -> Fallible<Wire> {
    let stream = TcpStream::connect(proxy.address()).await?;
    Ok(Wire::over(pki.connect(stream, certificate).await?))
}

/// Commands of all sizes, and their replies.
fn traffic() -> (Vec<u8>, Vec<u8>) {
    let (mut requests, mut replies) = (Vec::new(), Vec::new());
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for n in 0..300_usize {
        // Below, at and above what goes into one record, and what goes over a pin.
        let length =
            [0, 1, 100, 16_383, 16_384, 16_385, 65_536, 70_000, 3_000_000][n % if n < 9 { 9 } else { 8 }];
        let (key, value) = (format!("k{n}"), &bytes[..length]);
        requests.extend(encode(&[b"SET".as_slice(), key.as_bytes(), value]));
        requests.extend(encode(&["GET", &key]));
        requests.extend(encode(&["GET", "user:1"]));
        replies.extend_from_slice(format!("+OK\r\n${length}\r\n").as_bytes());
        replies.extend_from_slice(value);
        replies.extend_from_slice(b"\r\n$-1\r\n");
    }
    requests.extend(encode(&["QUIT"]));
    replies.extend_from_slice(b"+OK\r\n");
    (requests, replies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_on_both_sides_carries_every_byte() -> Outcome {
    let pki = Pki::new()?;
    let (postgres, (redis, url)) = (postgres().await?, redis(&pki, "server", "yes").await?);
    let own = format!(
        "ca = {:?}, cert = {:?}, key = {:?}",
        pki.path("ca.pem"),
        pki.path("client.pem"),
        pki.path("client.key")
    );
    let text = with_proxy(&postgres, &redis, "tls", &server_tls(&pki));
    let proxy = Cachefence::start(BINARY, &with_redis_tls(&text, &redis, &url, &own)).await?;
    for _ in 0..2 {
        let stream = pki.connect(TcpStream::connect(proxy.address()).await?, None).await?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (requests, replies) = traffic();
        let sending = tokio::spawn(async move {
            writer.write_all(&requests).await?;
            writer.flush().await
        });
        // Ends without an error only if the proxy says that it ends.
        let mut received = Vec::new();
        tokio::time::timeout(PATIENCE, reader.read_to_end(&mut received)).await??;
        sending.await??;
        assert_eq!(received.len(), replies.len());
        assert!(received == replies, "other bytes came back");
    }
    // The fence is where it was.
    let mut wire = tls_wire(&pki, &proxy, None).await?;
    assert!(wire.cmd("ASOF 0/1 SET order:1 v").await?.starts_with("-STALE "));
    redis_cli(&pki, &proxy)?;
    Ok(())
}

/// Files are read again at a reload, for connections from then on; one that cannot be used changes nothing. Those that stand go
/// on as they are.
#[tokio::test]
async fn certificates_are_swapped_under_clients() -> Outcome {
    let pki = Pki::new()?;
    let (postgres, (redis, url)) = (postgres().await?, redis(&pki, "server", "no").await?);
    // Files of their own, to be replaced.
    let copy = |from: &str, to: &str| std::fs::copy(pki.path(from), pki.path(to)).map(drop);
    let install = |name: &str| {
        copy(&format!("{name}.pem"), "used.pem").and_then(|()| copy(&format!("{name}.key"), "used.key"))
    };
    install("server")?;
    copy("ca.pem", "trusted.pem")?;
    let lines = format!("tls = {{ cert = {:?}, key = {:?} }}", pki.path("used.pem"), pki.path("used.key"));
    let text = with_proxy(&postgres, &redis, "swapped", &lines);
    let own = format!("ca = {:?}", pki.path("trusted.pem"));
    let proxy = Cachefence::start(BINARY, &with_redis_tls(&text, &redis, &url, &own)).await?;
    let mut before = tls_wire(&pki, &proxy, None).await?;
    assert_eq!(before.cmd("SET plain 1").await?, "+OK\r\n");

    copy("client.key", "used.key")?;
    let (status, said) = proxy.reload().await?;
    assert!(status == 400 && said.contains("is not the key of the certificate in"), "{status} {said}");
    tls_wire(&pki, &proxy, None).await?;

    // For another host: nobody who looks for this one takes it.
    install("named")?;
    let (status, said) = proxy.reload().await?;
    assert!(status == 200 && said.contains("proxy.tls: files read"), "{status} {said}");
    assert!(tls_wire(&pki, &proxy, None).await.is_err(), "the old certificate was shown");
    assert_eq!(before.cmd("GET plain").await?, "$1\r\n1\r\n");
    install("server")?;
    // A CA that has not signed Redis's: a new connection to it, which MULTI needs, is refused.
    copy("other-ca.pem", "trusted.pem")?;
    assert_eq!(proxy.reload().await?.0, 200);
    let mut after = tls_wire(&pki, &proxy, None).await?;
    assert!(after.cmd("MULTI").await?.contains("of a CA that is not trusted"));
    copy("ca.pem", "trusted.pem")?;
    assert_eq!(proxy.reload().await?.0, 200);
    let mut last = tls_wire(&pki, &proxy, None).await?;
    assert_eq!(last.cmd("MULTI").await?, "+OK\r\n");
    assert_eq!(before.cmd("GET plain").await?, "$1\r\n1\r\n");
    Ok(())
}

/// Another implementation of TLS.
fn redis_cli(pki: &Pki, proxy: &Cachefence) -> Outcome {
    let output = Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &proxy.port().to_string(), "--tls", "--cacert", &pki.file("ca.pem")])
        .args(["ECHO", "hello"])
        .output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n", "{output:?}");
    Ok(())
}

/// What the sockets do not take stays with the proxy, and comes once the client reads, without another word of it.
#[tokio::test]
async fn a_tls_client_that_reads_late_gets_everything() -> Outcome {
    let pki = Pki::new()?;
    let (postgres, redis) = (postgres().await?, Redis::start(RedisOptions::default()).await?);
    let text = with_proxy(&postgres, &redis, "late", &server_tls(&pki));
    let proxy = Cachefence::start(BINARY, &text).await?;
    let value = vec![b'x'; 5_000_000];
    redis.client().await?.cmd(&[b"SET".as_slice(), b"big", &value]).await?;
    let mut wire = tls_wire(&pki, &proxy, None).await?;
    let before = proxy.metric("cachefence_commands_total").await?;
    wire.send(&encode(&["GET", "big"]).repeat(6)).await?;
    wait_until("the first commands to be taken", PATIENCE, async || {
        proxy.metric("cachefence_commands_total").await.is_ok_and(|n| n > before)
    })
    .await?;
    for _ in 0..6 {
        assert_eq!(wire.reply().await?.len(), value.len() + b"$5000000\r\n\r\n".len());
    }
    // Half a connection: what was asked is answered, and the end is said.
    wire.send(&encode(&["GET", "big"])).await?;
    wire.finish().await?;
    assert_eq!(wire.rest().await?.len(), value.len() + b"$5000000\r\n\r\n".len());
    Ok(())
}

#[tokio::test]
async fn clients_show_a_certificate_where_one_is_asked_for() -> Outcome {
    let pki = Pki::new()?;
    let (postgres, redis) = (postgres().await?, Redis::start(RedisOptions::default()).await?);
    let tls = server_tls(&pki).replace(" }", &format!(", client_ca = {:?} }}", pki.path("ca.pem")));
    // One thread: who does not end its handshake must not hold up the others there.
    let proxy = logging(&with_proxy(&postgres, &redis, "mutual", &format!("threads = 1\n{tls}"))).await?;
    let silent = TcpStream::connect(proxy.address()).await?;
    for (certificate, why) in [(None, "peer sent no certificates"), (Some("stranger"), "UnknownIssuer")] {
        let refused = async {
            let mut wire = tls_wire(&pki, &proxy, certificate).await?;
            wire.cmd("PING").await
        };
        let answer = refused.await;
        assert!(answer.is_err(), "{certificate:?} {answer:?}");
        wait_until(&format!("{why} in the log"), PATIENCE, async || logged(&proxy, why)).await?;
    }
    let mut wire = tls_wire(&pki, &proxy, Some("client")).await?;
    assert_eq!(wire.cmd("PING").await?, "+PONG\r\n");
    // Who does not speak TLS is not served either.
    let mut plain = Wire::connect(proxy.address()).await?;
    plain.send(&encode(&["PING"])).await?;
    let answer = plain.rest().await?;
    assert!(!answer.starts_with(b"+") && !answer.starts_with(b"-"), "{answer:?}");
    // Nor for ever waited for.
    assert_eq!(Wire::over(silent).rest().await?, b"");
    wait_until("the reason in the log", PATIENCE, async || logged(&proxy, "it took too long")).await?;
    Ok(())
}

fn logged(proxy: &Cachefence, what: &str) -> bool {
    proxy.log().lines().any(|line| line.contains("client not received") && line.contains(what))
}

/// What stands between the proxy and Redis is said where people look, with what to do about it.
#[tokio::test]
async fn a_redis_that_is_not_trusted_or_does_not_trust_is_explained() -> Outcome {
    let pki = Pki::new()?;
    let postgres = postgres().await?;
    let ca = format!("ca = {:?}", pki.path("ca.pem"));
    let of = |ca: &str, name: &str| {
        format!(
            "{ca}, cert = {:?}, key = {:?}",
            pki.path(&format!("{name}.pem")),
            pki.path(&format!("{name}.key"))
        )
    };
    let (lenient, lenient_url) = redis(&pki, "server", "no").await?;
    let (strict, strict_url) = redis(&pki, "server", "yes").await?;
    let (named, named_url) = redis(&pki, "named", "no").await?;
    let (authority, authority_url) = redis(&pki, "authority", "no").await?;
    let plain_url = lenient.url().replace("redis://", "rediss://");
    let other_ca = format!("ca = {:?}", pki.path("other-ca.pem"));
    let authority_ca = format!("ca = {:?}", pki.path("authority.pem"));
    let cases = [
        (&lenient, &lenient_url, &other_ca, "of a CA that is not trusted; name its file with redis.tls.ca"),
        (&named, &named_url, &ca, "is for another name"),
        (&authority, &authority_url, &authority_ca, "is that of a CA (basicConstraints CA:TRUE)"),
        (&lenient, &plain_url, &ca, "does this port speak TLS (tls-port)?"),
        (&strict, &strict_url, &ca, "redis.tls.cert"),
        (&strict, &strict_url, &of(&ca, "stranger"), "redis.tls.cert"),
    ];
    for (n, (redis, url, tls, words)) in cases.into_iter().enumerate() {
        let text = settings(&postgres, redis, &format!("untrusted{n}"), &[]);
        let proxy = Cachefence::launch(Path::new(BINARY), &with_redis_tls(&text, redis, url, tls))?;
        let mut last = String::new();
        let said = wait_until(words, PATIENCE, async || {
            last = proxy.get("/readyz").await.map(|(_, body)| body).unwrap_or_default();
            last.contains(words)
        });
        said.await.map_err(|error| format!("{error}: {last}"))?;
        // A client learns it as well.
        let answer = Wire::connect(proxy.address()).await?.cmd("GET a").await?;
        assert!(answer.starts_with("-ERR cachefence: upstream rediss://"), "{answer}");
    }
    // What the words say to do helps.
    let (alone, alone_url) = redis(&pki, "alone", "no").await?;
    let by_name = format!("{ca}, server_name = \"cache.internal\"");
    let by_itself = format!("ca = {:?}", pki.path("alone.pem"));
    for (slot, redis, url, tls) in
        [("named", &named, &named_url, by_name), ("alone", &alone, &alone_url, by_itself)]
    {
        let text = with_redis_tls(&settings(&postgres, redis, slot, &[]), redis, url, &tls);
        let proxy = Cachefence::start(BINARY, &text).await?;
        assert_eq!(Wire::connect(proxy.address()).await?.cmd("SET a 1").await?, "+OK\r\n");
    }
    Ok(())
}

/// Before anything is touched, and as a wrong setting.
#[test]
fn a_wrong_file_ends_the_start() -> Outcome {
    let pki = Pki::new()?;
    let file = pki.path("cachefence.toml");
    let start = |text: &str| -> Fallible<(Option<i32>, String)> {
        std::fs::write(&file, format!("[postgres]\nurl = \"postgres://u@127.0.0.1:1/x\"\n{text}"))?;
        let output = Command::new(BINARY).arg("run").arg("--config").arg(&file).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let (status, said) =
        start(&format!("[proxy]\n{}", server_tls(&pki).replace("server.key", "client.key")))?;
    assert_eq!(status, Some(2), "{said}");
    assert!(
        said.contains("proxy.tls.key: ") && said.contains("is not the key of the certificate in"),
        "{said}"
    );
    let (status, said) = start("[redis]\nurl = \"rediss://h\"\ntls = { ca = \"/none.pem\" }")?;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("redis.tls.ca: /none.pem: cannot be read: No such file"), "{said}");
    Ok(())
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// From 192.0.2.7, port 4660, with an addition.
const TOLD: &[u8] = b"\x21\x11\0\x10\xc0\0\x02\x07\x0a\0\0\x01\x12\x34\x18\xec\x04\0\x01x";
/// From the balancer itself.
const LOCAL: &[u8] = b"\x20\0\0\0";

#[tokio::test]
async fn a_balancer_tells_who_the_client_is() -> Outcome {
    let pki = Pki::new()?;
    let (postgres, redis) = (postgres().await?, Redis::start(RedisOptions::default()).await?);
    for (slot, tls) in [("plain", String::new()), ("secure", server_tls(&pki))] {
        let lines = format!("proxy_protocol = true\n{tls}");
        let proxy = logging(&with_proxy(&postgres, &redis, slot, &lines)).await?;
        let greet = async |header: &[u8]| -> Fallible<(Wire, String)> {
            let mut stream = TcpStream::connect(proxy.address()).await?;
            let own = stream.local_addr()?.to_string();
            stream.set_nodelay(true)?;
            // In pieces, and the rest together with what follows.
            let bytes = [SIGNATURE, header].concat();
            stream.write_all(&bytes[..7]).await?;
            stream.write_all(&bytes[7..]).await?;
            let wire = if tls.is_empty() {
                Wire::over(stream)
            } else {
                Wire::over(pki.connect(stream, None).await?)
            };
            Ok((wire, own))
        };
        let connected = |client: &str| {
            let (message, client) = ("client connected", format!("client={client}"));
            proxy.log().lines().any(|line| line.contains(message) && line.contains(&client))
        };
        let (mut wire, _) = greet(TOLD).await?;
        assert_eq!(wire.cmd("PING").await?, "+PONG\r\n");
        assert!(connected("192.0.2.7:4660"), "{}", proxy.log());
        let (mut wire, own) = greet(LOCAL).await?;
        assert_eq!(wire.cmd("PING").await?, "+PONG\r\n");
        assert!(connected(&own), "{}", proxy.log());
        // Without a header nobody is served.
        let mut wire = Wire::connect(proxy.address()).await?;
        wire.send(&encode(&["PING"])).await?;
        assert_eq!(wire.rest().await?, b"");
        let why = "does not begin with a PROXY protocol header";
        wait_until("the reason in the log", PATIENCE, async || logged(&proxy, why)).await?;
        let mut wire = Wire::connect(proxy.address()).await?;
        wire.send(&SIGNATURE[..5]).await?;
        wire.finish().await?;
        assert_eq!(wire.rest().await?, b"");
    }
    Ok(())
}

/// The timer of a connection between two ports, as the system shows it: its kind and what is left of it, in 1/100 s.
fn timer(local: Option<u16>, remote: Option<u16>) -> Option<(u8, u64)> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = |at: usize| u16::from_str_radix(fields.get(at)?.rsplit(':').next()?, 16).ok();
        let right = |at: usize, wanted: Option<u16>| wanted.is_none() || port(at) == wanted;
        let established = fields.get(3) == Some(&"01");
        let (kind, left) = fields.get(5)?.split_once(':')?;
        let found = (u8::from_str_radix(kind, 16).ok()?, u64::from_str_radix(left, 16).ok()?);
        (established && right(1, local) && right(2, remote)).then_some(found)
    })
}

#[tokio::test]
async fn quiet_connections_are_asked_whether_they_live() -> Outcome {
    const KEEPALIVE: u8 = 2;
    let (postgres, redis) = (postgres().await?, Redis::start(RedisOptions::default()).await?);
    for (slot, lines, kind, most) in [
        ("default", "", KEEPALIVE, 30_000),
        ("set", "tcp_keepalive = \"20s\"", KEEPALIVE, 2_000),
        ("off", "tcp_keepalive = \"0s\"", 0, 0),
    ] {
        let proxy = Cachefence::start(BINARY, &with_proxy(&postgres, &redis, slot, lines)).await?;
        let mut wire = Wire::connect(proxy.address()).await?;
        assert_eq!(wire.cmd("GET a").await?, "$-1\r\n");
        // Both sides; another timer runs while something is under way.
        for (local, remote) in [(Some(proxy.port()), None), (None, Some(redis.port()))] {
            let right = |timer: (u8, u64)| timer.0 == kind && timer.1 <= most;
            let what = format!("the timer of {slot}, {local:?} to {remote:?}");
            wait_for(&what, PATIENCE, async || timer(local, remote).filter(|timer| right(*timer))).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn unix_sockets_on_both_sides() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (ours, theirs) = (path("cachefence.sock"), path("redis.sock"));
    let redis = Redis::start(RedisOptions::default().args(&["--unixsocket", &theirs])).await?;
    let postgres = postgres().await?;
    let pki = Pki::new()?;
    // TLS is for TCP alone.
    let lines = format!(
        "listen = [\"unix:{ours}\"]\nunix_socket_mode = \"0702\"\nmax_clients = 1\n{}",
        server_tls(&pki)
    );
    let text =
        with_proxy(&postgres, &redis, "unix", &lines).replace(&redis.url(), &format!("unix://{theirs}?db=0"));
    let mut proxy = Cachefence::start(BINARY, &text).await?;
    assert_eq!(std::fs::metadata(&ours)?.permissions().mode() & 0o777, 0o702);
    let address = format!("unix:{ours}");
    let mut wire = Wire::connect(&address).await?;
    let value = "x".repeat(2_000_000);
    assert_eq!(wire.cmd(&format!("SET a {value}")).await?, "+OK\r\n");
    assert_eq!(wire.cmd("GET a").await?, format!("$2000000\r\n{value}\r\n"));
    assert!(wire.cmd("ASOF 0/1 SET order:1 v").await?.starts_with("-STALE "));
    let mut second = Wire::connect(&address).await?;
    assert_eq!(second.rest().await?, b"-ERR max number of clients reached\r\n");
    proxy.stop().await?;
    assert!(!Path::new(&ours).exists());
    Ok(())
}

/// A place is free as soon as its client can see that it has left.
#[tokio::test]
async fn a_place_is_free_at_once() -> Outcome {
    let pki = Pki::new()?;
    let (postgres, redis) = (postgres().await?, Redis::start(RedisOptions::default()).await?);
    let proxy = Cachefence::start(BINARY, &with_proxy(&postgres, &redis, "plain", "max_clients = 1")).await?;
    for n in 0..200 {
        let mut wire = Wire::connect(proxy.address()).await?;
        assert_eq!(wire.cmd("QUIT").await?, "+OK\r\n", "{n}");
        assert_eq!(wire.rest().await?, b"");
    }
    let lines = format!("max_clients = 1\n{}", server_tls(&pki));
    let proxy = Cachefence::start(BINARY, &with_proxy(&postgres, &redis, "secure", &lines)).await?;
    for n in 0..50 {
        let mut wire = tls_wire(&pki, &proxy, None).await?;
        assert_eq!(wire.cmd("QUIT").await?, "+OK\r\n", "{n}");
        assert_eq!(wire.rest().await?, b"");
    }
    // As Redis does it, one too many gets no handshake, and so no words.
    let mut first = tls_wire(&pki, &proxy, None).await?;
    assert_eq!(first.cmd("PING").await?, "+PONG\r\n");
    assert!(tls_wire(&pki, &proxy, None).await.is_err());
    assert_eq!(Wire::connect(proxy.address()).await?.rest().await?, b"");
    assert_eq!(first.cmd("PING").await?, "+PONG\r\n");
    Ok(())
}
