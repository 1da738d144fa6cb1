//! Clients share connections to Redis, and never each other's state: what other sharing proxies get wrong.

mod wire;

use std::time::Duration;

use cachefence::demo::client::{Client, Reply, encode};
use cachefence::demo::servers::{RedisOptions, wait_until};
use wire::{Fallible, Outcome, PATIENCE, Stand, Wire, connections};

/// All clients are on one thread, so that those that may share a connection do.
const ONE_THREAD: (&str, &str) = ("[postgres]\n", "[proxy]\nthreads = 1\n[postgres]\n");
const PINNED: (&str, &str) = ("[redis]\n", "[redis]\nupstream = \"pinned\"\n");

async fn stands() -> Fallible<[Stand; 2]> {
    Ok([Stand::start(&[ONE_THREAD]).await?, Stand::start(&[ONE_THREAD, PINNED]).await?])
}

async fn wire(stand: &Stand) -> Fallible<Wire> {
    Wire::connect(stand.proxy.address()).await
}

/// How many connections Redis has accepted so far.
async fn accepted(redis: &mut Client) -> Fallible<u64> {
    let info = redis.cmd(&["INFO", "stats"]).await?.text().unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    Ok(line.ok_or("no count of connections")?.trim().parse()?)
}

/// Both have sent all of it before either reads: what one says falls between what the other says.
async fn interleaved(a: (&mut Wire, &[&str]), b: (&mut Wire, &[&str])) -> Fallible<[Vec<String>; 2]> {
    let bytes = |lines: &[&str]| -> Vec<u8> {
        lines.iter().flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>())).collect()
    };
    a.0.send(&bytes(a.1)).await?;
    b.0.send(&bytes(b.1)).await?;
    let mut said = [Vec::new(), Vec::new()];
    for (wire, (lines, said)) in [a.0, b.0].into_iter().zip([a.1, b.1].into_iter().zip(&mut said)) {
        for _ in lines {
            said.push(String::from_utf8_lossy(&wire.reply().await?).trim_end().replace("\r\n", " "));
        }
    }
    Ok(said)
}

