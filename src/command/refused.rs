//! What a refused fill answers: where it can be done honestly, in the shape of the command's own reply.

use bytes::{Bytes, BytesMut};

use super::FillForm;
use super::keys::is_one_of;
use crate::config::Reply;
use crate::resp::{Arguments, Protocol, integer, put_decimal};

/// The reply of a refused fill, where the guard wants none to fail (`reply = "ok"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `OK`.
    Ok,
    /// `OK`, or with `GET` the value before, of which nothing honest can be said: nil.
    Set,
    /// 1: it was not there before.
    One,
    /// 0: nothing was done.
    Zero,
    /// How many elements were given, in so many arguments each, after these words.
    Count(&'static [&'static str], u16),
    /// How long the value is, if it was empty before; written at the place that this argument names.
    Length(Option<u16>),
    /// Nil.
    Nil,
    /// Nothing honest: the error.
    Error,
}

/// What a refused fill answers.
pub fn refusal(
    form: FillForm,
    arguments: Arguments<'_>,
    (reply, error): (Reply, &str),
    protocol: Protocol,
) -> Bytes {
    let nil = Bytes::from_static(protocol.nil());
    let refused = form.refused.of(arguments);
    match (reply, refused) {
        (Reply::Error, _) | (Reply::Ok, Refused::Error) => format!("-{error}\r\n").into(),
        (_, Refused::Nil | Refused::Set) | (Reply::Nil, Refused::Ok | Refused::Error) => nil,
        // An integer says "nothing was done" by itself.
        (Reply::Nil, _) | (_, Refused::Zero) => Bytes::from_static(b":0\r\n"),
        (Reply::Ok, Refused::Ok) => Bytes::from_static(b"+OK\r\n"),
        (Reply::Ok, Refused::One) => Bytes::from_static(b":1\r\n"),
        (Reply::Ok, Refused::Count(options, size)) => {
            let given = elements(options, arguments).count();
            integer_reply(given / usize::from(size.max(1)))
        }
        (Reply::Ok, Refused::Length(offset)) => integer_reply(length(offset, arguments)),
    }
}

impl Refused {
    /// The same, with what options change of it.
    fn of(self, arguments: Arguments<'_>) -> Self {
        let options = arguments.from(2);
        match self {
            Self::Set if arguments.from(3).any(|option| is_one_of(option, &["GET"])) => Self::Nil,
            Self::Set => Self::Ok,
            // The new score, or nil for "not done".
            Self::Count(words, _)
                if options.take_while(|o| is_one_of(o, words)).any(|o| is_one_of(o, &["INCR"])) =>
            {
                Self::Nil
            }
            other => other,
        }
    }
}

fn elements<'a>(options: &'a [&str], arguments: Arguments<'a>) -> impl Iterator<Item = &'a [u8]> {
    arguments.from(2).skip_while(|argument| is_one_of(argument, options))
}

fn length(offset: Option<u16>, arguments: Arguments<'_>) -> usize {
    let here = arguments.len().checked_sub(1).and_then(|last| arguments.get(last)).map_or(0, <[u8]>::len);
    // No other argument of these commands can be long.
    let value = here + arguments.elided();
    let offset = offset.and_then(|place| integer(arguments.get(usize::from(place))?));
    // Nothing, written anywhere, makes nothing longer.
    if value == 0 { 0 } else { value.saturating_add(offset.unwrap_or(0).try_into().unwrap_or(0)) }
}

fn integer_reply(number: usize) -> Bytes {
    let mut reply = BytesMut::from(&b":"[..]);
    put_decimal(&mut reply, (number as u64).min(i64::MAX as u64));
    reply.extend_from_slice(b"\r\n");
    reply.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, CommandTable};
    use crate::resp::{RequestScanner, Scanned, put_request};

    fn answers(command: &str, protocol: Protocol) -> [String; 3] {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let mut request = Vec::new();
        put_request(&mut request, &words);
        let mut scanner = RequestScanner::default();
        assert_eq!(scanner.scan(&request), Ok(Scanned::Request(request.len())));
        let arguments = scanner.arguments(&request);
        let Command::Fill(form) = CommandTable::known().of(arguments) else { panic!("{command}") };
        [Reply::Ok, Reply::Nil, Reply::Error].map(|reply| {
            let bytes = refusal(form, arguments, (reply, "STALE x"), protocol);
            String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned()
        })
    }

    #[test]
    fn each_answers_in_its_own_shape() {
        for (command, ok, nil) in [
            ("SET k v", "+OK", "$-1"),
            ("SET k v EX 10 get", "$-1", "$-1"),
            ("SET k GET", "+OK", "$-1"),
            ("HSET k a 1 b 2", ":2", ":0"),
            ("SADD k nx xx", ":2", ":0"),
            ("ZADD k nx CH 1 a 2 b", ":2", ":0"),
            ("ZADD k INCR 1 a", "$-1", "$-1"),
            ("GEOADD k XX 1 2 a", ":1", ":0"),
            ("APPEND k abc", ":3", ":0"),
            ("SETRANGE k 10 abc", ":13", ":0"),
            ("SETRANGE k 10 ", ":0", ":0"),
            ("SETRANGE k 9223372036854775807 abc", ":9223372036854775807", ":0"),
            ("INCR k", "-STALE x", "$-1"),
            ("EVAL x 1 k", "-STALE x", "$-1"),
            ("LMOVE a k LEFT LEFT", "$-1", "$-1"),
            ("SUNIONSTORE k a", ":0", ":0"),
        ] {
            assert_eq!(answers(command, Protocol::Resp2), [ok, nil, "-STALE x"], "{command}");
        }
        assert_eq!(answers("SET k v", Protocol::Resp3), ["+OK", "_", "-STALE x"]);
        assert_eq!(answers("XADD k * a 1", Protocol::Resp3), ["_", "_", "-STALE x"]);
    }
}
