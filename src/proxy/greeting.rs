//! What comes before a client's first command: the header of a load balancer, and the handshake of TLS.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::proxy_header::ProxyHeader;
use crate::config;
use crate::tls::{ServerTls, TlsError};
use crate::transport::{Transport, prepare};

/// How long a client may take until its first command can come.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// What Redis says to one client too many.
const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

/// An accepted connection, on its way to the thread that will serve it: without a runtime, since that has another.
#[derive(Debug)]
pub enum Accepted {
    /// TCP.
    Tcp(std::net::TcpStream, SocketAddr),
    /// A unix socket.
    Unix(std::os::unix::net::UnixStream),
}

impl Accepted {
    /// The number of its descriptor.
    pub fn descriptor(&self) -> RawFd {
        match self {
            Self::Tcp(stream, _) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
        }
    }

    /// Where the client is, as far as the connection tells.
    pub fn from(&self) -> ClientAddress {
        match self {
            Self::Tcp(_, address) => ClientAddress::Tcp(*address),
            Self::Unix(_) => ClientAddress::Unix,
        }
    }
}

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAddress {
    /// Its own address, or the one that a load balancer has told.
    Tcp(SocketAddr),
    /// On this host.
    Unix,
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix socket"),
        }
    }
}

/// How clients are received.
#[derive(Debug)]
pub struct Greeting {
    tls: Option<ServerTls>,
    proxy_protocol: bool,
    keepalive: Duration,
}

impl Greeting {
    /// As the settings say. Reads the files that they name.
    ///
    /// # Errors
    /// When a certificate or key cannot be used.
    pub fn new(settings: &config::Proxy) -> Result<Self, TlsError> {
        Ok(Self {
            tls: settings.tls.as_ref().map(ServerTls::load).transpose()?,
            proxy_protocol: settings.proxy_protocol,
            keepalive: settings.tcp_keepalive,
        })
    }

    /// Handshakes from now on are by what these settings name, once that is read. Whether TLS is spoken stays as it is.
    ///
    /// # Errors
    /// When a certificate or key cannot be used; nothing is changed before the result is called.
    pub fn reload(self: &Arc<Self>, settings: &config::Proxy) -> Result<impl FnOnce() + use<>, TlsError> {
        let found = settings.tls.as_ref().map(ServerTls::load).transpose()?;
        let greeting = self.clone();
        Ok(move || {
            if let (Some(tls), Some(found)) = (&greeting.tls, &found) {
                tls.become_as(found);
            }
        })
    }

    /// Does all that comes before the first command.
    ///
    /// # Errors
    /// When the client is gone, says something else, or takes too long.
    pub async fn receive(&self, accepted: Accepted) -> io::Result<(Transport, ClientAddress)> {
        let (stream, address) = match accepted {
            Accepted::Unix(stream) => {
                return Ok((Transport::unix(UnixStream::from_std(stream)?), ClientAddress::Unix));
            }
            Accepted::Tcp(stream, address) => (TcpStream::from_std(stream)?, address),
        };
        prepare(&stream, self.keepalive);
        if self.tls.is_none() && !self.proxy_protocol {
            return Ok((Transport::tcp(stream), ClientAddress::Tcp(address)));
        }
        // Boxed, or every client's task would have room for it for life.
        let received = timeout(GREETING_TIMEOUT, Box::pin(self.receive_tcp(stream))).await;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it took too long before its first command");
        let (transport, told) = received.map_err(late)??;
        Ok((transport, ClientAddress::Tcp(told.unwrap_or(address))))
    }

    async fn receive_tcp(&self, mut stream: TcpStream) -> io::Result<(Transport, Option<SocketAddr>)> {
        let told = if self.proxy_protocol { read_header(&mut stream).await? } else { None };
        let transport = match &self.tls {
            Some(tls) => Transport::tls_server(tls.accept(stream).await?),
            None => Transport::tcp(stream),
        };
        Ok((transport, told))
    }

    /// Tells one client too many so, as Redis does: where TLS is spoken, by closing alone.
    ///
    /// # Errors
    /// When it is gone already.
    pub async fn refuse(&self, accepted: Accepted) -> io::Result<()> {
        // As much as fits the socket's empty buffer, which it does; nobody waits for this client.
        match accepted {
            Accepted::Tcp(..) if self.tls.is_some() => Ok(()),
            Accepted::Tcp(stream, _) => TcpStream::from_std(stream)?.write_all(TOO_MANY).await,
            Accepted::Unix(stream) => UnixStream::from_std(stream)?.write_all(TOO_MANY).await,
        }
    }
}

/// Reads a header and not a byte more: what follows is for TLS, or for the session.
async fn read_header(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut bytes = Vec::new();
    loop {
        match ProxyHeader::parse(&bytes).map_err(io::Error::other)? {
            ProxyHeader::Whole { client, .. } => return Ok(client),
            ProxyHeader::Partial(missing) => {
                if (&mut *stream).take(missing as u64).read_buf(&mut bytes).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}
