//! The Redis behind the proxy, and all that it takes to connect to it.

use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};

use crate::config::{Address, AddressError, Config, RedisUrl};
use crate::tls::{ClientTls, REDIS, TlsError};
use crate::transport::{Transport, prepare};

/// Why no connection to Redis can be made as it is set.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The URL cannot be used.
    #[error("redis.url: {0}")]
    Url(#[from] AddressError),
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The Redis behind the proxy.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The db that guards apply to.
    pub db: u32,
    /// How long the proxy waits for an answer to what it asks itself.
    pub reply_timeout: Duration,
    url: RedisUrl,
    tls: Option<ClientTls>,
    keepalive: Duration,
}

impl Endpoint {
    /// The one of the settings. Reads the files that they name.
    ///
    /// # Errors
    /// When the URL or a file cannot be used.
    pub fn new(config: &Config) -> Result<Self, EndpointError> {
        let url = RedisUrl::parse(&config.redis.url)?;
        let tls = match &url.address {
            Address::Tcp(address) if url.tls => {
                let settings = config.redis.tls.clone().unwrap_or_default();
                Some(ClientTls::load(&settings, host(address))?)
            }
            _ => None,
        };
        let (reply_timeout, keepalive) = (config.redis.reply_timeout, config.proxy.tcp_keepalive);
        Ok(Self { db: url.db, reply_timeout, url, tls, keepalive })
    }

    /// Connections from now on are by the files that these settings name, once they are read. Where Redis is stays as it is.
    ///
    /// # Errors
    /// When a file cannot be used; nothing is changed before the result is called.
    pub fn reload(&self, config: &Config) -> Result<impl FnOnce() + use<>, EndpointError> {
        let (own, found) = (self.tls.clone(), Self::new(config)?.tls);
        Ok(move || {
            if let (Some(own), Some(found)) = (own, found) {
                own.become_as(&found);
            }
        })
    }

    /// Connects, without logging in.
    ///
    /// # Errors
    /// Those of the operating system, and of TLS.
    pub async fn connect(&self) -> io::Result<Transport> {
        let address = match &self.url.address {
            Address::Unix(path) => return Ok(Transport::unix(UnixStream::connect(path).await?)),
            Address::Tcp(address) => address,
        };
        let stream = TcpStream::connect(address).await?;
        prepare(&stream, self.keepalive);
        give_up_early(&stream);
        Ok(match &self.tls {
            Some(tls) => Transport::tls_client(tls.connect(stream).await?, &REDIS),
            None => Transport::tcp(stream),
        })
    }

    /// For a connection that was not there in time. A port without TLS waits for the rest of what it takes for a
    /// command.
    pub(super) fn silence(&self) -> io::Error {
        match self.tls {
            Some(_) => io::Error::new(
                io::ErrorKind::TimedOut,
                "no answer to the connection request or to the TLS handshake; does this port speak TLS (tls-port)?",
            ),
            None => io::ErrorKind::TimedOut.into(),
        }
    }

    /// The `AUTH` of the proxy's own connections, if there is one.
    pub(super) fn auth(&self) -> Option<Vec<&[u8]>> {
        let password = self.url.password.as_deref()?.as_bytes();
        Some(match self.url.user.as_deref() {
            Some(user) => vec![b"AUTH", user.as_bytes(), password],
            None => vec![b"AUTH", password],
        })
    }
}

/// Without the credentials: it goes to logs and to clients.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

/// How long Redis's host may leave bytes unacknowledged: by itself the system waits for a quarter of an hour. A host that
/// is there acknowledges whatever Redis is doing, until its buffers are full.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

#[cfg(target_os = "linux")]
fn give_up_early(stream: &TcpStream) {
    // It fails only on a socket that is gone, which the first read will tell.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED.as_millis() as u32);
}

/// Other systems have their own ways, or none.
#[cfg(not(target_os = "linux"))]
fn give_up_early(_: &TcpStream) {}

/// The host of `host:port`, without the brackets of IPv6.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn bytes_are_not_sent_in_vain_for_long() -> io::Result<()> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let stream = TcpStream::connect(listener.local_addr()?).await?;
        give_up_early(&stream);
        assert_eq!(rustix::net::sockopt::tcp_user_timeout(&stream)?, 30_000);
        Ok(())
    }

    #[test]
    fn hosts() {
        assert_eq!(host("cache.internal:6379"), "cache.internal");
        assert_eq!(host("[::1]:6379"), "::1");
    }
}
