//! The database's catalog against the guards: what stops the start, and the SQL that mends it.

mod publication;
mod server;
mod slot;
mod table;

pub use publication::{Publication, create_publication, publication};
pub use server::{Server, server};
pub use slot::{Slot, slot};
pub use table::{Column, Table, column_kind, learn, tables, weak_versions};
use tokio_postgres::{Client, NoTls};

pub use super::problem::{CatalogError, Problem, describe};
use crate::pg::error::error_chain;
use crate::pg::replication::Walsender;
use crate::pg::target::{SESSION, SESSION_SQL, Target, parse_url};

/// Connects for SQL, with the session settings that we fix. The connection ends when the client is dropped.
///
/// # Errors
/// The URL's or the connection's.
pub async fn connect(url: &str, application_name: &str) -> Result<Client, CatalogError> {
    let mut config = parse_url(url)?;
    let mut options = config.get_options().unwrap_or_default().to_owned();
    for (name, value) in SESSION {
        // Options are split at blanks; a backslash keeps one.
        options.push_str(&format!(" -c {name}={}", value.replace(' ', "\\ ")));
    }
    // Nothing that we ask takes long; a lock that never comes must not hold the start up silently.
    options.push_str(" -c lock_timeout=10s");
    config.options(options.trim()).application_name(application_name);
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(std::time::Duration::from_secs(10));
    }
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = error_chain(&error), "an SQL connection ended");
        }
    });
    client.batch_execute(SESSION_SQL).await?;
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
