//! Since when the publication has had a table. One that leaves it and comes back between two looks looks as before, and
//! what was committed meanwhile never comes.

use tokio_postgres::Client;

use super::{CatalogError, Table};

/// What makes a publication publish a table: itself, for its operations, or an entry of a table or a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The oid of the catalog's row. One that is made anew has another.
    pub oid: u32,
    /// The transaction that wrote the row.
    pub written: u32,
}

/// The entries of schemas came with this `server_version_num`.
const SCHEMAS: i32 = 150_000;

/// The publication's own row; its entries of the table, of those below it and of those that it is a partition of; and of schemas.
fn stamps(version: i32) -> String {
    let schemas = if version >= SCHEMAS {
        "UNION ALL SELECT s.oid, s.xmin FROM pg_catalog.pg_publication_namespace s JOIN named p ON s.pnpubid = p.oid"
    } else {
        ""
    };
    format!(
        "WITH RECURSIVE named AS (SELECT oid, xmin FROM pg_catalog.pg_publication WHERE pubname = $1), \
         below (oid) AS (SELECT $2::oid UNION \
             SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN below b ON i.inhparent = b.oid), \
         above (oid) AS (SELECT $2::oid UNION \
             SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN above a ON i.inhrelid = a.oid) \
         SELECT oid, xmin::text::int8 FROM ( \
             SELECT oid, xmin FROM named \
             UNION ALL SELECT r.oid, r.xmin FROM pg_catalog.pg_publication_rel r JOIN named p ON r.prpubid = p.oid \
                 WHERE r.prrelid IN (SELECT oid FROM below UNION SELECT oid FROM above) \
             {schemas}) AS stamps ORDER BY oid"
    )
}

/// Notes in each table how the publication has it.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn stamp(client: &Client, publication: &str, tables: &mut [Table]) -> Result<(), CatalogError> {
    let version = client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?;
    let statement = client.prepare(&stamps(version.get(0))).await?;
    for table in tables {
        let rows = client.query(&statement, &[&publication, &table.oid]).await?;
        let stamp = |row: &tokio_postgres::Row| {
            // An xid has 32 bits.
            Stamp { oid: row.get(0), written: u32::try_from(row.get::<_, i64>(1)).unwrap_or_default() }
        };
        table.stamps = rows.iter().map(stamp).collect();
    }
    Ok(())
}
