//! The stream: one task owns the socket, reads what is there, applies all of it, acknowledges once.
//!
//! Somebody's COMMIT may wait for each acknowledgement, so it leaves as soon as the confirmable position has moved
//! or the server asks. It never leaves otherwise: the server answers some status messages, and two peers that
//! answer each other's answers fill the line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::apply::{Applied, Applier};
use super::job::{CacheJob, Room, Rooms};
use super::lag::ServerClock;
use super::patience::Patience;
use super::positions::Positions;
use super::state::FeedState;
use super::strict::Strict;
use crate::failpoint::{self, Point};
use crate::pg::error::PgError;
use crate::pg::pgoutput;
use crate::pg::replication::{Event, Status, Walsender};
use crate::position::Lsn;

/// A status message that does not leave within this time means that the connection is dead.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The server hears of us no more often than this if there is nothing to tell.
const BLOCKED_REPORT: Duration = Duration::from_secs(1);

/// When the process ends, what has been received is given so long to be deleted and to become visible, ...
const STOP_CONFIRMING: Duration = Duration::from_secs(2);
/// ... and Postgres so long to let go of the slot.
const STOP_LEAVING: Duration = Duration::from_secs(1);
/// A feed that is told to stop has returned after so long, or never will.
pub const STOP_WITHIN: Duration =
    STOP_CONFIRMING.saturating_add(STOP_LEAVING).saturating_add(Duration::from_secs(1));

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection, or Postgres.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// Bytes that pgoutput would not send.
    #[error(transparent)]
    Decode(#[from] pgoutput::DecodeError),
    /// Postgres did not take a status message.
    #[error("Postgres took no status message for {REPORT_TIMEOUT:?}")]
    Stuck,
    /// Nothing was heard, and asking did not help.
    #[error("no message from Postgres for {0:?}")]
    Silent(Duration),
    /// A broken guard was mended: the stream starts over, as after a gap.
    #[error("the catalog was mended")]
    Mended,
    /// Tables were altered, and Postgres 13 sends no messages that could tell where: the start of a stream compares.
    #[error("the catalog has changed")]
    Altered,
    /// Somebody moved the slot, or made it anew, while it was being taken: the stream starts over, as after a gap.
    #[error("the slot went from {from} to {to} while the stream was being started")]
    SlotMoved {
        /// Where it was.
        from: Lsn,
        /// Where it is.
        to: Lsn,
    },
    /// A reload has set other guards.
    #[error("the guards were changed")]
    Regarded,
    /// We were told to stop: all that could be confirmed is.
    #[error("stopped")]
    Stopped,
    /// Keys of transactions in progress that nothing else can stand for.
    #[error(
        "transactions in progress name more keys than can be held: from here on transactions are received when they commit"
    )]
    NoRoom,
    /// The cache's task is gone: the process is about to end.
    #[error("the cache's task has ended")]
    CacheGone,
}

/// What outlives one connection.
#[derive(Debug)]
pub(super) struct Stream {
    pub applier: Applier,
    pub positions: Arc<Positions>,
    pub state: Arc<FeedState>,
    pub jobs: mpsc::Sender<CacheJob>,
    pub rooms: Rooms,
    pub applied: watch::Receiver<Lsn>,
    /// The highest position that was ever confirmed in this history.
    pub confirmed: Lsn,
    pub feed_lost_after: Duration,
    /// How long it may be silent.
    pub patience: Patience,
    /// Transactions may be sent while they run.
    pub in_blocks: bool,
}

/// What belongs to one connection.
#[derive(Debug)]
struct Progress {
    /// Everything that ends at or before this has been received and, if guarded, handed out or put into `outbox`.
    received: Lsn,
    /// The last position that was given to the cache.
    handed: Lsn,
    /// Jobs that there was no room for, in the channel or for their keys: at most what one decoded message makes, plus an advance.
    outbox: VecDeque<CacheJob>,
    /// Commits given to the cache: end, and when they were committed, by our clock.
    unapplied: VecDeque<(Lsn, i64)>,
    clock: ServerClock,
    /// The last status that was sent.
    reported: Status,
    reported_at: Instant,
    /// The server wants an answer.
    reply: bool,
}

/// What the strict contract held back may be confirmed.
async fn released(state: &FeedState) {
    match state.strict() {
        Some(strict) => strict.released().await,
        None => std::future::pending().await,
    }
}

