//! A client as its upstream connections see it: where its replies go, in their order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::account::{Account, Change, Login};
use super::buffers;
use super::held::Held;
use crate::cache::Strangers;
use crate::fence::ConnId;
use crate::resp::Protocol;

/// How many commands after a large reply are taken to have large replies too.
const LARGE_RUN: u8 = 64;

/// What a session shares with the links that carry its commands. All of them live on one thread.
#[derive(Debug)]
pub struct Client {
    /// Its number, never used twice.
    pub id: ConnId,
    /// What it logged in with.
    pub login: RefCell<Option<Rc<Login>>>,
    /// When it came, if it has not (see [`Account::since`]).
    pub since: Cell<u32>,
    /// The db that its commands go to. None after a transaction that went wrong around a SELECT: it can be
    /// more than one.
    pub db: Cell<Option<u32>>,
    /// The version of the protocol that it speaks.
    pub protocol: Cell<Protocol>,
    /// What it calls itself. Redis knows its connections by our names.
    pub name: RefCell<Bytes>,
    /// What Redis remembers of its connection.
    held: Cell<Held>,
    /// Commands that are yet to go on a pin because replies to those before them were large.
    large: Cell<u8>,
    out: RefCell<BytesMut>,
    /// Commands sent upstream, and those of them that were answered.
    sent: Cell<u64>,
    answered: Cell<u64>,
    /// The proxy's own replies that wait for the upstream's before them.
    own: RefCell<VecDeque<(u64, Bytes)>>,
    /// The reply that is due is kept back: nothing more is taken from it.
    parked: Cell<bool>,
    /// ... and whoever keeps it back hears by the end of this that nobody will wait for it.
    patient: RefCell<Option<oneshot::Sender<()>>>,
    waker: RefCell<Option<Waker>>,
    /// What was delivered last is a part of a message, and the next bytes have to be the rest of it.
    partway: Cell<bool>,
    /// The session is gone; replies that still come are dropped.
    gone: Cell<bool>,
    /// Its upstream is gone in the middle of a reply: nothing that follows would make sense.
    broken: Cell<bool>,
    /// What it waits for may never come (see [`drain`](super::drain)).
    rests: Cell<bool>,
}

impl Client {
    /// A client that has sent nothing yet.
    pub fn new(id: ConnId, since: u32) -> Self {
        Self {
            id,
            login: RefCell::default(),
            since: Cell::new(since),
            db: Cell::new(Some(0)),
            protocol: Cell::default(),
            name: RefCell::default(),
            held: Cell::default(),
            large: Cell::new(0),
            out: RefCell::default(),
            sent: Cell::new(0),
            answered: Cell::new(0),
            own: RefCell::default(),
            parked: Cell::new(false),
            patient: RefCell::default(),
            waker: RefCell::default(),
            partway: Cell::new(false),
            gone: Cell::new(false),
            broken: Cell::new(false),
            rests: Cell::new(false),
        }
    }

    /// Whose connections its commands go over.
    pub fn account(&self) -> Account {
        Account {
            login: self.login.borrow().clone(),
            since: self.since.get(),
            db: self.db.get().unwrap_or_default(),
            protocol: self.protocol.get(),
        }
    }

    /// Whether it has yet to log in. Who came when nobody had to may stay.
    pub fn is_stranger(&self, strangers: &Strangers) -> bool {
        strangers.need_login() && self.since.get() == strangers.times() && self.login.borrow().is_none()
    }

    /// Takes over what Redis has accepted.
    pub fn take(&self, change: &Change) {
        if let Some(login) = &change.login {
            *self.login.borrow_mut() = Some(login.clone());
            self.since.set(0);
        }
        if let Some(db) = change.db {
            self.db.set(Some(db));
            self.hold(Held::DB, false);
        }
        if let Some(protocol) = change.protocol {
            self.protocol.set(protocol);
        }
        if let Some(name) = &change.name {
            *self.name.borrow_mut() = name.clone();
        }
    }

    /// As if it had just connected, as RESET leaves it.
    pub fn forget(&self, since: u32) {
        self.since.set(since);
        *self.login.borrow_mut() = None;
        *self.name.borrow_mut() = Bytes::new();
        self.db.set(Some(0));
        self.protocol.set(Protocol::default());
        self.held.set(Held::default());
    }

    /// What Redis remembers of its connection, for which it keeps its pin.
    pub fn held(&self) -> Held {
        self.held.get()
    }

    /// Redis remembers something of its connection, or no more.
    pub fn hold(&self, what: Held, on: bool) {
        self.held.set(self.held.get().set(what, on));
    }

    /// A large reply has come: the next commands, whose replies may be as large, better do not share a lane.
    pub fn expect_large(&self) {
        self.large.set(LARGE_RUN);
    }

    /// Whether the next command should not share a lane, for the size of its reply.
    pub fn takes_large(&self) -> bool {
        let left = self.large.get();
        self.large.set(left.saturating_sub(1));
        left > 0
    }

