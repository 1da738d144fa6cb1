//! Postgres's wire protocol, as far as a walsender needs it.
//!
//! SQL goes through `tokio-postgres`; that crate cannot stream replication. So the stream has a connection of its
//! own here. For both, [`target`] says where to, and `connect` goes there, over TLS if need be. For the stream, [`wire`]
//! logs in and frames messages, [`replication`] speaks the walsender's commands, and [`pgoutput`] decodes what the output
//! plugin of that name sends; for SQL, [`session`] hands the connection to `tokio-postgres`.

mod connect;
mod conninfo;
pub mod error;
mod parameters;
mod passfile;
pub mod pgoutput;
pub mod replication;
pub mod session;
pub mod target;
pub mod wire;
