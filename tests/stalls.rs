//! Somebody stands still in the middle of something: a client within a command, Redis with a fill in its buffer.
//! Neither holds up the feed for good, and neither gets an old value in.

mod support;

use cachefence::demo::client::{Reply, encode};
use support::{EXACT, Outcome, Setup, assert_passed, assert_refused};

/// A client has sent half of a large SET when the row changes, and the rest when that has been applied. The feed does
/// not wait for it, and the fill is judged by what is known when it is whole.
#[tokio::test]
async fn a_client_that_stalls_within_a_large_set_holds_up_nobody() -> Outcome {
    let world = Setup::new(EXACT).start().await?;
    let mut slow = world.client().await?;
    assert_eq!(slow.cmd(&["GET", "user:1"]).await?, Reply::Nil);
    let bytes = encode(&["SET", "user:1", &"old".repeat(500_000)]);
    let (begun, rest) = bytes.split_at(bytes.len() / 2);
    slow.send_raw(begun).await?;

    world.warm(1).await?;
    world.rename(1, "v2").await?;
    world.level().await?;
    let evidence = world.snapshot().await?;
    let mut other = world.client().await?;
    assert_passed(&other.cmd(&["ASOF", &evidence, "SET", "user:1", "v2"]).await?);
    slow.send_raw(rest).await?;
    assert_refused(&slow.receive().await?, "STALE");
    assert_eq!(world.held("user:1").await?, Some("v2".into()));

    // Nothing wrong with large values as such.
    let large = "new".repeat(500_000);
    assert_eq!(slow.cmd(&["GET", "user:2"]).await?, Reply::Nil);
    assert_passed(&slow.cmd(&["SET", "user:2", &large]).await?);
    assert_eq!(world.held("user:2").await?, Some(large));
    Ok(())
}

/// Redis stands still with a fill in its buffer, and the row changes. The fill's connection is ended after
/// `drain_timeout`, in Redis too, and the key is deleted after that: whenever Redis comes round to the fill, its value
/// does not stay.
#[tokio::test]
async fn a_fill_that_redis_does_not_answer_does_not_stay() -> Outcome {
    let settings = format!("{EXACT}\n[fence]\ndrain_timeout = \"100ms\"\n");
    let mut world = Setup::new(&settings).start().await?;
    let mut client = world.client().await?;
    assert_eq!(client.cmd(&["GET", "user:1"]).await?, Reply::Nil);
    world.redis.freeze()?;
    client.send(&["SET", "user:1", "v1"]).await?;
    world.rename(1, "v2").await?;
    cachefence::demo::servers::wait_until("the fill to be given up", support::PATIENCE, async || {
        world.proxy.log().contains("drain_timeout")
    })
    .await?;
    let status = world.status().await?;
    assert!(
        support::lsn(&status, "/feed/applied_lsn") < Some(world.flushed().await?),
        "nothing is deleted yet"
    );
    world.redis.thaw()?;
    world.level().await?;
    assert_eq!(world.held("user:1").await?, None);
    world.warm(1).await
}
