//! A plain Redis client: RESP2 over TCP, and no idea of any proxy.

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a reply may take before the client gives up.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Arrays nested deeper than this are refused.
const MAX_DEPTH: usize = 32;

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR ...`, without the sign.
    Error(String),
    /// `:1`
    Int(i64),
    /// A string of bytes.
    Bulk(Vec<u8>),
    /// No value: a null bulk string or a null array.
    Nil,
    /// Several replies in one.
    Array(Vec<Reply>),
}

impl Reply {
    /// A string of bytes, for comparisons.
    pub fn bulk(text: impl AsRef<[u8]>) -> Self {
        Self::Bulk(text.as_ref().to_vec())
    }

    /// `+OK`, for comparisons.
    pub fn ok() -> Self {
        Self::Simple("OK".into())
    }

    /// Whether there is no value.
    pub fn is_nil(&self) -> bool {
        *self == Self::Nil
    }

    /// The value as text, if this is a string.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Simple(text) => Some(text.clone()),
            Self::Bulk(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    /// Connects to `host:port`.
    pub async fn connect(address: &str) -> Result<Self> {
        let stream = tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// Sends a command and waits for its reply. An error reply is a [`Reply::Error`], not an `Err`.
    pub async fn cmd<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Reply> {
        self.send(args).await?;
        self.receive().await
    }

    /// Sends a command without waiting: its reply comes from a later [`Client::receive`].
    pub async fn send<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<()> {
        self.send_raw(&encode(args)).await
    }

    /// Sends bytes as they are.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Waits for the next reply.
    pub async fn receive(&mut self) -> Result<Reply> {
        tokio::time::timeout(TIMEOUT, self.next_reply()).await?
    }

    /// The next reply if it comes within `patience`; else nothing is lost.
    pub async fn receive_within(&mut self, patience: Duration) -> Result<Option<Reply>> {
        match tokio::time::timeout(patience, self.next_reply()).await {
            Ok(reply) => reply.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Sends all commands in one write and waits for all replies.
    pub async fn pipeline<A: AsRef<[u8]>>(&mut self, commands: &[&[A]]) -> Result<Vec<Reply>> {
        let bytes: Vec<u8> = commands.iter().flat_map(|args| encode(args)).collect();
        self.send_raw(&bytes).await?;
        let mut replies = Vec::with_capacity(commands.len());
        for _ in commands {
            replies.push(self.receive().await?);
        }
        Ok(replies)
    }

    /// Waits for the other side to close; what it still sends is thrown away.
    pub async fn closed(&mut self) -> Result<()> {
        let mut chunk = [0; 4096];
        loop {
            match tokio::time::timeout(TIMEOUT, self.stream.read(&mut chunk)).await? {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn next_reply(&mut self) -> Result<Reply> {
        loop {
            if let Some((reply, length)) = decode(&self.received)? {
                self.received.drain(..length);
                return Ok(reply);
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
        }
    }
}

/// A command as an array of bulk strings.
pub fn encode<A: AsRef<[u8]>>(args: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        let arg = arg.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The first reply in `bytes` and its length, or nothing when it is not whole yet.
fn decode(bytes: &[u8]) -> Result<Option<(Reply, usize)>> {
    // The arrays that are not complete yet, outermost first, with how many elements each still wants.
    let mut open: Vec<(Vec<Reply>, usize)> = Vec::new();
    let mut at = 0;
    loop {
        let Some(length) = line_length(&bytes[at..]) else { return Ok(None) };
        let line = &bytes[at..at + length];
        at += length + 2;
        let (kind, rest) = line.split_first().ok_or_else(|| malformed("an empty line"))?;
        let mut reply = match kind {
            b'+' => Reply::Simple(String::from_utf8_lossy(rest).into_owned()),
            b'-' => Reply::Error(String::from_utf8_lossy(rest).into_owned()),
            b':' => Reply::Int(number(rest)?),
            b'$' | b'*' if number(rest)? < 0 => Reply::Nil,
            b'$' => {
                let end = at + size(rest)?;
                let Some(value) = bytes.get(at..end) else { return Ok(None) };
                if bytes.len() < end + 2 {
                    return Ok(None);
                }
                at = end + 2;
                Reply::Bulk(value.to_vec())
            }
            b'*' if number(rest)? == 0 => Reply::Array(Vec::new()),
            b'*' if open.len() == MAX_DEPTH => return Err(malformed("arrays nested too deeply")),
            b'*' => {
                open.push((Vec::new(), size(rest)?));
                continue;
            }
            other => return Err(malformed(&format!("a reply that starts with {:?}", char::from(*other)))),
        };
        // A value can complete its array, and that one the next.
        loop {
            let Some((elements, wanted)) = open.last_mut() else { return Ok(Some((reply, at))) };
            elements.push(reply);
            if elements.len() < *wanted {
                break;
            }
            reply = Reply::Array(std::mem::take(elements));
            open.pop();
        }
    }
}

fn line_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\r\n")
}

fn number(digits: &[u8]) -> Result<i64> {
    let text = std::str::from_utf8(digits).map_err(|_| malformed("a number"))?;
    text.parse().map_err(|_| malformed(&format!("the number {text:?}")))
}

/// A length that memory could hold.
fn size(digits: &[u8]) -> Result<usize> {
    let size = number(digits)?;
    if size > 512 << 20 { Err(malformed("a length over 512 MB")) } else { Ok(size as usize) }
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("the server sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_every_kind_are_read_whole_or_not_at_all() -> Result<()> {
        let bytes =
            b"*7\r\n+OK\r\n-ERR no\r\n:-5\r\n$5\r\na\r\nb\0\r\n$-1\r\n*0\r\n*1\r\n*2\r\n:1\r\n*-1\r\n";
        let expected = Reply::Array(vec![
            Reply::ok(),
            Reply::Error("ERR no".into()),
            Reply::Int(-5),
            Reply::bulk("a\r\nb\0"),
            Reply::Nil,
            Reply::Array(vec![]),
            Reply::Array(vec![Reply::Array(vec![Reply::Int(1), Reply::Nil])]),
        ]);
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut])?, None, "{cut}");
        }
        let more = [bytes.as_slice(), b"+NEXT\r\n"].concat();
        assert_eq!(decode(&more)?, Some((expected, bytes.len())));
        Ok(())
    }

    #[test]
    fn bad_replies_are_errors() {
        for bad in [&b"?\r\n"[..], b":x\r\n", b"$9999999999\r\n", b"\r\n"] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
        assert!(decode(&b"*1\r\n".repeat(100_000)).is_err());
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        assert_eq!(encode(&["GET", "k"]), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }
}
