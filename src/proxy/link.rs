//! A link: one connection to Redis. Shared by many clients it is a lane, owned by one it is a pin.
//!
//! Commands are appended to one buffer, and what was expected of each to one queue; the link's task writes
//! the buffer once all clients that had something to say have said it, so that commands of many clients
//! leave in one write. Replies come in that order, and go to the clients in one wake-up each.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

use super::client::Client;
use super::expect::{Delivery, Expected, Meaning, executed};
use super::gate::Gate;
use super::shape::{each_missed, is_nil, missed, with_nils};
use crate::cache::{AbandonedFill, Fate, Upstream};
use crate::command::Miss;
use crate::fence::FillId;
use crate::resp::{ReplyScanner, integer, put_request};
use crate::transport::Transport;

/// How long Redis may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests that wait for Redis, in bytes, beyond which clients of this link are no longer read.
pub const HIGH_WATER: usize = 4 * 1024 * 1024;
/// Replies that wait for a pin's owner, in bytes, beyond which Redis is no longer read.
const OWNER_HIGH_WATER: usize = 1024 * 1024;
const READ_CHUNK: usize = 64 * 1024;
/// An emptied buffer above this size is given back.
const KEEP_CAPACITY: usize = 256 * 1024;

/// One connection to Redis.
pub struct Link {
    gate: Arc<Gate>,
    upstream: Arc<Upstream>,
    /// Whose pin this is; none for a lane.
    owner: RefCell<Option<Rc<Client>>>,
    out: RefCell<BytesMut>,
    expected: RefCell<VecDeque<Expected>>,
    /// Replies do not answer requests one by one any more: all bytes go to the owner.
    streaming: Cell<bool>,
    introduction: RefCell<Introduction>,
    /// A part of the reply that is due has been delivered.
    partly: Cell<bool>,
    /// Redis is not read, because the owner does not read.
    paused: Cell<bool>,
    /// Nothing more will be sent.
    finishing: Cell<bool>,
    closing: Cell<bool>,
    closed: Cell<bool>,
    next_fill: Cell<u32>,
    /// Whether Redis has let this connection's last MULTI begin a transaction; none while it has not answered.
    begun: Cell<Option<bool>>,
    /// It has state that could not be ended: nobody else may get it.
    tainted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Sessions that wait for room in `out`.
    crowd: RefCell<Vec<Rc<Client>>>,
}

