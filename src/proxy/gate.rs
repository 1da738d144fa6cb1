//! The gate: what happens to reads and fills of guarded keys. Shared by all threads; what they contend for
//! is the fence's table alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::buffered::Buffered;
use crate::admin::AdminSource;
use crate::audit::Auditor;
use crate::cache::{AbandonedFill, CacheState, Endpoint, Fate, Upstreams};
use crate::command::{CommandTable, FillForm};
use crate::config::{self, LostFills, LostReads, OnStale};
use crate::failpoint::{self, Point};
use crate::feed::{FeedState, Positions};
use crate::fence::{
    ConnId, Evidence, Fence, Fill, FillId, LeaseRule, Millis, Ruling, Stale, Unproven, Verdict, VersionClaim,
};
use crate::guard::{GuardId, GuardList, GuardedKey, Guards, key_hash};
use crate::metrics::{self, Metrics};
use crate::position::Lsn;
use crate::refusals::{Refusals, Refused};

/// Everything a session needs to decide.
pub struct Gate {
    /// What is remembered of recent writes.
    pub fence: Arc<Fence>,
    /// Which keys are guarded.
    pub guards: Arc<ArcSwap<Guards>>,
    /// What the upstream's commands are.
    pub commands: Arc<ArcSwap<CommandTable>>,
    /// What holds for keys that no guard covers and that were fenced by name.
    pub named: config::Guard,
    /// What the sources show.
    pub positions: Arc<Positions>,
    /// The proxy's account of itself.
    pub account: Arc<dyn AdminSource>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is told of refused fills.
    pub refusals: Arc<Refusals>,
    /// Looks at hits.
    pub auditor: Arc<Auditor>,
    /// Whether the feed is lost.
    pub feed: Arc<FeedState>,
    /// Whether Redis is level with it.
    pub cache: Arc<CacheState>,
    /// The connections that carry fills.
    pub upstreams: Arc<Upstreams>,
    /// Where Redis is.
    pub address: Endpoint,
    /// What is held for all clients together.
    pub buffered: Buffered,
    /// Judge and count; change nothing.
    pub observe: bool,
    /// A fill can be newer than the feed: commits do not wait for the proxy.
    pub newer_counts: bool,
    /// The origin of the fence's clock.
    pub started: Instant,
}

/// What becomes of a fill of one key.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It goes to Redis as it came.
    Forward,
    /// It goes to Redis, to live for so many milliseconds at most.
    Cap(u64),
    /// It does not go to Redis.
    Refuse(Refusal),
}

impl Admission {
    /// For how many milliseconds a fill that is let in may live.
    fn ttl(&self) -> u64 {
        if let Self::Cap(ttl) = self { *ttl } else { u64::MAX }
    }
}

/// Why a fill was refused, and how it is answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the client gets.
    pub reply: config::Reply,
    /// The error, where errors are wanted: a code word and a sentence.
    pub error: String,
    /// What the key holds is deleted as well.
    pub delete: bool,
}

/// A fill of one key on its way through the gate.
pub struct Filling<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its hash and guards.
    pub guarded: &'a GuardedKey,
    /// Its number, if it is let in.
    pub id: FillId,
    /// The client.
    pub conn: ConnId,
    /// What the client said of its data's age.
    pub evidence: Option<&'a Evidence>,
    /// The version of the row that it was made from, as its payload or the client says.
    pub version: Option<VersionClaim>,
    /// The command.
    pub form: FillForm,
    /// What it puts in can be given a TTL by a command that follows it.
    pub can_cap: bool,
    /// The key is in the db that the command goes to, as far as can be known, so that `max_ttl` is meant for what it does
    /// there. A script that could go to another db is judged by the keys of all.
    pub in_reach: bool,
}

/// What the guards of a key ask for, taken together: of each setting the strictest.
pub(super) struct Policy {
    reply: config::Reply,
    on_stale: config::OnStale,
    stale_ttl: u64,
    pub(super) max_ttl: u64,
    unproven: config::Unproven,
    unproven_ttl: u64,
    pub(super) lease: LeaseRule,
    lost: Option<LostFills>,
    lost_ttl: u64,
    pub(super) broken: bool,
}

