//! Settings: what the TOML file and the environment can say, and what is refused before anything starts.
//!
//! The shapes and defaults are here; `schema` says what each setting may be, `environment` puts variables over the
//! file, `load` brings them together, and `check` finds what contradicts itself.

mod address;
mod check;
mod duration;
mod environment;
mod fixed;
mod load;
mod schema;
mod share;
mod slot;
mod strict;
/// The key in Redis that holds the marker of a slot's feed. No template may cover it.
pub fn marker_key(slot: &str) -> String {
    format!("cachefence:{slot}")
}

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub(crate) use address::percent_decoded;
pub use address::{Address, AddressError, RedisUrl, redact, socket_mode};
pub use fixed::fixed;
pub use load::{ConfigError, Place, Problem};
pub use share::Share;

use crate::pg::error::PgError;
use crate::pg::target::Target;

/// All settings, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where clients connect.
    #[serde(default)]
    pub proxy: Proxy,
    /// The cache.
    #[serde(default)]
    pub redis: Redis,
    /// The database whose commits are followed.
    pub postgres: Postgres,
    /// The nodes that applications read from; the primary alone when none is named.
    #[serde(default, rename = "source")]
    pub sources: Vec<Source>,
    /// What is remembered of recent writes, and for how long.
    #[serde(default)]
    pub fence: Fence,
    /// Which rows feed which keys.
    #[serde(default, rename = "guard")]
    pub guards: Vec<Guard>,
    /// Which hits are audited.
    #[serde(default)]
    pub audit: Audit,
    /// Metrics, health and status over HTTP.
    #[serde(default)]
    pub admin: Admin,
}

/// `[proxy]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxy {
    /// `host:port` or `unix:PATH`, each.
    pub listen: Vec<String>,
    /// `enforce`, or `observe`: count, change nothing.
    pub mode: Mode,
    /// Clients beyond this are answered as Redis does and closed.
    pub max_clients: usize,
    /// Bytes that are held for all clients together, at most.
    pub max_buffered: usize,
    /// Runtime threads that serve clients; 0 is one per core.
    pub threads: usize,
    /// TLS towards clients, on every TCP address.
    pub tls: Option<ProxyTls>,
    /// How long a TCP connection, of a client or to Redis, is quiet before the peer is asked whether it is there; 0
    /// is never.
    #[serde(deserialize_with = "duration::deserialize")]
    pub tcp_keepalive: Duration,
    /// Every TCP connection begins with a PROXY protocol v2 header.
    pub proxy_protocol: bool,
    /// The permissions of unix sockets, in octal; as the umask has it when absent.
    pub unix_socket_mode: Option<String>,
    /// What a proxy that is told to stop gives its clients and the feed to finish.
    #[serde(deserialize_with = "duration::deserialize")]
    pub shutdown_grace: Duration,
    /// Before that: how long it goes on as before, but not ready, so that load balancers can turn to others.
    #[serde(deserialize_with = "duration::deserialize")]
    pub shutdown_delay: Duration,
}

/// `proxy.tls`: files in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyTls {
    /// The certificate, and those between it and the CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// CAs of which every client must show a certificate; absent: none is asked for.
    pub client_ca: Option<PathBuf>,
}

/// Whether the proxy acts or only counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Refuse, cap and delete.
    Enforce,
    /// Judge and count; change nothing.
    Observe,
}

/// `[redis]`
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// `redis://[[user]:password@]host[:port][/db]`, the same with `rediss://` for TLS, or
    /// `unix://[[user]:password@]PATH[?db=N]`. The credentials are for the proxy's own connections. The db is
    /// that of the guards that name none.
    pub url: String,
    /// Whether clients share upstream connections.
    pub upstream: Upstream,
    /// How long Redis may take to answer what the proxy asks itself, before that connection is given up. A shared
    /// connection of clients that waits for longer, while Redis answers the proxy, is given up too.
    #[serde(deserialize_with = "duration::deserialize")]
    pub reply_timeout: Duration,
    /// For `rediss://`.
    pub tls: Option<RedisTls>,
}

impl Redis {
    /// The db of [`Redis::url`]; 0 if that is none, which is refused elsewhere.
    pub fn db(&self) -> u32 {
        RedisUrl::parse(&self.url).map_or(0, |url| url.db)
    }
}

/// `redis.tls`: files in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisTls {
    /// CAs of which Redis must show a certificate; absent: those of the system.
    pub ca: Option<PathBuf>,
    /// The certificate that is shown to Redis, if any.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// The name that Redis's certificate must be for; absent: the URL's host.
    pub server_name: Option<String>,
}

/// How clients' commands reach Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Upstream {
    /// Plain commands of many clients share a lane.
    Shared,
    /// Every client has an upstream connection of its own.
    Pinned,
}

