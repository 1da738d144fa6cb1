//! One connection to Postgres: login, frames in and out.
//!
//! Frames are cut by hand. `postgres-protocol` encodes what we send and does the cryptography, but its message
//! parser does not know CopyBothResponse, the message that starts a replication stream.

use std::io;

use bytes::{Buf, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connect::{Login, STANDING, Session, Standing, connect};
use super::error::{PgError, ServerError};
use super::target::{ChannelBinding, Host, SESSION, Target};
use crate::transport::Transport;

/// The longest message body that is believed. Postgres cannot build a longer one (`MaxAllocSize` is 1 GB).
const MAX_FRAME: usize = 1 << 30;
/// The longest message before the login is over: a peer that is not Postgres must not make us wait for more.
const MAX_LOGIN_FRAME: usize = 64 * 1024;
/// Room that is made for every read.
const READ_ROOM: usize = 64 * 1024;
/// A read buffer that one huge row has blown up is given back when it is empty again.
const KEEP_BUFFER: usize = 1024 * 1024;

/// One message of the server, still in the read buffer.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The message type.
    pub tag: u8,
    /// What follows the length.
    pub body: &'a [u8],
}

/// A connection after login.
#[derive(Debug)]
pub struct Connection {
    socket: Transport,
    input: BytesMut,
    /// Bytes at the front of `input` that the frame handed out last occupied.
    taken: usize,
    output: BytesMut,
    /// What the server said of itself at the login.
    standing: Standing,
}

impl Login for Connection {
    /// As a walsender of the database.
    async fn login(socket: Transport, session: &Session<'_>) -> Result<Self, PgError> {
        let mut connection = Self::over(socket);
        let target = session.target;
        let mut parameters = vec![
            ("user", target.user.as_str()),
            ("database", target.dbname.as_str()),
            ("replication", "database"),
            ("application_name", session.application_name),
        ];
        if let Some(options) = &target.options {
            parameters.push(("options", options));
        }
        parameters.extend_from_slice(SESSION);
        frontend::startup_message(parameters, &mut connection.output)?;
        connection.flush().await?;
        connection.authenticate(session).await?;
        connection.until_ready().await?;
        Ok(connection)
    }

    fn standing(&self) -> Standing {
        self.standing
    }

    async fn ask_standing(&mut self) -> Result<Standing, PgError> {
        let rows = self.simple_query(STANDING).await?;
        let row = rows.first().map(Vec::as_slice).unwrap_or_default();
        let column = |n: usize| row.get(n).and_then(Option::as_deref);
        Standing::answered(column(0), column(1))
    }
}

impl Connection {
    /// Connects and logs in as a walsender of the database. Says which host that was.
    ///
    /// # Errors
    /// Where all of the hosts failed, each one's.
    pub async fn replication(target: &Target, application_name: &str) -> Result<(Self, Host), PgError> {
        connect(target, application_name).await
    }

    fn over(socket: Transport) -> Self {
        Self {
            socket,
            input: BytesMut::with_capacity(READ_ROOM),
            taken: 0,
            output: BytesMut::new(),
            standing: Standing::default(),
        }
    }

    async fn authenticate(&mut self, session: &Session<'_>) -> Result<(), PgError> {
        let bound = session.target.channel_binding == ChannelBinding::Require;
        let mut scram: Option<ScramSha256> = None;
        // Whether SCRAM has proved that nobody is in between.
        let mut proved = false;
        loop {
            let frame = self.next(MAX_LOGIN_FRAME).await?;
            match frame.tag {
                b'E' => return Err(PgError::Server(Box::new(ServerError::parse(frame.body)))),
                b'N' => continue,
                b'R' => {}
                other => {
                    return Err(PgError::Protocol(format!("message {:?} during login", char::from(other))));
                }
            }
            let Some((kind, rest)) = frame.body.split_first_chunk::<4>() else {
                return Err(PgError::Protocol("a login message without a kind".into()));
            };
            let kind = u32::from_be_bytes(*kind);
            if bound && (matches!(kind, 3 | 5) || kind == 0 && !proved) {
                return Err(PgError::Login(
                    "channel_binding=require, and Postgres does not ask for SCRAM".into(),
                ));
            }
            let mut answer = BytesMut::new();
            match kind {
                // SCRAM's last word is the server's proof: without it, anybody could say that the login is done.
                0 if scram.is_some() && !proved => {
                    return Err(PgError::Login(
                        "Postgres ended the login without proof that it knows us".into(),
                    ));
                }
                0 => return Ok(()),
                3 => frontend::password_message(session.password()?, &mut answer)?,
                5 => {
                    let salt: [u8; 4] = rest
                        .try_into()
                        .map_err(|_| PgError::Protocol("an MD5 login message without a salt".into()))?;
                    let hash = md5_hash(session.target.user.as_bytes(), session.password()?, salt);
                    frontend::password_message(hash.as_bytes(), &mut answer)?;
                }
                10 => {
                    let (mechanism, binding) = mechanism(session, rest)?;
                    let started = ScramSha256::new(session.password()?, binding);
                    frontend::sasl_initial_response(mechanism, started.message(), &mut answer)?;
                    scram = Some(started);
                }
                11 | 12 => {
                    let Some(exchange) = scram.as_mut() else {
                        return Err(PgError::Protocol("a SCRAM message out of turn".into()));
                    };
                    let wrong = |error: io::Error| PgError::Login(error.to_string());
                    if kind == 11 {
                        exchange.update(rest).map_err(wrong)?;
                        frontend::sasl_response(exchange.message(), &mut answer)?;
                    } else {
                        exchange.finish(rest).map_err(wrong)?;
                        proved = true;
                    }
                }
                other => {
                    return Err(PgError::Login(format!(
                        "Postgres wants login method {other} (Kerberos, GSS or SSPI), which is not supported"
                    )));
                }
            }
            self.output.extend_from_slice(&answer);
            self.flush().await?;
        }
    }

