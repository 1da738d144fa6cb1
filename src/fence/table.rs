//! The table: one state per key, one lock per shard.
//!
//! The proof rests on two orders, both kept by the shard's lock:
//!
//! * A fill is judged and registered as in flight in one step. A write that comes after it finds it in flight
//!   and waits for it before deleting; a write that came before it was there to judge it.
//! * The floor is raised *before* the history that it stands for is dropped, and read *after* the key is
//!   locked. Whoever finds the history gone finds the floor raised.

mod judge;
mod keys;
mod room;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};

use keys::Keys;
use room::Cuts;

use super::caps::Caps;
use super::key::{Extra, KeyState};
use super::lease::{Lease, Use, Written};
use super::locks::{lock, read, write};
use super::named::Named;
use super::past::Past;
use super::version::Around;
use super::{
    ConnId, Evidence, FillId, GuardId, KeyHash, LeaseRule, Millis, RowChanges, Ruling, Settled, Verdict,
    VersionClaim, Write,
};
use crate::position::Lsn;

/// What the table may hold, and for how long.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a settled write is remembered.
    pub history: Millis,
    /// The longest cap that a fill may get.
    pub longest_cap: Millis,
    /// How long a miss vouches. Not above `history`, so that a lease never falls below the floor by time alone.
    pub lease_ttl: Millis,
    /// Keys, at most (overshot by a sixteenth before the oldest are dropped).
    pub max_keys: usize,
    /// Entries for outstanding misses, at most (see [`Size::leases`]; fills may overshoot it a little when they use them up).
    pub max_leases: usize,
    /// Guards that there will ever be.
    pub guards: usize,
    /// Locks, at most; half as many at least. Many, so that a shard that grows or is swept stalls nobody for long.
    pub shards: usize,
}

/// A fill that asks to be let in.
#[derive(Clone, Debug)]
pub struct Fill<'a> {
    /// Names it while it is in flight.
    pub id: FillId,
    /// The client's connection.
    pub conn: ConnId,
    /// The guards whose templates match the key.
    pub guards: &'a [GuardId],
    /// What the client itself said.
    pub evidence: Option<&'a Evidence>,
    /// What its payload, or the client, says of the version of the row that it was made from.
    pub version: Option<VersionClaim>,
    /// Whose miss can vouch for it, where the client said nothing.
    pub lease: LeaseRule,
    /// It adds to the value instead of replacing it (HSET), so that it shares the lease of the part before it.
    pub part: bool,
}

/// What Redis's answer to a fill, or to a command that changes how long a key lives, means to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Somebody waits for the fill's end.
    pub waited_for: bool,
    /// A capped fill was let in while the command was under way, and the key may live longer than that allows: it has to
    /// be deleted.
    pub overtaken: bool,
}

/// How full the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Keys with a write in their history.
    pub keys: usize,
    /// Entries for outstanding misses: those of one key and connection between which the key was not written are one.
    pub leases: usize,
    /// Entries for caps, which have a budget of their own, as large as that of leases: remembering caps must not cost
    /// leases, or unproven fills would make more of their kind.
    pub caps: usize,
    /// Bytes, estimated.
    pub bytes: usize,
}

/// A guard that was written as a whole (TRUNCATE). It counts as a write of each of its keys.
#[derive(Default)]
struct WholeGuard {
    /// The last such write, readable without the lock: it is in the past nearly always.
    last: AtomicU64,
    state: Mutex<KeyState>,
}

