//! Postgres's wire protocol, as far as a walsender needs it.
//!
//! SQL goes through `tokio-postgres`; that crate cannot stream replication. So the stream has a connection of its
//! own here: [`target`] says where to, [`wire`] logs in and frames messages, [`replication`] speaks the walsender's commands, and
//! [`pgoutput`] decodes what the output plugin of that name sends.

pub mod error;
pub mod pgoutput;
pub mod replication;
pub mod target;
pub mod wire;
