//! Two processes and one slot, and a source out of sight.

mod support;

use std::path::Path;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{Cachefence, StopMode, wait_until};
use support::{BINARY, DEFAULT, Outcome, PATIENCE, Setup};

/// A second process with the slot of a running one gets nowhere, says why, and leaves the first one and its
/// connections to Redis alone. When the first is gone, it takes over.
#[tokio::test]
async fn a_second_process_waits_for_the_slot() -> Outcome {
    let mut world = Setup::new(DEFAULT).start().await?;
    let mut client = world.client().await?;
    assert_eq!(client.cmd(&["SET", "plain", "1"]).await?, Reply::ok());
    let second = Cachefence::launch(Path::new(BINARY), &(world.servers.clone() + &world.guards))?;
    wait_until("the second says that the slot is in use, more than once", PATIENCE, async || {
        let in_use =
            second.get("/readyz").await.is_ok_and(|(status, why)| status == 503 && why.contains("is in use"));
        let reconnects = second.log().matches("the feed is interrupted").count();
        in_use && reconnects >= 1
    })
    .await?;
    assert_eq!(client.cmd(&["GET", "plain"]).await?, Reply::bulk("1"), "on the connection that was there");
    assert_eq!(world.proxy.metric("cachefence_upstream_reconnects_total").await?, 0.0);
    world.rename(1, "v2").await?;
    world.level().await?;

    world.proxy.kill().await?;
    wait_until("the second is ready", PATIENCE, async || {
        second.get("/readyz").await.is_ok_and(|(status, _)| status == 200)
    })
    .await?;
    Ok(())
}

/// A replica that stops does not make the proxy unready, but readiness names it.
#[tokio::test]
async fn readiness_names_a_source_out_of_sight() -> Outcome {
    let mut world = Setup::new(DEFAULT).replica().start().await?;
    world.replica.as_mut().ok_or("no replica")?.stop(StopMode::Immediate).await?;
    wait_until("readiness names the replica", PATIENCE, async || {
        world.proxy.get("/readyz").await.is_ok_and(|(status, text)| status == 200 && text.contains("source "))
    })
    .await?;
    Ok(())
}