impl Gate {
    /// Now, on the fence's clock.
    pub fn now(&self) -> Millis {
        self.started.elapsed().as_millis() as Millis
    }

    /// The guards of a key in a db, if it has any. For most keys a walk over their first bytes. One that was fenced by
    /// name is judged as well, without a guard.
    pub fn guarded(&self, db: u32, key: &[u8]) -> Option<GuardedKey> {
        self.guarded_by(&self.guards.load(), db, key)
    }

    /// The same, of guards that are at hand: to look for them costs as much as to ask them.
    pub fn guarded_by(&self, guards: &Guards, db: u32, key: &[u8]) -> Option<GuardedKey> {
        let guards = guards.matching(db, key);
        if guards.is_empty() && !self.fence.has_names() {
            return None;
        }
        let hash = key_hash(db, key);
        (!guards.is_empty() || self.fence.is_named(hash)).then_some(GuardedKey { hash, db, guards })
    }

    /// Whether a source shows another history than the feed's: nobody knows which evidence is from there.
    pub fn sees_another_history(&self) -> bool {
        self.positions.sources().iter().any(|source| source.foreign.load(Ordering::SeqCst))
    }

    /// A read was answered. A miss grants a lease.
    pub fn read(&self, key: &GuardedKey, conn: ConnId, missed: bool) {
        for counters in self.metrics.guards(&key.guards) {
            if missed { counters.miss.inc() } else { counters.hit.inc() }
        }
        if missed {
            self.fence.miss(key.hash, conn, self.now());
            failpoint::pass(Point::Granted);
        }
    }

    /// Whether reads of a key of these guards, or of one that was fenced by name, are to be answered as misses without
    /// asking Redis: the feed is lost, and so wants one of them.
    pub fn bypasses(&self, guards: &GuardList) -> bool {
        let lost = self.is_lost();
        // In strict a guard that no longer hears of its table's commits may not serve what it has.
        let deaf = |guard: &GuardId| self.feed.is_strict() && self.feed.is_broken(*guard);
        if self.observe || !(lost || guards.iter().any(deaf)) {
            return false;
        }
        let all = self.guards.load();
        let bypassed = self.policies(&all, guards).any(|(guard, policy)| {
            (lost || guard.is_some_and(|guard| deaf(&guard)))
                && policy.when_feed_lost.reads == LostReads::Miss
        });
        if bypassed {
            self.metrics.guards(guards).for_each(|counters| counters.bypassed.inc());
        }
        bypassed
    }

    /// How long a miss of a key waits for somebody else's fill: the least that its guards say.
    pub fn patience(&self, guards: &Guards, key: &GuardedKey) -> Duration {
        if self.observe {
            return Duration::ZERO;
        }
        let patience = |guard| guards.get(guard).map(|guard| guard.policy.coalesce);
        key.guards.iter().filter_map(|guard| patience(*guard)).min().unwrap_or_default()
    }

    /// Decides on a fill. One that goes to Redis is in flight until [`Gate::finish`].
    pub fn admit(&self, guards: &Guards, filling: &Filling<'_>) -> Admission {
        let policy = self.policy(guards, &filling.guarded.guards);
        let now = self.now();
        let max_ttl = if filling.in_reach { policy.max_ttl } else { u64::MAX };
        let mut admission = Admission::Forward;
        let fill = Fill {
            id: filling.id,
            conn: filling.conn,
            guards: &filling.guarded.guards,
            evidence: filling.evidence,
            version: filling.version,
            lease: if filling.form.is_derived() { LeaseRule::Off } else { policy.lease },
            part: filling.form.is_part(),
        };
        let (verdict, ruling) = self.fence.admit(filling.guarded.hash, &fill, now, |verdict| {
            admission = policy.decide(verdict);
            if !filling.can_cap && admission.ttl().min(max_ttl) < u64::MAX {
                let error = "UNPROVEN a fill of another db than the client's cannot be given a TTL".into();
                admission = Admission::Refuse(Refusal { reply: policy.reply, error, delete: false });
            }
            match admission {
                Admission::Refuse(_) => Ruling::Refuse,
                Admission::Cap(ttl) if !self.observe => Ruling::Cap(ttl),
                _ => Ruling::Forward,
            }
        });
        self.count(guards, filling, verdict, &admission, now);
        if matches!(admission, Admission::Refuse(_)) {
            // Whoever waits for it waits in vain.
            self.upstreams.coalescing.ended(filling.guarded.hash);
        }
        if !matches!(admission, Admission::Refuse(_)) {
            failpoint::pass(Point::Admitted);
        }
        if self.observe {
            // Counted; let through. Nothing is deleted either, so nobody waits for the fills in flight.
            return Admission::Forward;
        }
        match (admission, ruling) {
            (Admission::Refuse(refusal), _) => Admission::Refuse(refusal),
            (_, Ruling::Cap(ttl)) => Admission::Cap(ttl.min(max_ttl)),
            _ if max_ttl < u64::MAX => Admission::Cap(max_ttl),
            _ => Admission::Forward,
        }
    }

