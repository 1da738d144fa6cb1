//! A walsender connection: which cluster this is, slots, and the stream of changes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};

use super::connect::within;
use super::error::{PgError, ServerError};
use super::target::{Host, SESSION_SQL, Target};
use super::wire::Connection;
use crate::position::Lsn;

/// Microseconds from 1970-01-01 to 2000-01-01, where Postgres starts to count.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// When the server was started.
pub const STARTED: &str = "SELECT pg_catalog.pg_postmaster_start_time()::text";

/// Microseconds since 1970 of a Postgres timestamp.
pub fn unix_micros(postgres: i64) -> i64 {
    postgres.saturating_add(POSTGRES_EPOCH_US)
}

/// Now, in microseconds since 1970.
pub fn now_unix_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// What `IDENTIFY_SYSTEM` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The cluster, made at `initdb` and shared with its standbys.
    pub system_id: u64,
    /// Its timeline: a failover starts a new one.
    pub timeline: u32,
    /// Where its log is flushed to.
    pub flushed: Lsn,
    /// The database of the connection.
    pub dbname: String,
}

/// One of the server's processes. Process ids come again; with the time of its start it is the only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its process id.
    pub pid: i32,
    /// When it was started, as our sessions print it.
    pub started: String,
}

/// A slot that was just created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Commits that end after this position are in the stream.
    pub consistent_point: Lsn,
}

/// What arrives on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A message of the output plugin.
    Data {
        /// Where the change is in the log.
        start: Lsn,
        /// How far the server has come.
        server_end: Lsn,
        /// When it was sent, by the server's clock, in microseconds since 1970.
        sent_at: i64,
        /// For [`super::pgoutput::decode`].
        payload: &'a [u8],
    },
    /// How far the server has come.
    Keepalive {
        /// Every commit that ends at or before this position has been sent.
        server_end: Lsn,
        /// When it was sent, by the server's clock, in microseconds since 1970.
        sent_at: i64,
        /// The server wants an answer now.
        reply_requested: bool,
    },
    /// Nothing about the stream.
    Other,
}

/// What we tell the server of our progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Received.
    pub write: Lsn,
    /// Confirmed: the slot may forget what is before; a synchronous commit up to here returns.
    pub flush: Lsn,
    /// Applied.
    pub apply: Lsn,
    /// Ask for a keepalive in return.
    pub request_reply: bool,
}

/// A connection in walsender mode.
#[derive(Debug)]
pub struct Walsender {
    connection: Connection,
    host: Host,
}

impl Walsender {
    /// Connects and logs in.
    ///
    /// # Errors
    /// The connection's, or Postgres's.
    pub async fn connect(target: &Target, application_name: &str) -> Result<Self, PgError> {
        let (mut connection, host) = Connection::replication(target, application_name).await?;
        within(target, connection.simple_query(SESSION_SQL)).await?;
        Ok(Self { connection, host })
    }

    /// Where it is connected to.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// When the server was started: no two have it in common.
    ///
    /// # Errors
    /// The connection's, or Postgres's.
    pub async fn started(&mut self) -> Result<String, PgError> {
        let rows = self.connection.simple_query(STARTED).await?;
        match rows.into_iter().next().unwrap_or_default().as_slice() {
            [Some(started)] => Ok(started.clone()),
            _ => Err(PgError::Protocol("pg_postmaster_start_time answered nothing".into())),
        }
    }

    /// Which of the server's processes this is.
    ///
    /// # Errors
    /// The connection's, or Postgres's.
    pub async fn backend(&mut self) -> Result<Backend, PgError> {
        let sql = "SELECT pid::text, backend_start::text FROM pg_catalog.pg_stat_activity \
                   WHERE pid = pg_catalog.pg_backend_pid()";
        let rows = self.connection.simple_query(sql).await?;
        let row = rows.into_iter().next().unwrap_or_default();
        let [Some(pid), Some(started)] = row.as_slice() else {
            return Err(PgError::Protocol("pg_stat_activity does not list this connection".into()));
        };
        let pid = pid.parse().map_err(|_| PgError::Protocol(format!("{pid:?} as a process id")))?;
        Ok(Backend { pid, started: started.clone() })
    }

