//! The SQL that `cachefence init` runs, or prints: the functions for applications, the publication, the slot.

use std::fmt;

use tokio_postgres::Client;

use super::catalog::{self, CatalogError, Problem, Publication};
use super::quoting::{quoted_name, quoted_table};
use crate::guard::{Guard, Guards};
use crate::pg::replication::literal;

/// The first `server_version_num` whose logical replication has messages.
pub const MESSAGES: i32 = 140_000;

const SCHEMA: &str = "\
CREATE SCHEMA IF NOT EXISTS cachefence;
GRANT USAGE ON SCHEMA cachefence TO PUBLIC;";

/// STABLE, so that on a primary the snapshot is the calling statement's own and the call can stand beside the data.
const ASOF: &str = "\
CREATE OR REPLACE FUNCTION cachefence.asof() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED AS $cachefence$
DECLARE
    seen pg_catalog.pg_snapshot;
    own pg_catalog.xid8;
BEGIN
    IF pg_catalog.pg_is_in_recovery() THEN
        -- A standby's snapshot does not list what is in progress; its replay position, taken before the read, is exact.
        IF pg_catalog.current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE EXCEPTION 'cachefence.asof() on a standby needs READ COMMITTED'
                USING ERRCODE = 'active_sql_transaction',
                      DETAIL = 'Under a stricter level the next read can use a snapshot older than the position.',
                      HINT = 'Call it first, then read, both under READ COMMITTED.';
        END IF;
        RETURN pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text;
    END IF;
    seen := pg_catalog.pg_current_snapshot();
    own := pg_catalog.pg_current_xact_id_if_assigned();
    IF own IS NULL OR own >= pg_catalog.pg_snapshot_xmax(seen) THEN
        RETURN seen::pg_catalog.text;
    END IF;
    -- A snapshot calls the own transaction's writes seen. They are not committed: the own xid counts as in progress.
    RETURN pg_catalog.concat(
        LEAST(pg_catalog.pg_snapshot_xmin(seen), own), ':', pg_catalog.pg_snapshot_xmax(seen), ':',
        (SELECT pg_catalog.string_agg(x::pg_catalog.text, ',' ORDER BY x)
         FROM (SELECT pg_catalog.pg_snapshot_xip(seen) AS x UNION SELECT own) AS in_progress));
END
$cachefence$;
COMMENT ON FUNCTION cachefence.asof() IS
    'Evidence for a fill of what is read next: call it first, then read, then fill with ASOF.';
GRANT EXECUTE ON FUNCTION cachefence.asof() TO PUBLIC;";

const FENCE: &str = "\
CREATE OR REPLACE FUNCTION cachefence.fence(key text) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE AS $cachefence$
BEGIN
    -- Asked at each call: the function outlives an upgrade.
    IF pg_catalog.current_setting('server_version_num')::pg_catalog.int4 < 140000 THEN
        RAISE EXCEPTION 'cachefence.fence() needs PostgreSQL 14 or later'
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = 'Logical replication of version 13 leaves out messages, so the key would not be fenced.',
                  HINT = 'Fence by the rows of a guarded table: insert the key into a table with a guard of its own.';
    END IF;
    PERFORM pg_catalog.pg_logical_emit_message(true, 'cachefence', key);
END
$cachefence$;
COMMENT ON FUNCTION cachefence.fence(text) IS
    'Fences and deletes a cache key when this transaction commits: for keys that no template can derive.';
GRANT EXECUTE ON FUNCTION cachefence.fence(text) TO PUBLIC;";

