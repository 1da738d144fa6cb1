//! Who a connection is to Redis: its login, its db and its version of the protocol.
//!
//! Clients of the same account share a lane.

use std::fmt;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use crate::resp::{Protocol, put_request};

/// What a client logged in with. Kept so that a lane can be opened in its name.
#[derive(PartialEq, Eq, Hash)]
pub struct Login {
    /// The default user, if none is named.
    pub user: Option<Bytes>,
    /// In no log.
    pub password: Bytes,
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
    /// ... which can be somebody else since ([`Strangers::times`](crate::cache::Strangers::times)); 0 with a login.
    pub since: u32,
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

impl Account {
    /// Takes over what Redis has accepted.
    pub fn take(&mut self, change: &Change) {
        if let Some(login) = &change.login {
            self.login = Some(login.clone());
            self.since = 0;
        }
        self.db = change.db.unwrap_or(self.db);
        self.protocol = change.protocol.unwrap_or(self.protocol);
    }
}
