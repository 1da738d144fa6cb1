//! The end of the process: what clients have begun is finished, the feed goes on until then, a second signal ends it at
//! once; and what systemd is told, and how many files may be open.

mod wire;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use cachefence::demo::client::{Client, Reply, encode};
use cachefence::demo::servers::{Cachefence, wait_until};
use rustix::process::Signal;
use tokio::net::TcpStream;
use wire::{BINARY, Fallible, Outcome, PATIENCE, Stand, Wire, settings, write};

/// Waits until `/readyz` says that it stops, which it does before anything else.
async fn stopping(proxy: &Cachefence) -> Outcome {
    let says_so = async || matches!(proxy.get("/readyz").await, Ok((503, body)) if body.contains("stopping"));
    Ok(wait_until("/readyz to say that it stops", PATIENCE, says_so).await?)
}

/// Waits until a blocked client waits in Redis.
async fn blocked(redis: &mut Client, key: &str) -> Outcome {
    let waits = async || {
        let list = redis.cmd(&["CLIENT", "LIST"]).await.ok().and_then(|reply| reply.text());
        list.is_some_and(|list| list.lines().any(|line| line.contains(" flags=b ")))
    };
    Ok(wait_until(&format!("a client to wait for {key}"), PATIENCE, waits).await?)
}

#[tokio::test]
async fn what_clients_have_begun_is_finished() -> Outcome {
    let mut stand =
        Stand::start(&[("[postgres]\n", "[proxy]\nshutdown_grace = \"60s\"\n[postgres]\n")]).await?;
    let address = stand.proxy.address().to_owned();
    let mut direct = stand.redis.client().await?;
    let connect = async || Wire::connect(&address).await;

    let (mut idle, mut subscriber, mut waits) = (connect().await?, connect().await?, connect().await?);
    assert_eq!(idle.cmd("PING").await?, "+PONG\r\n");
    assert!(subscriber.cmd("SUBSCRIBE news").await?.starts_with("*3"));
    waits.send(&encode(&["BLPOP", "queue", "0"])).await?;
    blocked(&mut direct, "queue").await?;
    let mut transaction = connect().await?;
    assert_eq!(transaction.cmd("MULTI").await?, "+OK\r\n");
    assert_eq!(transaction.cmd("INCR steps").await?, "+QUEUED\r\n");
    // One that has sent a part of a command, and one that has sent many which Redis has not answered.
    let (mut half, mut many) = (connect().await?, connect().await?);
    assert_eq!(half.cmd("PING").await?, "+PONG\r\n");
    let request = encode(&["INCR", "half"]);
    half.send(&request[..9]).await?;
    assert_eq!(many.cmd("PING").await?, "+PONG\r\n");
    stand.redis.freeze()?;
    let commands = encode(&["INCR", "many"]).repeat(1000);
    many.send(&commands).await?;

    stand.proxy.signal(Signal::TERM)?;
    stopping(&stand.proxy).await?;
    // A successor can have the port, and nobody new comes.
    let refuses = async || TcpStream::connect(&address).await.is_err();
    wait_until("new connections to be refused", PATIENCE, refuses).await?;
    assert_eq!(idle.rest().await?, b"", "it had nothing under way");
    assert_eq!(stand.proxy.get("/livez").await?.0, 200);
    stand.redis.thaw()?;
    for n in 1..=1000 {
        assert_eq!(many.reply().await?, format!(":{n}\r\n").into_bytes());
    }
    assert_eq!(many.rest().await?, b"");
    half.send(&request[9..]).await?;
    assert_eq!(half.reply().await?, b":1\r\n");
    assert_eq!(half.rest().await?, b"");
    // The feed goes on while a client is waited for.
    write(&stand.postgres, &stand.redis, "users", "user:1", 1).await?;
    assert_eq!(transaction.cmd("INCR steps").await?, "+QUEUED\r\n");
    assert_eq!(transaction.cmd("EXEC").await?, "*2\r\n:1\r\n:2\r\n");
    assert_eq!(transaction.rest().await?, b"");
    // Those that would wait for ever go last, without an answer that is none; and nothing that comes then is lost.
    assert_eq!(waits.rest().await?, b"");
    assert_eq!(subscriber.rest().await?, b"");

    assert_eq!(stand.proxy.ended().await?, Some(0));
    let log = stand.proxy.log();
    assert!(log.contains("the feed has stopped") && log.contains("confirmed=true left=true"), "{log}");
    assert!(!log.contains("not finished within"), "{log}");
    assert_eq!(direct.cmd(&["LPUSH", "queue", "job"]).await?, Reply::Int(1));
    assert_eq!(
        direct.cmd(&["LLEN", "queue"]).await?,
        Reply::Int(1),
        "the blocked client is gone in Redis, too"
    );
    Ok(())
}

