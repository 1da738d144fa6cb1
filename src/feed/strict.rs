//! The strict contract: is it in force?
//!
//! It holds as long as no commit is acknowledged before its keys are deleted. Whether commits wait is for Postgres to
//! say, which is asked (`watch_strict`). Until it has said yes, and when it no longer does, the proxy behaves as if the
//! feed were lost: that is all that keeps the promise.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::standby_names::{StandbyNames, remedy};
use crate::position::Lsn;

/// Whether the strict contract is in force.
#[derive(Debug)]
pub struct Strict {
    in_force: AtomicBool,
    inner: Mutex<Inner>,
    /// A stream began.
    pub(super) changed: Notify,
    /// Nothing beyond this is confirmed, while a commit is watched that has to wait for us.
    hold: AtomicU64,
    released: Notify,
}

#[derive(Debug)]
struct Inner {
    /// Counts streams.
    stream: u64,
    streaming: bool,
    why_not: String,
    /// What lets go of commits that wait for us, with what the setting said when it was last seen.
    remedy_without: Option<String>,
    /// The setting under which a commit was seen to wait.
    setting: String,
}

impl Strict {
    pub(super) fn new() -> Self {
        let why_not = "the feed has not begun".to_owned();
        Self {
            in_force: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                stream: 0,
                streaming: false,
                why_not,
                remedy_without: None,
                setting: String::new(),
            }),
            changed: Notify::new(),
            hold: AtomicU64::new(u64::MAX),
            released: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether commits wait until their keys are deleted.
    pub fn is_in_force(&self) -> bool {
        self.in_force.load(Ordering::SeqCst)
    }

    /// Why it is not in force, and what to run.
    pub fn why_not(&self) -> Option<String> {
        let inner = self.lock();
        (!self.is_in_force()).then(|| inner.why_not.clone())
    }

    /// Up to where may be confirmed.
    pub(super) fn hold(&self) -> Lsn {
        Lsn(self.hold.load(Ordering::SeqCst))
    }

    /// What was held back may be confirmed.
    pub(super) async fn released(&self) {
        self.released.notified().await;
    }

    /// A stream began.
    pub(super) fn begin(&self) {
        let mut inner = self.lock();
        inner.stream += 1;
        inner.streaming = true;
        drop(inner);
        self.changed.notify_waiters();
    }

    /// The stream ended. Commits wait, or do not if the setting is changed meanwhile: who knows.
    pub(super) fn end(&self) {
        self.lock().streaming = false;
        self.fall("the feed is interrupted".to_owned());
    }

    /// What to run so that commits no longer wait for us, if they do by the setting.
    pub fn remedy_without(&self) -> Option<String> {
        self.lock().remedy_without.clone()
    }

    /// The setting was seen.
    pub(super) fn see(&self, names: &str, application_name: &str) {
        let parsed = StandbyNames::parse(names).filter(|parsed| parsed.names(application_name));
        self.lock().remedy_without = parsed.map(|parsed| parsed.remedy_without(application_name));
        if !self.is_in_force() {
            return;
        }
        if let Err(why) = named(names, application_name).and_then(|()| self.same(names)) {
            self.fall(why);
        }
    }

    /// While a setting is being replaced each walsender counts by the one that it has read last. Both may require us, and the
    /// mixture not: one that goes by the old number of standbys may take one that the new list has before us. So another
    /// setting begins anew.
    ///
    /// # Errors
    /// That it is another.
    pub(super) fn same(&self, setting: &str) -> Result<(), String> {
        let inner = self.lock();
        if !self.is_in_force() || inner.setting == setting {
            return Ok(());
        }
        Err(format!(
            "synchronous_standby_names was changed from {:?} to {setting:?}: whether commits wait is looked at anew",
            inner.setting
        ))
    }

    /// The stream that runs now.
    pub(super) fn stream(&self) -> Option<u64> {
        let inner = self.lock();
        inner.streaming.then_some(inner.stream)
    }

    /// In force, if the stream that all was seen of still runs.
    pub(super) fn rise(&self, stream: u64, setting: &str) {
        let mut inner = self.lock();
        if inner.streaming && inner.stream == stream && !self.is_in_force() {
            setting.clone_into(&mut inner.setting);
        }
        if inner.streaming && inner.stream == stream && !self.in_force.swap(true, Ordering::SeqCst) {
            tracing::info!("the strict contract is in force: commits wait until their keys are deleted");
        }
    }

    pub(super) fn fall(&self, why: String) {
        let mut inner = self.lock();
        let fell = self.in_force.swap(false, Ordering::SeqCst);
        if fell || inner.why_not != why {
            tracing::warn!(
                why,
                "the strict contract is not in force: reads of guarded keys miss, fills are refused"
            );
            inner.why_not = why;
        }
    }
}

/// Nothing beyond a position is confirmed as long as this lives.
pub(super) struct Hold<'a>(&'a Strict);

impl<'a> Hold<'a> {
    pub(super) fn beyond(strict: &'a Strict, position: Lsn) -> Self {
        strict.hold.store(position.0, Ordering::SeqCst);
        Self(strict)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.hold.store(u64::MAX, Ordering::SeqCst);
        self.0.released.notify_one();
    }
}

/// Whether the setting makes every commit wait for us.
pub(super) fn named(setting: &str, application_name: &str) -> Result<(), String> {
    let names = StandbyNames::parse(setting);
    let required = names.map(|names| names.requires(application_name));
    match required {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => Err(format!(
            "synchronous_standby_names ({setting:?}) {why}: commits do not wait for {application_name:?}; run: {}",
            remedy(setting, application_name)
        )),
        None => Err(format!("synchronous_standby_names ({setting:?}) is not understood")),
    }
}
