//! The multiplexed connection of tokio: one socket for all tasks.

use std::error::Error;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use redis::aio::MultiplexedConnection;
use redis::caching::CacheConfig;
use redis::{AsyncConnectionConfig, AsyncTypedCommands, PushKind, RedisResult};

use super::{Outcome, PATIENCE, Place, big, binary, report, same};

pub fn run(place: &Place, failed: &mut bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else {
        return report(failed, place.protocol, "tokio", Err("no runtime".into()));
    };
    macro_rules! cases {
        ($($name:ident),*) => {
            $(
                let name = concat!("multiplexed_", stringify!($name));
                let outcome = runtime.block_on(async {
                    let key = format!("redis-rs:{}:{name}:", place.protocol);
                    let r = place.client("", 0)?.get_multiplexed_async_connection().await?;
                    tokio::time::timeout(PATIENCE * 2, $name(place, r, &key)).await?
                });
                report(failed, place.protocol, name, outcome);
            )*
        };
    }
    cases!(values, tasks, pipeline, transaction, blocking, pubsub, sharded, manager, acl, tracking, stale);
}

async fn until(
    what: &str,
    mut condition: impl AsyncFnMut() -> RedisResult<bool>,
) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    while !condition().await? {
        if began.elapsed() > PATIENCE {
            return Err(format!("waited in vain for {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn values(_: &Place, mut r: MultiplexedConnection, key: &str) -> Outcome {
    r.set(key, big()).await?;
    let got: Vec<u8> = redis::cmd("GET").arg(key).query_async(&mut r).await?;
    same!(got == big(), true);
    r.hset(format!("{key}h"), binary(), binary()).await?;
    let got: Vec<(Vec<u8>, Vec<u8>)> =
        redis::cmd("HGETALL").arg(format!("{key}h")).query_async(&mut r).await?;
    same!(got, [(binary(), binary())]);
    same!(r.get(format!("{key}none")).await?, None);
    Ok(None)
}

async fn tasks(_: &Place, r: MultiplexedConnection, key: &str) -> Outcome {
    let tasks: Vec<_> = (0..100)
        .map(|n: u32| {
            let (mut r, key) = (r.clone(), format!("{key}{n}"));
            tokio::spawn(async move {
                let mut right = true;
                for round in 0..20 {
                    r.set(&key, n + round).await?;
                    right &= r.get(&key).await?.as_deref() == Some(&(n + round).to_string());
                }
                RedisResult::Ok(right)
            })
        })
        .collect();
    for task in tasks {
        same!(task.await??, true);
    }
    Ok(None)
}

async fn pipeline(_: &Place, mut r: MultiplexedConnection, key: &str) -> Outcome {
    let mut pipe = redis::pipe();
    for n in 0..2000 {
        pipe.set(format!("{key}{n}"), n).ignore().get(format!("{key}{n}"));
    }
    let got: Vec<u32> = pipe.query_async(&mut r).await?;
    same!(got, (0..2000).collect::<Vec<_>>());
    Ok(None)
}

async fn transaction(_: &Place, r: MultiplexedConnection, key: &str) -> Outcome {
    // Many at a time on one socket.
    let tasks: Vec<_> = (0..20)
        .map(|n: u32| {
            let (mut r, key) = (r.clone(), format!("{key}{n}"));
            tokio::spawn(async move {
                let mut pipe = redis::pipe();
                let pipe = pipe.atomic().set(&key, n).ignore().incr(&key, 1).get(&key);
                pipe.query_async::<(u32, u32)>(&mut r).await
            })
        })
        .collect();
    for (n, task) in (0..).zip(tasks) {
        same!(task.await??, (n + 1, n + 1));
    }
    Ok(None)
}

async fn blocking(place: &Place, mut r: MultiplexedConnection, key: &str) -> Outcome {
    let mut one = place
        .client("", 0)?
        .get_multiplexed_async_connection_with_config(
            &AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE)),
        )
        .await?;
    let name = key.to_owned();
    let waiting = tokio::spawn(async move { one.blpop(name, PATIENCE.as_secs_f64()).await });
    until("the client to block", async || {
        let info: String = redis::cmd("INFO").arg("clients").query_async(&mut r.clone()).await?;
        Ok(!info.contains("blocked_clients:0"))
    })
    .await?;
    r.rpush(key, "a").await?;
    same!(waiting.await??, Some([key.to_owned(), "a".to_owned()]));
    Ok(None)
}

async fn pubsub(place: &Place, mut r: MultiplexedConnection, key: &str) -> Outcome {
    let client = place.client("", 0)?;
    let mut sub = client.get_async_pubsub().await?;
    sub.subscribe(key).await?;
    sub.psubscribe(format!("{key}:*")).await?;
    same!(r.publish(key, binary()).await?, 1);
    same!(r.publish(format!("{key}:1"), "x").await?, 1);
    let mut messages = sub.on_message();
    let (first, second) =
        (messages.next().await.ok_or("no message")?, messages.next().await.ok_or("no message")?);
    same!(first.get_payload::<Vec<u8>>()?, binary());
    same!(second.get_pattern::<String>()?, format!("{key}:*"));
    if place.protocol == 2 {
        return Ok(None);
    }
    // In RESP3 the messages come between the answers of an ordinary connection.
    let (sender, mut pushes) = tokio::sync::mpsc::unbounded_channel();
    let config = AsyncConnectionConfig::new().set_push_sender(sender);
    let mut one = client.get_multiplexed_async_connection_with_config(&config).await?;
    one.subscribe(format!("{key}push")).await?;
    for n in 0..100 {
        r.publish(format!("{key}push"), n).await?;
        one.set(format!("{key}value"), n).await?;
        same!(one.get(format!("{key}value")).await?, Some(n.to_string()));
    }
    let mut messages = 0;
    while messages < 100 {
        let push = pushes.recv().await.ok_or("the connection ended")?;
        messages += u32::from(push.kind == PushKind::Message);
    }
    one.unsubscribe(format!("{key}push")).await?;
    Ok(None)
}

async fn sharded(place: &Place, mut r: MultiplexedConnection, key: &str) -> Outcome {
    if place.protocol == 2 {
        return Ok(Some("the client has it with RESP3 only"));
    }
    let (sender, mut pushes) = tokio::sync::mpsc::unbounded_channel();
    let config = AsyncConnectionConfig::new().set_push_sender(sender);
    let mut one = place.client("", 0)?.get_multiplexed_async_connection_with_config(&config).await?;
    redis::cmd("SSUBSCRIBE").arg(key).exec_async(&mut one).await?;
    let heard: u32 = redis::cmd("SPUBLISH").arg(key).arg("x").query_async(&mut r).await?;
    same!(heard, 1);
    while pushes.recv().await.ok_or("the connection ended")?.kind != PushKind::SMessage {}
    Ok(None)
}

async fn manager(place: &Place, _: MultiplexedConnection, key: &str) -> Outcome {
    let mut managed = place.client("", 3)?.get_connection_manager().await?;
    managed.set(key, "v").await?;
    same!(managed.get(key).await?.as_deref(), Some("v"));
    let script = redis::Script::new("return ARGV[1]");
    same!(script.arg(7).invoke_async::<u8>(&mut managed).await?, 7);
    Ok(None)
}

async fn acl(place: &Place, _: MultiplexedConnection, key: &str) -> Outcome {
    let mut app = place.client("app:secret@", 0)?.get_multiplexed_async_connection().await?;
    app.set(key, "v").await?;
    let mut reader = place.client("reader:secret@", 0)?.get_multiplexed_async_connection().await?;
    same!(reader.get(key).await?.as_deref(), Some("v"));
    same!(reader.set(key, "x").await.is_err(), true);
    same!(place.client("app:wrong@", 0)?.get_multiplexed_async_connection().await.is_err(), true);
    Ok(None)
}

async fn tracking(place: &Place, mut r: MultiplexedConnection, key: &str) -> Outcome {
    if place.protocol == 2 {
        return Ok(Some("the client caches with RESP3 only"));
    }
    let config = AsyncConnectionConfig::new().set_cache_config(CacheConfig::new());
    let mut near = place.client("", 0)?.get_multiplexed_async_connection_with_config(&config).await?;
    r.set(key, "1").await?;
    same!(near.get(key).await?.as_deref(), Some("1"));
    same!(near.get(key).await?.as_deref(), Some("1"));
    same!(near.get_cache_statistics().map(|seen| seen.hit), Some(1));
    r.set(key, "2").await?;
    until("the invalidation", async || Ok(near.clone().get(key).await?.as_deref() == Some("2"))).await?;
    Ok(None)
}

async fn stale(place: &Place, r: MultiplexedConnection, _: &str) -> Outcome {
    let Some(user) = place.user.map(|user| user + 2) else { return Ok(Some("nothing is guarded here")) };
    let (name, profile) = (format!("user:{user}"), format!("user:{user}:profile"));
    let fill = async |key: &str, value: &str| {
        let mut r = r.clone();
        let found = r.get(key).await?;
        if found.is_none() {
            r.set(key, value).await?;
        }
        RedisResult::Ok(found.is_some())
    };
    let get = async |key: &str| r.clone().get(key).await;
    until("a fill to be let in", async || fill(&profile, "old").await).await?;
    same!(get(&name).await?, None);
    r.clone().publish("commit", user).await?;
    until("the deletion", async || Ok(get(&profile).await?.is_none())).await?;
    r.clone().set(&name, "old").await?;
    same!(get(&name).await?, None);
    until("a new fill to be let in", async || fill(&name, "new").await).await?;
    same!(get(&name).await?.as_deref(), Some("new"));
    Ok(None)
}
