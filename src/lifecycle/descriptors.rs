//! File descriptors: as many as the system gives, and no more clients than those are enough for.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The last ones, which clients and their connections to Redis do not get (see `proxy::descriptors`): for shared connections,
/// and for what the proxy has to open when clients have taken all others.
const KEPT_FROM_CLIENTS: u64 = 128;
/// What the proxy opens for itself before clients come: its ports, the connections of the feed and the deletions, ...
const OWN: u64 = 64;
/// ... for each thread that serves clients, to wait for sockets,
const PER_THREAD: u64 = 4;
/// ... for each source,
const PER_SOURCE: u64 = 2;
/// ... and for each client, at worst: its own socket, and a connection to Redis for it alone.
const PER_CLIENT: u64 = 2;

/// What the settings ask for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// `proxy.max_clients`.
    pub clients: usize,
    /// Threads that serve clients.
    pub threads: usize,
    /// Sources.
    pub sources: usize,
}

impl Wanted {
    fn own(&self) -> u64 {
        OWN + PER_THREAD * self.threads as u64 + PER_SOURCE * self.sources as u64
    }

    /// How many descriptors that takes, at worst.
    pub fn descriptors(&self) -> u64 {
        let used = self.own() + PER_CLIENT * self.clients as u64;
        used + used.min(KEPT_FROM_CLIENTS)
    }

    /// How many clients this limit is enough for; at least one. The feed must not run out of descriptors because of clients:
    /// without a connection to Redis nothing is deleted.
    pub fn clients_within(&self, limit: u64) -> usize {
        let room = (limit - kept_from_clients(limit)).saturating_sub(self.own()) / PER_CLIENT;
        self.clients.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1)
    }
}

/// How many of so many descriptors clients and their connections to Redis do not get. Of few, they get a half all the same.
pub fn kept_from_clients(limit: u64) -> u64 {
    KEPT_FROM_CLIENTS.min(limit / 2)
}

/// How many files this process may open at a time, as it was started.
pub fn limit() -> Rlimit {
    getrlimit(Resource::Nofile)
}

/// How many it may open at most, which is what [`raise`] gets.
pub fn hard_limit() -> u64 {
    limit().maximum.unwrap_or(u64::MAX)
}

/// Raises the soft limit to the hard one, and tells what it is now. (The soft limit is low, mostly 1024, for the sake of
/// programs that call `select`.)
///
/// # Errors
/// When the operating system refuses: then it is as it was.
pub fn raise() -> Result<u64, (u64, io::Error)> {
    let Rlimit { current, maximum } = limit();
    let before = current.unwrap_or(u64::MAX);
    if current == maximum {
        return Ok(before);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => Ok(maximum.unwrap_or(u64::MAX)),
        Err(error) => Err((before, error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { clients: 10_000, threads: 4, sources: 3 };

    #[test]
    fn clients_get_what_the_proxy_itself_does_not_need() {
        assert_eq!(WANTED.descriptors(), 128 + 64 + 16 + 6 + 20_000);
        assert_eq!(WANTED.clients_within(u64::MAX), 10_000);
        assert_eq!(WANTED.clients_within(WANTED.descriptors()), 10_000);
        assert_eq!(WANTED.clients_within(WANTED.descriptors() - 1), 9_999);
        assert_eq!(WANTED.clients_within(1024), 405);
        assert_eq!(WANTED.clients_within(64), 1, "one that may not work, rather than no proxy");
        for limit in [0, 1, 1 << 30] {
            assert!((1..=10_000).contains(&WANTED.clients_within(limit)));
        }
        for clients in [1, 10, 100] {
            let wanted = Wanted { clients, ..WANTED };
            let needed = wanted.descriptors();
            assert_eq!(wanted.clients_within(needed), clients, "of {needed}");
        }
    }
}