/// For what commits do not tell: rows that come or go with a partition or a child. Of a table that is one, the tables above
/// are meant as well.
const FENCE_TABLE: &str = "\
CREATE OR REPLACE FUNCTION cachefence.fence_table(changed regclass) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE AS $cachefence$
BEGIN
    IF pg_catalog.current_setting('server_version_num')::pg_catalog.int4 < 140000 THEN
        RAISE EXCEPTION 'cachefence.fence_table() needs PostgreSQL 14 or later'
            USING ERRCODE = 'feature_not_supported',
                  DETAIL = 'Logical replication of version 13 leaves out messages, so the table would not be fenced.',
                  HINT = 'The proxy sees what has changed within 10 seconds by itself.';
    END IF;
    PERFORM pg_catalog.pg_logical_emit_message(true, 'cachefence:table', pg_catalog.concat(n.nspname, '.', c.relname))
    FROM (WITH RECURSIVE above (oid) AS (
              SELECT changed::pg_catalog.oid
              UNION SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN above a ON i.inhrelid = a.oid)
          SELECT above.oid FROM above) a
    JOIN pg_catalog.pg_class c ON c.oid = a.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;
END
$cachefence$;
COMMENT ON FUNCTION cachefence.fence_table(regclass) IS
    'Fences and deletes all keys of a table when this transaction commits: for partitions that come, go or are emptied.';
GRANT EXECUTE ON FUNCTION cachefence.fence_table(regclass) TO PUBLIC;";

/// A function for applications.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// As SQL calls it.
    pub name: &'static str,
    create: &'static str,
}

/// The functions for applications.
pub const FUNCTIONS: [Function; 3] = [
    Function { name: "cachefence.asof()", create: ASOF },
    Function { name: "cachefence.fence(text)", create: FENCE },
    Function { name: "cachefence.fence_table(regclass)", create: FENCE_TABLE },
];

/// Whether something that `init` makes is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// As it should be.
    Present,
    /// Something of that name which is not as it should be.
    Other,
    /// No.
    Missing,
}

impl Function {
    /// Whether it is there, and the same as this version's.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn found(&self, client: &Client) -> Result<Found, CatalogError> {
        // By name and not by regprocedure, which needs a right on the schema.
        let rows = client
            .query(
                "SELECT p.prosrc FROM pg_catalog.pg_proc p \
                 JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                 WHERE pg_catalog.concat(n.nspname, '.', p.proname, '(', \
                                         pg_catalog.oidvectortypes(p.proargtypes), ')') = $1",
                &[&self.name],
            )
            .await?;
        let body = self.create.split("$cachefence$").nth(1);
        Ok(match rows.first() {
            None => Found::Missing,
            Some(row) if body == Some(row.get(0)) => Found::Present,
            Some(_) => Found::Other,
        })
    }
}

/// One thing that `init` makes.
struct Part {
    kind: Kind,
    name: String,
    create: String,
}

#[derive(Clone, Copy)]
enum Kind {
    Schema,
    Function(Function),
    Publication,
    Slot,
}

impl Kind {
    const fn words(self) -> &'static str {
        match self {
            Kind::Schema => "the schema",
            Kind::Function(_) => "the function",
            Kind::Publication => "the publication",
            Kind::Slot => "the slot",
        }
    }
}

/// They can be made again at any time. Each is made on its own: a slot cannot be created in a transaction that has
/// written. The publication comes before the slot (fact F14).
fn parts(guards: &Guards, publication: &str, slot: Option<&str>) -> Vec<Part> {
    let part = |kind, name: &str, create: String| Part { kind, name: name.to_owned(), create };
    let mut parts = vec![part(Kind::Schema, "cachefence", SCHEMA.to_owned())];
    parts.extend(
        FUNCTIONS.map(|function| part(Kind::Function(function), function.name, function.create.to_owned())),
    );
    parts.push(part(Kind::Publication, publication, publication_sql(guards, publication, slot)));
    // A temporary slot (then `slot` is none) can only be made by who reads it.
    parts.extend(slot.map(|slot| part(Kind::Slot, slot, slot_sql(slot))));
    parts
}