impl Link {
    /// A link that begins to connect once its task ([`Link::run`]) runs.
    pub fn new(gate: Arc<Gate>, owner: Option<Rc<Client>>) -> Rc<Self> {
        let upstream = gate.upstreams.register();
        Rc::new(Self {
            gate,
            upstream,
            owner: RefCell::new(owner),
            out: RefCell::default(),
            expected: RefCell::default(),
            streaming: Cell::new(false),
            introduction: RefCell::new(Introduction::First),
            partly: Cell::new(false),
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
        write(&mut self.out.borrow_mut());
        self.expected.borrow_mut().push_back(expected);
        self.wake();
    }

    /// Sends bytes whose replies are not told apart.
    pub fn send_raw(&self, bytes: &[u8]) {
        self.out.borrow_mut().extend_from_slice(bytes);
        self.wake();
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
        *self.introduction.borrow_mut() = Introduction::Again;
        let name = self.gate.upstreams.name(&self.upstream);
        let expected = |meaning| Expected { client: client.clone(), delivery: Delivery::Hidden, meaning };
        self.send(
            |out| put_request(out, &[b"CLIENT", b"SETNAME", name.as_bytes()]),
            expected(Meaning::Named),
        );
        self.send(|out| put_request(out, &[b"CLIENT", b"ID"]), expected(Meaning::RedisId));
    }

    fn named(&self, reply: &[u8]) {
        if let Some(error) = reply.strip_prefix(b"-") {
            *self.introduction.borrow_mut() =
                Introduction::Refused(String::from_utf8_lossy(error).trim_end().into());
        }
    }

    fn identified(&self, reply: &[u8]) {
        let id = reply.strip_prefix(b":").and_then(|rest| integer(rest.trim_ascii_end()));
        let mut introduction = self.introduction.borrow_mut();
        if !matches!(*introduction, Introduction::Refused(_)) {
            *introduction = match id {
                Some(id) => {
                    self.upstream.set_redis_id(id as u64);
                    Introduction::Done
                }
                None => Introduction::Refused(String::from_utf8_lossy(reply).trim_end().into()),
            };
        }
        drop(introduction);
        self.crowd.borrow_mut().drain(..).for_each(|client| client.wake());
    }

    /// A MULTI is about to be sent. Where one has worked, the next is trusted to.
    pub fn begin(&self) {
        if self.begun.get() != Some(true) {
            self.begun.set(None);
        }
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
    pub fn stream(&self) {
        self.streaming.set(true);
    }

    /// Whether the session has to wait before it sends more.
    pub fn is_crowded(&self, client: &Rc<Client>) -> bool {
        let crowded = self.out.borrow().len() > HIGH_WATER;
        if crowded {
            self.crowd.borrow_mut().push(client.clone());
        }
        crowded
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

    /// The owner has read: go on reading Redis, if that had stopped.
    pub fn resume(&self) {
        if self.paused.get() && !self.owner_is_slow() {
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
        let why = match timeout(CONNECT_TIMEOUT, self.gate.address.connect()).await {
            Ok(Ok(stream)) => self.serve(stream).await,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer to the connection request".to_owned(),
        };
        self.end(&why);
    }

    async fn serve(&self, mut stream: Transport) -> String {
        let mut reading =
            Reading { incoming: BytesMut::with_capacity(READ_CHUNK), scanner: ReplyScanner::default() };
        // Before anything else is sent, Redis has to know whose connection this is: a fill that was sent on
        // one without a name could not be ended by a successor.
        match timeout(CONNECT_TIMEOUT, self.introduce(&mut stream, &mut reading)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "connected, but no answer".to_owned(),
        }
        let mut doomed = pin!(self.upstream.doomed());
        let served = std::future::poll_fn(|cx| {
            if doomed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::other(
                    "a fill was not answered in time, or Redis was replaced",
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
        put_request(
            &mut request,
            &[b"CLIENT", b"SETNAME", self.gate.upstreams.name(&self.upstream).as_bytes()],
        );
        put_request(&mut request, &[b"CLIENT", b"ID"]);
        stream.write_all(&request).await?;
        self.named(&reading.next(stream).await?);
        self.identified(&reading.next(stream).await?);
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
        if self.finishing.get() && self.out.borrow().is_empty() {
            // Done at once, and done twice without harm.
            let _ = Pin::new(&mut *stream).poll_shutdown(cx)?;
        }
        loop {
            self.paused.set(self.owner_is_slow());
            if self.paused.get() {
                break;
            }
            reading.incoming.reserve(READ_CHUNK / 4);
            match poll_read_buf(Pin::new(&mut *stream), cx, &mut reading.incoming) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(_)) => self.take_replies(reading)?,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
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
        if out.is_empty() && out.capacity() > KEEP_CAPACITY {
            *out = BytesMut::new();
        }
        if out.len() <= HIGH_WATER {
            self.crowd.borrow_mut().drain(..).for_each(|client| client.wake());
        }
        Ok(())
    }

    /// A pin is read only as fast as its owner reads. A lane is always read: one client must not hold up
    /// the others, and is cut off instead.
    fn owner_is_slow(&self) -> bool {
        self.owner.borrow().as_ref().is_some_and(|owner| owner.waiting() > OWNER_HIGH_WATER)
    }

    fn take_replies(&self, reading: &mut Reading) -> io::Result<()> {
        let mut woken: Option<Rc<Client>> = None;
        while !reading.incoming.is_empty() {
            if self.streaming.get() && self.expected.borrow().is_empty() {
                if let Some(owner) = &*self.owner.borrow() {
                    owner.deliver(&reading.incoming);
                    owner.wake();
                }
                reading.incoming.clear();
                break;
            }
            let progress = reading.scanner.scan(&reading.incoming).map_err(io::Error::other)?;
            let mut expected = self.expected.borrow_mut();
            let Some(next) = expected.front() else {
                return Err(io::Error::other("Redis sent a reply that nothing had asked for"));
            };
            let client = next.client.clone();
            if progress.done {
                let reply = reading.incoming.split_to(progress.bytes);
                reading.scanner.reset();
                self.partly.set(false);
                let next = expected.pop_front();
                drop(expected);
                if let Some(next) = next {
                    self.replied(next, &reply);
                }
            } else if next.streams() && progress.bytes > 0 {
                // A large reply need not be held whole.
                if matches!(next.delivery, Delivery::Forward) {
                    client.deliver(&reading.incoming[..progress.bytes]);
                }
                reading.incoming.advance(progress.bytes);
                reading.scanner.take(progress.bytes);
                self.partly.set(true);
                client.wake();
                break;
            } else {
                break;
            }
            // Replies come in runs of one client: one wake-up a run.
            if !woken.as_ref().is_some_and(|last| Rc::ptr_eq(last, &client))
                && let Some(last) = woken.replace(client)
            {
                last.wake();
            }
        }
        if let Some(last) = woken {
            last.wake();
        }
        if reading.incoming.is_empty() && reading.incoming.capacity() > KEEP_CAPACITY {
            reading.incoming = BytesMut::with_capacity(READ_CHUNK);
        }
        Ok(())
    }

    fn replied(&self, expected: Expected, reply: &[u8]) {
        let Expected { client, delivery, meaning } = expected;
        let error = reply.first() == Some(&b'-');
        match meaning {
            Meaning::None => {}
            // Before the reply goes out: whoever reads the database after it sees what is settled now.
            Meaning::Read(miss, key) => {
                if let Some(missed) = missed(miss, reply) {
                    self.gate.read(&key, client.id, missed);
                }
            }
            Meaning::Reads(miss, keys) => {
                if miss == Miss::NilPerKey && !error {
                    let missed = each_missed(reply, keys.iter().map(|(place, _)| *place));
                    keys.iter()
                        .zip(missed)
                        .for_each(|((_, key), missed)| self.gate.read(key, client.id, missed));
                } else if let Some(missed) = missed(miss, reply) {
                    keys.iter().for_each(|(_, key)| self.gate.read(key, client.id, missed));
                }
            }
            // The cap of a fill, or the deletion of a torn value: ended by us, who have the right.
            Meaning::Fills(fills) if error && matches!(delivery, Delivery::Hidden) => {
                self.gate.upstreams.abandon(Fate::Unfinished, fills.into());
            }
            Meaning::Fills(fills) => self.gate.finish(&fills),
            Meaning::Named => self.named(reply),
            Meaning::RedisId => self.identified(reply),
            Meaning::Selected(db) => {
                if !error {
                    client.db.set(Some(db));
                }
            }
            Meaning::Executed(fills, db) => {
                self.gate.finish(&fills);
                match executed(reply) {
                    Some(true) => client.db.set(Some(db)),
                    Some(false) => {}
                    None => client.db.set(None),
                }
            }
            Meaning::Begun => self.begun.set(Some(!error)),
            Meaning::Cleared => self.tainted.set(self.tainted.get() || error),
        }
        match delivery {
            Delivery::Hidden => return,
            Delivery::Drop => {}
            Delivery::SetNx if reply.starts_with(b"+") => client.deliver(b":1\r\n"),
            Delivery::SetNx if is_nil(reply) => client.deliver(b":0\r\n"),
            Delivery::Replace(bytes) if !error => client.deliver(&bytes),
            Delivery::Nils(places) if !error => {
                client.deliver(&with_nils(reply, &places, client.protocol.get()))
            }
            Delivery::Forward | Delivery::SetNx | Delivery::Nils(_) | Delivery::Replace(_) => {
                client.deliver(reply)
            }
        }
        client.answered();
    }

    /// The end: what was not answered is answered with an error, and fills whose fate is unknown are handed
    /// over to be ended on Redis's side.
    fn end(&self, why: &str) {
        self.closed.set(true);
        let mut fills: Vec<AbandonedFill> = Vec::new();
        let error = format!("-ERR cachefence: upstream {}: {why}\r\n", self.gate.address);
        // In the middle of a reply nothing else makes sense. And what a client that is gone has sent after a
        // command that waited would never have been executed.
        if (self.partly.get() || self.finishing.get())
            && let Some(expected) = self.expected.borrow().front()
        {
            expected.client.break_off();
        }
        for expected in self.expected.take() {
            if let Meaning::Fills(unanswered) | Meaning::Executed(unanswered, _) = expected.meaning {
                fills.extend(unanswered);
            }
            if !matches!(expected.delivery, Delivery::Hidden) {
                if !matches!(expected.delivery, Delivery::Drop) && !self.finishing.get() {
                    expected.client.deliver(error.as_bytes());
                }
                expected.client.answered();
                expected.client.wake();
            }
        }
        if let Some(owner) = self.owner.take() {
            if self.streaming.get() {
                if *self.introduction.borrow() == Introduction::First {
                    // Nothing of the stream has come, in the middle of which an error would make no sense.
                    owner.deliver(error.as_bytes());
                }
                owner.break_off();
            }
            owner.wake();
        }
        self.crowd.borrow_mut().drain(..).for_each(|client| client.wake());
        if !self.closing.get() {
            self.gate.metrics.upstream_reconnects.inc();
            self.gate.upstreams.lost.notify_one();
        }
        if self.gate.observe {
            // Nothing is to be deleted, and nobody waits for them.
            self.gate.finish(&fills);
            fills.clear();
        }
        self.gate.upstreams.close(&self.upstream, fills);
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

struct Reading {
    incoming: BytesMut,
    scanner: ReplyScanner,
}

impl Reading {
    async fn next(&mut self, stream: &mut Transport) -> io::Result<BytesMut> {
        loop {
            let progress = self.scanner.scan(&self.incoming).map_err(io::Error::other)?;
            if progress.done {
                self.scanner.reset();
                return Ok(self.incoming.split_to(progress.bytes));
            }
            if stream.read_buf(&mut self.incoming).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
