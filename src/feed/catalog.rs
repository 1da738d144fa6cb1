//! The database's catalog against the guards: what stops the start, and the SQL that mends it.

use std::collections::HashMap;

use tokio_postgres::{Client, NoTls};

pub use super::problem::{CatalogError, Problem, describe};
use super::quoting::{quoted_name, quoted_table};
use crate::guard::{ColumnKind, Guard, GuardId, Guards, VersionKind};
use crate::pg::error::error_chain;
use crate::pg::replication::Walsender;
use crate::pg::target::{SESSION, Target, parse_url};
use crate::position::{Lsn, Snapshot};

/// Logical messages of other output plugins' era: `messages` came to pgoutput with version 14.
const OLDEST_VERSION: i32 = 140_000;

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

/// A column of a guarded table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The oid of its type.
    pub type_oid: u32,
    /// Its type as SQL writes it.
    pub type_name: String,
}

impl Column {
    /// The texts that it can print.
    pub fn kind(&self) -> ColumnKind {
        column_kind(self.type_oid)
    }
}

/// The texts that a type can print. Domains and everything else: any.
pub fn column_kind(type_oid: u32) -> ColumnKind {
    match type_oid {
        20 | 21 | 23 => ColumnKind::Integer,
        2950 => ColumnKind::Uuid,
        16 => ColumnKind::Bool,
        _ => ColumnKind::Any,
    }
}

/// A guarded table as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The guard.
    pub guard: GuardId,
    /// Its oid.
    pub oid: u32,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Those of its primary key; none if it has none, or one that can be put off to the end of a transaction.
    pub primary_key: Vec<String>,
}

impl Table {
    /// The texts that a column can print; any, if there is no such column.
    pub fn kind(&self, column: &str) -> ColumnKind {
        self.columns.iter().find(|c| c.name == column).map_or(ColumnKind::Any, Column::kind)
    }

    /// What a column holds as a version.
    fn version_kind(&self, column: &str) -> Option<VersionKind> {
        self.columns.iter().find(|c| c.name == column).and_then(|c| VersionKind::of_type(c.type_oid))
    }
}

/// The guards with what the catalog tells: the types of their columns, and which keys are of one row.
pub fn learn(guards: &Guards, tables: &[Table]) -> Guards {
    let table = |guard: &Guard| tables.iter().find(|table| table.guard == guard.id);
    let typed = guards
        .with_column_kinds(|guard, column| table(guard).map_or(ColumnKind::Any, |table| table.kind(column)));
    typed.with_rows(|guard| {
        let Some(table) = table(guard) else { return (&[], None) };
        let kind = guard.version.as_ref().and_then(|version| table.version_kind(&version.column));
        (&table.primary_key, kind)
    })
}

/// What of a guard's version evidence will be of less use than was hoped for.
pub fn weak_versions<'a>(guards: &'a Guards, tables: &[Table]) -> Vec<(&'a Guard, &'static str)> {
    let learnt = learn(guards, tables);
    let weak = |guard: &&Guard| {
        let learnt = learnt.get(guard.id);
        learnt.is_some_and(|guard| {
            guard.version.is_some() && !guard.templates.iter().any(crate::guard::Template::is_one_row)
        })
    };
    let why = "no template contains the table's whole primary key (one that is not deferrable) in a way that tells rows \
               apart, so the version of a fill proves nothing";
    guards.iter().filter(weak).map(|guard| (guard, why)).collect()
}

/// The server itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `server_version_num`.
    pub version: i32,
    /// What must change before it can be followed.
    pub problems: Vec<Problem>,
    /// How far its log was flushed when it was asked.
    pub flushed: Lsn,
    /// What was visible then.
    pub snapshot: Snapshot,
    /// Whom commits wait for.
    pub synchronous_standby_names: String,
}

/// Looks at the server: version, `wal_level`.
///
/// # Errors
/// When it cannot be asked, or is a standby.
pub async fn server(client: &Client) -> Result<Server, CatalogError> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int4, current_setting('wal_level'), \
                    pg_is_in_recovery(), \
                    CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_flush_lsn()::text END, \
                    pg_current_snapshot()::text, current_setting('synchronous_standby_names')",
            &[],
        )
        .await?;
    if row.get(2) {
        return Err(CatalogError::Standby);
    }
    let (version, wal_level): (i32, String) = (row.get(0), row.get(1));
    let (flushed, snapshot): (String, String) = (row.get(3), row.get(4));
    let mut problems = Vec::new();
    if version < OLDEST_VERSION {
        problems.push(Problem::Version { found: version });
    }
    if wal_level != "logical" {
        problems.push(Problem::WalLevel { found: wal_level });
    }
    Ok(Server {
        version,
        problems,
        flushed: flushed.parse().map_err(|_| CatalogError::Answer(flushed))?,
        snapshot: snapshot.parse().map_err(|_| CatalogError::Answer(snapshot))?,
        synchronous_standby_names: row.get(5),
    })
}

