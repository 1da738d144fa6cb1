//! The tables below a guarded one: partitions, and children that inherit from it. Their rows are rows of it.

use tokio_postgres::Client;

use super::{CatalogError, Column, Table};
use crate::feed::quoting::quoted_name;

/// A table below a guarded one that holds rows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its oid.
    pub oid: u32,
    /// The file of a partition's rows. TRUNCATE of one partition gives it another, and is not in the stream where changes
    /// are published as those of the root. Rows of a child that inherits come under its own name, and so does its
    /// TRUNCATE: 0.
    pub storage: u32,
    /// Tells when it became a part: what is done to one that is none for a while is not in the stream.
    pub attached: u64,
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
/// nobody else's. A row of `pg_inherits` is never updated but to be detached: its xmin tells the attachment.
const PARTS: &str = "\
    WITH RECURSIVE paths (oid, attached) AS ( \
        SELECT i.inhrelid, i.xmin::text::int8 FROM pg_catalog.pg_inherits i \
        WHERE i.inhparent = $1 AND pg_catalog.to_jsonb(i) ->> 'inhdetachpending' IS DISTINCT FROM 'true' \
        UNION ALL SELECT i.inhrelid, p.attached + i.xmin::text::int8 \
        FROM pg_catalog.pg_inherits i JOIN paths p ON i.inhparent = p.oid \
        WHERE pg_catalog.to_jsonb(i) ->> 'inhdetachpending' IS DISTINCT FROM 'true'), \
    below (oid, attached) AS (SELECT oid, pg_catalog.sum(attached)::int8 FROM paths GROUP BY oid) \
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relispartition, \
           COALESCE(pg_catalog.pg_relation_filenode(c.oid), 0), \
           ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a \
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
                   AND (c.relreplident = 'f' OR EXISTS ( \
                       SELECT FROM pg_catalog.pg_index i \
                       WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate \
                         AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident \
                             ELSE false END \
                         AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])))), \
           b.attached \
    FROM below b JOIN pg_catalog.pg_class c ON c.oid = b.oid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind <> 'p' AND c.relpersistence <> 't' ORDER BY c.oid";

pub(super) async fn parts(client: &Client, oid: u32) -> Result<Vec<FoundPart>, CatalogError> {
    let rows = client.query(PARTS, &[&oid]).await?;
    Ok(rows
        .iter()
        .map(|row| FoundPart {
            part: Part {
                oid: row.get(0),
                storage: if row.get(5) { row.get(6) } else { 0 },
                attached: row.get::<_, i64>(8).unsigned_abs(),
            },
            name: format!("{}.{}", quoted_name(row.get(1)), quoted_name(row.get(2))),
            kind: row.get(3),
            persistence: row.get(4),
            identity: row.get(7),
        })
        .collect())
}

/// Whether rows may have come into a guard, or have gone from it, without a commit that tells of them; or its keys are made
/// in another way than before. `before` is none where nothing was known.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn may_differ(
    client: &Client,
    before: Option<&Table>,
    after: &Table,
) -> Result<bool, CatalogError> {
    let Some(before) = before else { return Ok(true) };
    // Another one by that name, or of another type: each row may hold another value, and rows that are rewritten are not
    // sent. One that is new or gone leaves the others as they were.
    let is_other = |column: &Column| after.columns.iter().any(|now| now.name == column.name && now != column);
    if before.oid != after.oid
        || before.identity != after.identity
        || before.primary_key != after.primary_key
        || before.columns.iter().any(is_other)
        || before.parts.iter().any(|part| !after.parts.contains(part))
        // It was away for a while. One that came is of a part that came.
        || before.stamps.iter().any(|stamp| !after.stamps.contains(stamp))
    {
        return Ok(true);
    }
    // One that was made empty has brought no rows: those that it has got since came in the stream. It still lies in the
    // file that it was made with, or it may have brought rows and been emptied.
    for part in after.parts.iter().filter(|part| !before.parts.contains(part)) {
        let sql = "SELECT pg_catalog.pg_relation_size($1::oid::regclass) = 0 \
                          AND pg_catalog.pg_relation_filenode($1::oid::regclass) = $1";
        let is_new = client.query_one(sql, &[&part.oid]).await;
        // It waits for whoever has the table locked, but not for long; and the table may be gone again.
        match is_new.map(|row| row.get::<_, Option<bool>>(0)) {
            Ok(Some(true)) => {}
            Ok(_) => return Ok(true),
            Err(error) if error.code().is_some() => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}
