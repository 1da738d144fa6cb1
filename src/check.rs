//! `cachefence check`: does all stand that the proxy needs? Each precondition is a row: what was found, what it means,
//! and what to run.

use std::fmt;

use tokio_postgres::{Client, NoTls};

use crate::cache::{Connection, Endpoint};
use crate::config::{Config, Contract};
use crate::feed::catalog::{self, CatalogError, Problem, Publication};
use crate::feed::standby_names::{StandbyNames, remedy};
use crate::guard::Guards;
use crate::pg::error::error_chain;
use crate::pg::replication::{identifier, literal};
use crate::pg::target::{Target, parse_url};

/// How a precondition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As it must be.
    Good,
    /// Not wrong; somebody should know of it.
    Warning,
    /// Not as it must be.
    Failed,
}

/// One precondition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// How it stands.
    pub standing: Standing,
    /// What was found, and what that means.
    pub found: String,
    /// What to run.
    pub run: Option<String>,
}

impl Row {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, standing: Standing::Good, found: found.into(), run: None }
    }

    fn warning(name: &'static str, found: impl Into<String>) -> Self {
        Self { standing: Standing::Warning, ..Self::good(name, found) }
    }

    fn failed(name: &'static str, found: impl Into<String>) -> Self {
        Self { standing: Standing::Failed, ..Self::good(name, found) }
    }

    fn run(self, sql: impl Into<String>) -> Self {
        Self { run: Some(sql.into()), ..self }
    }

    /// Problems of the catalog, or that there is none.
    fn of(name: &'static str, problems: &[Problem], good: impl Into<String>) -> Vec<Self> {
        if problems.is_empty() {
            return vec![Self::good(name, good)];
        }
        let row =
            |problem: &Problem| Self { run: problem.remedy(), ..Self::failed(name, problem.to_string()) };
        problems.iter().map(row).collect()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let standing = match self.standing {
            Standing::Good => "ok",
            Standing::Warning => "WARNING",
            Standing::Failed => "FAILED",
        };
        write!(f, "{standing:<8}{:<28}{}", self.name, self.found)?;
        match &self.run {
            Some(run) => write!(f, "\n{:36}run: {run}", ""),
            None => Ok(()),
        }
    }
}

/// Looks at everything.
pub async fn check(config: &Config, guards: &Guards, redis: &Endpoint) -> Vec<Row> {
    let mut rows = postgres(config, guards).await;
    rows.push(cache(config, redis).await);
    rows
}

async fn cache(config: &Config, redis: &Endpoint) -> Row {
    // Not the name of a process that follows the slot: those are ended at its start.
    let name = format!("cachefence-check:{}", config.postgres.slot);
    match Connection::open(redis, &name).await {
        Ok(_) => Row::good("Redis", format!("{redis} answers")),
        Err(error) => Row::failed("Redis", error.to_string()),
    }
}

async fn postgres(config: &Config, guards: &Guards) -> Vec<Row> {
    let postgres = &config.postgres;
    let client = match catalog::connect(&postgres.url, &postgres.application_name).await {
        Ok(client) => client,
        Err(error) => return vec![Row::failed("Postgres", error.to_string())],
    };
    let mut rows = vec![Row::good("Postgres", "answers")];
    let looked = async {
        rows.extend(server(&client).await?);
        rows.push(walsender(config).await);
        let (_, problems) = catalog::tables(&client, guards).await?;
        rows.extend(Row::of("guarded tables", &problems, "have what the templates need"));
        rows.extend(publication(config, guards, &client).await?);
        rows.push(slot(config, &client).await?);
        if postgres.contract == Contract::Strict {
            rows.extend(strict(config, &client).await?);
        }
        Ok::<(), CatalogError>(())
    };
    if let Err(error) = looked.await {
        rows.push(Row::failed("Postgres", error.to_string()));
    }
    rows
}

