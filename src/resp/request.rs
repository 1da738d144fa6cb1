//! Requests: arrays of bulk strings, or a line typed by hand.

use bytes::BytesMut;

use super::{MAX_ARGUMENTS, MAX_BULK, MAX_LINE, ProtocolError, integer, line_end, plain_length, put_header};

/// The most arguments of a request of who has yet to log in, as in Redis.
const MAX_STRANGER_ARGUMENTS: i64 = 10;
/// ... and the longest of them, in bytes.
const MAX_STRANGER_BULK: usize = 16384;

/// Looks for the end of the request at the start of a buffer.
#[derive(Debug, Default)]
pub struct RequestScanner {
    /// The next byte to look at, from the start of the request. May lie beyond what has arrived.
    at: usize,
    /// The line that begins at `at` has no end before this byte: one that comes byte by byte is searched once.
    searched: usize,
    /// Arguments to come, the one whose length is being read included.
    remaining: usize,
    /// The array's header has been read.
    in_array: bool,
    /// Bytes of an argument that were taken out of the buffer.
    elided: usize,
    ranges: Vec<(u32, u32)>,
    /// Little is taken from who has yet to log in.
    stranger: bool,
}

/// What the scanner found.
#[derive(Debug, PartialEq, Eq)]
pub enum Scanned {
    /// The request is not all there.
    Partial,
    /// A request of so many bytes; its arguments are in [`RequestScanner::arguments`].
    Request(usize),
    /// So many bytes that ask for nothing (`*0`, an empty line).
    Nothing(usize),
    /// A line typed by hand: so many bytes, and its arguments.
    Inline(usize, Vec<Vec<u8>>),
}

/// The arguments of a request, as ranges of its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    bytes: &'a [u8],
    ranges: &'a [(u32, u32)],
    /// So many of the first bytes have gone on already, and so has what was elided after them.
    sent: usize,
    /// Bytes that one argument had besides those that are here.
    elided: usize,
}

/// A request of which one argument is coming in.
#[derive(Clone, Copy, Debug)]
pub struct Incomplete<'a> {
    /// The arguments before it.
    pub before: Arguments<'a>,
    /// Where its bytes begin.
    pub start: usize,
    /// How many it will have.
    pub length: usize,
}

impl<'a> Arguments<'a> {
    /// How many there are, the command's name included.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The n-th; 0 is the command's name.
    pub fn get(&self, n: usize) -> Option<&'a [u8]> {
        let (start, length) = *self.ranges.get(n)?;
        self.bytes.get(start as usize..start as usize + length as usize)
    }

    /// The n-th, unless bytes of it went on already, so that only the rest of it is here.
    pub fn whole(&self, n: usize) -> Option<&'a [u8]> {
        let begins_at_the_rest = self.is_under_way() && self.ranges.get(n)?.0 as usize == self.sent;
        if begins_at_the_rest { None } else { self.get(n) }
    }

    /// All of them from the n-th on.
    pub fn from(&self, n: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let all = *self;
        (n..self.len()).filter_map(move |n| all.get(n))
    }

    /// The arguments from the n-th on, as those of a request of its own.
    pub fn skip(&self, n: usize) -> Arguments<'a> {
        Arguments { ranges: self.ranges.get(n..).unwrap_or_default(), ..*self }
    }

    /// The bytes of the whole request, as they came. What was [elided](RequestScanner::elide) is not among them.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes that have not gone on already.
    pub fn unsent(&self) -> &'a [u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    /// Whether a part of the request has gone on already, so that it cannot be written differently any more.
    pub fn is_under_way(&self) -> bool {
        self.sent > 0
    }

    /// How long the argument is whose bytes went on as they came, besides those of it that are here.
    pub fn elided(&self) -> usize {
        self.elided
    }

    /// The same, of which so many of the first bytes have gone on already.
    pub fn after(self, sent: usize) -> Self {
        Self { sent, ..self }
    }

    /// The bytes from the n-th argument's `$` on.
    fn bytes_from(&self, n: usize) -> &'a [u8] {
        // The end of the argument before, and its line break, is where this one's header begins.
        let start =
            n.checked_sub(1).and_then(|n| self.ranges.get(n)).map(|(s, l)| *s as usize + *l as usize + 2);
        start.and_then(|start| self.bytes.get(start..)).unwrap_or_default()
    }

    /// The request that a command of the proxy's own wraps: that which begins at its n-th argument.
    pub fn request_from(&self, n: usize) -> BytesMut {
        let rest = self.bytes_from(n);
        let mut request = BytesMut::with_capacity(rest.len() + 16);
        put_header(&mut request, b'*', self.len().saturating_sub(n));
        request.extend_from_slice(rest);
        request
    }
}