    /// Skips to ReadyForQuery.
    async fn until_ready(&mut self) -> Result<(), PgError> {
        loop {
            let frame = self.next(MAX_FRAME).await?;
            match frame.tag {
                b'Z' => return Ok(()),
                b'E' => return Err(PgError::Server(Box::new(ServerError::parse(frame.body)))),
                b'S' => {
                    let mut words = frame.body.split(|byte| *byte == 0).map(String::from_utf8_lossy);
                    if let (Some(name), Some(value)) = (words.next(), words.next()) {
                        let (name, value) = (name.into_owned(), value.into_owned());
                        self.standing.see(&name, &value);
                    }
                }
                _ => {}
            }
        }
    }

    /// Runs one command and returns its rows as text.
    ///
    /// # Errors
    /// Postgres's error, or the connection's. After a [`PgError::Server`] the connection can be used again.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, PgError> {
        frontend::query(sql, &mut self.output)?;
        self.flush().await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let frame = self.next(MAX_FRAME).await?;
            match frame.tag {
                b'D' => rows.push(data_row(frame.body)?),
                b'E' => {
                    let error = ServerError::parse(frame.body);
                    // After FATAL there is no ReadyForQuery to wait for.
                    let fatal = error.severity != "ERROR";
                    failed = Some(PgError::Server(Box::new(error)));
                    if fatal {
                        break;
                    }
                }
                b'Z' => break,
                b'W' | b'G' | b'H' => {
                    return Err(PgError::Protocol("a copy started where rows were expected".into()));
                }
                _ => {}
            }
        }
        failed.map_or(Ok(rows), Err)
    }

    /// Sends a query and waits until it has started a stream in both directions.
    ///
    /// # Errors
    /// Postgres's error, or the connection's.
    pub async fn start_copy(&mut self, sql: &str) -> Result<(), PgError> {
        frontend::query(sql, &mut self.output)?;
        self.flush().await?;
        loop {
            let frame = self.next(MAX_FRAME).await?;
            match frame.tag {
                b'W' => return Ok(()),
                b'E' => return Err(PgError::Server(Box::new(ServerError::parse(frame.body)))),
                b'N' | b'S' => {}
                other => {
                    let what = format!("message {:?} instead of a stream", char::from(other));
                    return Err(PgError::Protocol(what));
                }
            }
        }
    }

    /// The next whole message in the read buffer, if there is one. It stays valid until the next call.
    ///
    /// # Errors
    /// When the length cannot be true.
    pub fn buffered(&mut self) -> Result<Option<Frame<'_>>, PgError> {
        self.cut(MAX_FRAME)
    }

    fn cut(&mut self, longest: usize) -> Result<Option<Frame<'_>>, PgError> {
        self.input.advance(std::mem::take(&mut self.taken));
        let Some((frame, rest)) = frame(&self.input, longest)? else { return Ok(None) };
        self.taken = self.input.len() - rest.len();
        Ok(Some(frame))
    }

    /// Reads what has arrived, at least one byte. Dropping the future loses nothing.
    ///
    /// The buffer grows with what really arrives, not with what a length field announces.
    ///
    /// # Errors
    /// When the connection broke or was closed.
    pub async fn fill(&mut self) -> Result<(), PgError> {
        self.input.advance(std::mem::take(&mut self.taken));
        if self.input.is_empty() && self.input.capacity() > KEEP_BUFFER {
            self.input = BytesMut::with_capacity(READ_ROOM);
        }
        self.input.reserve(READ_ROOM);
        if self.socket.read_buf(&mut self.input).await? == 0 {
            let closed = "Postgres closed the connection";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, closed).into());
        }
        Ok(())
    }

    async fn next(&mut self, longest: usize) -> Result<Frame<'_>, PgError> {
        // Asked twice because a frame returned from inside a loop would keep `self` borrowed.
        while self.incomplete(longest)? {
            self.fill().await?;
        }
        self.cut(longest)?.ok_or_else(|| PgError::Protocol("a message vanished".into()))
    }

    fn incomplete(&mut self, longest: usize) -> Result<bool, PgError> {
        let nothing = self.cut(longest)?.is_none();
        // Not handed out: leave it for the real call.
        self.taken = 0;
        Ok(nothing)
    }

    /// What is to be sent with the next [`Connection::flush`].
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Writes the output buffer out. Dropping the future loses nothing: the rest stays in the buffer.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn flush(&mut self) -> Result<(), PgError> {
        while !self.output.is_empty() {
            if self.socket.write_buf(&mut self.output).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
        }
        Ok(())
    }
}

