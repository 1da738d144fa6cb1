//! What the tests of the proxy's wire side share: servers with guarded tables, and replies as raw bytes.
#![allow(dead_code)]

use std::io::{Error, ErrorKind};
use std::time::Duration;

use cachefence::demo::client::{Client, encode};
use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config, wait_until,
};
use cachefence::resp::ReplyScanner;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

pub type Outcome = Result<(), Box<dyn std::error::Error>>;
pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_cachefence");

/// Guards of three tables, one for each way to answer a refused fill.
pub const GUARDS: &str = r#"
[[guard]]
table = "public.users"
keys = ["user:<id>", "user:<id>:profile"]
[[guard]]
table = "public.items"
keys = ["item:<id>"]
reply = "nil"
[[guard]]
table = "public.orders"
keys = ["order:<id>"]
reply = "error"
"#;

/// A Postgres that has the guarded tables.
pub async fn postgres() -> Fallible<Postgres> {
    let postgres = Postgres::primary(PrimaryOptions::default()).await?;
    let tables: String = ["users", "items", "orders"]
        .iter()
        .map(|table| {
            format!(
                "CREATE TABLE {table} (id bigint PRIMARY KEY, name text);\
                 INSERT INTO {table} SELECT n, 'name ' || n FROM generate_series(1, 100) n;"
            )
        })
        .collect();
    postgres.client().await?.batch_execute(&tables).await?;
    Ok(postgres)
}

/// Settings for a proxy with a slot of its own; each change replaces a text in them.
pub fn settings(postgres: &Postgres, redis: &Redis, slot: &str, changes: &[(&str, &str)]) -> String {
    let mut text = config(postgres, &[], redis) + GUARDS;
    text = text.replace(
        "[postgres]\n",
        &format!("[postgres]\nslot = \"{slot}\"\npublication = \"{slot}\"\napplication_name = \"{slot}\"\n"),
    );
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in {text}");
        text = text.replacen(from, to, 1);
    }
    text
}

/// A Postgres, a Redis and a proxy between.
pub struct Stand {
    pub proxy: Cachefence,
    pub redis: Redis,
    pub postgres: Postgres,
}

impl Stand {
    /// Starts all three, with the guards above.
    pub async fn start(changes: &[(&str, &str)]) -> Fallible<Self> {
        Self::with_redis(RedisOptions::default(), changes).await
    }

    /// The same, with a Redis of certain settings.
    pub async fn with_redis(options: RedisOptions, changes: &[(&str, &str)]) -> Fallible<Self> {
        let (postgres, redis) = (postgres().await?, Redis::start(options).await?);
        let proxy = Cachefence::start(BINARY, &settings(&postgres, &redis, "wire", changes)).await?;
        Ok(Self { proxy, redis, postgres })
    }

    /// Changes a row of a table, and waits until its key, which is put into Redis before, has been deleted.
    pub async fn write(&self, table: &str, key: &str, id: i64) -> Outcome {
        write(&self.postgres, &self.redis, table, key, id).await
    }
}

/// See [`Stand::write`].
pub async fn write(postgres: &Postgres, redis: &Redis, table: &str, key: &str, id: i64) -> Outcome {
    let mut direct = redis.client().await?;
    direct.cmd(&["SET", key, "an old value"]).await?;
    let update = format!("UPDATE {table} SET name = name || '.' WHERE id = {id}");
    postgres.client().await?.batch_execute(&update).await?;
    wait_until("the key to be deleted", PATIENCE, async || {
        direct.cmd(&["EXISTS", key]).await.is_ok_and(|n| n == cachefence::demo::client::Reply::Int(0))
    })
    .await?;
    Ok(())
}

/// Waits until everything written so far is settled, so that a miss from now on vouches for its fill.
pub async fn settled(postgres: &Postgres, proxy: &Cachefence) -> Outcome {
    let written = postgres.write_lsn().await?.0 as f64;
    wait_until("the sources to settle", PATIENCE, async || {
        let Ok(metrics) = proxy.metrics().await else { return false };
        let of = |name: &str| -> f64 {
            let line = metrics.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
            line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
        };
        let settled = of("cachefence_settled_lsn ");
        settled > 0.0
            && settled >= of("cachefence_floor_lsn ")
            && settled >= of("cachefence_applied_lsn ").min(written)
    })
    .await?;
    Ok(())
}

/// Any kind of connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that shows replies as they came.
pub struct Wire {
    stream: Box<dyn Duplex>,
    received: Vec<u8>,
}

impl Wire {
    /// Connects to `host:port` or `unix:PATH`.
    pub async fn connect(address: &str) -> Fallible<Self> {
        if let Some(path) = address.strip_prefix("unix:") {
            return Ok(Self::over(UnixStream::connect(path).await?));
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    /// Over a connection that is there.
    pub fn over(stream: impl Duplex + 'static) -> Self {
        Self { stream: Box::new(stream), received: Vec::new() }
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> Fallible<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) -> Fallible<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// The bytes of the next reply.
    pub async fn reply(&mut self) -> Fallible<Vec<u8>> {
        let mut scanner = ReplyScanner::default();
        loop {
            let progress = scanner.scan(&self.received)?;
            if progress.done {
                let rest = self.received.split_off(progress.bytes);
                return Ok(std::mem::replace(&mut self.received, rest));
            }
            if self.read().await? == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "closed").into());
            }
        }
    }

    /// Reads the next reply without keeping it: its length.
    pub async fn skip_reply(&mut self) -> Fallible<usize> {
        let mut scanner = ReplyScanner::default();
        let mut length = 0;
        loop {
            let progress = scanner.scan(&self.received)?;
            scanner.take(progress.bytes);
            self.received.drain(..progress.bytes);
            length += progress.bytes;
            if progress.done {
                return Ok(length);
            }
            if self.read().await? == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "closed").into());
            }
        }
    }

    /// Everything up to the end of the connection.
    pub async fn rest(&mut self) -> Fallible<Vec<u8>> {
        while self.read().await? > 0 {}
        Ok(std::mem::take(&mut self.received))
    }

    /// One command and its reply.
    pub async fn cmd(&mut self, line: &str) -> Fallible<String> {
        self.send(&encode(&line.split(' ').collect::<Vec<_>>())).await?;
        Ok(String::from_utf8_lossy(&self.reply().await?).into_owned())
    }

    async fn read(&mut self) -> Fallible<usize> {
        match tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await? {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(0),
            read => Ok(read?),
        }
    }
}

/// How many clients Redis has, the one that asks included.
pub async fn connections(redis: &mut Client) -> usize {
    let list = redis.cmd(&["CLIENT", "LIST"]).await.ok().and_then(|reply| reply.text()).unwrap_or_default();
    list.lines().count()
}
