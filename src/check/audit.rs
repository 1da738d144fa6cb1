//! The statements of the auditor: whether Postgres takes them, with the rights that the proxy has.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::report::Row;
use crate::audit::statement::{self, READ_ONLY, StatementError};
use crate::config::Audit;
use crate::feed::catalog::CatalogError;
use crate::feed::quoting::quoted_table;
use crate::guard::{Guard, Guards};
use crate::pg::replication::identifier;

/// The rows' name.
pub(super) const NAME: &str = "audit_sql";

/// One row for each guard that has a statement.
pub(super) async fn statements(
    client: &Client,
    guards: &Guards,
    settings: &Audit,
    role: &str,
) -> Result<Vec<Row>, CatalogError> {
    let mut rows = Vec::new();
    for guard in guards {
        let Some(sql) = &guard.policy.audit_sql else { continue };
        if rows.is_empty() {
            client.batch_execute(READ_ONLY).await?;
        }
        let row = match tried(client, guard, sql).await {
            Err(error) => refused(guard, &error, role),
            Ok(()) if guard.version.is_some() => Row::warning(NAME, "is never run")
                .means("the guard has a version, by which its hits are audited without asking the database"),
            Ok(()) if settings.sample.of_u64() == 0 => Row::warning(NAME, "is never run")
                .means("audit.sample is 0: no hit is audited")
                .settings("[audit]\nsample = 0.001"),
            Ok(()) => Row::good(NAME, "Postgres takes it"),
        };
        rows.push(row.on(&guard.label));
    }
    if !rows.is_empty() {
        client.batch_execute("RESET default_transaction_read_only; RESET statement_timeout").await?;
    }
    Ok(rows)
}

/// Runs it for a key that no row has: rights are judged when a statement begins.
async fn tried(client: &Client, guard: &Guard, sql: &str) -> Result<(), StatementError> {
    let wanted = guard.templates.first().map_or(0, |template| template.columns().len());
    let prepared = statement::prepare(client, sql, wanted).await?;
    statement::run(client, &prepared, &vec![None; wanted]).await.map(drop)
}

fn refused(guard: &Guard, error: &StatementError, role: &str) -> Row {
    let denied = match error {
        StatementError::Postgres(error) => error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE),
        StatementError::Parameters { .. } => false,
    };
    let row = Row::failed(NAME, error.to_string())
        .means("hits of this guard cannot be audited: each is counted as unknown");
    if denied {
        row.sql(format!("GRANT SELECT ON {} TO {};", quoted_table(guard), identifier(role)))
    } else {
        row
    }
}
