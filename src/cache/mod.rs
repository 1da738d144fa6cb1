//! The proxy's own work in Redis: deletions, the marker, purges.
//!
//! The feed hands over committed changes in their order ([`CacheJob`](crate::feed::CacheJob)), their keys fenced already. The
//! [worker](Worker) waits for the fills of those keys that were let in before (drain), deletes the keys together
//! with the marker, many commits in one round trip, and only then moves the applied position, which the feed
//! confirms to Postgres. The [reaper](Reaper) ends fills whose connection broke. The
//! [stranger](Stranger) watches what clients may do that have not logged in.

mod coalescing;
mod connection;
mod deleted;
mod endpoint;
mod marker;
mod purge;
mod reaper;
mod silence;
mod stranger;
mod turns;
mod unlink;
mod upstreams;
mod witness;
mod worker;

pub use coalescing::Coalescing;
pub use connection::{CacheError, Connection, Reply};
pub(crate) use connection::{info_field, is_too_old, text};
pub use endpoint::{Endpoint, EndpointError};
pub use marker::{Marker, Standing};
pub use purge::purge_guards;
pub use reaper::Reaper;
pub use stranger::{Stranger, Strangers};
pub use turns::{Turn, Turns};
pub use upstreams::{Abandoned, AbandonedFill, Fate, Upstream, Upstreams};
pub use witness::{Question, Witness};
pub use worker::{CacheState, Shared, Worker, WorkerSettings};