    /// Whether something limits how long a key may live.
    pub fn limits(&self, key: &GuardedKey) -> bool {
        self.max_ttl(&key.guards) < u64::MAX || self.fence.is_capped(key.hash, self.now())
    }

    /// A command that changes how long a key lives is about to be sent. Returns for how many milliseconds the key may
    /// live, if that is limited. To be ended as a fill is.
    pub fn expires(&self, key: &GuardedKey, id: FillId) -> Option<u64> {
        let left = self.fence.expires(key.hash, id, self.now()).unwrap_or(u64::MAX);
        Some(left.min(self.max_ttl(&key.guards))).filter(|limit| *limit < u64::MAX)
    }

    fn max_ttl(&self, list: &GuardList) -> u64 {
        let guards = self.guards.load();
        let own = |guard: &GuardId| guards.get(*guard)?.policy.max_ttl.map(millis);
        list.iter().filter_map(own).min().unwrap_or(u64::MAX)
    }

    /// Commits are not known at once, or what they changed is not deleted at once.
    pub(super) fn is_lost(&self) -> bool {
        self.feed.is_lost() || self.feed.is_unguarded() || !self.cache.is_level()
    }

    /// What the guards of a key say, each; where there is none, what holds for keys that were fenced by name.
    fn policies<'a>(
        &'a self,
        guards: &'a Guards,
        list: &'a GuardList,
    ) -> impl Iterator<Item = (Option<GuardId>, &'a config::Guard)> {
        let own = list.iter().filter_map(|id| Some((Some(*id), &guards.get(*id)?.policy)));
        own.chain(list.is_empty().then_some((None, &self.named)))
    }

    pub(super) fn policy(&self, guards: &Guards, list: &GuardList) -> Policy {
        let lost = self.is_lost();
        let mut policy = Policy {
            reply: config::Reply::Ok,
            on_stale: config::OnStale::Cap,
            stale_ttl: u64::MAX,
            max_ttl: u64::MAX,
            unproven: config::Unproven::Allow,
            unproven_ttl: u64::MAX,
            lease: LeaseRule::Key,
            lost: None,
            lost_ttl: u64::MAX,
            broken: false,
        };
        for (guard, own) in self.policies(guards, list) {
            policy.reply = stricter_reply(policy.reply, own.reply);
            policy.on_stale = stricter_on_stale(policy.on_stale, own.on_stale);
            if own.on_stale == config::OnStale::Cap {
                policy.stale_ttl = policy.stale_ttl.min(millis(own.stale_ttl));
            }
            policy.max_ttl = policy.max_ttl.min(own.max_ttl.map_or(u64::MAX, millis));
            policy.unproven = stricter_unproven(policy.unproven, own.unproven);
            policy.unproven_ttl = policy.unproven_ttl.min(own.unproven_ttl.as_millis() as u64);
            policy.lease = policy.lease.max(match own.lease {
                config::Lease::Connection => LeaseRule::Connection,
                config::Lease::Key => LeaseRule::Key,
                config::Lease::Off => LeaseRule::Off,
            });
            policy.broken |= guard.is_some_and(|guard| self.feed.is_broken(guard));
            if lost {
                let refuse =
                    policy.lost == Some(LostFills::Refuse) || own.when_feed_lost.fills == LostFills::Refuse;
                policy.lost = Some(if refuse { LostFills::Refuse } else { LostFills::Cap });
                policy.lost_ttl = policy.lost_ttl.min(own.when_feed_lost.fills_ttl.as_millis() as u64);
            }
        }
        policy
    }

    fn count(
        &self,
        guards: &Guards,
        filling: &Filling<'_>,
        verdict: Verdict,
        admission: &Admission,
        now: Millis,
    ) {
        let label = match verdict {
            Verdict::Fresh => metrics::Verdict::Fresh,
            Verdict::Stale(_) => metrics::Verdict::Stale,
            Verdict::Unproven(_) => metrics::Verdict::Unproven,
        };
        let action = match admission {
            Admission::Forward => metrics::Action::Forwarded,
            _ if self.observe => metrics::Action::Observed,
            Admission::Cap(_) => metrics::Action::Capped,
            Admission::Refuse(refusal) if refusal.delete => metrics::Action::Deleted,
            Admission::Refuse(_) => metrics::Action::Refused,
        };
        let age = match (admission, verdict) {
            (Admission::Refuse(_), Verdict::Stale(stale)) => {
                stale.position().map(|lsn| self.fence.outdated_for(lsn, now))
            }
            _ => None,
        };
        for counters in self.metrics.guards(&filling.guarded.guards) {
            counters.fills(label, action).inc();
            if let Some(age) = age {
                counters.stale_age.observe(age as f64 / 1000.0);
            }
        }
        if let Admission::Refuse(refusal) = admission {
            self.refusals.record(filling.key, |key| Refused {
                number: 0,
                at: 0,
                guard: labels(guards, &filling.guarded.guards),
                key,
                verdict: label.label(),
                action: action.label(),
                why: refusal.error.clone(),
                age,
                evidence: offered(filling),
                fence: held_against(verdict),
            });
        }
    }

    /// Ends fills, and commands that change how long keys live, which Redis has answered. `ok`: with `OK`.
    pub fn answered(&self, fills: impl IntoIterator<Item = AbandonedFill>, ok: bool) {
        let (mut waited_for, now) = (false, self.now());
        for fill in fills {
            let answered = self.fence.answered(fill.hash, fill.id, ok && fill.replaces, now);
            waited_for |= answered.waited_for;
            self.upstreams.coalescing.ended(fill.hash);
            if answered.overtaken {
                self.upstreams.abandon(Fate::Unfinished, vec![fill]);
            }
        }
        if waited_for {
            self.upstreams.ended.notify_waiters();
        }
    }

    /// Ends fills that were not sent.
    pub fn finish(&self, fills: &[AbandonedFill]) {
        let mut waited_for = false;
        for fill in fills {
            waited_for |= self.fence.finish(fill.hash, fill.id);
            self.upstreams.coalescing.ended(fill.hash);
        }
        if waited_for {
            self.upstreams.ended.notify_waiters();
        }
    }
}