    /// Has Postgres let go of us when it has not heard us for so long.
    ///
    /// # Errors
    /// The connection's, or Postgres's.
    pub async fn give_up_after(&mut self, limit: Duration) -> Result<(), PgError> {
        let sql = format!("SET wal_sender_timeout = '{}ms'", limit.as_millis().min(i32::MAX as u128));
        self.connection.simple_query(&sql).await.map(drop)
    }

    /// `IDENTIFY_SYSTEM`.
    ///
    /// # Errors
    /// The connection's, or Postgres's.
    pub async fn identify(&mut self) -> Result<System, PgError> {
        let rows = self.connection.simple_query("IDENTIFY_SYSTEM").await?;
        let row = rows.into_iter().next().unwrap_or_default();
        let [Some(system_id), Some(timeline), Some(flushed), Some(dbname)] = row.as_slice() else {
            return Err(PgError::Protocol("IDENTIFY_SYSTEM answered without a database".into()));
        };
        let bad = |what: &str| PgError::Protocol(format!("IDENTIFY_SYSTEM answered {what:?}"));
        Ok(System {
            system_id: system_id.parse().map_err(|_| bad(system_id))?,
            timeline: timeline.parse().map_err(|_| bad(timeline))?,
            flushed: flushed.parse().map_err(|_| bad(flushed))?,
            dbname: dbname.clone(),
        })
    }

    /// `server_version_num`.
    async fn version(&mut self) -> Result<i32, PgError> {
        let rows = self.connection.simple_query("SHOW server_version_num").await?;
        let answer = rows.first().and_then(|row| row.first()).and_then(Option::as_deref).unwrap_or_default();
        answer.parse().map_err(|_| PgError::Protocol(format!("SHOW server_version_num answered {answer:?}")))
    }

    /// Creates a logical slot for pgoutput. Waits for every transaction that is running now.
    ///
    /// # Errors
    /// The connection's, or Postgres's.
    pub async fn create_slot(&mut self, slot: &str, lasts: Lasts) -> Result<CreatedSlot, PgError> {
        let rows = self.connection.simple_query(&create_slot(slot, lasts)).await?;
        let point = rows.first().and_then(|row| row.get(1)).and_then(Option::as_deref).unwrap_or_default();
        let consistent_point = point
            .parse()
            .map_err(|_| PgError::Protocol(format!("CREATE_REPLICATION_SLOT answered {point:?}")))?;
        Ok(CreatedSlot { consistent_point })
    }

    /// Says whether a slot that nobody reads shall survive a failover. For Postgres 17 and later.
    ///
    /// # Errors
    /// The connection's, or Postgres's.
    pub async fn alter_slot(&mut self, slot: &str, failover: bool) -> Result<(), PgError> {
        let sql = format!("ALTER_REPLICATION_SLOT {} (FAILOVER {failover})", identifier(slot));
        self.connection.simple_query(&sql).await.map(drop)
    }

    /// Drops a slot.
    ///
    /// # Errors
    /// The connection's, or Postgres's (55006: somebody is using it).
    pub async fn drop_slot(&mut self, slot: &str) -> Result<(), PgError> {
        let sql = format!("DROP_REPLICATION_SLOT {}", identifier(slot));
        self.connection.simple_query(&sql).await.map(drop)
    }

