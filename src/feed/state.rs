//! How the feed is doing, for everyone who must know without asking it: the proxy (is the feed lost, is a guard
//! broken), metrics, readiness.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Notify;

use super::catalog::{Held, Table};
use super::job::GapReason;
use super::lag::Behind;
use super::reached::Reached;
use super::standby_names::StandbyNames;
use super::strict::Strict;
use crate::fence::Millis;
use crate::guard::{GuardId, Guards};
use crate::pg::target::{Host, Target};
use crate::position::Lsn;

/// The stream itself said that a guard's layout no longer fits.
pub(super) const BROKEN_BY_STREAM: u8 = 1;
/// The periodic look at the catalog found something.
pub(super) const BROKEN_BY_CATALOG: u8 = 2;

/// What a look at the catalog has found, until the stream comes to where that is so.
#[derive(Debug)]
struct FoundTables {
    /// In the message that stands there. Others come too: people's, another proxy's, those of an earlier look.
    ticket: String,
    tables: Vec<Table>,
}

/// The feed's health. Positions are raw LSNs.
#[derive(Debug)]
pub struct FeedState {
    /// The walsender connection stands.
    pub connected: AtomicBool,
    /// Changes are coming.
    pub streaming: AtomicBool,
    /// Not streaming, no word from Postgres for `feed_lost_after`, or lag beyond `max_lag`: guards do what their
    /// `when_feed_lost` says.
    pub lost: AtomicBool,
    /// It has been level once.
    leveled: AtomicBool,
    /// How far the feed has received.
    pub received_lsn: AtomicU64,
    /// How far all is deleted.
    pub applied_lsn: AtomicU64,
    /// The same, without waiting for the marker.
    pub reached: Reached,
    /// How far the slot has been told to forget.
    pub confirmed_lsn: AtomicU64,
    /// How far the server has come, as far as we know.
    pub server_end_lsn: AtomicU64,
    /// How long the feed has been behind, in microseconds: the age of the oldest commit that has arrived and whose keys
    /// are not deleted, or the time since the stream ended or went silent, or since a poll saw a position that is not
    /// applied yet.
    pub lag_us: AtomicU64,
    /// Times that the stream had to be set up again.
    pub reconnects: AtomicU64,
    /// Status messages sent to Postgres.
    pub reports: AtomicU64,
    /// The primary takes no connections while its stream goes on: it is shutting down.
    pub(super) primary_stopping: AtomicBool,
    /// Postgres has commits wait for us: `synchronous_standby_names` names the feed, though the contract is bounded.
    pub synchronous: AtomicBool,
    /// More may be confirmed than the primary shows: a successor cannot go on as if it were not so.
    pub unseen: Arc<AtomicBool>,
    strict: Option<Strict>,
    /// Keys of a large transaction that is arriving that have been handed on so far; 0 when there is none.
    pub transaction_keys: AtomicU64,
    /// What the keys of transactions that have not committed yet take.
    pub in_progress_bytes: AtomicU64,
    /// What went wrong last; empty while streaming.
    error: Mutex<Option<String>>,
    /// Per guard, why it is broken; 0: it is not.
    broken: Vec<AtomicU8>,
    /// Per [`GapReason::ALL`].
    gaps: [AtomicU64; GapReason::ALL.len()],
    /// The guarded tables as the catalog has them, once it has been read.
    tables: Mutex<Vec<Table>>,
    /// The same as a later look has found them, until the stream comes to where that is so.
    found: Mutex<Option<FoundTables>>,
    /// The guards as everyone else sees them: they learn from the catalog.
    learnt: Option<Arc<ArcSwap<Guards>>>,
    /// The guards as a reload has set them.
    reloaded: ArcSwapOption<Guards>,
    /// They are not all in force yet.
    changing: AtomicBool,
    /// There are others than the stream knows: it has to start over with them.
    pub(super) regarded: Notify,
    /// The stream has met what the catalog should be asked about.
    pub(super) look: Notify,
    last_message: AtomicU64,
    /// What was committed before this stream began ends here. Until it is applied the feed is not back.
    level_from: AtomicU64,
    /// When the oldest commit that is not applied was committed, by our clock; `i64::MAX`: there is none.
    oldest_unapplied_us: AtomicI64,
    /// The server that the stream is from.
    primary: Mutex<Option<Host>>,
    behind: Behind,
    /// What the slot holds back.
    held: Mutex<Option<Held>>,
    /// Every broken guard was mended: the stream has to start over as after a gap.
    pub(super) mended: Notify,
    /// The catalog has changed, and no message can tell the stream where: it has to start over.
    pub(super) altered: Notify,
    /// The process is to end: the stream confirms what it has, and lets go of the slot.
    pub(super) stopping: Notify,
    told_to_stop: AtomicBool,
}

