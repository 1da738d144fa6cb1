//! A link: one connection to Redis. Shared by many clients it is a lane, owned by one it is a pin.
//!
//! Commands are appended to one buffer, and what was expected of each to one queue; the link's task writes
//! the buffer once all clients that had something to say have said it, so that commands of many clients
//! leave in one write. Replies come in that order, and go to the clients in one wake-up each.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

use super::account::Account;
use super::buffers;
use super::client::Client;
use super::descriptors::{is_kept_from_clients, is_kept_from_lanes};
use super::expect::{Delivery, Expected, Meaning};
use super::gate::Gate;
use super::reading::Reading;
use super::subscription::Subscriptions;
use crate::cache::Upstream;
use crate::failpoint::{self, Point};
use crate::fence::FillId;
use crate::resp::{integer, put_request};
use crate::transport::Transport;

/// How long Redis may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests that wait for Redis, in bytes, beyond which clients of this link are no longer read.
pub const HIGH_WATER: usize = 4 * 1024 * 1024;
/// Replies that wait for a pin's owner, in bytes, beyond which Redis is no longer read.
const OWNER_HIGH_WATER: usize = 1024 * 1024;
/// What is read at a time at least, in bytes.
const READ_CHUNK: usize = 8 * 1024;

/// One connection to Redis.
pub struct Link {
    me: Weak<Link>,
    pub(super) gate: Arc<Gate>,
    pub(super) upstream: Arc<Upstream>,
    /// Who it is to Redis.
    pub(super) account: RefCell<Account>,
    /// Whose pin this is; none for a lane.
    pub(super) owner: RefCell<Option<Rc<Client>>>,
    out: RefCell<BytesMut>,
    pub(super) expected: RefCell<VecDeque<Expected>>,
    pub(super) subscriptions: Subscriptions,
    /// All bytes go to the owner, who monitors.
    pub(super) monitoring: Cell<bool>,
    pub(super) introduction: RefCell<Introduction>,
    /// Why Redis would not take the connection's name, if it has answered that and not yet told the id.
    unnamed: RefCell<Option<String>>,
    /// Redis would not take its login.
    outcast: Cell<bool>,
    /// It has come to carry commands.
    pub(super) served: Cell<bool>,
    /// What Redis said when the connection was to become one of its account.
    refused: RefCell<Option<String>>,
    /// A part of what is due has been delivered.
    pub(super) partly: Cell<bool>,
    /// It was a lane, and is one no more.
    retired: Cell<bool>,
    /// Redis is not read, because the client does not read.
    paused: Cell<bool>,
    /// Nothing more will be sent.
    pub(super) finishing: Cell<bool>,
    pub(super) closing: Cell<bool>,
    pub(super) closed: Cell<bool>,
    next_fill: Cell<u32>,
    /// Whether Redis has let this connection's last MULTI begin a transaction; none while it has not answered.
    pub(super) begun: Cell<Option<bool>>,
    /// It has state that could not be ended: nobody else may get it.
    pub(super) tainted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Sessions that wait for room in `out`.
    pub(super) crowd: RefCell<Vec<Rc<Client>>>,
}

impl Link {
    /// A link that begins to connect once its task ([`Link::run`]) runs.
    pub fn new(gate: Arc<Gate>, account: Account, owner: Option<Rc<Client>>) -> Rc<Self> {
        let upstream = gate.upstreams.register();
        Rc::new_cyclic(|me| Self {
            me: me.clone(),
            gate,
            upstream,
            account: RefCell::new(account),
            owner: RefCell::new(owner),
            out: RefCell::default(),
            expected: RefCell::default(),
            subscriptions: Subscriptions::default(),
            monitoring: Cell::new(false),
            introduction: RefCell::new(Introduction::First),
            unnamed: RefCell::default(),
            outcast: Cell::new(false),
            served: Cell::new(false),
            refused: RefCell::default(),
            partly: Cell::new(false),
            retired: Cell::new(false),
            paused: Cell::new(false),
            finishing: Cell::new(false),
            closing: Cell::new(false),
            closed: Cell::new(false),
            next_fill: Cell::new(0),
            begun: Cell::new(None),
            tainted: Cell::new(false),
            waker: RefCell::default(),
            crowd: RefCell::default(),
        })
    }