const TABLE: &str = "\
    SELECT c.oid, c.relkind::text, c.relpersistence::text, c.relreplident::text, current_database()::text, \
           EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')";

/// Which columns the replica identity has is decided by the rules of `RelationGetIndexAttrBitmap`: only key columns
/// of a valid, immediate index.
const COLUMNS: &str = "\
    SELECT a.attname::text, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attgenerated <> '', \
           EXISTS (SELECT FROM pg_catalog.pg_index i \
                   WHERE i.indrelid = a.attrelid AND i.indisvalid AND i.indimmediate \
                     AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident \
                         ELSE false END \
                     AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])), \
           EXISTS (SELECT FROM pg_catalog.pg_index i \
                   WHERE i.indrelid = a.attrelid AND i.indisvalid AND i.indimmediate AND i.indisprimary \
                     AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) \
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// Looks at every guard's table. The tables are complete only if there are no problems.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn tables(client: &Client, guards: &Guards) -> Result<(Vec<Table>, Vec<Problem>), CatalogError> {
    let (mut tables, mut problems) = (Vec::new(), Vec::new());
    for guard in guards {
        if let Some(table) = table(client, guard, &mut problems).await? {
            tables.push(table);
        }
    }
    Ok((tables, problems))
}

async fn table(
    client: &Client,
    guard: &Guard,
    problems: &mut Vec<Problem>,
) -> Result<Option<Table>, CatalogError> {
    let label = || guard.label.clone();
    let rows = client.query(TABLE, &[&guard.schema, &guard.table]).await?;
    let Some(row) = rows.first() else {
        let database = client.query_one("SELECT current_database()::text", &[]).await?.get(0);
        problems.push(Problem::NoTable { guard: guard.id, table: label(), database });
        return Ok(None);
    };
    let (oid, kind, persistence): (u32, String, String) = (row.get(0), row.get(1), row.get(2));
    let (identity, has_children): (String, bool) = (row.get(3), row.get(5));
    let unsupported = match kind.as_str() {
        "p" => Some("partitioned tables"),
        "v" => Some("views"),
        "m" => Some("materialized views"),
        "f" => Some("foreign tables"),
        _ if has_children => Some("tables with inheritance children"),
        _ => None,
    };
    if let Some(what) = unsupported {
        problems.push(Problem::Unsupported { guard: guard.id, table: label(), what });
        return Ok(None);
    }
    let quoted = quoted_table(guard);
    if persistence != "p" {
        problems.push(Problem::Unlogged { guard: guard.id, table: quoted });
        return Ok(None);
    }

    let (mut columns, mut primary_key) = (Vec::new(), Vec::new());
    // Name -> (generated, in the identity).
    let mut flags: HashMap<String, (bool, bool)> = HashMap::new();
    for row in client.query(COLUMNS, &[&oid]).await? {
        let column = Column { name: row.get(0), type_oid: row.get(1), type_name: row.get(2) };
        flags.insert(column.name.clone(), (row.get(3), identity == "f" || row.get::<_, bool>(4)));
        if row.get(5) {
            primary_key.push(column.name.clone());
        }
        columns.push(column);
    }
    if !flags.values().any(|(_, in_identity)| *in_identity) {
        problems.push(Problem::NoIdentity { guard: guard.id, table: quoted });
        return Ok(None);
    }
    let before = problems.len();
    for template in &guard.templates {
        for column in template.columns() {
            let (column, template) = (column.clone(), template.text().to_owned());
            match flags.get(&column) {
                None => problems.push(Problem::NoColumn {
                    guard: guard.id,
                    table: label(),
                    template,
                    column,
                    columns: columns.iter().map(|c| c.name.clone()).collect(),
                }),
                Some((true, _)) => {
                    problems.push(Problem::Generated { guard: guard.id, table: label(), template, column });
                }
                Some((false, false)) => problems.push(Problem::OutsideIdentity {
                    guard: guard.id,
                    table: quoted.clone(),
                    template,
                    column,
                }),
                Some((false, true)) => {}
            }
        }
    }
    let version = guard.version.as_ref().and_then(|version| {
        let column = columns.iter().find(|column| column.name == version.column);
        let is_generated = flags.get(&version.column).is_some_and(|(generated, _)| *generated);
        Some((version.column.clone(), wrong_version(column, is_generated)?))
    });
    if let Some((column, what)) = version {
        problems.push(Problem::VersionColumn { guard: guard.id, table: label(), column, what });
    }
    Ok((problems.len() == before).then_some(Table { guard: guard.id, oid, columns, primary_key }))
}

