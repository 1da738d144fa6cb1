//! A session: one client's socket, from its bytes to commands and from replies to its bytes.
//!
//! One task does both directions without a buffer in between: it reads what is there, cuts it into commands,
//! appends them to a link, and writes what the links have delivered. It stops reading while its client does
//! not read, while a link is crowded, and while a command has to wait for those before it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::io::poll_read_buf;

use super::buffered::Share;
use super::buffers;
use super::client::Client;
use super::drain::Stage;
use super::expect::Expected;
use super::gate::Gate;
use super::held::Held;
use super::link::Link;
use super::route::{Lane, Links};
use super::transaction::Transaction;
use super::wait::Wait;
use crate::resp::{RequestScanner, Scanned, put_request};
use crate::transport::Transport;

/// Commands of one client that may be on their way at a time.
const MAX_OUTSTANDING: u64 = 16 * 1024;
/// Replies that wait for the client, in bytes, beyond which no more of its commands are taken.
const OUT_HIGH_WATER: usize = 1024 * 1024;
/// Requests that are read ahead while commands have to wait, in bytes.
const READ_AHEAD: usize = 64 * 1024;
/// ... and while it waits in Redis, for the feed, or for somebody else's fill.
const READ_AHEAD_BLOCKED: usize = 64 * 1024 * 1024;
/// The largest request, in bytes, as Redis's default `client-query-buffer-limit`.
const MAX_REQUEST: usize = 1024 * 1024 * 1024;
/// What is read at a time at least, in bytes.
const READ_CHUNK: usize = 8 * 1024;
/// A client that lets this many bytes of replies pile up is cut off: more than the largest reply there is.
const OUT_HARD_LIMIT: usize = 1024 * 1024 * 1024;
/// ... and so is one that is never below this many for so long.
const OUT_SOFT_LIMIT: (usize, Duration) = (64 * 1024 * 1024, Duration::from_secs(60));
/// How long a client whose connection the proxy ends is listened to, at most, until it has closed its side too. To close a
/// socket with bytes in it that nobody has read takes back the last replies, which the client may not have read yet.
const LINGER: Duration = Duration::from_millis(200);
/// Reads in one turn, after which other clients have theirs.
const TURN: usize = 16;

/// One client.
pub struct Session {
    pub(super) gate: Arc<Gate>,
    pub(super) links: Rc<Links>,
    pub(super) client: Rc<Client>,
    stream: Transport,
    incoming: BytesMut,
    scanner: RequestScanner,
    /// A request that goes out while it comes in.
    pub(super) large: Option<Large>,
    /// Its place on the lane of its account, once it has used it.
    pub(super) lane: Option<Lane>,
    /// The upstream connection of its own, while it needs one.
    pub(super) pin: Option<Rc<Link>>,
    /// The link on which a fill waits for Redis to know it by name.
    pub(super) introducing: Option<Rc<Link>>,
    pub(super) watching: bool,
    pub(super) transaction: Option<Transaction>,
    /// The next command waits for the feed.
    pub(super) waiting: Option<Wait>,
    /// A command was sent after which the next has to wait for its reply.
    pub(super) barrier: bool,
    /// It waits in Redis, perhaps for ever.
    pub(super) blocking: bool,
    pub(super) replies: Replies,
    /// The command at hand gets no reply (CLIENT REPLY).
    pub(super) muted: bool,
    /// No more commands are taken; it is closed when all replies are out.
    pub(super) closing: bool,
    ended: bool,
    /// A command that is there has yet to be taken.
    held_up: bool,
    /// What is held for it.
    share: Share,
    /// When a client that lets its replies pile up is cut off.
    cut_off: Option<Pin<Box<Sleep>>>,
    /// All is said; until when the other side is waited for.
    lingering: Option<Pin<Box<Sleep>>>,
}

/// A request of which a part has gone out.
pub(super) struct Large {
    /// Where it goes.
    pub(super) link: Rc<Link>,
    /// The part of the buffered request that has gone out: everything before the large argument's bytes.
    pub(super) head: usize,
    /// How many of the client's commands had been sent before it.
    pub(super) before: u64,
}

/// What became of the bytes of a large argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passing {
    /// They went out, or the request has to be there as a whole.
    More,
    /// They have to wait for the commands before them, or for room.
    Wait,
}

/// `CLIENT REPLY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replies {
    On,
    Off,
    SkipNext,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It was taken.
    Done,
    /// It has to wait until the commands before it are answered, or a link has room; it will be offered again.
    Wait,
}

impl Session {
    /// A session on a new connection.
    pub fn new(gate: Arc<Gate>, links: Rc<Links>, client: Rc<Client>, stream: Transport) -> Self {
        links.served.came(&client);
        let share = Share::new(client.id);
        Self {
            gate,
            links,
            client,
            stream,
            incoming: BytesMut::new(),
            scanner: RequestScanner::default(),
            large: None,
            lane: None,
            pin: None,
            introducing: None,
            watching: false,
            transaction: None,
            waiting: None,
            barrier: false,
            blocking: false,
            replies: Replies::On,
            muted: false,
            closing: false,
            ended: false,
            held_up: false,
            share,
            cut_off: None,
            lingering: None,
        }
    }

