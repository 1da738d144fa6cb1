//! What the role may see, and the functions that it cannot make without more rights.

use tokio_postgres::Client;

use super::report::Row;
use crate::config::Contract;
use crate::feed::catalog::CatalogError;
use crate::feed::sql::{self, Found};
use crate::pg::replication::identifier;

/// Whether the role sees what sessions of others do.
pub(super) async fn sees_all(client: &Client) -> Result<bool, CatalogError> {
    let sql = "SELECT pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// For strict it is needed; bounded does with less.
pub(super) fn monitor(role: &str, sees_all: bool, contract: Contract) -> Row {
    const NAME: &str = "pg_monitor";
    let grant = format!("GRANT pg_monitor TO {};", identifier(role));
    let not = || format!("role {role:?} is no member: it does not see what others' sessions do");
    match (sees_all, contract) {
        (true, _) => Row::good(NAME, format!("role {role:?} is a member")),
        (false, Contract::Strict) => {
            Row::failed(NAME, not()).means("the proxy cannot see whether commits wait for it").sql(grant)
        }
        (false, Contract::Bounded) => Row::warning(NAME, not())
            .means(
                "after a fresh slot a long transaction holds leases back until it ends, a standby's timeline is checked \
                 less strictly, and here standbys that are no source are not looked for",
            )
            .sql(grant),
    }
}

/// The functions for applications.
pub(super) async fn functions(client: &Client, version: i32) -> Result<Vec<Row>, CatalogError> {
    const NAME: &str = "functions";
    const INIT: &str = "cachefence init --print | psql # as a role that may create a schema in this database";
    let mut found = Vec::new();
    for function in sql::FUNCTIONS {
        found.push((function.name, function.found(client).await?));
    }
    let row = |name, found| {
        match found {
        Found::Present if version < sql::MESSAGES && name != "cachefence.asof()" => {
            Row::warning(NAME, "is there, and raises an error")
                .means("logical replication has messages from Postgres 14 on; templates need none")
        }
        Found::Present => Row::good(NAME, "is there"),
        Found::Other => Row::warning(NAME, "is not the one of this version").shell(INIT),
        Found::Missing => Row::warning(NAME, "is not there")
            .means(match name {
                "cachefence.asof()" => "applications have no evidence for ASOF; leases need none",
                "cachefence.fence_table(regclass)" => {
                    "a transaction that attaches, detaches or empties a partition cannot have its table fenced: the proxy \
                     notices by itself, seconds later"
                }
                _ => "applications can fence no keys by name; templates need none",
            })
            .shell(INIT),
    }
    };
    Ok(found.into_iter().map(|(name, found)| row(name, found).on(name)).collect())
}
