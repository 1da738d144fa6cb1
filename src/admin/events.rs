//! What the page is told while it is open, as server-sent events: how things are, every second.
//!
//! A stream that nobody reads cannot be told from one that is read slowly: what is sent waits in the system's buffers,
//! for minutes. So their number is bounded, and another one ends the oldest, whose page comes back by itself. None of
//! them waits for another, and no probe for any.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Duration, MissedTickBehavior, interval};

use super::AdminSource;
use super::history::{self, History};

/// Streams at a time.
pub(super) const MAX_STREAMS: usize = 16;
/// Events that wait for a reader; one that has so many waiting is gone.
const WAITING: usize = 8;
const TICK: Duration = Duration::from_secs(1);

/// What is answered: all at once, or events until either side has enough.
#[derive(Debug)]
pub(super) enum Answer {
    /// All at once.
    Whole(Full<Bytes>),
    /// Events as they come.
    Events(mpsc::Receiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
            Self::Events(events) => events.poll_recv(context).map(|event| event.map(|e| Ok(Frame::data(e)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// A connection, seen from its streams.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// It is to be closed, whatever has been sent.
    pub(super) gone: Notify,
    streams: std::sync::atomic::AtomicBool,
}

impl Connection {
    /// A stream goes over it.
    pub(super) fn is_stream(&self) -> bool {
        self.streams.load(std::sync::atomic::Ordering::Relaxed)
    }
}

struct Stream {
    events: mpsc::Sender<Bytes>,
    connection: Arc<Connection>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.gone.notify_one();
    }
}

/// The open streams, the oldest first, and what a new one is told at once.
#[derive(Default)]
pub(super) struct Streams {
    open: Mutex<Vec<Stream>>,
    history: Mutex<History>,
}

impl Streams {
    /// One more, which is told of the last fifteen minutes and of now.
    pub(super) fn open(&self, source: &dyn AdminSource, connection: &Arc<Connection>) -> Answer {
        let (events, receiver) = mpsc::channel(WAITING);
        let history = json!(self.history.lock().unwrap_or_else(PoisonError::into_inner).samples());
        // There is room for both.
        let _ = events.try_send(event("history", &history));
        let _ = events.try_send(event("now", &source.glance()));
        connection.streams.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of pages that were closed are not known to be so before something is sent.
        open.retain(|stream| !stream.events.is_closed());
        if open.len() >= MAX_STREAMS {
            open.remove(0);
        }
        open.push(Stream { events, connection: connection.clone() });
        Answer::Events(receiver)
    }

    /// Tells all of them what is now, for ever.
    pub(super) async fn run(self: Arc<Self>, source: Arc<dyn AdminSource>) -> Infallible {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let every = history::INTERVAL.as_secs();
        let mut tick = 0;
        loop {
            ticks.tick().await;
            if tick % every == 0 {
                let sample = source.sample();
                self.tell("sample", || json!(sample));
                self.history.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            }
            tick += 1;
            self.tell("now", || source.glance());
        }
    }

    fn tell(&self, name: &str, what: impl FnOnce() -> serde_json::Value) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_empty() {
            return;
        }
        let event = event(name, &what());
        open.retain(|stream| stream.events.try_send(event.clone()).is_ok());
    }
}

/// JSON has no line ends, so it is one line of data.
fn event(name: &str, data: &serde_json::Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}