impl Policy {
    pub(super) fn decide(&self, verdict: Verdict) -> Admission {
        let refuse = |error: String| Admission::Refuse(Refusal { reply: self.reply, error, delete: false });
        if self.broken {
            return refuse(
                "FENCE the guard is broken: its table no longer has what its templates need".into(),
            );
        }
        let stale = |why| match (self.on_stale, why, self.lost) {
            // One part alone is no better for a short life.
            (OnStale::Cap, why, lost) if why != Stale::Torn && lost != Some(LostFills::Refuse) => {
                Admission::Cap(self.stale_ttl.min(lost.map_or(u64::MAX, |_| self.lost_ttl)))
            }
            (on_stale, why, _) => Admission::Refuse(Refusal {
                reply: self.reply,
                error: format!("STALE {}", outdated(why)),
                delete: on_stale == OnStale::Delete,
            }),
        };
        match (verdict, self.lost) {
            (Verdict::Stale(why), None) => stale(why),
            // What is known to be stale is no better for the feed being lost. Before the feed has begun nothing
            // is known of any key.
            (Verdict::Stale(why), Some(_)) if why != Stale::BelowFloor(NOT_BEGUN) => stale(why),
            (_, Some(LostFills::Refuse)) => refuse("FENCE the feed is lost: nothing can be proven".into()),
            (_, Some(LostFills::Cap)) => Admission::Cap(self.lost_ttl),
            (Verdict::Fresh, None) => Admission::Forward,
            (Verdict::Unproven(why), None) => match (self.unproven, why) {
                (config::Unproven::Refuse, _) => refuse(format!("UNPROVEN {}", reason(why))),
                // Whatever is allowed without evidence: here there is some, and it speaks against the fill.
                (_, Unproven::OlderMiss | Unproven::VersionUnseen) => {
                    Admission::Cap(self.unproven_ttl.min(DOUBT_TTL))
                }
                (config::Unproven::Cap, _) => Admission::Cap(self.unproven_ttl),
                (config::Unproven::Allow, _) => Admission::Forward,
            },
        }
    }
}

