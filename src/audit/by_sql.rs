//! Hits of guards without a version: what the database has is asked for by the guard's `audit_sql`, at a bounded rate.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_postgres::{Client, Statement};
use tracing::{error, warn};

use super::statement::{self, Found, READ_ONLY, StatementError};
use super::{Commits, Conditions, Judged, Outcome, Surroundings};
use crate::cache::{CacheError, Connection, Endpoint, Reply};
use crate::complaint::Complaint;
use crate::config::{OnStale, Unproven};
use crate::feed::catalog::{self, CatalogError};
use crate::fence::{KeyHash, Millis};
use crate::guard::{GuardId, GuardList, Guards, Pointer, Scalar};
use crate::metrics::Metrics;
use crate::pg::target::Target;
use crate::position::Lsn;
use crate::refusals::shown;

/// Hits that wait for their turn, at most. Each has a value of up to 32 KiB.
const MOST: usize = 64;
/// How long the feed may take to be where the database was when it was asked.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether it is there.
const LOOK: Duration = Duration::from_millis(20);

/// A read that was answered with a value, of a key whose data is in the database.
#[derive(Debug)]
pub struct SqlHit {
    /// The key.
    pub key: Box<[u8]>,
    /// Its hash.
    pub hash: KeyHash,
    /// Its db.
    pub db: u32,
    /// Its guard, which is the only one.
    pub guard: GuardId,
    /// The texts in place of the placeholders.
    pub values: Vec<String>,
    /// What is compared.
    pub text: String,
    /// The last write of the key that was remembered when the answer came.
    pub last: Option<Lsn>,
    /// It could have been let in without proof, for a while.
    pub is_capped: bool,
    /// What held when the read was sent.
    pub conditions: Conditions,
    /// When the answer came, on the fence's clock.
    pub at: Millis,
    /// The same, in microseconds since 1970.
    pub at_us: i64,
}

/// What of a value is compared: all of it, or what the pointer leads to.
pub fn compared(pointer: Option<&Pointer>, value: &[u8]) -> Option<String> {
    match pointer {
        None => String::from_utf8(value.to_vec()).ok(),
        Some(pointer) => Some(match pointer.find(value)? {
            Scalar::Integer(n) => n.to_string(),
            Scalar::Text(text) => text,
        }),
    }
}

/// Whether two texts say the same: as they are, or as JSON.
pub fn agree(cached: &str, found: &str) -> bool {
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    cached == found || json(cached).is_some_and(|cached| json(found) == Some(cached))
}

/// Where it asks.
pub struct Places {
    /// The primary.
    pub postgres: Target,
    /// Its name there.
    pub application_name: String,
    /// Redis.
    pub redis: Endpoint,
    /// Its name there.
    pub name: String,
}

/// Asks the database about hits, one after the other.
pub(super) struct SqlAuditor {
    pub places: Places,
    pub surroundings: Surroundings,
    pub commits: Arc<Commits>,
    pub metrics: Arc<Metrics>,
    pub grace: Duration,
    pub started: Instant,
    pub session: Option<Session>,
    pub redis: Option<Connection>,
    pub failures: Complaint,
    pub violations: Complaint,
    pub agreed: Agreed,
}

/// Guards a hit of which has agreed with the database, under these guards.
#[derive(Default)]
pub(super) struct Agreed {
    guards: Option<Arc<Guards>>,
    ids: Vec<GuardId>,
}

/// A session on the primary, and what it has prepared.
pub(super) struct Session {
    client: Client,
    statements: HashMap<String, Statement>,
}