#[tokio::test]
async fn a_db_is_one_clients_own() -> Outcome {
    for stand in stands().await? {
        let (mut a, mut b) = (wire(&stand).await?, wire(&stand).await?);
        let said = interleaved(
            (&mut a, &["SELECT 1", "SET k one", "GET k", "SELECT 99", "GET k", "SELECT 0", "GET k"]),
            (&mut b, &["SET k zero", "GET k", "PING", "GET k", "SELECT 2", "SET k two", "GET k"]),
        )
        .await?;
        let [a_said, b_said] = said;
        assert_eq!(a_said[..3], ["+OK", "+OK", "$3 one"]);
        assert_eq!(a_said[4..6], ["$3 one", "+OK"], "a SELECT that fails changes nothing");
        assert!(a_said[3].starts_with("-ERR DB index"), "{a_said:?}");
        assert_eq!(b_said, ["+OK", "$4 zero", "+PONG", "$4 zero", "+OK", "+OK", "$3 two"]);
        let mut direct = stand.redis.client().await?;
        for (db, value) in [("0", "zero"), ("1", "one"), ("2", "two")] {
            direct.cmd(&["SELECT", db]).await?;
            assert_eq!(direct.cmd(&["GET", "k"]).await?, Reply::bulk(value));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_protocol_is_one_clients_own() -> Outcome {
    for stand in stands().await? {
        let (mut a, mut b) = (wire(&stand).await?, wire(&stand).await?);
        assert!(a.cmd("HELLO 3").await?.starts_with('%'));
        assert_eq!(b.cmd("HSET h f v").await?, ":1\r\n");
        let said = interleaved(
            (
                &mut a,
                &["HGETALL h", "GET none", "HGETALL h", "CLIENT GETNAME", "HELLO 2", "HGETALL h", "GET none"],
            ),
            (&mut b, &["HGETALL h", "GET none", "CLIENT GETNAME", "HGETALL h"]),
        )
        .await?;
        assert_eq!(said[0][..4], ["%1 $1 f $1 v", "_", "%1 $1 f $1 v", "_"]);
        assert_eq!(said[0][5..], ["*2 $1 f $1 v", "$-1"]);
        assert_eq!(said[1], ["*2 $1 f $1 v", "$-1", "$-1", "*2 $1 f $1 v"]);
        for wrong in ["HELLO 4", "HELLO x", "HELLO 3 NOSUCH", "HELLO 3 SETNAME a\nb"] {
            let mut direct = Wire::connect(&stand.redis.address()).await?;
            assert_eq!(a.cmd(wrong).await?, direct.cmd(wrong).await?, "{wrong}");
        }
        assert_eq!(a.cmd("HGETALL h").await?, "*2\r\n$1\r\nf\r\n$1\r\nv\r\n", "nothing has changed");
        assert!(a.cmd("HELLO 3 SETNAME me").await?.starts_with('%'));
        assert_eq!(a.cmd("CLIENT GETNAME").await?, "$2\r\nme\r\n");
        assert_eq!(b.cmd("CLIENT GETNAME").await?, "$-1\r\n");
        assert_eq!(a.cmd("RESET").await?, "+RESET\r\n");
        assert_eq!(a.cmd("HGETALL h").await?, "*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
    }
    Ok(())
}

/// A user's rights are Redis's business, and nobody else's.
#[tokio::test]
async fn a_login_is_one_clients_own() -> Outcome {
    for stand in stands().await? {
        let mut direct = stand.redis.client().await?;
        for rights in [
            &["reader", "on", ">one", "~*", "+@read", "+client|setname", "+client|id"][..],
            &["writer", "on", ">two", "~*", "+@all"],
        ] {
            direct.cmd(&[&["ACL", "SETUSER"][..], rights].concat()).await?;
        }
        let (mut a, mut b, mut c) = (wire(&stand).await?, wire(&stand).await?, wire(&stand).await?);
        assert_eq!(a.cmd("AUTH reader one").await?, "+OK\r\n");
        assert!(b.cmd("HELLO 3 AUTH writer two").await?.starts_with('%'));
        let reads = ["ACL WHOAMI", "SET k a", "GET k", "ACL WHOAMI"];
        let [a_said, b_said] = interleaved((&mut a, &reads), (&mut b, &reads)).await?;
        let not_allowed = |said: &str| said.starts_with("-NOPERM");
        assert!(not_allowed(&a_said[0]) && not_allowed(&a_said[1]), "{a_said:?}");
        assert_eq!(b_said, ["$6 writer", "+OK", "$1 a", "$6 writer"]);
        let [a_said, c_said] =
            interleaved((&mut a, &["GET k", "DEL k"]), (&mut c, &["ACL WHOAMI", "DEL k"])).await?;
        assert_eq!(a_said[0], "$1 a");
        assert!(not_allowed(&a_said[1]));
        assert_eq!(c_said, ["$7 default", ":1"]);
        // A login that fails leaves the client who it was.
        assert!(b.cmd("AUTH reader wrong").await?.starts_with("-WRONGPASS"));
        assert_eq!(b.cmd("ACL WHOAMI").await?, "$6\r\nwriter\r\n");
        assert!(c.cmd("AUTH reader two").await?.starts_with("-WRONGPASS"));
        assert_eq!(c.cmd("ACL WHOAMI").await?, "$7\r\ndefault\r\n");
        assert_eq!(a.cmd("RESET").await?, "+RESET\r\n");
        assert_eq!(a.cmd("SET k c").await?, "+OK\r\n");
    }
    Ok(())
}

/// What a user may not do changes nothing, and so ends nothing.
#[tokio::test]
async fn a_command_that_is_denied_leaves_no_state() -> Outcome {
    for stand in stands().await? {
        let mut direct = stand.redis.client().await?;
        direct.cmd(&["ACL", "SETUSER", "reader", "on", ">one", "~*", "+@read", "+echo"]).await?;
        let mut client = wire(&stand).await?;
        assert_eq!(client.cmd("AUTH reader one").await?, "+OK\r\n");
        let all =
            ["MULTI", "DISCARD", "UNWATCH", "BZPOPMIN z 0.001", "WATCH k", "CLIENT TRACKING ON", "HGETALL h"];
        let bytes: Vec<u8> =
            all.iter().flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>())).collect();
        client.send(&bytes).await?;
        for line in &all[..all.len() - 1] {
            assert!(client.reply().await?.starts_with(b"-NOPERM"), "{line}");
        }
        assert_eq!(client.reply().await?, b"*0\r\n");
        let large = "x".repeat(70_000);
        assert_eq!(client.cmd(&format!("ECHO {large}")).await?.len(), 70_000 + b"$70000\r\n\r\n".len());
        // A RESET that is asked for without an answer has none.
        client.send(&[encode(&["CLIENT", "REPLY", "SKIP"]), encode(&["RESET"])].concat()).await?;
        assert_eq!(client.cmd("ACL WHOAMI").await?, "$7\r\ndefault\r\n");
        assert!(client.cmd("HELLO 2 AUTH reader wrong SETNAME other").await?.starts_with("-WRONGPASS"));
        assert_eq!(client.cmd("CLIENT GETNAME").await?, "$-1\r\n");
    }
    Ok(())
}

/// Redis closes the connections of a user that is deleted; here as well nobody goes on in that name.
#[tokio::test]
async fn a_deleted_user_is_gone() -> Outcome {
    for stand in stands().await? {
        let mut direct = stand.redis.client().await?;
        direct.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all"]).await?;
        let mut a = wire(&stand).await?;
        assert_eq!(a.cmd("AUTH app pw").await?, "+OK\r\n");
        assert_eq!(a.cmd("GET k").await?, "$-1\r\n");
        direct.cmd(&["ACL", "DELUSER", "app"]).await?;
        wait_until("the client to be closed", PATIENCE, async || match a.cmd("GET k").await {
            Ok(said) => {
                assert!(said.starts_with('-'), "{said}");
                false
            }
            Err(_) => true,
        })
        .await?;
        let mut b = wire(&stand).await?;
        assert!(b.cmd("AUTH app pw").await?.starts_with("-WRONGPASS"));
    }
    Ok(())
}

/// Before it has logged in, a client is nobody, whoever else has.
#[tokio::test]
async fn where_a_password_is_needed_each_client_needs_it() -> Outcome {
    let stand = Stand::with_redis(
        RedisOptions::default().args(&["--requirepass", "secret"]),
        &[ONE_THREAD, ("redis://", "redis://:secret@")],
    )
    .await?;
    let (mut a, mut b) = (wire(&stand).await?, wire(&stand).await?);
    assert!(a.cmd("GET k").await?.starts_with("-NOAUTH"));
    assert_eq!(a.cmd("AUTH secret").await?, "+OK\r\n");
    let [a_said, b_said] =
        interleaved((&mut a, &["SET k v", "GET k"]), (&mut b, &["GET k", "HELLO 3", "GET k"])).await?;
    assert_eq!(a_said, ["+OK", "$1 v"]);
    assert!(b_said.iter().all(|said| said.starts_with("-NOAUTH")), "{b_said:?}");
    assert_eq!(a.cmd("RESET").await?, "+RESET\r\n");
    assert!(a.cmd("GET k").await?.starts_with("-NOAUTH"));
    assert!(b.cmd("HELLO 3 AUTH default secret").await?.starts_with('%'));
    assert_eq!(b.cmd("GET k").await?, "$1\r\nv\r\n");
    Ok(())
}

/// A password that is set later is for those who come later, as in Redis; no lane of before lets them in.
#[tokio::test]
async fn a_password_is_for_those_who_come_after_it() -> Outcome {
    for stand in stands().await? {
        let mut direct = stand.redis.client().await?;
        let mut early = wire(&stand).await?;
        for line in ["SET k v", "MULTI", "EXEC"] {
            assert!(!early.cmd(line).await?.starts_with('-'), "{line}");
        }
        direct.cmd(&["CONFIG", "SET", "requirepass", "secret"]).await?;
        wait_until("the next client to need it", PATIENCE, async || {
            let Ok(mut late) = wire(&stand).await else { return false };
            // Of a pin Redis itself would say so; half of a request it does not see.
            let Ok(mut strange) = wire(&stand).await else { return false };
            let half = tokio::time::timeout(Duration::from_millis(200), async {
                strange.send(b"*11\r\n").await?;
                strange.reply().await
            });
            half.await.is_ok_and(|said| said.is_ok())
                && late.cmd("GET k").await.is_ok_and(|said| said.starts_with("-NOAUTH"))
        })
        .await?;
        assert_eq!(early.cmd("GET k").await?, "$1\r\nv\r\n", "who was there stays");
        let mut late = wire(&stand).await?;
        for line in ["GET k", "MULTI", "BLPOP k 1"] {
            assert!(late.cmd(line).await?.starts_with("-NOAUTH"), "{line}");
        }
        assert_eq!(late.cmd("AUTH secret").await?, "+OK\r\n");
        assert_eq!(late.cmd("GET k").await?, "$1\r\nv\r\n");
        // Little is taken from who has yet to log in.
        for request in ["*11\r\n", "*2\r\n$4\r\nECHO\r\n$16385\r\n"] {
            let mut straight = Wire::connect(&stand.redis.address()).await?;
            let mut through = wire(&stand).await?;
            straight.send(request.as_bytes()).await?;
            through.send(request.as_bytes()).await?;
            assert_eq!(through.rest().await?, straight.rest().await?, "{request}");
        }
        direct.cmd(&["CONFIG", "SET", "requirepass", ""]).await?;
        wait_until("nobody to need it", PATIENCE, async || {
            let Ok(mut late) = wire(&stand).await else { return false };
            late.cmd("GET k").await.is_ok_and(|said| said == "$1\r\nv\r\n")
        })
        .await?;
    }
    Ok(())
}

/// Whatever one client asks Redis to remember of its connection, another's commands are the plain ones.
#[tokio::test]
async fn what_redis_remembers_of_a_connection_is_one_clients_own() -> Outcome {
    for stand in stands().await? {
        let states: [&[&str]; 8] = [
            &["MULTI", "SET k queued"],
            &["WATCH k", "MULTI"],
            &["CLIENT REPLY OFF"],
            &["SUBSCRIBE news"],
            &["HELLO 3", "CLIENT TRACKING ON BCAST NOLOOP"],
            &["CLIENT NO-EVICT ON"],
            &["MONITOR"],
            &["SELECT 3"],
        ];
        let mut stateful = Vec::new();
        for state in states {
            let mut client = wire(&stand).await?;
            for line in state {
                client.send(&encode(&line.split(' ').collect::<Vec<_>>())).await?;
                if !line.starts_with("CLIENT REPLY") {
                    client.reply().await?;
                }
            }
            // Others, before and after, see none of it.
            for _ in 0..2 {
                let mut plain = wire(&stand).await?;
                for (line, said) in [
                    ("SET k v", "+OK\r\n"),
                    ("GET k", "$1\r\nv\r\n"),
                    ("HSET h f v", ""),
                    ("HGETALL h", "*2\r\n$1\r\nf\r\n$1\r\nv\r\n"),
                    ("MULTI", "+OK\r\n"),
                    ("GET k", "+QUEUED\r\n"),
                    ("EXEC", "*1\r\n$1\r\nv\r\n"),
                    ("BLPOP nothing 0.01", "*-1\r\n"),
                    (
                        "CLIENT TRACKINGINFO",
                        "*6\r\n$5\r\nflags\r\n*1\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n*0\r\n",
                    ),
                ] {
                    let got = plain.cmd(line).await?;
                    assert!(said.is_empty() || got == said, "{line} after {state:?}: {got}");
                }
            }
            stateful.push(client);
        }
    }
    Ok(())
}

/// Many transactions, blocking reads, logins and large values take a handful of connections.
#[tokio::test]
async fn a_pin_is_used_again() -> Outcome {
    let stand = Stand::start(&[ONE_THREAD]).await?;
    let mut direct = stand.redis.client().await?;
    direct.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all"]).await?;
    let large = "x".repeat(500_000);
    let round = async |n: u32| -> Outcome {
        let mut client = wire(&stand).await?;
        if n.is_multiple_of(2) {
            assert_eq!(client.cmd("AUTH app pw").await?, "+OK\r\n");
        }
        for line in ["MULTI", "SET a 1", "EXEC", "WATCH a", "UNWATCH", "BLPOP none 0.001", "EVAL return(1) 0"]
        {
            client.cmd(line).await?;
        }
        assert_eq!(client.cmd(&format!("SET large {large}")).await?, "+OK\r\n");
        for line in ["SUBSCRIBE a", "UNSUBSCRIBE a", "CLIENT TRACKING OFF", "CONFIG GET maxmemory"] {
            client.cmd(line).await?;
        }
        assert_eq!(client.cmd("GET a").await?, "$1\r\n1\r\n");
        Ok(())
    };
    for n in 0..4 {
        round(n).await?;
    }
    let before = accepted(&mut direct).await?;
    for n in 0..40 {
        round(n).await?;
    }
    assert_eq!(accepted(&mut direct).await?, before, "none was opened");
    Ok(())
}

/// Subscriptions in RESP3 leave the connection free for everything else, and its replies in place.
#[tokio::test]
async fn messages_come_between_replies() -> Outcome {
    for stand in stands().await? {
        let (mut a, mut b) = (wire(&stand).await?, wire(&stand).await?);
        a.cmd("HELLO 3").await?;
        for (line, said) in [
            ("SUBSCRIBE c", ">3 $9 subscribe $1 c :1"),
            ("SSUBSCRIBE s", ">3 $10 ssubscribe $1 s :1"),
            ("SET k v", "+OK"),
            ("GET k", "$1 v"),
            ("MULTI", "+OK"),
            ("GET k", "+QUEUED"),
            ("EXEC", "*1 $1 v"),
            ("BLPOP none 0.01", "_"),
            ("SUBSCRIBE", "-ERR wrong number of arguments for 'subscribe' command"),
        ] {
            assert_eq!(a.cmd(line).await?.trim_end().replace("\r\n", " "), said, "{line}");
        }
        assert_eq!(b.cmd("PUBLISH c hello").await?, ":1\r\n");
        assert_eq!(a.reply().await?, b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhello\r\n");
        assert_eq!(b.cmd("SPUBLISH s hello").await?, ":1\r\n");
        assert_eq!(a.reply().await?, b">3\r\n$8\r\nsmessage\r\n$1\r\ns\r\n$5\r\nhello\r\n");
        // Its own messages and replies, in the order of Redis: up to 7.0 the message comes first, later the reply.
        let mut straight = Wire::connect(&stand.redis.address()).await?;
        straight.cmd("HELLO 3").await?;
        straight.cmd("SUBSCRIBE own").await?;
        let message_first = straight.cmd("PUBLISH own x").await?.starts_with('>');
        let large = "x".repeat(300_000);
        a.send(&encode(&["PUBLISH", "c", &large])).await?;
        let (first, second) = (a.reply().await?, a.reply().await?);
        let (message, reply) = if message_first { (first, second) } else { (second, first) };
        assert_eq!(message.len(), large.len() + ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$300000\r\n\r\n".len());
        assert_eq!(reply, b":1\r\n");
        for (line, said) in [
            ("UNSUBSCRIBE", ">3 $11 unsubscribe $1 c :0"),
            ("SUNSUBSCRIBE", ">3 $12 sunsubscribe $1 s :0"),
            ("GET k", "$1 v"),
        ] {
            assert_eq!(a.cmd(line).await?.trim_end().replace("\r\n", " "), said, "{line}");
        }
        assert_eq!(b.cmd("PUBLISH c hello").await?, ":0\r\n");
        assert_eq!(a.cmd("PING").await?, "+PONG\r\n");
    }
    Ok(())
}

/// Every type of RESP3, attributes and a push before a reply included.
#[tokio::test]
async fn replies_of_every_type_pass() -> Outcome {
    let debugging = RedisOptions::default().args(&["--enable-debug-command", "yes"]);
    let stand = Stand::with_redis(debugging, &[ONE_THREAD]).await?;
    for hello in ["HELLO 2", "HELLO 3"] {
        let (mut direct, mut through) = (Wire::connect(&stand.redis.address()).await?, wire(&stand).await?);
        direct.cmd(hello).await?;
        through.cmd(hello).await?;
        for kind in [
            "string", "integer", "double", "null", "array", "set", "map", "attrib", "push", "verbatim",
            "true", "false", "bignum",
        ] {
            let line = format!("DEBUG PROTOCOL {kind}");
            let expected = direct.cmd(&line).await?;
            assert_eq!(through.cmd(&line).await?, expected, "{line} after {hello}");
            // The push comes before the reply or, in later servers, after it.
            if kind == "push" && hello == "HELLO 3" {
                assert_eq!(through.reply().await?, direct.reply().await?, "the other of both");
            }
            assert_eq!(through.cmd("ECHO end").await?, "$3\r\nend\r\n", "{line} after {hello}");
        }
    }
    Ok(())
}

/// Client-side caching: what somebody else changes is told to the one that has asked for it, and to nobody else.
#[tokio::test]
async fn invalidations_come_to_the_client_that_tracks() -> Outcome {
    for stand in stands().await? {
        let (mut a, mut b, mut c) = (wire(&stand).await?, wire(&stand).await?, wire(&stand).await?);
        a.cmd("HELLO 3").await?;
        c.cmd("HELLO 3").await?;
        let invalid =
            |key: &str| format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len()).into_bytes();
        assert_eq!(a.cmd("CLIENT TRACKING ON").await?, "+OK\r\n");
        assert_eq!(a.cmd("GET k").await?, "_\r\n");
        assert_eq!(b.cmd("SET k v").await?, "+OK\r\n");
        assert_eq!(a.reply().await?, invalid("k"));
        assert_eq!(a.cmd("CLIENT TRACKING OFF").await?, "+OK\r\n");
        // OPTIN: what is asked for after CACHING YES.
        assert_eq!(a.cmd("CLIENT TRACKING ON OPTIN").await?, "+OK\r\n");
        assert_eq!(a.cmd("GET k").await?, "$1\r\nv\r\n");
        assert_eq!(a.cmd("CLIENT CACHING YES").await?, "+OK\r\n");
        assert_eq!(a.cmd("GET k2").await?, "_\r\n");
        assert_eq!(b.cmd("SET k w").await?, "+OK\r\n");
        assert_eq!(b.cmd("SET k2 w").await?, "+OK\r\n");
        assert_eq!(a.reply().await?, invalid("k2"));
        assert_eq!(a.cmd("CLIENT TRACKING OFF").await?, "+OK\r\n");
        // BCAST, by prefix; also for what a commit deletes.
        assert_eq!(a.cmd("CLIENT TRACKING ON BCAST PREFIX user:").await?, "+OK\r\n");
        assert_eq!(b.cmd("SET other v").await?, "+OK\r\n");
        stand.write("users", "user:7", 7).await?;
        assert_eq!(a.reply().await?, invalid("user:7"), "the value that was put in");
        assert_eq!(a.reply().await?, invalid("user:7"), "the deletion by the commit");
        // RESP2: the messages go to another connection, by its id.
        let mut to = wire(&stand).await?;
        let id = to.cmd("CLIENT ID").await?;
        to.cmd("SUBSCRIBE __redis__:invalidate").await?;
        let id = id.trim_start_matches(':').trim_end();
        assert_eq!(b.cmd(&format!("CLIENT TRACKING ON REDIRECT {id}")).await?, "+OK\r\n");
        assert_eq!(b.cmd("GET k3").await?, "$-1\r\n");
        assert_eq!(c.cmd("SET k3 v").await?, "+OK\r\n");
        let told = String::from_utf8_lossy(&to.reply().await?).into_owned();
        assert!(told.starts_with("*3\r\n$7\r\nmessage\r\n") && told.contains("k3"), "{told}");
        assert_eq!(c.cmd("PING").await?, "+PONG\r\n", "nobody told the client that does not track");
    }
    Ok(())
}

/// A script that does not end stops Redis, and everybody else is told so and can end it, as without the proxy.
#[tokio::test]
async fn a_script_that_does_not_end_can_be_ended() -> Outcome {
    let stand =
        Stand::with_redis(RedisOptions::default().args(&["--busy-reply-threshold", "50"]), &[ONE_THREAD])
            .await?;
    let (mut a, mut b, mut c) = (wire(&stand).await?, wire(&stand).await?, wire(&stand).await?);
    assert_eq!(b.cmd("GET k").await?, "$-1\r\n");
    a.send(&encode(&["EVAL", "while true do end", "0"])).await?;
    wait_until("Redis to be busy", PATIENCE, async || {
        b.cmd("GET k").await.is_ok_and(|said| said.starts_with("-BUSY"))
    })
    .await?;
    assert_eq!(c.cmd("SCRIPT KILL").await?, "+OK\r\n");
    assert!(a.reply().await?.starts_with(b"-"));
    wait_until("Redis to be free", PATIENCE, async || {
        b.cmd("GET k").await.is_ok_and(|said| said == "$-1\r\n")
    })
    .await?;
    Ok(())
}

/// A client that waits in Redis makes nobody else wait.
#[tokio::test]
async fn a_client_that_blocks_blocks_itself_only() -> Outcome {
    let stand = Stand::start(&[ONE_THREAD]).await?;
    let mut waiting = Vec::new();
    for n in 0..20 {
        let mut client = wire(&stand).await?;
        client.send(&encode(&["BLPOP", &format!("queue:{n}"), "0"])).await?;
        client.send(&encode(&["GET", "k"])).await?;
        waiting.push(client);
    }
    let mut other = wire(&stand).await?;
    assert_eq!(other.cmd("SET k v").await?, "+OK\r\n");
    for n in 0..20 {
        assert_eq!(other.cmd(&format!("RPUSH queue:{n} x")).await?, ":1\r\n");
    }
    for client in &mut waiting {
        assert!(client.reply().await?.starts_with(b"*2\r\n"));
        assert_eq!(client.reply().await?, b"$1\r\nv\r\n");
    }
    drop(waiting);
    let mut direct = stand.redis.client().await?;
    wait_until("their connections to be closed", PATIENCE, async || connections(&mut direct).await < 20)
        .await?;
    Ok(())
}

/// A figure of a process's memory, in bytes.
fn memory(pid: Option<u32>, figure: &str) -> Fallible<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.ok_or("not running")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix(figure)).ok_or("no such figure")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? * 1024)
}

