//! AUTH, SELECT and HELLO: how a client gets to another account.
//!
//! They go to Redis on a pin, and only its answer moves the client: rights stay Redis's.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::account::{Change, Login};
use super::expect::Meaning;
use super::held::Held;
use super::session::{Session, Step};
use crate::resp::{Arguments, Protocol, integer, put_request};

impl Session {
    /// Sends a command that changes the client's account. Redis decides, on the client's own pin if it has to keep
    /// that, or else on any: should it refuse, nothing has changed.
    fn negotiate(&mut self, write: impl FnOnce(&mut BytesMut), change: Change) -> Step {
        let link = if self.keeps_pin() || self.links.all_pinned() {
            let Some(link) = self.link(true) else { return Step::Wait };
            link
        } else {
            if self.client.outstanding() > 0 {
                return Step::Wait;
            }
            if let Some(pin) = self.pin.take() {
                self.links.release(pin);
            }
            self.pin.insert(self.links.negotiator(&self.client, change.login.as_ref())).clone()
        };
        let logs_in = change.login.is_some();
        link.send(write, self.expect(Meaning::Account(Box::new(change))));
        if logs_in {
            // A connection that Redis let nobody name until now can be named after the login.
            link.introduce_again(&self.client);
        }
        // Which lane, and which keys are guarded, depends on the answer.
        (self.lane, self.barrier) = (None, true);
        Step::Done
    }

    /// A command of this kind that the proxy does not understand. Most likely Redis has an error for it; if it has not,
    /// nobody knows what the connection is now.
    fn forward_strange(&mut self, arguments: Arguments<'_>) -> Step {
        self.forward_state(arguments, Meaning::Holds(Held::FOR_GOOD, true))
    }

    /// A HELLO with options that the proxy does not understand. Redis 7.0 does those before the one that it refuses: it
    /// has let the connection log in, and given it a name, when the error comes. Nobody else may get that connection.
    fn forward_strange_hello(&mut self, arguments: Arguments<'_>) -> Step {
        let step = self.forward_strange(arguments);
        if step == Step::Done {
            self.client.hold(Held::FOR_GOOD, true);
            if let Some(pin) = &self.pin {
                pin.may_be_another();
                pin.rename(&self.client);
            }
        }
        step
    }

    /// `SELECT db`
    pub(super) fn select(&mut self, arguments: Arguments<'_>) -> Step {
        let db = arguments.get(1).and_then(integer).and_then(|db| u32::try_from(db).ok());
        let (Some(db), 2) = (db, arguments.len()) else {
            return self.forward_strange(arguments);
        };
        let change = Change { db: Some(db), ..Change::default() };
        self.negotiate(|out| out.extend_from_slice(arguments.bytes()), change)
    }

    /// `AUTH [user] password`
    pub(super) fn auth(&mut self, arguments: Arguments<'_>) -> Step {
        let bytes = |n| arguments.get(n).map(Bytes::copy_from_slice);
        let login = match (arguments.len(), bytes(1), bytes(2)) {
            (2, Some(password), _) => Login { user: None, password },
            (3, user, Some(password)) => Login { user, password },
            _ => return self.forward_strange(arguments),
        };
        let change = Change { login: Some(Rc::new(login)), ..Change::default() };
        self.negotiate(|out| out.extend_from_slice(arguments.bytes()), change)
    }

    /// `HELLO [protover [AUTH user password] [SETNAME name]]`
    pub(super) fn hello(&mut self, arguments: Arguments<'_>) -> Step {
        let Some(version) = arguments.get(1) else {
            return self.forward(arguments, false, Meaning::None);
        };
        let mut change = match integer(version) {
            Some(2) => Change { protocol: Some(Protocol::Resp2), ..Change::default() },
            Some(3) => Change { protocol: Some(Protocol::Resp3), ..Change::default() },
            _ => return self.forward_strange(arguments),
        };
        let mut request = BytesMut::new();
        let mut n = 2;
        while let Some(option) = arguments.get(n) {
            match (arguments.get(n + 1), arguments.get(n + 2)) {
                (Some(user), Some(password)) if option.eq_ignore_ascii_case(b"AUTH") => {
                    let (user, password) = (Bytes::copy_from_slice(user), Bytes::copy_from_slice(password));
                    change.login = Some(Rc::new(Login { user: Some(user), password }));
                    n += 3;
                }
                (Some(name), _) if option.eq_ignore_ascii_case(b"SETNAME") && is_name(name) => {
                    change.name = Some(Bytes::copy_from_slice(name));
                    n += 2;
                }
                _ => return self.forward_strange_hello(arguments),
            }
        }
        // The name stays with the proxy: Redis knows the connection by ours.
        match &change.login {
            Some(login) => {
                let user = login.user.as_deref().unwrap_or_default();
                put_request(&mut request, &[b"HELLO", version, b"AUTH", user, &login.password]);
            }
            None => put_request(&mut request, &[b"HELLO", version]),
        }
        self.negotiate(|out| out.extend_from_slice(&request), change)
    }
}

/// Whether Redis takes it as the name of a client.
pub(super) fn is_name(name: &[u8]) -> bool {
    name.iter().all(|b| (b'!'..=b'~').contains(b))
}
