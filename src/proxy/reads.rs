//! Reads of guarded keys: a miss grants a lease; and while the feed is lost, a guard may have its keys missed.

use bytes::{Bytes, BytesMut};

use super::expect::{Delivery, GuardedKey, Meaning};
use super::session::{Session, Step};
use crate::command::Read;
use crate::resp::{Arguments, put_header, put_request};

impl Session {
    /// A read outside of a transaction.
    pub(super) fn read(&mut self, read: Read, arguments: Arguments<'_>) -> Step {
        let db = self.guard_db();
        let keys = match read {
            Read::NilPerKey | Read::Zero => arguments.len(),
            _ => arguments.len().min(2),
        };
        let mut guarded = (1..keys).filter_map(|n| Some((n - 1, self.gate.guarded(db, arguments.get(n)?)?)));
        let Some((place, first)) = guarded.next() else {
            return self.forward(arguments, false, Meaning::None);
        };
        if keys == 2 {
            if self.gate.bypasses(&first) {
                return self.own(miss(read, arguments));
            }
            return self.forward(arguments, false, Meaning::Read(read, first));
        }
        let all = std::iter::once((place, first)).chain(guarded);
        let (bypassed, asked): (Vec<_>, Vec<_>) = all.partition(|(_, key)| self.gate.bypasses(key));
        if bypassed.is_empty() {
            return self.forward(arguments, false, Meaning::Reads(read, asked.into()));
        }
        self.read_rest(read, arguments, &bypassed, asked)
    }

    /// A read of several keys, some of which are missed whatever Redis holds.
    fn read_rest(
        &mut self,
        read: Read,
        arguments: Arguments<'_>,
        bypassed: &[(usize, GuardedKey)],
        asked: Vec<(usize, GuardedKey)>,
    ) -> Step {
        let places = || bypassed.iter().map(|(place, _)| *place);
        let mut request = BytesMut::from(arguments.bytes());
        let mut delivery = Delivery::Forward;
        if read == Read::Zero {
            // How many exist: of those that are not missed.
            let kept = |n: &usize| *n == 0 || !places().any(|place| place + 1 == *n);
            let words: Vec<&[u8]> =
                (0..arguments.len()).filter(kept).filter_map(|n| arguments.get(n)).collect();
            if words.len() == 1 {
                return self.own(miss(read, arguments));
            }
            request.clear();
            put_request(&mut request, &words);
        } else {
            delivery = Delivery::Nils(places().collect());
        }
        let Some(link) = self.link(false) else { return Step::Wait };
        link.send(
            |out| out.extend_from_slice(&request),
            self.expect_as(delivery, Meaning::Reads(read, asked.into())),
        );
        Step::Done
    }
}

/// What a read answers that finds nothing.
fn miss(read: Read, arguments: Arguments<'_>) -> Bytes {
    match read {
        Read::Nil | Read::NilPerKey => Bytes::from_static(b"$-1\r\n"),
        Read::EmptyArray => Bytes::from_static(b"*0\r\n"),
        Read::Zero => Bytes::from_static(b":0\r\n"),
        Read::NilPerField => {
            let fields = arguments.len().saturating_sub(2);
            let mut out = BytesMut::new();
            put_header(&mut out, b'*', fields);
            (0..fields).for_each(|_| out.extend_from_slice(b"$-1\r\n"));
            out.freeze()
        }
    }
}
