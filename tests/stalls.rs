//! Clients and servers that stop in the middle: nobody else waits for them, and the feed least of all.

mod wire;

use std::time::{Duration, Instant};

use cachefence::demo::client::{Client, Reply, encode};
use cachefence::demo::servers::{Cachefence, Redis, RedisOptions, wait_until};
use wire::{BINARY, Fallible, Outcome, PATIENCE, Stand, Wire, connections, settings, settled};

/// Text of the length, in megabytes.
fn megabytes(n: usize) -> Vec<u8> {
    vec![b'x'; n << 20]
}

/// A fill is judged when the whole of it is there, and until then stands in nobody's way.
#[tokio::test]
async fn half_a_large_fill_does_not_hold_up_the_feed() -> Outcome {
    let stand = Stand::start(&[("[postgres]\n", "[fence]\ndrain_timeout = \"20s\"\n[postgres]\n")]).await?;
    settled(&stand.postgres, &stand.proxy).await?;
    // A miss, so that the fill would be as good as any when it begins.
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(wire.cmd("GET order:1").await?, "$-1\r\n");
    let value = megabytes(50);
    let request = encode(&[b"SET".as_slice(), b"order:1", &value]);
    let (first, second) = request.split_at(request.len() / 2);
    wire.send(first).await?;
    let began = Instant::now();
    stand.write("orders", "order:1", 1).await?;
    assert!(began.elapsed() < Duration::from_secs(20), "the feed waited for the drain_timeout");
    wire.send(second).await?;
    let answer = wire.reply().await?;
    assert!(answer.starts_with(b"-STALE "), "{:?}", String::from_utf8_lossy(&answer));
    assert_eq!(stand.redis.client().await?.cmd(&["EXISTS", "order:1"]).await?, Reply::Int(0));
    // The connection is as good as before, and a new miss vouches again.
    settled(&stand.postgres, &stand.proxy).await?;
    assert_eq!(wire.cmd("GET order:1").await?, "$-1\r\n");
    wire.send(&request).await?;
    assert_eq!(wire.reply().await?, b"+OK\r\n");
    assert_eq!(wire.cmd("STRLEN order:1").await?, format!(":{}\r\n", value.len()));
    Ok(())
}

/// Redis stops with a fill in its socket; the commit that follows does not wait longer than it must, and the fill
/// does not survive.
#[tokio::test]
async fn a_fill_in_a_frozen_redis_is_ended() -> Outcome {
    let mut stand =
        Stand::start(&[("[postgres]\n", "[fence]\ndrain_timeout = \"300ms\"\n[postgres]\n")]).await?;
    settled(&stand.postgres, &stand.proxy).await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    assert_eq!(wire.cmd("GET user:1").await?, "$-1\r\n");
    let mut direct = stand.redis.client().await?;
    stand.redis.freeze()?;
    wire.send(&encode(&["SET", "user:1", "stale"])).await?;
    // Admitted: what is counted is on its way.
    let admitted = "cachefence_fills_total{guard=\"public.users\",verdict=\"fresh\",action=\"forwarded\"}";
    wait_until("the fill to be admitted", PATIENCE, async || {
        stand.proxy.metric(admitted).await.is_ok_and(|n| n == 1.0)
    })
    .await?;
    stand.postgres.client().await?.batch_execute("UPDATE users SET name = 'new' WHERE id = 1").await?;
    // The connection is given up, and its client told.
    let answer = wire.reply().await?;
    assert!(answer.starts_with(b"-ERR cachefence: upstream"), "{:?}", String::from_utf8_lossy(&answer));
    stand.redis.thaw()?;
    wait_until("the fill to be ended", PATIENCE, async || {
        stand.proxy.log().contains("abandoned fills ended")
    })
    .await?;
    assert_eq!(direct.cmd(&["EXISTS", "user:1"]).await?, Reply::Int(0));
    // The feed goes on.
    stand.write("users", "user:2", 2).await?;
    assert_eq!(direct.cmd(&["EXISTS", "user:1"]).await?, Reply::Int(0));
    assert_eq!(wire.cmd("PING").await?, "+PONG\r\n");
    Ok(())
}