impl RequestScanner {
    /// Looks on. `bytes` begins where the request begins, at every call; more of it may be there each time.
    ///
    /// # Errors
    /// When the bytes are not a request, in Redis's words.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Scanned, ProtocolError> {
        if !self.in_array {
            match bytes.first() {
                None => return Ok(Scanned::Partial),
                Some(b'*') => {}
                Some(_) => return self.inline(bytes),
            }
            let Some((count, next)) = self.length(bytes, 0, "too big mbulk count string")? else {
                return Ok(Scanned::Partial);
            };
            let count = count
                .filter(|count| *count <= MAX_ARGUMENTS as i64)
                .ok_or_else(|| ProtocolError::new("invalid multibulk length"))?;
            if count <= 0 {
                return Ok(Scanned::Nothing(next));
            }
            if self.stranger && count > MAX_STRANGER_ARGUMENTS {
                return Err(ProtocolError::new("unauthenticated multibulk length"));
            }
            (self.at, self.remaining, self.in_array) = (next, count as usize, true);
            self.ranges.clear();
        }
        while self.remaining > 0 {
            if self.at >= bytes.len() {
                return Ok(Scanned::Partial);
            }
            let Some((length, start)) = self.length(bytes, self.at, "too big bulk count string")? else {
                return Ok(Scanned::Partial);
            };
            let kind = bytes[self.at];
            if kind != b'$' {
                // As Redis does, so that it cannot end the error's line.
                let got = if matches!(kind, b'\r' | b'\n') { ' ' } else { char::from(kind) };
                return Err(ProtocolError::new(format!("expected '$', got '{got}'")));
            }
            let length = length
                .and_then(|length| usize::try_from(length).ok())
                .filter(|length| *length <= MAX_BULK)
                .ok_or_else(|| ProtocolError::new("invalid bulk length"))?;
            if self.stranger && length > MAX_STRANGER_BULK {
                return Err(ProtocolError::new("unauthenticated bulk length"));
            }
            let (Ok(place), Ok(range)) = (u32::try_from(start), u32::try_from(length)) else {
                // Ranges are 32 bits wide; such a request would need 4 GiB of memory anyway.
                return Err(ProtocolError::new("request too big"));
            };
            self.ranges.push((place, range));
            self.at = start + length + 2;
            self.remaining -= 1;
        }
        Ok(if bytes.len() >= self.at { Scanned::Request(self.at) } else { Scanned::Partial })
    }

    /// The number on the length line whose type byte is at `at`, if it is one, and where the next line begins.
    #[inline]
    fn length(
        &mut self,
        bytes: &[u8],
        at: usize,
        too_big: &str,
    ) -> Result<Option<(Option<i64>, usize)>, ProtocolError> {
        if let Some((length, taken)) = bytes.get(at + 1..).and_then(plain_length) {
            self.searched = 0;
            return Ok(Some((Some(length), at + 1 + taken)));
        }
        Ok(self.line(bytes, at, too_big)?.map(|end| (bytes.get(at + 1..end).and_then(integer), end + 2)))
    }

    /// The end of the length line that begins at `from`.
    #[cold]
    fn line(&mut self, bytes: &[u8], from: usize, too_big: &str) -> Result<Option<usize>, ProtocolError> {
        match line_end(bytes, from.max(self.searched)) {
            Some(end) if end - from <= MAX_LINE => {
                self.searched = 0;
                Ok(Some(end))
            }
            None if bytes.len() - from <= MAX_LINE => {
                // The last byte may be the end's first half.
                self.searched = bytes.len() - 1;
                Ok(None)
            }
            _ => Err(ProtocolError::new(too_big)),
        }
    }

    /// A line typed by hand.
    fn inline(&mut self, bytes: &[u8]) -> Result<Scanned, ProtocolError> {
        let Some(end) = bytes[self.searched..].iter().position(|b| *b == b'\n').map(|at| at + self.searched)
        else {
            self.searched = bytes.len();
            let too_big = bytes.len() > MAX_LINE;
            return if too_big {
                Err(ProtocolError::new("too big inline request"))
            } else {
                Ok(Scanned::Partial)
            };
        };
        let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
        let words = split(line).ok_or_else(|| ProtocolError::new("unbalanced quotes in request"))?;
        Ok(if words.is_empty() { Scanned::Nothing(end + 1) } else { Scanned::Inline(end + 1, words) })
    }

    /// How many bytes of this request have to come at least, as far as is known.
    pub fn missing(&self, arrived: usize) -> usize {
        self.at.saturating_sub(arrived)
    }

    /// The arguments of the request that [`Scanned::Request`] told of, in its bytes.
    pub fn arguments<'a>(&'a self, request: &'a [u8]) -> Arguments<'a> {
        Arguments { bytes: request, ranges: &self.ranges, sent: 0, elided: self.elided }
    }

    /// The argument whose bytes are coming in, if the rest of it is not there yet.
    pub fn incomplete<'a>(&'a self, arrived: &'a [u8]) -> Option<Incomplete<'a>> {
        let ((start, length), before) = self.ranges.split_last()?;
        if !self.in_array || self.at <= arrived.len() {
            return None;
        }
        Some(Incomplete {
            before: Arguments { bytes: arrived, ranges: before, sent: 0, elided: 0 },
            start: *start as usize,
            length: *length as usize,
        })
    }

    /// So many bytes of the incomplete argument were taken out of the buffer, from its start.
    pub fn elide(&mut self, bytes: usize) {
        if let Some((_, length)) = self.ranges.last_mut() {
            // What is taken out has arrived, and what arrives is within the length, which fits.
            *length -= bytes as u32;
            self.at -= bytes;
            self.elided += bytes;
        }
    }

    /// Whether the client has yet to log in, before it can do anything else.
    pub fn set_stranger(&mut self, stranger: bool) {
        self.stranger = stranger;
    }

    /// Forgets the request, to begin with the next.
    pub fn reset(&mut self) {
        (self.at, self.searched, self.remaining, self.in_array, self.elided) = (0, 0, 0, false, 0);
        if self.ranges.capacity() > 4096 {
            self.ranges = Vec::new();
        }
    }
}

