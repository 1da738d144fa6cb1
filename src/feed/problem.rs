//! What can be wrong with the database, and the SQL that mends it.

use thiserror::Error;
use tokio_postgres::error::SqlState;

use super::quoting::quoted_name;
use crate::guard::GuardId;
use crate::pg::error::{PgError, error_chain, permanent_sqlstate};
use crate::pg::replication::literal;

/// Something in the database that a person has to change.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// Too old a server.
    #[error("Postgres is version {found}; 13 or later is needed")]
    Version {
        /// `server_version_num`.
        found: i32,
    },
    /// `wal_level` is too low.
    #[error("wal_level is {found:?}; logical replication needs \"logical\"")]
    WalLevel {
        /// What it is.
        found: String,
    },
    /// The role may not replicate.
    #[error("role {role:?} may not stream replication")]
    Role {
        /// The role that we log in as.
        role: String,
    },
    /// No such table.
    #[error("guard {table}: there is no such table in database {database:?}")]
    NoTable {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// Where it was looked for.
        database: String,
    },
    /// Its changes, or some of them, are not in the stream.
    #[error("guard {table}: the table cannot be guarded: {why}")]
    Unsupported {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// Why not.
        why: String,
    },
    /// Which partitions there are is known to the stream only if changes come as those of the root.
    #[error(
        "guard {table}: the table is partitioned, and publication {publication} publishes each partition under its own name: rows of a new partition would be missed"
    )]
    PartitionsApart {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// The publication, quoted for SQL.
        publication: String,
    },
    /// Its rows come under another name.
    #[error(
        "guard {table}: the table is a partition, and publication {publication} publishes its rows as those of {root}: guard that table instead, whose templates can use the same columns"
    )]
    PublishedAsRoot {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// The table above it that is published, quoted for SQL.
        root: String,
        /// The publication, quoted for SQL.
        publication: String,
    },
    /// Not in the log.
    #[error("guard {table}: the table is unlogged or temporary: its changes are not replicated")]
    Unlogged {
        /// The guard.
        guard: GuardId,
        /// `schema.table`, quoted for SQL.
        table: String,
    },
    /// No such column.
    #[error("guard {table}: template {template:?} uses column {column:?}, which the table does not have (it has {})", .columns.join(", "))]
    NoColumn {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// The template.
        template: String,
        /// The missing column.
        column: String,
        /// The columns there are.
        columns: Vec<String>,
    },
    /// Generated columns are not in the stream.
    #[error(
        "guard {table}: template {template:?} uses column {column:?}, which is generated: Postgres does not replicate it"
    )]
    Generated {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// The template.
        template: String,
        /// The column.
        column: String,
    },
    /// No version can be had of it.
    #[error("guard {table}: version.column is {column:?}, {what}")]
    VersionColumn {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// The column.
        column: String,
        /// What is wrong with it.
        what: String,
    },
    /// An UPDATE would not tell the old key.
    #[error(
        "guard {table}: template {template:?} uses column {column:?}, which is outside the table's replica identity{}: an UPDATE or DELETE would not tell the old value",
        in_parts(.table, .tables)
    )]
    OutsideIdentity {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// Where it is, or those of its partitions and children where it is: quoted for SQL.
        tables: Vec<String>,
        /// The template.
        template: String,
        /// The column.
        column: String,
    },
    /// UPDATE and DELETE of a published table would fail.
    #[error(
        "guard {table}: the table has no replica identity{} (no primary key, or REPLICA IDENTITY NOTHING): once it is published, UPDATE and DELETE of it fail",
        in_parts(.table, .tables)
    )]
    NoIdentity {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// Where it is, or those of its partitions and children where it is: quoted for SQL.
        tables: Vec<String>,
    },
    /// The publication was made without this table.
    #[error("publication {publication} does not contain {table}")]
    NotPublished {
        /// The guard.
        guard: GuardId,
        /// `schema.table`, quoted for SQL.
        table: String,
        /// The publication, quoted for SQL.
        publication: String,
    },
    /// There is none any more.
    #[error("publication {publication} is gone")]
    NoPublication {
        /// The publication, quoted for SQL.
        publication: String,
        /// The SQL that makes it.
        create: String,
    },
    /// Some changes would not be seen.
    #[error(
        "publication {publication} restricts {table} by a row filter or a column list: changes outside it would be missed"
    )]
    Filtered {
        /// The guard.
        guard: GuardId,
        /// `schema.table`, quoted for SQL.
        table: String,
        /// The publication, quoted for SQL.
        publication: String,
    },
    /// UPDATE and DELETE of the table fail.
    #[error(
        "guard {table}: the table's replica identity has generated columns, which publication {publication} leaves out: UPDATE and DELETE of it fail"
    )]
    GeneratedLeftOut {
        /// The guard.
        guard: GuardId,
        /// `schema.table`.
        table: String,
        /// The publication, quoted for SQL.
        publication: String,
    },
    /// Some changes would not be seen.
    #[error("publication {publication} leaves out {missing}")]
    Operations {
        /// The publication, quoted for SQL.
        publication: String,
        /// What it leaves out.
        missing: String,
    },
    /// The slot is someone else's.
    #[error(
        "replication slot {slot:?} {what}: it may be somebody else's; give this proxy another postgres.slot, or drop it if \
         nobody needs it"
    )]
    Slot {
        /// Its name.
        slot: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Problem {
    /// The SQL that mends it, where SQL can.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Problem::WalLevel { .. } => {
                Some("ALTER SYSTEM SET wal_level = logical; -- and restart Postgres".into())
            }
            Problem::Role { role } => Some(format!("ALTER ROLE {} REPLICATION;", quoted_name(role))),
            Problem::Unlogged { table, .. } => Some(format!("ALTER TABLE {table} SET LOGGED;")),
            Problem::OutsideIdentity { tables, .. } | Problem::NoIdentity { tables, .. } => {
                let each = tables.iter().map(|table| format!("ALTER TABLE {table} REPLICA IDENTITY FULL;"));
                Some(each.collect::<Vec<_>>().join(" "))
            }
            Problem::PartitionsApart { publication, .. } => {
                Some(format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true);"))
            }
            Problem::GeneratedLeftOut { publication, .. } => {
                Some(format!("ALTER PUBLICATION {publication} SET (publish_generated_columns = stored);"))
            }
            Problem::NotPublished { table, publication, .. } => {
                Some(format!("ALTER PUBLICATION {publication} ADD TABLE {table};"))
            }
            Problem::NoPublication { create, .. } => Some(format!("{create};")),
            Problem::Filtered { table, publication, .. } => Some(format!(
                "ALTER PUBLICATION {publication} DROP TABLE {table}; ALTER PUBLICATION {publication} ADD TABLE {table};"
            )),
            Problem::Operations { publication, .. } => Some(format!(
                "ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate');"
            )),
            Problem::Slot { slot, .. } => {
                Some(format!("SELECT pg_drop_replication_slot({});", literal(slot)))
            }
            Problem::Version { .. }
            | Problem::NoTable { .. }
            | Problem::Unsupported { .. }
            | Problem::PublishedAsRoot { .. }
            | Problem::NoColumn { .. }
            | Problem::VersionColumn { .. }
            | Problem::Generated { .. } => None,
        }
    }

    /// The guard it is about; none: all of them.
    pub fn guard(&self) -> Option<GuardId> {
        match self {
            Problem::NoTable { guard, .. }
            | Problem::Unsupported { guard, .. }
            | Problem::PartitionsApart { guard, .. }
            | Problem::PublishedAsRoot { guard, .. }
            | Problem::Unlogged { guard, .. }
            | Problem::NoColumn { guard, .. }
            | Problem::VersionColumn { guard, .. }
            | Problem::Generated { guard, .. }
            | Problem::OutsideIdentity { guard, .. }
            | Problem::NoIdentity { guard, .. }
            | Problem::NotPublished { guard, .. }
            | Problem::GeneratedLeftOut { guard, .. }
            | Problem::Filtered { guard, .. } => Some(*guard),
            _ => None,
        }
    }
}