impl FeedState {
    /// Lost, until the first stream.
    pub fn new(guards: usize) -> Self {
        Self {
            connected: AtomicBool::new(false),
            streaming: AtomicBool::new(false),
            lost: AtomicBool::new(true),
            leveled: AtomicBool::new(false),
            received_lsn: AtomicU64::new(0),
            applied_lsn: AtomicU64::new(0),
            reached: Reached::default(),
            confirmed_lsn: AtomicU64::new(0),
            server_end_lsn: AtomicU64::new(0),
            lag_us: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            reports: AtomicU64::new(0),
            primary_stopping: AtomicBool::new(false),
            synchronous: AtomicBool::new(false),
            unseen: Arc::default(),
            strict: None,
            transaction_keys: AtomicU64::new(0),
            in_progress_bytes: AtomicU64::new(0),
            error: Mutex::new(None),
            broken: (0..guards).map(|_| AtomicU8::new(0)).collect(),
            gaps: Default::default(),
            tables: Mutex::default(),
            found: Mutex::default(),
            learnt: None,
            reloaded: ArcSwapOption::empty(),
            changing: AtomicBool::new(false),
            regarded: Notify::new(),
            look: Notify::new(),
            // No message ever.
            last_message: AtomicU64::new(u64::MAX),
            level_from: AtomicU64::new(0),
            oldest_unapplied_us: AtomicI64::new(i64::MAX),
            primary: Mutex::new(None),
            behind: Behind::new(),
            held: Mutex::new(None),
            mended: Notify::new(),
            altered: Notify::new(),
            stopping: Notify::new(),
            told_to_stop: AtomicBool::new(false),
        }
    }

    /// The same, with the strict contract.
    pub fn strictly(self) -> Self {
        self.unseen.store(true, Ordering::Relaxed);
        Self { strict: Some(Strict::new()), ..self }
    }

    /// The same, for guards that others use too.
    pub fn teaching(self, guards: Arc<ArcSwap<Guards>>) -> Self {
        Self { learnt: Some(guards), ..self }
    }

    /// Takes the guards of a reload. Their policies hold at once. If there are `others` than before, the stream starts over
    /// with them; those that are gone hold until then.
    pub fn set_guards(&self, guards: Arc<Guards>, others: bool) {
        // What the catalog tells is taken at the same time, perhaps: neither may undo the other.
        let _tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(learnt) = &self.learnt {
            learnt.store(Arc::new(learnt.load().with_policies(&guards)));
        }
        self.reloaded.store(Some(guards));
        if others {
            self.changing.store(true, Ordering::Relaxed);
            self.regarded.notify_one();
        }
    }

    /// The guards of the last reload, if there was one.
    pub(super) fn reloaded(&self) -> Option<Arc<Guards>> {
        self.reloaded.load_full()
    }

    /// These guards are in force.
    pub(super) fn guarded_by(&self, guards: &Guards) {
        // Not between the two things that a reload sets.
        let _tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        self.changing.store(!self.is_still(guards), Ordering::Relaxed);
    }

    /// Whether no reload has set others since these were asked for.
    pub(super) fn is_still(&self, guards: &Guards) -> bool {
        self.reloaded().is_none_or(|reloaded| same(&reloaded, guards))
    }

    /// Whether a reload has set guards that are not in force yet: what is cached of new ones is yet to be deleted.
    pub fn is_changing(&self) -> bool {
        self.changing.load(Ordering::Relaxed)
    }

