//! Clients, lanes and pins: a command's way to Redis and its reply's way back.
//!
//! ```text
//!  socket ─▶ session ─▶ dispatch ─▶ fills ─▶ gate ─▶ (fence)
//!    ▲          │           │                  │ admitted
//!    │          │           └────────┬─────────┘
//!    │       client ◀── replies ── link ─▶ Redis
//!    └──────────┘
//! ```
//!
//! A [session](session) belongs to one runtime thread for life, and so do the [links](link) that carry its
//! commands; nothing on this way is shared between threads but the fence's table. Plain commands of many
//! clients share a *lane*; a client whose connection has state of its own in Redis (MULTI, BLPOP, SUBSCRIBE,
//! ...) has a *pin* for as long as that lasts.

mod account;
mod after;
mod audited;
mod buffered;
mod buffers;
mod cap;
mod client;
mod coalesce;
mod connection;
mod descriptors;
mod dispatch;
mod drain;
mod evidence;
mod expect;
mod expiry;
mod explain;
mod fence_command;
mod fills;
mod gate;
mod greeting;
mod held;
mod large;
mod link;
mod listen;
mod negotiate;
mod proof;
mod proxy_header;
mod reading;
mod reads;
mod replies;
mod route;
mod session;
mod shape;
mod subscription;
mod threads;
mod transaction;
mod wait;

pub use buffered::Buffered;
pub use gate::Gate;
pub use greeting::Greeting;
pub use listen::{ListenError, Listener};
pub use proxy_header::{ProxyHeader, ProxyHeaderError};
pub use threads::Threads;
