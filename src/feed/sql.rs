//! The SQL that `cachefence init` runs, or prints: the functions for applications, the publication, the slot.

use tokio_postgres::Client;

use super::catalog::CatalogError;
use super::quoting::{quoted_name, quoted_table};
use crate::guard::Guards;
use crate::pg::replication::literal;

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

/// The statements, each to be run on its own: a slot cannot be made in a transaction that has written. They can be
/// run again at any time.
pub fn statements(guards: &Guards, publication: &str, slot: &str) -> Vec<String> {
    parts(guards, publication, slot).into_iter().map(|(_, statement)| statement).collect()
}

/// Each with what it makes.
fn parts(guards: &Guards, publication: &str, slot: &str) -> [(&'static str, String); 5] {
    [
        ("schema cachefence", SCHEMA.to_owned()),
        ("cachefence.asof()", ASOF.to_owned()),
        ("cachefence.fence()", FENCE.to_owned()),
        ("the publication", publication_sql(guards, publication, slot)),
        ("the slot", slot_sql(slot)),
    ]
}

/// The same as one script for psql.
pub fn script(guards: &Guards, publication: &str, slot: &str) -> String {
    // As in our own sessions: where commits wait for the proxy, these must not wait for one that is not there yet.
    let local = "SET synchronous_commit = local;".to_owned();
    let mut text = [vec![local], statements(guards, publication, slot)].concat().join("\n\n");
    text.push('\n');
    text
}

/// Creates the publication, or adds the tables that it lacks. A slot that is older than the publication cannot decode
/// with it, so it goes.
fn publication_sql(guards: &Guards, publication: &str, slot: &str) -> String {
    let (name, create) = (literal(publication), super::catalog::create_publication(publication, guards));
    let quoted = quoted_name(publication);
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
    format!(
        "DO $cachefence$\nBEGIN\n    \
         IF NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = {name}) THEN\n        \
         PERFORM pg_catalog.pg_drop_replication_slot(slot_name)\n            \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = {slot};\n        \
         {create};\n    END IF;\n{add}END\n$cachefence$;",
        slot = literal(slot),
    )
}

fn slot_sql(slot: &str) -> String {
    let slot = literal(slot);
    format!(
        "SELECT pg_catalog.pg_create_logical_replication_slot({slot}, 'pgoutput')\n\
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {slot});"
    )
}

/// Runs the statements.
///
/// # Errors
/// The first one's that fails.
pub async fn init(
    client: &Client,
    guards: &Guards,
    publication: &str,
    slot: &str,
) -> Result<(), CatalogError> {
    for (what, statement) in parts(guards, publication, slot) {
        let done = client.batch_execute(&statement).await;
        done.map_err(|source| CatalogError::Create { what, source })?;
    }
    Ok(())
}
