//! Who a connection is to Redis: its login, its db and its version of the protocol.
//!
//! Clients of the same account share a lane. A client gets to an account only by commands that Redis itself has
//! accepted: its AUTH, SELECT or HELLO goes to Redis on a pin, and only the reply moves it.

use std::fmt;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::expect::Meaning;
use super::held::Held;
use super::session::{Session, Step};
use crate::resp::{Arguments, Protocol, integer, put_bulk, put_header, put_request};

/// What a client logged in with. Kept so that a lane can be opened in its name.
#[derive(PartialEq, Eq, Hash)]
pub struct Login {
    user: Option<Bytes>,
    password: Bytes,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What tells upstream connections apart. A client never gets one of another account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Account {
    /// None: whoever Redis takes for the user of a connection that has not logged in.
    pub login: Option<Rc<Login>>,
    /// The db.
    pub db: u32,
    /// The version of the protocol.
    pub protocol: Protocol,
}

impl Account {
    /// Appends what makes a new connection one of this account, and tells how many replies that has.
    pub fn put_introduction(&self, out: &mut BytesMut) -> usize {
        let mut requests = 1;
        match (self.protocol, self.login.as_deref()) {
            (Protocol::Resp3, Some(Login { user, password })) => {
                let user = user.as_deref().unwrap_or(b"default");
                put_request(out, &[b"HELLO", b"3", b"AUTH", user, password]);
            }
            (Protocol::Resp3, None) => put_request(out, &[b"HELLO", b"3"]),
            (Protocol::Resp2, Some(Login { user: Some(user), password })) => {
                put_request(out, &[b"AUTH", user, password]);
            }
            (Protocol::Resp2, Some(Login { user: None, password })) => put_request(out, &[b"AUTH", password]),
            (Protocol::Resp2, None) => requests = 0,
        }
        if self.db != 0 {
            put_request(out, &[b"SELECT", self.db.to_string().as_bytes()]);
            requests += 1;
        }
        requests
    }
}

/// What a client's own AUTH, SELECT or HELLO changes once Redis has accepted it.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// It logs in.
    pub login: Option<Rc<Login>>,
    /// It goes to another db.
    pub db: Option<u32>,
    /// It speaks another version of the protocol.
    pub protocol: Option<Protocol>,
    /// It has a name.
    pub name: Option<Bytes>,
}

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
                put_header(&mut request, b'*', 5);
                let user = login.user.as_deref().unwrap_or_default();
                for word in [b"HELLO", version, b"AUTH", user, &login.password] {
                    put_bulk(&mut request, word);
                }
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

/// What a reply of Redis says about the account of a client.
pub(super) fn moved(client: &super::client::Client, account: &mut Account, change: &Change) {
    if let Some(login) = &change.login {
        account.login = Some(login.clone());
        *client.login.borrow_mut() = Some(login.clone());
    }
    if let Some(db) = change.db {
        account.db = db;
        client.db.set(Some(db));
        client.hold(Held::DB, false);
    }
    if let Some(protocol) = change.protocol {
        account.protocol = protocol;
        client.protocol.set(protocol);
    }
    if let Some(name) = &change.name {
        *client.name.borrow_mut() = name.clone();
    }
}
