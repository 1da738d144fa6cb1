//! Where things listen and where they are found, and the same without the secrets.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// A place to listen at or to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`, as the resolver takes it; IPv6 in brackets.
    Tcp(String),
    /// A Unix domain socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a text is not an address or a URL: what is allowed there. It never repeats the text, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct AddressError(pub(super) &'static str);

const LISTEN_FORM: &str = "allowed: \"host:port\" (IPv6 in brackets) or \"unix:PATH\"";
const TCP_FORM: &str = "allowed: \"host:port\" (IPv6 in brackets)";
const REDIS_FORM: &str = "allowed: \"redis://[[user]:password@]host[:port][/db]\", the same with rediss:// for TLS, or \
                          \"unix://[[user]:password@]PATH[?db=N]\", with special characters of the user and password \
                          percent-encoded";
const MODE_FORM: &str = "allowed: permissions in octal, such as \"0770\", from \"0\" to \"0777\"";

impl Address {
    /// Parses `host:port` or `unix:PATH`, where clients connect.
    pub fn parse_listen(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(AddressError(LISTEN_FORM)),
            Some(path) => Ok(Address::Unix(path.into())),
            None if is_host_port(text) => Ok(Address::Tcp(text.to_owned())),
            None => Err(AddressError(LISTEN_FORM)),
        }
    }

    /// Parses `host:port`.
    pub fn parse_tcp(text: &str) -> Result<Self, AddressError> {
        is_host_port(text).then(|| Address::Tcp(text.to_owned())).ok_or(AddressError(TCP_FORM))
    }
}

/// Parses the permissions of a unix socket.
pub fn socket_mode(text: &str) -> Result<u32, AddressError> {
    let octal = !text.is_empty() && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or(AddressError(MODE_FORM))
}

fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    is_host(host) && digits && port.parse::<u16>().is_ok()
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        // Names are the resolver's business; what surely is none is caught here.
        None => {
            !host.is_empty()
                && !host.contains([':', '/', '@', '[', ']'])
                && !host.contains(char::is_whitespace)
        }
    }
}

/// A Redis server, the db that guards apply to, and who the proxy itself is there.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Where it listens.
    pub address: Address,
    /// Whether it is spoken to in TLS.
    pub tls: bool,
    /// The user to authenticate as; Redis's default user when absent.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The db.
    pub db: u32,
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "***");
        let mut debug = f.debug_struct("RedisUrl");
        debug
            .field("address", &self.address)
            .field("tls", &self.tls)
            .field("user", &self.user)
            .field("password", &password);
        debug.field("db", &self.db).finish()
    }
}

/// Without the credentials: it goes to logs and to clients.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(address) if self.tls => write!(f, "rediss://{address}/{}", self.db),
            Address::Tcp(address) => write!(f, "redis://{address}/{}", self.db),
            Address::Unix(path) => write!(f, "unix://{}?db={}", path.display(), self.db),
        }
    }
}

impl RedisUrl {
    /// Parses `redis://[[user]:password@]host[:port][/db]`, the same with `rediss://`, or
    /// `unix://[[user]:password@]PATH[?db=N]`.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let wrong = AddressError(REDIS_FORM);
        if let Some(rest) = text.strip_prefix("unix://") {
            return Self::parse_unix(rest).ok_or(wrong);
        }
        let (rest, tls) = match text.strip_prefix("rediss://") {
            Some(rest) => (rest, true),
            None => (text.strip_prefix("redis://").ok_or(wrong.clone())?, false),
        };
        Self::parse_tcp(rest, tls).ok_or(wrong)
    }

    fn parse_unix(rest: &str) -> Option<Self> {
        let (rest, db) = match rest.split_once('?') {
            Some((rest, query)) => (rest, query.strip_prefix("db=")?.parse().ok()?),
            None => (rest, 0),
        };
        let (credentials, path) = rest.split_at(rest.find('/')?);
        let (user, password) = match credentials.strip_suffix('@') {
            Some(credentials) => parse_credentials(credentials)?,
            None if credentials.is_empty() => (None, None),
            None => return None,
        };
        Some(Self { address: Address::Unix(path.into()), tls: false, user, password, db })
    }

    fn parse_tcp(rest: &str, tls: bool) -> Option<Self> {
        let (credentials, place) = rest.rsplit_once('@').map_or((None, rest), |(c, p)| (Some(c), p));
        let (place, db) = match place.split_once('/') {
            None | Some((_, "")) => (place.trim_end_matches('/'), 0),
            Some((place, db)) => (place, db.parse().ok()?),
        };
        let with_port = if is_host_port(place) { place.to_owned() } else { format!("{place}:6379") };
        let address = is_host_port(&with_port).then_some(Address::Tcp(with_port))?;
        let (user, password) = credentials.map_or(Some((None, None)), parse_credentials)?;
        Some(Self { address, tls, user, password, db })
    }
}

/// `[user]:password`. A user alone could not authenticate: AUTH takes a password. A bare `/` would end them for some
/// readers of URLs and not for others.
fn parse_credentials(text: &str) -> Option<(Option<String>, Option<String>)> {
    let (user, password) = text.split_once(':').filter(|_| !text.contains('/'))?;
    let text = |part| String::from_utf8(percent_decoded(part)?).ok();
    Some((text(user).map(|user| Some(user).filter(|user| !user.is_empty()))?, Some(text(password)?)))
}

