//! A guard on a table as the stream describes it: which columns its keys are made of.

use crate::feed::catalog::{Table, column_kind};
use crate::fence::Version;
use crate::guard::{ColumnKind, Guard, GuardId, VersionKind};
use crate::pg::pgoutput::{Relation, Value};

/// A table as the stream describes it, and the guards that its rows feed: none, for most tables of a publication of all.
#[derive(Debug)]
pub(super) struct Known {
    pub layout: Layout,
    pub rules: Vec<Rules>,
    /// Which of all layouts it is, in the order they came.
    pub arrived: u64,
}

/// How rows of a table are laid out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub schema: String,
    pub name: String,
    replica_identity: u8,
    columns: Vec<Column>,
}

#[derive(Debug, PartialEq, Eq)]
struct Column {
    name: String,
    type_oid: u32,
    in_identity: bool,
}

impl Layout {
    pub fn of(relation: &Relation<'_>) -> Self {
        let column = |column: crate::pg::pgoutput::Column<'_>| Column {
            name: column.name.to_owned(),
            type_oid: column.type_oid,
            in_identity: column.in_identity,
        };
        Self {
            schema: relation.schema.to_owned(),
            name: relation.name.to_owned(),
            replica_identity: relation.replica_identity,
            columns: relation.columns().map(column).collect(),
        }
    }

    /// Whether it is the table that the guard names.
    pub fn is_of(&self, guard: &Guard) -> bool {
        guard.schema == self.schema && guard.table == self.name
    }

    /// Whether the catalog's table has all of its columns, of the same types.
    pub fn has_only(&self, table: &Table) -> bool {
        let is_known = |column: &Column| {
            table.columns.iter().any(|known| known.name == column.name && known.type_oid == column.type_oid)
        };
        self.columns.iter().all(is_known)
    }

    /// Whether old rows have a column. Those of a partitioned table have what the partition's identity keeps, which the
    /// catalog has been asked for: the layout is that of the root.
    fn is_kept(&self, column: &Column, guard: &Guard, known: Option<&Table>) -> bool {
        match known.and_then(|table| table.identity.as_ref()) {
            Some(in_every_partition) if self.is_of(guard) => in_every_partition.contains(&column.name),
            _ => column.in_identity,
        }
    }
}

/// A guard on a table as the stream describes it.
#[derive(Debug)]
pub(super) struct Rules {
    pub guard: GuardId,
    /// Per template, per placeholder, the column's index.
    pub templates: Vec<Vec<usize>>,
    /// Where the version is, if the guard has one.
    pub version: Option<VersionColumn>,
    /// Rows cannot be turned into keys: the columns are not what the templates need.
    pub broken: bool,
}

impl Rules {
    /// No row can be turned into a key.
    pub fn broken(guard: GuardId) -> Self {
        Self { guard, templates: Vec::new(), version: None, broken: true }
    }
}

/// The column that holds the version.
#[derive(Debug, Clone, Copy)]
pub(super) struct VersionColumn {
    pub place: usize,
    pub kind: VersionKind,
    /// An old row that is sent has it, even if it is not sent whole.
    pub in_identity: bool,
}

impl VersionColumn {
    pub fn of_row(self, value: Option<Value<'_>>) -> Option<Version> {
        match value {
            Some(Value::Text(text)) => self.kind.of_row(text),
            _ => None,
        }
    }
}

/// The columns that a guard's templates need, or why they cannot be had.
pub(super) fn fit(guard: &Guard, known: Option<&Table>, layout: &Layout) -> Result<Vec<Vec<usize>>, String> {
    let place =
        |name: &String| -> Result<usize, String> {
            let (index, column) =
                layout.columns.iter().enumerate().find(|(_, column)| column.name == *name).ok_or_else(
                    || format!("column {name:?} is gone from {}.{}", layout.schema, layout.name),
                )?;
            if !layout.is_kept(column, guard, known) {
                return Err(format!(
                    "column {name:?} is not in the replica identity of {}.{} any more",
                    layout.schema, layout.name
                ));
            }
            // A key is recognised by what its columns could print when the templates were made.
            let made_for = known.map_or(ColumnKind::Any, |table| table.kind(name));
            if made_for != ColumnKind::Any && made_for != column_kind(column.type_oid) {
                return Err(format!("column {name:?} has another type, which is not taken in yet"));
            }
            Ok(index)
        };
    guard.templates.iter().map(|template| template.columns().iter().map(place).collect()).collect()
}

/// The column that holds a guard's versions, or why it cannot be had. A version speaks for a key of one row, by the primary
/// key that the catalog has told.
pub(super) fn fit_version(
    guard: &Guard,
    known: Option<&Table>,
    layout: &Layout,
) -> Result<Option<VersionColumn>, String> {
    let Some((rule, kind)) = guard.version.as_ref().and_then(|rule| Some((rule, rule.kind?))) else {
        return Ok(None);
    };
    let name = &rule.column;
    let found = layout.columns.iter().enumerate().find(|(_, column)| column.name == *name);
    let (place, column) = found.ok_or_else(|| format!("column {name:?}, its version, is gone"))?;
    if VersionKind::of_type(column.type_oid) != Some(kind) {
        return Err(format!("column {name:?}, its version, has another type, which is not taken in yet"));
    }
    let is_in_key = |column: &Column, table: &Table| table.primary_key.contains(&column.name);
    let is_other_key = |table: &&Table| {
        layout.replica_identity == b'd'
            && layout.is_of(guard)
            && layout.columns.iter().any(|column| column.in_identity != is_in_key(column, table))
    };
    if known.filter(is_other_key).is_some_and(|table| table.parts.is_empty() || table.identity.is_some()) {
        return Err("the primary key is another one, which is not taken in yet".into());
    }
    Ok(Some(VersionColumn { place, kind, in_identity: layout.is_kept(column, guard, known) }))
}
