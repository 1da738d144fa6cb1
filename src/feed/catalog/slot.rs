//! The replication slot.

use tokio_postgres::Client;

use super::{CatalogError, Problem};
use crate::pg::replication::Backend;
use crate::position::Lsn;

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Up to where it was confirmed.
    pub confirmed: Lsn,
    /// Postgres has given it up: nothing can be read from it any more.
    pub lost: bool,
    /// Somebody is reading it.
    pub active: bool,
    /// It survives a failover.
    pub failover: bool,
    /// What it holds back.
    pub held: Held,
    /// Set if it cannot be ours.
    pub problem: Option<Problem>,
}

/// The log that a slot holds back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// From where Postgres keeps the log for the slot, to its end, in bytes.
    pub retained: u64,
    /// How many bytes can be written before Postgres may give the slot up; none: there is no limit.
    pub safe: Option<u64>,
    /// `max_slot_wal_keep_size` in bytes; none: there is no limit.
    pub limit: Option<u64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
}

impl Held {
    /// What to do while there is time, if there is little room left.
    pub fn trouble(&self) -> Option<String> {
        let left = match (self.wal_status.as_str(), self.safe, self.limit) {
            ("lost", ..) => {
                return Some("Postgres has given the slot up: it will be made anew, a gap".into());
            }
            ("unreserved", ..) => 0,
            (_, Some(safe), Some(limit)) if safe < limit / 4 => safe,
            _ => return None,
        };
        Some(format!(
            "the slot holds {} bytes of WAL, and Postgres gives it up when {left} more are written, which is a gap: see \
             why the feed does not confirm, or raise max_slot_wal_keep_size",
            self.retained
        ))
    }
}

/// Looks at the slot. Whether it should be temporary decides whether it can be ours.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn slot(client: &Client, name: &str, temporary: bool) -> Result<Option<Slot>, CatalogError> {
    let row = client
        .query_opt(
            "SELECT slot_type, plugin::text, database::text, current_database()::text, temporary, active, \
                    confirmed_flush_lsn::text, wal_status, \
                    coalesce((to_jsonb(s) ->> 'conflicting')::bool, false) \
                      OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL, \
                    coalesce((to_jsonb(s) ->> 'failover')::bool, false), \
                    CASE WHEN NOT pg_is_in_recovery() \
                         THEN pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 END, \
                    safe_wal_size, \
                    (SELECT setting::int8 * 1048576 FROM pg_catalog.pg_settings \
                     WHERE name = 'max_slot_wal_keep_size' AND setting::int8 >= 0) \
             FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let (plugin, database): (Option<String>, Option<String>) = (row.get(1), row.get(2));
    let here: String = row.get(3);
    let what = match (row.get::<_, &str>(0), plugin.as_deref(), database) {
        ("logical", Some("pgoutput"), Some(database)) if database == here => None,
        ("logical", Some("pgoutput"), Some(database)) => {
            Some(format!("belongs to database {database:?}, not to {here:?}"))
        }
        ("logical", Some(plugin), _) => Some(format!("has the output plugin {plugin:?}, not \"pgoutput\"")),
        (kind, _, _) => Some(format!("is {kind}, not logical")),
    };
    let what = what.or(match (row.get(4), temporary) {
        (true, false) => Some("is temporary".to_owned()),
        (false, true) => Some("is permanent, and postgres.temporary_slot is true".to_owned()),
        _ => None,
    });
    let (confirmed, wal_status): (Option<String>, Option<String>) = (row.get(6), row.get(7));
    let bytes = |column| row.get::<_, Option<i64>>(column).map(|bytes| u64::try_from(bytes).unwrap_or(0));
    let wal_status = wal_status.unwrap_or_default();
    Ok(Some(Slot {
        confirmed: confirmed.and_then(|text| text.parse().ok()).unwrap_or_default(),
        lost: wal_status == "lost" || row.get(8),
        active: row.get(5),
        failover: row.get(9),
        held: Held { retained: bytes(10).unwrap_or(0), safe: bytes(11), limit: bytes(12), wal_status },
        problem: what.map(|what| Problem::Slot { slot: name.to_owned(), what }),
    }))
}

/// Ends this process of the server's if it is the one that reads the slot; false if it is not. A role may end its own.
///
/// # Errors
/// When Postgres does not let us.
pub async fn end_reader(client: &Client, name: &str, reader: &Backend) -> Result<bool, CatalogError> {
    let sql = "SELECT pg_catalog.pg_terminate_backend(a.pid) \
               FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
               WHERE s.slot_name = $1 AND a.pid = $2 AND a.backend_start::text = $3";
    let ended = client.query_opt(sql, &[&name, &reader.pid, &reader.started]).await?;
    Ok(ended.is_some_and(|row| row.get(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_said_before_the_slot_is_lost() {
        let held =
            |wal_status: &str, safe, limit| Held { retained: 5, safe, limit, wal_status: wal_status.into() };
        assert_eq!(held("reserved", None, None).trouble(), None);
        assert_eq!(held("extended", Some(25), Some(100)).trouble(), None);
        let trouble = |held: Held| held.trouble().unwrap_or_default();
        assert!(trouble(held("extended", Some(24), Some(100))).contains("when 24 more are written"));
        assert!(trouble(held("unreserved", Some(0), Some(100))).contains("when 0 more are written"));
        assert!(trouble(held("lost", None, Some(100))).contains("given the slot up"));
    }
}
