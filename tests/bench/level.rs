//! Until when the proxy has followed.

use std::time::Duration;

use cachefence::demo::servers::{Cachefence, wait_until};
use cachefence::position::Lsn;

use crate::Fallible;

/// Nothing comes near it unless it never comes.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The end of the log as it is written out: every commit until now is below it.
pub async fn flushed(sql: &tokio_postgres::Client) -> Fallible<Lsn> {
    let row = sql.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
    Ok(row.try_get::<_, &str>(0)?.parse()?)
}

/// Waits until the keys of every commit until now are fenced and deleted, and every source shows them.
pub async fn level(sql: &tokio_postgres::Client, proxy: &Cachefence) -> Fallible<Lsn> {
    let now = flushed(sql).await?;
    wait_until("the proxy to be level", PATIENCE, async || {
        let Ok((_, status)) = proxy.get("/status").await else { return false };
        let Ok(status) = serde_json::from_str::<serde_json::Value>(&status) else { return false };
        let reached = |name: &str| -> Option<Lsn> { status.pointer(name)?.as_str()?.parse().ok() };
        ["/feed/applied_lsn", "/fence/settled_lsn"]
            .iter()
            .all(|name| reached(name).is_some_and(|reached| reached >= now))
    })
    .await?;
    Ok(now)
}

/// Waits until Postgres knows that a proxy has followed up to there, which costs that one nothing.
pub async fn confirmed(sql: &tokio_postgres::Client, slot: &str, end: Lsn) -> Fallible<()> {
    let confirmed =
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name::text = $1::text";
    wait_until("the feed to be confirmed", PATIENCE, async || {
        let Ok(row) = sql.query_one(confirmed, &[&slot]).await else { return false };
        row.try_get::<_, &str>(0).is_ok_and(|text| text.parse::<Lsn>().is_ok_and(|reached| reached >= end))
    })
    .await?;
    Ok(())
}
