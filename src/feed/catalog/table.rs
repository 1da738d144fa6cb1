//! The guarded tables: their columns, their primary key, and whether they can tell every key.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::parts::{self, FoundPart, Part};
use super::{CatalogError, Problem, Stamp};
use crate::feed::quoting::quoted_table;
use crate::guard::{ColumnKind, FNV_OFFSET, Guard, GuardId, Guards, VersionKind, fnv1a};

/// A column of a guarded table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its number, for as long as it exists: another column can take its name.
    pub number: i16,
    /// Its name.
    pub name: String,
    /// The oid of its type.
    pub type_oid: u32,
    /// Its type as SQL writes it.
    pub type_name: String,
    /// The transaction that last altered it. `ALTER COLUMN ... TYPE ... USING` to the same type tells of itself by nothing
    /// else, and the rows that it rewrites are not in the stream.
    pub altered: u32,
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
    /// The tables below it that hold rows of it.
    pub parts: Vec<Part>,
    /// Of a partitioned table: the columns that are in the replica identity of every partition. Its rows come with the
    /// layout of the root, and old ones with what the partition's own identity has kept, which the layout does not tell.
    pub identity: Option<Vec<String>>,
    /// What publishes it, and since when.
    pub stamps: Vec<Stamp>,
}

impl Table {
    /// The texts that a column can print; any, if there is no such column.
    pub fn kind(&self, column: &str) -> ColumnKind {
        self.columns.iter().find(|c| c.name == column).map_or(ColumnKind::Any, Column::kind)
    }

    /// What a column holds as a version.
    pub(super) fn version_kind(&self, column: &str) -> Option<VersionKind> {
        self.columns.iter().find(|c| c.name == column).and_then(|c| VersionKind::of_type(c.type_oid))
    }
}

/// The guards with what the catalog tells: the types of their columns, and which keys are of one row.
pub fn learn(guards: &Guards, tables: &[Table]) -> Guards {
    let table = |guard: &Guard| tables.iter().find(|table| table.guard == guard.id);
    let typed = guards
        .with_column_kinds(|guard, column| table(guard).map_or(ColumnKind::Any, |table| table.kind(column)));
    let rows = typed.with_rows(|guard| {
        let Some(table) = table(guard) else { return (&[], None) };
        let kind = guard.version.as_ref().and_then(|version| table.version_kind(&version.column));
        (&table.primary_key, kind)
    });
    rows.with_tables(|guard| table(guard).map_or(0, digest))
}

/// Equal for equal tables, in every process; never 0.
fn digest(table: &Table) -> u64 {
    let number = |hash, n: u64| fnv1a(hash, &n.to_le_bytes());
    let column = |hash, column: &Column| {
        let named = fnv1a(number(hash, column.number as u64), column.name.as_bytes());
        let typed = fnv1a(number(named, u64::from(column.type_oid)), column.type_name.as_bytes());
        number(typed, u64::from(column.altered))
    };
    let part = |hash, part: &Part| {
        [u64::from(part.oid), u64::from(part.storage), part.attached].into_iter().fold(hash, number)
    };
    let own = table.columns.iter().fold(number(FNV_OFFSET, u64::from(table.oid)), column);
    let stamp =
        |hash, stamp: &Stamp| [u64::from(stamp.oid), u64::from(stamp.written)].into_iter().fold(hash, number);
    table.stamps.iter().fold(table.parts.iter().fold(own, part), stamp).max(1)
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

const TABLE: &str = "\
    SELECT c.oid, c.relkind::text, c.relpersistence::text, c.relreplident::text \
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
                     AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])), a.attnum, \
           a.xmin::text::int8 \
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// Looks at every guard's table. The tables are complete only if there are no problems.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn tables(client: &Client, guards: &Guards) -> Result<(Vec<Table>, Vec<Problem>), CatalogError> {
    // One snapshot for all questions: between two of them a table may get another replica identity, and half of each is
    // none.
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let looked = look_at(client, guards).await;
    client.batch_execute("COMMIT").await?;
    looked
}

