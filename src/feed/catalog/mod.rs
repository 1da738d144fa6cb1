//! The database's catalog against the guards: what stops the start, and the SQL that mends it.

mod parts;
mod publication;
mod server;
mod slot;
mod stamps;
mod table;

pub use parts::{Part, may_differ};
pub use publication::{Publication, publication, publication_of};
pub use server::{Server, has_messages, server};
pub use slot::{Held, Slot, end_reader, slot};
pub use stamps::{Stamp, stamp};
pub use table::{Column, Table, column_kind, learn, tables, weak_versions};
use tokio_postgres::Client;

pub use super::problem::{CatalogError, Problem, describe};
use crate::pg::replication::{STARTED, Walsender};
use crate::pg::session;
use crate::pg::target::Target;

/// Connects for SQL, with the session settings that we fix. The connection ends when the client is dropped.
///
/// # Errors
/// The connection's.
pub async fn connect(target: &Target, application_name: &str) -> Result<Client, CatalogError> {
    Ok(session::connect(target, application_name).await?.0)
}

/// Where a stream is from: SQL about it has to go to the same server.
///
/// # Errors
/// The connection's, or that another server answers than the walsender's.
pub async fn connect_beside(
    sender: &mut Walsender,
    target: &Target,
    application_name: &str,
) -> Result<Client, CatalogError> {
    let client = connect(&target.only(sender.host()), application_name).await?;
    // One address can lead to several servers, by a balancer that is between.
    let started: String = client.query_one(STARTED, &[]).await?.get(0);
    if started != sender.started().await? {
        return Err(CatalogError::Elsewhere(sender.host().to_string()));
    }
    Ok(client)
}

/// Connects as a walsender. Whether the role may is asked of Postgres itself, not of the catalog: hosted servers
/// grant it in ways of their own.
///
/// # Errors
/// [`Problem::Role`] if it may not, or the connection's.
pub async fn walsender(target: &Target, application_name: &str) -> Result<Walsender, CatalogError> {
    Walsender::connect(target, application_name).await.map_err(|error| match error.code() {
        Some("42501") => CatalogError::Problems(vec![Problem::Role { role: target.user().to_owned() }]),
        _ => error.into(),
    })
}