    /// A command of this client goes upstream.
    pub fn sent(&self) {
        self.sent.set(self.sent.get() + 1);
    }

    /// How many commands have gone upstream.
    pub fn total_sent(&self) -> u64 {
        self.sent.get()
    }

    /// Commands that the upstream has not answered.
    pub fn outstanding(&self) -> u64 {
        self.sent.get() - self.answered.get()
    }

    /// A reply of the proxy's own, in place: after the replies of everything that was sent before.
    pub fn reply(&self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if self.outstanding() == 0 && !self.is_partway() {
            self.deliver(&bytes);
        } else {
            self.own.borrow_mut().push_back((self.sent.get(), bytes));
        }
        self.wake();
    }

    /// Bytes of the reply that is due.
    pub fn deliver(&self, bytes: &[u8]) {
        if !self.gone.get() {
            let mut out = self.out.borrow_mut();
            if out.capacity() == 0 {
                *out = buffers::take();
            }
            out.extend_from_slice(bytes);
        }
    }

    /// The reply that is due is kept back, until it is answered all the same. What is returned ends when the client
    /// waits no longer.
    pub fn park(&self) -> oneshot::Receiver<()> {
        let (patient, hurried) = oneshot::channel();
        self.parked.set(true);
        *self.patient.borrow_mut() = Some(patient);
        hurried
    }

    /// The client will not wait for what is kept back: it has closed its side, and may be gone.
    pub fn hurry(&self) {
        self.patient.take();
    }

    /// Whether the reply that is due is kept back.
    pub fn is_parked(&self) -> bool {
        self.parked.get()
    }

    /// The reply that is due is complete (or nobody wants it).
    pub fn answered(&self) {
        self.parked.set(false);
        self.answered.set(self.answered.get() + 1);
        self.deliver_own();
    }

    /// What was delivered is a part of a message, or the rest of one.
    pub fn is_partway_through(&self, message: bool) {
        if self.partway.replace(message) && !message {
            self.deliver_own();
        }
    }

    /// Whether only a part of a message has been delivered.
    pub fn is_partway(&self) -> bool {
        self.partway.get()
    }

    fn deliver_own(&self) {
        let mut own = self.own.borrow_mut();
        while let Some((after, bytes)) = own.front()
            && *after <= self.answered.get()
        {
            self.deliver(bytes);
            own.pop_front();
        }
    }

    /// Wakes the session. A link does so once a batch.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Who is woken when replies have come.
    pub fn set_waker(&self, waker: &Waker) {
        let mut current = self.waker.borrow_mut();
        if !current.as_ref().is_some_and(|current| current.will_wake(waker)) {
            *current = Some(waker.clone());
        }
    }

    /// Wakes the session, from anywhere.
    pub fn waker(&self) -> Option<Waker> {
        self.waker.borrow().clone()
    }

    /// The replies that wait to be written to the socket.
    pub fn out(&self) -> std::cell::RefMut<'_, BytesMut> {
        self.out.borrow_mut()
    }

    /// How many of the proxy's own replies wait for those before them.
    pub fn own_waiting(&self) -> usize {
        self.own.borrow().len()
    }

    /// How many bytes wait to be written.
    pub fn waiting(&self) -> usize {
        self.out.borrow().len()
    }

    /// The session is gone.
    pub fn leave(&self) {
        self.gone.set(true);
        self.hurry();
        *self.out.borrow_mut() = BytesMut::new();
        self.own.borrow_mut().clear();
    }

    /// Whether the session is gone.
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// A reply ended in the middle.
    pub fn break_off(&self) {
        self.broken.set(true);
        self.wake();
    }

    /// It waits for what may never come, or does no more.
    pub fn rest(&self, rests: bool) {
        self.rests.set(rests);
    }

    /// Whether it waits for what may never come.
    pub fn rests(&self) -> bool {
        self.rests.get()
    }

    /// Whether a reply ended in the middle.
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_replies_wait_for_those_before_them() {
        let client = Client::new(ConnId(1), 0);
        client.reply("+A\r\n");
        client.sent();
        client.sent();
        client.reply("+C\r\n");
        client.sent();
        client.reply("+E\r\n");
        client.deliver(b"+B1\r\n");
        client.answered();
        client.deliver(b"+B2\r\n");
        client.answered();
        client.deliver(b"+D\r\n");
        client.answered();
        assert_eq!(&client.out()[..], b"+A\r\n+B1\r\n+B2\r\n+C\r\n+D\r\n+E\r\n");
        assert_eq!(client.outstanding(), 0);
    }

    #[test]
    fn own_replies_do_not_come_in_the_middle_of_a_message() {
        let client = Client::new(ConnId(1), 0);
        client.deliver(b">2\r\n+a\r\n");
        client.is_partway_through(true);
        client.reply("+OWN\r\n");
        client.deliver(b"+b\r\n");
        client.is_partway_through(false);
        assert_eq!(&client.out()[..], b">2\r\n+a\r\n+b\r\n+OWN\r\n");
    }
}
