//! File descriptors that clients do not get.
//!
//! A process that has none left cannot connect to Postgres or Redis again, end a fill that Redis does not answer, or say
//! on its admin port that it lives. So the last ones are for that, and clients and their connections to Redis have to do
//! with the others.

use std::os::fd::RawFd;

use crate::lifecycle::descriptors::{kept_from_clients, limit};

/// Whether a descriptor is one of the last, which a client or its pin does not get.
pub(super) fn is_kept_from_clients(descriptor: RawFd) -> bool {
    let limit = now();
    is_among_last(descriptor, kept_from_clients(limit), limit)
}

/// Whether a descriptor is one of the last, which a lane does not get.
pub(super) fn is_kept_from_lanes(descriptor: RawFd) -> bool {
    let limit = now();
    is_among_last(descriptor, kept_from_lanes(limit), limit)
}

/// Of those that clients do not get, three in four are not for lanes either: they are for the feed, the sources, the proxy's
/// own connections to Redis, the admin port, and names and certificates that are looked up.
fn kept_from_lanes(limit: u64) -> u64 {
    kept_from_clients(limit) / 4 * 3
}

/// How many there can be. That can be changed while the process runs.
fn now() -> u64 {
    limit().current.unwrap_or(u64::MAX)
}

/// The system gives the lowest number that is free, so that tells how many there are.
fn is_among_last(descriptor: RawFd, kept: u64, limit: u64) -> bool {
    u64::try_from(descriptor).is_ok_and(|number| number >= limit - kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept() {
        for (limit, clients, lanes) in [(1024, 896, 928), (256, 128, 160), (100, 50, 64)] {
            for (kept, first) in [(kept_from_clients(limit), clients), (kept_from_lanes(limit), lanes)] {
                assert!(!is_among_last(first - 1, kept, limit), "{first} of {limit}");
                assert!(is_among_last(first, kept, limit), "{first} of {limit}");
            }
        }
        assert!(!is_among_last(RawFd::MAX, 128, u64::MAX));
        assert!(!is_among_last(-1, 128, 1024));
    }
}
