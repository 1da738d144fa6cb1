//! Where Redis is: `redis://[user[:password]@]host[:port][/db]` or `unix://[user[:password]@]PATH[?db=N]`.

use std::fmt;
use std::io;
use std::str::FromStr;

use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};

use crate::transport::Transport;

/// A Redis URL that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// TLS is not there yet.
    #[error("rediss:// (TLS to Redis) is not supported by this version; use redis:// or unix://")]
    Tls,
    /// Another scheme, or none.
    #[error("a Redis URL begins with redis:// or unix://")]
    Scheme,
    /// A part of it is wrong.
    #[error("the {0} of the Redis URL is not valid")]
    Part(&'static str),
}

/// A Redis server, the credentials of the proxy's own connections, and the db that guards apply to.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    endpoint: Endpoint,
    user: Option<String>,
    password: Option<String>,
    /// The db that guards apply to.
    pub db: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoint {
    Tcp(String, u16),
    Unix(String),
}

impl Address {
    /// Connects, without logging in.
    ///
    /// # Errors
    /// Those of the operating system.
    pub async fn connect(&self) -> io::Result<Transport> {
        Ok(match &self.endpoint {
            Endpoint::Tcp(host, port) => Transport::tcp(TcpStream::connect((host.as_str(), *port)).await?),
            Endpoint::Unix(path) => Transport::Unix(UnixStream::connect(path).await?),
        })
    }

    /// The `AUTH` of the proxy's own connections, if there is one.
    pub fn auth(&self) -> Option<Vec<&[u8]>> {
        let password = self.password.as_deref()?.as_bytes();
        Some(match self.user.as_deref() {
            Some(user) => vec![b"AUTH", user.as_bytes(), password],
            None => vec![b"AUTH", password],
        })
    }
}

/// Without the credentials: it goes to logs and to clients.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Tcp(host, port) if host.contains(':') => write!(f, "redis://[{host}]:{port}/{}", self.db),
            Endpoint::Tcp(host, port) => write!(f, "redis://{host}:{port}/{}", self.db),
            Endpoint::Unix(path) => write!(f, "unix://{path}?db={}", self.db),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(url: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = url.split_once("://").ok_or(AddressError::Scheme)?;
        let slash = rest.find('/').unwrap_or(rest.len());
        // A password may hold an `@`, a path too: the last one before the path separates.
        let (credentials, place) = match rest[..slash].rfind('@') {
            Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
            None => (None, rest),
        };
        let (user, password) = credentials.map(login).transpose()?.unwrap_or_default();
        let (endpoint, db) = match scheme {
            "redis" => tcp(place)?,
            "unix" => unix(place)?,
            "rediss" => return Err(AddressError::Tls),
            _ => return Err(AddressError::Scheme),
        };
        Ok(Self { endpoint, user, password, db })
    }
}

fn login(credentials: &str) -> Result<(Option<String>, Option<String>), AddressError> {
    let text = |part: &str| decode(part).ok_or(AddressError::Part("user or password"));
    Ok(match credentials.split_once(':') {
        Some(("", password)) => (None, Some(text(password)?)),
        Some((user, password)) => (Some(text(user)?), Some(text(password)?)),
        // As redis-cli reads it: `redis://secret@host` would be ambiguous, a lone name is a user without password.
        None => (Some(text(credentials)?), None),
    })
}

fn tcp(place: &str) -> Result<(Endpoint, u32), AddressError> {
    let place = place.split('?').next().unwrap_or_default();
    let (authority, db) = place.split_once('/').unwrap_or((place, ""));
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port),
        None => authority.rfind(':').map_or((authority, ""), |colon| authority.split_at(colon)),
    };
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| AddressError::Part("port"))?,
        None if port.is_empty() => 6379,
        None => return Err(AddressError::Part("port")),
    };
    Ok((Endpoint::Tcp(host.to_owned(), port), database(db)?))
}

fn unix(place: &str) -> Result<(Endpoint, u32), AddressError> {
    let (path, query) = place.split_once('?').unwrap_or((place, ""));
    if path.is_empty() {
        return Err(AddressError::Part("path"));
    }
    let db = query.split('&').find_map(|pair| pair.strip_prefix("db=")).unwrap_or_default();
    Ok((Endpoint::Unix(path.to_owned()), database(db)?))
}

fn database(db: &str) -> Result<u32, AddressError> {
    if db.is_empty() { Ok(0) } else { db.parse().map_err(|_| AddressError::Part("db")) }
}

/// Resolves `%40` and its kin.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push((digit()? << 4 | digit()?) as u8);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Address {
        url.parse().expect(url)
    }

    #[test]
    fn urls_are_read_as_clients_read_them() {
        assert_eq!(address("redis://127.0.0.1:6379/2").to_string(), "redis://127.0.0.1:6379/2");
        assert_eq!(address("redis://cache").to_string(), "redis://cache:6379/0");
        assert_eq!(address("redis://[::1]:7000").to_string(), "redis://[::1]:7000/0");
        assert_eq!(address("unix:///run/redis.sock?db=3").to_string(), "unix:///run/redis.sock?db=3");
        let with_login = address("redis://app:p%40ss@h:1/0");
        assert_eq!(with_login.auth(), Some(vec![&b"AUTH"[..], b"app", b"p@ss"]));
        assert_eq!(with_login.to_string(), "redis://h:1/0", "no credentials in logs");
        assert_eq!(address("redis://:secret@h").auth(), Some(vec![&b"AUTH"[..], b"secret"]));
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        assert_eq!("rediss://h".parse::<Address>(), Err(AddressError::Tls));
        assert_eq!("http://h".parse::<Address>(), Err(AddressError::Scheme));
        assert_eq!("redis://h:x".parse::<Address>(), Err(AddressError::Part("port")));
        assert_eq!("redis://h/x".parse::<Address>(), Err(AddressError::Part("db")));
    }
}
