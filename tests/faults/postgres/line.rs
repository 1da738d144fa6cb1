//! What happens to the line between the proxy and the primary.

use std::time::Duration;

use cachefence::demo::servers::wait_until;
use tokio::time::sleep;

use super::{PLAIN, replaced};
use crate::dice::Dice;
use crate::fault::Fault;
use crate::load::Load;
use crate::stand::{Options, Stand};
use crate::support::{Outcome, PATIENCE};

/// A silent stream is given up after four times this.
const LOST_AFTER: &str = "[postgres]\nfeed_lost_after = \"1s\"\n";

pub const STRANDED: Fault = Fault {
    name: "line to the primary forgotten by a router, no FIN; the old walsender holds the slot",
    soak: false,
    rounds: 3,
    options: |options| Options { lines: true, ..replaced(options, LOST_AFTER) },
    round: |stand, load, dice| Box::pin(stranded(stand, load, dice)),
    ..PLAIN
};

pub const SWALLOWED: Fault = Fault {
    name: "line to the primary swallows everything for 8 s",
    soak: false,
    rounds: 3,
    options: |options| Options { lines: true, ..replaced(options, LOST_AFTER) },
    round: |stand, load, dice| Box::pin(swallowed(stand, load, dice)),
    ..PLAIN
};

pub const CUT: Fault = Fault {
    name: "connections to the primary reset",
    soak: false,
    options: |options| Options { lines: true, ..options },
    round: |stand, load, dice| Box::pin(cut(stand, load, dice)),
    ..PLAIN
};

/// Postgres takes the old connection for alive for another 20 s, and does not learn that the proxy has closed it.
async fn stranded(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let freed = |stand: &Stand| stand.proxy.log().matches("which Postgres took for alive").count();
    let before = freed(stand);
    stand.lines()?.primary.strand();
    stand.not_ready("the feed is lost").await?;
    stand.lives().await?;
    let what = "the old walsender to be ended";
    Ok(wait_until(what, PATIENCE, async || freed(stand) == before + 1).await?)
}

async fn swallowed(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    stand.lines()?.primary.black_hole();
    stand.not_ready("the feed is lost").await?;
    sleep(Duration::from_secs(7)).await;
    stand.lives().await?;
    stand.lines()?.primary.heal();
    Ok(())
}

async fn cut(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let before = stand.proxy.metric("cachefence_feed_reconnects_total").await?;
    stand.lines()?.primary.cut();
    stand.counted("cachefence_feed_reconnects_total", before + 1.0).await
}
