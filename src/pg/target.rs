//! Where to connect, as whom and how: libpq's parameters, read once for both of our clients, so that they go to the same
//! place in the same way.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::PgError;
use super::passfile::in_home;
use super::{conninfo, parameters};

/// Session settings that decide how values are printed, and settings that could end the session. They are sent
/// with the startup message, which wins over `ALTER ROLE ... SET` and over the URL's own `options`: keys must
/// look the same whoever administers the database.
pub const SESSION: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO, MDY"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    // A warning of the stream's can mean that it leaves out changes.
    ("client_min_messages", "warning"),
    ("wal_sender_timeout", "60s"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // Before version 15 everybody may create in `public`: a function there whose arguments fit better than those of the
    // catalog's would run as us.
    ("search_path", "pg_catalog"),
    // Our own transactions must not wait for a synchronous standby that may be ourselves.
    ("synchronous_commit", "local"),
];

/// What follows the login, for a setting that version 13 does not have: in a startup message that would end the session.
pub const SESSION_SQL: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
                               WHERE name = 'idle_session_timeout'";

/// Where, as whom and how to connect.
#[derive(Clone)]
pub struct Target {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) password: Option<Vec<u8>>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) passfile: Option<PathBuf>,
    pub(super) dbname: String,
    pub(super) options: Option<String>,
    /// For one address; zero: for ever.
    pub(super) connect_timeout: Duration,
    pub(super) attrs: SessionAttrs,
    /// Hosts and addresses are tried in random order.
    pub(super) shuffled: bool,
    pub(super) keepalive: Keepalive,
    pub(super) tls: TlsParameters,
    pub(super) channel_binding: ChannelBinding,
}

impl Target {
    /// The database.
    pub fn database(&self) -> &str {
        &self.dbname
    }
}

/// One of the hosts that a target names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// As it was named, which is what its certificate has to be for.
    pub(super) name: Option<Address>,
    /// Where it is, if that was named too, or is known by now.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.address) {
            (Some(Address::Unix(path)), _) => write!(f, "{}", socket_path(path, self.port).display()),
            (Some(Address::Tcp(name)), Some(address)) if *name != address.to_string() => {
                write!(f, "{name}:{} ({address})", self.port)
            }
            (Some(Address::Tcp(name)), _) => write!(f, "{name}:{}", self.port),
            (None, Some(address)) => write!(f, "{address}:{}", self.port),
            (None, None) => write!(f, ":{}", self.port),
        }
    }
}

/// The socket in a directory.
pub(super) fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// `target_session_attrs`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// `keepalives` and its kin, for TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keepalive {
    pub(super) on: bool,
    pub(super) idle: Duration,
    pub(super) interval: Duration,
    pub(super) count: u32,
    /// `tcp_user_timeout`, in milliseconds; 0: the system's.
    pub(super) user_timeout: u32,
}

/// `sslmode`, from the weakest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `sslrootcert`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    /// libpq's own place, if there is a file.
    Usual,
    /// Those of the system.
    System,
    File(PathBuf),
}

/// The parameters whose names begin with `ssl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsParameters {
    pub(crate) mode: SslMode,
    pub(crate) roots: Roots,
    /// `sslcert` and `sslkey`; libpq's own places when absent.
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    /// `sslcertmode=disable`: no certificate is shown.
    pub(crate) shows_cert: bool,
    /// `sslnegotiation=direct`
    pub(crate) direct: bool,
    pub(crate) sni: bool,
    /// Whether TLS 1.2 will do, and whether 1.3 will.
    pub(crate) versions: [bool; 2],
}

impl Default for TlsParameters {
    fn default() -> Self {
        Self {
            mode: SslMode::Prefer,
            roots: Roots::Usual,
            cert: None,
            key: None,
            shows_cert: true,
            direct: false,
            sni: true,
            versions: [true; 2],
        }
    }
}

/// `channel_binding`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

impl fmt::Debug for Target {
    /// Never the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "{}@{}/{}", self.user, hosts.join(","), self.dbname)
    }
}

