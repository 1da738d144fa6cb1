//! The shape of replies: whether one says that nothing was found, and how to say so.

use bytes::{Bytes, BytesMut};

use crate::command::Miss;
use crate::resp::{Arguments, Protocol, ReplyScanner, body, integer, put_header};

/// Whether a read found nothing, by its reply. `None`: the reply is an error, and says nothing.
///
/// [`Miss::NilPerKey`] has an answer for each key: see [`each_missed`].
pub fn missed(miss: Miss, reply: &[u8]) -> Option<bool> {
    let reply = body(reply);
    if matches!(reply.first(), Some(b'-' | b'!')) {
        return None;
    }
    Some(match miss {
        Miss::Nil | Miss::NilOrNilArray | Miss::NilArray => is_nil(reply),
        Miss::NilOrEmpty | Miss::EmptyArray | Miss::EmptySet | Miss::EmptyMap => {
            is_nil(reply) || is_empty(reply)
        }
        // LCS answers a number, or what it was asked to tell of the matches.
        Miss::EmptyString => is_nil(reply) || is_empty_string(reply) || is_zero(reply),
        Miss::Zero => is_zero(reply),
        Miss::NoTtl => is_no_ttl(reply),
        Miss::NoTtlPerField => is_nil(reply) || is_empty(reply) || every(reply, is_no_ttl),
        Miss::NoType => is_no_type(reply),
        Miss::EmptyScan => is_empty_scan(reply),
        Miss::NoBit => is_zero(reply) || reply == b":-1\r\n",
        Miss::NilPerKey | Miss::NilPerMember | Miss::NilArrayPerMember => {
            is_nil(reply) || is_empty(reply) || every(reply, is_nil)
        }
        Miss::NilPerField => is_nil(reply) || elements(reply).any(is_nil),
        Miss::ZeroPerMember => every(reply, is_zero),
        Miss::Unknown => {
            is_nil(reply)
                || is_empty(reply)
                || is_empty_string(reply)
                || is_zero(reply)
                || is_no_ttl(reply)
                || is_no_type(reply)
                || is_empty_scan(reply)
                || every(reply, |element| is_nil(element) || is_zero(element))
        }
    })
}

/// Which of several keys, of which each has an element in the reply, were missed; `places` ascend.
pub fn each_missed(reply: &[u8], places: impl Iterator<Item = usize>) -> impl Iterator<Item = bool> {
    let mut rest = elements(body(reply));
    let mut next = 0;
    places.map(move |place| {
        let element = rest.nth(place - next);
        next = place + 1;
        element.is_some_and(is_nil)
    })
}

/// An array with nil in place of the elements at `places`, which ascend.
pub fn with_nils(reply: &[u8], places: &[usize], protocol: Protocol) -> BytesMut {
    let mut out = BytesMut::with_capacity(reply.len());
    let reply = body(reply);
    put_header(&mut out, b'*', elements(reply).count());
    let mut places = places.iter().peekable();
    for (n, element) in elements(reply).enumerate() {
        let nil = places.next_if(|place| **place == n).is_some();
        out.extend_from_slice(if nil { protocol.nil() } else { element });
    }
    out
}

/// What a read answers that finds nothing. Where that is not known: nil.
pub fn miss(miss: Miss, arguments: Arguments<'_>, protocol: Protocol) -> Bytes {
    let each = |count: usize, element: &[u8]| {
        let mut out = BytesMut::new();
        put_header(&mut out, b'*', count);
        (0..count).for_each(|_| out.extend_from_slice(element));
        out.freeze()
    };
    let resp3 = protocol == Protocol::Resp3;
    let has = |word: &str| arguments.from(2).any(|argument| argument.eq_ignore_ascii_case(word.as_bytes()));
    let members = arguments.len().saturating_sub(2);
    Bytes::from_static(match miss {
        Miss::Nil | Miss::Unknown | Miss::NilPerKey => protocol.nil(),
        Miss::NilOrEmpty | Miss::NilOrNilArray if members == 0 => protocol.nil(),
        Miss::NilOrNilArray | Miss::NilArray => protocol.nil_array(),
        Miss::NilOrEmpty if resp3 && is(arguments, "SPOP") => b"~0\r\n",
        // LPOS key element
        Miss::NilOrEmpty if is(arguments, "LPOS") && !has("COUNT") => protocol.nil(),
        Miss::NilOrEmpty | Miss::EmptyArray => b"*0\r\n",
        Miss::EmptySet => {
            if resp3 {
                b"~0\r\n"
            } else {
                b"*0\r\n"
            }
        }
        Miss::EmptyMap => {
            if resp3 {
                b"%0\r\n"
            } else {
                b"*0\r\n"
            }
        }
        Miss::EmptyString if has("LEN") => b":0\r\n",
        Miss::EmptyString if has("IDX") => protocol.nil(),
        Miss::EmptyString => b"$0\r\n\r\n",
        Miss::Zero => b":0\r\n",
        Miss::NoTtl => b":-2\r\n",
        Miss::NoTtlPerField => return each(fields(arguments), b":-2\r\n"),
        Miss::NoType => b"+none\r\n",
        Miss::EmptyScan => b"*2\r\n$1\r\n0\r\n*0\r\n",
        Miss::NoBit if arguments.get(2) == Some(b"0") => b":0\r\n",
        Miss::NoBit => b":-1\r\n",
        Miss::NilPerField => return each(fields(arguments), protocol.nil()),
        Miss::NilPerMember => return each(members, protocol.nil()),
        Miss::NilArrayPerMember => return each(members, protocol.nil_array()),
        Miss::ZeroPerMember => return each(members, b":0\r\n"),
    })
}

