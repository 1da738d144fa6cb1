//! Purges: the keys of a guard are deleted by pattern, when it is not known which of them are out of date.

use std::time::{Duration, Instant};

use super::connection::text;
use super::{CacheError, Connection, Reply};
use crate::failpoint::{self, Point};
use crate::fence::GuardId;
use crate::guard::Guards;

/// Keys that one SCAN looks at: a purge must not keep Redis from its clients.
const SCAN_COUNT: &[u8] = b"512";

/// Between two lines of the log.
const PACE: Duration = Duration::from_secs(2);

/// Deletes every key of the given guards, and tells how many there were.
///
/// SCAN returns every key that is there from its beginning to its end. A key that is filled meanwhile was
/// judged by the fence, which was raised before.
///
/// # Errors
/// When Redis fails; the purge has to be begun again.
pub async fn purge_guards(
    connection: &mut Connection,
    guards: &Guards,
    wanted: impl Fn(GuardId) -> bool,
) -> Result<u64, CacheError> {
    let (mut deleted, mut said) = (0, Instant::now());
    for (guard, glob) in guards.globs().filter(|(guard, _)| wanted(guard.id)) {
        connection.select(guard.db).await?;
        let mut cursor = "0".to_owned();
        loop {
            let scan: [&[u8]; 6] =
                [b"SCAN", cursor.as_bytes(), b"MATCH", glob.as_bytes(), b"COUNT", SCAN_COUNT];
            let (next, keys) = page(connection.call(&scan).await?);
            // A pattern finds more than the guard's keys: a `*` also stands for what the column cannot print.
            let keys =
                keys.iter().filter(|key| guards.matching(guard.db, key).iter().any(|guard| wanted(*guard)));
            let mut unlink: Vec<&[u8]> = vec![b"UNLINK"];
            unlink.extend(keys.map(AsRef::as_ref));
            if unlink.len() > 1 {
                let reply = connection.call(&unlink).await?;
                deleted += if let Reply::Integer(n) = reply { n.max(0) as u64 } else { 0 };
                failpoint::pass(Point::Purging);
            }
            if said.elapsed() >= PACE {
                said = Instant::now();
                tracing::info!(guard = %guard.label, pattern = glob, deleted, "a purge is under way");
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
    }
    connection.select(connection.home).await?;
    Ok(deleted)
}

/// SCAN's reply: the next cursor and the keys. One that cannot be read ends the scan, which Redis never sends.
fn page(reply: Reply) -> (String, Vec<bytes::Bytes>) {
    let Reply::Array(parts) = reply else { return ("0".into(), Vec::new()) };
    let mut parts = parts.into_iter();
    let cursor = parts.next().as_ref().and_then(text).unwrap_or("0").to_owned();
    let keys = match parts.next() {
        Some(Reply::Array(keys)) => keys,
        _ => Vec::new(),
    };
    let key = |key| if let Reply::BulkString(key) = key { Some(key) } else { None };
    (cursor, keys.into_iter().filter_map(key).collect())
}