/// The floor of a fence that has not begun.
pub(super) const NOT_BEGUN: Lsn = Lsn(u64::MAX);
/// The TTL, in milliseconds, of a fill that is either good or stale: that only an older miss objects to (one of two fills
/// that came in the wrong order), or that has the last write's version, where nobody saw what that write replaced. Long
/// enough to take the load of a hot key, short enough for the stale one.
const DOUBT_TTL: u64 = 1000;

pub(super) fn outdated(stale: Stale) -> String {
    match stale {
        Stale::Superseded(lsn) => format!("the fill's data does not contain the commit that ended at {lsn}"),
        Stale::NoEvidence(lsn) => {
            format!("the key changed at {lsn}, and no evidence says that the fill's data is newer")
        }
        Stale::BelowFloor(NOT_BEGUN) => "the feed has not begun".into(),
        Stale::BelowFloor(lsn) => {
            format!("the evidence is not past {lsn}, below which it is not remembered which keys changed")
        }
        Stale::Torn => "an earlier part of this value was refused".into(),
        Stale::Abandoned => {
            "the database has just gone over to another history, and the evidence may be of the one before"
                .into()
        }
    }
}

pub(super) fn reason(why: Unproven) -> &'static str {
    match why {
        Unproven::NoEvidence => "no evidence says how new the fill's data is",
        Unproven::OlderMiss => "an older miss of the key is outstanding, whose data this may be",
        Unproven::VersionUnseen => {
            "it has the last write's version, but which version that write replaced was not seen: it may be the same"
        }
        Unproven::SourceLost => "a source was lost since the miss that led to this fill",
        Unproven::Predecessor => "the proxy has just taken over, and does not know its predecessor's misses",
    }
}

fn stricter_reply(a: config::Reply, b: config::Reply) -> config::Reply {
    let rank = |reply: config::Reply| match reply {
        config::Reply::Ok => 0,
        config::Reply::Nil => 1,
        config::Reply::Error => 2,
    };
    if rank(b) > rank(a) { b } else { a }
}