/// The most memory that a process has had, in bytes.
fn peak(pid: Option<u32>) -> Fallible<usize> {
    memory(pid, "VmHWM:")
}

/// A client that has said something, and says nothing now, owns no buffers.
#[tokio::test]
async fn an_idle_client_costs_little() -> Outcome {
    let clients = std::env::var("CACHEFENCE_TEST_CLIENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let stand = Stand::start(&[ONE_THREAD]).await?;
    let mut idle = Vec::new();
    let mut add = async |n: usize| -> Outcome {
        for _ in 0..n {
            let mut client = wire(&stand).await?;
            client.cmd(&format!("SET user:1 {}", "x".repeat(2000))).await?;
            client.cmd("GET user:1").await?;
            idle.push(client);
        }
        Ok(())
    };
    add(100).await?;
    let before = memory(stand.proxy.pid(), "VmRSS:")?;
    add(clients).await?;
    let each = memory(stand.proxy.pid(), "VmRSS:")?.saturating_sub(before) / clients;
    println!("{each} bytes for each of {clients} idle clients");
    assert!(each < 8192, "{each} bytes for an idle client");
    Ok(())
}

/// A value, of 512 MB at most, costs the proxy a few MB, in either direction. `CACHEFENCE_TEST_VALUE` says how many MB.
#[tokio::test]
async fn the_largest_values_are_passed_on_as_they_come() -> Outcome {
    let stand = Stand::start(&[ONE_THREAD]).await?;
    let before = peak(stand.proxy.pid())?;
    let mut client = wire(&stand).await?;
    let megabytes = std::env::var("CACHEFENCE_TEST_VALUE").ok().and_then(|n| n.parse().ok()).unwrap_or(160);
    for (key, length) in [("plain", megabytes << 20), ("user:1", 80 << 20)] {
        if key == "user:1" {
            wire::settled(&stand.postgres, &stand.proxy).await?;
            assert_eq!(client.cmd("GET user:1").await?, "$-1\r\n");
        }
        client
            .send(format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${length}\r\n", key.len()).as_bytes())
            .await?;
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..length / piece.len() {
            client.send(&piece).await?;
        }
        client.send(b"\r\n").await?;
        assert_eq!(client.reply().await?, b"+OK\r\n");
        assert_eq!(client.cmd(&format!("STRLEN {key}")).await?, format!(":{length}\r\n"));
        client.send(&encode(&["GET", key])).await?;
        assert_eq!(client.skip_reply().await?, length + format!("${length}\r\n\r\n").len());
        assert_eq!(client.cmd(&format!("DEL {key}")).await?, ":1\r\n");
    }
    let grown = peak(stand.proxy.pid())?.saturating_sub(before);
    println!("peak memory grew by {} KiB", grown >> 10);
    assert!(grown < 48 << 20, "{grown} bytes more for values of {megabytes} and 80 MB");
    Ok(())
}

/// A large fill that is refused leaves nothing of itself: neither in Redis nor in front of the next command.
#[tokio::test]
async fn a_large_fill_that_is_refused_is_gone() -> Outcome {
    for stand in stands().await? {
        stand.write("orders", "order:1", 1).await?;
        let mut direct = stand.redis.client().await?;
        let large = "x".repeat(3_000_000);
        let mut client = wire(&stand).await?;
        for line in [
            format!("SET order:1 {large}"),
            format!("SETEX order:1 100 {large}"),
            format!("SET order:1 {large} EX 100 GET"),
            format!("HSET order:1 f {large}"),
        ] {
            // Behind commands whose answers are still to come, and before others.
            let all: Vec<u8> = ["PING", "SET a 1", &line, "GET a", &line, "INCR a", "DEL a"]
                .iter()
                .flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>()))
                .collect();
            client.send(&all).await?;
            for said in ["+PONG", "+OK", "-STALE", "$1\r\n1", "-STALE", ":2", ":1"] {
                let reply = client.reply().await?;
                assert!(reply.starts_with(said.as_bytes()), "{said}: {}", String::from_utf8_lossy(&reply));
            }
            assert_eq!(direct.cmd(&["EXISTS", "order:1"]).await?, Reply::Int(0));
        }
        // In a transaction as well.
        for line in ["MULTI", "SET a 1", &format!("SET order:1 {large}"), "INCR a"] {
            client.cmd(line).await?;
        }
        assert_eq!(client.cmd("EXEC").await?, "*-1\r\n");
        assert_eq!(client.cmd("EXISTS order:1 a").await?, ":0\r\n");
        // One that is not known to be stale is let in, with the TTL of what nothing speaks for.
        assert_eq!(client.cmd(&format!("SET order:2 {large}")).await?, "+OK\r\n");
        assert_eq!(direct.cmd(&["STRLEN", "order:2"]).await?, Reply::Int(3_000_000));
        assert!(matches!(direct.cmd(&["PTTL", "order:2"]).await?, Reply::Int(1..=60_000)));
        // A client that goes in the middle of one leaves no connection with a half.
        let half = encode(&["SET", "order:3", &large]);
        client.send(&half[..half.len() - 10]).await?;
        drop(client);
        let mut next = wire(&stand).await?;
        for _ in 0..10 {
            assert_eq!(next.cmd("MULTI").await?, "+OK\r\n");
            assert_eq!(next.cmd("EXEC").await?, "*0\r\n");
        }
        assert_eq!(direct.cmd(&["EXISTS", "order:3"]).await?, Reply::Int(0));
    }
    Ok(())
}