    /// Starts the stream. The server goes on from the later of `from` and the slot's own position. With `in_blocks` it may
    /// send large transactions while they run, if it knows how.
    ///
    /// # Errors
    /// The connection's, or Postgres's (55006: somebody is using the slot).
    pub async fn start(
        &mut self,
        slot: &str,
        from: Lsn,
        publication: &str,
        in_blocks: bool,
    ) -> Result<(), PgError> {
        // Version 13 knows neither messages nor blocks, and does not take the options.
        let (protocol, options) = match self.version().await? >= 140_000 {
            true if in_blocks => (2, ", messages 'true', streaming 'on'"),
            true => (1, ", messages 'true'"),
            false => (1, ""),
        };
        // publication_names is a list of identifiers inside a string literal: both are quoted.
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '{protocol}', publication_names {}{options})",
            identifier(slot),
            literal(&identifier(publication)),
        );
        self.connection.start_copy(&sql).await
    }

    /// The next event that has already been read, if any.
    ///
    /// # Errors
    /// When the server ended the stream, or sent what it should not.
    pub fn buffered(&mut self) -> Result<Option<Event<'_>>, PgError> {
        // A server's notice says nothing about the stream; a loop here would keep `self` borrowed.
        let Some(frame) = self.connection.buffered()? else { return Ok(None) };
        match frame.tag {
            b'd' => event(frame.body).map(Some),
            b'E' => Err(PgError::Server(Box::new(ServerError::parse(frame.body)))),
            b'N' => match skipped_publication(frame.body) {
                Some(error) => Err(PgError::Server(Box::new(error))),
                None => Ok(Some(Event::Other)),
            },
            b'S' => Ok(Some(Event::Other)),
            b'c' | b'C' => Err(PgError::Protocol("the server ended the stream".into())),
            other => Err(PgError::Protocol(format!("message {:?} in the stream", char::from(other)))),
        }
    }

    /// Reads what has arrived, at least one byte. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the connection broke or was closed.
    pub async fn fill(&mut self) -> Result<(), PgError> {
        self.connection.fill().await
    }

    /// Reports progress.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn report(&mut self, status: Status) -> Result<(), PgError> {
        encode_status(status, now_unix_micros() - POSTGRES_EPOCH_US, self.connection.output());
        self.connection.flush().await
    }

    /// Ends the stream in order. Once this returns the server has taken every report and let go of the slot. What it
    /// still sends is thrown away.
    ///
    /// # Errors
    /// When the connection broke, or the server ended the stream with an error.
    pub async fn finish(&mut self) -> Result<(), PgError> {
        // CopyDone: a message of nothing but its length.
        self.connection.output().put_u8(b'c');
        self.connection.output().put_u32(4);
        self.connection.flush().await?;
        loop {
            while let Some(frame) = self.connection.buffered()? {
                match frame.tag {
                    b'Z' => return Ok(()),
                    b'E' => return Err(PgError::Server(Box::new(ServerError::parse(frame.body)))),
                    _ => {}
                }
            }
            self.connection.fill().await?;
        }
    }
}

/// How long a slot lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// As long as the connection that made it.
    Connection,
    /// Until it is dropped.
    Server,
    /// Until it is dropped, on the standbys that are promoted too. For Postgres 17 and later.
    Failover,
}

fn create_slot(slot: &str, lasts: Lasts) -> String {
    let slot = identifier(slot);
    // The spelling of PostgreSQL 13 is understood by all later ones, but has no word for what is newer.
    match lasts {
        Lasts::Connection => {
            format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        }
        Lasts::Server => format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput NOEXPORT_SNAPSHOT"),
        Lasts::Failover => {
            format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER)")
        }
    }
}

/// Where the publication is not there, as of the change that is decoded, versions before 18 end the stream with
/// "undefined object". Version 18 warns, and leaves the change out: nobody may go on from there, so it is made the same
/// error. The warning's own SQLSTATE is no other's that a stream can bring, but as an error it means much else.
fn skipped_publication(notice: &[u8]) -> Option<ServerError> {
    let notice = ServerError::parse(notice);
    let skipped = notice.severity == "WARNING" && notice.code == "55000";
    skipped.then(|| ServerError { severity: "ERROR".into(), code: "42704".into(), ..notice })
}

