//! What the strict contract needs beyond: that commits wait, and whose do not.

use tokio_postgres::Client;

use super::report::Row;
use crate::feed::catalog::CatalogError;
use crate::feed::standby_names::{StandbyNames, remedy};
use crate::pg::replication::{identifier, literal};
use crate::pg::session;
use crate::pg::target::Target;

pub(super) const NAMES: &str = "synchronous_standby_names";
pub(super) const COMMIT: &str = "synchronous_commit";

/// Whom commits wait for.
pub(super) async fn standby_names(client: &Client, name: &str) -> Result<Vec<Row>, CatalogError> {
    let row = client.query_one("SELECT current_setting('synchronous_standby_names')", &[]).await?;
    Ok(vec![named(row.get(0), name)])
}

fn named(setting: &str, name: &str) -> Row {
    const NAME: &str = NAMES;
    match StandbyNames::parse(setting).map(|names| names.requires(name)) {
        Some(Ok(())) => Row::good(NAME, format!("{setting:?} has every commit wait for {name:?}")),
        Some(Err(why)) => Row::failed(
            NAME,
            format!("{setting:?} {why}: commits do not wait for {name:?}, so the contract is not in force"),
        )
        .sql(format!("{} -- while the proxy runs: from then on commits wait for it", remedy(setting, name))),
        None => Row::failed(NAME, format!("{setting:?} is not understood")),
    }
}

/// Whose commits do not wait: what the server, databases and roles say of it.
pub(super) async fn synchronous_commit(
    target: &Target,
    name: &str,
    client: &Client,
) -> Result<Vec<Row>, CatalogError> {
    let mut rows = Vec::new();
    // In a session without our own settings, which say `local`.
    let (plain, _) = session::as_it_is(target, name).await?;
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
        rows.push(Row::failed(COMMIT, found).sql(run));
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
            rows.push(set_elsewhere(COMMIT, &value, database.as_deref(), role.as_deref()));
        }
    }
    if rows.is_empty() {
        let found = "no default says off or local; a session that does is outside of the promise";
        rows.push(Row::good(COMMIT, found));
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
    Row::failed(name, found).sql(format!("{run} RESET synchronous_commit; -- sessions that are open keep it"))
}

/// The values with which a commit does not wait for standbys, as Postgres reads them.
fn does_not_wait(value: &str) -> bool {
    ["off", "local", "false", "no", "0"].iter().any(|off| value.trim().eq_ignore_ascii_case(off))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Standing;

    #[test]
    fn a_row_says_what_to_run() {
        let run = |row: &Row| row.remedy.as_ref().map(|remedy| remedy.run.clone()).unwrap_or_default();
        let row = named("s1", "cachefence").to_string();
        assert!(row.starts_with("FAILED  synchronous_standby_names   \"s1\" does not name it"), "{row}");
        assert!(row.contains("\n                                    run: ALTER SYSTEM SET"), "{row}");
        assert_eq!(named("cachefence", "cachefence").standing, Standing::Good);
        let row = set_elsewhere("synchronous_commit", "off", Some("app"), Some("batch"));
        assert_eq!(
            run(&row),
            "ALTER ROLE \"batch\" IN DATABASE \"app\" RESET synchronous_commit; -- sessions that are open keep it"
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