/// WAIT is about the writes of its own client, which went over a lane.
#[tokio::test]
async fn wait_waits_for_the_writes_of_its_client() -> Outcome {
    let stand = Stand::start(&[ONE_THREAD]).await?;
    let port = stand.redis.port().to_string();
    let mut replica = cachefence::demo::servers::Redis::start(RedisOptions::default().args(&[
        "--replicaof",
        "127.0.0.1",
        &port,
    ]))
    .await?;
    let mut client = wire(&stand).await?;
    wait_until("the replica to follow", PATIENCE, async || {
        client.cmd("SET k v").await.is_ok() && client.cmd("WAIT 1 100").await.is_ok_and(|n| n == ":1\r\n")
    })
    .await?;
    replica.freeze()?;
    assert_eq!(client.cmd("SET k w").await?, "+OK\r\n");
    assert_eq!(client.cmd("WAIT 1 200").await?, ":0\r\n");
    replica.thaw()?;
    client.send(&encode(&["WAIT", "1", "0"])).await?;
    assert_eq!(client.reply().await?, b":1\r\n");
    Ok(())
}

/// What is sent at once, as one piece.
async fn send_all(wire: &mut Wire, lines: &[&str]) -> Outcome {
    let bytes = lines.iter().flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>()));
    wire.send(&bytes.collect::<Vec<u8>>()).await
}