async fn look_at(client: &Client, guards: &Guards) -> Result<(Vec<Table>, Vec<Problem>), CatalogError> {
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
    let (identity, is_partitioned): (String, bool) = (row.get(3), kind == "p");
    let unsupported = match kind.as_str() {
        "v" => Some("a view has no rows of its own; guard the tables that it reads"),
        "m" => Some("changes of a materialized view are not replicated"),
        "f" => Some("changes of a foreign table are not in this server's log"),
        _ => None,
    };
    if let Some(why) = unsupported {
        problems.push(Problem::Unsupported { guard: guard.id, table: label(), why: why.into() });
        return Ok(None);
    }
    let quoted = quoted_table(guard);
    if persistence != "p" {
        problems.push(Problem::Unlogged { guard: guard.id, table: quoted });
        return Ok(None);
    }
    let before = problems.len();
    let below = parts::parts(client, oid).await?;
    problems.extend(below.iter().filter_map(|part| unfit_part(guard, part)));

    let (mut columns, mut primary_key) = (Vec::new(), Vec::new());
    // Name -> (generated, in the identity).
    let mut flags: HashMap<String, (bool, bool)> = HashMap::new();
    for row in client.query(COLUMNS, &[&oid]).await? {
        let (name, type_oid, type_name) = (row.get(0), row.get(1), row.get(2));
        // An xid has 32 bits.
        let altered = u32::try_from(row.get::<_, i64>(7)).unwrap_or_default();
        let column = Column { number: row.get(6), name, type_oid, type_name, altered };
        flags.insert(column.name.clone(), (row.get(3), identity == "f" || row.get::<_, bool>(4)));
        if row.get(5) {
            primary_key.push(column.name.clone());
        }
        columns.push(column);
    }
    // Rows lie in the partitions, if there are any. A child's rows come as they lie there, and so do the parent's own.
    let own =
        flags.iter().filter(|(_, (_, in_identity))| *in_identity).map(|(name, _)| name.clone()).collect();
    let own = (!is_partitioned).then_some((quoted, own));
    let identities: Vec<(String, Vec<String>)> =
        own.into_iter().chain(below.iter().map(|part| (part.name.clone(), part.identity.clone()))).collect();
    let without = |lacks: &dyn Fn(&[String]) -> bool| -> Vec<String> {
        identities.iter().filter(|(_, columns)| lacks(columns)).map(|(name, _)| name.clone()).collect()
    };
    let bare = without(&|columns| columns.is_empty());
    if !bare.is_empty() {
        problems.push(Problem::NoIdentity { guard: guard.id, table: label(), tables: bare });
        return Ok(None);
    }
    for template in &guard.templates {
        for column in template.columns() {
            let outside = without(&|columns| !columns.contains(column));
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
                Some(_) if !outside.is_empty() => problems.push(Problem::OutsideIdentity {
                    guard: guard.id,
                    table: label(),
                    tables: outside,
                    template,
                    column,
                }),
                Some(_) => {}
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
    if !is_partitioned && !below.is_empty() {
        // A primary key is of one table only: a child may have a row of the same key.
        primary_key.clear();
    }
    let in_all = |column: &&Column| without(&|columns| !columns.contains(&column.name)).is_empty();
    let identity = || columns.iter().filter(in_all).map(|column| column.name.clone()).collect();
    let table = Table {
        guard: guard.id,
        oid,
        identity: is_partitioned.then(identity),
        parts: below.into_iter().map(|found| found.part).collect(),
        columns,
        primary_key,
        stamps: Vec::new(),
    };
    Ok((problems.len() == before).then_some(table))
}

/// Why the rows of a part would not be seen.
fn unfit_part(guard: &Guard, part: &FoundPart) -> Option<Problem> {
    let table = part.name.clone();
    if part.kind != "r" {
        let why = format!(
            "{table} holds rows of it and is a foreign table, whose changes are not in this server's log"
        );
        return Some(Problem::Unsupported { guard: guard.id, table: guard.label.clone(), why });
    }
    (part.persistence != "p").then_some(Problem::Unlogged { guard: guard.id, table })
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