/// The database takes no new connections and the stream is cut, while a session that was there goes on writing.
async fn lose_the_feed(stand: &Stand, operator: &tokio_postgres::Client) -> Outcome {
    operator.batch_execute("ALTER DATABASE app ALLOW_CONNECTIONS false").await?;
    operator.batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication").await?;
    Ok(wait_until("the feed to be lost", PATIENCE, async || {
        let answer = stand.proxy.get("/readyz").await;
        answer.is_ok_and(|(status, why)| status == 503 && why.contains("the feed is lost"))
    })
    .await?)
}

/// Reads that are served or missed, fills that are capped or refused: each guard does what it says while the feed is
/// lost. When it is back, all of them are as before, without a restart, and nothing old is there any more.
#[tokio::test]
async fn what_guards_do_while_the_feed_is_lost_and_after() -> Outcome {
    const GUARDS: [(&str, &str, bool, bool); 4] = [
        ("users", "user", true, true),
        ("items", "item", true, false),
        ("orders", "order", false, true),
        ("notes", "note", false, false),
    ];
    let (postgres, redis) = (wire::postgres().await?, Redis::start(RedisOptions::default()).await?);
    let (sql, operator) = (postgres.client().await?, postgres.client_for("postgres").await?);
    sql.batch_execute("CREATE TABLE notes AS TABLE users; ALTER TABLE notes ADD PRIMARY KEY (id)").await?;
    let others = settings(&postgres, &redis, "wire", &[]);
    let (servers, _) = others.split_once("[[guard]]").ok_or("no guards")?;
    let guards: String = GUARDS
        .iter()
        .map(|(table, key, serve, cap)| {
            let (reads, fills) = (if *serve { "serve" } else { "miss" }, if *cap { "cap" } else { "refuse" });
            format!(
                "[[guard]]\ntable = \"{table}\"\nkeys = [\"{key}:<id>\"]\nreply = \"error\"\n\
                 when_feed_lost = {{ reads = \"{reads}\", fills = \"{fills}\", fills_ttl = \"2s\" }}\n"
            )
        })
        .collect();
    let proxy = Cachefence::start(BINARY, &(servers.to_owned() + &guards)).await?;
    let stand = Stand { proxy, redis, postgres };
    settled(&stand.postgres, &stand.proxy).await?;
    let mut direct = stand.redis.client().await?;
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    for (_, key, ..) in GUARDS {
        assert_eq!(wire.cmd(&format!("GET {key}:1")).await?, "$-1\r\n");
        assert_eq!(wire.cmd(&format!("SET {key}:1 old")).await?, "+OK\r\n");
        assert_eq!(direct.cmd(&["PTTL", &format!("{key}:1")]).await?, Reply::Int(-1), "proven, not capped");
    }

    lose_the_feed(&stand, &operator).await?;
    for (table, key, serve, cap) in GUARDS {
        sql.batch_execute(&format!("UPDATE {table} SET name = 'new' WHERE id IN (1, 2)")).await?;
        let found = wire.cmd(&format!("GET {key}:1")).await?;
        assert_eq!(found, if serve { "$3\r\nold\r\n" } else { "$-1\r\n" }, "{key}");
        // What a transaction finds cannot be told apart: it is aborted.
        let mut last = String::new();
        for command in ["MULTI", &format!("GET {key}:1"), "EXEC"] {
            last = wire.cmd(command).await?;
        }
        assert_eq!(last, if serve { "*1\r\n$3\r\nold\r\n" } else { "*-1\r\n" }, "{key}");
        let filled = wire.cmd(&format!("SET {key}:2 old EX 900")).await?;
        let left = direct.cmd(&["PTTL", &format!("{key}:2")]).await?;
        if cap {
            assert_eq!(filled, "+OK\r\n", "{key}");
            assert!(matches!(left, Reply::Int(-2..=2000)) && left != Reply::Int(-1), "{key}: {left:?}");
        } else {
            assert!(filled.starts_with("-FENCE the feed is lost"), "{key}: {filled}");
            assert_eq!(left, Reply::Int(-2), "{key}");
        }
    }

    operator.batch_execute("ALTER DATABASE app ALLOW_CONNECTIONS true").await?;
    wait_until("the feed to be back", PATIENCE, async || {
        stand.proxy.get("/readyz").await.is_ok_and(|(status, _)| status == 200)
    })
    .await?;
    // Ready is after all that was committed meanwhile: its keys are deleted, and those that were capped too.
    for (_, key, ..) in GUARDS {
        for id in [1, 2] {
            assert_eq!(wire.cmd(&format!("GET {key}:{id}")).await?, "$-1\r\n", "{key}:{id}");
        }
    }
    settled(&stand.postgres, &stand.proxy).await?;
    for (_, key, ..) in GUARDS {
        assert_eq!(wire.cmd(&format!("GET {key}:3")).await?, "$-1\r\n");
        assert_eq!(wire.cmd(&format!("SET {key}:3 new")).await?, "+OK\r\n", "{key}");
        assert_eq!(wire.cmd(&format!("GET {key}:3")).await?, "$3\r\nnew\r\n", "{key}");
        assert_eq!(direct.cmd(&["PTTL", &format!("{key}:3")]).await?, Reply::Int(-1), "{key}");
    }
    Ok(())
}

