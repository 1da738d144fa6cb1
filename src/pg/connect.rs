//! From a [`Target`] to a connection: hosts in turn, each of their addresses, over TLS or not, until a login succeeds on a
//! server of the right kind. Both of our clients come this way, so that what libpq promises holds for both.

use std::future::Future;
use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::error::PgError;
use super::passfile;
use super::target::{Address, Host, Keepalive, SessionAttrs, SslMode, Target, socket_path};
use crate::tls::{POSTGRES, PostgresTls, server_end_point};
use crate::transport::Transport;

/// Class 28 of the SQLSTATEs: the login is refused. With or without TLS it may be another line of `pg_hba.conf`.
const INVALID_AUTHORIZATION: &str = "28";
/// Starting up, shutting down, or recovering: another host may serve.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// What a login is made with.
#[derive(Clone)]
pub(super) struct Session<'a> {
    pub(super) target: &'a Target,
    pub(super) application_name: &'a str,
    pub(super) password: Option<Vec<u8>>,
    /// For channel binding; none without TLS.
    pub(super) end_point: Option<Vec<u8>>,
}

impl Session<'_> {
    /// The password, where the server asks for one.
    pub(super) fn password(&self) -> Result<&[u8], PgError> {
        self.password.as_deref().ok_or_else(|| {
            PgError::Login(
                "Postgres wants a password, and there is none: neither a password_file nor one in the URL, in \
                 PGPASSWORD, or in a password file (~/.pgpass) for this host, port, database and user"
                    .to_owned(),
            )
        })
    }
}

/// What a server says of itself when a session begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) standby: bool,
    pub(super) read_only: bool,
    /// It has said so.
    pub(super) known: bool,
}

/// Asks what Postgres reports by itself only since version 14.
pub(super) const STANDING: &str = "SELECT pg_catalog.pg_is_in_recovery()::text, \
                                   pg_catalog.current_setting('default_transaction_read_only')";

impl Standing {
    /// The parameters that Postgres reports.
    pub(super) fn see(&mut self, name: &str, value: &str) {
        match name {
            "in_hot_standby" => (self.standby, self.known) = (value == "on", true),
            "default_transaction_read_only" => self.read_only = value == "on",
            _ => {}
        }
    }

    /// The answer to [`STANDING`].
    pub(super) fn answered(standby: Option<&str>, read_only: Option<&str>) -> Result<Self, PgError> {
        match (standby, read_only) {
            (Some(standby), Some(read_only)) => {
                Ok(Self { standby: standby == "true", read_only: read_only == "on", known: true })
            }
            _ => Err(PgError::Protocol("pg_is_in_recovery answered nothing".into())),
        }
    }

    /// What is against it.
    fn objection(self, wanted: SessionAttrs) -> Option<&'static str> {
        let read_only = self.standby || self.read_only;
        match wanted {
            SessionAttrs::ReadWrite if read_only => Some("is read-only"),
            SessionAttrs::ReadOnly if !read_only => Some("is not read-only"),
            SessionAttrs::Primary if self.standby => Some("is a standby"),
            SessionAttrs::Standby if !self.standby => Some("is no standby"),
            _ => None,
        }
    }
}

/// A client that can log in on a socket.
pub(super) trait Login: Sized + Send {
    /// Logs in.
    fn login(socket: Transport, session: &Session<'_>) -> impl Future<Output = Result<Self, PgError>> + Send;

    /// What the server has said of itself.
    fn standing(&self) -> Standing;

    /// Asks it, where it has not.
    fn ask_standing(&mut self) -> impl Future<Output = Result<Standing, PgError>> + Send;
}

/// Connects and logs in. Says where that was, too: another connection can go to the same server.
pub(super) async fn connect<L: Login>(target: &Target, application_name: &str) -> Result<(L, Host), PgError> {
    let passes: &[SessionAttrs] = match target.attrs {
        SessionAttrs::PreferStandby => &[SessionAttrs::Standby, SessionAttrs::Any],
        _ => std::slice::from_ref(&target.attrs),
    };
    let mut failures = Failures::default();
    for wanted in passes {
        for host in in_order(target, target.hosts.clone()) {
            let places = match within(target, addresses(target, &host)).await {
                Ok(places) => places,
                Err(error) => {
                    failures.put(&host, error);
                    continue;
                }
            };
            for place in places {
                let reached = within(target, async {
                    let mut client = attempt::<L>(target, &place, application_name).await?;
                    let mut standing = client.standing();
                    if !standing.known && *wanted != SessionAttrs::Any {
                        standing = client.ask_standing().await?;
                    }
                    Ok((client, standing.objection(*wanted)))
                });
                match reached.await {
                    Ok((client, None)) => return Ok((client, place)),
                    // So are its other addresses.
                    Ok((_, Some(what))) => {
                        failures.put(&place, PgError::Unfit(what));
                        break;
                    }
                    Err(error) if may_be_of_the_host(&error) => failures.put(&place, error),
                    // As in libpq: what is wrong with the login is not tried elsewhere.
                    Err(error) => return Err(failures.with(&place, error)),
                }
            }
        }
    }
    Err(failures.end())
}

/// Whether another host may do better.
fn may_be_of_the_host(error: &PgError) -> bool {
    match error {
        PgError::Io(_) => true,
        // Tried with TLS and without: a balancer whose server is gone takes connections and closes them.
        PgError::At { last, .. } => may_be_of_the_host(last),
        _ => error.code() == Some(CANNOT_CONNECT_NOW),
    }
}

/// What went wrong, host by host.
#[derive(Default)]
struct Failures {
    earlier: Vec<String>,
    last: Option<(String, PgError)>,
}

impl Failures {
    fn put(&mut self, host: &Host, error: PgError) {
        if let Some((host, error)) = self.last.replace((format!("Postgres at {host}"), error)) {
            self.earlier.push(format!("{host}: {error}"));
        }
    }

