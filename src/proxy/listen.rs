//! Where clients connect.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::time::sleep;
use tracing::{info, warn};

use super::threads::{Accepted, Threads};

/// An address that cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    /// As configured.
    pub address: String,
    /// What the operating system says.
    pub source: io::Error,
}

/// A socket that clients connect to.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket, whose file goes when this does.
    Unix(UnixListener, PathBuf),
}

/// What Redis says to one client too many.
const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

impl Listener {
    /// Listens on `host:port` or `unix:PATH`.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub async fn bind(address: &str) -> Result<Self, ListenError> {
        let error = |source| ListenError { address: address.to_owned(), source };
        let Some(path) = address.strip_prefix("unix:") else {
            return TcpListener::bind(address).await.map(Self::Tcp).map_err(error);
        };
        // The file of a predecessor that was killed. One that lives answers, and keeps it.
        if std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
        {
            std::fs::remove_file(path).map_err(error)?;
        }
        let listener = UnixListener::bind(path).map_err(error)?;
        Ok(Self::Unix(listener, path.into()))
    }

    /// Accepts clients and gives them to the threads, until it is dropped.
    pub async fn run(self, threads: Arc<Threads>, max_clients: usize) {
        info!(address = %self.address(), "listening");
        loop {
            let accepted = match self.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, perhaps: the clients that are there go on.
                    warn!(%error, "cannot accept a client");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if threads.clients() >= max_clients {
                refuse(accepted).await;
            } else {
                threads.serve(accepted);
            }
        }
    }

    /// The address, as bound.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| "?".into(), |address| address.to_string())
            }
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    async fn accept(&self) -> io::Result<Accepted> {
        // Handed over without a runtime of its own: the serving thread has another one.
        Ok(match self {
            Self::Tcp(listener) => Accepted::Tcp(listener.accept().await?.0.into_std()?),
            Self::Unix(listener, _) => Accepted::Unix(listener.accept().await?.0.into_std()?),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Somebody else's job if it fails: the next start removes it.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn refuse(accepted: Accepted) {
    // As much as fits the socket's empty buffer, which it does; nobody waits for this client.
    let told = match accepted {
        Accepted::Tcp(stream) => match tokio::net::TcpStream::from_std(stream) {
            Ok(mut stream) => stream.write_all(TOO_MANY).await,
            Err(error) => Err(error),
        },
        Accepted::Unix(stream) => match tokio::net::UnixStream::from_std(stream) {
            Ok(mut stream) => stream.write_all(TOO_MANY).await,
            Err(error) => Err(error),
        },
    };
    if let Err(error) = told {
        warn!(%error, "cannot refuse a client in words");
    }
}
