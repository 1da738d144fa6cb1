//! Cuts RESP bytes into requests and replies without copying them.
//!
//! Both scanners are resumable (a frame that arrives byte by byte costs linear work), iterative (nesting
//! costs a counter, not stack) and keep their place as an offset into the caller's buffer. A request is cut
//! into the ranges of its arguments; of a reply only the end is looked for.

mod reply;
mod request;

use bytes::BufMut;
use thiserror::Error;

pub use reply::{Progress, ReplyScanner, body, line_break};
pub use request::{Arguments, Incomplete, RequestScanner, Scanned};

/// Bytes that are not the protocol, in the words that Redis uses for them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("Protocol error: {0}")]
pub struct ProtocolError(pub String);

impl ProtocolError {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// The longest bulk string, as Redis's default `proto-max-bulk-len`.
pub const MAX_BULK: usize = 512 * 1024 * 1024;
/// The most arguments of a request, as in Redis since 7.0.
pub const MAX_ARGUMENTS: usize = i32::MAX as usize;
/// The longest inline request, and the longest length line, as Redis's `PROTO_INLINE_MAX_SIZE`.
pub const MAX_LINE: usize = 64 * 1024;

/// Reads a line that begins at `from`: the place of its `\r`, once its `\n` is there too.
fn line_end(bytes: &[u8], from: usize) -> Option<usize> {
    let line = bytes.get(from..)?;
    // Length lines are a few bytes long: a plain loop beats a vectorised search.
    let end = line.iter().take(32).position(|b| *b == b'\r').or_else(|| {
        line.get(32..).and_then(|rest| rest.iter().position(|b| *b == b'\r')).map(|at| at + 32)
    })?;
    (line.len() > end + 1).then_some(from + end)
}

/// The number on a length line as nearly all of them are, up to nine digits and the line's end, and how many bytes that
/// takes. None for every other line, which is left to [`line_end`] and [`integer`].
#[inline]
fn plain_length(line: &[u8]) -> Option<(i64, usize)> {
    let mut length = 0;
    for (n, byte) in line.iter().take(10).enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            let is_number = n == 1 || (n > 1 && line[0] != b'0');
            return (is_number && *byte == b'\r' && line.len() > n + 1).then_some((length, n + 2));
        }
        length = length * 10 + i64::from(digit);
    }
    None
}

/// A decimal number as Redis's `string2ll` takes it: a minus is allowed, a plus, a blank or nothing is not.
pub fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 || (digits[0] == b'0' && (digits.len() > 1 || negative)) {
        return None;
    }
    let mut value: i64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // Built downwards, so that the lowest number fits.
        value = value.checked_mul(10)?.checked_sub(i64::from(digit - b'0'))?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

/// Appends a bulk string.
pub fn put_bulk(out: &mut impl BufMut, bytes: &[u8]) {
    put_header(out, b'$', bytes.len());
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

/// Appends a type byte and a length: `*3\r\n`.
pub fn put_header(out: &mut impl BufMut, kind: u8, length: usize) {
    // In one piece: this is written several times for each command that is rewritten.
    let mut line = [0; 23];
    line[21..].copy_from_slice(b"\r\n");
    let at = decimal(length as u64, &mut line[..21]) - 1;
    line[at] = kind;
    out.put_slice(&line[at..]);
}

/// Appends a number in decimal digits.
pub fn put_decimal(out: &mut impl BufMut, number: u64) {
    let mut digits = [0; 20];
    let at = decimal(number, &mut digits);
    out.put_slice(&digits[at..]);
}

/// Writes a number's digits to the end of `digits`. Returns the place of the first.
fn decimal(number: u64, digits: &mut [u8]) -> usize {
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return at;
        }
    }
}

/// The version of the protocol that a client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// What every connection begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

impl Protocol {
    /// What stands for no value.
    pub fn nil(self) -> &'static [u8] {
        match self {
            Self::Resp2 => b"$-1\r\n",
            Self::Resp3 => b"_\r\n",
        }
    }

    /// What stands for no array: the reply of an EXEC that a WATCH has aborted.
    pub fn nil_array(self) -> &'static [u8] {
        match self {
            Self::Resp2 => b"*-1\r\n",
            Self::Resp3 => b"_\r\n",
        }
    }
}

/// Appends a request.
pub fn put_request(out: &mut impl BufMut, arguments: &[&[u8]]) {
    put_header(out, b'*', arguments.len());
    for argument in arguments {
        put_bulk(out, argument);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_those_of_redis() {
        assert_eq!(integer(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(integer(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(integer(b"0"), Some(0));
        for bad in [&b""[..], b"-", b"+1", b" 1", b"01", b"-0", b"1x", b"9223372036854775808"] {
            assert_eq!(integer(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_plain_length_is_what_the_line_says() {
        for line in ["0", "1", "10", "512", "999999999", "00", "01", "-1", "", "+1", "1 ", "1x", "1234567890"]
        {
            let bytes = format!("{line}\r\nrest").into_bytes();
            if let Some((length, taken)) = plain_length(&bytes) {
                assert_eq!(
                    (integer(line.as_bytes()), line_end(&bytes, 0)),
                    (Some(length), Some(taken - 2)),
                    "{line}"
                );
            } else {
                assert!(line.len() > 9 || integer(line.as_bytes()).is_none_or(|n| n < 0), "{line}");
            }
            let half = bytes.get(..=line.len()).and_then(plain_length);
            assert_eq!(half, None, "{line}, of whose end only the first half is there");
        }
    }

    #[test]
    fn requests_are_put_as_clients_send_them() {
        let mut out = Vec::new();
        put_request(&mut out, &[b"SET", b"k", b""]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }
}