/// What is remembered of every key.
pub struct Fence {
    limits: Limits,
    keys: Keys,
    guards: Vec<WholeGuard>,
    /// Below this LSN per-key history is gone; `u64::MAX` while the table is being restarted.
    floor: AtomicU64,
    /// Where the floor was when this history began.
    start: AtomicU64,
    /// What a lease granted now is worth.
    settled: AtomicU64,
    /// `Settled::sources`, with [`SOURCE_LOST`] for none.
    sources: AtomicU64,
    past: RwLock<Past>,
    entry_count: AtomicUsize,
    written_keys: AtomicUsize,
    lease_count: AtomicUsize,
    version_count: AtomicUsize,
    /// The last write of any guard as a whole.
    last_whole: AtomicU64,
    /// Until when no lease counts at all: see [`Fence::distrust_leases`].
    distrusted: AtomicU64,
    /// Until when evidence that was brought along counts for nothing: see [`Fence::distrust_evidence`].
    abandoned: AtomicU64,
    /// Until when any key may have been capped by somebody else, 0 for never: see [`Fence::distrust_lives`].
    unknown_caps: AtomicU64,
    /// Until when no lease of a key in this slot counts, because one could not be granted for lack of room.
    ungranted: Box<[AtomicU64]>,
    cap_count: AtomicUsize,
    /// Until when a key in this slot may be capped without being remembered, for lack of room.
    uncapped: Box<[AtomicU64]>,
    /// The last write's position, and positions at which a share of `max_keys` had been added: where to cut for room.
    written: AtomicU64,
    cuts: Mutex<Cuts>,
    /// Keys that were added in this history.
    added: AtomicUsize,
    /// Keys without a guard that are judged all the same.
    named: Named,
    /// Held while room is made: two threads at it would drop twice as much as needed, and a cut of the old history
    /// must not reach the floor of a new one.
    room: Mutex<()>,
}

const SOURCE_LOST: u64 = u64::MAX;
/// Few in tests, which make many tables.
const UNGRANTED_SLOTS: usize = if cfg!(test) { 1 << 8 } else { 1 << 16 };
/// How much later than its TTL says a capped fill that is not remembered may be executed, in milliseconds.
const UNCAPPED_GRACE: Millis = 60_000;
/// Bytes per entry: key, state, control byte, and the free places of a full table.
const ENTRY_BYTES: usize = 45;

fn slot(slots: &[AtomicU64], key: KeyHash) -> &AtomicU64 {
    &slots[key.0 as usize % UNGRANTED_SLOTS]
}

impl Fence {
    /// An empty table whose floor is above everything: nothing is fresh until [`Fence::restart`].
    pub fn new(limits: Limits) -> Self {
        Self {
            keys: Keys::new(limits.max_keys, limits.shards),
            guards: (0..limits.guards).map(|_| WholeGuard::default()).collect(),
            floor: AtomicU64::new(u64::MAX),
            start: AtomicU64::new(u64::MAX),
            settled: AtomicU64::new(0),
            sources: AtomicU64::new(SOURCE_LOST),
            past: RwLock::default(),
            entry_count: AtomicUsize::new(0),
            written_keys: AtomicUsize::new(0),
            lease_count: AtomicUsize::new(0),
            version_count: AtomicUsize::new(0),
            last_whole: AtomicU64::new(0),
            distrusted: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            unknown_caps: AtomicU64::new(0),
            ungranted: (0..UNGRANTED_SLOTS).map(|_| AtomicU64::new(0)).collect(),
            cap_count: AtomicUsize::new(0),
            uncapped: (0..UNGRANTED_SLOTS).map(|_| AtomicU64::new(0)).collect(),
            written: AtomicU64::new(0),
            cuts: Mutex::default(),
            added: AtomicUsize::new(0),
            named: Named::default(),
            room: Mutex::default(),
            limits,
        }
    }

    /// Begins another history: at the start, and after a gap. Nothing below `floor` is known, and what was
    /// known and promised before belongs to a past that may not be comparable (another system, another timeline).
    /// Fills in flight stay registered. Call it under the same lock as [`Fence::settle`].
    pub fn restart(&self, floor: Lsn) {
        let _room = lock(&self.room);
        // Nothing is fresh while the old history goes.
        self.floor.store(u64::MAX, Ordering::SeqCst);
        self.settled.store(0, Ordering::SeqCst);
        self.sources.store(SOURCE_LOST, Ordering::SeqCst);
        write(&self.past).clear();
        for guard in &self.guards {
            guard.last.store(0, Ordering::SeqCst);
            lock(&guard.state).forget_history();
        }
        self.last_whole.store(0, Ordering::SeqCst);
        *lock(&self.cuts) = Cuts::default();
        self.added.store(0, Ordering::Relaxed);
        self.written.store(floor.0, Ordering::SeqCst);
        self.retain(|state| {
            state.forget_history();
            state.forget(Lsn(0));
        });
        self.named.restart(floor);
        self.start.store(floor.0, Ordering::SeqCst);
        self.floor.store(floor.0, Ordering::SeqCst);
    }

