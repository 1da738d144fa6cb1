//! Redis does not answer.

use std::time::Duration;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::wait_until;
use tokio::time::sleep;

use super::{ATTEMPTS, Filler, ask, logged};
use crate::dice::Dice;
use crate::load::Load;
use crate::stand::Stand;
use crate::support::{Outcome, PATIENCE};

const SILENT: &str = "Redis answers us and not a connection of clients: closing that";
/// What /readyz says when an answer has not come within `redis.reply_timeout`.
const NO_ANSWER: &str = "has not answered";

pub async fn stopped_briefly(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    stopped_for(stand, load, Duration::from_secs(2)).await
}

pub async fn stopped(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    stopped_for(stand, load, Duration::from_secs(10)).await
}

/// The fill's connection is given up meanwhile, and its bytes are in Redis's socket when it goes on.
async fn stopped_for(stand: &mut Stand, load: &Load, time: Duration) -> Outcome {
    for _ in 0..ATTEMPTS {
        if Filler::miss(stand).await?.stall(stand, load, time).await? {
            return logged(stand, "abandoned fills ended, keys deleted", 0).await;
        }
    }
    Err("no fill was given up".into())
}

/// Nothing comes and nothing goes, and no socket hears of it. What was on its way arrives in the end.
pub async fn unreachable(stand: &mut Stand, _: &Load, dice: &mut Dice) -> Outcome {
    let mut filler = Filler::miss(stand).await?;
    stand.lines()?.redis.black_hole();
    filler.fill_and_write(stand).await?;
    stand.not_ready(NO_ANSWER).await?;
    stand.lives().await?;
    sleep(dice.millis(3000)).await;
    stand.lines()?.redis.heal();
    Ok(())
}

/// A router has lost its state: what there was leads nowhere, without a word, and new connections work. A lane on which
/// nobody fills is ended too.
pub async fn lost(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    // Only reads of a key that nobody writes: no deletion waits for them.
    let mut client = stand.proxy.client().await?;
    let before = stand.proxy.log().matches(SILENT).count();
    client.cmd(&["GET", "plain"]).await?;
    client.send(&["GET", "plain"]).await?;
    client.receive().await?;
    stand.lines()?.redis.strand();
    client.send(&["GET", "plain"]).await?;
    if stand.proxy.log().matches(SILENT).count() == before {
        let answer = async || {
            let mut other = stand.proxy.client().await.ok()?;
            other.send(&["GET", "plain"]).await.ok()?;
            other.receive_within(Duration::from_secs(1)).await.ok()?
        };
        wait_until("an answer on a new connection of a client", PATIENCE, async || {
            matches!(answer().await, Some(Reply::Nil))
        })
        .await?;
    }
    Ok(())
}

/// All clients wait while it does one thing.
pub async fn slow(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    ask(&mut redis, &["DEBUG", "SLEEP", "3"]).await?;
    stand.lives().await
}

/// It answers everybody with BUSY.
pub async fn busy(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    ask(&mut redis, &["CONFIG", "SET", "busy-reply-threshold", "300"]).await?;
    redis.send(&["EVAL", "while true do end", "0"]).await?;
    stand.not_ready("BUSY").await?;
    stand.lives().await?;
    let mut other = stand.redis.client().await?;
    ask(&mut other, &["SCRIPT", "KILL"]).await?;
    assert!(matches!(redis.receive().await?, Reply::Error(_)), "the script was killed");
    Ok(())
}

/// It answers everybody with LOADING.
pub async fn loading(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let mut redis = stand.redis.client().await?;
    ask(&mut redis, &["CONFIG", "SET", "key-load-delay", "0"]).await?;
    ask(&mut redis, &["DEBUG", "POPULATE", "300", "key", "200"]).await?;
    ask(&mut redis, &["SAVE"]).await?;
    stand.redis.kill().await?;
    let (relaunched, said) = {
        let proxy = &stand.proxy;
        let says = async || matches!(proxy.get("/readyz").await, Ok((503, body)) if body.contains("LOADING"));
        tokio::join!(stand.redis.relaunch(), wait_until("/readyz to say LOADING", PATIENCE, says))
    };
    relaunched?;
    Ok(said?)
}