    /// The strict contract, where it is the one.
    pub fn strict(&self) -> Option<&Strict> {
        self.strict.as_ref()
    }

    /// Whether the contract is the strict one.
    pub fn is_strict(&self) -> bool {
        self.strict.is_some()
    }

    /// Whether commits that are not known here yet may have been acknowledged although they must not.
    pub fn is_unguarded(&self) -> bool {
        self.strict.as_ref().is_some_and(|strict| !strict.is_in_force())
    }

    /// Whether commits are confirmed before they are visible: they wait for us.
    pub(super) fn confirms_unseen(&self) -> bool {
        self.is_strict() || self.synchronous.load(Ordering::Relaxed)
    }

    /// The walsender is connected to this server.
    pub(super) fn see_primary(&self, host: &Host) {
        *self.primary.lock().unwrap_or_else(PoisonError::into_inner) = Some(host.clone());
    }

    /// The server that the stream is from, once there was one.
    pub(super) fn primary(&self) -> Option<Host> {
        self.primary.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The feed's target, without the hosts that the stream is not from: what others say of a promoted standby and of
    /// the primary that it has replaced must not be mixed.
    pub(super) fn at_primary(&self, target: &Target) -> Target {
        self.primary().map_or_else(|| target.clone(), |host| target.only(&host))
    }

    /// A stream began, when the server's log was flushed up to here.
    pub(super) fn begun(&self, flushed: Lsn) {
        self.level_from.store(flushed.0, Ordering::Relaxed);
        self.behind.resumed(flushed);
        // Who is shutting down starts no stream. A poll may have been told the same by a server that was starting up.
        self.primary_stopping.store(false, Ordering::Relaxed);
        self.streaming.store(true, Ordering::Relaxed);
        self.set_error(None);
        self.strict.iter().for_each(Strict::begin);
    }

    /// The stream, or the attempt to start one, ended.
    pub(super) fn ended(&self, now: Millis) {
        self.behind.interrupted(now);
        // Positions of the next stream may be of another history, in which less was written: what was reached here says
        // nothing of what is committed there.
        self.reached.set(Lsn(0));
        self.connected.store(false, Ordering::Relaxed);
        self.streaming.store(false, Ordering::Relaxed);
        self.reconnects.fetch_add(1, Ordering::Relaxed);
        self.strict.iter().for_each(Strict::end);
    }

    /// Whether commits of before the stream began are still to come: how old they are is not known yet.
    pub fn is_catching_up(&self) -> bool {
        self.applied_lsn.load(Ordering::Relaxed) < self.level_from.load(Ordering::Relaxed)
    }

    /// Whether the feed is lost.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether fills of a guard have to be refused because rows can no longer be turned into its keys.
    pub fn is_broken(&self, guard: GuardId) -> bool {
        // SeqCst: the flag is raised before the guard's fills in flight are collected.
        self.broken.get(usize::from(guard.0)).is_some_and(|flags| flags.load(Ordering::SeqCst) != 0)
    }

    /// The broken guards.
    pub fn broken(&self) -> impl Iterator<Item = GuardId> + '_ {
        (0..self.broken.len()).map(|id| GuardId(id as u16)).filter(|id| self.is_broken(*id))
    }

    pub(super) fn set_broken(&self, guard: GuardId, why: u8, broken: bool) {
        let Some(flags) = self.broken.get(usize::from(guard.0)) else { return };
        if broken {
            flags.fetch_or(why, Ordering::SeqCst);
        } else {
            flags.fetch_and(!why, Ordering::SeqCst);
        }
    }

    pub(super) fn is_broken_by(&self, guard: GuardId, why: u8) -> bool {
        self.broken.get(usize::from(guard.0)).is_some_and(|flags| flags.load(Ordering::SeqCst) & why != 0)
    }

