//! The stranger: finds out what Redis makes of a connection that has not logged in.
//!
//! A connection stays what Redis took it for when it was opened. So a lane that was opened while nobody needed a
//! password must not carry clients that have come since one is needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use super::{CacheError, Connection, Endpoint};

/// How often Redis is asked. So long a change can take until it is noticed.
const PACE: Duration = Duration::from_secs(1);

/// What is known of connections that have not logged in.
#[derive(Debug, Default)]
pub struct Strangers {
    /// Goes up when that changes: connections of before are not for clients that come after.
    times: AtomicU32,
    need_login: AtomicBool,
}

impl Strangers {
    /// How often that has changed.
    pub fn times(&self) -> u32 {
        self.times.load(Ordering::Relaxed)
    }

    /// Whether they can do nothing but log in.
    pub fn need_login(&self) -> bool {
        self.need_login.load(Ordering::Relaxed)
    }

    fn told(&self, need_login: bool) {
        if self.need_login.swap(need_login, Ordering::Relaxed) != need_login {
            self.times.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Asks.
#[derive(Debug, Clone)]
pub struct Stranger {
    /// Where Redis is.
    pub address: Endpoint,
    /// Who wants to know.
    pub strangers: Arc<Strangers>,
}

impl Stranger {
    /// Asks until the process ends.
    pub async fn run(self) {
        let mut connection = None;
        loop {
            if let Err(error) = self.ask(&mut connection).await {
                // Redis is away, or full: others say so.
                debug!(%error, "cannot ask Redis about connections that have not logged in");
                connection = None;
            }
            sleep(PACE).await;
        }
    }

    async fn ask(&self, connection: &mut Option<Connection>) -> Result<(), CacheError> {
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(Connection::stranger(&self.address).await?),
        };
        // As if it had just connected.
        connection.call(&[b"RESET"]).await?;
        match connection.call(&[b"PING"]).await {
            Ok(_) => self.strangers.told(false),
            Err(CacheError::Refused { error, .. }) if error.starts_with("NOAUTH") => {
                self.strangers.told(true)
            }
            // It has a right less than most; but it is somebody.
            Err(CacheError::Refused { error, .. }) if error.starts_with("NOPERM") => {
                self.strangers.told(false)
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
