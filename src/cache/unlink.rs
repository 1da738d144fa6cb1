//! Deletions, and the marker behind them.

use std::collections::BTreeMap;

use super::{CacheError, Connection, Marker};
use crate::config::marker_key;
use crate::failpoint::{self, Point};
use crate::guard::CacheKey;

/// Keys of one UNLINK: Redis does nothing else while it executes one.
const UNLINK_KEYS: usize = 512;
/// Bytes of commands that are sent before their replies are read.
const WINDOW: usize = 256 * 1024;
/// How long the marker of a temporary slot outlives its process, in seconds. It is written anew far more often.
const TEMPORARY_MARKER: &str = "3600";

/// What became of the marker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Marked {
    /// It is there.
    Written,
    /// Redis has no memory for it, in these words. What it has now, if anything, tells of less than was deleted: whoever
    /// goes by it deletes again.
    NoRoom(String),
}

/// How the marker is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marking {
    /// To stay.
    Lasting,
    /// To go by itself if nobody writes it again.
    Expiring,
    /// Where there is none: changes nothing while all is well, and is refused where deletions would be.
    Absent,
}

/// Deletes keys and writes the marker after them, in as few round trips as their size allows.
///
/// # Errors
/// When Redis fails, or refuses: of the marker, for anything but lack of memory, which no UNLINK needs.
pub(super) async fn unlink(
    connection: &mut Connection,
    keys: &[&CacheKey],
    marker: Option<&Marker>,
    marking: Marking,
) -> Result<Marked, CacheError> {
    // Most have one db, whose keys stay in their order.
    let mut dbs: BTreeMap<u32, Vec<&[u8]>> = BTreeMap::new();
    keys.iter().for_each(|key| dbs.entry(key.db).or_default().push(&key.name));
    let mut sent = 0;
    let mut command: Vec<&[u8]> = Vec::with_capacity(UNLINK_KEYS + 1);
    for (db, keys) in &dbs {
        sent += connection.queue_select(*db);
        for keys in keys.chunks(UNLINK_KEYS) {
            command.clear();
            command.push(b"UNLINK");
            command.extend(keys);
            connection.queue(&command);
            sent += 1;
            if connection.queued() > WINDOW {
                settle(connection, &mut sent).await?;
            }
        }
    }
    sent += connection.queue_select(connection.home);
    if !keys.is_empty() && failpoint::is_armed(Point::Deleted) {
        // They go with the marker: Redis may have executed the one and not yet read the other.
        settle(connection, &mut sent).await?;
        failpoint::pass(Point::Deleted);
    }
    if let Some(marker) = marker {
        queue_marker(connection, marker, marking);
    }
    settle(connection, &mut sent).await?;
    if marker.is_none() {
        return Ok(Marked::Written);
    }
    match connection.reply("SET of the marker").await {
        Ok(_) => Ok(Marked::Written),
        Err(CacheError::Refused { error, .. }) if error.starts_with("OOM") => Ok(Marked::NoRoom(error)),
        Err(error) => Err(error),
    }
}

fn queue_marker(connection: &mut Connection, marker: &Marker, marking: Marking) {
    let (key, text) = (marker_key(&marker.slot), marker.to_string());
    let set: [&[u8]; 3] = [b"SET", key.as_bytes(), text.as_bytes()];
    let how: &[&[u8]] = match marking {
        Marking::Lasting => &[],
        Marking::Expiring => &[b"EX", TEMPORARY_MARKER.as_bytes()],
        Marking::Absent => &[b"NX"],
    };
    connection.queue(&[&set[..], how].concat());
}

async fn settle(connection: &mut Connection, sent: &mut usize) -> Result<(), CacheError> {
    connection.send().await?;
    failpoint::pass(Point::Sent);
    while *sent > 0 {
        connection.reply("UNLINK").await?;
        *sent -= 1;
    }
    Ok(())
}