    /// Serves the client until it or its connection ends.
    ///
    /// # Errors
    /// When the socket fails, or the client was cut off.
    pub async fn run(mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.client.set_waker(cx.waker());
        let stage = self.links.served.stage();
        if stage == Stage::Over {
            return Poll::Ready(Ok(()));
        }
        if self.lingering.is_some() {
            return self.linger(cx);
        }
        for _ in 0..TURN {
            if let Some(wait) = &mut self.waiting {
                wait.poll(cx);
            }
            let starved = self.take_commands();
            let crowded = self.client.waiting() > OUT_HIGH_WATER;
            self.poll_write(cx)?;
            self.check_limits(cx)?;
            if crowded && self.client.waiting() <= OUT_HIGH_WATER {
                // Commands that waited for room have it now, and nobody else would come back to them.
                continue;
            }
            if stage > Stage::Serving {
                self.client.rest(self.waits_for_ever());
            }
            if stage == Stage::Leaving && starved && self.transaction.is_none() {
                // All that has come whole is taken.
                self.closing = true;
            }
            if (self.ended || stage == Stage::Leaving)
                && self.blocking
                && let Some(pin) = &self.pin
            {
                // As if the client were connected to Redis itself: it answers what it can, and then closes.
                pin.finish();
            }
            if self.ended {
                self.client.hurry();
            }
            if (self.closing || self.ended) && self.is_answered() {
                let is_wanted = !self.ended && stage > Stage::Serving;
                return if is_wanted { self.linger(cx) } else { Poll::Ready(Ok(())) };
            }
            // While it waits in Redis, for the feed or for a fill, perhaps for long, nothing but its socket can tell that it is gone.
            let waits = self.blocking || self.waiting.is_some() || self.client.is_parked();
            let ahead = if waits { READ_AHEAD_BLOCKED } else { READ_AHEAD };
            let full = !starved && self.incoming.len() >= ahead;
            if self.closing || self.ended || full {
                return Poll::Pending;
            }
            // A large argument is read in few pieces.
            let missing = self.scanner.missing(self.incoming.len());
            if self.incoming.capacity() == 0 {
                self.incoming = buffers::take();
            }
            self.incoming.reserve(missing.clamp(READ_CHUNK, READ_CHUNK * 16));
            match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.incoming) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    buffers::give_back(&mut self.incoming);
                    let may_go = stage > Stage::Serving && self.has_nothing_under_way();
                    return if may_go { self.linger(cx) } else { Poll::Pending };
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether the client can be let go without breaking off anything that it has begun.
    fn has_nothing_under_way(&self) -> bool {
        let has_begun = !self.incoming.is_empty()
            || self.large.is_some()
            || self.waiting.is_some()
            || self.watching
            || self.transaction.is_some();
        !has_begun && !self.waits_for_ever() && self.is_answered()
    }

    /// It waits in Redis, perhaps for ever, or listens.
    fn waits_for_ever(&self) -> bool {
        let held = self.client.held();
        let listens = held.has(Held::SUBSCRIBED) || held.has(Held::MONITORS);
        (self.blocking && self.client.outstanding() > 0) || (listens && self.is_answered())
    }

    /// Says that nothing more comes, and waits until the client has done so too, for a moment: what it still sends is not
    /// executed, and it gets what was said before.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.client.rest(true);
        let until = self.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // Done again without harm.
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        let mut unread = [0; 1024];
        loop {
            let mut unread = ReadBuf::new(&mut unread);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut unread))?;
            if unread.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Takes all commands that are there and need not wait. True if more bytes are needed for the next.
    fn take_commands(&mut self) -> bool {
        if self.incoming.is_empty() && self.large.is_none() && !self.closing {
            // Woken to write a reply, most likely.
            self.held_up = false;
            return !self.has_to_wait();
        }
        // Taken out of `self`, so that commands can be borrowed from them while they are dealt with.
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut scanner = std::mem::take(&mut self.scanner);
        let mut taken = 0;
        let mut commands = 0;
        self.held_up = false;
        let starved = loop {
            if self.closing || self.has_to_wait() {
                break false;
            }
            let bytes = &incoming[taken..];
            scanner.set_stranger(self.client.is_stranger(&self.gate.upstreams.strangers));
            let (length, step) = match scanner.scan(bytes) {
                Ok(Scanned::Partial) => {
                    incoming.advance(std::mem::take(&mut taken));
                    if self.pass_on(&mut scanner, &mut incoming) == Passing::Wait {
                        self.held_up = true;
                        break false;
                    }
                    if scanner.missing(0) > MAX_REQUEST {
                        self.client.reply("-ERR Protocol error: request too big\r\n");
                        self.closing = true;
                        break false;
                    }
                    break true;
                }
                Ok(Scanned::Nothing(length)) => (length, Step::Done),
                Ok(Scanned::Request(length)) => (length, self.take_whole(&scanner, &bytes[..length])),
                Ok(Scanned::Inline(length, words)) => (length, self.take_inline(&words)),
                Err(error) => {
                    self.client.reply(format!("-ERR {error}\r\n"));
                    self.closing = true;
                    break false;
                }
            };
            if step == Step::Wait {
                self.held_up = true;
                break false;
            }
            commands += 1;
            taken += length;
            scanner.reset();
        };
        incoming.advance(taken);
        buffers::give_back(&mut incoming);
        (self.incoming, self.scanner) = (incoming, scanner);
        if commands > 0 {
            self.gate.metrics.commands.inc_by(commands);
        }
        starved
    }

