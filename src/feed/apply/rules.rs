//! A guard on a table as the stream describes it: which columns its keys are made of.

use crate::feed::catalog::{Table, column_kind};
use crate::fence::Version;
use crate::guard::{ColumnKind, Guard, GuardId, VersionKind};
use crate::pg::pgoutput::{Relation, Value};

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
pub(super) fn fit(
    guard: &Guard,
    known: Option<&Table>,
    relation: &Relation<'_>,
) -> Result<Vec<Vec<usize>>, String> {
    let columns: Vec<_> = relation.columns().collect();
    let place = |name: &String| -> Result<usize, String> {
        let (index, column) = columns
            .iter()
            .enumerate()
            .find(|(_, column)| column.name == name)
            .ok_or_else(|| format!("column {name:?} is gone"))?;
        if !column.in_identity {
            return Err(format!("column {name:?} is not in the replica identity any more"));
        }
        // A key is recognised by what its columns could print when the templates were made.
        let made_for = known.map_or(ColumnKind::Any, |table| table.kind(name));
        if made_for != ColumnKind::Any && made_for != column_kind(column.type_oid) {
            return Err(format!("column {name:?} has another type; restart to take it in"));
        }
        Ok(index)
    };
    guard.templates.iter().map(|template| template.columns().iter().map(place).collect()).collect()
}

/// The column that holds a guard's versions, or why it cannot be had.
pub(super) fn fit_version(guard: &Guard, relation: &Relation<'_>) -> Result<Option<VersionColumn>, String> {
    let Some((rule, kind)) = guard.version.as_ref().and_then(|rule| Some((rule, rule.kind?))) else {
        return Ok(None);
    };
    let name = &rule.column;
    let found = relation.columns().enumerate().find(|(_, column)| column.name == name);
    let (place, column) = found.ok_or_else(|| format!("column {name:?}, its version, is gone"))?;
    if VersionKind::of_type(column.type_oid) != Some(kind) {
        return Err(format!("column {name:?}, its version, has another type; restart to take it in"));
    }
    Ok(Some(VersionColumn { place, kind, in_identity: column.in_identity }))
}
