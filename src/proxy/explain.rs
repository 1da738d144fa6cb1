//! What the gate would do, and why: `FENCE EXPLAIN` and `/explain`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::gate::{Admission, Gate, NOT_BEGUN, Policy, outdated, reason};
use crate::admin::Explain;
use crate::feed::SourceState;
use crate::fence::{ConnId, Evidence, KeyAccount, Millis, Question, Shown, SourceKind, Verdict};
use crate::guard::{Guard, GuardList, GuardedKey, Guards, VersionKind, key_hash};
use crate::position::Lsn;
use crate::refusals::printable;

/// Templates that are named where none matches a key.
const NEAREST: usize = 3;

/// What is known of a key, and what would become of fills.
#[derive(Debug)]
pub struct Explanation {
    db: u32,
    key: String,
    /// Label and templates of each guard.
    guards: Vec<(String, Vec<String>)>,
    /// It is judged because it was fenced by name.
    named: bool,
    /// Templates that begin as the key does, where none matches.
    nearest: Vec<String>,
    account: KeyAccount,
    /// What the version in the account is.
    version_kind: Option<VersionKind>,
    sources: Vec<Source>,
    /// Why not everything is as it should be: the feed, Redis, the guards.
    troubles: Vec<String>,
    fills: Vec<Foretold>,
}

#[derive(Debug)]
struct Source {
    name: String,
    kind: SourceKind,
    position: Lsn,
    in_sight: bool,
    error: Option<String>,
    /// A miss may be filled from it.
    shows_key: bool,
}

/// What a fill would get.
#[derive(Debug)]
struct Foretold {
    /// What it comes with, for programs and for people.
    evidence: (&'static str, &'static str),
    verdict: &'static str,
    action: &'static str,
    ttl_ms: Option<u64>,
    why: String,
}

/// A source and the evidence that is to be had there: what it was last seen to show.
struct Evident {
    state: Arc<SourceState>,
    shown: Shown,
    /// Its place among all evidence.
    place: Option<usize>,
}

impl Gate {
    /// What is known of a key, told to a connection.
    pub fn explain_to(&self, db: u32, key: &[u8], conn: ConnId) -> Explanation {
        self.explain_key(db, key, Some(conn))
    }

    /// The names of the sources on which every remembered write of a key is visible: a read there is as new as a fill
    /// has to be. None while nothing can be proven.
    pub fn sources_for(&self, db: u32, key: &[u8]) -> Vec<String> {
        let all = self.guards.load();
        let guards = all.matching(db, key);
        let named = guards.is_empty() && self.fence.is_named(key_hash(db, key));
        if guards.is_empty() && !named {
            return self.positions.sources().iter().map(|source| source.name.clone()).collect();
        }
        let policy = self.policy(&all, &guards);
        if self.is_lost() || policy.broken {
            return Vec::new();
        }
        let (shown, evidence, _) = self.evident();
        let account = self.account_of(db, key, None, &guards, &policy, &evidence);
        let shown = shown.iter().filter(|source| is_shown(source, &account));
        shown.map(|source| source.state.name.clone()).collect()
    }

    /// What each source was last seen to show, as evidence; behind it the primary's snapshot, listed or not.
    fn evident(&self) -> (Vec<Evident>, Vec<Evidence>, Option<usize>) {
        let (shown, snapshot) = self.positions.shown();
        let mut evidence = Vec::with_capacity(shown.len() + 1);
        let mut put = |found: Evidence| {
            evidence.push(found);
            evidence.len() - 1
        };
        let foreign = self.sees_another_history();
        let sources = shown
            .into_iter()
            .map(|(state, shown)| {
                let found = match (shown.in_sight && !foreign, shown.kind) {
                    (false, _) => None,
                    (true, SourceKind::Primary) => shown.snapshot.as_deref().cloned().map(Evidence::Snapshot),
                    (true, SourceKind::Replica) => Some(Evidence::Lsn(shown.position)),
                };
                let place = found.map(&mut put);
                Evident { state, shown, place }
            })
            .collect();
        let primary =
            snapshot.filter(|_| !foreign).map(|snapshot| put(Evidence::Snapshot((*snapshot).clone())));
        (sources, evidence, primary)
    }