    fn take_whole(&mut self, scanner: &RequestScanner, request: &[u8]) -> Step {
        let arguments = scanner.arguments(request);
        let Some(head) = self.large.as_ref().map(|large| large.head) else { return self.take(arguments) };
        if self.client.outstanding() > 0 && self.transaction.is_none() {
            // Should it be refused, its pin is closed, which nothing may be waiting for.
            return Step::Wait;
        }
        let step = self.take(arguments.after(head));
        if step == Step::Done {
            self.end_large();
        }
        step
    }

    fn take_inline(&mut self, words: &[Vec<u8>]) -> Step {
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let mut request = BytesMut::new();
        put_request(&mut request, &words);
        let mut scanner = RequestScanner::default();
        match scanner.scan(&request) {
            Ok(Scanned::Request(_)) => self.take(scanner.arguments(&request)),
            // What was just put can be scanned.
            _ => Step::Done,
        }
    }

    fn has_to_wait(&mut self) -> bool {
        if self.barrier {
            if self.client.outstanding() > 0 {
                return true;
            }
            (self.barrier, self.blocking) = (false, false);
        }
        self.client.is_parked()
            || self.client.outstanding() >= MAX_OUTSTANDING
            || self.client.own_waiting() as u64 >= MAX_OUTSTANDING
            || self.client.waiting() > OUT_HIGH_WATER
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut out = self.client.out();
        while !out.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &out) {
                Poll::Ready(written) => out.advance(written?),
                Poll::Pending => break,
            }
        }
        buffers::give_back(&mut out);
        drop(out);
        // It may have stopped reading while this client did not read.
        if let Some(pin) = &self.pin {
            pin.resume();
        } else if let Some(lane) = &self.lane {
            lane.link.resume();
        }
        Ok(())
    }

    fn check_limits(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.client.is_broken() {
            return Err(io::Error::other("its upstream connection was lost"));
        }
        let held = self.held();
        if !self.share.hold(&self.gate.buffered, held, cx.waker()) {
            return Err(io::Error::other("all clients together hold more than proxy.max_buffered"));
        }
        let waiting = self.client.waiting();
        let (soft, time) = OUT_SOFT_LIMIT;
        if waiting <= soft {
            self.cut_off = None;
            return Ok(());
        }
        let cut_off = self.cut_off.get_or_insert_with(|| Box::pin(sleep(time)));
        if waiting > OUT_HARD_LIMIT || cut_off.as_mut().poll(cx).is_ready() {
            return Err(io::Error::other("the client does not read its replies"));
        }
        Ok(())
    }

    /// What is held for it, in bytes, about: all that it can make grow.
    fn held(&mut self) -> usize {
        let out = self.client.out().capacity();
        let pin = self.pin.as_ref().map_or(0, |pin| pin.unsent());
        let queued = self.transaction.as_ref().map_or(0, |transaction| transaction.bytes);
        let expected = self.client.outstanding() as usize * size_of::<Expected>();
        self.share.of_buffers(self.incoming.capacity(), out) + pin + queued + expected
    }

    /// Nothing is left to wait for. A client that has closed its side of a stream has nothing to wait for either, nor has
    /// one whose next command waits for the feed: as Redis does with a client that waits in it.
    fn is_answered(&self) -> bool {
        let hopeless = self.ended && self.is_monitoring();
        // What it has said in full is done, although it says no more: a fill, perhaps, whose link is yet to be opened.
        let has_more = self.held_up && !self.closing && self.waiting.is_none();
        hopeless
            || (!has_more
                && self.client.outstanding() == 0
                && self.client.own_waiting() == 0
                && self.client.waiting() == 0)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.links.served.left(self.client.id);
        self.client.leave();
        self.share.release(&self.gate.buffered);
        if let Some(large) = self.large.take() {
            self.abandon(&large);
        }
        if let Some(pin) = self.pin.take() {
            if self.keeps_pin() || self.client.outstanding() > 0 {
                pin.close();
            } else {
                self.links.release(pin);
            }
        }
    }
}
