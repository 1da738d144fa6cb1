//! Where clients connect.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::descriptors::is_kept_from_clients;
use super::greeting::Accepted;
use super::threads::Threads;
use crate::complaint::Complaint;

/// Connections that wait to be accepted, as tokio has it.
const BACKLOG: i32 = 1024;

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

impl Listener {
    /// Listens on `host:port` or `unix:PATH`, which gets these permissions, or those that the umask leaves.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub async fn bind(address: &str, socket_mode: Option<u32>) -> Result<Self, ListenError> {
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
        let listener = match socket_mode {
            Some(mode) => bind_with_mode(path, mode),
            None => UnixListener::bind(path),
        };
        Ok(Self::Unix(listener.map_err(error)?, path.into()))
    }

    /// Accepts clients and gives them to the threads, until it is told to stop or dropped. Those that the system has
    /// connected by then are served: they believe that they are, and may have sent a command.
    pub async fn run(self, threads: Arc<Threads>, max_clients: usize, stop: impl Future<Output = ()>) {
        info!(address = %self.address(), "listening");
        let mut stop = pin!(stop);
        let (mut failed, mut none_left) = (Complaint::default(), Complaint::default());
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok(accepted) => take(accepted, &threads, max_clients, &mut none_left).await,
                Err(error) => {
                    // Of the system's descriptors or memory, perhaps: the clients that are there go on.
                    if failed.is_due() {
                        warn!(%error, "cannot accept a client");
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        // No more than can wait: those who come while these are taken must not keep the port open.
        for _ in 0..BACKLOG {
            let Ok(Ok(accepted)) = timeout(Duration::ZERO, self.accept()).await else { break };
            take(accepted, &threads, max_clients, &mut none_left).await;
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
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Accepted::Tcp(stream.into_std()?, address)
            }
            Self::Unix(listener, _) => Accepted::Unix(listener.accept().await?.0.into_std()?),
        })
    }
}

async fn take(accepted: Accepted, threads: &Threads, max_clients: usize, none_left: &mut Complaint) {
    let is_last = is_kept_from_clients(accepted.descriptor());
    if is_last && none_left.is_due() {
        let clients = threads.clients();
        warn!(
            clients,
            "no file descriptor is left for clients: raise the limit (ulimit -n), or lower max_clients"
        );
    }
    if !is_last && threads.clients() < max_clients {
        return threads.serve(accepted);
    }
    debug!(client = %accepted.from(), "one client too many");
    if let Err(error) = threads.greeting().refuse(accepted).await {
        debug!(%error, "cannot refuse a client in words");
    }
}

/// Nobody can connect before the permissions are right: connections are taken after that only.
fn bind_with_mode(path: &str, mode: u32) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Somebody else's job if it fails: the next start removes it.
            let _ = std::fs::remove_file(path);
        }
    }
}