/// The message that these bytes begin with, if all of it is there, and what follows it.
///
/// # Errors
/// When the length cannot be true.
pub fn frame(bytes: &[u8], longest: usize) -> Result<Option<(Frame<'_>, &[u8])>, PgError> {
    let Some((&[tag, a, b, c, d], rest)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    // The length counts itself.
    let Some(body) = length.checked_sub(4).filter(|_| length <= longest) else {
        return Err(PgError::Protocol(format!("a message of {length} bytes")));
    };
    Ok(rest.split_at_checked(body).map(|(body, rest)| (Frame { tag, body }, rest)))
}

/// Which of the offered mechanisms, and what it binds to. Over TLS the one that binds, where it is offered and not
/// switched off; where it is not offered we say that we would have, which shows an offer that was cut down.
fn mechanism(session: &Session<'_>, offered: &[u8]) -> Result<(&'static str, sasl::ChannelBinding), PgError> {
    let offers = |name: &str| offered.split(|byte| *byte == 0).any(|found| found == name.as_bytes());
    let wanted = session.target.channel_binding;
    let end_point = session.end_point.clone().filter(|_| wanted != ChannelBinding::Disable);
    let can_bind = end_point.is_some();
    match end_point {
        Some(end_point) if offers(sasl::SCRAM_SHA_256_PLUS) => {
            Ok((sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point)))
        }
        _ if wanted == ChannelBinding::Require => {
            let what = match can_bind {
                true => "Postgres does not offer it",
                false => "there is no TLS to bind to, or a certificate whose signature names no hash",
            };
            Err(PgError::Login(format!("channel_binding=require, and {what}")))
        }
        _ if !offers(sasl::SCRAM_SHA_256) => {
            Err(PgError::Login("Postgres offers no login method that we know".into()))
        }
        Some(_) => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
        None => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
    }
}

