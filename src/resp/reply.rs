//! Replies: where one ends. Their bytes are forwarded as they came.

use super::{MAX_BULK, MAX_LINE, ProtocolError, integer, line_end, plain_length};

/// Looks for the end of the reply at the start of a buffer, in RESP2 and RESP3.
///
/// Nested aggregates cost a counter, not stack: a header adds its elements to those still to come.
#[derive(Debug)]
pub struct ReplyScanner {
    /// The next byte to look at, from the start of the buffer. May lie beyond what has arrived.
    at: usize,
    /// The line that begins at `at` has no end before this byte.
    searched: usize,
    /// Elements to come: of the aggregate without a length that is open, or else of the reply.
    remaining: u64,
    /// Aggregates and strings without a length that are open (RESP3 `*?`, `$?`): what is to come after each.
    open: Vec<u64>,
}

/// How far a reply has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// So many bytes at the start of the buffer are known to belong to the reply.
    pub bytes: usize,
    /// The reply ends with them.
    pub done: bool,
}

/// Elements that one reply may have; Redis itself stops at 2^32 or so.
const MAX_ELEMENTS: u64 = 1 << 40;
/// Aggregates without a length that may be open at a time, each of which costs memory.
const MAX_OPEN: usize = 1024;

impl Default for ReplyScanner {
    fn default() -> Self {
        Self { at: 0, searched: 0, remaining: 1, open: Vec::new() }
    }
}

impl ReplyScanner {
    /// Looks on. `bytes` begins at the reply's first byte that has not been [taken](ReplyScanner::take).
    ///
    /// # Errors
    /// When the bytes are not a reply. What follows them cannot be told apart any more: the connection is lost.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Progress, ProtocolError> {
        while self.remaining > 0 && self.at < bytes.len() {
            if let Some(next) = after_bulk(bytes, self.at) {
                self.at = next;
                self.count(0);
                continue;
            }
            let Some(end) = line_break(bytes, self.searched.max(self.at + 1)) else {
                // A script can return an error or a status of any length; a number is short.
                let text = matches!(bytes[self.at], b'+' | b'-' | b'(');
                if bytes.len() - self.at > if text { MAX_BULK } else { MAX_LINE } {
                    return Err(ProtocolError::new("a reply's line is too long"));
                }
                // The last byte may be the end's first half.
                self.searched = bytes.len() - 1;
                break;
            };
            let line = &bytes[self.at + 1..end];
            let kind = bytes[self.at];
            self.at = end + 2;
            if line == b"?" && matches!(kind, b'$' | b'*' | b'~' | b'>' | b'%' | b'|') {
                self.begin(kind)?;
                continue;
            }
            let count = || {
                integer(line)
                    .filter(|n| (-1..1 << 40).contains(n))
                    .ok_or_else(|| ProtocolError::new("a reply's length is not a number"))
            };
            let (skip, elements) = match kind {
                b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => (0, 0),
                b'$' | b'!' | b'=' => (usize::try_from(count()?).map_or(0, |length| length + 2), 0),
                b'*' | b'~' | b'>' => (0, count()?.max(0) as u64),
                b'%' => (0, count()?.max(0) as u64 * 2),
                // An attribute precedes the reply that it is about, and does not count as one.
                b'|' => (0, count()?.max(0) as u64 * 2 + 1),
                b';' if count()? > 0 && !self.open.is_empty() => (count()? as usize + 2, 0),
                b'.' | b';' => {
                    self.close()?;
                    continue;
                }
                _ => return Err(ProtocolError::new("a reply of no known type")),
            };
            self.at += skip;
            self.count(elements);
            if self.remaining > MAX_ELEMENTS {
                return Err(ProtocolError::new("a reply with too many elements"));
            }
        }
        let done = self.remaining == 0 && self.at <= bytes.len();
        Ok(Progress { bytes: self.at.min(bytes.len()), done })
    }

    /// An element is over but for those in it.
    #[inline]
    fn count(&mut self, elements: u64) {
        self.remaining = self.remaining - 1 + elements;
        if self.remaining == 0 && !self.open.is_empty() {
            // Only its end ends it.
            self.remaining = 1;
        }
    }

    /// Something without a length begins.
    fn begin(&mut self, kind: u8) -> Result<(), ProtocolError> {
        if self.open.len() == MAX_OPEN {
            return Err(ProtocolError::new("a reply with too many parts of unknown length"));
        }
        // An attribute is not the element that it precedes.
        self.open.push(if kind == b'|' { self.remaining } else { self.remaining - 1 });
        self.remaining = 1;
        Ok(())
    }

    /// Something without a length ends.
    fn close(&mut self) -> Result<(), ProtocolError> {
        let rest = self.open.pop().ok_or_else(|| ProtocolError::new("the end of nothing in a reply"))?;
        self.remaining = if rest == 0 && !self.open.is_empty() { 1 } else { rest };
        Ok(())
    }

    /// The first so many bytes are gone from the buffer.
    pub fn take(&mut self, bytes: usize) {
        self.at -= bytes.min(self.at);
        self.searched = 0;
    }

    /// Forgets the reply, to begin with the next.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Where a bulk string ends that begins at `at`, which most replies are; it may not be there yet. None for all others.