    /// Has a key judged that no guard covers, for as long as this write of it is remembered. To be called before
    /// [`Fence::write`], so that a fill that is let in between is known to be in flight. False if an older key had
    /// to go for lack of room.
    pub fn name(&self, key: KeyHash, lsn: Lsn) -> bool {
        self.named.add(key, lsn)
    }

    /// Whether any key is judged because it was named. One relaxed load: asked for every command.
    pub fn has_names(&self) -> bool {
        self.named.len() > 0
    }

    /// Whether a key is judged because it was named.
    pub fn is_named(&self, key: KeyHash) -> bool {
        self.named.has(key)
    }

    /// How many keys are judged because they were named, and how many are no longer for lack of room.
    pub fn named(&self) -> (usize, u64) {
        (self.named.len(), self.named.dropped())
    }

    /// Fences a key: from now on its fills are judged against this write. Adds to `draining` the fills
    /// that were let in before, which must end before the key is deleted.
    pub fn write(&self, key: KeyHash, write: Write, draining: &mut Vec<(KeyHash, FillId)>) {
        self.write_by(key, write, draining, |state| state.write(write, self.floor()));
    }

    /// The same, where one row feeds the key, and the write tells what became of that.
    pub fn write_row(
        &self,
        key: KeyHash,
        write: Write,
        changes: &RowChanges,
        draining: &mut Vec<(KeyHash, FillId)>,
    ) {
        self.write_by(key, write, draining, |state| {
            let floor = self.floor();
            let around = Around {
                lsn: write.lsn,
                before: None,
                whole: self.last_wholly(&[changes.guard()], floor),
                // The floor moves when something has been settled for the length of a history.
                complete: floor.0 > self.start.load(Ordering::SeqCst),
                goes_on: false,
            };
            state.write_row(write, changes, around, floor);
        });
    }

    fn write_by(
        &self,
        key: KeyHash,
        write: Write,
        draining: &mut Vec<(KeyHash, FillId)>,
        remember: impl FnOnce(&mut KeyState),
    ) {
        // Of the keys of a commit the first moves it.
        if self.written.load(Ordering::Relaxed) < write.lsn.0 {
            self.written.fetch_max(write.lsn.0, Ordering::Relaxed);
        }
        self.change(key, |state| {
            remember(state);
            if let Some(extra) = state.existing_extra() {
                extra.draining = !extra.in_flight.is_empty();
                draining.extend(extra.in_flight.iter().map(|fill| (key, *fill)));
            }
        });
    }

    /// Fences every key of these guards (TRUNCATE). All fills in flight are added to `draining`: which of them
    /// are the guards' is not known here, and a TRUNCATE is rare.
    pub fn write_guards(&self, guards: &[GuardId], write: Write, draining: &mut Vec<(KeyHash, FillId)>) {
        self.written.fetch_max(write.lsn.0, Ordering::Relaxed);
        for whole in guards.iter().filter_map(|guard| self.guards.get(usize::from(guard.0))) {
            lock(&whole.state).write(write, self.floor());
            // A fill reads this while it holds its key's lock; the walk below takes every lock after this
            // store. So each fill either is judged against the write or is found by the walk.
            whole.last.fetch_max(write.lsn.0, Ordering::SeqCst);
            self.last_whole.fetch_max(write.lsn.0, Ordering::SeqCst);
        }
        self.in_flight(draining);
    }

    /// These guards begin here: what was written before was not fenced. Evidence of one of their keys must have seen
    /// all of it, as if each had been written here, by more transactions than can be remembered.
    ///
    /// To be called before any fill is judged by them, and before anything from here on counts as settled.
    pub fn begin_guards(&self, guards: &[GuardId], lsn: Lsn) {
        self.written.fetch_max(lsn.0, Ordering::Relaxed);
        for whole in guards.iter().filter_map(|guard| self.guards.get(usize::from(guard.0))) {
            lock(&whole.state).begin(lsn, self.floor());
            whole.last.fetch_max(lsn.0, Ordering::SeqCst);
            self.last_whole.fetch_max(lsn.0, Ordering::SeqCst);
        }
    }

    /// Every fill in flight, marked as waited for.
    pub fn in_flight(&self, draining: &mut Vec<(KeyHash, FillId)>) {
        self.keys.each(|key, state| {
            if let Some(extra) = state.existing_extra() {
                extra.draining |= !extra.in_flight.is_empty();
                draining.extend(extra.in_flight.iter().map(|fill| (key, *fill)));
            }
        });
    }

