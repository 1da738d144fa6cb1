//! The auditor: hits that pass by are compared with what the fence knows of the row behind them.
//!
//! ```text
//!  proxy ──a sampled hit──▶ Auditor ──after `grace`──▶ judge ──▶ counters, a line in the log
//!                                     fence: the writes of the key, and the row's version
//! ```
//!
//! It takes part in nothing: no fill, no deletion and no reply depends on it. For guards with a version nothing goes to
//! the database. Others can have an `audit_sql`, which is run there at a bounded rate.
//!
//! * [`Sample`] decides on the threads of clients which reads are looked at: a load and a branch where none is.
//! * [`Auditor`] takes their hits, holds a bounded number of them until their grace is over, and counts what becomes of
//!   them.
//! * For guards with an `audit_sql`, [`SqlHit`]s go the same way, but one after the other, and to the database.
//! * [`judge`] is the decision: pure. Its word `violation` pages somebody, so whatever is in doubt is `unknown`.

mod auditor;
mod by_sql;
mod commits;
mod judge;
mod sample;
pub mod statement;

pub use auditor::{Auditor, Conditions, Hit, Surroundings, Waiting, wall_clock_us};
pub use by_sql::{Places, SqlHit, compared, values_of};
pub use commits::Commits;
pub use judge::{Judged, Outcome, Seen, judge};
pub use sample::Sample;
