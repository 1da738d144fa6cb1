//! Tells systemd how it goes: ready, in what state, and not stuck.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Status;
use crate::admin::AdminSource;
use crate::lifecycle::notify::Notifier;
use crate::proxy::Threads;

/// How often it is looked whether the proxy is ready for the first time.
const LOOK: Duration = Duration::from_millis(100);
/// ... and what there is to tell after that.
const TELL: Duration = Duration::from_secs(1);
/// A thread that has shown nothing for so long is stuck, whatever systemd would still let pass.
const STUCK: Duration = Duration::from_secs(2);

/// Tells as long as the process lives. On the runtime of the feed and the deletions: if that is stuck, nothing is told.
pub(super) async fn run(notifier: Arc<Notifier>, status: Arc<Status>, threads: Arc<Threads>) {
    if !notifier.is_heard() {
        return;
    }
    let mut beats: Vec<(u64, Instant)> = Vec::new();
    let (mut was_ready, mut told) = (false, String::new());
    loop {
        let now = match status.ready() {
            Ok(notes) if notes.is_empty() => "ready".to_owned(),
            Ok(notes) => format!("ready; {}", notes.join("; ")),
            Err(reasons) => format!("not ready: {}", reasons.join("; ")),
        };
        let is_stopping = status.stopping.load(Ordering::Relaxed);
        if !was_ready && now.starts_with("ready") {
            was_ready = true;
            notifier.ready();
        }
        if now != told && !is_stopping {
            notifier.status(&now);
            told = now;
        }
        let watchdog = notifier.watchdog();
        if let Some(watchdog) = watchdog
            && all_beat(&mut beats, &threads.beats(), Instant::now(), STUCK.max(watchdog / 2))
        {
            notifier.alive();
        }
        let pace = if was_ready { TELL } else { LOOK };
        // systemd advises half of its time.
        sleep(watchdog.map_or(pace, |watchdog| pace.min(watchdog / 2)).max(Duration::from_millis(1))).await;
    }
}

/// Whether every thread has shown within this time that it is not stuck.
fn all_beat(seen: &mut Vec<(u64, Instant)>, beats: &[u64], now: Instant, within: Duration) -> bool {
    seen.resize(beats.len(), (u64::MAX, now));
    for (seen, beat) in seen.iter_mut().zip(beats) {
        if seen.0 != *beat {
            *seen = (*beat, now);
        }
    }
    seen.iter().all(|(_, at)| now.duration_since(*at) < within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_that_is_stuck_is_enough() {
        let (mut seen, within) = (Vec::new(), Duration::from_secs(2));
        let began = Instant::now();
        let mut all_beat = |seconds: f32, beats: &[u64]| {
            super::all_beat(&mut seen, beats, began + Duration::from_secs_f32(seconds), within)
        };
        assert!(all_beat(0.0, &[1, 1]));
        assert!(all_beat(1.5, &[2, 1]), "not for long");
        assert!(!all_beat(3.0, &[3, 1]));
        assert!(all_beat(4.5, &[4, 2]), "it was slow");
    }
}