/// How many fields are asked for: those behind `FIELDS count`, or all arguments behind the key.
fn fields(arguments: Arguments<'_>) -> usize {
    let all = arguments.len().saturating_sub(2);
    let is_hmget = arguments.get(0).is_some_and(|name| name.eq_ignore_ascii_case(b"HMGET"));
    let word = (2..arguments.len())
        .find(|n| !is_hmget && arguments.get(*n).is_some_and(|word| word.eq_ignore_ascii_case(b"FIELDS")));
    word.map_or(all, |word| arguments.len().saturating_sub(word + 2))
}

fn is(arguments: Arguments<'_>, name: &str) -> bool {
    arguments.get(0).is_some_and(|given| given.eq_ignore_ascii_case(name.as_bytes()))
}

/// Whether it is nil, or no array.
pub fn is_nil(reply: &[u8]) -> bool {
    reply.starts_with(b"$-1\r\n") || reply.starts_with(b"_\r\n") || reply.starts_with(b"*-1\r\n")
}

/// The text of a bulk string; none of anything else, nil too.
pub fn bulk(reply: &[u8]) -> Option<&[u8]> {
    let (length, rest) = if reply.first() == Some(&b'$') { header(reply) } else { return None };
    // A nil has a length too, and nothing behind it.
    rest.get(..length).filter(|_| !is_nil(reply))
}

/// The fields and values of a map, or of the array that it is in RESP2. None of anything else.
pub fn pairs(reply: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = if matches!(reply.first(), Some(b'*' | b'%')) { header(reply).1 } else { &[] };
    std::iter::from_fn(move || {
        let (name, after) = split(rest)?;
        let (value, tail) = split(after)?;
        rest = tail;
        Some((body(name), body(value)))
    })
}

/// The elements of an array, or of a set. None of anything else.
pub fn elements(reply: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = if matches!(reply.first(), Some(b'*' | b'~')) { header(reply).1 } else { &[] };
    std::iter::from_fn(move || {
        let (element, tail) = split(rest)?;
        rest = tail;
        Some(body(element))
    })
}

fn every(reply: &[u8], is: impl Fn(&[u8]) -> bool) -> bool {
    let mut any = false;
    elements(reply).all(|element| {
        any = true;
        is(element)
    }) && any
}

fn is_empty(reply: &[u8]) -> bool {
    matches!(reply, b"*0\r\n" | b"%0\r\n" | b"~0\r\n")
}

fn is_empty_string(reply: &[u8]) -> bool {
    reply == b"$0\r\n\r\n"
}

fn is_zero(reply: &[u8]) -> bool {
    matches!(reply, b":0\r\n" | b"#f\r\n")
}

fn is_no_ttl(reply: &[u8]) -> bool {
    reply == b":-2\r\n"
}

fn is_no_type(reply: &[u8]) -> bool {
    reply == b"+none\r\n" || reply == b"$4\r\nnone\r\n"
}

fn is_empty_scan(reply: &[u8]) -> bool {
    let mut elements = elements(reply);
    let (cursor, found, more) = (elements.next(), elements.next(), elements.next());
    cursor == Some(b"$1\r\n0\r\n") && found.is_some_and(is_empty) && more.is_none()
}

