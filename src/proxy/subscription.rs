//! Subscriptions: messages that come unasked, and confirmations that do not answer commands one by one.
//!
//! SUBSCRIBE to three channels is confirmed three times, UNSUBSCRIBE without a channel as often as there are
//! channels. In RESP3 confirmations and messages are pushes; in RESP2 they are arrays, which while a connection is
//! subscribed are told from replies by their first element: nothing that Redis then allows answers alike.

use std::cell::Cell;

use crate::resp::{integer, line_break};

/// What is subscribed to, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    what: What,
    begins: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Channels,
    Patterns,
    Shards,
}

impl Kind {
    /// By the command's name, which is also the first element of its confirmations.
    pub fn of(name: &[u8]) -> Option<Self> {
        let kinds: [(&[u8], What, bool); 6] = [
            (b"subscribe", What::Channels, true),
            (b"unsubscribe", What::Channels, false),
            (b"psubscribe", What::Patterns, true),
            (b"punsubscribe", What::Patterns, false),
            (b"ssubscribe", What::Shards, true),
            (b"sunsubscribe", What::Shards, false),
        ];
        let found = kinds.iter().find(|(kind, ..)| name.eq_ignore_ascii_case(kind))?;
        Some(Self { what: found.1, begins: found.2 })
    }
}

/// Confirmations that are due.
#[derive(Debug)]
pub struct Confirmations {
    kind: Kind,
    /// None: one for each subscription that there is when their turn comes.
    left: Option<usize>,
}

impl Confirmations {
    /// Of a command that names so many channels.
    pub fn of(kind: Kind, channels: usize) -> Self {
        Self { kind, left: (channels > 0).then_some(channels) }
    }
}

/// The subscriptions of a connection.
#[derive(Debug, Default)]
pub struct Subscriptions {
    channels: Cell<usize>,
    patterns: Cell<usize>,
    shards: Cell<usize>,
}

/// What became of what came.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    /// It answers a command.
    Reply,
    /// It came unasked.
    Message,
    /// It confirms a part of the command that is due.
    Confirmation,
    /// ... the last one.
    LastConfirmation,
}

impl Subscriptions {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.channels.get() + self.patterns.get() + self.shards.get() > 0
    }

    /// Tells what a whole reply or push is. `due`: what the command asked for whose turn it is, if that is about
    /// subscriptions.
    pub fn came(&self, bytes: &[u8], due: Option<&mut Confirmations>) -> Came {
        let pushed = bytes.first() == Some(&b'>');
        if !pushed && (bytes.first() != Some(&b'*') || (due.is_none() && !self.any())) {
            return Came::Reply;
        }
        let Some(first) = first_element(bytes) else { return Came::Reply };
        let Some(kind) = Kind::of(first) else {
            let message = pushed || (self.any() && is_message(first));
            return if message { Came::Message } else { Came::Reply };
        };
        let before = self.of(kind.what).get();
        self.count(kind, bytes);
        match due {
            Some(due) if due.kind == kind => {
                let left = due.left.unwrap_or(before.max(1)) - 1;
                due.left = Some(left);
                if left == 0 { Came::LastConfirmation } else { Came::Confirmation }
            }
            // Redis ended it (a slot that moved, a user that lost a right).
            _ => Came::Message,
        }
    }

    /// Whether the beginning of a large reply shows that it came unasked.
    pub fn is_message(&self, head: &[u8]) -> bool {
        match head.first() {
            // A confirmation has to be counted, however long the channel's name is.
            Some(b'>') => first_element(head).and_then(Kind::of).is_none(),
            Some(b'*') if self.any() => first_element(head).is_some_and(is_message),
            _ => false,
        }
    }

    fn of(&self, what: What) -> &Cell<usize> {
        match what {
            What::Channels => &self.channels,
            What::Patterns => &self.patterns,
            What::Shards => &self.shards,
        }
    }

    /// A confirmation ends with how many there are now: channels and patterns together, shard channels alone. A
    /// channel that was subscribed to before, or was not, does not change it.
    fn count(&self, kind: Kind, confirmation: &[u8]) {
        let last =
            confirmation.iter().rposition(|b| *b == b':').map(|at| confirmation[at + 1..].trim_ascii_end());
        let Some(now) = last.and_then(integer).and_then(|now| usize::try_from(now).ok()) else { return };
        let others = match kind.what {
            What::Channels => self.patterns.get(),
            What::Patterns => self.channels.get(),
            What::Shards => 0,
        };
        self.of(kind.what).set(now.saturating_sub(others));
    }
}