impl Target {
    /// Reads a URL or `key=value` string with the rules of libpq.
    ///
    /// # Errors
    /// When it cannot be parsed, names no host or user, or has a parameter that is not supported.
    pub fn parse(url: &str) -> Result<Self, PgError> {
        Self::new(url, None)
    }

    /// The same, with the file that has the password.
    ///
    /// # Errors
    /// Those of [`Target::parse`], and when there are two passwords.
    pub fn new(url: &str, password_file: Option<&Path>) -> Result<Self, PgError> {
        let parameters = conninfo::parameters(url).map_err(PgError::Url)?;
        let mut target = parameters::read(&parameters).map_err(PgError::Url)?;
        if password_file.is_some() && target.password.is_some() {
            return Err(PgError::Url(
                "it has a password, and password_file names another; remove one".into(),
            ));
        }
        target.password_file = password_file.map(Path::to_owned);
        Ok(target)
    }

    /// For the feed, which needs the primary: of several hosts it is looked for.
    ///
    /// # Errors
    /// Where `target_session_attrs` asks for something else.
    pub fn of_primary(mut self) -> Result<Self, PgError> {
        match self.attrs {
            SessionAttrs::Any if self.hosts.len() > 1 => self.attrs = SessionAttrs::Primary,
            SessionAttrs::Any | SessionAttrs::ReadWrite | SessionAttrs::Primary => {}
            SessionAttrs::ReadOnly | SessionAttrs::Standby | SessionAttrs::PreferStandby => {
                let what =
                    "target_session_attrs: the feed needs the primary; allowed: any, primary, read-write";
                return Err(PgError::Url(what.into()));
            }
        }
        Ok(self)
    }

    /// This host and no other: the one that another connection has reached.
    #[must_use]
    pub fn only(&self, host: &Host) -> Self {
        Self { hosts: vec![host.clone()], attrs: SessionAttrs::Any, ..self.clone() }
    }

    /// Who logs in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database that is named, or meant: the user's name if none is.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// Waits for each host no longer than this.
    pub fn within(mut self, limit: Duration) -> Self {
        if self.connect_timeout.is_zero() || self.connect_timeout > limit {
            self.connect_timeout = limit;
        }
        self
    }

    /// How many hosts are named.
    pub fn host_count(&self) -> usize {
        self.hosts.len()
    }
}

impl TlsParameters {
    /// The file of the CAs, if one is named or in its usual place.
    pub(crate) fn root_file(&self) -> Option<PathBuf> {
        match &self.roots {
            Roots::File(file) => Some(file.clone()),
            Roots::System => None,
            Roots::Usual => in_home(".postgresql/root.crt").filter(|file| file.exists()),
        }
    }

    /// The files of the certificate that is shown, and of its key.
    pub(crate) fn cert_files(&self) -> Option<(PathBuf, PathBuf)> {
        if !self.shows_cert {
            return None;
        }
        let cert = self
            .cert
            .clone()
            .or_else(|| in_home(".postgresql/postgresql.crt").filter(|file| file.exists()))?;
        // Without any the error is of the key, not that of a server that misses the certificate.
        let key = self.key.clone().or_else(|| in_home(".postgresql/postgresql.key")).unwrap_or_default();
        Some((cert, key))
    }
}

