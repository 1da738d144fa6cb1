//! The demo's servers, its schema and the proxy's settings.

use std::path::Path;

use super::application::Cache;
use super::onlooker::Onlooker;
use super::play::Play;
use super::servers::{Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, ServerError, config};
use super::{Between, DemoError, DemoOptions};

/// How far the replica's replay is behind.
const REPLAY_DELAY: &str = "2s";

/// Rows 10x belong to the application without the proxy, rows 20x to the one with it.
const SCHEMA: &str = "
CREATE TABLE public.users (id bigint PRIMARY KEY, email text, name text, version bigint NOT NULL DEFAULT 1);
ALTER TABLE public.users REPLICA IDENTITY FULL;
INSERT INTO public.users (id, email, name)
    SELECT id, 'user' || id || '@example.org', 'Ada' FROM generate_series(101, 110) AS id
    UNION ALL SELECT id, 'user' || id || '@example.org', 'Ada' FROM generate_series(201, 210) AS id;
CREATE TABLE public.products (id bigint PRIMARY KEY, price bigint NOT NULL);
INSERT INTO public.products SELECT id, 10 FROM generate_series(1, 10) AS id;
";

/// `users` is what the application uses. `products` is for trying out by hand: a refused fill says so.
const GUARDS: &str = r#"
[[guard]]
table = "public.users"
keys = ["user:<id>", "user:<id>:profile", "users:by-email:<email>"]

[[guard]]
table = "public.products"
keys = ["product:<id>"]
reply = "error"
"#;

/// Everything that runs. Fields end in this order: the proxy before what it is connected to.
pub(super) struct Stage {
    proxy: Option<Cachefence>,
    pub(super) replica: Postgres,
    pub(super) primary: Postgres,
    /// The cache of the application without the proxy.
    pub(super) direct: Redis,
    /// The cache of the application with it.
    pub(super) behind: Redis,
}

impl Stage {
    pub(super) async fn start(options: &DemoOptions) -> Result<Self, DemoError> {
        let primary = Postgres::primary(PrimaryOptions::default()).await?;
        let sql = primary.client().await?;
        sql.batch_execute(SCHEMA).await.map_err(ServerError::sql("create the demo's tables"))?;
        let replica = Postgres::replica(&primary, &[("recovery_min_apply_delay", REPLAY_DELAY)]).await?;
        replica.catch_up(&primary).await?;
        let direct = Redis::start(RedisOptions::default()).await?;
        let behind = Redis::start(RedisOptions::default()).await?;
        let mut stage = Self { proxy: None, replica, primary, direct, behind };
        if let Between::Proxy(program) = &options.between {
            stage.proxy = Some(stage.start_proxy(program, options.stay).await?);
        }
        Ok(stage)
    }

    async fn start_proxy(&self, program: &Path, stay: bool) -> Result<Cachefence, ServerError> {
        let mut settings = config(&self.primary, &[&self.replica], &self.behind) + GUARDS;
        // Those who stay get the ports that the documentation names, if nobody has them.
        if stay && is_free(6380) {
            settings += "\n[proxy]\nlisten = [\"127.0.0.1:6380\"]\n";
        }
        if stay && is_free(9187) {
            settings += "\n[admin]\nlisten = \"127.0.0.1:9187\"\n";
        }
        Cachefence::start(program, &settings).await
    }

    /// Where the second application finds its cache.
    pub(super) fn through_address(&self) -> String {
        self.proxy.as_ref().map_or_else(|| self.behind.address(), |proxy| proxy.address().to_owned())
    }

    /// The proxy's metrics, if there is a proxy.
    pub(super) async fn metrics(&self) -> Result<Option<String>, DemoError> {
        match &self.proxy {
            Some(proxy) => Ok(Some(proxy.metrics().await?)),
            None => Ok(None),
        }
    }

    /// Somebody who watches the key of a play.
    pub(super) async fn onlooker(&self, play: &Play<'_>) -> Result<Onlooker, DemoError> {
        Ok(Onlooker {
            redis: Cache::connect(&play.redis_address()).await?,
            primary: self.primary.client().await?,
            id: play.id,
        })
    }

    /// What runs where.
    pub(super) fn description(&self) -> String {
        let between = match &self.proxy {
            Some(proxy) => format!("cachefence on port {} in front of it", proxy.port()),
            None => "nothing in front of it".into(),
        };
        format!(
            "  Postgres   primary on port {}, replica on port {} with replay delayed by {REPLAY_DELAY}\n  \
             Redis      port {}: straight\n             port {}: {between}",
            self.primary.port(),
            self.replica.port(),
            self.direct.port(),
            self.behind.port()
        )
    }

    /// What to try by hand.
    pub(super) async fn invitation(&self) -> Result<String, DemoError> {
        let Some(proxy) = &self.proxy else { return Ok("Running until Ctrl-C.".into()) };
        let sql = "SELECT pg_current_snapshot()::text";
        let row = self.primary.client().await?.query_one(sql, &[]).await.map_err(ServerError::sql(sql))?;
        let snapshot: String = row.try_get(0).map_err(ServerError::sql(sql))?;
        let port = proxy.port();
        Ok(format!(
            "Everything stays until Ctrl-C.

  through cachefence   {}
  the Redis behind it  {}
  the other Redis      {}
  primary              {psql}
  replica, {REPLAY_DELAY} behind   {replica}
  metrics              {}/metrics

Try a stale fill. The snapshot was taken just now; the UPDATE makes it old:

  {psql} -c 'UPDATE products SET price = 12 WHERE id = 1'
  redis-cli -p {port} ASOF {snapshot} SET product:1 10 EX 300

A fill with a snapshot that sees the UPDATE is let in:

  NOW=$({psql} -Atc 'SELECT pg_current_snapshot()')
  redis-cli -p {port} ASOF $NOW SET product:1 12 EX 300
  redis-cli -p {port} GET product:1",
            proxy.redis_url(),
            self.behind.url(),
            self.direct.url(),
            proxy.admin_url(),
            psql = self.primary.psql_command(),
            replica = self.replica.psql_command(),
        ))
    }
}

fn is_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}
