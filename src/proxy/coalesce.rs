//! Coalescing: while a miss of a key is outstanding, other readers of it wait for the fill instead of all going to the
//! database.
//!
//! A reader learns that it missed when Redis has answered, so that is where it waits: its reply is kept back, and the
//! read is sent once more when a fill of the key has ended, or when its time is over. What comes then is its answer: the
//! value, or a miss of its own. Only a reader that has sent nothing behind its read waits, since what it sent would be
//! executed before the read is repeated; while it waits, nothing more is taken from it.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::expect::{Delivery, Expected, Meaning};
use super::gate::Gate;
use super::link::Link;
use crate::fence::{KeyHash, Millis};

/// A reader's place among those who wait.
struct Place {
    gate: Arc<Gate>,
    key: KeyHash,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.upstreams.coalescing.leave(self.key);
    }
}

impl Link {
    /// The reply to a read that may wait. Gives it back if it is to be delivered.
    pub(super) fn coalesce(
        &self,
        mut expected: Expected,
        missed: Option<bool>,
        reply: &[u8],
    ) -> Option<Expected> {
        let Meaning::Coalesced(read) = &mut expected.meaning else { return Some(expected) };
        let (gate, client) = (&self.gate, &expected.client);
        let (now, patience) = (gate.now(), read.patience.as_millis() as Millis);
        let until = *read.until.get_or_insert(now + patience);
        // Its own is the only command that is outstanding, and it is wanted.
        let alone = client.outstanding() == 1 && client.own_waiting() == 0;
        let may_wait = missed == Some(true) && alone && matches!(expected.delivery, Delivery::Forward);
        if may_wait && now < until {
            // Listening before looking: a fill that ends in between is not missed.
            let place = Place { gate: gate.clone(), key: read.key.hash };
            let ended = gate.upstreams.coalescing.join(read.key.hash).notified_owned();
            if gate.fence.is_being_filled(read.key.hash, client.id, now, patience) {
                let hurried = client.park();
                let patience = Duration::from_millis(until - now);
                let (link, reply) = (self.me(), Bytes::copy_from_slice(reply));
                let running = gate.metrics.running();
                tokio::task::spawn_local(async move {
                    let _running = running;
                    wait(place, ended, hurried, patience, expected, link, reply).await;
                });
                return None;
            }
        }
        if let Some(missed) = missed {
            gate.read(&read.key, client.id, missed);
        }
        Some(expected)
    }
}

/// Waits for a fill, and reads once more.
async fn wait(
    place: Place,
    ended: impl Future<Output = ()>,
    hurried: oneshot::Receiver<()>,
    patience: Duration,
    mut expected: Expected,
    link: Option<Rc<Link>>,
    missed: Bytes,
) {
    let hurried = tokio::select! {
        // Whether it came in time shows when the read is repeated.
        _ = tokio::time::timeout(patience, ended) => false,
        _ = hurried => true,
    };
    if expected.client.is_gone() {
        // Nobody hears of a miss, so none is outstanding.
        return expected.client.answered();
    }
    let Meaning::Coalesced(read) = &mut expected.meaning else { return };
    if hurried {
        read.until = Some(0);
    }
    let request = read.request.clone();
    if let Some(link) = link.filter(|link| link.is_open()) {
        link.send_again(&request, expected);
        return;
    }
    // Its connection has ended meanwhile. It did miss.
    place.gate.read(&read.key, expected.client.id, true);
    expected.delivery.pass_on(&expected.client, &missed, false);
    expected.client.wake();
}
