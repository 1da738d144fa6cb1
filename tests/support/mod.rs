//! What the integration tests share: real servers with a table of users, the proxy before them, and what can be
//! waited for.
//!
//! Nothing here sleeps for a time that is hoped to be enough: every wait is for something that can be seen.
#![allow(dead_code, reason = "each test file uses a part")]

use std::error::Error;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config, wait_for, wait_until,
};
use cachefence::position::{Lsn, Snapshot};

/// What a test returns.
pub type Outcome = Result<(), Box<dyn Error>>;
/// What everything here returns.
pub type Fallible<T> = Result<T, Box<dyn Error>>;

/// How long anything may take. Nothing comes near it unless it never comes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_cachefence");

/// Twenty people, all called `v1`; what else is known of them; and a table that no guard knows.
const SCHEMA: &str = "
CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL);
INSERT INTO users SELECT id, 'v1' FROM generate_series(1, 20) AS id;
CREATE TABLE badges (id bigint PRIMARY KEY, note text);
CREATE TABLE unguarded (id bigint);
";

/// A guard that says why it refuses, and lets nothing in without evidence.
pub const EXACT: &str = "
[[guard]]
table = \"users\"
keys = [\"user:<id>\"]
reply = \"error\"
unproven = \"refuse\"
";

/// A guard with the defaults, which says why it refuses.
pub const DEFAULT: &str = "
[[guard]]
table = \"users\"
keys = [\"user:<id>\"]
reply = \"error\"
";

/// What a test wants to run.
pub struct Setup {
    guards: String,
    replaced: Vec<(String, String)>,
    replica: bool,
    init: bool,
    redis: RedisOptions,
    schema: &'static str,
}

impl Setup {
    /// A primary, Redis, and the proxy with these guards (and other sections).
    pub fn new(guards: &str) -> Self {
        Self {
            guards: guards.to_owned(),
            replaced: Vec::new(),
            replica: false,
            init: false,
            redis: RedisOptions::default(),
            schema: "",
        }
    }

    /// More tables.
    pub fn schema(mut self, schema: &'static str) -> Self {
        self.schema = schema;
        self
    }

    /// Other settings of the servers' sections.
    pub fn replace(&mut self, from: &str, to: &str) {
        self.replaced.push((from.to_owned(), to.to_owned()));
    }

    /// And a replica, which the proxy knows.
    pub fn replica(mut self) -> Self {
        self.replica = true;
        self
    }

    /// `cachefence init` is run first.
    pub fn init(mut self) -> Self {
        self.init = true;
        self
    }

    /// Redis keeps its data over a restart.
    pub fn durable_redis(mut self) -> Self {
        self.redis = self.redis.args(&["--appendonly", "yes", "--appendfsync", "always"]);
        self
    }

    /// Starts all of it, and waits until everything there is has been settled.
    pub async fn start(self) -> Fallible<World> {
        let primary = Postgres::primary(PrimaryOptions::default()).await?;
        let sql = primary.client().await?;
        sql.batch_execute(SCHEMA).await?;
        sql.batch_execute(self.schema).await?;
        let replica = if self.replica { Some(Postgres::replica(&primary, &[]).await?) } else { None };
        let redis = Redis::start(self.redis).await?;
        let mut servers = config(&primary, &replica.iter().collect::<Vec<_>>(), &redis);
        for (from, to) in &self.replaced {
            assert!(servers.contains(from), "{from} is not in {servers}");
            servers = servers.replacen(from, to, 1);
        }
        if self.init {
            init(&(servers.clone() + &self.guards))?;
        }
        let proxy = Cachefence::start(BINARY, &(servers.clone() + &self.guards)).await?;
        let world = World { proxy, redis, replica, sql, primary, servers, guards: self.guards };
        world.level().await?;
        Ok(world)
    }
}

/// Runs `cachefence init` with these settings.
pub fn init(settings: &str) -> Fallible<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(settings.as_bytes())?;
    let output = Command::new(BINARY).arg("init").arg("--config").arg(file.path()).output()?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
}

/// Everything that runs. Fields end in this order: the proxy before what it is connected to.
pub struct World {
    pub proxy: Cachefence,
    pub redis: Redis,
    pub replica: Option<Postgres>,
    pub sql: tokio_postgres::Client,
    pub primary: Postgres,
    /// The settings that name the servers.
    pub servers: String,
    /// The other settings.
    pub guards: String,
}

impl World {
    /// A client through the proxy.
    pub async fn client(&self) -> Fallible<Client> {
        Ok(self.proxy.client().await?)
    }

    /// The replica.
    pub fn replica(&self) -> Fallible<&Postgres> {
        self.replica.as_ref().ok_or_else(|| "no replica".into())
    }

    /// Renames a person on the primary.
    pub async fn rename(&self, id: i64, name: &str) -> Fallible<()> {
        self.sql.execute("UPDATE users SET name = $2 WHERE id = $1", &[&id, &name]).await?;
        Ok(())
    }

    /// A person's name on the primary.
    pub async fn name(&self, id: i64) -> Fallible<String> {
        name_on(&self.sql, id).await
    }

    /// What the primary calls visible now: evidence for what is read after it.
    pub async fn snapshot(&self) -> Fallible<String> {
        text(&self.sql, "SELECT pg_current_snapshot()::text").await
    }

    /// How far the primary's log is flushed: past every commit until now.
    pub async fn flushed(&self) -> Fallible<Lsn> {
        Ok(text(&self.sql, "SELECT pg_current_wal_flush_lsn()::text").await?.parse()?)
    }

    /// The proxy's own account of itself.
    pub async fn status(&self) -> Fallible<serde_json::Value> {
        status(&self.proxy).await
    }

    /// Waits until everything committed until now has been applied: fenced, deleted, marked.
    pub async fn applied(&self) -> Fallible<Lsn> {
        let now = self.flushed().await?;
        self.position(now, &["/feed/applied_lsn"]).await?;
        Ok(now)
    }

    /// Waits until everything committed until now has been applied and is visible on every source.
    pub async fn level(&self) -> Fallible<Lsn> {
        let now = self.flushed().await?;
        self.position(now, &["/feed/applied_lsn", "/fence/settled_lsn"]).await?;
        Ok(now)
    }

    /// Waits until everything committed until now has been applied, and the marker says so: a proxy that is ended now
    /// leaves a cache that its successor can trust.
    pub async fn marked(&self) -> Fallible<Lsn> {
        let now = self.applied().await?;
        let mut redis = self.redis.client().await?;
        let marked = async || {
            let Ok(found) = redis.cmd(&["GET", "cachefence:cachefence"]).await else { return false };
            let (marker, confirmed) =
                (found.text().unwrap_or_default(), self.status().await.unwrap_or_default());
            let at = marker.split(' ').find_map(|word| word.strip_prefix("applied=")?.parse::<Lsn>().ok());
            // Nothing was confirmed beyond it either.
            at.is_some() && at >= lsn(&confirmed, "/feed/applied_lsn")
        };
        wait_until(&format!("the marker to reach {now}"), PATIENCE, marked).await?;
        Ok(now)
    }

    async fn position(&self, wanted: Lsn, names: &[&str]) -> Fallible<()> {
        let what = format!("{names:?} to reach {wanted}");
        let reached = async || {
            let Ok(status) = self.status().await else { return false };
            names.iter().all(|name| lsn(&status, name).is_some_and(|lsn| lsn >= wanted))
        };
        Ok(wait_until(&what, PATIENCE, reached).await?)
    }

    /// What Redis itself holds at a key, past the proxy.
    pub async fn held(&self, key: &str) -> Fallible<Option<String>> {
        Ok(self.redis(&["GET", key]).await?.text())
    }

    /// A command to Redis itself, past the proxy.
    pub async fn redis(&self, command: &[&str]) -> Fallible<Reply> {
        Ok(self.redis.client().await?.cmd(command).await?)
    }

    /// Waits until Redis itself no longer has a key.
    pub async fn gone(&self, key: &str) -> Fallible<()> {
        let mut redis = self.redis.client().await?;
        let gone = async || matches!(redis.cmd(&["EXISTS", key]).await, Ok(Reply::Int(0)));
        Ok(wait_until(&format!("{key} to be deleted"), PATIENCE, gone).await?)
    }

    /// How many fills got this verdict and this action.
    pub async fn fills(&self, verdict: &str, action: &str) -> Fallible<f64> {
        let series = format!("cachefence_fills_total{{verdict=\"{verdict}\",action=\"{action}\"}}");
        Ok(self.proxy.metric(&series).await?)
    }

    /// How many purges there were for this reason.
    pub async fn purges(&self, reason: &str) -> Fallible<f64> {
        Ok(self.proxy.metric(&format!("cachefence_purges_total{{reason=\"{reason}\"}}")).await?)
    }

    /// A plain read and fill of a person that nobody disturbs, through the proxy. One that has just taken over from
    /// another distrusts leases for a while.
    pub async fn warm(&self, id: i64) -> Outcome {
        let (mut client, key) = (self.client().await?, format!("user:{id}"));
        let name = self.name(id).await?;
        wait_until("a plain fill to be let in", PATIENCE, async || {
            let filled = async {
                assert_eq!(client.cmd(&["GET", &key]).await?, Reply::Nil);
                client.cmd(&["SET", &key, &name]).await
            };
            filled.await.is_ok_and(|reply| reply == Reply::ok())
        })
        .await?;
        assert_eq!(self.held(&key).await?, Some(name));
        Ok(())
    }

    /// Makes commits wait for a standby that does not exist, and returns once they really do.
    ///
    /// The wait begins in shared memory some time after the reload, so commits are tried until one hangs.
    pub async fn hold_commits(&self) -> Outcome {
        self.sql.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await?;
        self.sql.batch_execute("SELECT pg_reload_conf()").await?;
        wait_for("a commit to hang", PATIENCE, || async {
            let held = HeldCommit::begin(self, "INSERT INTO unguarded VALUES (1)").await.ok()?;
            if held.is_held(self).await.ok()? {
                self.sql.execute("SELECT pg_cancel_backend($1)", &[&held.pid]).await.ok()?;
                held.end().await.ok()?;
                return Some(());
            }
            None
        })
        .await?;
        Ok(())
    }

    /// Lets the commits go that [`World::hold_commits`] holds.
    pub async fn release_commits(&self) -> Outcome {
        self.sql.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await?;
        self.sql.batch_execute("SELECT pg_reload_conf()").await?;
        Ok(())
    }
}

/// A statement of a session of its own, whose commit may hang.
pub struct HeldCommit {
    pub pid: i32,
    task: tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl HeldCommit {
    /// Sends it.
    pub async fn begin(world: &World, statement: &'static str) -> Fallible<Self> {
        let session = world.primary.client().await?;
        let pid = session.query_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)?;
        Ok(Self { pid, task: tokio::spawn(async move { session.batch_execute(statement).await }) })
    }

    /// Waits until it hangs (true), or has ended (false).
    pub async fn is_held(&self, world: &World) -> Fallible<bool> {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
        let held = wait_for("a commit to hang or to end", PATIENCE, || async {
            let waits: i64 = world.sql.query_one(sql, &[&self.pid]).await.ok()?.try_get(0).ok()?;
            if waits == 1 { Some(true) } else { self.task.is_finished().then_some(false) }
        });
        Ok(held.await?)
    }

    /// Waits for its end.
    pub async fn end(self) -> Outcome {
        Ok(self.task.await??)
    }
}

/// The only column of the only row, as text.
pub async fn text(client: &tokio_postgres::Client, sql: &str) -> Fallible<String> {
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

/// A person's name on some node.
pub async fn name_on(node: &tokio_postgres::Client, id: i64) -> Fallible<String> {
    Ok(node.query_one("SELECT name FROM users WHERE id = $1", &[&id]).await?.try_get(0)?)
}

/// A proxy's own account of itself.
pub async fn status(proxy: &Cachefence) -> Fallible<serde_json::Value> {
    let (_, body) = proxy.get("/status").await?;
    Ok(serde_json::from_str(&body)?)
}

/// A position in the proxy's account.
pub fn lsn(status: &serde_json::Value, name: &str) -> Option<Lsn> {
    status.pointer(name)?.as_str()?.parse().ok()
}

/// A snapshot from its text.
pub fn snapshot(text: &str) -> Fallible<Snapshot> {
    Ok(text.parse()?)
}

/// Asserts that a fill was let in.
#[track_caller]
pub fn assert_passed(reply: &Reply) {
    assert_eq!(*reply, Reply::ok());
}

/// Asserts that a fill was refused with an error that starts with this word.
#[track_caller]
pub fn assert_refused(reply: &Reply, word: &str) {
    assert!(matches!(reply, Reply::Error(error) if error.starts_with(word)), "{word}: {reply:?}");
}

/// A number from the environment.
pub fn variable(name: &str, otherwise: u64) -> Fallible<u64> {
    match std::env::var(name) {
        Ok(text) => {
            text.replace('_', "").parse().map_err(|_| format!("{name}={text} is not a whole number").into())
        }
        Err(_) => Ok(otherwise),
    }
}