    /// Takes what the sources were seen to have settled.
    pub fn settle(&self, settled: &Settled, now: Millis) {
        let mut past = write(&self.past);
        past.push(settled, now);
        let old_enough = now.checked_sub(self.limits.history).and_then(|then| past.settled_before(then));
        if let Some(lsn) = old_enough {
            self.floor.fetch_max(lsn.0, Ordering::SeqCst);
        }
        past.forget(self.floor());
        let sources = settled.sources.map_or(SOURCE_LOST, u64::from);
        if self.sources.load(Ordering::SeqCst) != sources {
            // A lease must not carry the new generation with the old position: void first.
            self.sources.store(SOURCE_LOST, Ordering::SeqCst);
        }
        self.settled.store(settled.lsn.0, Ordering::SeqCst);
        self.sources.store(sources, Ordering::SeqCst);
    }

    /// Until then no lease counts, because a predecessor may have answered misses that nobody here remembers, and whose
    /// fills may come by any connection: they could not object. To be called before the first fill, with the time at
    /// which the last of those misses ends. Misses are remembered meanwhile, and other evidence counts as ever.
    pub fn distrust_leases(&self, until: Millis) {
        self.distrusted.fetch_max(until, Ordering::SeqCst);
    }

    /// Until then no evidence counts that a fill brings along, and no version that is new: the database has gone over to a
    /// history that lacks commits of the one before, as a standby does that is promoted. Positions and transaction ids are
    /// given out again there, so evidence from before can look newer than all there is. It does not say which history it
    /// is of. To be called with the time at which the fills end that were read before.
    pub fn distrust_evidence(&self, until: Millis) {
        self.abandoned.fetch_max(until, Ordering::SeqCst);
    }

    /// Any key may have a cap of a predecessor's, which nobody here remembers. Within twice the longest cap each key has a
    /// moment that no command makes it live beyond: so what was capped lives twice as long at most, and the keys that are
    /// kept alive by EXPIRE do not all end at once.
    ///
    /// The moment must not depend on the command: a limit that began anew with each of them would be no limit. Nor does any
    /// single command add more than the longest cap.
    pub fn distrust_lives(&self, now: Millis) {
        self.unknown_caps.fetch_max(now + self.limits.longest_cap, Ordering::SeqCst);
    }

    /// What is left until that moment, which is at the earliest when the last unknown cap is due; the longest cap at most.
    fn unknown_cap(&self, key: KeyHash, now: Millis) -> Option<Millis> {
        let (due, longest) = (self.unknown_caps.load(Ordering::SeqCst), self.limits.longest_cap);
        let later = key.0.checked_rem(longest)?;
        (due > 0).then_some(due + later).filter(|due| *due > now).map(|due| (due - now).min(longest))
    }

    /// Grants a lease: a read of this key was answered as a miss on this connection. To be called after the
    /// answer came from Redis and before it goes to the client.
    pub fn miss(&self, key: KeyHash, conn: ConnId, now: Millis) {
        let until = now + self.limits.lease_ttl;
        if self.lease_count.load(Ordering::Relaxed) >= self.limits.max_leases {
            // An older miss that nobody remembers could not object. So for as long as this one could have, no
            // lease of its key counts.
            self.ungranted_slot(key).fetch_max(until, Ordering::SeqCst);
            return;
        }
        self.change(key, |state| {
            let (lease, written) = self.lease(state, conn, until);
            let leases = &mut state.extra().leases;
            leases.expire(now);
            leases.grant(lease, written);
        });
    }

    /// Whether a fill of this key can be expected from somebody else: one is in flight, or another connection's miss,
    /// answered within the last `within` milliseconds, waits for its fill.
    pub fn is_being_filled(&self, key: KeyHash, conn: ConnId, now: Millis, within: Millis) -> bool {
        let until = now.saturating_sub(within) + self.limits.lease_ttl;
        self.keys.get(key).is_some_and(|state| state.is_being_filled(conn, until))
    }

