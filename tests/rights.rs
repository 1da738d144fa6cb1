//! A client's user may lack rights that the proxy's own commands on its connection need.

mod wire;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::wait_until;
use wire::{Outcome, PATIENCE, Stand};

/// A fill without evidence is capped by a command after it. Where the client's user may not run that, the key is deleted:
/// a fill that ought to be capped does not stay without a cap.
#[tokio::test]
async fn a_fill_that_cannot_be_capped_does_not_stay() -> Outcome {
    let stand = Stand::start(&[]).await?;
    let mut redis = stand.redis.client().await?;
    redis.cmd(&["ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "-pexpire"]).await?;
    let mut client = stand.proxy.client().await?;
    client.cmd(&["AUTH", "weak", "pw"]).await?;
    assert_eq!(client.cmd(&["HSET", "user:7", "name", "Ada"]).await?, Reply::Int(1));
    wait_until("the key is deleted", PATIENCE, async || {
        redis.cmd(&["EXISTS", "user:7"]).await.is_ok_and(|reply| reply == Reply::Int(0))
    })
    .await?;
    Ok(())
}
