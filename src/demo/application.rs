//! A cache-aside application, as they are: read the cache, on a miss read the database and fill the cache; after a
//! commit delete the key. It knows nothing of any proxy.

use serde::{Deserialize, Serialize};

use super::DemoError;
use super::client::{Client, Reply};
use super::servers::{Postgres, ServerError};

/// How long the application lets an entry live.
pub(super) const TTL: &str = "300";

/// A row, and what the cache holds of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct User {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) version: i64,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{} {}", self.version, self.name)
    }
}

impl User {
    /// From what a GET answered.
    pub(super) fn cached(key: &str, reply: Reply) -> Result<Option<Self>, DemoError> {
        let bad = |answer: String| DemoError::Answer { command: format!("GET {key}"), answer };
        match reply {
            Reply::Nil => Ok(None),
            Reply::Bulk(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|_| bad(String::from_utf8_lossy(&bytes).into_owned())),
            other => Err(bad(format!("{other:?}"))),
        }
    }

    /// The row as a database node has it.
    pub(super) async fn selected(source: &tokio_postgres::Client, id: i64) -> Result<Self, DemoError> {
        let sql = "SELECT id, name, version FROM public.users WHERE id = $1";
        let row = source.query_one(sql, &[&id]).await.map_err(ServerError::sql(sql))?;
        Self::from_row(&row)
    }

    fn from_row(row: &tokio_postgres::Row) -> Result<Self, DemoError> {
        let read = || Ok(Self { id: row.try_get(0)?, name: row.try_get(1)?, version: row.try_get(2)? });
        Ok(read().map_err(ServerError::sql("read a row of public.users"))?)
    }
}

/// The key of a row.
pub(super) fn key(id: i64) -> String {
    format!("user:{id}")
}

/// A connection of the application to its cache.
pub(super) struct Cache {
    address: String,
    client: Client,
}

impl Cache {
    pub(super) async fn connect(address: &str) -> Result<Self, DemoError> {
        let failed = |source| DemoError::Cache { address: address.to_owned(), source };
        let client = Client::connect(address).await.map_err(failed)?;
        Ok(Self { address: address.to_owned(), client })
    }

    pub(super) async fn cmd(&mut self, args: &[&str]) -> Result<Reply, DemoError> {
        let failed = |source| DemoError::Cache { address: self.address.clone(), source };
        self.client.cmd(args).await.map_err(failed)
    }

    pub(super) async fn get(&mut self, id: i64) -> Result<Option<User>, DemoError> {
        let key = key(id);
        User::cached(&key, self.cmd(&["GET", &key]).await?)
    }
}

/// What a reader got, and from where.
pub(super) enum Saw {
    /// From the cache.
    Hit(User),
    /// From the database, after a miss.
    Miss(User),
}

/// A part of the application that reads one row.
pub(super) struct Reader {
    cache: Cache,
    source: tokio_postgres::Client,
    id: i64,
}

impl Reader {
    pub(super) async fn new(cache: &str, source: &Postgres, id: i64) -> Result<Self, DemoError> {
        Ok(Self { cache: Cache::connect(cache).await?, source: source.client().await?, id })
    }

    /// The first half of a read: the cache, and on a miss the database.
    pub(super) async fn look(&mut self) -> Result<Saw, DemoError> {
        match self.cache.get(self.id).await? {
            Some(user) => Ok(Saw::Hit(user)),
            None => Ok(Saw::Miss(User::selected(&self.source, self.id).await?)),
        }
    }

    /// The second half, after a miss: what was read goes into the cache.
    pub(super) async fn fill(&mut self, user: &User) -> Result<Reply, DemoError> {
        let value = serde_json::json!(user).to_string();
        self.cache.cmd(&["SET", &key(self.id), &value, "EX", TTL]).await
    }

    /// A whole read.
    pub(super) async fn read(&mut self) -> Result<Saw, DemoError> {
        let saw = self.look().await?;
        if let Saw::Miss(user) = &saw {
            self.fill(user).await?;
        }
        Ok(saw)
    }
}

/// A part of the application that changes one row.
pub(super) struct Writer {
    cache: Cache,
    primary: tokio_postgres::Client,
    id: i64,
}

impl Writer {
    pub(super) async fn new(cache: &str, primary: &Postgres, id: i64) -> Result<Self, DemoError> {
        Ok(Self { cache: Cache::connect(cache).await?, primary: primary.client().await?, id })
    }

    /// BEGIN, UPDATE, COMMIT; returns the row as it was written.
    pub(super) async fn update(&mut self, name: &str) -> Result<User, DemoError> {
        let sql = "UPDATE public.users SET name = $2, version = version + 1 WHERE id = $1 RETURNING id, name, version";
        let transaction = self.primary.transaction().await.map_err(ServerError::sql("BEGIN"))?;
        let row = transaction.query_one(sql, &[&self.id, &name]).await.map_err(ServerError::sql(sql))?;
        transaction.commit().await.map_err(ServerError::sql("COMMIT"))?;
        User::from_row(&row)
    }

    /// The invalidation that a careful application does after its commit.
    pub(super) async fn delete_key(&mut self) -> Result<Reply, DemoError> {
        self.cache.cmd(&["DEL", &key(self.id)]).await
    }
}
