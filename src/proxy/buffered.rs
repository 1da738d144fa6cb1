//! What the proxy holds for all clients together: requests that are not all there, replies that are not read, commands
//! that Redis does not take.
//!
//! Each client has limits, those of Redis: a request of 1 GiB, as much of replies. A few clients that use them up would
//! be the end of the process, and so of everybody's connection. So there is one limit for all of them, and above it the
//! client that holds most is closed, as Redis does with `maxmemory-clients`: who fills the memory pays, not who comes next.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use tracing::warn;

use crate::complaint::Complaint;
use crate::fence::ConnId;
use crate::metrics::Metrics;

/// What a client holds counts from here on, and is counted again when it has changed by so much, in bytes: a buffer as
/// threads lend them out. Most clients never hold as much, and cost no lock.
const STEP: usize = 16 * 1024;

/// What all clients hold.
pub struct Buffered {
    limit: usize,
    metrics: Arc<Metrics>,
    held: Mutex<Held>,
    said: Mutex<Complaint>,
}

/// Who holds how much.
#[derive(Default)]
struct Held {
    total: usize,
    by: HashMap<ConnId, Holder>,
}

struct Holder {
    bytes: usize,
    evicted: Arc<AtomicBool>,
    waker: Waker,
}

/// One client's part. Dropping it gives it back.
pub(super) struct Share {
    id: ConnId,
    /// The bytes that were counted last.
    told: usize,
    evicted: Option<Arc<AtomicBool>>,
    incoming: usize,
    out: usize,
}

impl fmt::Debug for Buffered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffered").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Buffered {
    /// Room for so many bytes.
    pub fn new(limit: usize, metrics: Arc<Metrics>) -> Self {
        Self { limit, metrics, held: Mutex::default(), said: Mutex::default() }
    }

    /// A client holds so much now. Whoever has to go for it is woken.
    fn tell(&self, id: ConnId, bytes: usize, evicted: &Arc<AtomicBool>, waker: &Waker) {
        let gone = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.put(id, Holder { bytes, evicted: evicted.clone(), waker: waker.clone() });
            let gone = held.make_room(self.limit);
            self.metrics.buffered_bytes.set(held.total as i64);
            gone
        };
        for holder in &gone {
            // Outside of the lock: a woken task may run at once on another thread.
            holder.evicted.store(true, Ordering::Release);
            holder.waker.wake_by_ref();
            self.metrics.evicted_clients.inc();
        }
        if let Some(most) = gone.iter().map(|holder| holder.bytes).max() {
            self.say(most);
        }
    }

    fn forget(&self, id: ConnId) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(id);
        self.metrics.buffered_bytes.set(held.total as i64);
    }

    fn say(&self, bytes: usize) {
        if self.said.lock().unwrap_or_else(PoisonError::into_inner).is_due() {
            let limit = self.limit;
            warn!(
                bytes,
                limit, "clients' buffers hold more than proxy.max_buffered: who holds most is closed"
            );
        }
    }
}

impl Held {
    fn put(&mut self, id: ConnId, holder: Holder) {
        self.total += holder.bytes;
        self.total -= self.by.insert(id, holder).map_or(0, |before| before.bytes);
    }

    fn remove(&mut self, id: ConnId) -> Option<Holder> {
        let holder = self.by.remove(&id)?;
        self.total -= holder.bytes;
        Some(holder)
    }

    /// Takes out those who hold most, until the others are within the limit. Only then is what they hold really free;
    /// but they do nothing more than end.
    fn make_room(&mut self, limit: usize) -> Vec<Holder> {
        let mut gone = Vec::new();
        while self.total > limit {
            let most = self.by.iter().max_by_key(|(_, holder)| holder.bytes).map(|(id, _)| *id);
            match most.and_then(|id| self.remove(id)) {
                Some(holder) => gone.push(holder),
                None => break,
            }
        }
        gone
    }
}

impl Share {
    /// Of a client that holds nothing yet.
    pub(super) fn new(id: ConnId) -> Self {
        Self { id, told: 0, evicted: None, incoming: 0, out: 0 }
    }

