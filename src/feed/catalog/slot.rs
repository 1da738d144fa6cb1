//! The replication slot.

use tokio_postgres::Client;

use super::{CatalogError, Problem};
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
    /// Set if it cannot be ours.
    pub problem: Option<Problem>,
}

/// Looks at the slot.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn slot(client: &Client, name: &str) -> Result<Option<Slot>, CatalogError> {
    let row = client
        .query_opt(
            "SELECT slot_type, plugin::text, database::text, current_database()::text, temporary, active, \
                    confirmed_flush_lsn::text, wal_status, \
                    coalesce((to_jsonb(s) ->> 'conflicting')::bool, false) \
                      OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL \
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
    let what = what.or(row.get::<_, bool>(4).then(|| "is temporary".to_owned()));
    let confirmed: Option<String> = row.get(6);
    Ok(Some(Slot {
        confirmed: confirmed.and_then(|text| text.parse().ok()).unwrap_or_default(),
        lost: row.get::<_, Option<&str>>(7) == Some("lost") || row.get(8),
        active: row.get(5),
        problem: what.map(|what| Problem::Slot { slot: name.to_owned(), what }),
    }))
}
