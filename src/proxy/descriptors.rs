//! File descriptors that clients do not get.
//!
//! A process that has none left cannot connect to Postgres or Redis again, end a fill that Redis does not answer, or say
//! on its admin port that it lives. So the last ones are for that, and clients and their connections to Redis have to do
//! with the others.

use std::os::fd::RawFd;

use rustix::process::{Resource, getrlimit};

/// Those that clients and their pins do not get: lanes, which many clients need, and the proxy's own.
const KEPT_FROM_CLIENTS: u64 = 128;
/// ... and those of them that lanes do not get either: for the feed, the sources, the proxy's own connections to Redis,
/// the admin port, and names and certificates that are looked up.
const KEPT_FROM_LANES: u64 = 96;

/// Whether a descriptor is one of the last, which a client or its pin does not get.
pub(super) fn is_kept_from_clients(descriptor: RawFd) -> bool {
    is_among_last(descriptor, KEPT_FROM_CLIENTS, limit())
}

/// Whether a descriptor is one of the last, which a lane does not get.
pub(super) fn is_kept_from_lanes(descriptor: RawFd) -> bool {
    is_among_last(descriptor, KEPT_FROM_LANES, limit())
}

/// How many there can be. That can be changed while the process runs.
fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The system gives the lowest number that is free, so that tells how many there are.
fn is_among_last(descriptor: RawFd, kept: u64, limit: u64) -> bool {
    // Of few, clients get a half all the same.
    let kept = if limit < 2 * KEPT_FROM_CLIENTS { kept * limit / (2 * KEPT_FROM_CLIENTS) } else { kept };
    u64::try_from(descriptor).is_ok_and(|number| number >= limit - kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept() {
        for (limit, clients, lanes) in [(1024, 896, 928), (256, 128, 160), (100, 50, 63)] {
            for (kept, first) in [(KEPT_FROM_CLIENTS, clients), (KEPT_FROM_LANES, lanes)] {
                assert!(!is_among_last(first - 1, kept, limit), "{first} of {limit}");
                assert!(is_among_last(first, kept, limit), "{first} of {limit}");
            }
        }
        assert!(!is_among_last(RawFd::MAX, KEPT_FROM_CLIENTS, u64::MAX));
        assert!(!is_among_last(-1, KEPT_FROM_CLIENTS, 1024));
    }
}