/// What `init` runs as one script for psql, which ends at once in another database than `database`: a slot that was made there
/// would have to be dropped first. Behind that each part is for itself: what one cannot do is no reason to leave out the others.
pub fn script(guards: &Guards, publication: &str, slot: Option<&str>, database: &str) -> String {
    let (name, elsewhere) =
        (literal(database), literal(&format!("this is not the database {database}: psql %")));
    let mut text = format!(
        "\\set ON_ERROR_STOP on\n\nDO $cachefence$ BEGIN\n    IF pg_catalog.current_database() <> {name} THEN\n        \
         RAISE EXCEPTION {elsewhere}, {name};\n    END IF;\nEND $cachefence$;\n\n\\set ON_ERROR_STOP off\n\n"
    );
    // As in our own sessions: where commits wait for the proxy, these must not wait for one that is not there yet.
    text += "SET synchronous_commit = local;";
    for part in parts(guards, publication, slot) {
        text += "\n\n";
        text += &part.create;
    }
    text.push('\n');
    text
}

/// Creates the publication, or adds the tables that it lacks, children of guarded ones included. A slot that is older than the publication cannot decode
/// with it, so it goes.
fn publication_sql(guards: &Guards, publication: &str, slot: Option<&str>) -> String {
    let name = literal(publication);
    let create =
        format!("{} WITH (publish_via_partition_root = true)", catalog::publication_of(publication, guards));
    let quoted = quoted_name(publication);
    let is_partitioned = |guard: &Guard| {
        let table = literal(&quoted_table(guard));
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass({table}) AND relkind = 'p')"
        )
    };
    let partitioned: Vec<String> = guards.iter().map(is_partitioned).collect();
    let via_root = match partitioned.as_slice() {
        [] => String::new(),
        any => format!(
            "    IF NOT (SELECT pubviaroot FROM pg_catalog.pg_publication WHERE pubname = {name})\n       \
             AND ({}) THEN\n        \
             ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true);\n    END IF;\n",
            any.join("\n         OR ")
        ),
    };
    let add: String = guards
        .iter()
        .map(|guard| {
            format!(
                "    IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables\n                   \
                 WHERE pubname = {name} AND schemaname = {} AND tablename = {}) THEN\n        \
                 ALTER PUBLICATION {quoted} ADD TABLE {};\n    END IF;\n",
                literal(&guard.schema),
                literal(&guard.table),
                quoted_table(guard),
            )
        })
        .collect();
    // Version 18 can publish generated columns, and refuses UPDATEs where a replica identity has some that are not.
    let generated = format!(
        "    IF (SELECT pg_catalog.to_jsonb(p) ->> 'pubgencols' FROM pg_catalog.pg_publication p WHERE pubname = {name}) <> 's' \
         THEN\n        \
         EXECUTE {};\n    END IF;\n",
        literal(&format!("ALTER PUBLICATION {quoted} SET (publish_generated_columns = stored)"))
    );
    let children = match guards.is_empty() {
        true => String::new(),
        false => children_sql(guards, publication),
    };
    let drop_slot = slot.map_or_else(String::new, |slot| {
        format!(
            "PERFORM pg_catalog.pg_drop_replication_slot(slot_name)\n            \
             FROM pg_catalog.pg_replication_slots WHERE slot_name = {};\n        ",
            literal(slot)
        )
    });
    format!(
        "DO $cachefence$\nDECLARE\n    child text;\nBEGIN\n    \
         IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = {name}) THEN\n        \
         {drop_slot}{create};\n    END IF;\n{generated}{via_root}{add}{children}END\n$cachefence$;",
    )
}

/// Adds the children that began to inherit from a guarded table after it was published.
fn children_sql(guards: &Guards, publication: &str) -> String {
    let tables: Vec<String> = guards.iter().map(|guard| literal(&quoted_table(guard))).collect();
    let published = "SELECT FROM pg_catalog.pg_publication_tables t \
                     WHERE t.schemaname = n.nspname AND t.tablename = c.relname AND t.pubname =";
    format!(
        "    FOR child IN\n        \
         WITH RECURSIVE children (oid) AS (\n            \
         SELECT pg_catalog.to_regclass(name)::pg_catalog.oid FROM pg_catalog.unnest(ARRAY[{}]) AS name\n            \
         UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN children p ON p.oid = i.inhparent)\n        \
         SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM children\n        \
         JOIN pg_catalog.pg_class c ON c.oid = children.oid\n        \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace\n        \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND NOT c.relispartition\n          \
         AND NOT EXISTS ({published} {})\n    \
         LOOP\n        \
         EXECUTE {} || child;\n    \
         END LOOP;\n",
        tables.join(", "),
        literal(publication),
        literal(&format!("ALTER PUBLICATION {} ADD TABLE ONLY ", quoted_name(publication))),
    )
}