/// `[postgres]`
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// `postgres://user[:password]@host[:port][,...]/database[?...]`, or libpq's `key=value` words.
    pub url: String,
    /// A file that holds the password and nothing else.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The logical replication slot.
    #[serde(default = "cachefence_name")]
    pub slot: String,
    /// The slot goes with the feed's connection: every new connection is a gap.
    #[serde(default)]
    pub temporary_slot: bool,
    /// The slot survives a failover, where Postgres can do that.
    #[serde(default = "yes")]
    pub failover_slot: bool,
    /// Large transactions are received while they run, where Postgres can do that.
    #[serde(default = "yes")]
    pub streaming: bool,
    /// The publication of the guarded tables.
    #[serde(default = "cachefence_name")]
    pub publication: String,
    /// Which promise is kept.
    #[serde(default)]
    pub contract: Contract,
    /// The name of the feed's connection in `pg_stat_replication`.
    #[serde(default = "cachefence_name")]
    pub application_name: String,
    /// The feed counts as lost after this long without a message.
    #[serde(default = "five_seconds", deserialize_with = "duration::deserialize")]
    pub feed_lost_after: Duration,
    /// The feed counts as lost when it lags by more than this.
    #[serde(default = "ten_seconds", deserialize_with = "duration::deserialize")]
    pub max_lag: Duration,
}

/// The promise: see the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contract {
    /// Behind by no more than the feed's lag.
    #[default]
    Bounded,
    /// Commits wait for the proxy.
    Strict,
}

/// `[[source]]`
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name in metrics and logs.
    pub name: String,
    /// Where it is; absent: the feed's own primary.
    pub url: Option<String>,
    /// A file that holds the password and nothing else.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

impl Postgres {
    /// Where the feed connects to.
    ///
    /// # Errors
    /// When the URL cannot be read. In settings that were checked it can.
    pub fn target(&self) -> Result<Target, PgError> {
        Target::new(&self.url, self.password_file.as_deref())?.of_primary()
    }
}

impl Source {
    /// Where it is, if that is not the feed's own primary.
    ///
    /// # Errors
    /// When the URL cannot be read. In settings that were checked it can.
    pub fn target(&self) -> Result<Option<Target>, PgError> {
        self.url.as_deref().map(|url| Target::new(url, self.password_file.as_deref())).transpose()
    }
}

/// `[fence]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fence {
    /// How long a settled write is remembered.
    #[serde(deserialize_with = "duration::deserialize")]
    pub history: Duration,
    /// How long a miss can vouch for the fill that follows it.
    #[serde(deserialize_with = "duration::deserialize")]
    pub lease_ttl: Duration,
    /// How long a deletion waits for a fill that Redis has not answered.
    #[serde(deserialize_with = "duration::deserialize")]
    pub drain_timeout: Duration,
    /// Keys with remembered writes, at most.
    pub max_keys: usize,
    /// How often sources are polled while a commit is unsettled.
    #[serde(deserialize_with = "duration::deserialize")]
    pub poll_interval: Duration,
}

/// `[[guard]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// `schema.table`.
    pub table: String,
    /// Key templates: `user:<id>`.
    pub keys: Vec<String>,
    /// The Redis db that the keys are in; that of `redis.url` when absent.
    #[serde(default)]
    pub db: Option<u32>,
    /// What happens to a stale fill.
    #[serde(default)]
    pub on_stale: OnStale,
    /// The longest TTL of a stale fill that is let in.
    #[serde(default = "one_second", deserialize_with = "duration::deserialize")]
    pub stale_ttl: Duration,
    /// What a refused fill answers.
    #[serde(default)]
    pub reply: Reply,
    /// What happens to a fill without evidence, where no write is remembered.
    #[serde(default)]
    pub unproven: Unproven,
    /// The longest TTL of a capped unproven fill.
    #[serde(default = "one_minute", deserialize_with = "duration::deserialize")]
    pub unproven_ttl: Duration,
    /// Whose miss can vouch for a fill.
    #[serde(default)]
    pub lease: Lease,
    /// Where a fill says which version of its row it was made from.
    #[serde(default)]
    pub version: Option<Version>,
    /// The longest TTL of any of its keys; none when absent.
    #[serde(default, deserialize_with = "duration::deserialize_some")]
    pub max_ttl: Option<Duration>,
    /// While the feed is lost.
    #[serde(default)]
    pub when_feed_lost: WhenFeedLost,
    /// How long a miss waits for the fill that another client's miss of the same key leads to; zero: not at all.
    #[serde(default, deserialize_with = "duration::deserialize")]
    pub coalesce: Duration,
    /// What the database has for a key of the first template: how its hits are audited, without a version.
    #[serde(default)]
    pub audit_sql: Option<String>,
    /// A JSON pointer to what is compared with that; absent: all of the value.
    #[serde(default)]
    pub audit_json: Option<String>,
}