    /// Sends a command. `write` appends its bytes.
    pub fn send(&self, write: impl FnOnce(&mut BytesMut), expected: Expected) {
        if self.closed.get() {
            // Nobody reads the queue any more.
            return self.refuse(&expected);
        }
        if !matches!(expected.delivery, Delivery::Hidden) {
            expected.client.sent();
        }
        write(&mut self.out());
        self.upstream.count_sent();
        self.expected.borrow_mut().push_back(expected);
        self.wake();
    }

    /// Sends a command once more whose reply was kept back.
    pub(super) fn send_again(&self, request: &[u8], expected: Expected) {
        self.out().extend_from_slice(request);
        self.upstream.count_sent();
        self.expected.borrow_mut().push_back(expected);
        self.wake();
    }

    /// The link, for what outlives a borrow of it; none while it is being dropped.
    pub(super) fn me(&self) -> Option<Rc<Link>> {
        self.me.upgrade()
    }

    /// Sends bytes whose replies are not told apart.
    pub fn send_raw(&self, bytes: &[u8]) {
        if self.closed.get() {
            // Nobody will write them.
            return;
        }
        self.out().extend_from_slice(bytes);
        self.wake();
    }

    fn out(&self) -> RefMut<'_, BytesMut> {
        let mut out = self.out.borrow_mut();
        if out.capacity() == 0 {
            *out = buffers::take();
        }
        out
    }

    /// A number for a fill that will be sent here.
    pub fn fill_id(&self) -> FillId {
        let next = self.next_fill.get();
        self.next_fill.set(next.wrapping_add(1));
        FillId(u64::from(self.upstream.number()) << 32 | u64::from(next))
    }

    /// Whether Redis knows this connection by name and we know its id, so that a fill on it can be ended.
    pub fn introduction(&self) -> Introduction {
        self.introduction.borrow().clone()
    }

    /// Wakes this client when something about the link changes.
    pub fn wait(&self, client: &Rc<Client>) {
        self.crowd.borrow_mut().push(client.clone());
    }

    /// Introduces the connection once more, after a login that was sent just before.
    pub fn introduce_again(&self, client: &Rc<Client>) {
        if *self.introduction.borrow() != Introduction::Done {
            self.rename(client);
        }
    }

    /// Gives the connection its name once more, behind a command that may have given it another.
    pub fn rename(&self, client: &Rc<Client>) {
        *self.introduction.borrow_mut() = Introduction::Again;
        let name = self.gate.upstreams.name(&self.upstream);
        self.send(
            |out| put_request(out, &[b"CLIENT", b"SETNAME", name.as_bytes()]),
            Expected::hidden(client, Meaning::Named),
        );
        self.send(|out| put_request(out, &[b"CLIENT", b"ID"]), Expected::hidden(client, Meaning::RedisId));
    }

    /// Redis has answered to the connection's name.
    pub(super) fn named(&self, reply: &[u8]) {
        let error = reply.strip_prefix(b"-").map(|error| String::from_utf8_lossy(error).trim_end().into());
        *self.unnamed.borrow_mut() = error;
    }

    /// Redis has told the connection's id, which ends an introduction.
    pub(super) fn identified(&self, reply: &[u8]) {
        let id = reply.strip_prefix(b":").and_then(|rest| integer(rest.trim_ascii_end()));
        *self.introduction.borrow_mut() = match (self.unnamed.take(), id) {
            (None, Some(id)) => {
                self.upstream.set_redis_id(id as u64);
                Introduction::Done
            }
            (Some(error), _) => Introduction::Refused(error),
            (None, None) => Introduction::Refused(String::from_utf8_lossy(reply).trim_end().into()),
        };
        self.crowd.borrow_mut().drain(..).for_each(|client| client.wake());
    }

    /// It has been introduced while it served: it is ended should it lead to another Redis than deletions go to.
    pub(super) fn look_where_it_leads(&self) {
        if self.gate.observe || *self.introduction.borrow() != Introduction::Done {
            return;
        }
        let (gate, upstream) = (self.gate.clone(), self.upstream.clone());
        spawn_local(async move {
            if gate.upstreams.verify(&upstream).await.is_err() {
                upstream.doom();
            }
        });
    }

    /// A MULTI is about to be sent. Where one has worked, the next is trusted to.
    pub fn begin(&self) {
        if self.begun.get() != Some(true) {
            self.begun.set(None);
        }
    }

    /// Redis may take it for another user's: whether that one may MULTI has to be seen.
    pub(super) fn may_be_another(&self) {
        self.begun.set(None);
    }

    /// Whether the last MULTI began a transaction; none while Redis has not answered it.
    pub fn begun(&self) -> Option<bool> {
        self.begun.get()
    }

    /// Whether it has state that could not be ended.
    pub fn is_tainted(&self) -> bool {
        self.tainted.get()
    }

    /// From the next byte on, everything goes to the owner as it comes.
    pub(super) fn monitor(&self) {
        self.monitoring.set(true);
    }

    /// Whether nothing that comes answers anything any more.
    pub(super) fn is_monitoring(&self) -> bool {
        self.monitoring.get()
    }

    /// Who it is to Redis.
    pub fn account(&self) -> Ref<'_, Account> {
        self.account.borrow()
    }

    /// Whether it is of this client's account.
    pub fn is_of(&self, client: &Client) -> bool {
        let account = self.account.borrow();
        // Where it is not known which db the client is in, this is the connection that it is in.
        client.db.get().is_none_or(|db| db == account.db)
            && account.protocol == client.protocol.get()
            && account.since == client.since.get()
            && account.login == *client.login.borrow()
    }

    /// Whose pin this is.
    pub(super) fn owner(&self) -> Option<Rc<Client>> {
        self.owner.borrow().clone()
    }

    /// What those are told whose commands it will not carry.
    pub(super) fn last_words(&self, why: &str) -> String {
        match &*self.refused.borrow() {
            // Redis's own: it is busy with a script, most likely.
            Some(error) => format!("-{error}\r\n"),
            None => format!("-ERR cachefence: upstream {}: {why}\r\n", self.gate.address),
        }
    }

    /// Whether Redis would not take its login.
    pub(super) fn is_outcast(&self) -> bool {
        self.outcast.get()
    }

    /// The room that requests take which Redis has not taken, in bytes.
    pub(super) fn unsent(&self) -> usize {
        self.out.borrow().capacity()
    }

    /// Whether the session has to wait before it sends more.
    pub fn is_crowded(&self, client: &Rc<Client>) -> bool {
        // One that has ended will never have room, and need not: it takes nothing.
        let crowded = !self.closed.get() && self.out.borrow().len() > self.high_water();
        if crowded {
            self.crowd.borrow_mut().push(client.clone());
        }
        crowded
    }

    /// How many bytes of requests may wait here. On a pin they are one client's, and nobody gains from more of a large value
    /// than Redis can take at a time; a buffer that is filled while it is written can have room for several times as much.
    fn high_water(&self) -> usize {
        if self.owner.borrow().is_some() { OWNER_HIGH_WATER } else { HIGH_WATER }
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether it can be used.
    pub fn is_open(&self) -> bool {
        !self.closed.get() && !self.closing.get() && !self.finishing.get()
    }

    /// Nothing more will be sent: Redis answers what it can and closes, as it does to a client that is gone.
    pub fn finish(&self) {
        if !self.finishing.replace(true) {
            self.wake();
        }
    }

    /// Ends it. Fills that were not answered are ended on Redis's side too.
    pub fn close(&self) {
        self.closing.set(true);
        self.wake();
    }

    /// Gives a pin to another owner, or to none while it waits for one.
    pub fn own(&self, owner: Option<Rc<Client>>) {
        *self.owner.borrow_mut() = owner;
        // It may have stopped reading for the owner before.
        self.wake();
    }

    /// A client has read: go on reading Redis, if that had stopped.
    pub fn resume(&self) {
        if self.paused.get() && !self.reader_is_slow() {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The link's task: connects, then carries commands and replies until the end.
    pub async fn run(self: Rc<Self>) {
        let _ending = Ending(self.clone());
        let why = match timeout(CONNECT_TIMEOUT, self.gate.address.connect()).await {
            Ok(Ok(stream)) if self.may_not_have(stream.descriptor()) => {
                "no file descriptor is left for clients".to_owned()
            }
            Ok(Ok(stream)) => self.serve(stream).await,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer to the connection request, or to the TLS handshake".to_owned(),
        };
        self.end(&why);
    }

    fn may_not_have(&self, descriptor: RawFd) -> bool {
        let is_pin = self.owner.borrow().is_some();
        if is_pin { is_kept_from_clients(descriptor) } else { is_kept_from_lanes(descriptor) }
    }

    async fn serve(&self, mut stream: Transport) -> String {
        let mut reading = Reading::new();
        // Before anything else is sent, Redis has to know whose connection this is: a fill that was sent on
        // one without a name could not be ended by a successor.
        match timeout(CONNECT_TIMEOUT, self.introduce(&mut stream, &mut reading)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "connected, but no answer".to_owned(),
        }
        // Behind the address there may be another Redis than before, which nobody has brought level yet. One that has
        // to log in first is looked at when it has its name.
        if !self.gate.observe && *self.introduction.borrow() == Introduction::Done {
            match timeout(CONNECT_TIMEOUT, self.gate.upstreams.verify(&self.upstream)).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => return why,
                Err(_) => return "connected, but it is not known where to".to_owned(),
            }
        }
        self.served.set(true);
        let mut doomed = pin!(self.upstream.doomed());
        let served = std::future::poll_fn(|cx| {
            if doomed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::other(
                    "it was not answered in time, or Redis was replaced",
                )));
            }
            self.poll(&mut stream, &mut reading, cx)
        });
        match served.await {
            Ok(()) => "the connection was closed".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    async fn introduce(&self, stream: &mut Transport, reading: &mut Reading) -> io::Result<()> {
        let mut request = BytesMut::new();
        let replies = self.account.borrow().put_introduction(&mut request);
        put_request(
            &mut request,
            &[b"CLIENT", b"SETNAME", self.gate.upstreams.name(&self.upstream).as_bytes()],
        );
        put_request(&mut request, &[b"CLIENT", b"ID"]);
        stream.write_all(&request).await?;
        for _ in 0..replies {
            let reply = reading.next(stream).await?;
            if let Some(error) = reply.strip_prefix(b"-") {
                let of_login = [&b"WRONGPASS"[..], b"NOAUTH", b"NOPERM"];
                self.outcast.set(of_login.iter().any(|code| error.starts_with(code)));
                let error = String::from_utf8_lossy(error).trim_end().to_owned();
                *self.refused.borrow_mut() = Some(error.clone());
                return Err(io::Error::other(error));
            }
        }
        let (name, id) = (reading.next(stream).await?, reading.next(stream).await?);
        // One that was begun since, after a login, counts instead.
        if *self.introduction.borrow() == Introduction::First {
            self.named(&name);
            self.identified(&id);
        }
        Ok(())
    }

    fn poll(
        &self,
        stream: &mut Transport,
        reading: &mut Reading,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        if self.closing.get() {
            return Poll::Ready(Ok(()));
        }
        self.poll_write(stream, cx)?;
        let mut moved: u32 = 0;
        if self.retired.get() && self.expected.borrow().is_empty() {
            self.closing.set(true);
            return Poll::Ready(Ok(()));
        }
        if self.finishing.get() && self.out.borrow().is_empty() {
            // Done at once, and done twice without harm.
            let _ = Pin::new(&mut *stream).poll_shutdown(cx)?;
        }
        loop {
            self.paused.set(self.reader_is_slow());
            if self.paused.get() {
                break;
            }
            if reading.incoming.capacity() == 0 {
                reading.incoming = buffers::take();
            }
            reading.incoming.reserve(READ_CHUNK);
            match poll_read_buf(Pin::new(&mut *stream), cx, &mut reading.incoming) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(_)) => {
                    moved = moved.wrapping_add(1);
                    self.take_replies(reading)?;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    buffers::give_back(&mut reading.incoming);
                    break;
                }
            }
            if self.retired.get() && self.expected.borrow().is_empty() {
                self.closing.set(true);
                return Poll::Ready(Ok(()));
            }
        }
        let waiting =
            !self.paused.get() && self.owner.borrow().is_none() && !self.expected.borrow().is_empty();
        self.upstream.moved(moved, waiting);
        Poll::Pending
    }

    fn poll_write(&self, stream: &mut Transport, cx: &mut Context<'_>) -> io::Result<()> {
        let mut out = self.out.borrow_mut();
        while !out.is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, &out) {
                Poll::Ready(written) => out.advance(written?),
                Poll::Pending => break,
            }
        }
        if out.is_empty() && failpoint::is_armed(Point::Forwarded) {
            let fills = |expected: &Expected| !expected.meaning.fills().is_empty();
            self.expected
                .borrow()
                .iter()
                .filter(|due| fills(due))
                .for_each(|_| failpoint::pass(Point::Forwarded));
        }
        buffers::give_back(&mut out);
        if out.len() <= self.high_water() {
            self.crowd.borrow_mut().drain(..).for_each(|client| client.wake());
        }
        Ok(())
    }

    /// A pin is read only as fast as its owner reads. A lane is always read: one client must not hold up the others,
    /// and is cut off instead. But a lane on which a large reply meets a slow reader is shared no longer, so that
    /// nobody new gets behind it; and with nobody behind it, it need not be held in memory.
    fn reader_is_slow(&self) -> bool {
        if let Some(owner) = &*self.owner.borrow() {
            return owner.waiting() > OWNER_HIGH_WATER;
        }
        let expected = self.expected.borrow();
        let Some(due) = expected.front() else { return false };
        if !self.partly.get() || due.client.waiting() <= OWNER_HIGH_WATER {
            return false;
        }
        self.retired.set(true);
        expected.iter().all(|behind| Rc::ptr_eq(&behind.client, &due.client))
    }

    /// Whether clients that have nothing to come from it must go elsewhere.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    fn refuse(&self, expected: &Expected) {
        // Never sent: nothing to end on Redis's side.
        self.gate.finish(expected.meaning.fills());
        if matches!(expected.delivery, Delivery::Hidden | Delivery::Drop) {
            return;
        }
        expected.client.reply(format!("-ERR cachefence: upstream {}: not connected\r\n", self.gate.address));
    }
}

/// Ends a link whose task ended without: by a panic, or with its thread. The fills on it would be under way for ever, and the
/// feed would wait for them.
struct Ending(Rc<Link>);

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.0.closed.get() {
            self.0.end("the proxy has given it up");
        }
    }
}

/// How far the link has got in introducing itself to Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Introduction {
    /// Under way; nothing that clients send goes out before it is done.
    First,
    /// Under way once more, behind a login.
    Again,
    /// Redis knows the connection by name, and we know its id.
    Done,
    /// Redis refused, in these words. No fill of a guarded key may be sent.
    Refused(String),
}

#[cfg(test)]
mod tests;