/// The bytes of a percent-encoded text; nothing where a `%` is not followed by two hexadecimal digits.
pub(crate) fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (hex, tail) = tail.split_at_checked(2)?;
        let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = tail;
    }
    Some(bytes)
}

/// A URL, or what was meant to be one, without its password: for logs and messages. Where it is in doubt which part
/// is secret, more is left out rather than less.
pub fn redact(url: &str) -> String {
    let lower = url.to_ascii_lowercase();
    // A password can have it too.
    let of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-. ".contains(c);
    let Some(scheme_end) = url.find("://").filter(|end| url[..*end].chars().all(of_scheme)) else {
        // No scheme: perhaps `host=... password=...`, perhaps `:password@host`.
        return match url.rsplit_once('@') {
            _ if lower.contains("password") => "***".into(),
            Some((_, place)) => format!("***@{place}"),
            None => url.to_owned(),
        };
    };
    let (scheme, rest) = url.split_at(scheme_end + 3);
    // The last `@`: an unencoded one in a password must not let its tail out.
    let (credentials, place) = rest.rsplit_once('@').map_or((None, rest), |(c, p)| (Some(c), p));
    let credentials = credentials.map(|credentials| match credentials.split_once(':') {
        Some((user, _)) => format!("{user}:***@"),
        None if scheme.starts_with("postgres") => format!("{credentials}@"),
        None => "***@".into(),
    });
    let place = match place.split_once('?') {
        Some((place, query)) => {
            let fields = query.split('&').map(|field| match field.split_once('=') {
                Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}=***"),
                _ => field.to_owned(),
            });
            format!("{place}?{}", fields.collect::<Vec<_>>().join("&"))
        }
        None => place.to_owned(),
    };
    format!("{scheme}{}{place}", credentials.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        assert_eq!(Address::parse_listen("127.0.0.1:6380"), Ok(Address::Tcp("127.0.0.1:6380".into())));
        assert_eq!(Address::parse_listen("unix:/run/c.sock"), Ok(Address::Unix("/run/c.sock".into())));
        assert!(Address::parse_listen("[::1]:0").is_ok() && Address::parse_listen("localhost:1").is_ok());
        for text in
            ["", "6380", ":6380", "unix:", "::1:6380", "[::1]", "h:65536", "h:", "h:+1", "redis://h:1"]
        {
            assert!(Address::parse_listen(text).is_err(), "{text}");
        }
        assert!(Address::parse_tcp("unix:/run/c.sock").is_err());
    }

    #[test]
    fn redis_urls() {
        let tcp = |address: &str| Address::Tcp(address.to_owned());
        let plain = RedisUrl::parse("redis://cache").expect("a URL");
        assert_eq!((plain.address, plain.user, plain.password, plain.db), (tcp("cache:6379"), None, None, 0));
        let full = RedisUrl::parse("redis://app:p%40ss%3A%2Fx@[::1]:7000/3").expect("a URL");
        assert_eq!((full.address, full.db), (tcp("[::1]:7000"), 3));
        assert_eq!((full.user.as_deref(), full.password.as_deref()), (Some("app"), Some("p@ss:/x")));
        let password_only = RedisUrl::parse("redis://:secret@h:1/").expect("a URL");
        assert_eq!((password_only.user, password_only.password.as_deref()), (None, Some("secret")));
        let unix = RedisUrl::parse("unix:///run/redis.sock?db=2").expect("a URL");
        assert_eq!((unix.address, unix.db), (Address::Unix("/run/redis.sock".into()), 2));
        let unix = RedisUrl::parse("unix://:pw@/run/redis.sock").expect("a URL");
        assert_eq!(
            (unix.address, unix.password.as_deref()),
            (Address::Unix("/run/redis.sock".into()), Some("pw"))
        );
        for text in [
            "",
            "h:6379",
            "http://h",
            "redis://",
            "redis://user@h",
            "redis://h/x",
            "redis://:p/w@h",
            "redis://h:6379/-1",
            "redis://:%zz@h",
            "unix://run",
            "unix:///s?x=1",
        ] {
            assert!(RedisUrl::parse(text).is_err(), "{text}");
        }
        let secure = RedisUrl::parse("rediss://:secret@h/2").expect("a URL");
        assert_eq!((secure.to_string().as_str(), secure.tls), ("rediss://h:6379/2", true));
        assert!(!format!("{:?}", RedisUrl::parse("redis://:secret@h")).contains("secret"));
    }

    #[test]
    fn permissions_of_sockets() {
        for (text, mode) in [("0770", 0o770), ("777", 0o777), ("0", 0)] {
            assert_eq!(socket_mode(text), Ok(mode));
        }
        for text in ["", "0780", "rw", "+770", "1777", "-1"] {
            assert!(socket_mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn passwords_stay_out() {
        for (url, shown) in [
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("redis://:pw@h", "redis://:***@h"),
            ("redis://pw@h", "redis://***@h"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres://u:p@ss/w:x@h:1/db?sslmode=disable", "postgres://u:***@h:1/db?sslmode=disable"),
            ("postgres://h/db?user=u&password=pw", "postgres://h/db?user=u&password=***"),
            ("host=h password=pw", "***"),
            ("u:pw@h", "***@h"),
            ("host=h password=a://pw x=y", "***"),
            (" postgres://u:pw@h", " postgres://u:***@h"),
        ] {
            assert_eq!(redact(url), shown);
        }
    }
}
