//! Postgres's wire protocol, as far as a walsender needs it.
//!
//! SQL goes through `tokio-postgres`; that crate cannot stream replication. So the stream has a connection of its
//! own here: [`wire`] frames messages and logs in, [`replication`] speaks the walsender's commands, and
//! [`pgoutput`] decodes what the output plugin of that name sends.

pub mod pgoutput;
pub mod replication;
pub mod wire;