/// Which partitions or children it is about, unless it is the table itself.
fn in_parts(table: &str, tables: &[String]) -> String {
    match tables {
        [only] if only.replace('"', "") == table => String::new(),
        [first, second, third, more @ ..] if !more.is_empty() => {
            format!(" in {first}, {second}, {third} and {} more", more.len())
        }
        tables => format!(" in {}", tables.join(", ")),
    }
}

/// The problems, each with what mends it, for a person to read.
pub fn describe(problems: &[Problem]) -> String {
    let line = |problem: &Problem| match problem.remedy() {
        Some(sql) => format!("{problem}; run: {sql}"),
        None => problem.to_string(),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What to do where a right is missing.
fn who_may(error: &tokio_postgres::Error) -> &'static str {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        "; run it as a role that may, such as the owner of the database and the tables: cachefence init --print | psql"
    } else {
        ""
    }
}

/// Why the feed cannot start.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// The database does not fit the guards.
    #[error("{}", describe(.0))]
    Problems(Vec<Problem>),
    /// SQL failed.
    #[error("{}", error_chain(.0))]
    Sql(#[from] tokio_postgres::Error),
    /// What `init` or the start makes could not be made.
    #[error("cannot create {what}: {}{}", error_chain(.source), who_may(.source))]
    Create {
        /// What.
        what: &'static str,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// A connection failed, or a command of the walsender's.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// It answered what it should not.
    #[error("unexpected answer from Postgres: {0}")]
    Answer(String),
    /// Two connections to one address are not with one server.
    #[error(
        "connections to Postgres at {0} lead to different servers: name the servers themselves in postgres.url, several \
         if need be, instead of a balancer"
    )]
    Elsewhere(String),
    /// `postgres.url` leads to a standby, now.
    #[error("the Postgres at postgres.url is in recovery: the feed needs the primary")]
    Standby,
    /// Somebody else reads the slot. Nothing is touched in Redis before it is ours.
    #[error(
        "the replication slot {0:?} is in use: another cachefence runs with it, or the last one's connection has not \
         ended yet; give each its own postgres.slot"
    )]
    SlotInUse(String),
    /// An attempt took too long.
    #[error("no answer from Postgres for {0:?}")]
    Timeout(std::time::Duration),
}

