//! The slot, the WAL that it holds back, and the transactions that would hold up a new one.

use tokio_postgres::Client;

use super::report::Row;
use super::size;
use crate::config::Postgres;
use crate::feed::catalog::{CatalogError, Slot};
use crate::pg::replication::literal;

const SLOT: &str = "slot";
const WAL: &str = "slot_wal";
/// So much WAL held back for nobody is worth a word.
const MUCH: i64 = 1 << 30;

/// The slot's state, and the WAL that it holds back.
pub(super) async fn slot(
    client: &Client,
    settings: &Postgres,
    slot: Option<&Slot>,
) -> Result<Vec<Row>, CatalogError> {
    let name = settings.slot.as_str();
    if settings.temporary_slot && slot.is_none_or(|slot| slot.problem.is_none()) {
        return Ok(vec![
            Row::good(SLOT, format!("{name:?} is temporary: the proxy makes it at each start, and purges")),
            Row::good(WAL, "a temporary slot holds nothing back while the proxy is away"),
        ]);
    }
    let limit = limit(client).await?;
    let Some(slot) = slot else {
        let missing = Row::warning(SLOT, format!("there is no slot {name:?}"))
            .means("the proxy makes it at its start, and purges the guarded keys")
            .sql(format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput');", literal(name)));
        return Ok(vec![missing, limit.unwrap_or_else(|| Row::good(WAL, "the slot will be bounded"))]);
    };
    if let Some(problem) = &slot.problem {
        return Ok(vec![Row::problem(SLOT, problem), Row::not_looked_at(WAL, "it is not the proxy's slot")]);
    }
    if slot.lost {
        let lost = Row::warning(SLOT, format!("Postgres has given {name:?} up"))
            .means("the proxy makes it anew at its next start, and purges the guarded keys")
            .sql(format!(
                "SELECT pg_drop_replication_slot({name}); SELECT pg_create_logical_replication_slot({name}, 'pgoutput');",
                name = literal(name)
            ));
        return Ok(vec![
            lost,
            limit.unwrap_or_else(|| Row::not_looked_at(WAL, "the slot holds nothing back")),
        ]);
    }
    let state = if slot.active { "is read by a proxy" } else { "is there; nobody reads it now" };
    let wal = match limit {
        Some(unlimited) => unlimited,
        None => retained(client, name, slot.active).await?,
    };
    let found = format!("{name:?} {state}{}", survival(client, slot.failover).await?);
    Ok(vec![Row::good(SLOT, found), wal])
}

/// What newer servers make of a slot: whether it outlives a failover (17), and how long one that nobody reads is kept (18).
async fn survival(client: &Client, failover: bool) -> Result<String, CatalogError> {
    let sql = "SELECT current_setting(name) FROM pg_catalog.pg_settings \
               WHERE name = 'idle_replication_slot_timeout' AND setting::int8 > 0";
    let timeout: Option<String> = client.query_opt(sql, &[]).await?.map(|row| row.get(0));
    let mut text = String::new();
    if failover {
        text += "; standbys with sync_replication_slots keep a copy";
    }
    if let Some(timeout) = timeout {
        text += &format!("; given up when nobody reads it for {timeout} (idle_replication_slot_timeout)");
    }
    Ok(text)
}

/// That nothing bounds the WAL that a slot holds back; none if something does.
async fn limit(client: &Client) -> Result<Option<Row>, CatalogError> {
    let setting = client.query_one(
        "SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'",
        &[],
    );
    Ok((setting.await?.get::<_, i64>(0) < 0).then(|| {
        Row::warning(WAL, "max_slot_wal_keep_size is -1")
            .means(
                "while the proxy is away Postgres keeps WAL for it until the disk is full; set what the disk can spare \
                 (a slot that needs more is given up, which purges the guarded keys)",
            )
            .sql("ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf();")
    }))
}

/// How much it holds back now, and how much it may.
async fn retained(client: &Client, name: &str, active: bool) -> Result<Row, CatalogError> {
    let row = client
        .query_opt(
            "SELECT coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn), 0)::int8, \
                    coalesce(wal_status, ''), safe_wal_size, current_setting('max_slot_wal_keep_size') \
             FROM pg_catalog.pg_replication_slots WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(Row::not_looked_at(WAL, "the slot has just gone")) };
    let (held, status): (i64, &str) = (row.get(0), row.get(1));
    let (left, limit): (Option<i64>, &str) = (row.get(2), row.get(3));
    let found = format!("{} of WAL held back, max_slot_wal_keep_size = {limit}", size(held));
    let nearly = left.is_some_and(|left| left < held);
    Ok(match (status, active) {
        ("unreserved", _) => Row::failed(WAL, format!("{found}: beyond what is kept"))
            .means("the next checkpoint gives the slot up, unless the proxy catches up before")
            .sql("ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf();"),
        (_, false) if held > MUCH || nearly => Row::warning(WAL, found)
            .means("nobody reads the slot, and it will be given up when the limit is reached"),
        (_, true) if nearly => Row::warning(WAL, found)
            .means("the proxy is far behind: is Redis away? The slot is given up when the limit is reached"),
        _ => Row::good(WAL, found),
    })
}

// The oldest of those that have written, in whichever database: a fresh slot waits for their end.
const OPEN: &str = "\
    SELECT what, gid, pid, age, datname FROM ( \
        SELECT 'prepared' AS what, gid, NULL::int4 AS pid, prepared AS began, \
               nullif(database::text, current_database()::text) AS datname FROM pg_catalog.pg_prepared_xacts \
        UNION ALL \
        SELECT state, NULL, pid, xact_start, NULL FROM pg_catalog.pg_stat_activity \
        WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%') AS open \
    CROSS JOIN LATERAL (SELECT extract(epoch FROM clock_timestamp() - began)::int8 AS age) AS a \
    ORDER BY age DESC LIMIT 1";
/// A transaction that writes and is idle for so long has been forgotten.
const FORGOTTEN_SECONDS: i64 = 60;

/// Transactions that are open and idle.
pub(super) async fn open_transactions(
    client: &Client,
    slot_is_to_be_made: bool,
    sees_all: bool,
) -> Result<Vec<Row>, CatalogError> {
    const NAME: &str = "open_transactions";
    let Some(row) = client.query_opt(OPEN, &[]).await? else {
        return Ok(vec![if sees_all {
            Row::good(NAME, "none is prepared or idle after a write")
        } else {
            Row::not_looked_at(NAME, "the role is no member of pg_monitor")
        }]);
    };
    let (what, gid): (String, Option<String>) = (row.get(0), row.get(1));
    let (pid, age): (Option<i32>, Option<i64>) = (row.get(2), row.get(3));
    let age = age.unwrap_or_default();
    let (found, run) = match (gid, pid) {
        (Some(gid), _) => {
            let place = row.get::<_, Option<String>>(4).map(|name| format!(" in database {name:?}"));
            let run = format!(
                "ROLLBACK PREPARED {gid}; -- or COMMIT PREPARED {gid};{}",
                place.unwrap_or_default(),
                gid = literal(&gid)
            );
            (format!("transaction {gid:?} has been prepared for {age} s"), run)
        }
        (None, pid) => {
            let pid = pid.unwrap_or_default();
            (format!("pid {pid} has been {what} for {age} s"), format!("SELECT pg_terminate_backend({pid});"))
        }
    };
    Ok(vec![if slot_is_to_be_made || age >= FORGOTTEN_SECONDS {
        Row::warning(NAME, found)
            .means("a slot can be created only when it has ended; one that is there keeps the WAL since it began")
            .sql(run)
    } else {
        Row::good(NAME, found)
    }])
}
