//! The question that a container's health check asks.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use thiserror::Error;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a proxy counts as not alive.
#[derive(Debug, Error)]
pub enum HealthError {
    /// Nobody answers.
    #[error("the admin port at {listen} does not answer: {source}")]
    Unreachable {
        /// Where it should be.
        listen: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something else answers.
    #[error("the admin port at {listen} answered {answer:?}")]
    Answer {
        /// Where it is.
        listen: String,
        /// The first line.
        answer: String,
    },
}

/// Asks the proxy whose admin port listens at `listen` whether it is alive.
///
/// # Errors
/// When it does not say so within two seconds.
pub fn health(listen: &str) -> Result<(), HealthError> {
    let answer =
        ask(listen).map_err(|source| HealthError::Unreachable { listen: listen.to_owned(), source })?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let answer = answer.lines().next().unwrap_or_default().chars().take(80).collect();
    Err(HealthError::Answer { listen: listen.to_owned(), answer })
}

fn ask(listen: &str) -> io::Result<String> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "it resolves to no address");
    for address in listen.to_socket_addrs()? {
        match ask_at(reachable(address)) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask_at(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    // One short answer, whoever gives it.
    stream.take(1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What listens everywhere is reached over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