/// Why nothing could be found out.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    #[error("Postgres cannot be reached: {0}")]
    Connect(#[from] CatalogError),
    #[error("audit_sql: {0}")]
    Statement(#[from] StatementError),
    #[error(transparent)]
    Redis(#[from] CacheError),
}

/// A channel for hits, whose other end is worked off at this rate.
pub(super) fn channel() -> (mpsc::Sender<SqlHit>, mpsc::Receiver<SqlHit>) {
    mpsc::channel(MOST)
}

impl SqlAuditor {
    /// Works until nobody can send hits any more.
    pub async fn work(mut self, mut hits: mpsc::Receiver<SqlHit>, per_second: u32) {
        let mut turns = interval(Duration::from_secs(1) / per_second.max(1));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(hit) = hits.recv().await {
            let due = Duration::from_millis(hit.at) + self.grace;
            sleep(due.saturating_sub(self.started.elapsed())).await;
            turns.tick().await;
            let judged = match self.judge(&hit).await {
                Ok(judged) => judged,
                Err(error) => self.failed(&hit, &error),
            };
            self.count(&hit, judged);
        }
    }

    fn failed(&mut self, hit: &SqlHit, error: &AuditError) -> Judged {
        // Whatever it was, it may have left the session in any state.
        (self.session, self.redis) = (None, None);
        if self.failures.is_due() {
            let guard = hit.conditions.label(hit.guard);
            warn!(guard, %error, "a hit could not be audited: see \"cachefence check\"");
        }
        Judged::UNKNOWN
    }

    fn still(&self, hit: &SqlHit) -> bool {
        self.surroundings.conditions(&[hit.guard]).as_ref() == Some(&hit.conditions)
    }

    async fn judge(&mut self, hit: &SqlHit) -> Result<Judged, AuditError> {
        if !self.still(hit) {
            return Ok(Judged::UNKNOWN);
        }
        let Some(policy) = hit.conditions.policy(hit.guard) else { return Ok(Judged::UNKNOWN) };
        let Some(sql) = policy.audit_sql.as_deref() else { return Ok(Judged::UNKNOWN) };
        let (found, end) = self.ask(sql, &hit.values).await?;
        let (Some(end), Found::Nothing | Found::Text(_)) = (end, &found) else { return Ok(Judged::UNKNOWN) };
        if matches!(&found, Found::Text(Some(text)) if agree(&hit.text, text)) {
            self.agreed.add(&hit.conditions, hit.guard);
            return Ok(Judged::is(Outcome::Consistent));
        }
        // All that the database has shown has to be deleted, before what is there still is against the contract.
        if !Self::reached(&self.surroundings, end).await {
            return Ok(Judged::UNKNOWN);
        }
        let pointer = policy.audit_json.as_deref().and_then(Pointer::parse);
        let cached = self.cached(hit).await?;
        let stays = cached.and_then(|value| compared(pointer.as_ref(), &value)).as_deref() == Some(&hit.text);
        let fence = &self.surroundings.fence;
        let last = fence.last_write(hit.hash, &[hit.guard]);
        if last != hit.last {
            // It was written since: before the hit was answered, or after it.
            let at = last.and_then(|last| self.commits.at(last)).filter(|at| *at < hit.at_us);
            let stale =
                |at: i64| Judged { outcome: Outcome::Stale, missing: last, age_us: Some(hit.at_us - at) };
            return Ok(at.map_or(Judged::UNKNOWN, stale));
        }
        // A form of writing it that never agrees says nothing of its age.
        if !stays || !self.still(hit) || !self.agreed.has(&hit.conditions, hit.guard) {
            return Ok(Judged::UNKNOWN);
        }
        let now = self.started.elapsed().as_millis() as Millis;
        let may_be_old = policy.on_stale == OnStale::Cap || policy.unproven == Unproven::Allow;
        let is_capped = hit.is_capped || fence.is_capped(hit.hash, now);
        let is_allowed = may_be_old || is_capped || !self.surroundings.enforces;
        Ok(Judged::is(if is_allowed { Outcome::Stale } else { Outcome::Violation }))
    }

    /// What the database has, and where its log ended then.
    async fn ask(&mut self, sql: &str, values: &[String]) -> Result<(Found, Option<Lsn>), AuditError> {
        if self.session.as_ref().is_none_or(|session| session.client.is_closed()) {
            let client = catalog::connect(&self.places.postgres, &self.places.application_name).await?;
            client.batch_execute(READ_ONLY).await.map_err(StatementError::from)?;
            self.session = Some(Session { client, statements: HashMap::new() });
        }
        let Some(Session { client, statements }) = &mut self.session else {
            return Ok((Found::Several, None));
        };
        if !statements.contains_key(sql) {
            statements.insert(sql.to_owned(), statement::prepare(client, sql, values.len()).await?);
        }
        let Some(prepared) = statements.get(sql) else { return Ok((Found::Several, None)) };
        let values: Vec<Option<&str>> = values.iter().map(|value| Some(value.as_str())).collect();
        let found = statement::run(client, prepared, &values).await?;
        Ok((found, statement::end_of_log(client).await?))
    }

    /// Waits until all up to here is deleted.
    async fn reached(around: &Surroundings, end: Lsn) -> bool {
        let began = Instant::now();
        while around.applied() < end || around.fence.settled() < end {
            if began.elapsed() > PATIENCE {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }

    /// What Redis has now.
    async fn cached(&mut self, hit: &SqlHit) -> Result<Option<Vec<u8>>, AuditError> {
        let connection = match &mut self.redis {
            Some(connection) => connection,
            none => none.insert(Connection::open(&self.places.redis, &self.places.name).await?),
        };
        // It may be from before a failover, and lead to the Redis of then.
        let level = self.surroundings.cache.run_id.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if level.as_deref() != Some(connection.run_id.as_str()) {
            self.redis = None;
            return Ok(None);
        }
        connection.select(hit.db).await?;
        let reply = connection.call(&[b"GET", &hit.key]).await?;
        Ok(match reply {
            Reply::BulkString(value) => Some(value.to_vec()),
            _ => None,
        })
    }

    fn count(&mut self, hit: &SqlHit, judged: Judged) {
        let counters = self.metrics.guard(hit.guard);
        counters.audited(judged.outcome).inc();
        judged.age_us.iter().for_each(|us| counters.audit_age.observe(*us as f64 / 1e6));
        if judged.outcome == Outcome::Violation && self.violations.is_due() {
            error!(
                guard = hit.conditions.label(hit.guard),
                key = %shown(&hit.key, self.surroundings.show_keys),
                "a hit is not what audit_sql says, and no commit of the guarded table explains that: something writes this \
                 key past the proxy, or its data is in other tables too. DEL the key, and see \"The auditor\" in \
                 docs/operations.md"
            );
        }
    }
}

impl Agreed {
    fn add(&mut self, conditions: &Conditions, guard: GuardId) {
        if !self.has(conditions, guard) {
            if !self.guards.as_ref().is_some_and(|guards| Arc::ptr_eq(guards, conditions.guards())) {
                *self = Self { guards: Some(conditions.guards().clone()), ids: Vec::new() };
            }
            self.ids.push(guard);
        }
    }

    fn has(&self, conditions: &Conditions, guard: GuardId) -> bool {
        let same = self.guards.as_ref().is_some_and(|guards| Arc::ptr_eq(guards, conditions.guards()));
        same && self.ids.contains(&guard)
    }
}

/// The guard by whose statement a key is audited: its only one, which has no version, by its first template.
pub fn values_of(guards: &Guards, db: u32, key: &[u8], list: &GuardList) -> Option<(GuardId, Vec<String>)> {
    let [id] = list[..] else { return None };
    let guard = guards.get(id).filter(|guard| guard.policy.audit_sql.is_some() && guard.version.is_none())?;
    let template =
        guards.only_template(db, key).filter(|template| Some(*template) == guard.templates.first())?;
    let values = template.values(key)?;
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).ok().filter(|text| !text.contains('\0'));
    values.into_iter().map(text).collect::<Option<_>>().map(|values| (id, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_agree_as_they_are_or_as_json() {
        assert!(agree("a b", "a b") && !agree("a b", "a  b"));
        assert!(agree("{\"a\": 1, \"b\": [2]}", "{\"b\":[2],\"a\":1}"));
        assert!(!agree("{\"a\": 1}", "{\"a\": 2}") && !agree("no", "{}"));
    }

    #[test]
    fn what_is_compared_is_told_by_the_pointer() {
        let pointer = Pointer::parse("/v");
        let of = |value: &[u8]| compared(pointer.as_ref(), value);
        assert_eq!(of(b"{\"v\": 7}").as_deref(), Some("7"));
        assert_eq!(of(b"{\"v\": \"x\"}").as_deref(), Some("x"));
        assert_eq!(of(b"{\"w\": 7}"), None);
        assert_eq!(compared(None, b"all").as_deref(), Some("all"));
        assert_eq!(compared(None, b"\xff"), None);
    }
}
