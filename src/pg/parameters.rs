//! What libpq's parameters mean: which are taken, which are passed over, and which are refused. No message quotes a value:
//! it may be a password.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::conninfo::Parameter;
use super::target::{
    Address, ChannelBinding, Host, Keepalive, Roots, SessionAttrs, SslMode, Target, TlsParameters,
};

/// A server that accepts and then says nothing is given up after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where a Unix socket's path begins; `@` is Linux's abstract namespace, which is not for us.
const SOCKET: char = '/';

/// What libpq knows and what cannot matter here: what the proxy sets itself, other ways to log in that are not offered,
/// and what only changes messages.
const IGNORED: &[&str] = &[
    "application_name",
    "client_encoding",
    "fallback_application_name",
    "gsslib",
    "krbsrvname",
    "gssdelegation",
    "sslcompression",
    "min_protocol_version",
    "max_protocol_version",
];

/// What libpq knows and what would be dangerous or misleading to pass over.
const REFUSED: &[&str] = &[
    "replication",
    "require_auth",
    "requirepeer",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
];

/// Reads them.
pub(super) fn read(parameters: &[Parameter]) -> Result<Target, String> {
    Parameters::default().read(parameters)
}

/// What has been read so far.
struct Parameters {
    host: String,
    hostaddr: String,
    port: String,
    user: Option<String>,
    dbname: Option<String>,
    mode: Option<SslMode>,
    rest: Target,
}

impl Default for Parameters {
    fn default() -> Self {
        let keepalive = Keepalive {
            on: true,
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(10),
            count: 3,
            user_timeout: 0,
        };
        let rest = Target {
            hosts: Vec::new(),
            user: String::new(),
            password: None,
            password_file: None,
            passfile: None,
            dbname: String::new(),
            options: None,
            connect_timeout: CONNECT_TIMEOUT,
            attrs: SessionAttrs::Any,
            shuffled: false,
            keepalive,
            tls: TlsParameters::default(),
            channel_binding: ChannelBinding::Prefer,
        };
        let text = String::new;
        Self { host: text(), hostaddr: text(), port: text(), user: None, dbname: None, mode: None, rest }
    }
}

impl Parameters {
    fn read(mut self, parameters: &[Parameter]) -> Result<Target, String> {
        for (name, value) in parameters {
            self.set(name, value).map_err(|wrong| format!("{name}: {wrong}"))?;
        }
        self.finish()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = || Some(value.to_owned()).filter(|text| !text.is_empty());
        let path = || text().map(PathBuf::from);
        let rest = &mut self.rest;
        match name {
            "host" => self.host = value.to_owned(),
            "hostaddr" => self.hostaddr = value.to_owned(),
            "port" => self.port = value.to_owned(),
            "user" => self.user = text(),
            "dbname" => self.dbname = text(),
            "password" => rest.password = text().map(String::into_bytes),
            "passfile" => rest.passfile = path(),
            "options" => rest.options = text(),
            "connect_timeout" => {
                // As in libpq, none and less is no limit.
                rest.connect_timeout = Duration::from_secs(number::<i64>(value)?.max(0).unsigned_abs());
            }
            "target_session_attrs" => rest.attrs = choice(value, ATTRS)?,
            "load_balance_hosts" => rest.shuffled = choice(value, &[("disable", false), ("random", true)])?,
            "channel_binding" => rest.channel_binding = choice(value, BINDINGS)?,
            "gssencmode" => choice(value, &[("disable", ()), ("prefer", ())])
                .map_err(|_| "encryption by GSSAPI is not supported; use TLS (sslmode)".to_owned())?,
            name if name.starts_with("keepalives") || name == "tcp_user_timeout" => {
                return rest.keepalive.set(name, value);
            }
            "sslmode" => self.mode = Some(choice(value, MODES)?),
            name if REFUSED.contains(&name) => {
                return Err("it is not supported; remove it".into());
            }
            name if IGNORED.contains(&name) => {}
            name if name.starts_with("ssl") => return rest.tls.set(name, value),
            _ => return Err("there is no such parameter".into()),
        }
        Ok(())
    }

    fn finish(self) -> Result<Target, String> {
        let hosts = hosts(&self.host, &self.hostaddr, &self.port)?;
        let mut target = self.rest;
        let user = self.user.ok_or("it names no user")?;
        let system = target.tls.roots == Roots::System;
        target.tls.mode = match self.mode {
            Some(mode) if system && mode < SslMode::VerifyFull => {
                // Anybody can have a certificate of theirs.
                return Err("sslrootcert=system needs sslmode=verify-full".into());
            }
            Some(mode) => mode,
            None if system => SslMode::VerifyFull,
            None => SslMode::Prefer,
        };
        if target.tls.direct && target.tls.mode < SslMode::Require {
            return Err("sslnegotiation=direct needs sslmode=require or more".into());
        }
        let dbname = self.dbname.unwrap_or_else(|| user.clone());
        Ok(Target { hosts, user, dbname, ..target })
    }
}

