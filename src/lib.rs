//! cachefence: a Redis-protocol proxy that keeps a cache from going back in time.
//!
//! Two flows meet in one table.
//!
//! ```text
//!  Postgres ──WAL──▶ pg ──▶ feed ──rows──▶ guard ──keys──▶ fence ──▶ cache ──UNLINK──▶ Redis
//!                            ▲                              │ ▲                 │
//!                            └────────── confirm ───────────┼─┼─────────────────┘
//!                                                           ▼ │
//!  clients ──bytes──▶ proxy ──▶ resp ──▶ guard ──keys──▶ fence: admit or refuse ──▶ proxy ──▶ Redis
//! ```
//!
//! * A WAL record comes in by [`pg`] (the wire protocol and pgoutput), becomes a committed change in
//!   [`feed`], is turned into cache keys by the templates of [`guard`], fences them in [`fence`], and is
//!   deleted from Redis by [`cache`]. Only then does the feed confirm it to Postgres.
//! * A client's bytes come in by [`proxy`], are cut into requests by [`resp`], are known by [`command`], and
//!   leave for Redis as they came unless a key matches a [`guard`] and the [`fence`] finds the fill stale.
//!
//! What people see of it comes from [`metrics`], [`refusals`] and [`audit`], by [`admin`].
//!
//! [`fence`] is the decision: pure, without I/O, without async, without a clock. It imports [`position`] only.
#![warn(missing_docs)]

pub mod admin;
pub mod audit;
pub mod cache;
pub mod check;
pub mod command;
mod complaint;
pub mod config;
pub mod demo;
pub mod failpoint;
pub mod feed;
pub mod fence;
pub mod guard;
pub mod lifecycle;
pub mod metrics;
pub mod pg;
pub mod position;
pub mod proxy;
pub mod refusals;
pub mod reload;
pub mod resp;
pub mod run;
pub mod tls;
pub mod transport;
