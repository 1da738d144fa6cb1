//! Settings: what the TOML file and the environment can say, and what is refused before anything starts.

use std::time::Duration;

use serde::Deserialize;

/// All settings, checked.
#[derive(Debug, Clone, Deserialize)]
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
    /// Metrics, health and status over HTTP.
    #[serde(default)]
    pub admin: Admin,
}

/// `[proxy]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxy {
    /// `host:port` or `unix:PATH`, each.
    pub listen: Vec<String>,
    /// `enforce`, or `observe`: count, change nothing.
    pub mode: Mode,
    /// Clients beyond this are answered as Redis does and closed.
    pub max_clients: usize,
    /// Runtime threads that serve clients; 0 is one per core.
    pub threads: usize,
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
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// `redis://[user[:password]@]host:port[/db]` or `unix://PATH[?db=N]`. The credentials are for the proxy's own
    /// connections; guards apply to this db.
    pub url: String,
    /// Whether clients share upstream connections.
    pub upstream: Upstream,
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
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// `postgres://user[:password]@host:port/database`.
    pub url: String,
    /// The logical replication slot.
    #[serde(default = "cachefence_name")]
    pub slot: String,
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
    #[serde(default = "five_seconds", with = "duration")]
    pub feed_lost_after: Duration,
    /// The feed counts as lost when it lags by more than this.
    #[serde(default = "ten_seconds", with = "duration")]
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name in metrics and logs.
    pub name: String,
    /// Where it is; absent: the feed's own primary.
    pub url: Option<String>,
}

/// `[fence]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fence {
    /// How long a settled write is remembered.
    #[serde(with = "duration")]
    pub history: Duration,
    /// How long a miss can vouch for the fill that follows it.
    #[serde(with = "duration")]
    pub lease_ttl: Duration,
    /// How long a deletion waits for a fill that Redis has not answered.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    /// Keys with remembered writes, at most.
    pub max_keys: usize,
    /// How often sources are polled while a commit is unsettled.
    #[serde(with = "duration")]
    pub poll_interval: Duration,
}

/// `[[guard]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// `schema.table`.
    pub table: String,
    /// Key templates: `user:<id>`.
    pub keys: Vec<String>,
    /// What happens to a stale fill.
    #[serde(default)]
    pub on_stale: OnStale,
    /// What a refused fill answers.
    #[serde(default)]
    pub reply: Reply,
    /// What happens to a fill without evidence, where no write is remembered.
    #[serde(default)]
    pub unproven: Unproven,
    /// The longest TTL of a capped unproven fill.
    #[serde(default = "one_minute", with = "duration")]
    pub unproven_ttl: Duration,
    /// Whose miss can vouch for a fill.
    #[serde(default)]
    pub lease: Lease,
    /// While the feed is lost.
    #[serde(default)]
    pub when_feed_lost: WhenFeedLost,
}

/// What happens to a stale fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStale {
    /// It does not reach Redis.
    #[default]
    Refuse,
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
    #[serde(with = "duration")]
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

/// `[admin]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// `host:port` of the HTTP port.
    pub listen: String,
}

impl Default for Proxy {
    fn default() -> Self {
        Self { listen: vec!["127.0.0.1:6380".into()], mode: Mode::Enforce, max_clients: 10_000, threads: 0 }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self { url: "redis://127.0.0.1:6379/0".into(), upstream: Upstream::Shared }
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

impl Default for WhenFeedLost {
    fn default() -> Self {
        Self { reads: LostReads::Serve, fills: LostFills::Cap, fills_ttl: Duration::from_secs(1) }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9187".into() }
    }
}

fn cachefence_name() -> String {
    "cachefence".into()
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

/// Durations as people write them: `5ms`, `10s`, `1h`.
mod duration {
    use super::*;

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let bad = || {
            serde::de::Error::custom(format!("{text:?} is not a duration such as \"5ms\", \"10s\" or \"1h\""))
        };
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
    }
}