    /// A lease of now, and what is known of the key's writes.
    pub(super) fn lease(&self, state: &KeyState, conn: ConnId, until: Millis) -> (Lease, Written) {
        // The generation before the position: if a source is lost in between, the lease is void.
        let sources = self.sources();
        let lease = Lease { conn, lsn: self.settled(), sources, until, used: Use::Open, count: 1 };
        // And the writes after it: each of those that are settled is known.
        let key = self.floor().max(state.last(Lsn(0)).unwrap_or_default());
        let whole = Lsn(self.last_whole.load(Ordering::SeqCst));
        (lease, Written { key, any: key.max(whole) })
    }

    /// Judges a fill and, if `rule` lets it in, registers it as in flight, in one step. A fill that was let
    /// in must be ended with [`Fence::answered`] or [`Fence::finish`], once Redis has answered it or can no longer
    /// execute it.
    ///
    /// A cap may come back shorter than `rule` said, and a part of a value that is capped gets what is left of that.
    pub fn admit(
        &self,
        key: KeyHash,
        fill: &Fill<'_>,
        now: Millis,
        rule: impl FnOnce(Verdict) -> Ruling,
    ) -> (Verdict, Ruling) {
        self.change(key, |state| {
            let doubt = self.doubt(key, now);
            let (vouched, place) = self.vouch(state, fill, now);
            let verdict = self.judge(state, fill, vouched.unless(doubt), now);
            let ruling = rule(verdict);
            if let Some(place) = place {
                // Also where the client named its evidence: the fill answers this miss, which must not be
                // left to a later write that saw none.
                state.extra().leases.use_up(place, fill, ruling != Ruling::Refuse, doubt.is_some());
            }
            if ruling == Ruling::Refuse {
                return (verdict, ruling);
            }
            let ruling = self.cap(state, key, fill, ruling, now);
            state.extra().in_flight.push(fill.id);
            (verdict, ruling)
        })
    }

    /// Remembers the cap of a fill that is let in.
    fn cap(
        &self,
        state: &mut KeyState,
        key: KeyHash,
        fill: &Fill<'_>,
        ruling: Ruling,
        now: Millis,
    ) -> Ruling {
        let ttl = match (ruling, state.caps().and_then(|caps| caps.limit(now))) {
            (Ruling::Cap(ttl), _) => ttl,
            (ruling, None) => return ruling,
            // Fresh, and added to what is capped: the value as a whole is as good as its worst part. Commands that add
            // leave the TTL as it is, but a script does as it likes.
            // What is due is left a millisecond: a fill that is rewritten cannot carry a TTL of 0.
            (_, Some(left)) if fill.part => left.max(1),
            (ruling, Some(_)) => {
                let extra = state.extra();
                let alone = extra.in_flight.is_empty();
                extra.caps.iter_mut().for_each(|caps| caps.let_in(fill.id, alone));
                return ruling;
            }
        };
        if state.caps().is_none() && self.cap_count.load(Ordering::Relaxed) >= self.limits.max_leases {
            let until = now.saturating_add(ttl).saturating_add(UNCAPPED_GRACE);
            slot(&self.uncapped, key).fetch_max(until, Ordering::SeqCst);
            return Ruling::Cap(ttl);
        }
        let extra = state.extra();
        let caps = extra.caps.get_or_insert_default();
        caps.let_in(fill.id, extra.in_flight.is_empty());
        Ruling::Cap(caps.cap(fill.id, ttl, fill.part, now))
    }

    /// Whether the key may be capped, so that no command may make it live longer.
    pub fn is_capped(&self, key: KeyHash, now: Millis) -> bool {
        let remembered = |state: &KeyState| state.caps().is_some_and(|caps| caps.limit(now).is_some());
        let unknown = self.is_uncapped(key, now) || self.unknown_cap(key, now).is_some();
        unknown || self.keys.get(key).is_some_and(|state| remembered(&state))
    }

    /// A command that changes how long the key lives is about to be sent: for how many milliseconds the key may live, if
    /// it is capped. To be ended as a fill is.
    pub fn expires(&self, key: KeyHash, id: FillId, now: Millis) -> Option<Millis> {
        self.change(key, |state| {
            // Under the lock: a fill that is let in later finds the command, or its cap was there before.
            let unknown = self.is_uncapped(key, now);
            let own = state.extra().caps.get_or_insert_default().expires(id, unknown, now);
            own.into_iter().chain(self.unknown_cap(key, now)).min()
        })
    }

