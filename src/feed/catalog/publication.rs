//! The publication: does it have every change of every guarded table?

use tokio_postgres::Client;

use super::{CatalogError, Problem};
use crate::feed::quoting::{quoted_name, quoted_table};
use crate::guard::Guards;

/// Whether a publication is there, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// There is none of that name.
    Missing {
        /// The SQL that makes it.
        create: String,
    },
    /// There is one; without problems it will do.
    Present(Vec<Problem>),
}

/// The first `server_version_num` that can publish generated columns. It refuses UPDATE and DELETE of a published table whose
/// replica identity has some that are not: all of them, with REPLICA IDENTITY FULL.
const GENERATED: i32 = 180_000;

/// Looks at the publication.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn publication(client: &Client, name: &str, guards: &Guards) -> Result<Publication, CatalogError> {
    let row = client
        .query_opt(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, current_setting('server_version_num')::int4, \
                    pubviaroot \
             FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else {
        let version = client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?;
        return Ok(Publication::Missing { create: create_publication(name, guards, version.get(0)) });
    };
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
    let statement = client.prepare(&members(restricted)).await?;
    let via_root: bool = row.get(5);
    for guard in guards {
        for row in client.query(&statement, &[&name, &guard.schema, &guard.table]).await? {
            let (id, table, publication) = (guard.id, guard.label.clone(), quoted.clone());
            let member = format!("{}.{}", quoted_name(row.get(0)), quoted_name(row.get(1)));
            let (is_partitioned, is_published): (bool, bool) = (row.get(2), row.get(3));
            if is_partitioned && !via_root {
                problems.push(Problem::PartitionsApart {
                    guard: id,
                    table,
                    publication: publication.clone(),
                });
            }
            match (is_published, row.get(4), row.get::<_, Option<String>>(5)) {
                (false, _, Some(root)) if via_root => problems.push(Problem::PublishedAsRoot {
                    guard: id,
                    table: guard.label.clone(),
                    root,
                    publication,
                }),
                (false, ..) => {
                    problems.push(Problem::NotPublished { guard: id, table: member, publication });
                }
                (true, true, _) => problems.push(Problem::Filtered { guard: id, table: member, publication }),
                (true, false, _) => {}
            }
        }
    }
    if row.get::<_, i32>(4) >= GENERATED {
        let statement = client.prepare(LEFT_OUT).await?;
        for guard in guards {
            if client.query_opt(&statement, &[&guard.schema, &guard.table, &name]).await?.is_some() {
                let table = guard.label.clone();
                problems.push(Problem::GeneratedLeftOut {
                    guard: guard.id,
                    table,
                    publication: quoted.clone(),
                });
            }
        }
    }
    Ok(Publication::Present(problems))
}

/// Whether a table, or one below it, has generated columns in its replica identity that the publication leaves out.
const LEFT_OUT: &str = "\
    WITH RECURSIVE members (oid) AS ( \
        SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE n.nspname = $1 AND c.relname = $2 \
        UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN members m ON i.inhparent = m.oid) \
    SELECT c.oid FROM members m JOIN pg_catalog.pg_class c ON c.oid = m.oid \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attgenerated = 's' AND NOT a.attisdropped \
    JOIN pg_catalog.pg_publication p ON p.pubname = $3 AND p.pubgencols <> 's' \
    WHERE c.relreplident = 'f' LIMIT 1";

/// The guarded table, and the children that inherit from it: each of these is published by itself. For each its name,
/// whether it is partitioned, whether it is in the publication, whether only in part, and the published table above it, if
/// it is a partition.
fn members(restricted: &str) -> String {
    format!(
        "WITH RECURSIVE published AS MATERIALIZED ( \
             SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = $1), \
         listed AS MATERIALIZED ( \
             SELECT r.prrelid, ({restricted}) AS restricted FROM pg_catalog.pg_publication_rel r \
             JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1), \
         members (oid, depth) AS ( \
             SELECT c.oid, 0 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $2 AND c.relname = $3 \
             UNION SELECT i.inhrelid, m.depth + 1 FROM pg_catalog.pg_inherits i JOIN members m ON i.inhparent = m.oid \
             JOIN pg_catalog.pg_class k ON k.oid = i.inhrelid \
             WHERE NOT k.relispartition AND k.relpersistence = 'p') \
         SELECT n.nspname::text, c.relname::text, c.relkind = 'p', \
                EXISTS (SELECT FROM published t WHERE t.schemaname = n.nspname AND t.tablename = c.relname) \
                OR c.relkind = 'p' AND (EXISTS (SELECT FROM listed l WHERE l.prrelid = c.oid) \
                   OR EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = $1 AND p.puballtables)) \
                   AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = $1 AND p.pubviaroot), \
                EXISTS (SELECT FROM listed l WHERE l.prrelid = c.oid AND l.restricted), \
                CASE WHEN c.relispartition THEN \
                    (SELECT pg_catalog.format('%I.%I', an.nspname, ac.relname) \
                     FROM pg_catalog.pg_partition_ancestors(c.oid) a JOIN pg_catalog.pg_class ac ON ac.oid = a.relid \
                     JOIN pg_catalog.pg_namespace an ON an.oid = ac.relnamespace \
                     JOIN published t ON t.schemaname = an.nspname AND t.tablename = ac.relname \
                     WHERE a.relid <> c.oid LIMIT 1) END \
         FROM (SELECT oid, min(depth) AS depth FROM members GROUP BY oid) m \
         JOIN pg_catalog.pg_class c ON c.oid = m.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE m.depth = 0 OR c.relkind = 'r' ORDER BY m.depth, c.oid"
    )
}

/// `CREATE PUBLICATION` for the guards' tables. Changes of partitions come as those of their root: so those of a partition
/// that nobody has heard of yet are known. Other tables are not touched by that.
fn create_publication(name: &str, guards: &Guards, version: i32) -> String {
    let generated = if version >= GENERATED { ", publish_generated_columns = stored" } else { "" };
    format!("{} WITH (publish_via_partition_root = true{generated})", publication_of(name, guards))
}

/// `CREATE PUBLICATION` without its options.
pub fn publication_of(name: &str, guards: &Guards) -> String {
    let tables: Vec<String> = guards.iter().map(quoted_table).collect();
    let tables = match tables.as_slice() {
        // A publication of nothing is allowed, "FOR TABLE" of nothing is not.
        [] => String::new(),
        tables => format!(" FOR TABLE {}", tables.join(", ")),
    };
    format!("CREATE PUBLICATION {}{tables}", quoted_name(name))
}
