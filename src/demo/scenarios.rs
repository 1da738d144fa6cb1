//! The four scripts. The order of the steps forces the interleaving that in life is a matter of luck.

use super::DemoError;
use super::play::{Play, Source, Tone};

/// One of the ways in which cache and database come to disagree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) story: &'static str,
}

/// Which script.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    ReplicaLag,
    LostInvalidation,
    WriteRace,
    ManualChange,
}

/// All four, in the order played.
pub(super) fn all() -> [Scenario; 4] {
    [
        Scenario {
            kind: Kind::ReplicaLag,
            name: "replica lag",
            story: "a commit and a DEL; the next miss reads a lagging replica and fills the old value",
        },
        Scenario {
            kind: Kind::LostInvalidation,
            name: "failed invalidation",
            story: "the commit succeeds; the application crashes before its DEL",
        },
        Scenario {
            kind: Kind::WriteRace,
            name: "write-write race",
            story: "A and B both update and DEL; a reader that read between the commits fills last",
        },
        Scenario {
            kind: Kind::ManualChange,
            name: "manual change",
            story: "someone runs UPDATE in psql; nobody deletes anything",
        },
    ]
}

/// Plays one script.
pub(super) async fn script(kind: Kind, play: &mut Play<'_>) -> Result<(), DemoError> {
    match kind {
        Kind::ReplicaLag => replica_lag(play).await,
        Kind::LostInvalidation => lost_invalidation(play).await,
        Kind::WriteRace => write_race(play).await,
        Kind::ManualChange => manual_change(play).await,
    }
}

async fn replica_lag(play: &mut Play<'_>) -> Result<(), DemoError> {
    let mut writer = play.writer().await?;
    let mut reader = play.reader(Source::Replica).await?;
    let mut other = play.reader(Source::Replica).await?;
    play.warm().await?;
    play.update(&mut writer, "writer", "Grace").await?;
    play.delete_key(&mut writer, "writer").await?;
    let old = play.look(&mut reader, "reader: GET, on a miss SELECT (replica)").await?;
    play.fill(&mut reader, "reader: SET key EX 300", old).await?;
    play.read(&mut other, "another reader").await?;
    play.traffic(Source::Replica).await
}

async fn lost_invalidation(play: &mut Play<'_>) -> Result<(), DemoError> {
    let mut writer = play.writer().await?;
    let mut reader = play.reader(Source::Primary).await?;
    play.warm().await?;
    play.update(&mut writer, "writer", "Grace").await?;
    drop(writer);
    play.step("writer crashes: its DEL is never sent", "connections closed".into(), Tone::Plain);
    play.read(&mut reader, "a reader").await?;
    play.traffic(Source::Primary).await
}

async fn write_race(play: &mut Play<'_>) -> Result<(), DemoError> {
    let mut a = play.writer().await?;
    let mut b = play.writer().await?;
    let mut slow = play.reader(Source::Primary).await?;
    let mut other = play.reader(Source::Primary).await?;
    play.update(&mut a, "A", "Grace (A)").await?;
    let old = play.look(&mut slow, "slow reader: GET, on a miss SELECT").await?;
    play.update(&mut b, "B", "Edsger (B)").await?;
    play.delete_key(&mut a, "A").await?;
    play.delete_key(&mut b, "B").await?;
    play.fill(&mut slow, "slow reader: SET key EX 300", old).await?;
    play.read(&mut other, "another reader").await?;
    play.traffic(Source::Primary).await
}

async fn manual_change(play: &mut Play<'_>) -> Result<(), DemoError> {
    let mut reader = play.reader(Source::Primary).await?;
    play.warm().await?;
    play.psql("Grace").await?;
    play.read(&mut reader, "a reader").await?;
    play.traffic(Source::Primary).await
}