impl Guard {
    /// What holds for a key that no guard covers and that was fenced by name: the defaults, and with the contract
    /// `strict` what that allows.
    pub fn of_messages(contract: Contract) -> Self {
        let strict = contract == Contract::Strict;
        let lost = WhenFeedLost::default();
        Self {
            table: String::new(),
            keys: Vec::new(),
            db: None,
            on_stale: OnStale::default(),
            reply: Reply::default(),
            unproven: if strict { Unproven::Refuse } else { Unproven::default() },
            unproven_ttl: one_minute(),
            lease: Lease::default(),
            when_feed_lost: if strict {
                WhenFeedLost { reads: LostReads::Miss, fills: LostFills::Refuse, ..lost }
            } else {
                lost
            },
            version: None,
            stale_ttl: one_second(),
            max_ttl: None,
            coalesce: Duration::ZERO,
            audit_sql: None,
            audit_json: None,
        }
    }
}

/// `guard[].version`: a column, and one of the others.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// The column that every write of a row raises.
    pub column: String,
    /// A JSON pointer into the value.
    #[serde(default)]
    pub json: Option<String>,
    /// `true`: it is the value.
    #[serde(default)]
    pub raw: Option<bool>,
    /// The field of a hash that holds it.
    #[serde(default)]
    pub field: Option<String>,
}

/// What happens to a stale fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStale {
    /// It does not reach Redis.
    #[default]
    Refuse,
    /// Its TTL is at most `stale_ttl`.
    Cap,
    /// It does not reach Redis, and what is there is deleted.
    Delete,
}

/// What a refused fill answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// As if it had been done.
    #[default]
    Ok,
    /// A nil, as a SET whose condition failed.
    Nil,
    /// An error that starts with `STALE`, `UNPROVEN` or `FENCE`.
    Error,
}

/// What happens to an unproven fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unproven {
    /// Its TTL is at most `unproven_ttl`.
    #[default]
    Cap,
    /// It passes.
    Allow,
    /// It does not reach Redis.
    Refuse,
}

/// Whose miss can vouch for a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lease {
    /// One on the fill's own connection.
    #[default]
    Connection,
    /// One on any connection.
    Key,
    /// None.
    Off,
}

/// What a guard does while the feed is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhenFeedLost {
    /// Reads of its keys.
    pub reads: LostReads,
    /// Fills of its keys.
    pub fills: LostFills,
    /// The TTL of a fill that is capped meanwhile.
    #[serde(deserialize_with = "duration::deserialize")]
    pub fills_ttl: Duration,
}

/// Reads while the feed is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LostReads {
    /// Served from the cache.
    Serve,
    /// Answered as misses.
    Miss,
}

/// Fills while the feed is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LostFills {
    /// Let in for `fills_ttl`.
    Cap,
    /// Refused.
    Refuse,
}

/// `[audit]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// The share of reads of guarded keys whose hits are looked at.
    pub sample: Share,
    /// How long after a hit it is judged.
    #[serde(deserialize_with = "duration::deserialize")]
    pub grace: Duration,
    /// How many `audit_sql` are run in a second, at most.
    pub max_queries_per_second: u32,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// `host:port` of the HTTP port.
    pub listen: String,
    /// Keys of refused fills stand on the page and in the log.
    pub show_keys: bool,
}

// By hand, so that no log line can print a password.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("url", &redact(&self.url))
            .field("upstream", &self.upstream)
            .field("reply_timeout", &self.reply_timeout)
            .field("tls", &self.tls)
            .finish()
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres")
            .field("url", &redact(&self.url))
            .field("password_file", &self.password_file)
            .field("slot", &self.slot)
            .field("temporary_slot", &self.temporary_slot)
            .field("failover_slot", &self.failover_slot)
            .field("streaming", &self.streaming)
            .field("publication", &self.publication)
            .field("contract", &self.contract)
            .field("application_name", &self.application_name)
            .field("feed_lost_after", &self.feed_lost_after)
            .field("max_lag", &self.max_lag)
            .finish()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.as_deref().map(redact);
        f.debug_struct("Source")
            .field("name", &self.name)
            .field("url", &url)
            .field("password_file", &self.password_file)
            .finish()
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:6380".into()],
            mode: Mode::Enforce,
            max_clients: 10_000,
            max_buffered: 2 * 1024 * 1024 * 1024,
            threads: 0,
            tls: None,
            tcp_keepalive: Duration::from_secs(300),
            proxy_protocol: false,
            unix_socket_mode: None,
            shutdown_grace: Duration::from_secs(10),
            shutdown_delay: Duration::ZERO,
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".into(),
            upstream: Upstream::Shared,
            reply_timeout: Duration::from_secs(5),
            tls: None,
        }
    }
}

impl Default for Fence {
    fn default() -> Self {
        Self {
            history: Duration::from_secs(60),
            lease_ttl: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(1),
            max_keys: 10_000_000,
            poll_interval: Duration::from_millis(5),
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self { sample: Share::default(), grace: one_second(), max_queries_per_second: 1 }
    }
}

impl Default for WhenFeedLost {
    fn default() -> Self {
        Self { reads: LostReads::Serve, fills: LostFills::Cap, fills_ttl: Duration::from_secs(1) }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9187".into(), show_keys: true }
    }
}

fn cachefence_name() -> String {
    "cachefence".into()
}

fn yes() -> bool {
    true
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn one_minute() -> Duration {
    Duration::from_secs(60)
}