/// Redis 7.0 does what stands before the option that it refuses: it has let the connection log in when it says no.
#[tokio::test]
async fn a_hello_that_fails_half_way_is_one_clients_own() -> Outcome {
    for stand in stands().await? {
        let mut direct = stand.redis.client().await?;
        direct.cmd(&["ACL", "SETUSER", "boss", "on", ">secret", "~*", "+@all"]).await?;
        let mut known = Wire::connect(&stand.redis.address()).await?;
        let mut client = wire(&stand).await?;
        for line in ["HELLO 3 AUTH boss secret SETNAME mine NOSUCH", "ACL WHOAMI", "SET k v"] {
            assert_eq!(client.cmd(line).await?, known.cmd(line).await?, "{line}");
        }
        // Its connections go by our names, or a successor would not find them.
        let own = known.cmd("CLIENT ID").await?;
        let list = direct.cmd(&["CLIENT", "LIST"]).await?.text().unwrap_or_default();
        let own = format!("id={} ", own.trim_start_matches(':').trim_end());
        let named = |line: &&str| line.contains("name=mine") && !line.starts_with(&own);
        assert_eq!(list.lines().filter(named).count(), 0, "{list}");
        drop(client);
        for _ in 0..5 {
            let mut other = wire(&stand).await?;
            send_all(&mut other, &["MULTI", "ACL WHOAMI", "EXEC"]).await?;
            for said in ["+OK\r\n", "+QUEUED\r\n", "*1\r\n$7\r\ndefault\r\n"] {
                assert_eq!(String::from_utf8_lossy(&other.reply().await?), said);
            }
        }
    }
    Ok(())
}

