//! MULTI: fills are judged when they are executed, at EXEC.

use std::borrow::Cow;

use super::proof::Proof;
use crate::command::FillForm;
use crate::fence::Evidence;
use crate::guard::{GuardId, GuardList, GuardedKey};

/// A guarded key of a command, by its name: borrowed from the command, unless it has to outlive that.
pub type NamedKey<'a> = (Cow<'a, [u8]>, GuardedKey);

/// Keys that outlive their command.
pub fn owned<'a>(keys: impl IntoIterator<Item = NamedKey<'a>>) -> Vec<NamedKey<'static>> {
    keys.into_iter().map(|(key, guarded)| (Cow::Owned(key.into_owned()), guarded)).collect()
}

/// A transaction that has begun.
#[derive(Debug, Default)]
pub struct Transaction {
    /// The fills of guarded keys that are queued.
    pub fills: Vec<QueuedFill>,
    /// The guards of keys that queued commands read, those of a key together, and each once.
    pub reads: Vec<GuardList>,
    /// The queued commands that change how long guarded keys live.
    pub expiries: Vec<QueuedExpiry>,
    /// The dbs that queued SELECTs name, which Redis will try when it executes them. What is queued after one
    /// that fails goes to the db before it.
    pub dbs: Vec<u32>,
    /// The memory that the queued fills and expiries take, about.
    pub bytes: usize,
    /// The youngest guard when it began. With a younger one, what was queued without a guard may have one now.
    pub youngest: Option<GuardId>,
    /// The proxy refused a command: EXEC aborts, as Redis's would.
    pub aborted: bool,
}

impl Transaction {
    /// A fill of guarded keys is queued.
    pub fn queue_fill(&mut self, fill: QueuedFill) {
        let evidence = match &fill.proof.position {
            Some(Evidence::Snapshot(snapshot)) => size_of_val(snapshot.in_progress()),
            _ => 0,
        };
        self.bytes += size_of::<QueuedFill>() + weight(&fill.keys) + evidence;
        self.fills.push(fill);
    }

    /// A command is queued that changes how long guarded keys live.
    pub fn queue_expiry(&mut self, expiry: QueuedExpiry) {
        self.bytes += size_of::<QueuedExpiry>() + weight(&expiry.keys);
        self.expiries.push(expiry);
    }
}

fn weight(keys: &[NamedKey<'_>]) -> usize {
    keys.iter().map(|(key, _)| size_of::<NamedKey<'_>>() + key.len()).sum()
}

/// A fill that waits for EXEC.
#[derive(Debug)]
pub struct QueuedFill {
    /// Its guarded keys.
    pub keys: Vec<NamedKey<'static>>,
    /// The command.
    pub form: FillForm,
    /// What is known of its data's age.
    pub(super) proof: Proof,
    /// What it puts in can be given a TTL after it.
    pub can_cap: bool,
    /// The TTL in milliseconds that it brings along.
    pub own_ttl: Option<u64>,
}

/// A command that changes how long guarded keys live, and waits for EXEC.
#[derive(Debug)]
pub struct QueuedExpiry {
    /// The keys: one, which has guards in several dbs if it is not known which of them the command will find.
    pub keys: Vec<NamedKey<'static>>,
    /// The longest TTL in milliseconds that it can leave behind, if it says so.
    pub own_ttl: Option<u64>,
}