    fn with(mut self, host: &Host, error: PgError) -> PgError {
        self.put(host, error);
        self.end()
    }

    fn end(self) -> PgError {
        match self.last {
            Some((place, last)) => PgError::At { earlier: self.earlier, place, last: Box::new(last) },
            None => PgError::Url("it names no host that has an address".into()),
        }
    }
}

/// `connect_timeout`, which is for each address.
pub(super) async fn within<T>(
    target: &Target,
    doing: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    let limit = target.connect_timeout;
    if limit.is_zero() {
        return doing.await;
    }
    tokio::time::timeout(limit, doing).await.unwrap_or_else(|_| {
        let what = format!("no answer within {limit:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, what).into())
    })
}

/// A hash with a fresh random seed: as random as `load_balance_hosts` has to be.
fn in_order<T: std::hash::Hash>(target: &Target, mut list: Vec<T>) -> Vec<T> {
    if target.shuffled {
        let random = std::hash::RandomState::new();
        list.sort_by_cached_key(|item| random.hash_one(item));
    }
    list
}

/// The host, once for each of its addresses.
async fn addresses(target: &Target, host: &Host) -> Result<Vec<Host>, PgError> {
    let Some(Address::Tcp(name)) = host.name.as_ref().filter(|_| host.address.is_none()) else {
        return Ok(vec![host.clone()]);
    };
    let mut found: Vec<IpAddr> = lookup_host((name.as_str(), host.port))
        .await
        .map_err(cannot_connect)?
        .map(|found| found.ip())
        .collect();
    found.dedup();
    let found = in_order(target, found);
    Ok(found.into_iter().map(|address| Host { address: Some(address), ..host.clone() }).collect())
}

/// As an error of making a connection.
fn cannot_connect(error: io::Error) -> PgError {
    PgError::Io(io::Error::new(error.kind(), format!("cannot connect: {error}")))
}

/// One address, over TLS or without as `sslmode` has it.
async fn attempt<L: Login>(target: &Target, host: &Host, application_name: &str) -> Result<L, PgError> {
    let password = passfile::password(target, host)?;
    let session = Session { target, application_name, password, end_point: None };
    let address = match (&host.name, host.address) {
        (Some(Address::Unix(directory)), None) => {
            // Never with TLS, whatever sslmode says: as in libpq.
            let path = socket_path(directory, host.port);
            let stream = UnixStream::connect(path).await.map_err(cannot_connect)?;
            return L::login(Transport::unix(stream), &session).await;
        }
        (_, Some(address)) => SocketAddr::new(address, host.port),
        _ => return Err(PgError::Url("a host without an address".into())),
    };
    match target.tls.mode {
        SslMode::Disable => plainly(session, address).await,
        SslMode::Allow => match plainly(session.clone(), address).await {
            Err(refused) if is_refusal(&refused) => {
                let second = securely(session, host, address).await;
                second.map_err(|second| refused.and_then("without TLS", "with TLS", second))
            }
            done => done,
        },
        SslMode::Prefer => if_offered(session, host, address).await,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => securely(session, host, address).await,
    }
}

/// With or without TLS another line of `pg_hba.conf` may fit.
fn is_refusal(error: &PgError) -> bool {
    error.code().is_some_and(|code| code.starts_with(INVALID_AUTHORIZATION))
}

async fn plainly<L: Login>(session: Session<'_>, address: SocketAddr) -> Result<L, PgError> {
    let stream = tcp(address, &session.target.keepalive).await?;
    L::login(Transport::tcp(stream), &session).await
}

async fn securely<L: Login>(
    mut session: Session<'_>,
    host: &Host,
    address: SocketAddr,
) -> Result<L, PgError> {
    let tls = tls(session.target, host, address)?;
    let stream = tcp(address, &session.target.keepalive).await?;
    match negotiate(stream, tls, session.target.tls.direct).await? {
        Negotiated::Tls(socket, end_point) => {
            session.end_point = end_point;
            L::login(socket, &session).await
        }
        Negotiated::Plain(_) => {
            Err(PgError::Tls("the server does not speak TLS, and sslmode needs it".into()))
        }
    }
}

/// `sslmode=prefer`: over TLS where the server has it and takes us so, else without.
async fn if_offered<L: Login>(
    mut session: Session<'_>,
    host: &Host,
    address: SocketAddr,
) -> Result<L, PgError> {
    let tls = tls(session.target, host, address)?;
    let stream = tcp(address, &session.target.keepalive).await?;
    let failed = match negotiate(stream, tls, false).await {
        Ok(Negotiated::Plain(stream)) => return L::login(Transport::tcp(stream), &session).await,
        Ok(Negotiated::Tls(socket, end_point)) => {
            session.end_point = end_point;
            match L::login(socket, &session).await {
                Err(refused) if is_refusal(&refused) => refused,
                done => return done,
            }
        }
        Err(failed) => failed,
    };
    session.end_point = None;
    let second = plainly(session, address).await;
    second.map_err(|second| failed.and_then("with TLS", "without TLS", second))
}

fn tls(target: &Target, host: &Host, address: SocketAddr) -> Result<PostgresTls, PgError> {
    let name = match &host.name {
        Some(Address::Tcp(name)) => Some(name.as_str()),
        _ => None,
    };
    PostgresTls::load(&target.tls, name, &address.ip().to_string())
        .map_err(|error| PgError::Tls(error.to_string()))
}

enum Negotiated {
    /// And what channel binding binds to.
    Tls(Transport, Option<Vec<u8>>),
    /// The server does not speak it.
    Plain(TcpStream),
}

/// Asks for TLS, unless it begins at once, and does the handshake.
async fn negotiate(mut stream: TcpStream, tls: PostgresTls, direct: bool) -> Result<Negotiated, PgError> {
    if !direct {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await?;
        // Room for more than the one byte that is due: what follows it before the handshake was sent by somebody in
        // between, and would be taken for the server's first words over TLS (CVE-2021-23222).
        let mut answer = [0; 2];
        match stream.read(&mut answer).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            1 => {}
            _ => return Err(PgError::Protocol("bytes between the word for TLS and its handshake".into())),
        }
        match answer[0] {
            b'S' => {}
            b'N' => return Ok(Negotiated::Plain(stream)),
            // An error's text is nobody's word before the handshake: it is not shown (CVE-2024-10977).
            other => {
                let what = format!("{:?} as the answer to a request for TLS", char::from(other));
                return Err(PgError::Protocol(what));
            }
        }
    }
    let stream = tls.connect(stream).await.map_err(|error| {
        let of_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        let error = POSTGRES.in_words(error);
        if of_tls { PgError::Tls(error.to_string()) } else { PgError::Io(error) }
    })?;
    let certificates = stream.get_ref().1.peer_certificates();
    let end_point = certificates.and_then(|chain| server_end_point(chain.first()?));
    Ok(Negotiated::Tls(Transport::tls_client(stream, &POSTGRES), end_point))
}

async fn tcp(address: SocketAddr, keepalive: &Keepalive) -> Result<TcpStream, PgError> {
    let stream = TcpStream::connect(address).await.map_err(cannot_connect)?;
    // An acknowledgement must leave at once: somebody's COMMIT may wait for it.
    stream.set_nodelay(true)?;
    if keepalive.on {
        sockopt::set_tcp_keepidle(&stream, keepalive.idle).map_err(io::Error::from)?;
        sockopt::set_tcp_keepintvl(&stream, keepalive.interval).map_err(io::Error::from)?;
        sockopt::set_tcp_keepcnt(&stream, keepalive.count).map_err(io::Error::from)?;
        sockopt::set_socket_keepalive(&stream, true).map_err(io::Error::from)?;
    }
    if keepalive.user_timeout > 0 {
        sockopt::set_tcp_user_timeout(&stream, keepalive.user_timeout).map_err(io::Error::from)?;
    }
    Ok(stream)
}

#[cfg(test)]
mod tests;