/// A transaction that Redis will not end stays with the client that has begun it, which is closed.
#[tokio::test]
async fn a_transaction_that_cannot_be_discarded_is_nobody_elses() -> Outcome {
    for stand in stands().await? {
        stand.write("orders", "order:7", 7).await?;
        let mut direct = stand.redis.client().await?;
        direct.cmd(&["ACL", "SETUSER", "default", "-discard"]).await?;
        for end in [&["EXEC", "EXEC"][..], &["DISCARD", "EXEC"], &["EXEC", "PING"]] {
            let mut client = wire(&stand).await?;
            send_all(&mut client, &[&["MULTI", "SET order:7 old"], end].concat()).await?;
            let said = String::from_utf8_lossy(&client.rest().await?).into_owned();
            let (before, after) = said.split_once("-NOPERM").ok_or(said.clone())?;
            assert_eq!(before, "+OK\r\n+QUEUED\r\n");
            assert!(after.ends_with("'discard' command\r\n"), "{said}");
            assert_eq!(direct.cmd(&["EXISTS", "order:7"]).await?, Reply::Int(0));
        }
        for _ in 0..5 {
            let mut other = wire(&stand).await?;
            for (line, said) in [("BLPOP none 0.01", "*-1\r\n"), ("MULTI", "+OK\r\n"), ("EXEC", "*0\r\n")] {
                assert_eq!(other.cmd(line).await?, said);
            }
        }
    }
    Ok(())
}