async fn server(client: &Client) -> Result<Vec<Row>, CatalogError> {
    let server = catalog::server(client).await?;
    let found = format!("version {}, wal_level logical", server.version / 10_000);
    Ok(Row::of("wal_level", &server.problems, found))
}

async fn walsender(config: &Config) -> Row {
    let connected = async {
        let target = Target::parse(&config.postgres.url)?;
        catalog::walsender(&target, &config.postgres.application_name).await
    };
    match connected.await {
        Ok(_) => Row::good("replication", "the role may stream"),
        Err(CatalogError::Problems(problems)) => Row {
            run: problems.iter().find_map(Problem::remedy),
            ..Row::failed(
                "replication",
                problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            )
        },
        Err(error) => Row::failed("replication", error.to_string()),
    }
}

async fn publication(config: &Config, guards: &Guards, client: &Client) -> Result<Vec<Row>, CatalogError> {
    let name = &config.postgres.publication;
    Ok(match catalog::publication(client, name, guards).await? {
        Publication::Missing => {
            let found =
                format!("there is no publication {name:?}; the proxy makes it at its start if its role may");
            vec![Row::failed("publication", found).run("cachefence init")]
        }
        Publication::Present(problems) => {
            Row::of("publication", &problems, format!("{name:?} has every guarded table"))
        }
    })
}

async fn slot(config: &Config, client: &Client) -> Result<Row, CatalogError> {
    let name = &config.postgres.slot;
    Ok(match catalog::slot(client, name, config.postgres.temporary_slot).await? {
        None => {
            let found = format!("there is no slot {name:?}; the proxy makes it at its start");
            Row::failed("slot", found).run("cachefence init")
        }
        Some(slot) => match (slot.problem, slot.lost, slot.active) {
            (Some(problem), ..) => Row { run: problem.remedy(), ..Row::failed("slot", problem.to_string()) },
            (None, true, _) => Row::warning(
                "slot",
                format!(
                    "Postgres has given {name:?} up: it is made anew at the next start, which purges the guarded keys"
                ),
            ),
            (None, false, true) => Row::good("slot", format!("{name:?} is read by a proxy")),
            (None, false, false) => {
                Row::warning("slot", format!("nobody reads {name:?}: it holds back WAL until the proxy runs"))
            }
        },
    })
}

/// What the strict contract needs beyond.
async fn strict(config: &Config, client: &Client) -> Result<Vec<Row>, CatalogError> {
    let name = &config.postgres.application_name;
    let row = client
        .query_one(
            "SELECT current_setting('synchronous_standby_names'), current_user::text, \
                    pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')",
            &[],
        )
        .await?;
    let (setting, role): (String, String) = (row.get(0), row.get(1));
    let mut rows = vec![standby_names(&setting, name)];
    rows.push(if row.get(2) {
        Row::good("pg_stat_replication", format!("role {role:?} may see whether commits wait"))
    } else {
        Row::failed("pg_stat_replication", format!("role {role:?} may not see whether commits wait"))
            .run(format!("GRANT pg_monitor TO {};", identifier(&role)))
    });
    rows.extend(synchronous_commit(config, client).await?);
    Ok(rows)
}

fn standby_names(setting: &str, name: &str) -> Row {
    const NAME: &str = "synchronous_standby_names";
    match StandbyNames::parse(setting).map(|names| names.requires(name)) {
        Some(Ok(())) => Row::good(NAME, format!("{setting:?} has every commit wait for {name:?}")),
        Some(Err(why)) => Row::failed(
            NAME,
            format!("{setting:?} {why}: commits do not wait for {name:?}, so the contract is not in force"),
        )
        .run(format!("{} -- while the proxy runs: from then on commits wait for it", remedy(setting, name))),
        None => Row::failed(NAME, format!("{setting:?} is not understood")),
    }
}