    fn account_of(
        &self,
        db: u32,
        key: &[u8],
        conn: Option<ConnId>,
        guards: &GuardList,
        policy: &Policy,
        evidence: &[Evidence],
    ) -> KeyAccount {
        let question = Question { key: key_hash(db, key), conn, guards, lease: policy.lease, evidence };
        self.fence.explain(&question, self.now())
    }

    fn explain_key(&self, db: u32, key: &[u8], conn: Option<ConnId>) -> Explanation {
        let guards = self.guards.load();
        let list = guards.matching(db, key);
        let named = list.is_empty() && self.fence.is_named(key_hash(db, key));
        let policy = self.policy(&guards, &list);
        let (shown, evidence, primary) = self.evident();
        let mut account = self.account_of(db, key, conn, &list, &policy, &evidence);
        let guarded = GuardedKey { hash: key_hash(db, key), db, guards: list.clone() };
        let version = guards.version_of(key, &guarded);
        account.version = account.version.zip(version).map(|((last, vouches), rule)| {
            // As for a fill: where more than one row may feed the key, a version only objects.
            (last, vouches && rule.is_one_row)
        });
        let is_judged = named || !list.is_empty();
        let fills = if is_judged { self.foretell(&account, &policy, primary) } else { Vec::new() };
        let sources = shown.iter().map(|evident| Source {
            name: evident.state.name.clone(),
            kind: evident.state.kind,
            position: evident.shown.position,
            in_sight: evident.shown.in_sight,
            error: evident.state.error(),
            shows_key: !is_judged || is_shown(evident, &account),
        });
        let own = list.iter().filter_map(|id| guards.get(*id));
        Explanation {
            db,
            key: printable(key),
            guards: own.map(|guard| (guard.label.clone(), guard.policy.keys.clone())).collect(),
            named,
            nearest: if list.is_empty() { nearest(&guards, db, key) } else { Vec::new() },
            sources: sources.collect(),
            troubles: self.troubles(&guards, &list),
            version_kind: version.map(|rule| rule.kind),
            fills,
            account,
        }
    }

    fn foretell(&self, account: &KeyAccount, policy: &Policy, primary: Option<usize>) -> Vec<Foretold> {
        let by_snapshot = primary.and_then(|place| account.by_evidence.get(place)).copied();
        [
            (("own_miss", "after this connection's own miss"), account.by_own_miss),
            (("none", "without a miss and without ASOF"), Some(account.without)),
            (("new_miss", "after a miss answered now"), Some(account.by_new_miss)),
            (("primary_snapshot", "ASOF a snapshot of the primary of now (as last polled)"), by_snapshot),
        ]
        .into_iter()
        .filter_map(|(evidence, verdict)| Some(self.foretold(evidence, verdict?, policy)))
        .collect()
    }

    fn foretold(
        &self,
        evidence: (&'static str, &'static str),
        verdict: Verdict,
        policy: &Policy,
    ) -> Foretold {
        let limit = Some(policy.max_ttl).filter(|limit| *limit < u64::MAX);
        let (action, ttl_ms, why) = match policy.decide(verdict) {
            Admission::Forward => ("forwarded", limit, String::new()),
            Admission::Cap(ttl) => ("capped", Some(ttl.min(policy.max_ttl)), String::new()),
            Admission::Refuse(refusal) if refusal.delete => ("deleted", None, refusal.error),
            Admission::Refuse(refusal) => ("refused", None, refusal.error),
        };
        let (action, ttl_ms) = match action {
            "forwarded" if self.observe => (action, None),
            _ if self.observe => ("observed", None),
            _ => (action, ttl_ms),
        };
        let (verdict, because) = match verdict {
            Verdict::Fresh => ("fresh", String::new()),
            Verdict::Stale(why) => ("stale", outdated(why)),
            Verdict::Unproven(why) => ("unproven", reason(why).to_owned()),
        };
        let why = if why.is_empty() { because } else { why };
        Foretold { evidence, verdict, action, ttl_ms, why }
    }