/// The proxy's own replies, and the end of subscriptions, wait for the end of a message that is passed on in parts.
#[tokio::test]
async fn nothing_comes_in_the_middle_of_a_message() -> Outcome {
    for stand in stands().await? {
        let mut direct = stand.redis.client().await?;
        for (line, said) in [("CLIENT GETNAME", "_\r\n"), ("RESET", "+RESET\r\n"), ("QUIT", "+OK\r\n")] {
            let mut client = wire(&stand).await?;
            client.cmd("HELLO 3").await?;
            assert!(client.cmd("SUBSCRIBE c").await?.starts_with('>'));
            let large = "x".repeat(20_000_000);
            direct.cmd(&["PUBLISH", "c", &large]).await?;
            // The first of it is there, and the rest is not asked for while it is not read.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            client.send(&encode(&line.split(' ').collect::<Vec<_>>())).await?;
            let message = client.reply().await?;
            assert!(message.starts_with(b">3\r\n$7\r\nmessage") && message.ends_with(b"xxx\r\n"), "{line}");
            assert_eq!(String::from_utf8_lossy(&client.reply().await?), said, "{line}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_channel_may_have_a_long_name() -> Outcome {
    for stand in stands().await? {
        for hello in ["HELLO 2", "HELLO 3"] {
            let mut client = wire(&stand).await?;
            client.cmd(hello).await?;
            let name = "c".repeat(3_000_000);
            for line in [format!("SUBSCRIBE {name}"), format!("UNSUBSCRIBE {name}")] {
                assert!(client.cmd(&line).await?.len() > name.len());
            }
            assert_eq!(client.cmd("ECHO x").await?, "$1\r\nx\r\n");
        }
    }
    Ok(())
}

/// The connection on which a large value goes out is lost: the client is told once it has said all of it.
#[tokio::test]
async fn a_large_request_whose_connection_is_lost_is_answered() -> Outcome {
    for stand in stands().await? {
        let mut direct = stand.redis.client().await?;
        let mut client = wire(&stand).await?;
        assert_eq!(client.cmd("PING").await?, "+PONG\r\n");
        let request = encode(&["SET", "k", &"x".repeat(30_000_000)]);
        let (first, rest) = request.split_at(1_000_000);
        client.send(first).await?;
        // So much of it is there that it is known to be on its way.
        wait_until("the value to be on its way", PATIENCE, async || {
            let list = direct.cmd(&["CLIENT", "LIST"]).await.ok().and_then(|list| list.text());
            list.is_some_and(|list| list.lines().any(has_input))
        })
        .await?;
        direct.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await?;
        tokio::time::timeout(PATIENCE, client.send(rest)).await??;
        let reply = client.reply().await?;
        assert!(reply.starts_with(b"-ERR cachefence: upstream"), "{}", String::from_utf8_lossy(&reply));
        assert_eq!(client.cmd("GET k").await?, "$-1\r\n");
    }
    Ok(())
}

/// Whether a line of `CLIENT LIST` is of a connection that has said a part of a large request.
fn has_input(line: &str) -> bool {
    let figure = line.split(' ').find_map(|field| field.strip_prefix("qbuf="));
    figure.and_then(|bytes| bytes.parse::<usize>().ok()).is_some_and(|bytes| bytes > 100_000)
}

/// MONITOR is like any other command: what is sent behind it is answered behind it, or it is refused and over.
#[tokio::test]
async fn monitoring_begins_when_redis_says_so() -> Outcome {
    for stand in stands().await? {
        for end in ["RESET", "QUIT"] {
            let mut answers = Vec::new();
            for address in [stand.redis.address(), stand.proxy.address().to_owned()] {
                let mut client = Wire::connect(&address).await?;
                send_all(&mut client, &["MONITOR", end]).await?;
                answers.push((client.reply().await?, client.reply().await?));
            }
            assert_eq!(answers[0], answers[1], "{end}");
        }
        let mut client = wire(&stand).await?;
        assert!(client.cmd("MONITOR too").await?.starts_with("-ERR wrong number"));
        assert_eq!(client.cmd("CLIENT GETNAME").await?, "$-1\r\n", "the proxy's own answers too");
    }
    Ok(())
}
