//! The proxy is told to end, in the middle of the load.

use rustix::process::Signal;

use crate::dice::Dice;
use crate::fault::{BOTH, Fault};
use crate::load::Load;
use crate::stand::Stand;
use crate::support::Outcome;

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "proxy told to stop, and started again",
        contracts: BOTH,
        rounds: 10,
        quick: false,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(stopped(stand, load, dice)),
    },
    Fault {
        name: "proxy ended by a second signal",
        contracts: BOTH,
        rounds: 10,
        quick: false,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(stopped_at_once(stand, load, dice)),
    },
];

/// In order: clients finish, the slot is let go, and nothing is left over.
async fn stopped(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    let before = stand.proxy.log().len();
    stand.proxy.signal(Signal::TERM)?;
    assert_eq!(stand.proxy.ended().await?, Some(0));
    let log = stand.proxy.log().split_off(before);
    assert!(log.contains("the feed has stopped") && log.contains("left=true"), "{log}");
    assert!(
        !log.contains("not finished within"),
        "clients of the load have something under way for no time: {log}"
    );
    Ok(stand.proxy.relaunch().await?)
}

/// As a crash.
async fn stopped_at_once(stand: &mut Stand, _: &Load, dice: &mut Dice) -> Outcome {
    stand.proxy.signal(Signal::TERM)?;
    tokio::time::sleep(dice.millis(20)).await;
    stand.proxy.signal(Signal::INT)?;
    // It may have been done already; and of two that come at one moment, either can be taken for the second.
    let status = stand.proxy.ended().await?;
    assert!(matches!(status, Some(0 | 130 | 143)), "{status:?}");
    Ok(stand.proxy.relaunch().await?)
}