    fn troubles(&self, guards: &Guards, list: &GuardList) -> Vec<String> {
        let mut troubles = Vec::new();
        if self.feed.is_lost() {
            let why = self.feed.error().unwrap_or_else(|| "nothing was heard, or it lags".into());
            troubles.push(format!("the feed is lost ({why}): when_feed_lost applies"));
        }
        if let Some(why) = self.feed.strict().and_then(|strict| strict.why_not()) {
            troubles
                .push(format!("the strict contract is not in force ({why}): reads miss, fills are refused"));
        }
        let sources = self.positions.sources();
        let foreign = sources.iter().filter(|source| source.foreign.load(Ordering::SeqCst));
        troubles.extend(foreign.map(|source| {
            format!("source {} shows another history: no ASOF and no version is believed", source.name)
        }));
        if !self.cache.is_level() {
            troubles.push("Redis is away or not level with the feed: when_feed_lost applies".into());
        }
        let broken = list.iter().filter(|id| self.feed.is_broken(**id)).filter_map(|id| guards.get(*id));
        troubles
            .extend(broken.map(|guard| format!("guard {} is broken: its fills are refused", guard.label)));
        troubles
    }
}

impl Explain for Gate {
    fn explain(&self, db: Option<u32>, key: &[u8]) -> Value {
        self.explain_key(db.unwrap_or(self.address.db), key, None).json()
    }
}

/// Whether a read on a source would be new enough for a fill.
fn is_shown(source: &Evident, account: &KeyAccount) -> bool {
    source.place.and_then(|place| account.by_evidence.get(place)) == Some(&Verdict::Fresh)
}

/// The templates that share most with the key's beginning, with their db where that is another one.
fn nearest(guards: &Guards, db: u32, key: &[u8]) -> Vec<String> {
    let shared = |text: &[u8]| text.iter().zip(key).take_while(|(a, b)| a == b).count();
    let of = |guard: &Guard| {
        let elsewhere = if guard.db == db { String::new() } else { format!(", in db {}", guard.db) };
        let named = |text: &str| format!("{text} (of {}{elsewhere})", guard.label);
        let templates = guard.templates.iter();
        templates.map(|t| (shared(t.prefix()), named(t.text()))).collect::<Vec<_>>()
    };
    let mut all: Vec<(usize, String)> =
        guards.iter().flat_map(of).filter(|(shared, _)| *shared > 0).collect();
    all.sort_by_key(|(shared, _)| std::cmp::Reverse(*shared));
    all.into_iter().take(NEAREST).map(|(_, text)| text).collect()
}

