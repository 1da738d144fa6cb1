//! Redis refuses.

use std::time::Duration;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::wait_until;
use tokio::time::sleep;

use super::{ATTEMPTS, Filler, ask};
use crate::dice::Dice;
use crate::load::Load;
use crate::stand::Stand;
use crate::support::{Fallible, Outcome, PATIENCE};

/// Longer than `drain_timeout`.
const STALL: Duration = Duration::from_millis(1500);

/// It has no memory for what clients put in: they are told so, and deletions go on.
pub async fn full(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    ask(&mut redis, &["SET", "user:0", "planted"]).await?;
    ask(&mut redis, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await?;
    ask(&mut redis, &["CONFIG", "SET", "maxmemory", "1"]).await?;
    let mut client = stand.proxy.client().await?;
    client.cmd(&["GET", "user:-1"]).await?;
    let refused = client.cmd(&["SET", "plain", "x"]).await?;
    assert!(matches!(&refused, Reply::Error(error) if error.starts_with("OOM ")), "{refused:?}");
    // In strict they wait for the proxy.
    load.written(20).await?;
    stand.sql().await?.batch_execute("UPDATE users SET version = version + 1 WHERE id = 0").await?;
    gone(&mut redis).await?;
    stand.level().await?;
    let (status, body) = stand.proxy.get("/readyz").await?;
    assert!(status == 200 && body.contains("the marker is behind"), "{status} {body}");
    ask(&mut redis, &["CONFIG", "SET", "maxmemory", "0"]).await?;
    let says = async || matches!(stand.proxy.get("/readyz").await, Ok((200, body)) if !body.contains("the marker is behind"));
    Ok(wait_until("the marker to be written again", PATIENCE, says).await?)
}

/// One right after the other, from connections that there are and from new ones.
pub async fn without_rights(stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    ask(&mut redis, &["ACL", "SETUSER", "tests", "on", ">tests", "~*", "&*", "+@all"]).await?;
    ask(&mut redis, &["AUTH", "tests", "tests"]).await?;
    for (right, at_once) in [
        ("unlink", true),
        ("set", true),
        ("client|setname", false),
        ("info", false),
        ("command", false),
        ("get", false),
    ] {
        ask(&mut redis, &["ACL", "SETUSER", "default", &format!("-{right}")]).await?;
        if !at_once || dice.one_in(2) {
            ask(&mut redis, &["CLIENT", "KILL", "USER", "default"]).await?;
        }
        stand.not_ready(&format!("'{right}'")).await?;
        stand.lives().await?;
        ask(&mut redis, &["ACL", "SETUSER", "default", &format!("+{right}")]).await?;
        let ready = async || matches!(stand.proxy.get("/readyz").await, Ok((200, _)));
        wait_until(&format!("it to be ready with {right}"), PATIENCE, ready).await?;
    }
    unable_to_kill(stand, load, &mut redis).await
}

/// A fill that must be ended cannot be: deletions wait, and /readyz says why.
async fn unable_to_kill(stand: &mut Stand, load: &Load, redis: &mut Client) -> Outcome {
    for _ in 0..ATTEMPTS {
        let mut filler = Filler::miss(stand).await?;
        ask(redis, &["ACL", "SETUSER", "default", "-client|list"]).await?;
        let given_up = filler.stall(stand, load, STALL).await?;
        if given_up {
            stand.not_ready("fills of lost connections cannot be ended").await?;
            stand.not_ready("'client|list'").await?;
        }
        ask(redis, &["ACL", "SETUSER", "default", "+client|list"]).await?;
        gone(redis).await?;
        if given_up {
            return Ok(());
        }
    }
    Err("no fill was given up".into())
}

/// Writes are refused after a snapshot that could not be written.
pub async fn cannot_save(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    let Reply::Array(dir) = redis.cmd(&["CONFIG", "GET", "dir"]).await? else { return Err("no dir".into()) };
    let dir = dir.get(1).and_then(Reply::text).ok_or("no dir")?;
    ask(&mut redis, &["CONFIG", "SET", "save", "3600 1000000"]).await?;
    // Nobody can make a file there.
    ask(&mut redis, &["CONFIG", "SET", "dir", "/proc"]).await?;
    assert!(matches!(redis.cmd(&["SAVE"]).await?, Reply::Error(_)), "it has saved into /proc");
    ask(&mut redis, &["BGSAVE"]).await?;
    stand.not_ready("MISCONF").await?;
    stand.lives().await?;
    ask(&mut redis, &["CONFIG", "SET", "dir", &dir]).await?;
    ask(&mut redis, &["SAVE"]).await?;
    ask(&mut redis, &["CONFIG", "SET", "save", ""]).await
}

/// It takes no more connections: those that the proxy needs are there.
pub async fn crowded(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    for _ in 0..ATTEMPTS {
        let mut filler = Filler::miss(stand).await?;
        own_are_there(&mut redis).await?;
        ask(&mut redis, &["CONFIG", "SET", "maxclients", "1"]).await?;
        let given_up = filler.stall(stand, load, STALL).await?;
        stand.level().await?;
        gone(&mut redis).await?;
        let refused = stand.redis.client().await?.cmd(&["PING"]).await;
        assert!(matches!(&refused, Err(_) | Ok(Reply::Error(_))), "{refused:?}");
        ask(&mut redis, &["CONFIG", "SET", "maxclients", "10000"]).await?;
        if given_up {
            return Ok(());
        }
    }
    Err("no fill was given up".into())
}

/// The worker, the reaper and the witness have a connection each.
async fn own_are_there(redis: &mut Client) -> Fallible<()> {
    let there = async || {
        let list = redis.cmd(&["CLIENT", "LIST"]).await.ok().and_then(|list| list.text()).unwrap_or_default();
        let own = |name: &str| name.starts_with("cachefence:cachefence:") && name.matches(':').count() == 2;
        let names = list.split([' ', '\n']).filter_map(|word| word.strip_prefix("name="));
        names.filter(|name| own(name)).count() == 3
    };
    Ok(wait_until("the proxy's own connections", PATIENCE, there).await?)
}

/// Lanes and the proxy's own connections end, again and again.
pub async fn kills(stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    for _ in 0..10 {
        ask(&mut redis, &["CLIENT", "KILL", "TYPE", "normal"]).await?;
        sleep(dice.millis(100)).await;
    }
    stand.lives().await?;
    load.warm().await
}

/// A proxy that nobody uses loses its connections every second.
pub async fn idle(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    ask(&mut redis, &["CONFIG", "SET", "timeout", "1"]).await?;
    let mut client = stand.proxy.client().await?;
    load.stop_writing();
    for _ in 0..2 {
        assert_eq!(client.cmd(&["GET", "plain"]).await?, Reply::Nil);
        sleep(Duration::from_millis(2500)).await;
    }
    load.resume_writing();
    assert_eq!(client.cmd(&["GET", "plain"]).await?, Reply::Nil);
    // It may have been closed, too.
    ask(&mut stand.redis.client().await?, &["CONFIG", "SET", "timeout", "0"]).await
}

async fn gone(redis: &mut Client) -> Outcome {
    let gone = async || redis.cmd(&["EXISTS", "user:0"]).await.is_ok_and(|found| found == Reply::Int(0));
    Ok(wait_until("user:0 to be deleted", PATIENCE, gone).await?)
}