    /// Times there was a gap, by reason.
    pub fn gaps(&self) -> impl Iterator<Item = (GapReason, u64)> + '_ {
        GapReason::ALL.iter().zip(&self.gaps).map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)))
    }

    pub(super) fn count_gap(&self, reason: GapReason) {
        let counted = GapReason::ALL.iter().zip(&self.gaps).find(|(other, _)| **other == reason);
        if let Some((_, count)) = counted {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What went wrong last, while it is wrong.
    pub fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers what is wrong; says whether that is news.
    pub(super) fn set_error(&self, error: Option<String>) -> bool {
        let mut held = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *held != error;
        *held = error;
        news
    }

    /// The guarded tables, as the applier knows them.
    pub(super) fn tables(&self) -> Vec<Table> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on rows are read by these tables. `learnt` is what the guards know by them: which texts a key can contain.
    /// When this returns, every key is matched by it.
    pub(super) fn set_tables(&self, tables: &[Table], learnt: &Guards) {
        let mut held = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.clone_into(&mut held);
        if let Some(guards) = &self.learnt {
            let learnt = match self.reloaded() {
                Some(reloaded) => learnt.with_policies(&reloaded),
                None => learnt.clone(),
            };
            guards.store(Arc::new(learnt));
        }
    }

    /// What a look at the catalog has found, for the applier to take when the stream has come to the message with the
    /// ticket.
    pub(super) fn set_found(&self, ticket: &str, tables: Vec<Table>) {
        let found = FoundTables { ticket: ticket.to_owned(), tables };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    /// It will not be told.
    pub(super) fn forget_found(&self) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether the applier is yet to take what a look has found, and that is this.
    pub(super) fn has_found(&self, tables: &[Table]) -> bool {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.as_ref().is_some_and(|found| found.tables == tables)
    }

    pub(super) fn take_found(&self, ticket: &[u8]) -> Option<Vec<Table>> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.take_if(|found| found.ticket.as_bytes() == ticket).map(|found| found.tables)
    }

    /// Postgres was heard.
    pub(super) fn heard(&self, now: Millis) {
        self.last_message.store(now, Ordering::Relaxed);
    }

    /// How long Postgres has been silent.
    pub fn silent_for(&self, now: Millis) -> Option<Duration> {
        match self.last_message.load(Ordering::Relaxed) {
            u64::MAX => None,
            last => Some(Duration::from_millis(now.saturating_sub(last))),
        }
    }

    /// The primary's log was seen flushed up to here, in this history.
    pub(super) fn see_flushed(&self, flushed: Lsn, now: Millis) {
        self.server_end_lsn.fetch_max(flushed.0, Ordering::Relaxed);
        self.behind.flushed(flushed, Lsn(self.applied_lsn.load(Ordering::Relaxed)), now);
    }

    /// What the slot holds back, when it was last looked at.
    pub fn held(&self) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what the slot holds back, and warns when that becomes too much.
    pub(super) fn see_held(&self, slot: &str, held: Option<Held>) {
        let trouble = held.as_ref().and_then(Held::trouble);
        let before = std::mem::replace(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner), held);
        if let Some(trouble) = trouble
            && before.and_then(|held| held.trouble()).is_none()
        {
            tracing::warn!(slot, "{trouble}");
        }
    }

    /// Has the stream confirm what it has received and let go of its slot; [`super::Feed::run`] then returns.
    pub fn stop(&self) {
        self.told_to_stop.store(true, Ordering::Relaxed);
        self.stopping.notify_one();
    }

    /// Whether it is to end: no stream shall be started any more.
    pub(super) fn is_told_to_stop(&self) -> bool {
        self.told_to_stop.load(Ordering::Relaxed)
    }

    /// Takes the server's `synchronous_standby_names`, and says so if they name the feed.
    pub(super) fn see_synchronous(&self, names: &str, application_name: &str) {
        if let Some(strict) = &self.strict {
            return strict.see(names, application_name);
        }
        let named = StandbyNames::parse(names).is_some_and(|names| names.names(application_name));
        if named {
            self.unseen.store(true, Ordering::Relaxed);
        }
        if self.synchronous.swap(named, Ordering::Relaxed) != named && named {
            tracing::warn!(
                synchronous_standby_names = names,
                "commits wait for this proxy, though its contract is bounded; take {application_name:?} out of the setting, \
                 or name the standbys that are meant instead of *"
            );
        }
    }

    /// When the oldest commit that is not applied was committed, by the clock that [`FeedState::judge`] is given.
    pub(super) fn set_oldest_unapplied(&self, committed_us: Option<i64>) {
        self.oldest_unapplied_us.store(committed_us.unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// How long the feed has been behind, in microseconds.
    fn lag(&self, now: Millis, silence: Option<Duration>) -> u64 {
        let now_us = i64::try_from(now).unwrap_or(i64::MAX).saturating_mul(1_000);
        let oldest = self.oldest_unapplied_us.load(Ordering::Relaxed);
        let waiting = u64::try_from(now_us.saturating_sub(oldest)).unwrap_or(0);
        let since = self.behind.since(Lsn(self.applied_lsn.load(Ordering::Relaxed)));
        let behind = since.map_or(0, |since| now.saturating_sub(since).saturating_mul(1_000));
        let silence = silence.map_or(0, |silence| u64::try_from(silence.as_micros()).unwrap_or(u64::MAX));
        waiting.max(behind).max(silence)
    }

    /// Works out the lag and whether the feed is lost.
    pub(super) fn judge(&self, now: Millis, lost_after: Duration, max_lag: Duration) {
        let silence = self.silent_for(now);
        let silent = silence.is_none_or(|silence| silence > lost_after);
        // An idle database says nothing for a while.
        let lag = self.lag(now, silence.filter(|_| silent));
        self.lag_us.store(lag, Ordering::Relaxed);
        // At once when the stream ends: a successor may have taken the slot, and may have deleted already what
        // we would still let in.
        let interrupted = !self.streaming.load(Ordering::Relaxed);
        let behind = self.is_catching_up();
        let lost = interrupted || silent || behind || Duration::from_micros(lag) > max_lag;
        if self.lost.swap(lost, Ordering::Relaxed) != lost {
            // Who stops is lost by intention.
            if lost && !self.is_told_to_stop() {
                tracing::error!(
                    lag_us = lag,
                    silent,
                    interrupted,
                    behind,
                    "the feed is lost: guards do what when_feed_lost says"
                );
            } else if !lost {
                let again = self.leveled.swap(true, Ordering::Relaxed);
                tracing::info!("the feed is level{}", if again { " again" } else { "" });
            }
        }
    }
}

/// Whether they are the same, whatever their policies.
pub(super) fn same(a: &Guards, b: &Guards) -> bool {
    a.iter().map(|guard| guard.id).eq(b.iter().map(|guard| guard.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lost_until_heard_and_after_silence_or_lag() {
        let state = FeedState::new(1);
        assert!(state.is_lost());
        state.judge(0, SECOND, SECOND);
        assert!(state.is_lost(), "nothing has been heard");
        state.heard(100);
        state.judge(100, SECOND, SECOND);
        assert!(state.is_lost(), "connected is not streaming");
        state.begun(Lsn(0));
        state.judge(1_100, SECOND, SECOND);
        assert!(!state.is_lost());
        assert_eq!(lag(&state), 0, "an idle database says nothing for a while");
        state.judge(1_101, SECOND, SECOND);
        assert!(state.is_lost(), "silent for too long");
        assert_eq!(lag(&state), 1_001);
        state.heard(1_101);
        state.set_oldest_unapplied(Some(101_000));
        state.judge(1_101, SECOND, SECOND);
        assert!(!state.is_lost());
        state.heard(1_102);
        state.judge(1_102, SECOND, SECOND);
        assert!(state.is_lost(), "too far behind");
        state.set_oldest_unapplied(None);
        state.judge(1_102, SECOND, SECOND);
        assert!(!state.is_lost());
        state.ended(1_102);
        state.judge(1_102, SECOND, SECOND);
        assert!(state.is_lost(), "the stream has just ended");
        state.begun(Lsn(100));
        state.judge(1_102, SECOND, SECOND);
        assert!(state.is_lost(), "what was committed meanwhile is not applied yet");
        state.applied_lsn.store(100, Ordering::Relaxed);
        state.judge(1_102, SECOND, SECOND);
        assert!(!state.is_lost());
    }

    /// In milliseconds.
    fn lag(state: &FeedState) -> u64 {
        state.lag_us.load(Ordering::Relaxed) / 1_000
    }

    #[test]
    fn the_lag_grows_while_nothing_arrives() {
        let state = FeedState::new(1);
        let judge = |now| {
            state.heard(now);
            state.judge(now, SECOND, 3 * SECOND);
            (lag(&state), state.is_lost())
        };
        assert_eq!(judge(500), (500, true), "not begun: since the start of the process");
        state.begun(Lsn(100));
        assert_eq!(judge(600), (600, true), "not level yet");
        state.applied_lsn.store(100, Ordering::Relaxed);
        assert_eq!(judge(700), (0, false));
        // A poll sees more than has come.
        let much = 100_000_000;
        state.see_flushed(Lsn(much), 800);
        assert_eq!(state.server_end_lsn.load(Ordering::Relaxed), much);
        assert_eq!(judge(900), (100, false));
        assert_eq!(judge(3_801), (3_001, true), "Postgres holds back what it has");
        state.applied_lsn.store(much, Ordering::Relaxed);
        assert_eq!(judge(3_900), (0, false));
        // An idle database, and no stream.
        state.ended(4_000);
        assert_eq!(judge(9_000), (5_000, true));
        state.begun(Lsn(much));
        assert_eq!(judge(9_100), (0, false));
    }

    #[test]
    fn strict_is_in_force_only_while_the_stream_that_it_was_seen_of_runs() {
        let state = FeedState::new(1);
        assert!(!state.is_unguarded(), "bounded promises nothing of the kind");
        let state = state.strictly();
        let strict = state.strict().expect("strict");
        assert!(state.is_unguarded() && strict.why_not().is_some());
        state.begun(Lsn(1));
        let first = strict.stream().expect("a stream");
        strict.rise(first, "cachefence");
        assert!(!state.is_unguarded() && strict.why_not().is_none());
        state.see_synchronous("cachefence", "cachefence");
        assert!(!state.is_unguarded());
        state.see_synchronous("", "cachefence");
        assert!(state.is_unguarded(), "a poll has seen the setting");
        strict.rise(first, "cachefence");
        state.see_synchronous("3 (s2, cachefence, s1)", "cachefence");
        assert!(state.is_unguarded(), "it requires us, but under the other a commit was seen to wait");
        strict.rise(first, "cachefence");
        state.ended(0);
        assert!(state.is_unguarded(), "the stream has ended");
        strict.rise(first, "cachefence");
        assert!(state.is_unguarded(), "what was seen of a stream that has ended");
        state.begun(Lsn(1));
        strict.rise(first, "cachefence");
        assert!(state.is_unguarded(), "what was seen of the stream before");
    }

    /// In a history that lacks commits, a position that was reached in the one before is given out again.
    #[test]
    fn what_was_reached_ends_with_the_stream_and_so_does_the_shutdown_that_ended_it() {
        let state = FeedState::new(1);
        state.begun(Lsn(1));
        state.reached.set(Lsn(100));
        state.ended(0);
        assert_eq!(state.reached.lsn(), Lsn(0));
        state.primary_stopping.store(true, Ordering::Relaxed);
        state.begun(Lsn(1));
        assert!(!state.primary_stopping.load(Ordering::Relaxed), "who stops starts no stream");
    }

    #[test]
    fn a_guard_is_broken_while_any_reason_stands() {
        let state = FeedState::new(2);
        let guard = GuardId(1);
        state.set_broken(guard, BROKEN_BY_STREAM, true);
        state.set_broken(guard, BROKEN_BY_CATALOG, true);
        state.set_broken(guard, BROKEN_BY_STREAM, false);
        assert_eq!(state.broken().collect::<Vec<_>>(), [guard]);
        state.set_broken(guard, BROKEN_BY_CATALOG, false);
        assert_eq!(state.broken().count(), 0);
    }
}
