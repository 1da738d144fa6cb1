//! Who waits for somebody else's fill. Shared by all threads, and by the reaper, which ends fills that Redis never
//! answered.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::fence::KeyHash;

/// Readers that wait for a fill, by key.
#[derive(Debug, Default)]
pub struct Coalescing {
    /// How many there are, so that fills need not take the lock when there are none.
    readers: AtomicUsize,
    keys: Mutex<HashMap<KeyHash, (usize, Arc<Notify>)>>,
}

impl Coalescing {
    /// A fill of a key was answered, or will not come.
    pub fn ended(&self, key: KeyHash) {
        if self.readers.load(Ordering::SeqCst) == 0 {
            return;
        }
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ended)) = keys.get(&key) {
            ended.notify_waiters();
        }
    }

    /// A reader waits for the end of a fill of a key, until it [leaves](Self::leave).
    pub fn join(&self, key: KeyHash) -> Arc<Notify> {
        self.readers.fetch_add(1, Ordering::SeqCst);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let (readers, ended) = keys.entry(key).or_default();
        *readers += 1;
        ended.clone()
    }

    /// A reader waits no longer.
    pub fn leave(&self, key: KeyHash) {
        self.readers.fetch_sub(1, Ordering::SeqCst);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((readers, _)) = keys.get_mut(&key) {
            *readers -= 1;
            if *readers == 0 {
                keys.remove(&key);
            }
        }
    }
}
