//! Where to connect, and as whom: the URLs of the settings, read with the rules of `tokio-postgres`, so that both of
//! our clients go to the same place.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, Host, SslMode};

use super::error::{PgError, error_chain};

/// A server that accepts and then says nothing is given up after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    // A warning of the stream's can mean that it leaves out changes.
    ("client_min_messages", "warning"),
    ("wal_sender_timeout", "60s"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // Our own transactions must not wait for a synchronous standby that may be ourselves.
    ("synchronous_commit", "local"),
];

/// What follows the login, for a setting that version 13 does not have: in a startup message that would end the session.
pub const SESSION_SQL: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
                               WHERE name = 'idle_session_timeout'";

/// Where and as whom to connect: what a URL says, in the form the startup message needs.
#[derive(Clone)]
pub struct Target {
    pub(super) hosts: Vec<(Address, u16)>,
    pub(super) user: String,
    pub(super) password: Option<Vec<u8>>,
    pub(super) dbname: String,
    pub(super) options: Option<String>,
    pub(super) connect_timeout: Duration,
}

#[derive(Clone, Debug)]
pub(super) enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl fmt::Debug for Target {
    /// Never the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:?}/{}", self.user, self.hosts, self.dbname)
    }
}

impl Target {
    /// Reads a URL or `key=value` string with the rules of `tokio-postgres`, so that both of our clients go to
    /// the same place.
    ///
    /// # Errors
    /// When it cannot be parsed, names no host or user, or demands TLS.
    pub fn parse(url: &str) -> Result<Self, PgError> {
        Self::from_config(&parse_url(url)?)
    }

    fn from_config(config: &tokio_postgres::Config) -> Result<Self, PgError> {
        let names: Vec<Address> = match config.get_hostaddrs() {
            [] => config
                .get_hosts()
                .iter()
                .map(|host| match host {
                    Host::Tcp(name) => Address::Tcp(name.clone()),
                    #[cfg(unix)]
                    Host::Unix(path) => Address::Unix(path.clone()),
                })
                .collect(),
            addresses => addresses.iter().map(|address| Address::Tcp(address.to_string())).collect(),
        };
        let ports = config.get_ports();
        let hosts: Vec<_> = names
            .into_iter()
            .enumerate()
            .map(|(i, name)| {
                // One port stands for all hosts, as in libpq.
                let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
                (name, port)
            })
            .collect();
        if hosts.is_empty() {
            return Err(PgError::Url("names no host".into()));
        }
        let user = config.get_user().ok_or_else(|| PgError::Url("names no user".into()))?.to_owned();
        Ok(Self {
            hosts,
            dbname: config.get_dbname().unwrap_or(&user).to_owned(),
            user,
            password: config.get_password().map(<[u8]>::to_vec),
            options: config.get_options().map(str::to_owned),
            connect_timeout: config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT),
        })
    }

    /// Who logs in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database that is named, or meant: the user's name if none is.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }
}

/// Reads a URL or `key=value` string for either of our clients.
///
/// # Errors
/// When it cannot be parsed, or demands TLS.
pub fn parse_url(url: &str) -> Result<tokio_postgres::Config, PgError> {
    let no_tls =
        || PgError::Url("TLS to Postgres is not supported yet: use sslmode=disable or sslmode=prefer".into());
    let config: tokio_postgres::Config = url.parse().map_err(|error: tokio_postgres::Error| {
        // Modes of libpq that the parser does not know would read like typing errors.
        let verifies =
            ["verify-ca", "verify-full", "allow"].iter().any(|mode| url.contains(&format!("sslmode={mode}")));
        if verifies { no_tls() } else { PgError::Url(error_chain(&error)) }
    })?;
    if !matches!(config.get_ssl_mode(), SslMode::Disable | SslMode::Prefer) {
        return Err(no_tls());
    }
    if config.get_channel_binding() == ChannelBinding::Require {
        return Err(PgError::Url("channel_binding=require needs TLS, which is not supported yet".into()));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_come_from_urls() {
        let target = Target::parse("postgres://me:secret@db:5433/app?sslmode=prefer").expect("a target");
        assert_eq!(format!("{target:?}"), r#"me@[(Tcp("db"), 5433)]/app"#);
        let target = Target::parse("postgres://me@%2Frun%2Fpg").expect("a target");
        assert_eq!(format!("{target:?}"), r#"me@[(Unix("/run/pg"), 5432)]/me"#);
        for mode in ["require", "verify-ca", "verify-full"] {
            let error = Target::parse(&format!("postgres://me@db/app?sslmode={mode}")).expect_err("TLS");
            assert!(error.to_string().contains("TLS to Postgres is not supported yet"), "{error}");
            assert!(error.is_permanent());
        }
        assert!(Target::parse("postgres:///app").is_err());
    }
}