#[inline]
fn after_bulk(bytes: &[u8], at: usize) -> Option<usize> {
    let line = bytes.get(at..)?.strip_prefix(b"$")?;
    let (length, taken) = plain_length(line)?;
    (line[taken - 1] == b'\n').then_some(at + 1 + taken + length as usize + 2)
}

/// A whole reply without the attributes that precede it.
pub fn body(reply: &[u8]) -> &[u8] {
    let mut rest = reply;
    while rest.first() == Some(&b'|') {
        // The attribute alone, without what it is about.
        let Some(end) = line_break(rest, 1) else { break };
        let mut attribute = ReplyScanner { at: end + 2, ..ReplyScanner::default() };
        match integer(&rest[1..end]).and_then(|pairs| u64::try_from(pairs).ok()) {
            Some(pairs) => attribute.remaining = pairs.saturating_mul(2),
            None => attribute.open.push(0),
        }
        match attribute.scan(rest) {
            Ok(Progress { bytes, done: true }) => rest = &rest[bytes..],
            _ => break,
        }
    }
    rest
}

/// The end of a line that may have a lone `\r` in it: a module's status, of whatever somebody stored.
pub fn line_break(bytes: &[u8], mut from: usize) -> Option<usize> {
    loop {
        let end = line_end(bytes, from)?;
        if bytes.get(end + 1) == Some(&b'\n') {
            return Some(end);
        }
        from = end + 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};

    use super::*;

    fn whole(bytes: &[u8]) -> Option<usize> {
        let progress = ReplyScanner::default().scan(bytes).ok()?;
        progress.done.then_some(progress.bytes)
    }

    #[test]
    fn the_end_is_found_for_every_type() {
        for reply in [
            "+OK\r\n",
            "-ERR x\r\n",
            ":12\r\n",
            "$-1\r\n",
            "$0\r\n\r\n",
            "$3\r\na\r\n\r\n",
            "*-1\r\n",
            "*0\r\n",
            "*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
            "_\r\n",
            ",1.5\r\n",
            "#t\r\n",
            "(123\r\n",
            "!3\r\nERR\r\n",
            "=7\r\ntxt:abc\r\n",
            "~1\r\n:1\r\n",
            "%1\r\n+a\r\n:1\r\n",
            ">2\r\n+a\r\n+b\r\n",
            "|1\r\n+a\r\n:1\r\n+OK\r\n",
            "+a\r\r\n",
            "-a\rb\r\n",
            "$?\r\n;4\r\nHell\r\n;1\r\no\r\n;0\r\n",
            "*?\r\n:1\r\n*2\r\n+a\r\n+b\r\n.\r\n",
            "*2\r\n*?\r\n%?\r\n+a\r\n:1\r\n.\r\n.\r\n:2\r\n",
            "|?\r\n+a\r\n:1\r\n.\r\n*?\r\n.\r\n",
        ] {
            let more = format!("{reply}+NEXT\r\n");
            assert_eq!(whole(more.as_bytes()), Some(reply.len()), "{reply:?}");
        }
    }

    #[test]
    fn attributes_are_not_what_they_precede() {
        assert_eq!(body(b"-ERR\r\n"), b"-ERR\r\n");
        assert_eq!(body(b"|1\r\n+a\r\n:1\r\n-ERR\r\n"), b"-ERR\r\n");
        assert_eq!(body(b"|1\r\n+a\r\n*1\r\n:1\r\n|0\r\n$1\r\na\r\n"), b"$1\r\na\r\n");
        assert_eq!(body(b"|?\r\n+a\r\n:1\r\n.\r\n_\r\n"), b"_\r\n");
        assert_eq!(body(b"|1\r\n"), b"|1\r\n", "not whole: left as it is");
    }

    #[test]
    fn the_end_of_nothing_is_refused() {
        for bad in ["*1\r\n.\r\n", ".\r\n", ";3\r\nabc\r\n", "+?", "*?\r\n.\r"] {
            assert_eq!(whole(bad.as_bytes()), None, "{bad:?}");
        }
        assert!(ReplyScanner::default().scan("*?\r\n".repeat(2000).as_bytes()).is_err());
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let mut bytes = b"*1\r\n".repeat(1_000_000);
        bytes.extend(b":1\r\n");
        assert_eq!(whole(&bytes), Some(bytes.len()));
    }

    /// A script's error must not cost everybody on the lane their connection, nor a search from its start
    /// whenever more of it comes.
    #[test]
    fn a_script_may_return_a_long_line() {
        let mut bytes = vec![b'-'];
        bytes.resize(3_000_000, b'x');
        let mut scanner = ReplyScanner::default();
        for arrived in (1..bytes.len()).step_by(100) {
            assert_eq!(scanner.scan(&bytes[..arrived]), Ok(Progress { bytes: 0, done: false }));
        }
        bytes.extend(b"\r");
        assert_eq!(scanner.scan(&bytes), Ok(Progress { bytes: 0, done: false }));
        bytes.extend(b"\n+NEXT\r\n");
        assert_eq!(scanner.scan(&bytes), Ok(Progress { bytes: bytes.len() - 7, done: true }));
        assert!(ReplyScanner::default().scan(&[b'$'; 70_000]).is_err());
    }

    #[test]
    fn a_large_reply_can_be_taken_in_pieces() {
        let mut scanner = ReplyScanner::default();
        assert_eq!(scanner.scan(b"$10\r\nabc"), Ok(Progress { bytes: 8, done: false }));
        scanner.take(8);
        assert_eq!(scanner.scan(b"defghi"), Ok(Progress { bytes: 6, done: false }));
        scanner.take(6);
        assert_eq!(scanner.scan(b"j\r\n+OK"), Ok(Progress { bytes: 3, done: true }));
    }

    fn frames() -> impl Strategy<Value = OwnedFrame> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(OwnedFrame::Integer),
            "[a-zA-Z ]{0,20}".prop_map(|s| OwnedFrame::SimpleString(s.into_bytes())),
            "[A-Z]{1,5} [a-z ]{0,20}".prop_map(OwnedFrame::Error),
            prop::collection::vec(any::<u8>(), 0..60).prop_map(OwnedFrame::BulkString),
            Just(OwnedFrame::Null),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| prop::collection::vec(inner, 0..6).prop_map(OwnedFrame::Array))
    }

    proptest! {
        /// The well-tried library is the oracle.
        #[test]
        fn it_ends_where_the_library_says(frame in frames(), step in 1usize..9) {
            let mut bytes = vec![0; frame.encode_len(false)];
            let length = redis_protocol::resp2::encode::encode(&mut bytes, &frame, false).expect("encodes");
            bytes.truncate(length);
            let mut scanner = ReplyScanner::default();
            let mut arrived = 0;
            while arrived < length {
                prop_assert!(!scanner.scan(&bytes[..arrived]).expect("valid").done);
                arrived = (arrived + step).min(length);
            }
            prop_assert_eq!(scanner.scan(&bytes), Ok(Progress { bytes: length, done: true }));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ReplyScanner::default().scan(&bytes);
        }
    }
}