const ATTRS: &[(&str, SessionAttrs)] = &[
    ("any", SessionAttrs::Any),
    ("read-write", SessionAttrs::ReadWrite),
    ("read-only", SessionAttrs::ReadOnly),
    ("primary", SessionAttrs::Primary),
    ("standby", SessionAttrs::Standby),
    ("prefer-standby", SessionAttrs::PreferStandby),
];
const BINDINGS: &[(&str, ChannelBinding)] = &[
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];
pub(super) const MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

impl Keepalive {
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        // As in libpq, zero is the default; here that is not the system's two hours.
        let at_most = |value: &str, most: u16| match number::<u16>(value)? {
            n if n <= most => Ok(n),
            _ => Err(format!("it can be {most} at most")),
        };
        // More than these the system does not take: no connection would come about.
        let seconds = |value: &str| at_most(value, 32_767).map(|n| Duration::from_secs(n.into()));
        match name {
            "keepalives" => self.on = number::<i64>(value)? != 0,
            "keepalives_idle" => self.idle = seconds(value)?,
            "keepalives_interval" => self.interval = seconds(value)?,
            "keepalives_count" => self.count = at_most(value, 127)?.into(),
            "tcp_user_timeout" => self.user_timeout = number(value)?,
            _ => return Err("there is no such parameter".into()),
        }
        let usual = Parameters::default().rest.keepalive;
        let or = |found: Duration, usual| if found.is_zero() { usual } else { found };
        (self.idle, self.interval) = (or(self.idle, usual.idle), or(self.interval, usual.interval));
        if self.count == 0 {
            self.count = usual.count;
        }
        Ok(())
    }
}

impl TlsParameters {
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let path = || Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty());
        match name {
            "sslrootcert" => {
                self.roots = match value {
                    "" => Roots::Usual,
                    "system" => Roots::System,
                    file => Roots::File(file.into()),
                };
            }
            "sslcert" => self.cert = path(),
            "sslkey" => self.key = path(),
            // That a server asks for none cannot be seen here: `require` is refused.
            "sslcertmode" => self.shows_cert = choice(value, &[("allow", true), ("disable", false)])?,
            "sslnegotiation" => self.direct = choice(value, &[("postgres", false), ("direct", true)])?,
            "sslsni" => self.sni = choice(value, &[("0", false), ("1", true)])?,
            // Nothing older is spoken.
            "ssl_min_protocol_version" => {
                let older = [("", true), ("TLSv1", true), ("TLSv1.1", true), ("TLSv1.2", true)];
                self.versions[0] = choice(value, &[&older[..], &[("TLSv1.3", false)]].concat())?;
            }
            "ssl_max_protocol_version" => {
                self.versions[1] = choice(value, &[("TLSv1.3", true), ("TLSv1.2", false), ("", true)])?;
            }
            _ => return Err("there is no such parameter".into()),
        }
        if self.versions == [false; 2] {
            return Err(
                "no version of TLS is between ssl_min_protocol_version and ssl_max_protocol_version".into()
            );
        }
        Ok(())
    }
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.trim().parse().map_err(|_| "it is not a number, or too large a one".to_owned())
}

fn choice<T: Copy>(text: &str, allowed: &[(&str, T)]) -> Result<T, String> {
    let found = allowed.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = allowed.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        format!("allowed: {}", names.join(", "))
    })
}

/// The lists of names, addresses and ports, side by side. One port stands for all hosts.
fn hosts(names: &str, addresses: &str, ports: &str) -> Result<Vec<Host>, String> {
    let list = |text: &str| -> Vec<String> {
        if text.is_empty() {
            Vec::new()
        } else {
            text.split(',').map(|part| part.trim().to_owned()).collect()
        }
    };
    let (names, addresses, ports) = (list(names), list(addresses), list(ports));
    let count = names.len().max(addresses.len());
    if count == 0 {
        return Err("it names no host".into());
    }
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(format!("host has {} items and hostaddr {}", names.len(), addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("there are {} ports for {count} hosts", ports.len()));
    }
    (0..count)
        .map(|n| {
            let name = names.get(n).filter(|name| !name.is_empty()).map(|name| {
                if name.starts_with(SOCKET) { Address::Unix(name.into()) } else { Address::Tcp(name.clone()) }
            });
            let address = addresses.get(n).filter(|address| !address.is_empty());
            let address = address.map(|address| address.parse::<IpAddr>()).transpose();
            let address = address.map_err(|_| "hostaddr: it is no IP address")?;
            if name.is_none() && address.is_none() {
                return Err("a host of the list is empty".to_owned());
            }
            let port = ports.get(n).or(ports.first()).filter(|port| !port.is_empty());
            let port = port.map_or(Ok(5432), |port| port.parse()).ok().filter(|port| *port != 0);
            Ok(Host { name, address, port: port.ok_or("port: it is not one of 1 to 65535")? })
        })
        .collect()
}