/// The columns of a DataRow, as text.
///
/// # Errors
/// When it ends too early.
pub fn data_row(body: &[u8]) -> Result<Vec<Option<String>>, PgError> {
    let short = || PgError::Protocol("a row that ends too early".into());
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(short)?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = i32::from_be_bytes(*length);
        rest = after;
        row.push(match usize::try_from(length) {
            Err(_) => None,
            Ok(length) => {
                let (value, after) = rest.split_at_checked(length).ok_or_else(short)?;
                rest = after;
                Some(String::from_utf8_lossy(value).into_owned())
            }
        });
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::super::target::SslMode;
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    /// A connection whose peer is the test.
    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Connection::over(Transport::tcp(ours.expect("connect"))), theirs.expect("accept").0)
    }

    #[tokio::test]
    async fn frames_are_cut_wherever_the_bytes_break() {
        let (mut connection, mut peer) = pair().await;
        let writer = tokio::spawn(async move {
            for byte in *b"Z\0\0\0\x05Id\0\0\0\x07abcE\0\0\0\x04" {
                peer.write_all(&[byte]).await.expect("write");
                tokio::task::yield_now().await;
            }
            peer
        });
        let mut seen = Vec::new();
        for _ in 0..3 {
            let frame = connection.next(100).await.expect("a frame");
            seen.push((frame.tag, frame.body.to_vec()));
        }
        assert_eq!(seen, [(b'Z', b"I".to_vec()), (b'd', b"abc".to_vec()), (b'E', vec![])]);
        drop(writer.await);
        let closed = connection.fill().await.expect_err("closed");
        assert!(!closed.is_permanent());
    }

    #[tokio::test]
    async fn impossible_lengths_are_errors_without_allocation() {
        for length in [0u32, 3, 0x7fff_ffff, 0xffff_ffff] {
            let (mut connection, mut peer) = pair().await;
            let mut bytes = vec![b'd'];
            bytes.extend_from_slice(&length.to_be_bytes());
            peer.write_all(&bytes).await.expect("write");
            assert!(connection.next(MAX_FRAME).await.is_err(), "{length}");
            assert!(connection.input.capacity() <= 2 * READ_ROOM);
        }
    }

    #[test]
    fn rows_that_end_early_are_errors() {
        let row = b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff";
        assert_eq!(data_row(row).expect("a row"), [Some("ab".to_owned()), None]);
        for end in 0..row.len() {
            assert!(data_row(&row[..end]).is_err(), "{end}");
        }
    }

    /// Plays a server: answers the startup message and then each message of ours with the next of `answers`.
    async fn login(url: &str, answers: Vec<Vec<u8>>) -> (Result<Connection, PgError>, Vec<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("accept");
            let mut heard = Vec::new();
            for answer in answers {
                let mut buf = vec![0; 4096];
                let length = socket.read(&mut buf).await.expect("read");
                heard.push(buf[..length].to_vec());
                socket.write_all(&answer).await.expect("write");
            }
            heard
        });
        let mut target = Target::parse(&url.replace("PORT", &port.to_string())).expect("a target");
        target.tls.mode = SslMode::Disable;
        let connection =
            Connection::replication(&target, "cachefence").await.map(|(connection, _)| connection);
        (connection, server.await.expect("the server"))
    }

    fn backend(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    #[tokio::test]
    async fn the_startup_message_fixes_the_session() {
        let ready = [backend(b'R', b"\0\0\0\0"), backend(b'S', b"a\0b\0"), backend(b'Z', b"I")].concat();
        let (connection, heard) =
            login("postgres://me@127.0.0.1:PORT/app?options=-cgeqo%3Doff", vec![ready]).await;
        assert!(connection.is_ok());
        let startup = String::from_utf8_lossy(&heard[0]).replace('\0', " ");
        for part in [
            "user me",
            "database app",
            "replication database",
            "application_name cachefence",
            "options -cgeqo=off",
        ] {
            assert!(startup.contains(part), "{part}: {startup}");
        }
        assert!(startup.contains("client_encoding UTF8") && startup.contains("wal_sender_timeout 60s"));
    }

    #[tokio::test]
    async fn passwords_are_sent_as_asked_for() {
        let url = "postgres://me:secret@127.0.0.1:PORT/app";
        let ready = [backend(b'R', b"\0\0\0\0"), backend(b'Z', b"I")].concat();
        let (connection, heard) = login(url, vec![backend(b'R', b"\0\0\0\x03"), ready.clone()]).await;
        assert!(connection.is_ok());
        assert_eq!(heard[1], backend(b'p', b"secret\0"));
        let (connection, heard) = login(url, vec![backend(b'R', b"\0\0\0\x05salt"), ready]).await;
        assert!(connection.is_ok());
        assert!(heard[1].starts_with(b"p\0\0\0\x28md5"));
    }

    #[tokio::test]
    async fn logins_that_cannot_work_say_why() {
        let refused = backend(b'E', b"VFATAL\0C28P01\0Mpassword authentication failed\0\0");
        let cases = [
            ("postgres://me@127.0.0.1:PORT/app", backend(b'R', b"\0\0\0\x03"), "and there is none"),
            ("postgres://me:x@127.0.0.1:PORT/app", backend(b'R', b"\0\0\0\x07"), "login method 7"),
            ("postgres://me:x@127.0.0.1:PORT/app", backend(b'R', b"\0\0\0\x0aOTHER\0\0"), "no login method"),
            (
                "postgres://me:x@127.0.0.1:PORT/app",
                refused,
                "password authentication failed (SQLSTATE 28P01)",
            ),
        ];
        for (url, answer, expected) in cases {
            let error = login(url, vec![answer]).await.0.expect_err("an error");
            assert!(error.is_permanent() && error.to_string().contains(expected), "{error}");
        }
        let garbled = login("postgres://me:x@127.0.0.1:PORT/app", vec![backend(b'R', b"\0")]).await.0;
        assert!(garbled.is_err_and(|error| !error.is_permanent()));
    }
}