    /// What a client's buffers take: by the room in them, since what was read is still there. A buffer that is read from
    /// its beginning shows only the room behind that; so each counts with the most that it had since it was empty.
    pub(super) fn of_buffers(&mut self, incoming: usize, out: usize) -> usize {
        let most = |before: usize, now: usize| if now == 0 { 0 } else { before.max(now) };
        self.incoming = most(self.incoming, incoming);
        self.out = most(self.out, out);
        self.incoming + self.out
    }

    /// The client holds so many bytes. False if it has to be closed.
    pub(super) fn hold(&mut self, all: &Buffered, bytes: usize, waker: &Waker) -> bool {
        let counted = if bytes > STEP { bytes } else { 0 };
        let same = counted.abs_diff(self.told) < STEP && (counted > 0 || self.told == 0);
        if !same {
            self.told = counted;
            if counted > 0 {
                all.tell(self.id, counted, self.evicted.get_or_insert_default(), waker);
            } else {
                all.forget(self.id);
            }
        }
        !self.evicted.as_ref().is_some_and(|evicted| evicted.load(Ordering::Acquire))
    }

    /// The client is gone, and with it what it held.
    pub(super) fn release(&mut self, all: &Buffered) {
        if std::mem::take(&mut self.told) > 0 {
            all.forget(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Guards;

    const WAKER: &Waker = Waker::noop();

    fn buffered(limit: usize) -> Buffered {
        let guards = Guards::new(&[], 0).expect("no guards");
        Buffered::new(limit, Arc::new(Metrics::new(&guards, &["primary"]).expect("metrics")))
    }

    #[test]
    fn who_holds_most_has_to_go() {
        let all = buffered(100 * STEP);
        let mut shares: Vec<Share> = (1..=3).map(|n| Share::new(ConnId(n))).collect();
        for (share, steps) in shares.iter_mut().zip([10, 60, 30]) {
            assert!(share.hold(&all, steps * STEP, WAKER));
        }
        assert_eq!(all.metrics.buffered_bytes.get(), 100 * STEP as i64);
        // Who comes with little is served.
        let mut small = Share::new(ConnId(4));
        assert!(small.hold(&all, 2 * STEP, WAKER));
        assert!(!shares[1].hold(&all, 60 * STEP, WAKER), "the largest");
        assert!(shares[0].hold(&all, 10 * STEP, WAKER) && shares[2].hold(&all, 30 * STEP, WAKER));
        assert_eq!(
            (all.metrics.buffered_bytes.get(), all.metrics.evicted_clients.get()),
            (42 * STEP as i64, 1)
        );
        for share in shares.iter_mut().chain([&mut small]) {
            share.release(&all);
        }
        assert_eq!(all.metrics.buffered_bytes.get(), 0);
    }

    #[test]
    fn one_that_is_larger_than_all_may_be_goes_itself() {
        let all = buffered(4 * STEP);
        let (mut other, mut large) = (Share::new(ConnId(1)), Share::new(ConnId(2)));
        assert!(other.hold(&all, 2 * STEP, WAKER));
        assert!(!large.hold(&all, 5 * STEP, WAKER));
        assert!(!large.hold(&all, 0, WAKER), "for good");
        assert!(other.hold(&all, 2 * STEP, WAKER));
    }

    #[test]
    fn little_is_not_counted_and_small_changes_are_not_told() {
        let all = buffered(10 * STEP);
        let mut share = Share::new(ConnId(1));
        assert!(share.hold(&all, STEP, WAKER));
        assert_eq!(all.metrics.buffered_bytes.get(), 0);
        assert!(share.hold(&all, 3 * STEP, WAKER) && share.hold(&all, 4 * STEP - 1, WAKER));
        assert_eq!(all.metrics.buffered_bytes.get(), 3 * STEP as i64);
        assert!(share.hold(&all, 10, WAKER));
        assert_eq!(all.metrics.buffered_bytes.get(), 0, "but that nothing is left is");
    }

    /// A buffer of which all but a byte was read still takes its room.
    #[test]
    fn a_buffer_counts_until_it_is_empty() {
        let mut share = Share::new(ConnId(1));
        assert_eq!(share.of_buffers(1000, 50), 1050);
        assert_eq!(share.of_buffers(1, 60), 1060);
        assert_eq!(share.of_buffers(0, 10), 60);
        assert_eq!(share.of_buffers(10, 0), 10);
    }
}
