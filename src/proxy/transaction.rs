//! MULTI: fills are judged when they are executed, at EXEC.

use super::evidence::Proof;
use crate::command::FillForm;
use crate::guard::GuardedKey;

/// A transaction that has begun.
#[derive(Debug, Default)]
pub struct Transaction {
    /// The fills of guarded keys that are queued.
    pub fills: Vec<QueuedFill>,
    /// The dbs that queued SELECTs name, which Redis will try when it executes them. What is queued after one
    /// that fails goes to the db before it.
    pub dbs: Vec<u32>,
    /// The proxy refused a command: EXEC aborts, as Redis's would.
    pub aborted: bool,
}

/// A fill that waits for EXEC.
#[derive(Debug)]
pub struct QueuedFill {
    /// Its guarded keys.
    pub keys: Vec<(Box<[u8]>, GuardedKey)>,
    /// The command.
    pub form: FillForm,
    /// What is known of its data's age.
    pub(super) proof: Proof,
    /// What it puts in can be given a TTL after it.
    pub can_cap: bool,
}
