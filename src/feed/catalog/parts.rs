//! The tables below a guarded one: partitions, and children that inherit from it. Their rows are rows of it.

use tokio_postgres::Client;

use super::{CatalogError, Table};
use crate::feed::quoting::quoted_name;
use crate::guard::Guard;

/// A table below a guarded one that holds rows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its oid.
    pub oid: u32,
    /// The file of a partition's rows. TRUNCATE of one partition gives it another, and is not in the stream where changes
    /// are published as those of the root. Rows of a child that inherits come under its own name, and so does its
    /// TRUNCATE: 0.
    pub storage: u32,
}

/// The same, with what decides whether it can be guarded.
#[derive(Debug)]
pub(super) struct FoundPart {
    pub part: Part,
    /// Quoted for SQL.
    pub name: String,
    pub kind: String,
    pub persistence: String,
    /// Columns of its replica identity.
    pub identity: Vec<String>,
}

/// Leaves of a partition tree, or every child of a table that others inherit from. A partition that is being detached shows
/// no rows any more, and its changes are no longer published as the root's. The other session's temporary tables are
/// nobody else's.
const PARTS: &str = "\
    WITH RECURSIVE below (oid) AS ( \
        SELECT i.inhrelid FROM pg_catalog.pg_inherits i \
        WHERE i.inhparent = $1 AND pg_catalog.to_jsonb(i) ->> 'inhdetachpending' IS DISTINCT FROM 'true' \
        UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN below b ON i.inhparent = b.oid \
        WHERE pg_catalog.to_jsonb(i) ->> 'inhdetachpending' IS DISTINCT FROM 'true') \
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relispartition, \
           COALESCE(pg_catalog.pg_relation_filenode(c.oid), 0), \
           ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a \
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
                   AND (c.relreplident = 'f' OR EXISTS ( \
                       SELECT FROM pg_catalog.pg_index i \
                       WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate \
                         AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident \
                             ELSE false END \
                         AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])))) \
    FROM below b JOIN pg_catalog.pg_class c ON c.oid = b.oid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind <> 'p' AND c.relpersistence <> 't' ORDER BY c.oid";

pub(super) async fn parts(client: &Client, oid: u32) -> Result<Vec<FoundPart>, CatalogError> {
    let rows = client.query(PARTS, &[&oid]).await?;
    Ok(rows
        .iter()
        .map(|row| FoundPart {
            part: Part { oid: row.get(0), storage: if row.get(5) { row.get(6) } else { 0 } },
            name: format!("{}.{}", quoted_name(row.get(1)), quoted_name(row.get(2))),
            kind: row.get(3),
            persistence: row.get(4),
            identity: row.get(7),
        })
        .collect())
}

/// Equal for equal parts, in every process; 0 if there are none.
pub(super) fn digest(parts: &[Part]) -> u64 {
    let numbers = parts.iter().flat_map(|part| [part.oid, part.storage]);
    // FNV-1a, whole numbers at a time.
    let mixed = |hash: u64, n: u32| (hash ^ u64::from(n)).wrapping_mul(0x0100_0000_01b3);
    if parts.is_empty() { 0 } else { numbers.fold(0xcbf2_9ce4_8422_2325, mixed).max(1) }
}

/// Whether rows may have come into a guard, or have gone from it, without a commit that tells of them; or its keys are made
/// in another way than before. `before` is none where nothing was known.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn may_differ(
    client: &Client,
    guard: &Guard,
    before: Option<&Table>,
    after: &Table,
) -> Result<bool, CatalogError> {
    let Some(before) = before else { return Ok(true) };
    let kinds = |table: &Table| -> Vec<_> {
        let columns = guard.templates.iter().flat_map(|template| template.columns());
        columns.map(|column| table.kind(column)).collect()
    };
    let version = |table: &Table| guard.version.as_ref().map(|version| table.version_kind(&version.column));
    if before.oid != after.oid
        || before.identity != after.identity
        || before.primary_key != after.primary_key
        || kinds(before) != kinds(after)
        || version(before) != version(after)
        || before.parts.iter().any(|part| !after.parts.contains(part))
    {
        return Ok(true);
    }
    // One that was made empty has brought no rows: those that it has got since came in the stream.
    for part in after.parts.iter().filter(|part| !before.parts.contains(part)) {
        let sql = "SELECT pg_catalog.pg_relation_size($1::oid::regclass)";
        let size = client.query_one(sql, &[&part.oid]).await;
        // It waits for whoever has the table locked, but not for long; and the table may be gone again.
        match size.map(|row| row.get::<_, Option<i64>>(0)) {
            Ok(Some(0)) => {}
            Ok(_) => return Ok(true),
            Err(error) if error.code().is_some() => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}
