//! What happens to Redis.

use crate::dice::Dice;
use crate::fault::{BOTH, Fault};
use crate::load::Load;
use crate::stand::Stand;
use crate::support::Outcome;

pub const FAULTS: &[Fault] = &[Fault {
    name: "redis killed and restarted empty",
    contracts: BOTH,
    rounds: 10,
    quick: true,
    soak: true,
    options: |options| options,
    round: |stand, load, dice| Box::pin(restarted_empty(stand, load, dice)),
}];

/// It had nothing on disk.
async fn restarted_empty(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    stand.redis.kill().await?;
    stand.not_ready("Redis").await?;
    stand.lives().await?;
    Ok(stand.redis.relaunch().await?)
}