#[cfg(test)]
mod tests {
    use super::super::parameters::MODES;
    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(url).expect(url)
    }

    fn error(url: &str) -> String {
        let error = Target::parse(url).expect_err(url);
        assert!(error.is_permanent());
        error.to_string()
    }

    #[test]
    fn targets_come_from_urls() {
        assert_eq!(format!("{:?}", target("postgres://me:secret@db:5433/app")), "me@db:5433/app");
        assert_eq!(format!("{:?}", target("postgres://me@%2Frun%2Fpg")), "me@/run/pg/.s.PGSQL.5432/me");
        assert_eq!(format!("{:?}", target("postgres://me@a:1,b:2/d")), "me@a:1,b:2/d");
        assert_eq!(format!("{:?}", target("host=a,b port=7 user=me")), "me@a:7,b:7/me");
        assert_eq!(format!("{:?}", target("host=a hostaddr=::1 user=me")), "me@a:5432 (::1)/me");
        assert!(error("postgres://me@/app").contains("names no host"));
        assert!(error("postgres://db/app").contains("names no user"));
        assert!(error("postgres://me@a,b:1:2/app").contains("port"));
        assert!(error("host=a,b port=1,2,3 user=me").contains("3 ports for 2 hosts"));
        assert!(error("host=a,b hostaddr=::1 user=me").contains("host has 2 items and hostaddr 1"));
    }

    #[test]
    fn every_sslmode_is_known() {
        assert_eq!(target("postgres://me@db").tls, TlsParameters::default());
        for (name, mode) in MODES {
            assert_eq!(target(&format!("postgres://me@db?sslmode={name}")).tls.mode, *mode);
        }
        let full = target("postgres://me@db?sslrootcert=system");
        assert_eq!((full.tls.mode, full.tls.roots), (SslMode::VerifyFull, Roots::System));
        assert!(error("postgres://me@db?sslmode=require&sslrootcert=system").contains("verify-full"));
        assert!(error("postgres://me@db?sslmode=none").contains("allowed: disable, allow, prefer"));
        assert!(error("postgres://me@db?sslnegotiation=direct").contains("needs sslmode=require"));
        assert!(target("postgres://me@db?sslnegotiation=direct&sslmode=require").tls.direct);
        let newer = target("postgres://me@db?ssl_min_protocol_version=TLSv1.3").tls;
        assert_eq!(newer.versions, [false, true]);
        assert!(
            error("postgres://me@db?ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2")
                .contains("no version of TLS")
        );
    }

    #[test]
    fn parameters_are_taken_passed_over_or_refused() {
        let all = "postgres://me@db?connect_timeout=3&keepalives=1&keepalives_idle=7&keepalives_interval=0\
                   &keepalives_count=5&tcp_user_timeout=900&load_balance_hosts=random&channel_binding=require\
                   &application_name=x&krbsrvname=postgres&gssencmode=prefer&options=-c%20geqo%3Doff&passfile=/p";
        let target = target(all);
        assert_eq!(target.connect_timeout, Duration::from_secs(3));
        let expected = Keepalive {
            on: true,
            idle: Duration::from_secs(7),
            interval: Duration::from_secs(10),
            count: 5,
            user_timeout: 900,
        };
        assert_eq!(target.keepalive, expected);
        assert_eq!(target.options.as_deref(), Some("-c geqo=off"));
        assert!(target.shuffled && target.channel_binding == ChannelBinding::Require);
        for name in
            ["sslcrl", "service", "require_auth", "gssencmode", "replication", "nonsense", "sslnonsense"]
        {
            let error = error(&format!("postgres://me@db?{name}=secret"));
            assert!(error.contains(name) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_feed_looks_for_the_primary() {
        let attrs = |url| target(url).of_primary().map(|target| target.attrs);
        assert!(matches!(attrs("postgres://me@a"), Ok(SessionAttrs::Any)));
        assert!(matches!(attrs("postgres://me@a,b"), Ok(SessionAttrs::Primary)));
        let read_write = attrs("postgres://me@a,b?target_session_attrs=read-write");
        assert!(matches!(read_write, Ok(SessionAttrs::ReadWrite)));
        let error = attrs("postgres://me@a,b?target_session_attrs=standby").expect_err("a standby");
        assert!(error.to_string().contains("the feed needs the primary"), "{error}");
    }

    #[test]
    fn one_password_at_most() {
        let file = Path::new("/run/secrets/password");
        assert!(Target::new("postgres://me@a", Some(file)).is_ok());
        let error = Target::new("postgres://me:secret@a", Some(file)).expect_err("two").to_string();
        assert!(error.contains("password_file") && !error.contains("secret"), "{error}");
    }
}