/// One that deletes also refuses, and one that refuses lets nothing in, however briefly.
fn stricter_on_stale(a: OnStale, b: OnStale) -> OnStale {
    let rank = |on_stale: OnStale| match on_stale {
        OnStale::Cap => 0,
        OnStale::Refuse => 1,
        OnStale::Delete => 2,
    };
    if rank(b) > rank(a) { b } else { a }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn stricter_unproven(a: config::Unproven, b: config::Unproven) -> config::Unproven {
    let rank = |unproven: config::Unproven| match unproven {
        config::Unproven::Allow => 0,
        config::Unproven::Cap => 1,
        config::Unproven::Refuse => 2,
    };
    if rank(b) > rank(a) { b } else { a }
}

/// The tables of a key's guards.
fn labels(guards: &Guards, list: &GuardList) -> String {
    if list.is_empty() {
        return metrics::MESSAGE.into();
    }
    let labels: Vec<&str> = list.iter().filter_map(|id| Some(guards.get(*id)?.label.as_str())).collect();
    labels.join(", ")
}

/// What a fill offered as proof, in words.
fn offered(filling: &Filling<'_>) -> String {
    match (filling.evidence, filling.version) {
        (Some(Evidence::Snapshot(snapshot)), _) => format!("the snapshot {}", cut(&snapshot.to_string())),
        (Some(Evidence::Lsn(lsn)), _) => format!("a replica's position {lsn}"),
        (None, Some(version)) => format!("version {}, or a miss before it", version.version.0),
        (None, None) => "a miss before it, if there was one".into(),
    }
}

/// Snapshots name every transaction in progress.
fn cut(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

/// What a fill was held against.
fn held_against(verdict: Verdict) -> Option<String> {
    match verdict {
        Verdict::Stale(Stale::Superseded(lsn) | Stale::NoEvidence(lsn)) => {
            Some(format!("the write at {lsn}"))
        }
        Verdict::Stale(Stale::BelowFloor(NOT_BEGUN)) => None,
        Verdict::Stale(Stale::BelowFloor(lsn)) => Some(format!("the floor {lsn}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(on_stale: OnStale, lost: Option<LostFills>) -> Policy {
        Policy {
            reply: config::Reply::Ok,
            on_stale,
            stale_ttl: 1_000,
            max_ttl: u64::MAX,
            unproven: config::Unproven::Cap,
            unproven_ttl: 60_000,
            lease: LeaseRule::Connection,
            lost,
            lost_ttl: 300,
            broken: false,
        }
    }

    /// What is decided, in short.
    fn decided(policy: &Policy, verdict: Verdict) -> String {
        match policy.decide(verdict) {
            Admission::Forward => "forward".into(),
            Admission::Cap(ttl) => format!("cap {ttl}"),
            Admission::Refuse(Refusal { delete: true, .. }) => "delete".into(),
            Admission::Refuse(refusal) => {
                format!("refuse {}", refusal.error.split(' ').next().unwrap_or_default())
            }
        }
    }

    #[test]
    fn a_stale_fill_is_what_on_stale_says() {
        use OnStale::{Cap, Delete, Refuse};
        let stale = Verdict::Stale(Stale::Superseded(Lsn(7)));
        for (on_stale, lost, expected) in [
            (Refuse, None, "refuse STALE"),
            (Cap, None, "cap 1000"),
            (Delete, None, "delete"),
            (Cap, Some(LostFills::Cap), "cap 300"),
            (Cap, Some(LostFills::Refuse), "refuse STALE"),
            (Delete, Some(LostFills::Cap), "delete"),
        ] {
            assert_eq!(decided(&policy(on_stale, lost), stale), expected, "{on_stale:?} {lost:?}");
        }
        // Half a value does not get better by a short life.
        assert_eq!(decided(&policy(Cap, None), Verdict::Stale(Stale::Torn)), "refuse STALE");
    }

    #[test]
    fn on_stale_says_nothing_of_other_verdicts() {
        let broken = Policy { broken: true, ..policy(OnStale::Delete, None) };
        assert_eq!(decided(&broken, Verdict::Stale(Stale::Torn)), "refuse FENCE");
        let lost = policy(OnStale::Delete, Some(LostFills::Cap));
        assert_eq!(decided(&lost, Verdict::Stale(Stale::BelowFloor(NOT_BEGUN))), "cap 300");
        assert_eq!(decided(&lost, Verdict::Fresh), "cap 300");
        let delete = policy(OnStale::Delete, None);
        assert_eq!(decided(&delete, Verdict::Fresh), "forward");
        assert_eq!(decided(&delete, Verdict::Unproven(Unproven::NoEvidence)), "cap 60000");
        assert_eq!(decided(&delete, Verdict::Unproven(Unproven::OlderMiss)), "cap 1000");
    }

    #[test]
    fn of_several_guards_the_strictest_counts() {
        use OnStale::{Cap, Delete, Refuse};
        for (a, b, strictest) in [(Cap, Refuse, Refuse), (Refuse, Delete, Delete), (Delete, Cap, Delete)] {
            assert_eq!(stricter_on_stale(a, b), strictest);
            assert_eq!(stricter_on_stale(b, a), strictest);
        }
    }
}
