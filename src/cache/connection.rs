//! The proxy's own connection to Redis: a few commands at a time, each with its reply.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use redis_protocol::resp2::decode::decode_bytes_mut;
use redis_protocol::resp2::types::{BytesFrame, Resp2Frame};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::endpoint::Endpoint;
use crate::resp::put_request;
use crate::transport::Transport;

/// A reply of Redis.
pub type Reply = BytesFrame;

/// Why the proxy's own work in Redis failed. None of these ends the proxy: it is tried again.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The socket failed.
    #[error("Redis at {address}: {source}")]
    Io {
        /// Which Redis.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// No answer in time.
    #[error("Redis at {address} has not answered {command} for {patience:?} (redis.reply_timeout)")]
    Silent {
        /// Which Redis.
        address: String,
        /// The command.
        command: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// Redis refused a command.
    #[error("Redis at {address} refused {command}: {error}")]
    Refused {
        /// Which Redis.
        address: String,
        /// The command.
        command: String,
        /// In Redis's words.
        error: String,
    },
    /// Older than what a capped fill needs.
    #[error("Redis at {address} is version {version}; PEXPIRE ... LT, and so cachefence, needs 7.0 or later")]
    TooOld {
        /// Which Redis.
        address: String,
        /// Its version.
        version: String,
    },
    /// New connections lead to another Redis.
    #[error("Redis at {address} is another one for new connections than for the proxy's own")]
    Elsewhere {
        /// Which Redis.
        address: String,
    },
    /// Redis answered something that the command cannot answer.
    #[error("Redis at {address} gave a reply to {command} that cannot be read")]
    Unreadable {
        /// Which Redis.
        address: String,
        /// The command.
        command: String,
    },
}

/// The first major version that has `PEXPIRE ... LT`.
const OLDEST_REDIS: u32 = 7;
/// How long Redis may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection of the proxy's own.
#[derive(Debug)]
pub struct Connection {
    stream: Transport,
    address: String,
    /// How long Redis may take to answer.
    reply_timeout: Duration,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// The db of the marker, and of those guards that name none.
    pub home: u32,
    /// The db that it is in.
    db: u32,
    /// `run_id` of `INFO server`: another one means that Redis was restarted or replaced.
    pub run_id: String,
}

impl Connection {
    /// Connects, logs in, names the connection and selects the guards' db.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn open(address: &Endpoint, name: &str) -> Result<Self, CacheError> {
        let mut connection = Self::login(address).await?;
        connection.introduce(address, name).await?;
        Ok(connection)
    }

    /// Connects and logs in.
    ///
    /// # Errors
    /// When either fails.
    pub async fn login(address: &Endpoint) -> Result<Self, CacheError> {
        let mut connection = Self::stranger(address).await?;
        if let Some(auth) = address.auth() {
            connection.call(&auth).await?;
        }
        Ok(connection)
    }

    /// Connects, and does not log in.
    ///
    /// # Errors
    /// When that fails.
    pub async fn stranger(address: &Endpoint) -> Result<Self, CacheError> {
        let io = |source| CacheError::Io { address: address.to_string(), source };
        let connected = timeout(CONNECT_TIMEOUT, address.connect()).await;
        let stream = connected.unwrap_or_else(|_| Err(address.silence())).map_err(io)?;
        Ok(Self {
            stream,
            address: address.to_string(),
            reply_timeout: address.reply_timeout,
            incoming: BytesMut::with_capacity(4096),
            outgoing: BytesMut::with_capacity(4096),
            home: address.db,
            db: address.db,
            run_id: String::new(),
        })
    }

    async fn introduce(&mut self, address: &Endpoint, name: &str) -> Result<(), CacheError> {
        self.call(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await?;
        self.call(&[b"SELECT", address.db.to_string().as_bytes()]).await?;
        let info = self.call(&[b"INFO", b"server"]).await?;
        let info = text(&info).unwrap_or_default();
        self.run_id = info_field(info, "run_id").unwrap_or_default().to_owned();
        let version = info_field(info, "redis_version").unwrap_or_default();
        if is_too_old(version) {
            let (address, version) = (address.to_string(), version.to_owned());
            return Err(CacheError::TooOld { address, version });
        }
        Ok(())
    }

    /// Goes to another db, if it is not there.
    ///
    /// # Errors
    /// Those of [`Connection::call`]. Nobody knows then where it is: it must not be used any more.
    pub async fn select(&mut self, db: u32) -> Result<(), CacheError> {
        if self.db != db {
            self.call(&[b"SELECT", db.to_string().as_bytes()]).await?;
            self.db = db;
        }
        Ok(())
    }

    /// The same with the commands that [`Connection::send`] sends. How many were added: none or one.
    pub fn queue_select(&mut self, db: u32) -> usize {
        if self.db == db {
            return 0;
        }
        self.queue(&[b"SELECT", db.to_string().as_bytes()]);
        self.db = db;
        1
    }

    /// Runs one command. An error reply is an error.
    ///
    /// # Errors
    /// When the command could not be sent, was not answered, or was refused.
    pub async fn call(&mut self, command: &[&[u8]]) -> Result<Reply, CacheError> {
        self.queue(command);
        self.send().await?;
        self.reply(&name(command)).await
    }

    /// Adds a command to those that [`Connection::send`] sends.
    pub fn queue(&mut self, command: &[&[u8]]) {
        put_request(&mut self.outgoing, command);
    }

    /// Bytes that wait to be sent.
    pub fn queued(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends what is queued, in one write where the socket takes it.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn send(&mut self) -> Result<(), CacheError> {
        let sent = timeout(self.reply_timeout, self.stream.write_all(&self.outgoing)).await;
        self.outgoing.clear();
        sent.map_err(|_| self.silent("a write"))?.map_err(|source| self.io(source))
    }

    /// Reads the next reply, which is that of `command`.
    ///
    /// # Errors
    /// When it does not come, cannot be read, or is an error.
    pub async fn reply(&mut self, command: &str) -> Result<Reply, CacheError> {
        loop {
            match decode_bytes_mut(&mut self.incoming) {
                Ok(Some((BytesFrame::Error(error), _, _))) => {
                    return Err(CacheError::Refused {
                        address: self.address.clone(),
                        command: command.to_owned(),
                        error: error.to_string(),
                    });
                }
                Ok(Some((reply, _, _))) => return Ok(reply),
                Ok(None) => {}
                Err(_) => {
                    return Err(CacheError::Unreadable {
                        address: self.address.clone(),
                        command: command.to_owned(),
                    });
                }
            }
            let read = timeout(self.reply_timeout, self.stream.read_buf(&mut self.incoming)).await;
            let read = read.map_err(|_| self.silent(command))?.map_err(|source| self.io(source))?;
            if read == 0 {
                return Err(self.io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Waits until Redis closes the connection while nothing is asked. It says nothing unasked either: whatever comes,
    /// the connection is of no more use.
    pub async fn ended(&mut self) -> CacheError {
        match self.stream.read_buf(&mut self.incoming).await {
            Ok(_) => self.io(io::ErrorKind::UnexpectedEof.into()),
            Err(source) => self.io(source),
        }
    }

    fn io(&self, source: io::Error) -> CacheError {
        CacheError::Io { address: self.address.clone(), source }
    }

    fn silent(&self, command: &str) -> CacheError {
        CacheError::Silent {
            address: self.address.clone(),
            command: command.to_owned(),
            patience: self.reply_timeout,
        }
    }
}

/// Whether a version is older than what the proxy needs.
pub(crate) fn is_too_old(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major < OLDEST_REDIS)
}

/// A field of `INFO`.
pub(crate) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// A reply's text; none if it has no text.
pub(crate) fn text(reply: &Reply) -> Option<&str> {
    reply.as_str()
}

/// The command's name, without its arguments, which may be keys or a password.
fn name(command: &[&[u8]]) -> String {
    command.first().map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default()
}
