//! Fills that were refused: the last of them for people to look at, and lines of the log that nobody drowns in.
//!
//! A client that fills what is stale does so again and again, thousands of times a second at worst. So each refusal is
//! a line at debug level only; at info there is one every [`INTERVAL`], which says how many it stands for.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tracing::{debug, info};

/// Refusals that are remembered.
const REMEMBERED: usize = 50;
/// Bytes of a key that are shown.
const SHOWN: usize = 128;
/// Between lines at info level.
const INTERVAL: Duration = Duration::from_secs(10);

/// A fill that was refused, or would have been if the proxy did not only observe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Refused {
    /// Its number, from 1 on: what a reader has seen already it need not read again.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Whose keys these are; several tables if several guards cover the key.
    pub guard: String,
    /// The key, escaped and cut; not if keys are not to be shown.
    pub key: String,
    /// `stale` or `unproven`; `fresh` if something else was in the way of a good one.
    pub verdict: &'static str,
    /// What was done: `refused`, `deleted` or `observed`.
    pub action: &'static str,
    /// Why, in one sentence, after its code word.
    pub why: String,
    /// How long its data had been out of date, in milliseconds, where that is known.
    pub age: Option<u64>,
    /// What spoke for it.
    pub evidence: String,
    /// What it was held against.
    pub fence: Option<String>,
}

#[derive(Debug, Default)]
struct Told {
    last: VecDeque<Refused>,
    /// When a line at info level was written.
    at: Option<Instant>,
    /// How many there were by then.
    count: u64,
}

/// The refusals of all clients.
#[derive(Debug)]
pub struct Refusals {
    show_keys: bool,
    count: AtomicU64,
    told: Mutex<Told>,
}

impl Refusals {
    /// None yet.
    pub fn new(show_keys: bool) -> Self {
        Self { show_keys, count: AtomicU64::new(0), told: Mutex::default() }
    }

    /// One more. `refused` is asked for the rest, but for `number`, `at` and `key`.
    pub fn record(&self, key: &[u8], refused: impl FnOnce(String) -> Refused) {
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let refused = Refused { number, at, ..refused(shown(key, self.show_keys)) };
        let Refused { guard, key, verdict, action, why, age, evidence, fence, .. } = &refused;
        debug!(%guard, %key, verdict, action, %why, age_ms = age, %evidence, fence, "fill refused");
        // Whoever else is here remembers his own: a client waits for nobody's log. Those are counted all the same.
        let Ok(mut told) = self.told.try_lock() else { return };
        if told.at.is_none_or(|at| at.elapsed() >= INTERVAL) {
            told.at = Some(Instant::now());
            let count = self.count();
            let fills = count - std::mem::replace(&mut told.count, count);
            let text = if *action == "observed" { "fills that would be refused" } else { "fills refused" };
            info!(fills, last_guard = %guard, last_key = %key, last_why = %why, last_age_ms = age, "{text}");
        }
        if told.last.len() == REMEMBERED {
            told.last.pop_front();
        }
        told.last.push_back(refused);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The last ones, the newest first.
    pub fn last(&self) -> Vec<Refused> {
        let told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        told.last.iter().rev().cloned().collect()
    }
}

/// A key as a line of a log, or a page, has it, if keys are to be shown.
pub fn shown(key: &[u8], show_keys: bool) -> String {
    if show_keys { printable(key) } else { "(hidden)".into() }
}

/// A key as a line of a log, or a page, can hold it: nothing in it ends the line, hides or reorders what stands beside it.
pub fn printable(key: &[u8]) -> String {
    let shown: String =
        key.iter().take(SHOWN).flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect();
    if key.len() > SHOWN { format!("{shown}...") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(key: String) -> Refused {
        Refused {
            number: 0,
            at: 0,
            guard: "public.users".into(),
            key,
            verdict: "stale",
            action: "refused",
            why: "STALE".into(),
            age: Some(7),
            evidence: "a lease".into(),
            fence: None,
        }
    }

    #[test]
    fn the_last_ones_are_remembered_and_all_are_counted() {
        let refusals = Refusals::new(true);
        for n in 0..REMEMBERED + 3 {
            refusals.record(format!("user:{n}").as_bytes(), refused);
        }
        assert_eq!(refusals.count(), REMEMBERED as u64 + 3);
        let last = refusals.last();
        assert_eq!(last.len(), REMEMBERED);
        assert_eq!(last[0].key, format!("user:{}", REMEMBERED + 2), "the newest first");
        assert_eq!(last[0].number, REMEMBERED as u64 + 3);
        assert!(last[0].at > 1_700_000_000_000, "{}", last[0].at);
    }

    #[test]
    fn each_line_says_how_many_it_stands_for() {
        let refusals = Refusals::new(true);
        refusals.record(b"a", refused);
        assert_eq!(refusals.told.lock().expect("told").count, 1, "the first is told at once");
        for _ in 0..4 {
            refusals.record(b"a", refused);
        }
        assert_eq!(refusals.told.lock().expect("told").count, 1, "the next ones wait");
        // One that came while somebody else was here is counted all the same.
        refusals.count.fetch_add(1, Ordering::Relaxed);
        refusals.told.lock().expect("told").at = None;
        refusals.record(b"a", refused);
        assert_eq!(refusals.told.lock().expect("told").count, 7, "and are told of with the next line");
    }

    #[test]
    fn a_key_is_one_short_word_without_tricks() {
        assert_eq!(printable(b"user:1"), "user:1");
        assert_eq!(printable(b"a\r\nERROR \x1b[31m\xff"), "a\\r\\nERROR \\x1b[31m\\xff");
        let right_to_left = "user:\u{202e}1";
        assert!(printable(right_to_left.as_bytes()).is_ascii());
        assert_eq!(printable(&[b'a'; 500]).len(), SHOWN + 3);
    }

    #[test]
    fn a_hidden_key_is_nowhere() {
        let refusals = Refusals::new(false);
        refusals.record(b"user:ada@example.org", refused);
        assert_eq!(refusals.last()[0].key, "(hidden)");
    }
}