    /// Redis has answered a fill, or a command of [`Fence::expires`].
    ///
    /// `replaced`: by a fill that took the place of whatever was there.
    pub fn answered(&self, key: KeyHash, id: FillId, replaced: bool, now: Millis) -> Answered {
        self.change(key, |state| {
            let unknown = self.is_uncapped(key, now);
            let Some(extra) = state.existing_extra() else { return Answered::default() };
            let overtaken = extra.caps.as_mut().is_some_and(|caps| caps.answered(id, replaced, unknown, now));
            Answered { waited_for: extra.end(id), overtaken }
        })
    }

    fn is_uncapped(&self, key: KeyHash, now: Millis) -> bool {
        slot(&self.uncapped, key).load(Ordering::SeqCst) > now
    }

    /// Ends a fill that Redis will not answer: it was not sent, or Redis can no longer execute it and its key was deleted.
    /// True if somebody waits for that.
    pub fn finish(&self, key: KeyHash, fill: FillId) -> bool {
        self.change(key, |state| {
            let Some(extra) = state.existing_extra() else { return false };
            extra.caps.iter_mut().for_each(|caps| caps.end(fill));
            extra.end(fill)
        })
    }

    /// Whether a fill has not ended.
    pub fn is_in_flight(&self, key: KeyHash, fill: FillId) -> bool {
        self.keys.get(key).is_some_and(|state| state.is_in_flight(fill))
    }

    /// A look at what is remembered of a key, which changes nothing.
    pub(super) fn look<R>(&self, key: KeyHash, look: impl FnOnce(&KeyState) -> R) -> R {
        match self.keys.get(key) {
            Some(state) => look(&state),
            None => look(&KeyState::default()),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether a miss that is answered now would be remembered.
    pub(super) fn has_room_for_leases(&self) -> bool {
        self.lease_count.load(Ordering::Relaxed) < self.limits.max_leases
    }

    /// Since when a write has been visible on every source.
    pub(super) fn settled_at(&self, lsn: Lsn) -> Option<Millis> {
        read(&self.past).settled_at(lsn)
    }

    fn ungranted_slot(&self, key: KeyHash) -> &AtomicU64 {
        slot(&self.ungranted, key)
    }

    pub(super) fn sources(&self) -> Option<u32> {
        u32::try_from(self.sources.load(Ordering::SeqCst)).ok()
    }

    /// The position below which per-key history is gone; the highest there is before the first [`Fence::restart`].
    pub fn floor(&self) -> Lsn {
        Lsn(self.floor.load(Ordering::SeqCst))
    }

    /// Where this history began: positions of another one are not comparable with its own.
    pub fn began(&self) -> Lsn {
        Lsn(self.start.load(Ordering::SeqCst))
    }

    /// What a lease granted now is worth.
    pub fn settled(&self) -> Lsn {
        Lsn(self.settled.load(Ordering::SeqCst))
    }

    /// For how long data that does not contain the write at `lsn` has been out of date on every source, in milliseconds.
    pub fn outdated_for(&self, lsn: Lsn, now: Millis) -> Millis {
        let past = read(&self.past);
        past.settled_at(lsn).map_or(0, |at| now.saturating_sub(at))
    }

    /// `Size::leases`, counted one by one.
    #[cfg(test)]
    pub(super) fn leases_by_walk(&self) -> usize {
        self.keys.iter().map(|state| state.leases()).sum()
    }

    /// How full the table is.
    pub fn size(&self) -> Size {
        let entries = self.entry_count.load(Ordering::Relaxed);
        let keys = self.written_keys.load(Ordering::Relaxed);
        let leases = self.lease_count.load(Ordering::Relaxed);
        let cuts = lock(&self.cuts).at.len();
        let caps = self.cap_count.load(Ordering::Relaxed);
        let extras = leases + self.version_count.load(Ordering::Relaxed);
        let extras =
            extras * (size_of::<Extra>() + 16) + caps * (size_of::<Extra>() + size_of::<Caps>() + 32);
        let bytes = entries * ENTRY_BYTES + extras + (2 * UNGRANTED_SLOTS + cuts) * 8;
        Size { keys, leases, caps, bytes }
    }
}

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fence")
            .field("floor", &self.floor())
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}