fn is_message(first: &[u8]) -> bool {
    matches!(first, b"message" | b"pmessage" | b"smessage")
}

/// The first element of an array or a push, which is a bulk string.
fn first_element(bytes: &[u8]) -> Option<&[u8]> {
    let header = line_break(bytes, 1)? + 2;
    if bytes.get(header) != Some(&b'$') {
        return None;
    }
    let end = line_break(bytes, header + 1)?;
    let length = usize::try_from(integer(&bytes[header + 1..end])?).ok()?;
    bytes.get(end + 2..(end + 2).checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), subscribed: bool) {
            let all = Subscriptions::default();
            all.channels.set(usize::from(subscribed));
            let _ = all.came(&bytes, Some(&mut due("UNSUBSCRIBE", 0)));
            let _ = all.is_message(&bytes);
            let confirmation = [b">3\r\n$11\r\nunsubscribe\r\n".as_slice(), &bytes].concat();
            let _ = all.came(&confirmation, Some(&mut due("UNSUBSCRIBE", 0)));
        }
    }

    fn due(name: &str, channels: usize) -> Confirmations {
        Confirmations::of(Kind::of(name.as_bytes()).expect("a kind"), channels)
    }

    fn confirmation(push: char, kind: &str, channel: &str, count: usize) -> Vec<u8> {
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        format!("{push}3\r\n{}{}:{count}\r\n", bulk(kind), bulk(channel)).into_bytes()
    }

    #[test]
    fn a_command_is_answered_by_as_many_confirmations_as_it_names_channels() {
        for push in ['*', '>'] {
            let all = Subscriptions::default();
            let mut two = due("SUBSCRIBE", 2);
            assert_eq!(
                all.came(&confirmation(push, "subscribe", "a", 1), Some(&mut two)),
                Came::Confirmation
            );
            let message = format!("{push}3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n");
            assert_eq!(all.came(message.as_bytes(), Some(&mut two)), Came::Message);
            assert_eq!(
                all.came(&confirmation(push, "subscribe", "b:9", 2), Some(&mut two)),
                Came::LastConfirmation
            );
            let mut pattern = due("psubscribe", 1);
            assert_eq!(
                all.came(&confirmation(push, "psubscribe", "p*", 3), Some(&mut pattern)),
                Came::LastConfirmation
            );
            assert!(all.any());
            let mut every = due("UNSUBSCRIBE", 0);
            let gone = |channel, left| confirmation(push, "unsubscribe", channel, left);
            assert_eq!(all.came(&gone("a", 2), Some(&mut every)), Came::Confirmation);
            assert_eq!(all.came(&gone("b:9", 1), Some(&mut every)), Came::LastConfirmation);
            let mut none = due("UNSUBSCRIBE", 0);
            let nil = if push == '>' { "_" } else { "$-1" };
            let nothing = format!("{push}3\r\n$11\r\nunsubscribe\r\n{nil}\r\n:1\r\n");
            assert_eq!(all.came(nothing.as_bytes(), Some(&mut none)), Came::LastConfirmation);
            let mut last = due("PUNSUBSCRIBE", 1);
            assert_eq!(
                all.came(&confirmation(push, "punsubscribe", "p*", 0), Some(&mut last)),
                Came::LastConfirmation
            );
            assert!(!all.any());
        }
    }

    /// An array of the application's that looks like a message is a reply where nobody has subscribed.
    #[test]
    fn replies_are_not_taken_for_messages() {
        let all = Subscriptions::default();
        let looks_alike = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n";
        assert_eq!(all.came(looks_alike, None), Came::Reply);
        assert!(!all.is_message(looks_alike));
        all.channels.set(1);
        assert_eq!(all.came(looks_alike, None), Came::Message);
        assert!(all.is_message(&looks_alike[..30]));
        assert_eq!(all.came(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", None), Came::Reply);
        assert_eq!(all.came(b"-ERR no\r\n", Some(&mut due("SUBSCRIBE", 3))), Came::Reply);
        assert_eq!(all.came(b">2\r\n$10\r\ninvalidate\r\n_\r\n", None), Came::Message);
    }
}