impl CatalogError {
    /// Whether trying again later cannot help: a person has to change something.
    pub fn is_permanent(&self) -> bool {
        match self {
            CatalogError::Problems(_) => true,
            CatalogError::Sql(error) | CatalogError::Create { source: error, .. } => {
                error.code().is_some_and(|code| permanent_sqlstate(code.code()))
            }
            CatalogError::Postgres(error) => error.is_permanent(),
            CatalogError::Answer(_)
            | CatalogError::Elsewhere(_)
            | CatalogError::Standby
            | CatalogError::SlotInUse(_)
            | CatalogError::Timeout(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_name_the_sql() {
        let problem = Problem::OutsideIdentity {
            guard: GuardId(0),
            table: "public.users".into(),
            tables: vec!["public.users".into()],
            template: "users:by-email:<email>".into(),
            column: "email".into(),
        };
        assert_eq!(problem.remedy().as_deref(), Some("ALTER TABLE public.users REPLICA IDENTITY FULL;"));
        let error = CatalogError::Problems(vec![problem]);
        assert!(
            error.to_string().ends_with("; run: ALTER TABLE public.users REPLICA IDENTITY FULL;"),
            "{error}"
        );
        assert!(error.is_permanent());
    }

    #[test]
    fn partitions_are_named_but_not_all_of_them() {
        let problem = |tables: &[&str]| Problem::NoIdentity {
            guard: GuardId(0),
            table: "public.m".into(),
            tables: tables.iter().map(|table| (*table).to_owned()).collect(),
        };
        assert!(problem(&["public.m"]).to_string().contains("no replica identity (no primary key"));
        let two = problem(&["public.m_1", "public.\"M 2\""]);
        assert!(two.to_string().contains("no replica identity in public.m_1, public.\"M 2\" (no"), "{two}");
        assert_eq!(
            two.remedy().as_deref(),
            Some(
                "ALTER TABLE public.m_1 REPLICA IDENTITY FULL; ALTER TABLE public.\"M 2\" REPLICA IDENTITY FULL;"
            )
        );
        assert!(problem(&["a", "b", "c", "d", "e"]).to_string().contains(" in a, b, c and 2 more (no"));
    }
}