/// What one client does not read fills its own buffer, and nobody else's time.
#[tokio::test]
async fn a_client_that_does_not_read_stalls_nobody() -> Outcome {
    let one_thread = ("[postgres]\n", "[proxy]\nthreads = 1\n[postgres]\n");
    let stand = Stand::start(&[one_thread]).await?;
    let mut direct = stand.redis.client().await?;
    direct.cmd(&[b"SET".as_slice(), b"big", &megabytes(20)]).await?;
    let mut lazy = Wire::connect(stand.proxy.address()).await?;
    let get = encode(&["GET", "big"]);
    lazy.send(&get.repeat(10)).await?;
    let mut client = stand.proxy.client().await?;
    for n in 0..200 {
        assert_eq!(client.cmd(&["SET", "n", &n.to_string()]).await?, Reply::ok());
        assert_eq!(client.cmd(&["GET", "n"]).await?, Reply::bulk(n.to_string()));
    }
    // Nor the feed, with fills of its own behind what it does not read.
    lazy.send(&encode(&["SET", "user:1", "v"])).await?;
    stand.write("users", "user:1", 1).await?;
    // It gets all of it once it reads.
    for _ in 0..10 {
        assert_eq!(lazy.reply().await?.len(), b"$20971520\r\n".len() + (20 << 20) + 2);
    }
    lazy.reply().await?;
    assert_eq!(lazy.cmd("PING").await?, "+PONG\r\n");
    Ok(())
}

/// As many connections to Redis as before, once idle ones that are kept for the next client are discounted.
async fn settle_at(redis: &mut Client, most: usize, state: &str) -> Outcome {
    let mut last = 0;
    let what = format!("the connections of {state} to close");
    let waited = wait_until(&what, PATIENCE, async || {
        last = connections(redis).await;
        last <= most
    });
    if let Err(error) = waited.await {
        let list = redis.cmd(&["CLIENT", "LIST"]).await?.text().unwrap_or_default();
        return Err(format!("{error}: {last} instead of {most}\n{list}").into());
    }
    Ok(())
}