/// Waits until the cache takes a job of so many keys.
async fn room_for<'a>(
    keys: u32,
    rooms: &Rooms,
    jobs: &'a mpsc::Sender<CacheJob>,
) -> Result<(Room, mpsc::Permit<'a, CacheJob>), StreamError> {
    let room = rooms.take(keys).await;
    Ok((room, jobs.reserve().await.map_err(|_| StreamError::CacheGone)?))
}

impl Stream {
    /// Runs one stream until it ends. It goes on from `start`.
    pub async fn run(&mut self, sender: &mut Walsender, start: Lsn) -> Result<(), StreamError> {
        let mut progress = Progress {
            received: start,
            handed: start,
            outbox: VecDeque::new(),
            unapplied: VecDeque::new(),
            clock: ServerClock::default(),
            reported: Status { write: start, flush: self.confirmed, apply: start, request_reply: false },
            reported_at: Instant::now(),
            reply: false,
        };
        let ended = self.follow(sender, &mut progress).await;
        if matches!(ended, Err(StreamError::Silent(_) | StreamError::Postgres(_))) {
            self.patience.ended(progress.received);
        }
        ended
    }

    async fn follow(&mut self, sender: &mut Walsender, progress: &mut Progress) -> Result<(), StreamError> {
        self.state.reached.set(progress.received);
        let mut settled = self.positions.primary_settled();
        let asks_after = self.feed_lost_after / 3;
        let mut tick = tokio::time::interval(asks_after.min(BLOCKED_REPORT).max(Duration::from_millis(10)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked_at = Instant::now();
        let (jobs, rooms) = (self.jobs.clone(), self.rooms.clone());

        loop {
            if progress.outbox.is_empty() {
                self.drain(sender, progress)?;
            }
            self.hand_out(progress)?;
            // Copied out: a borrow of the channel must not live across an await.
            let settled_now = *settled.borrow_and_update();
            self.confirm(sender, progress, settled_now).await?;

            let cache_has_room = progress.outbox.is_empty();
            let keys = progress.outbox.front().map_or(0, CacheJob::keys);
            tokio::select! {
                filled = sender.fill(), if cache_has_room => {
                    filled?;
                    self.state.heard(self.positions.now());
                }
                room = room_for(keys, &rooms, &jobs), if !cache_has_room => {
                    let (room, permit) = room?;
                    if let Some(job) = progress.outbox.pop_front() {
                        permit.send(job.with(room));
                    }
                }
                changed = self.applied.changed() => changed.map_err(|_| StreamError::CacheGone)?,
                // The sender lives in `positions`, which we hold.
                _ = settled.changed() => {}
                () = self.state.mended.notified() => return Err(StreamError::Mended),
                () = self.state.altered.notified() => return Err(StreamError::Altered),
                () = self.state.regarded.notified() => {
                    if self.state.is_still(self.applier.guards()) {
                        // They were there before this stream was.
                        continue;
                    }
                    // In order, so that the next one finds the slot free.
                    let _ = tokio::time::timeout(STOP_LEAVING, sender.finish()).await;
                    return Err(StreamError::Regarded);
                }
                () = self.state.stopping.notified() => {
                    self.leave(sender, progress, settled).await;
                    return Err(StreamError::Stopped);
                }
                () = released(&self.state) => {}
                _ = tick.tick() => {
                    let now = self.positions.now();
                    // Unasked: what Postgres asks may stand behind much that has to be read first.
                    if progress.reported_at.elapsed() >= asks_after.max(BLOCKED_REPORT) {
                        progress.reply = true;
                    }
                    if !cache_has_room {
                        // It is us who do not read. The lag tells how long that has been.
                        self.state.heard(now);
                        continue;
                    }
                    let silence = self.state.silent_for(now).unwrap_or_default();
                    if silence > self.patience.limit() {
                        return Err(StreamError::Silent(silence));
                    }
                    if silence >= asks_after && asked_at.elapsed() >= asks_after {
                        asked_at = Instant::now();
                        let status = Status { request_reply: true, ..self.status(progress, settled_now) };
                        self.report(sender, progress, status).await?;
                    }
                }
            }
        }
    }

    /// Applies everything that has been read, until the cache has no room.
    fn drain(&mut self, sender: &mut Walsender, progress: &mut Progress) -> Result<(), StreamError> {
        let before = progress.received;
        let now = self.now_us();
        while progress.outbox.is_empty() {
            // One part at a time: all of them would be held here at once.
            if let Some(applied) = self.applier.proceed() {
                self.take(applied, progress)?;
                continue;
            }
            let Some(event) = sender.buffered()? else { break };
            // While the cache works something off, messages wait for us.
            let prompt = progress.unapplied.is_empty();
            match event {
                Event::Data { server_end, sent_at, payload, .. } => {
                    progress.clock.heard(sent_at, now, prompt);
                    self.state.server_end_lsn.fetch_max(server_end.0, Ordering::Relaxed);
                    let applied = self.applier.receive(payload)?;
                    self.take(applied, progress)?;
                }
                Event::Keepalive { server_end, sent_at, reply_requested } => {
                    progress.clock.heard(sent_at, now, prompt);
                    self.state.server_end_lsn.fetch_max(server_end.0, Ordering::Relaxed);
                    progress.reply |= reply_requested;
                    // Inside a transaction the position belongs to what has not been committed to us yet.
                    if !self.applier.in_transaction() {
                        progress.received = progress.received.max(server_end);
                    }
                }
                Event::Other => {}
            }
        }
        if progress.received > before {
            self.state.received_lsn.store(progress.received.0, Ordering::Relaxed);
            self.positions.advanced(progress.received);
        }
        Ok(())
    }

    /// Takes what came of a message.
    fn take(&mut self, applied: Applied, progress: &mut Progress) -> Result<(), StreamError> {
        match applied {
            Applied::Nothing => Ok(()),
            Applied::Position(end) => {
                progress.received = progress.received.max(end);
                Ok(())
            }
            Applied::Commit(invalidation) => {
                let end = invalidation.end_lsn;
                progress.received = progress.received.max(end);
                progress.handed = progress.handed.max(end);
                // Of a transaction in parts, its end alone tells that it is applied.
                if !invalidation.is_part() {
                    let committed = progress.clock.ours(invalidation.commit_time_us);
                    progress.unapplied.push_back((end, committed));
                }
                progress.outbox.push_back(CacheJob::Invalidate(invalidation, Room::default()));
                self.push_out(progress)
            }
            Applied::NoRoom => {
                self.in_blocks = false;
                Err(StreamError::NoRoom)
            }
        }
    }

    /// Gives the cache what there is, and an advance if it has nothing else to do. One advance at a time: the next
    /// one, with the position of then, when this one is done.
    fn hand_out(&mut self, progress: &mut Progress) -> Result<(), StreamError> {
        let idle = progress.outbox.is_empty() && self.applied(progress) >= progress.handed;
        if idle && progress.received > progress.handed {
            progress.handed = progress.received;
            progress.outbox.push_back(CacheJob::Advance(progress.received));
        }
        self.push_out(progress)
    }

    fn push_out(&self, progress: &mut Progress) -> Result<(), StreamError> {
        while let Some(job) = progress.outbox.pop_front() {
            let Some(room) = self.rooms.take_now(job.keys()) else {
                progress.outbox.push_front(job);
                break;
            };
            let point = job.point();
            match self.jobs.try_send(job.with(room)) {
                Ok(()) => point.into_iter().for_each(failpoint::pass),
                Err(mpsc::error::TrySendError::Full(job)) => {
                    // Its keys do not take room while it waits here.
                    progress.outbox.push_front(job.with(Room::default()));
                    break;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(StreamError::CacheGone),
            }
        }
        Ok(())
    }

    /// What this or an earlier stream has confirmed, or the cache has applied. The server had flushed that.
    pub fn reached(&self) -> Lsn {
        self.confirmed.max(*self.applied.borrow())
    }

    /// How far this stream is applied: never beyond what it has given out, whatever an earlier one has.
    fn applied(&self, progress: &Progress) -> Lsn {
        (*self.applied.borrow()).min(progress.handed)
    }

    /// Our progress. Confirmed is what is deleted *and* visible on the primary: after a restart the slot then
    /// starts no later than what a reader there may not see yet.
    ///
    /// Where commits wait for us, waiting for their visibility would be waiting for each other (fact F6): what is
    /// deleted is confirmed.
    ///
    /// A server that is shutting down waits until we have confirmed all it has, and can no longer be polled. When it is
    /// back, everything that it ever logged is visible: what is deleted may be confirmed.
    fn status(&self, progress: &Progress, settled: Lsn) -> Status {
        let apply = self.applied(progress).max(progress.reported.apply);
        let stopping = self.state.primary_stopping.load(Ordering::Relaxed);
        let visible = if stopping || self.state.confirms_unseen() { apply } else { apply.min(settled) };
        let held = self.state.strict().map_or(Lsn(u64::MAX), Strict::hold);
        let flush = visible.min(held).max(self.confirmed);
        if !self.state.confirms_unseen() && settled >= flush {
            self.state.unseen.store(false, Ordering::Relaxed);
        }
        Status { write: progress.received, flush, apply, request_reply: false }
    }

    async fn confirm(
        &mut self,
        sender: &mut Walsender,
        progress: &mut Progress,
        settled: Lsn,
    ) -> Result<(), StreamError> {
        let status = self.status(progress, settled);
        while progress.unapplied.front().is_some_and(|(end, _)| *end <= status.apply) {
            progress.unapplied.pop_front();
        }
        // A transaction that is arriving was committed before it came, however long it takes. In strict nobody sees it
        // before all of it is deleted: what is cached is not behind.
        let arriving = || self.applier.arriving_since().filter(|_| !self.state.is_strict());
        let arriving = || arriving().map(|time| progress.clock.ours(time));
        let oldest = progress.unapplied.front().map(|(_, time)| *time).or_else(arriving);
        self.state.set_oldest_unapplied(oldest);
        // All that was received, but for what has yet to be deleted.
        let before_unapplied = |(end, _): &(Lsn, i64)| Lsn(end.0.saturating_sub(1));
        self.state.reached.set(progress.unapplied.front().map_or(progress.received, before_unapplied));
        let moved = status.flush > progress.reported.flush || status.apply > progress.reported.apply;
        if moved || progress.reply { self.report(sender, progress, status).await } else { Ok(()) }
    }

    /// Our clock, in microseconds.
    fn now_us(&self) -> i64 {
        i64::try_from(self.positions.now()).unwrap_or(i64::MAX).saturating_mul(1_000)
    }

    /// The process ends. What was received is confirmed as soon as it may be, so that it is not sent again, and the slot
    /// is free for a successor when this returns. Where something is in the way (Redis is away, a commit waits for
    /// somebody else), the successor has the rest sent again: nothing is lost by leaving.
    async fn leave(
        &mut self,
        sender: &mut Walsender,
        progress: &mut Progress,
        mut settled: watch::Receiver<Lsn>,
    ) {
        // Nothing is read any more: until the process has ended, guards do what when_feed_lost says.
        self.state.streaming.store(false, Ordering::Relaxed);
        let goal = progress.received;
        let confirming = async {
            while self.confirmed < goal {
                self.hand_out(progress)?;
                let settled_now = *settled.borrow_and_update();
                self.confirm(sender, progress, settled_now).await?;
                if self.confirmed >= goal {
                    break;
                }
                tokio::select! {
                    // Room for what is handed out comes with what is applied.
                    changed = self.applied.changed() => changed.map_err(|_| StreamError::CacheGone)?,
                    _ = settled.changed() => {}
                    () = released(&self.state) => {}
                }
            }
            Ok::<(), StreamError>(())
        };
        let confirmed = tokio::time::timeout(STOP_CONFIRMING, confirming).await;
        let left = tokio::time::timeout(STOP_LEAVING, sender.finish()).await;
        let (confirmed, left) = (matches!(confirmed, Ok(Ok(()))), matches!(left, Ok(Ok(()))));
        tracing::info!(received = %goal, position = %self.confirmed, confirmed, left, "the feed has stopped");
    }

    async fn report(
        &mut self,
        sender: &mut Walsender,
        progress: &mut Progress,
        status: Status,
    ) -> Result<(), StreamError> {
        // Before it is sent: should the connection break now, the server may have got it all the same.
        self.confirmed = status.flush;
        // Commits with synchronous_commit = remote_write wait for what is written, those with remote_apply for what is
        // applied. In strict all of it means deleted.
        let told = match self.state.is_strict() {
            true => Status { write: status.flush, apply: status.flush, ..status },
            false => status,
        };
        failpoint::pass(Point::Confirming);
        let sent = tokio::time::timeout(REPORT_TIMEOUT, sender.report(told));
        sent.await.map_err(|_| StreamError::Stuck)??;
        failpoint::pass(Point::Confirmed);
        self.state.reports.fetch_add(1, Ordering::Relaxed);
        self.state.applied_lsn.store(status.apply.0, Ordering::Relaxed);
        self.state.confirmed_lsn.store(status.flush.0, Ordering::Relaxed);
        (progress.reported, progress.reported_at, progress.reply) = (status, Instant::now(), false);
        Ok(())
    }
}