/// Splits a line as Redis's `sdssplitargs` does: blanks separate, `"..."` takes escapes, `'...'` only `\'`.
fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii_start();
    while !rest.is_empty() {
        let mut word = Vec::new();
        while let Some((byte, tail)) = rest.split_first() {
            rest = match byte {
                b'"' => quoted(tail, b'"', &mut word)?,
                b'\'' => quoted(tail, b'\'', &mut word)?,
                b' ' | b'\n' | b'\r' | b'\t' | 0 => break,
                byte => {
                    word.push(*byte);
                    tail
                }
            };
        }
        words.push(word);
        rest = rest.trim_ascii_start().trim_prefix_nul();
    }
    Some(words)
}

trait TrimNul {
    fn trim_prefix_nul(&self) -> &Self;
}

impl TrimNul for [u8] {
    /// `trim_ascii_start` keeps NUL, at which Redis's C string ends: so does the line.
    fn trim_prefix_nul(&self) -> &Self {
        if self.first() == Some(&0) { &[] } else { self }
    }
}

/// Reads up to the closing quote, which a blank or the end must follow.
fn quoted<'a>(mut rest: &'a [u8], quote: u8, word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let (byte, tail) = rest.split_first()?;
        rest = tail;
        match (byte, quote) {
            (b'\\', b'"') => {
                let hex = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
                if let [b'x', high, low, tail @ ..] = rest
                    && let (Some(high), Some(low)) = (hex(*high), hex(*low))
                {
                    word.push(high << 4 | low);
                    rest = tail;
                    continue;
                }
                let (escaped, tail) = rest.split_first()?;
                rest = tail;
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
            }
            (b'\\', _) if rest.first() == Some(&b'\'') => {
                word.push(b'\'');
                rest = &rest[1..];
            }
            (byte, quote) if *byte == quote => {
                let ends = rest.first().is_none_or(u8::is_ascii_whitespace);
                return ends.then_some(rest);
            }
            (byte, _) => word.push(*byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::put_request;
    use super::*;

    fn words(scanner: &RequestScanner, request: &[u8]) -> Vec<Vec<u8>> {
        scanner.arguments(request).from(0).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn a_request_is_cut_into_its_arguments() {
        let bytes = b"*2\r\n$3\r\nGET\r\n$6\r\nus\r\ner\r\n*1\r\n";
        let mut scanner = RequestScanner::default();
        assert_eq!(scanner.scan(bytes), Ok(Scanned::Request(25)));
        let arguments = scanner.arguments(&bytes[..25]);
        assert_eq!(
            (arguments.get(0), arguments.get(1), arguments.get(2)),
            (Some(&b"GET"[..]), Some(&b"us\r\ner"[..]), None)
        );
        assert_eq!(arguments.bytes_from(1), b"$6\r\nus\r\ner\r\n");
    }

    /// A large value that is passed on as it comes in leaves a request without it, in which all else is in place.
    #[test]
    fn an_argument_can_be_taken_out_as_it_comes_in() {
        let mut scanner = RequestScanner::default();
        let mut buffer = b"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$10\r\nabc".to_vec();
        assert_eq!(scanner.scan(&buffer), Ok(Scanned::Partial));
        let incomplete = scanner.incomplete(&buffer).expect("the value");
        assert_eq!((incomplete.before.get(1), incomplete.before.get(2)), (Some(&b"k"[..]), None));
        assert_eq!((incomplete.start, incomplete.length), (buffer.len() - 3, 10));
        let start = incomplete.start;
        for piece in ["defg", "hij\r\n$2\r\nEX\r\n$1\r\n9\r\n*"] {
            buffer.drain(start..start + 3);
            scanner.elide(3);
            assert_eq!(scanner.scan(&buffer), Ok(Scanned::Partial));
            buffer.extend_from_slice(piece.as_bytes());
        }
        let length = buffer.len() - 1;
        assert_eq!(scanner.scan(&buffer), Ok(Scanned::Request(length)));
        let arguments = scanner.arguments(&buffer[..length]).after(start);
        let words: Vec<_> = arguments.from(0).map(String::from_utf8_lossy).collect();
        assert_eq!(words, ["SET", "k", "ghij", "EX", "9"]);
        assert_eq!([1, 2, 4].map(|n| arguments.whole(n)), [Some(&b"k"[..]), None, Some(b"9")]);
        assert_eq!(arguments.unsent(), b"ghij\r\n$2\r\nEX\r\n$1\r\n9\r\n");
    }

    #[test]
    fn what_redis_refuses_is_refused_in_its_words() {
        let error = |bytes: &[u8]| RequestScanner::default().scan(bytes).expect_err("an error").to_string();
        assert_eq!(error(b"*x\r\n"), "Protocol error: invalid multibulk length");
        assert_eq!(error(b"*2147483648\r\n"), "Protocol error: invalid multibulk length");
        assert_eq!(error(b"*1\r\n:1\r\n"), "Protocol error: expected '$', got ':'");
        assert_eq!(error(b"*1\r\n$-1\r\n"), "Protocol error: invalid bulk length");
        assert_eq!(error(b"*1\r\n$536870913\r\n"), "Protocol error: invalid bulk length");
        assert_eq!(error(&[b'a'; 65_537]), "Protocol error: too big inline request");
        assert_eq!(error(b"SET k \"v\r\n"), "Protocol error: unbalanced quotes in request");
        let mut endless = b"*".to_vec();
        endless.resize(70_000, b'1');
        assert_eq!(error(&endless), "Protocol error: too big mbulk count string");
    }

    /// Whatever comes byte by byte costs as much as if it came at once, or nearly.
    #[test]
    fn what_comes_byte_by_byte_is_looked_at_once() {
        let mut inline = vec![b'a'; 60_000];
        inline.extend_from_slice(b"\r\n");
        let mut header = b"*".to_vec();
        header.extend(vec![b'1'; 60_000]);
        for bytes in [inline, header] {
            let mut scanner = RequestScanner::default();
            for arrived in 1..bytes.len() {
                assert_eq!(scanner.scan(&bytes[..arrived]), Ok(Scanned::Partial));
                assert!(scanner.searched + 1 >= arrived);
            }
        }
    }

    #[test]
    fn little_is_taken_from_who_has_yet_to_log_in() {
        let mut scanner = RequestScanner::default();
        scanner.set_stranger(true);
        let error = |error: ProtocolError| error.to_string();
        assert_eq!(
            scanner.scan(b"*11\r\n").map_err(error),
            Err("Protocol error: unauthenticated multibulk length".into())
        );
        scanner.reset();
        assert_eq!(
            scanner.scan(b"*1\r\n$16385\r\n").map_err(error),
            Err("Protocol error: unauthenticated bulk length".into())
        );
        scanner.reset();
        assert_eq!(scanner.scan(b"*10\r\n$16384\r\n"), Ok(Scanned::Partial));
    }

    #[test]
    fn lines_typed_by_hand_are_split_as_redis_does() {
        let split = |line: &str| match RequestScanner::default().scan(line.as_bytes()) {
            Ok(Scanned::Inline(_, words)) => {
                words.iter().map(|w| String::from_utf8_lossy(w).into_owned()).collect()
            }
            other => vec![format!("{other:?}")],
        };
        assert_eq!(split("  SET  k 'a b'  \"c\\x41\\n\"\r\n"), ["SET", "k", "a b", "cA\n"]);
        assert_eq!(split("PING\n"), ["PING"]);
        assert_eq!(split("\r\n"), ["Ok(Nothing(2))"]);
    }

    proptest! {
        #[test]
        fn a_request_is_found_however_it_is_split(
            arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            step in 1usize..9,
        ) {
            let borrowed: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
            let mut bytes = Vec::new();
            put_request(&mut bytes, &borrowed);
            let mut scanner = RequestScanner::default();
            let mut arrived = 0;
            while arrived < bytes.len() {
                prop_assert_eq!(scanner.scan(&bytes[..arrived]), Ok(Scanned::Partial));
                arrived = (arrived + step).min(bytes.len());
            }
            prop_assert_eq!(scanner.scan(&bytes), Ok(Scanned::Request(bytes.len())));
            prop_assert_eq!(words(&scanner, &bytes), arguments);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RequestScanner::default().scan(&bytes);
        }
    }
}