/// Whatever state a client is in when it goes, its connection to Redis goes too, or is clean for the next.
#[tokio::test]
async fn a_client_that_goes_leaves_nothing_behind() -> Outcome {
    for changes in [&[][..], &[("[redis]\n", "[redis]\nupstream = \"pinned\"\n")]] {
        let mut changes = changes.to_vec();
        changes.push(("[postgres]\n", "[proxy]\nthreads = 1\n[postgres]\n"));
        let stand = Stand::start(&changes).await?;
        let mut redis = stand.redis.client().await?;
        // The lane, and a clean pin that is kept.
        let mut first = stand.proxy.client().await?;
        first.pipeline(&[&["PING"][..], &["RPUSH", "q", "x"], &["BLPOP", "q", "0"], &["PING"]]).await?;
        drop(first);
        let kept = connections(&mut redis).await;
        let half = encode(&["SET", "user:1", "abc"]);
        let blocked = encode(&["BLPOP", "nothing", "0"]);
        let states: [(&str, Vec<u8>, usize); 12] = [
            ("nothing", Vec::new(), 0),
            ("half a command", half[..half.len() - 4].to_vec(), 0),
            ("BLPOP", blocked.clone(), 0),
            ("BLPOP and more", [blocked.clone(), encode(&["GET", "k"]).repeat(30_000)].concat(), 0),
            ("MULTI", encode(&["MULTI"]), 1),
            ("MULTI and a fill", [encode(&["MULTI"]), encode(&["SET", "user:1", "v"])].concat(), 2),
            ("WATCH", encode(&["WATCH", "w"]), 1),
            ("SUBSCRIBE", encode(&["SUBSCRIBE", "a"]), 1),
            ("MONITOR", encode(&["MONITOR"]), 1),
            ("SELECT", encode(&["SELECT", "1"]), 1),
            ("an unknown command", encode(&["NOSUCH"]), 1),
            ("a wrong login", encode(&["AUTH", "nobody", "pw"]), 1),
        ];
        for (state, bytes, replies) in states {
            for _ in 0..3 {
                let mut wire = Wire::connect(stand.proxy.address()).await?;
                wire.send(&bytes).await?;
                for _ in 0..replies {
                    wire.reply().await?;
                }
                if state.starts_with("BLPOP") {
                    wait_until("it to block", PATIENCE, async || {
                        let list = redis.cmd(&["CLIENT", "LIST"]).await.ok().and_then(|list| list.text());
                        list.unwrap_or_default().lines().any(|line| line.contains("cmd=blpop"))
                    })
                    .await?;
                }
                drop(wire);
            }
            // What these leave is clean, and kept for the next client for a while.
            if !["SELECT", "an unknown command", "a wrong login"].contains(&state) {
                settle_at(&mut redis, kept, state).await?;
            }
        }
        // Nor does a half-closed one stay.
        let mut wire = Wire::connect(stand.proxy.address()).await?;
        wire.send(&blocked).await?;
        wire.finish().await?;
        assert_eq!(wire.rest().await?, b"");
        settle_at(&mut redis, kept, "a half-closed client").await?;
        wait_until("all clients to be gone", PATIENCE, async || {
            stand.proxy.metric("cachefence_clients").await.is_ok_and(|clients| clients == 0.0)
        })
        .await?;
        // What is left is clean.
        let mut next = stand.proxy.client().await?;
        let replies =
            next.pipeline(&[&["RPUSH", "q", "x"][..], &["BLPOP", "q", "0"], &["GET", "none"]]).await?;
        assert_eq!(replies[2], Reply::Nil);
        assert_eq!(redis.cmd(&["EXISTS", "user:1"]).await?, Reply::Int(0));
    }
    Ok(())
}