/// Whose commits do not wait: what the server, databases and roles say of it.
async fn synchronous_commit(config: &Config, client: &Client) -> Result<Vec<Row>, CatalogError> {
    const NAME: &str = "synchronous_commit";
    let mut rows = Vec::new();
    // In a session without our own settings, which say `local`.
    let (plain, connection) = parse_url(&config.postgres.url)?.connect(NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = error_chain(&error), "an SQL connection ended");
        }
    });
    let row = plain
        .query_one(
            "SELECT setting, source FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit'",
            &[],
        )
        .await?;
    let (value, source): (String, String) = (row.get(0), row.get(1));
    let of_server = !matches!(source.as_str(), "database" | "user" | "database user" | "client" | "session");
    if of_server && does_not_wait(&value) {
        let found = format!("the server's default is {value}: commits do not wait for the proxy");
        let run = "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();";
        rows.push(Row::failed(NAME, found).run(run));
    }
    let set = client
        .query(
            "SELECT d.datname::text, r.rolname::text, split_part(c, '=', 2) \
             FROM pg_catalog.pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS c \
             LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase \
             LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole \
             WHERE c LIKE 'synchronous_commit=%' AND (d.oid IS NULL OR d.datname = current_database()) \
               AND r.rolname IS DISTINCT FROM current_user::text",
            &[],
        )
        .await?;
    for row in set {
        let (database, role): (Option<String>, Option<String>) = (row.get(0), row.get(1));
        let value: String = row.get(2);
        if does_not_wait(&value) {
            rows.push(set_elsewhere(NAME, &value, database.as_deref(), role.as_deref()));
        }
    }
    if rows.is_empty() {
        let found = "no default says off or local; a session that does is outside of the promise";
        rows.push(Row::good(NAME, found));
    }
    Ok(rows)
}

fn set_elsewhere(name: &'static str, value: &str, database: Option<&str>, role: Option<&str>) -> Row {
    let (whose, run) = match (database, role) {
        (None, Some(role)) => (format!("role {role:?}"), format!("ALTER ROLE {}", identifier(role))),
        (Some(database), Some(role)) => (
            format!("role {role:?} in database {database:?}"),
            format!("ALTER ROLE {} IN DATABASE {}", identifier(role), identifier(database)),
        ),
        (Some(database), None) => {
            (format!("database {database:?}"), format!("ALTER DATABASE {}", identifier(database)))
        }
        (None, None) => ("all roles".to_owned(), "ALTER ROLE ALL".to_owned()),
    };
    let found = format!("{whose} has {}: its commits do not wait for the proxy", literal(value));
    Row::failed(name, found).run(format!("{run} RESET synchronous_commit; -- sessions that are open keep it"))
}

/// The values with which a commit does not wait for standbys, as Postgres reads them.
fn does_not_wait(value: &str) -> bool {
    ["off", "local", "false", "no", "0"].iter().any(|off| value.trim().eq_ignore_ascii_case(off))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_to_run() {
        let row = standby_names("s1", "cachefence").to_string();
        assert!(row.starts_with("FAILED  synchronous_standby_names   \"s1\" does not name it"), "{row}");
        assert!(row.contains("\n                                    run: ALTER SYSTEM SET"), "{row}");
        assert_eq!(standby_names("cachefence", "cachefence").standing, Standing::Good);
        let row = set_elsewhere("synchronous_commit", "off", Some("app"), Some("batch"));
        assert_eq!(
            row.run.as_deref(),
            Some(
                "ALTER ROLE \"batch\" IN DATABASE \"app\" RESET synchronous_commit; -- sessions that are open keep it"
            )
        );
    }

    #[test]
    fn values_that_do_not_wait() {
        for value in ["off", "LOCAL", "false", "no", "0"] {
            assert!(does_not_wait(value), "{value}");
        }
        for value in ["on", "remote_write", "remote_apply", "true", "1"] {
            assert!(!does_not_wait(value), "{value}");
        }
    }
}
