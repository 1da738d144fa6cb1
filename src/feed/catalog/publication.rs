//! The publication: does it have every change of every guarded table?

use tokio_postgres::Client;

use super::{CatalogError, Problem};
use crate::feed::quoting::{quoted_name, quoted_table};
use crate::guard::Guards;

/// Whether a publication is there, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// There is none of that name.
    Missing,
    /// There is one; without problems it will do.
    Present(Vec<Problem>),
}

/// Looks at the publication.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn publication(client: &Client, name: &str, guards: &Guards) -> Result<Publication, CatalogError> {
    let row = client
        .query_opt(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, current_setting('server_version_num')::int4 \
             FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(Publication::Missing) };
    let mut problems = Vec::new();
    let missing: Vec<&str> = ["insert", "update", "delete", "truncate"]
        .into_iter()
        .enumerate()
        .filter(|(i, _)| !row.get::<_, bool>(*i))
        .map(|(_, operation)| operation)
        .collect();
    let quoted = quoted_name(name);
    if !missing.is_empty() {
        problems.push(Problem::Operations { publication: quoted.clone(), missing: missing.join(", ") });
    }
    // Row filters and column lists came with version 15.
    let restricted = if row.get::<_, i32>(4) >= 150_000 {
        "r.prqual IS NOT NULL OR r.prattrs IS NOT NULL"
    } else {
        "false"
    };
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_tables t \
                        WHERE t.pubname = $1 AND t.schemaname = $2 AND t.tablename = $3), \
                EXISTS (SELECT FROM pg_catalog.pg_publication_rel r \
                        JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
                        JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                        WHERE p.pubname = $1 AND n.nspname = $2 AND c.relname = $3 AND ({restricted}))"
    );
    let statement = client.prepare(&sql).await?;
    for guard in guards {
        let row = client.query_one(&statement, &[&name, &guard.schema, &guard.table]).await?;
        let (table, publication) = (quoted_table(guard), quoted.clone());
        match (row.get(0), row.get(1)) {
            (false, _) => problems.push(Problem::NotPublished { guard: guard.id, table, publication }),
            (true, true) => problems.push(Problem::Filtered { guard: guard.id, table, publication }),
            (true, false) => {}
        }
    }
    Ok(Publication::Present(problems))
}

/// `CREATE PUBLICATION` for the guards' tables.
pub fn create_publication(name: &str, guards: &Guards) -> String {
    let tables: Vec<String> = guards.iter().map(quoted_table).collect();
    match tables.as_slice() {
        // A publication of nothing is allowed, "FOR TABLE" of nothing is not.
        [] => format!("CREATE PUBLICATION {}", quoted_name(name)),
        tables => format!("CREATE PUBLICATION {} FOR TABLE {}", quoted_name(name), tables.join(", ")),
    }
}