/// A client that has said all it will say still gets its answers.
#[tokio::test]
async fn a_half_closed_client_gets_its_answers() -> Outcome {
    for changes in [&[][..], &[("[redis]\n", "[redis]\nupstream = \"pinned\"\n")]] {
        let stand = Stand::start(changes).await?;
        let mut wire = Wire::connect(stand.proxy.address()).await?;
        let commands = [
            encode(&["RPUSH", "q", "x"]),
            encode(&["BLPOP", "q", "0"]),
            encode(&["EVAL", "return string.rep('y', 3000000)", "0"]),
            encode(&["ECHO", "last"]),
            b"*2\r\n$4\r\nEC".to_vec(),
        ];
        wire.send(&commands.concat()).await?;
        wire.finish().await?;
        let answers = wire.rest().await?;
        assert_eq!(answers.len(), 4 + 18 + (3_000_000 + 12) + 10, "{}", answers.len());
        assert!(answers.ends_with(b"$4\r\nlast\r\n"));
        // A fill as well, which waits until Redis knows the connection that it goes over, be it the first of its thread.
        let mut filling = Vec::new();
        for _ in 0..8 {
            let mut wire = Wire::connect(stand.proxy.address()).await?;
            wire.send(&encode(&["SET", "user:1", "v"])).await?;
            wire.finish().await?;
            filling.push(wire);
        }
        for mut wire in filling {
            assert_eq!(wire.rest().await?, b"+OK\r\n");
        }
    }
    Ok(())
}

/// A refused part of a value takes the parts before it along, also if the client does not wait to see it.
#[tokio::test]
async fn a_torn_value_is_deleted_even_if_its_client_goes() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let mut redis = stand.redis.client().await?;
    for n in 0..20 {
        redis.cmd(&["HSET", "order:1", "a", "1"]).await?;
        let mut wire = Wire::connect(stand.proxy.address()).await?;
        // A pin that is closed and not kept, and that before the deletion has left.
        assert!(wire.cmd("NOSUCH").await?.starts_with("-ERR unknown command"));
        let commands = [encode(&["ASOF", "0/1", "HSET", "order:1", "b", "2"]), encode(&["QUIT"])];
        wire.send(&commands.concat()).await?;
        assert!(wire.rest().await?.ends_with(b"+OK\r\n"));
        wait_until(&format!("the torn value to go, round {n}"), PATIENCE, async || {
            redis.cmd(&["EXISTS", "order:1"]).await.is_ok_and(|n| n == Reply::Int(0))
        })
        .await?;
    }
    Ok(())
}

/// Commands of many clients are under way while Redis goes and comes: each is answered, by Redis or by an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_restarts_costs_errors_and_no_more() -> Outcome {
    let mut stand = Stand::start(&[]).await?;
    let address = stand.proxy.address().to_owned();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let (address, stop) = (address.clone(), stop.clone());
            tokio::spawn(async move { keep_asking(&address, n, &stop).await.map_err(|e| e.to_string()) })
        })
        .collect();
    for _ in 0..3 {
        stand.redis.kill().await?;
        stand.redis.relaunch().await?;
        let mut client = stand.proxy.client().await?;
        wait_until("an answer", PATIENCE, async || {
            client.cmd(&["PING"]).await.is_ok_and(|r| r == Reply::Simple("PONG".into()))
        })
        .await?;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        let (answered, failed) = client.await??;
        assert!(answered > 0 && failed > 0, "{answered} answered, {failed} failed");
    }
    // Deletions go on, with the fills of lost connections ended.
    stand.write("users", "user:3", 3).await?;
    Ok(())
}

async fn keep_asking(
    address: &str,
    n: usize,
    stop: &std::sync::atomic::AtomicBool,
) -> Result<(u64, u64), std::io::Error> {
    let (mut answered, mut failed) = (0, 0);
    let key = format!("user:{n}");
    let big = "x".repeat(70_000);
    let own = format!("k{n}");
    let commands: [&[&str]; 7] = [
        &["GET", &key],
        &["SET", &key, "v"],
        &["SET", &own, &big],
        &["STRLEN", &own],
        &["MULTI"],
        &["SET", &key, "w"],
        &["EXEC"],
    ];
    while !stop.load(std::sync::atomic::Ordering::Relaxed) || failed == 0 || answered == 0 {
        let mut client = Client::connect(address).await?;
        // A connection with state ends with Redis's; any other lives on, and gets as many replies as it sent commands.
        while let Ok(replies) = client.pipeline(&commands).await {
            if replies.iter().any(|r| matches!(r, Reply::Error(e) if e.contains("upstream"))) {
                failed += 1;
                break;
            }
            assert_eq!(replies[3], Reply::Int(70_000), "{replies:?}");
            answered += 1;
            if stop.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
        }
        if answered > 0 && stop.load(std::sync::atomic::Ordering::Relaxed) {
            // One that ended without a word was cut off in the middle of a transaction.
            failed += 1;
        }
    }
    Ok((answered, failed))
}