/// A client whose transaction never ends.
async fn unending(proxy: &Cachefence) -> Fallible<Wire> {
    let mut client = Wire::connect(proxy.address()).await?;
    assert_eq!(client.cmd("MULTI").await?, "+OK\r\n");
    Ok(client)
}

#[tokio::test]
async fn the_end_waits_for_nobody_for_ever() -> Outcome {
    let grace = |grace: &str| format!("[proxy]\nshutdown_grace = \"{grace}\"\n[postgres]\n");
    let mut stand = Stand::start(&[("[postgres]\n", &grace("500ms"))]).await?;
    let mut client = unending(&stand.proxy).await?;
    stand.proxy.signal(Signal::TERM)?;
    assert_eq!(client.rest().await?, b"");
    assert_eq!(stand.proxy.ended().await?, Some(0));
    let log = stand.proxy.log();
    assert!(log.contains("not finished within shutdown_grace") && log.contains("clients=1 fills=0"), "{log}");

    // Where there is an hour, a second signal ends it at once.
    let patient = settings(&stand.postgres, &stand.redis, "wire", &[("[postgres]\n", &grace("1h"))]);
    for (first, second, status) in [(Signal::TERM, Signal::INT, 130), (Signal::INT, Signal::TERM, 143)] {
        // It is ready again after that: nothing was left wrong.
        stand.proxy = Cachefence::start(BINARY, &patient).await?;
        let mut client = unending(&stand.proxy).await?;
        stand.proxy.signal(first)?;
        stopping(&stand.proxy).await?;
        stand.proxy.signal(second)?;
        assert_eq!(stand.proxy.ended().await?, Some(status));
        assert_eq!(client.rest().await?, b"");
        assert!(stand.proxy.log().contains("a second signal: ending at once"), "{}", stand.proxy.log());
    }
    Ok(())
}

/// The program in an environment that a shell makes.
fn within(directory: &tempfile::TempDir, environment: &str) -> Fallible<std::path::PathBuf> {
    let path = directory.path().join("cachefence");
    std::fs::write(&path, format!("#!/bin/sh\n{environment}\nexec {BINARY} \"$@\"\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[tokio::test]
async fn systemd_is_told_and_descriptors_are_counted() -> Outcome {
    let mut stand = Stand::start(&[]).await?;
    stand.proxy.stop().await?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("notify");
    let systemd = UnixDatagram::bind(&socket)?;
    systemd.set_read_timeout(Some(PATIENCE))?;
    let told = |wanted: &str| -> Fallible<()> {
        let mut bytes = [0; 4096];
        loop {
            let length = systemd.recv(&mut bytes)?;
            if std::str::from_utf8(&bytes[..length])?.lines().any(|line| line.starts_with(wanted)) {
                return Ok(());
            }
        }
    };
    let environment = format!(
        "export NOTIFY_SOCKET={} WATCHDOG_USEC=400000\nulimit -Sn 200\nulimit -Hn 300",
        socket.display()
    );
    let binary = within(&directory, &environment)?;
    let threads = [("[postgres]\n", "[proxy]\nthreads = 1\n[postgres]\n")];
    let settings = settings(&stand.postgres, &stand.redis, "wire", &threads);
    stand.proxy = Cachefence::start(&binary, &settings).await?;
    told("READY=1")?;
    told("STATUS=ready")?;
    told("WATCHDOG=1")?;
    told("WATCHDOG=1")?;

    // 300, of which 128 are kept and 70 the proxy's own, and two for each client.
    let log = stand.proxy.log();
    assert!(log.contains("no more than 51 clients are taken"), "{log}");
    let mut clients = Vec::new();
    for _ in 0..51 {
        let mut client = stand.proxy.client().await?;
        assert_eq!(client.cmd(&["PING"]).await?, Reply::Simple("PONG".into()));
        // Each with a connection to Redis of its own.
        assert_eq!(client.cmd(&["MULTI"]).await?, Reply::ok());
        clients.push(client);
    }
    let mut surplus = stand.proxy.client().await?;
    let refused = surplus.receive().await?;
    assert_eq!(refused, Reply::Error("ERR max number of clients reached".into()));
    // The feed has what it needs.
    write(&stand.postgres, &stand.redis, "users", "user:1", 1).await?;
    drop(clients);

    stand.proxy.signal(Signal::TERM)?;
    told("STOPPING=1")?;
    assert_eq!(stand.proxy.ended().await?, Some(0));
    Ok(())
}