/// The number of an aggregate's header, and what follows the header.
fn header(reply: &[u8]) -> (usize, &[u8]) {
    let end = reply.iter().position(|b| *b == b'\n').map_or(reply.len(), |at| at + 1);
    let (line, rest) = reply.split_at(end);
    let number = line.get(1..).and_then(|line| integer(line.trim_ascii_end()));
    (number.and_then(|n| usize::try_from(n).ok()).unwrap_or(0), rest)
}

/// The first reply of several, and the others.
fn split(replies: &[u8]) -> Option<(&[u8], &[u8])> {
    let progress = ReplyScanner::default().scan(replies).ok().filter(|progress| progress.done)?;
    Some(replies.split_at(progress.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{RequestScanner, Scanned, put_request};

    #[test]
    fn a_miss_is_told_by_the_shape_of_the_reply() {
        for (shape, misses, hits) in [
            (Miss::Nil, &["$-1", "*-1", "_", "|1\r\n+a\r\n+b\r\n_"][..], &["$1\r\na", ":0", "*0"][..]),
            (Miss::EmptyArray, &["*0", "_"], &["*1\r\n$-1", "$-1x"]),
            (Miss::EmptySet, &["*0", "~0"], &["~1\r\n+a"]),
            (Miss::EmptyMap, &["*0", "%0"], &["%1\r\n+a\r\n+b", "*2\r\n+a\r\n+b"]),
            (Miss::EmptyString, &["$0\r\n", ":0"], &["$1\r\na"]),
            (Miss::Zero, &[":0", "#f"], &[":1", "#t", ":-1"]),
            (Miss::NoTtl, &[":-2"], &[":-1", ":5"]),
            (Miss::NoTtlPerField, &["*2\r\n:-2\r\n:-2", "*0", "_"], &["*2\r\n:-2\r\n:-1"]),
            (Miss::NoType, &["+none"], &["+string"]),
            (
                Miss::EmptyScan,
                &["*2\r\n$1\r\n0\r\n*0"],
                &["*2\r\n$1\r\n7\r\n*0", "*2\r\n$1\r\n0\r\n*1\r\n+a"],
            ),
            (Miss::NilPerField, &["*2\r\n$1\r\na\r\n$-1"], &["*1\r\n$1\r\na"]),
            (Miss::NilPerMember, &["*2\r\n$-1\r\n$-1", "*1\r\n_"], &["*2\r\n$1\r\na\r\n$-1"]),
            (Miss::NilArrayPerMember, &["*1\r\n*-1", "*1\r\n_"], &["*1\r\n*2\r\n+1\r\n+2"]),
            (Miss::ZeroPerMember, &["*2\r\n:0\r\n:0"], &["*2\r\n:0\r\n:1"]),
            (
                Miss::Unknown,
                &["$-1", "*0", ":0", "$0\r\n", "+none", "*1\r\n:0", "*1\r\n_"],
                &[":7", "*1\r\n:7"],
            ),
        ] {
            for (replies, wanted) in [(misses, true), (hits, false)] {
                for reply in replies {
                    let found = missed(shape, format!("{reply}\r\n").as_bytes());
                    assert_eq!(found, Some(wanted), "{shape:?}: {reply:?}");
                }
            }
            for error in ["-WRONGTYPE x\r\n", "!5\r\nERR x\r\n", "|1\r\n+a\r\n+b\r\n-ERR x\r\n"] {
                assert_eq!(missed(shape, error.as_bytes()), None, "{shape:?}: {error:?}");
            }
        }
    }

    #[test]
    fn keys_are_missed_one_by_one() {
        let mget = b"*3\r\n$1\r\na\r\n$-1\r\n$0\r\n\r\n";
        let each = |reply, places: &[usize]| each_missed(reply, places.iter().copied()).collect::<Vec<_>>();
        assert_eq!(each(mget, &[0, 1, 2]), [false, true, false]);
        assert_eq!(each(mget, &[1, 2]), [true, false]);
        let resp3 = b"|1\r\n+ttl\r\n*1\r\n:1\r\n*2\r\n_\r\n|1\r\n+a\r\n+b\r\n_\r\n";
        assert_eq!(each(resp3, &[0, 1]), [true, true]);
        assert_eq!(with_nils(mget, &[0, 1], Protocol::Resp2), "*3\r\n$-1\r\n$-1\r\n$0\r\n\r\n");
        assert_eq!(with_nils(b"*2\r\n+a\r\n+b\r\n", &[1], Protocol::Resp3), "*2\r\n+a\r\n_\r\n");
    }

    #[test]
    fn values_are_found_in_replies() {
        assert_eq!(bulk(b"$3\r\na\nb\r\n"), Some(&b"a\nb"[..]));
        assert_eq!(bulk(b"$0\r\n\r\n"), Some(&b""[..]));
        for other in
            [&b"$-1\r\n"[..], b"_\r\n", b"+OK\r\n", b":1\r\n", b"*1\r\n$1\r\na\r\n", b"-ERR x\r\n", b""]
        {
            assert_eq!(bulk(other), None, "{other:?}");
        }
        let two = [(&b"$1\r\na\r\n"[..], &b"$1\r\nb\r\n"[..]), (b":7\r\n", b"_\r\n")];
        for map in
            [&b"*4\r\n$1\r\na\r\n$1\r\nb\r\n:7\r\n_\r\n"[..], b"%2\r\n$1\r\na\r\n$1\r\nb\r\n:7\r\n_\r\n"]
        {
            assert!(pairs(map).eq(two), "{map:?}");
        }
        assert_eq!(pairs(b"$1\r\na\r\n").count(), 0);
    }

    fn said(shape: Miss, command: &str, protocol: Protocol) -> Bytes {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let mut request = Vec::new();
        put_request(&mut request, &words);
        let mut scanner = RequestScanner::default();
        assert_eq!(scanner.scan(&request), Ok(Scanned::Request(request.len())));
        miss(shape, scanner.arguments(&request), protocol)
    }

    /// What the proxy says for a miss, it takes for one.
    #[test]
    fn every_miss_is_told_as_one() {
        let shapes = [
            (Miss::Nil, "GET k"),
            (Miss::NilOrEmpty, "SRANDMEMBER k"),
            (Miss::NilOrEmpty, "SRANDMEMBER k 2"),
            (Miss::NilOrEmpty, "SPOP k 2"),
            (Miss::NilOrNilArray, "LPOP k"),
            (Miss::NilOrNilArray, "LPOP k 2"),
            (Miss::NilArray, "XREAD STREAMS k 0"),
            (Miss::EmptyArray, "LRANGE k 0 1"),
            (Miss::EmptySet, "SMEMBERS k"),
            (Miss::EmptyMap, "HGETALL k"),
            (Miss::EmptyString, "GETRANGE k 0 1"),
            (Miss::EmptyString, "LCS k k LEN"),
            (Miss::Zero, "STRLEN k"),
            (Miss::NoTtl, "TTL k"),
            (Miss::NoTtlPerField, "HTTL k FIELDS 2 a b"),
            (Miss::NoType, "TYPE k"),
            (Miss::EmptyScan, "HSCAN k 0"),
            (Miss::NoBit, "BITPOS k 1"),
            (Miss::NoBit, "BITPOS k 0"),
            (Miss::NilPerField, "HMGET k a b"),
            (Miss::NilPerMember, "ZMSCORE k a b"),
            (Miss::NilArrayPerMember, "GEOPOS k a b"),
            (Miss::ZeroPerMember, "SMISMEMBER k a b"),
            (Miss::Unknown, "XINFO STREAM k"),
        ];
        for (shape, command) in shapes {
            for protocol in [Protocol::Resp2, Protocol::Resp3] {
                let said = said(shape, command, protocol);
                assert_eq!(missed(shape, &said), Some(true), "{command}: {said:?}");
                let progress = ReplyScanner::default().scan(&said).expect("a reply");
                assert!(progress.done && progress.bytes == said.len(), "{command}: {said:?}");
            }
        }
        assert_eq!(said(Miss::NilOrEmpty, "LPOS k a", Protocol::Resp2), "$-1\r\n");
        assert_eq!(said(Miss::NilOrEmpty, "LPOS k a COUNT 2", Protocol::Resp2), "*0\r\n");
        assert_eq!(said(Miss::NilPerField, "HMGET k FIELDS b c", Protocol::Resp3), "*3\r\n_\r\n_\r\n_\r\n");
        assert_eq!(said(Miss::NilPerField, "HGETEX k PERSIST FIELDS 1 c", Protocol::Resp3), "*1\r\n_\r\n");
        assert_eq!(said(Miss::NilArrayPerMember, "GEOPOS k c", Protocol::Resp2), "*1\r\n*-1\r\n");
    }
}
