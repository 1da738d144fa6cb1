//! `audit_sql`: what the database has for a key, as text.

use bytes::{BufMut, BytesMut};
use thiserror::Error;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Row, Statement};

use crate::pg::error::error_chain;
use crate::position::Lsn;

/// How the session is, besides what all of ours are: it reads, and not for long.
pub const READ_ONLY: &str = "SET default_transaction_read_only = on; SET statement_timeout = '5s'";

/// The statement, so that it has one column, whose text comes. Only a query can stand there.
pub fn wrapped(sql: &str) -> String {
    let sql = sql.trim().trim_end_matches(';');
    format!("SELECT audited.value::pg_catalog.text FROM (\n{sql}\n) AS audited (value) LIMIT 2")
}

/// What the database has for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// One row, with this.
    Text(Option<String>),
    /// No row.
    Nothing,
    /// Several rows: which of them is meant is not known.
    Several,
}

/// Why a statement cannot be used.
#[derive(Debug, Error)]
pub enum StatementError {
    /// Postgres refused it.
    #[error("{}", error_chain(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// It asks for other values than a key has.
    #[error("it has {found} parameters, and the first template has {wanted} placeholders")]
    Parameters {
        /// Those of the statement.
        found: usize,
        /// Those of the template.
        wanted: usize,
    },
}

/// Has Postgres read a statement for keys with so many placeholders.
///
/// # Errors
/// When it is none, or is not for such keys.
pub async fn prepare(client: &Client, sql: &str, wanted: usize) -> Result<Statement, StatementError> {
    let statement = client.prepare(&wrapped(sql)).await?;
    let found = statement.params().len();
    if found == wanted { Ok(statement) } else { Err(StatementError::Parameters { found, wanted }) }
}

/// Runs it, for these placeholders; None is NULL.
///
/// # Errors
/// When Postgres refuses it, or a value is none of the parameter's type.
pub async fn run(
    client: &Client,
    statement: &Statement,
    values: &[Option<&str>],
) -> Result<Found, StatementError> {
    let texts: Vec<Option<AsText<'_>>> = values.iter().map(|value| value.map(AsText)).collect();
    let values: Vec<&(dyn ToSql + Sync)> = texts.iter().map(|text| text as _).collect();
    let rows = client.query(statement, &values).await?;
    Ok(match &rows[..] {
        [] => Found::Nothing,
        [row] => Found::Text(first(row)?),
        _ => Found::Several,
    })
}

fn first(row: &Row) -> Result<Option<String>, tokio_postgres::Error> {
    row.try_get(0)
}

/// Where the log ends now: beyond every commit that a statement before has seen.
///
/// # Errors
/// When Postgres does not say.
pub async fn end_of_log(client: &Client) -> Result<Option<Lsn>, StatementError> {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::pg_catalog.text", &[]).await?;
    Ok(first(&row)?.and_then(|text| text.parse().ok()))
}

/// A parameter that Postgres reads as it reads a literal: of whatever type the statement has it.
#[derive(Debug)]
struct AsText<'a>(&'a str);

impl ToSql for AsText<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_wrapped_whole() {
        let sql = wrapped(" SELECT name -- the name\n FROM public.users WHERE id = $1; ");
        assert!(sql.contains("WHERE id = $1\n)") && !sql.contains(';'), "{sql}");
    }
}