/// Why a column cannot hold versions.
fn wrong_version(column: Option<&Column>, is_generated: bool) -> Option<String> {
    match column {
        None => Some("which the table does not have".into()),
        Some(_) if is_generated => Some("which is generated: Postgres does not replicate it".into()),
        Some(column) if VersionKind::of_type(column.type_oid).is_none() => Some(format!(
            "which is of type {}; allowed: smallint, integer, bigint, timestamp, timestamp with time zone",
            column.type_name
        )),
        Some(_) => None,
    }
}

/// Whether a publication is there, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// There is none of that name.
    Missing,
    /// There is one; without problems it will do.
    Present(Vec<Problem>),
}

/// Looks at the publication.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn publication(client: &Client, name: &str, guards: &Guards) -> Result<Publication, CatalogError> {
    let row = client
        .query_opt(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, current_setting('server_version_num')::int4 \
             FROM pg_catalog.pg_publication WHERE pubname = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(Publication::Missing) };
    let mut problems = Vec::new();
    let missing: Vec<&str> = ["insert", "update", "delete", "truncate"]
        .into_iter()
        .enumerate()
        .filter(|(i, _)| !row.get::<_, bool>(*i))
        .map(|(_, operation)| operation)
        .collect();
    let quoted = quoted_name(name);
    if !missing.is_empty() {
        problems.push(Problem::Operations { publication: quoted.clone(), missing: missing.join(", ") });
    }
    // Row filters and column lists came with version 15.
    let restricted = if row.get::<_, i32>(4) >= 150_000 {
        "r.prqual IS NOT NULL OR r.prattrs IS NOT NULL"
    } else {
        "false"
    };
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_tables t \
                        WHERE t.pubname = $1 AND t.schemaname = $2 AND t.tablename = $3), \
                EXISTS (SELECT FROM pg_catalog.pg_publication_rel r \
                        JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
                        JOIN pg_catalog.pg_class c ON c.oid = r.prrelid \
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                        WHERE p.pubname = $1 AND n.nspname = $2 AND c.relname = $3 AND ({restricted}))"
    );
    let statement = client.prepare(&sql).await?;
    for guard in guards {
        let row = client.query_one(&statement, &[&name, &guard.schema, &guard.table]).await?;
        let (table, publication) = (quoted_table(guard), quoted.clone());
        match (row.get(0), row.get(1)) {
            (false, _) => problems.push(Problem::NotPublished { guard: guard.id, table, publication }),
            (true, true) => problems.push(Problem::Filtered { guard: guard.id, table, publication }),
            (true, false) => {}
        }
    }
    Ok(Publication::Present(problems))
}

/// `CREATE PUBLICATION` for the guards' tables.
pub fn create_publication(name: &str, guards: &Guards) -> String {
    let tables: Vec<String> = guards.iter().map(quoted_table).collect();
    match tables.as_slice() {
        // A publication of nothing is allowed, "FOR TABLE" of nothing is not.
        [] => format!("CREATE PUBLICATION {}", quoted_name(name)),
        tables => format!("CREATE PUBLICATION {} FOR TABLE {}", quoted_name(name), tables.join(", ")),
    }
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Up to where it was confirmed.
    pub confirmed: Lsn,
    /// Postgres has given it up: nothing can be read from it any more.
    pub lost: bool,
    /// Somebody is reading it.
    pub active: bool,
    /// Set if it cannot be ours.
    pub problem: Option<Problem>,
}

/// Looks at the slot.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn slot(client: &Client, name: &str) -> Result<Option<Slot>, CatalogError> {
    let row = client
        .query_opt(
            "SELECT slot_type, plugin::text, database::text, current_database()::text, temporary, active, \
                    confirmed_flush_lsn::text, wal_status, \
                    coalesce((to_jsonb(s) ->> 'conflicting')::bool, false) \
                      OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL \
             FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let (plugin, database): (Option<String>, Option<String>) = (row.get(1), row.get(2));
    let here: String = row.get(3);
    let what = match (row.get::<_, &str>(0), plugin.as_deref(), database) {
        ("logical", Some("pgoutput"), Some(database)) if database == here => None,
        ("logical", Some("pgoutput"), Some(database)) => {
            Some(format!("belongs to database {database:?}, not to {here:?}"))
        }
        ("logical", Some(plugin), _) => Some(format!("has the output plugin {plugin:?}, not \"pgoutput\"")),
        (kind, _, _) => Some(format!("is {kind}, not logical")),
    };
    let what = what.or(row.get::<_, bool>(4).then(|| "is temporary".to_owned()));
    let confirmed: Option<String> = row.get(6);
    Ok(Some(Slot {
        confirmed: confirmed.and_then(|text| text.parse().ok()).unwrap_or_default(),
        lost: row.get::<_, Option<&str>>(7) == Some("lost") || row.get(8),
        active: row.get(5),
        problem: what.map(|what| Problem::Slot { slot: name.to_owned(), what }),
    }))
}
