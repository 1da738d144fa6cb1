//! What the page shows: how things are in one sentence, and everything at a glance.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::status::Status;
use crate::admin::{AdminSource, Sample};
use crate::config::{Contract, Mode};
use crate::feed::Source;

/// How things are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// `good`, `watch` or `bad`.
    pub(super) level: &'static str,
    /// In one sentence or two.
    pub(super) sentence: String,
}

/// What the summary is made of.
pub(super) struct Standing<'a> {
    pub(super) mode: Mode,
    pub(super) contract: Contract,
    /// As `/readyz` has it.
    pub(super) ready: &'a Result<Vec<String>, Vec<String>>,
    pub(super) lag: Duration,
}

impl Summary {
    pub(super) fn of(standing: &Standing<'_>) -> Self {
        let (level, sentence) = match (standing.ready, standing.mode) {
            (Err(reasons), mode) => {
                let why = reasons.first().map_or("starting", String::as_str);
                let meanwhile = match (mode, standing.contract) {
                    (Mode::Observe, _) => "Nothing is protected in observe mode anyway.",
                    (_, Contract::Strict) => "Meanwhile reads of guarded keys miss, and fills are refused.",
                    (_, Contract::Bounded) => "Meanwhile each guard does what its when_feed_lost says.",
                };
                ("bad", format!("Not ready: {why}. {meanwhile}"))
            }
            (Ok(_), Mode::Observe) => (
                "watch",
                "Observing: nothing is deleted or refused, so the cache is not protected. What would be refused is \
                 counted."
                    .into(),
            ),
            (Ok(troubles), Mode::Enforce) => {
                let kept = match standing.contract {
                    Contract::Strict => {
                        "Strict contract kept: a COMMIT returns only after the keys that it changed are deleted.".into()
                    }
                    Contract::Bounded => format!(
                        "Bounded contract kept: a hit is behind the database by no more than the feed's lag, now {}.",
                        words(standing.lag)
                    ),
                };
                match troubles.first() {
                    None => ("good", kept),
                    Some(trouble) => ("watch", format!("{kept} But {trouble}.")),
                }
            }
        };
        Self { level, sentence }
    }
}

/// A time as people say it.
fn words(time: Duration) -> String {
    match time {
        _ if time.is_zero() => "0".into(),
        _ if time < Duration::from_millis(1) => "under 1 ms".into(),
        _ if time < Duration::from_secs(1) => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl Status {
    fn lag(&self) -> Duration {
        Duration::from_micros(self.feed.lag_us.load(Ordering::Relaxed))
    }

    pub(super) fn at_a_glance(&self) -> Value {
        let ready = self.ready();
        let standing = Standing {
            mode: self.config.proxy.mode,
            contract: self.config.postgres.contract,
            ready: &ready,
            lag: self.lag(),
        };
        let Summary { level, sentence } = Summary::of(&standing);
        let (is_ready, lines) = match ready {
            Ok(troubles) => (true, troubles),
            Err(reasons) => (false, reasons),
        };
        json!({
            "at": now(),
            "up_for": self.positions.now() / 1000,
            "level": level,
            "sentence": sentence,
            "ready": is_ready,
            "lines": lines,
            "status": self.status(),
            "clients": self.metrics.clients.get(),
            "refused": self.refusals.count(),
            "last_refused": self.refusals.last(),
        })
    }

    pub(super) fn sampled(&self) -> Sample {
        let received = self.feed.received_lsn.load(Ordering::Relaxed);
        let behind = |source: &Source| {
            let state = &source.state;
            let up = state.up.load(Ordering::Relaxed);
            up.then(|| received.saturating_sub(state.position.load(Ordering::Relaxed)))
        };
        let sources = self.sources.load();
        let sources = sources.iter().filter(|source| source.index.is_some());
        Sample {
            at: now(),
            feed_lag: self.lag().as_secs_f64(),
            lost: self.feed.is_lost(),
            refused: self.refusals.count(),
            sources: sources.map(|source| (source.state.name.clone(), behind(source))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(mode: Mode, contract: Contract, ready: &Result<Vec<String>, Vec<String>>) -> Summary {
        Summary::of(&Standing { mode, contract, ready, lag: Duration::from_millis(12) })
    }

    #[test]
    fn one_sentence_says_what_is_promised_and_whether_it_is_kept() {
        let trouble = || vec!["source replica-1: gone".to_owned()];
        let cases = [
            (Mode::Enforce, Contract::Bounded, Ok(vec![]), "good", "no more than the feed's lag, now 12 ms."),
            (Mode::Enforce, Contract::Strict, Ok(vec![]), "good", "Strict contract kept: a COMMIT returns"),
            (Mode::Enforce, Contract::Bounded, Ok(trouble()), "watch", "But source replica-1: gone."),
            (Mode::Enforce, Contract::Strict, Err(trouble()), "bad", "reads of guarded keys miss"),
            (Mode::Enforce, Contract::Bounded, Err(trouble()), "bad", "Not ready: source replica-1: gone."),
        ];
        for (mode, contract, ready, level, sentence) in cases {
            let found = summary(mode, contract, &ready);
            assert_eq!(found.level, level, "{found:?}");
            assert!(found.sentence.contains(sentence), "{found:?}");
        }
    }

    #[test]
    fn nothing_is_claimed_while_it_only_observes() {
        for ready in [Ok(vec![]), Ok(vec!["x".to_owned()]), Err(vec!["x".to_owned()])] {
            let found = summary(Mode::Observe, Contract::Bounded, &ready);
            assert_ne!(found.level, "good");
            assert!(!found.sentence.contains("kept"), "{found:?}");
        }
    }
}