/// A message of the stream.
///
/// # Errors
/// When it ends too early, or is of no known kind.
pub fn event(body: &[u8]) -> Result<Event<'_>, PgError> {
    let short = || PgError::Protocol("a stream message that ends too early".into());
    let eight = |from: usize| body.get(from..).and_then(|rest| rest.first_chunk::<8>()).ok_or_else(short);
    let number = |from: usize| eight(from).map(|bytes| Lsn(u64::from_be_bytes(*bytes)));
    let clock = |from: usize| eight(from).map(|bytes| unix_micros(i64::from_be_bytes(*bytes)));
    match body.first() {
        // Start, end, clock, payload.
        Some(b'w') => Ok(Event::Data {
            start: number(1)?,
            server_end: number(9)?,
            sent_at: clock(17)?,
            payload: body.get(25..).ok_or_else(short)?,
        }),
        // End, clock, reply requested.
        Some(b'k') => Ok(Event::Keepalive {
            server_end: number(1)?,
            sent_at: clock(9)?,
            reply_requested: *body.get(17).ok_or_else(short)? != 0,
        }),
        Some(other) => Err(PgError::Protocol(format!("stream message {:?}", char::from(*other)))),
        None => Err(short()),
    }
}

fn encode_status(status: Status, clock: i64, out: &mut BytesMut) {
    out.put_u8(b'd');
    out.put_u32(4 + 34);
    out.put_u8(b'r');
    out.put_u64(status.write.0);
    out.put_u64(status.flush.0);
    out.put_u64(status.apply.0);
    out.put_i64(clock);
    out.put_u8(u8::from(status.request_reply));
}

/// A name as SQL and the replication commands read it back.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as an SQL literal.
pub fn literal(text: &str) -> String {
    // With a backslash only the E form means the same whatever standard_conforming_strings says.
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(identifier("we\"ird"), "\"we\"\"ird\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
    }

    #[test]
    fn events_are_decoded_and_short_ones_refused() {
        let mut data = vec![b'w'];
        data.extend_from_slice(&1u64.to_be_bytes());
        data.extend_from_slice(&2u64.to_be_bytes());
        data.extend_from_slice(&3u64.to_be_bytes());
        for end in 0..data.len() {
            assert!(event(&data[..end]).is_err(), "{end}");
        }
        data.extend_from_slice(b"B...");
        let expected =
            Event::Data { start: Lsn(1), server_end: Lsn(2), sent_at: unix_micros(3), payload: b"B..." };
        assert_eq!(event(&data).expect("data"), expected);

        let mut keepalive = vec![b'k'];
        keepalive.extend_from_slice(&7u64.to_be_bytes());
        keepalive.extend_from_slice(&0u64.to_be_bytes());
        assert!(event(&keepalive).is_err());
        keepalive.push(1);
        let expected =
            Event::Keepalive { server_end: Lsn(7), sent_at: unix_micros(0), reply_requested: true };
        assert_eq!(event(&keepalive).expect("keepalive"), expected);
        assert!(event(b"x").is_err());
    }

    #[test]
    fn a_status_update_is_a_copy_data_of_34_bytes() {
        let mut out = BytesMut::new();
        let status = Status { write: Lsn(3), flush: Lsn(1), apply: Lsn(2), request_reply: true };
        encode_status(status, 9, &mut out);
        assert_eq!(out.len(), 1 + 4 + 34);
        assert_eq!(&out[..6], b"d\0\0\0\x26r");
        assert_eq!(out[13], 3);
        assert_eq!(out[21], 1);
        assert_eq!(out[29], 2);
        assert_eq!(out[38], 1);
    }

    #[test]
    fn how_long_a_slot_lasts_is_said_when_it_is_made() {
        let made = |lasts| create_slot("c", lasts);
        assert_eq!(made(Lasts::Server), "CREATE_REPLICATION_SLOT \"c\" LOGICAL pgoutput NOEXPORT_SNAPSHOT");
        assert!(made(Lasts::Connection).contains(" \"c\" TEMPORARY LOGICAL "));
        assert!(made(Lasts::Failover).ends_with("(SNAPSHOT 'nothing', FAILOVER)"));
    }

    #[test]
    fn postgres_counts_from_2000() {
        assert_eq!(unix_micros(0), 946_684_800_000_000);
    }
}