/// RESET ends every state, a subscription's too, and the connection goes on.
#[tokio::test]
async fn reset_ends_a_subscription_and_not_the_client() -> Outcome {
    let stand = Stand::start(&[]).await?;
    for state in ["SUBSCRIBE a", "MONITOR", "MULTI", "WATCH a", "SELECT 3", "CLIENT NO-EVICT on"] {
        let mut wire = Wire::connect(stand.proxy.address()).await?;
        wire.cmd(state).await?;
        assert_eq!(wire.cmd("RESET").await?, "+RESET\r\n", "{state}");
        assert_eq!(wire.cmd("SET a 1").await?, "+OK\r\n", "{state}");
        assert_eq!(wire.cmd("ASOF 0/1 SET order:1 old").await?.get(..7), Some("-STALE "), "{state}");
    }
    Ok(())
}

/// The proxy's own answers, too, are not piled up without end for a client whose turn does not come.
#[tokio::test]
async fn own_answers_do_not_pile_up() -> Outcome {
    let (postgres, mut redis) = (wire::postgres().await?, Redis::start(RedisOptions::default()).await?);
    let text = settings(&postgres, &redis, "wire", &[]);
    let proxy = Cachefence::start(BINARY, &text).await?;
    let mut wire = Wire::connect(proxy.address()).await?;
    assert_eq!(wire.cmd("PING").await?, "+PONG\r\n");
    redis.freeze()?;
    let before = proxy.metric("cachefence_commands_total").await?;
    wire.send(&encode(&["GET", "a"])).await?;
    let flood = encode(&["CLIENT", "GETNAME"]).repeat(10_000);
    let mut sent = 0;
    // It stops reading when it has taken enough, and then the sockets are full.
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), wire.send(&flood)).await {
        written?;
        sent += 10_000;
        assert!(sent < 2_000_000, "no end to it");
    }
    let taken = proxy.metric("cachefence_commands_total").await? - before;
    assert!((1.0..=20_000.0).contains(&taken), "{taken} commands taken");
    redis.thaw()?;
    assert_eq!(wire.reply().await?, b"$-1\r\n");
    for _ in 0..sent {
        assert_eq!(wire.reply().await?, b"$-1\r\n");
    }
    Ok(())
}

/// Replies of 100 MB, of a guarded key and of another, and a command of 100 MB in between.
#[tokio::test]
async fn large_values_pass_whole() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let value = megabytes(100);
    let mut wire = Wire::connect(stand.proxy.address()).await?;
    for key in ["large", "user:1"] {
        wire.send(&encode(&[b"SET".as_slice(), key.as_bytes(), &value])).await?;
        wire.send(&encode(&["GET", key])).await?;
        wire.send(&encode(&["PING"])).await?;
        assert_eq!(wire.reply().await?, b"+OK\r\n");
        let reply = large_reply(&mut wire, value.len()).await?;
        assert!(reply.starts_with(b"$104857600\r\nxxx") && reply.ends_with(b"xxx\r\n"));
        assert_eq!(wire.reply().await?, b"+PONG\r\n");
        stand.redis.client().await?.cmd(&["DEL", key]).await?;
    }
    Ok(())
}

async fn large_reply(wire: &mut Wire, length: usize) -> Fallible<Vec<u8>> {
    let reply = wire.reply().await?;
    assert_eq!(reply.len(), length + 14);
    Ok(reply)
}