impl Explanation {
    /// In words, a fact a line.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("key: {} in db {}", self.key, self.db)];
        lines.extend(self.guard_lines());
        lines.extend(self.history_lines());
        for source in &self.sources {
            lines.push(source.line());
        }
        lines.extend(self.troubles.iter().map(|trouble| format!("trouble: {trouble}")));
        if self.troubles.is_empty() {
            lines.push("feed: streaming, and Redis is level with it".into());
        }
        lines.extend(self.fills.iter().map(Foretold::line));
        lines
    }

    fn guard_lines(&self) -> Vec<String> {
        if self.named {
            return vec!["guard: none; judged because cachefence.fence() named it".into()];
        }
        if self.guards.is_empty() {
            let nearest = match self.nearest.as_slice() {
                [] => "no template begins as it does".into(),
                some => format!("the nearest templates are {}", some.join("; ")),
            };
            return vec![format!("guard: none, so its fills are not judged; {nearest}")];
        }
        let line = |(label, keys): &(String, Vec<String>)| format!("guard: {label} ({})", keys.join(", "));
        self.guards.iter().map(line).collect()
    }

    fn history_lines(&self) -> Vec<String> {
        let account = &self.account;
        let mut lines = Vec::new();
        lines.push(match account.last {
            None => "last write: none is remembered".into(),
            Some(last) => {
                let by = match account.own {
                    Some(own) if own.lsn == last => format!("transaction {}", own.xid.0),
                    _ => "of the whole table: TRUNCATE, or a guard that was broken".into(),
                };
                let seen = match account.settled_for {
                    Some(age) => format!("visible on every source for {}", seconds(age)),
                    None => "not yet visible on every source".into(),
                };
                format!("last write: ended at {last} ({by}), {seen}")
            }
        });
        if account.writes > 1 {
            lines.push(format!("writes remembered: {}", account.writes));
        }
        if let Some((version, vouches)) = account.version {
            let unit = match self.version_kind {
                Some(VersionKind::Integer) | None => "",
                Some(VersionKind::Timestamp | VersionKind::TimestampTz) => " microseconds since 1970",
            };
            let last = version.0;
            lines.push(if vouches {
                format!("version: {last}{unit}; a fill made from it is fresh, and from a smaller one stale")
            } else {
                format!(
                    "version: {last}{unit}, which was not seen to grow with every write, or is not of the key's only \
                     row: a fill made from it needs other evidence, and from a smaller one is stale"
                )
            });
        }
        lines.push(self.misses_line());
        if account.in_flight > 0 {
            lines.push(format!("fills on their way to Redis: {}", account.in_flight));
        }
        lines.push(match account.floor {
            NOT_BEGUN => "floor: the feed has not begun, so nothing can be proven".into(),
            floor => format!("floor: {floor}; evidence that is not past it proves nothing"),
        });
        let sight = if account.in_sight { "" } else { "; a source is out of sight, so no miss counts" };
        lines.push(format!("settled: {} is visible on every source{sight}", account.settled));
        lines
    }

    fn misses_line(&self) -> String {
        let misses = &self.account.misses;
        if misses.doubted {
            return "misses: none counts for now, there may be some that are not remembered".into();
        }
        if misses.open == 0 && misses.spent == 0 {
            return "misses: none is outstanding".into();
        }
        let oldest = misses.oldest.map_or_else(String::new, |age| format!(", at least {} old", seconds(age)));
        let worth = match misses.worth {
            Some(Lsn(0)) => "nothing: it is from before a source was lost, or a write".into(),
            Some(worth) => format!("{worth}"),
            None => "nothing".into(),
        };
        format!(
            "misses: {} outstanding on {} connections ({} of this one's), {} used up that still object; the oldest is \
             worth {worth}{oldest}",
            misses.open, misses.connections, misses.own, misses.spent
        )
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let account = &self.account;
        let misses = &account.misses;
        let guard = |(table, keys): &(String, Vec<String>)| json!({ "table": table, "keys": keys });
        json!({
            "key": self.key,
            "db": self.db,
            "guards": self.guards.iter().map(guard).collect::<Vec<_>>(),
            "named": self.named,
            "nearest_templates": self.nearest,
            "version": account.version.map(|(version, vouches)| json!({ "last": version.0, "vouches": vouches })),
            "last_write": account.last.map(|last| json!({
                "lsn": last.to_string(),
                "xid": account.own.filter(|own| own.lsn == last).map(|own| own.xid.0),
                "settled_for_ms": account.settled_for,
            })),
            "writes": account.writes,
            "misses": {
                "outstanding": misses.open,
                "used_up": misses.spent,
                "connections": misses.connections,
                "oldest_ms": misses.oldest,
                "worth": misses.worth.map(|lsn| lsn.to_string()),
                "count": !misses.doubted,
            },
            "fills_in_flight": account.in_flight,
            "floor_lsn": account.floor.to_string(),
            "settled_lsn": account.settled.to_string(),
            "sources": self.sources.iter().map(Source::json).collect::<Vec<_>>(),
            "troubles": self.troubles,
            "fills": self.fills.iter().map(Foretold::json).collect::<Vec<_>>(),
            "words": self.lines(),
        })
    }
}

impl Source {
    fn line(&self) -> String {
        let (name, kind) = (&self.name, self.kind.name());
        if !self.in_sight {
            let why = self.error.as_deref().unwrap_or("not polled yet");
            return format!("source {name} ({kind}): out of sight: {why}");
        }
        let shows = if self.shows_key { "shows" } else { "does not show" };
        format!("source {name} ({kind}): at {}; {shows} all that is known of the key", self.position)
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "kind": self.kind.name(),
            "in_sight": self.in_sight,
            "position": self.position.to_string(),
            "shows_key": self.shows_key,
            "error": self.error,
        })
    }
}

impl Foretold {
    fn line(&self) -> String {
        let why = if self.why.is_empty() { String::new() } else { format!(": {}", self.why) };
        let action = match (self.action, self.ttl_ms) {
            ("forwarded", None) => "let in".into(),
            ("observed", _) => "let in, as the proxy only observes".into(),
            (_, Some(ttl)) => format!("let in for at most {}", seconds(ttl)),
            (action, None) => action.into(),
        };
        format!("a fill {}: {}, {action}{why}", self.evidence.1, self.verdict)
    }

    fn json(&self) -> Value {
        json!({
            "evidence": self.evidence.0,
            "verdict": self.verdict,
            "action": self.action,
            "ttl_ms": self.ttl_ms,
            "why": self.why,
        })
    }
}

fn seconds(age: Millis) -> String {
    format!("{}.{:03} s", age / 1000, age % 1000)
}
