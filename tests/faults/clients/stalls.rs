//! Clients that stop in the middle.

use cachefence::demo::client::encode;

use super::{A_WHILE, Before, ROW, connect, deleted, holds, logged, proven_fill, put, write};
use crate::dice::Dice;
use crate::load::Load;
use crate::stand::Stand;
use crate::support::Outcome;

const LARGE: &str = "large";
const LARGE_BYTES: usize = 1 << 20;

/// Half a fill, and one whose reply waits behind others that nobody reads. Neither holds up the commit, and nothing of them
/// stays.
pub async fn fills(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let before = Before::of(stand).await?;
    let mut half = connect(stand).await?;
    half.cmd(&format!("GET {ROW}")).await?;
    let fill = encode(&["SET", ROW, &"9".repeat(LARGE_BYTES)]);
    let (said, unsaid) = fill.split_at(fill.len() / 2);
    half.send(said).await?;

    put(stand, LARGE, LARGE_BYTES).await?;
    let mut deaf = connect(stand).await?;
    // After a large reply its commands go on a pin, which is read as slowly as it reads.
    deaf.send(&encode(&["GET", LARGE])).await?;
    deaf.skip_reply().await?;
    let (fill, version) = proven_fill(stand).await?;
    deaf.send(&[encode(&["GET", LARGE]).repeat(40), fill].concat()).await?;
    holds(stand, version).await?;

    let log = stand.proxy.log().len();
    write(stand).await?;
    logged(stand, log, "abandoned fills ended, keys deleted").await?;
    stand.level().await?;
    load.warm().await?;
    // The rest of the first comes too late.
    half.send(unsaid).await?;
    half.reply().await?;
    deleted(stand).await?;
    before.grew_at_most(stand, 64)?;
    drop((half, deaf));
    before.returns(stand).await
}

/// Some 300 MB of replies that nobody reads: from pins, from a lane, of a subscription and of MONITOR.
pub async fn readers(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let before = Before::of(stand).await?;
    put(stand, LARGE, LARGE_BYTES).await?;
    let all = encode(&["MGET", LARGE, LARGE, LARGE, LARGE, LARGE, LARGE, LARGE, LARGE, LARGE, LARGE]);
    let (mut first, mut second) = (connect(stand).await?, connect(stand).await?);
    for wire in [&mut first, &mut second] {
        // After a large reply its commands go on a pin, which is read as slowly as it reads.
        wire.send(&encode(&["GET", LARGE])).await?;
        wire.skip_reply().await?;
        wire.send(&all.repeat(10)).await?;
    }
    // On a lane, which is read for the others' sake: what one does not read is kept for him.
    // In another db than the load, whose fills would be late behind so much, and their connection be ended.
    let mut shared = connect(stand).await?;
    shared.cmd("SELECT 1").await?;
    shared.cmd(&format!("SET medium {}", "x".repeat(30_000))).await?;
    shared.send(&encode(&["GET", "medium"]).repeat(1000)).await?;
    let (mut monitor, mut subscriber) = (connect(stand).await?, connect(stand).await?);
    monitor.cmd("MONITOR").await?;
    subscriber.cmd("SUBSCRIBE news").await?;
    let mut redis = stand.redis.client().await?;
    let news = "x".repeat(LARGE_BYTES);
    for _ in 0..50 {
        redis.cmd(&["PUBLISH", "news", &news]).await?;
    }
    load.warm().await?;
    write(stand).await?;
    before.grew_at_most(stand, 160)?;
    // Redis gives up those that do not read its messages, and so they are.
    tokio::time::timeout(A_WHILE * 200, subscriber.rest()).await.map_err(|_| "still subscribed")??;
    // Whoever reads after all has lost nothing.
    for _ in 0..10 {
        let length = first.skip_reply().await?;
        assert_eq!(length, 5 + 10 * (10 + LARGE_BYTES + 2), "a reply of MGET");
    }
    for _ in 0..1000 {
        assert_eq!(shared.skip_reply().await?, 8 + 30_000 + 2, "a reply of GET");
    }
    drop((first, second, shared, monitor, subscriber));
    before.returns(stand).await
}
