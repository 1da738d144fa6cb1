//! Watches one key: what Redis itself holds, against what the primary says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::DemoError;
use super::application::{Cache, User};
use super::play::Traffic;

/// How often the onlooker looks.
const INTERVAL: Duration = Duration::from_millis(2);

/// A wrong value that is gone sooner was in flight between commit and deletion; one that stays longer is a
/// divergence. Far above the proxy's milliseconds, far below the TTL.
const GRACE: Duration = Duration::from_secs(1);

/// Reads Redis behind any proxy, so that its own reads have no part in the play.
pub(super) struct Onlooker {
    pub(super) redis: Cache,
    pub(super) primary: tokio_postgres::Client,
    pub(super) id: i64,
}

/// What an onlooker, and the application's readers, saw of one key.
#[derive(Debug, Clone, Default)]
pub(super) struct Sighting {
    /// How long the longest wrong stretch was, from the first look that found it wrong to the first that did not.
    pub(super) wrong_for: Duration,
    /// The last look still found it wrong.
    pub(super) still_wrong: bool,
    /// What Redis said at the end of the entry's time to live, in seconds.
    pub(super) ttl_left: Option<i64>,
    /// How often it looked.
    pub(super) looks: usize,
    /// The last of the application's reads was a hit, and right.
    pub(super) recovered: bool,
}

impl Sighting {
    /// Whether a wrong value stayed.
    pub(super) fn went_wrong(&self) -> bool {
        self.still_wrong || self.wrong_for > GRACE
    }

    /// Adds what the readers saw.
    pub(super) fn with_traffic(mut self, traffic: &Traffic) -> Self {
        self.recovered = traffic.recovered;
        self
    }
}

impl Onlooker {
    /// Looks again and again until the play is over, and once more.
    pub(super) async fn watch(&mut self, over: &AtomicBool) -> Result<Sighting, DemoError> {
        let mut sighting = Sighting::default();
        let mut wrong_since: Option<Instant> = None;
        loop {
            let last = over.load(Ordering::Relaxed);
            let wrong = self.finds_it_wrong().await?;
            sighting.looks += 1;
            if let Some(since) = wrong_since {
                sighting.wrong_for = sighting.wrong_for.max(since.elapsed());
            }
            wrong_since = if wrong { wrong_since.or_else(|| Some(Instant::now())) } else { None };
            if last {
                break;
            }
            tokio::time::sleep(INTERVAL).await;
        }
        sighting.still_wrong = wrong_since.is_some();
        if let super::client::Reply::Int(seconds) =
            self.redis.cmd(&["TTL", &super::application::key(self.id)]).await?
        {
            sighting.ttl_left = Some(seconds).filter(|seconds| *seconds >= 0);
        }
        Ok(sighting)
    }

    /// The database is asked first: what the cache holds afterwards is at least as old as that if it is less.
    async fn finds_it_wrong(&mut self) -> Result<bool, DemoError> {
        let truth = User::selected(&self.primary, self.id).await?;
        let held = self.redis.get(self.id).await?;
        Ok(held.is_some_and(|held| held.version < truth.version))
    }
}