/// One that survives a failover where Postgres knows how: the running proxy alters it if it shall not.
fn slot_sql(slot: &str) -> String {
    let slot = literal(slot);
    format!(
        "DO $cachefence$\nBEGIN\n    \
         IF EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {slot}) THEN\n        \
         RETURN;\n    END IF;\n    \
         IF pg_catalog.current_setting('server_version_num')::int >= 170000 THEN\n        \
         PERFORM pg_catalog.pg_create_logical_replication_slot(\n            \
         {slot}, 'pgoutput', temporary => false, twophase => false, failover => true);\n    ELSE\n        \
         PERFORM pg_catalog.pg_create_logical_replication_slot({slot}, 'pgoutput');\n    \
         END IF;\nEND\n$cachefence$;"
    )
}

/// What `init` did about one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What it is: "the slot".
    pub what: &'static str,
    /// Its name.
    pub name: String,
    /// How it was found. Unless that was as it should be, it has been made so.
    pub found: Found,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.found {
            Found::Present => "was there",
            Found::Other => "was there and has been brought up to date",
            Found::Missing => "has been made",
        };
        write!(f, "{} {}: {how}", self.what, self.name)
    }
}

/// Makes what is missing, and touches nothing else: a role that may not make it can still find that it is there.
///
/// # Errors
/// The first part's that cannot be made.
pub async fn init(
    client: &Client,
    guards: &Guards,
    publication: &str,
    slot: Option<&str>,
) -> Result<Vec<Done>, CatalogError> {
    let mut done = Vec::new();
    for Part { kind, name, create } in parts(guards, publication, slot) {
        let what = kind.words();
        let found = match kind {
            Kind::Schema => schema_found(client).await?,
            Kind::Function(function) => function.found(client).await?,
            Kind::Publication => publication_found(client, guards, publication).await?,
            Kind::Slot => slot_found(client, &name).await?,
        };
        if found != Found::Present {
            let created = client.batch_execute(&create).await;
            created.map_err(|source| CatalogError::Create { what, source })?;
        }
        done.push(Done { what, name, found });
    }
    Ok(done)
}

async fn schema_found(client: &Client) -> Result<Found, CatalogError> {
    let sql = "SELECT pg_catalog.has_schema_privilege('public', oid, 'USAGE') FROM pg_catalog.pg_namespace \
               WHERE nspname = 'cachefence'";
    Ok(match client.query_opt(sql, &[]).await? {
        None => Found::Missing,
        Some(row) if row.get(0) => Found::Present,
        Some(_) => Found::Other,
    })
}

/// A table that it lacks is what `init` adds, and it has partitions published as their root and generated columns
/// published; what else can be wrong with it is for the doctor to say.
async fn publication_found(client: &Client, guards: &Guards, name: &str) -> Result<Found, CatalogError> {
    Ok(match catalog::publication(client, name, guards).await? {
        Publication::Missing { .. } => Found::Missing,
        Publication::Present(problems)
            if problems.iter().any(|problem| {
                matches!(
                    problem,
                    Problem::NotPublished { .. }
                        | Problem::PartitionsApart { .. }
                        | Problem::GeneratedLeftOut { .. }
                )
            }) =>
        {
            Found::Other
        }
        Publication::Present(_) => Found::Present,
    })
}

async fn slot_found(client: &Client, name: &str) -> Result<Found, CatalogError> {
    Ok(match catalog::slot(client, name, false).await? {
        None => Found::Missing,
        Some(slot) => match slot.problem {
            Some(problem) => return Err(CatalogError::Problems(vec![problem])),
            None => Found::Present,
        },
    })
}
