//! The auditor: hits that pass by are compared with what the fence knows of the row behind them.
//!
//! ```text
//!  proxy ──a sampled hit──▶ Auditor ──after `grace`──▶ judge ──▶ counters, a line in the log
//!                                     fence: the writes of the key, and the row's version
//! ```
//!
//! It takes part in nothing: no fill, no deletion and no reply depends on it. Nothing goes to the database.
//!
//! * [`Sample`] decides on the threads of clients which reads are looked at: a load and a branch where none is.
//! * [`Auditor`] takes their hits, holds a bounded number of them until their grace is over, and counts what becomes of
//!   them.
//! * [`judge`] is the decision: pure. Its word `violation` pages somebody, so whatever is in doubt is `unknown`.

mod auditor;
mod commits;
mod judge;
mod sample;

pub use auditor::{Auditor, Conditions, Hit, Surroundings};
pub use commits::Commits;
pub use judge::{Judged, Outcome, Seen, judge};
pub use sample::Sample;
