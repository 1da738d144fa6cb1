//! The server itself.

use tokio_postgres::Client;

use super::{CatalogError, Problem};
use crate::position::{Lsn, Snapshot};

/// The first with 64-bit transaction ids in SQL (`pg_current_snapshot`), with the slot's `wal_status`, and with partitioned
/// tables in publications.
const OLDEST_VERSION: i32 = 130_000;

/// The first whose logical replication sends messages.
const MESSAGES: i32 = 140_000;

/// The server itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `server_version_num`.
    pub version: i32,
    /// What must change before it can be followed.
    pub problems: Vec<Problem>,
    /// How far its log was flushed when it was asked.
    pub flushed: Lsn,
    /// What was visible then.
    pub snapshot: Snapshot,
    /// Whom commits wait for.
    pub synchronous_standby_names: String,
}

/// Looks at the server: version, `wal_level`.
///
/// # Errors
/// When it cannot be asked, or is a standby.
pub async fn server(client: &Client) -> Result<Server, CatalogError> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int4, current_setting('wal_level'), \
                    pg_is_in_recovery(), \
                    CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_flush_lsn()::text END, \
                    pg_current_snapshot()::text, current_setting('synchronous_standby_names')",
            &[],
        )
        .await?;
    if row.get(2) {
        return Err(CatalogError::Standby);
    }
    let (version, wal_level): (i32, String) = (row.get(0), row.get(1));
    let (flushed, snapshot): (String, String) = (row.get(3), row.get(4));
    let mut problems = Vec::new();
    if version < OLDEST_VERSION {
        problems.push(Problem::Version { found: version });
    }
    if wal_level != "logical" {
        problems.push(Problem::WalLevel { found: wal_level });
    }
    Ok(Server {
        version,
        problems,
        flushed: flushed.parse().map_err(|_| CatalogError::Answer(flushed))?,
        snapshot: snapshot.parse().map_err(|_| CatalogError::Answer(snapshot))?,
        synchronous_standby_names: row.get(5),
    })
}

/// Whether what is said by `pg_logical_emit_message` comes in the stream.
///
/// # Errors
/// When the server cannot be asked.
pub async fn has_messages(client: &Client) -> Result<bool, CatalogError> {
    let row = client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?;
    Ok(row.get::<_, i32>(0) >= MESSAGES)
}
