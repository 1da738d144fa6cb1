//! The guarded tables, and the publication that has to contain them.

use tokio_postgres::Client;

use super::report::Row;
use crate::feed::catalog::{self, CatalogError, Problem, Publication, Slot, Table};
use crate::guard::{Guard, Guards};
use crate::pg::replication::literal;

/// One row for each guard, or one for each of its problems.
pub(super) async fn tables(client: &Client, guards: &Guards) -> Result<Vec<Row>, CatalogError> {
    const NAME: &str = "table";
    if guards.is_empty() {
        let found = "there is no guard: nothing is protected";
        let set = "[[guard]]\ntable = \"public.users\"\nkeys = [\"user:<id>\"]";
        return Ok(vec![Row::warning(NAME, found).settings(set)]);
    }
    let (tables, problems) = catalog::tables(client, guards).await?;
    let weak = catalog::weak_versions(guards, &tables);
    let mut rows = Vec::new();
    for guard in guards {
        let of: Vec<&Problem> = problems.iter().filter(|problem| problem.guard() == Some(guard.id)).collect();
        rows.extend(of.iter().map(|problem| Row::problem(NAME, problem).on(&guard.label)));
        let table = tables.iter().find(|table| table.guard == guard.id);
        let Some(table) = table.filter(|_| of.is_empty()) else { continue };
        let notes: Vec<String> = weak
            .iter()
            .filter(|(of, _)| of.id == guard.id)
            .map(|(_, why)| (*why).to_owned())
            .chain(varying(guard, table))
            .collect();
        let found = found(guard);
        rows.push(if notes.is_empty() {
            Row::good(NAME, found).on(&guard.label)
        } else {
            Row::warning(NAME, found).means(notes.join("; ")).on(&guard.label)
        });
    }
    Ok(rows)
}

fn found(guard: &Guard) -> String {
    let templates: Vec<&str> = guard.templates.iter().map(|template| template.text()).collect();
    match &guard.version {
        Some(version) => format!("{}; version in {}", templates.join(", "), version.column),
        None => templates.join(", "),
    }
}

/// Columns whose text depends on settings of the session that prints them. The feed's are fixed; the application has
/// to make the same text.
fn varying<'a>(guard: &'a Guard, table: &'a Table) -> impl Iterator<Item = String> + 'a {
    let mut columns: Vec<&str> =
        guard.templates.iter().flat_map(|template| template.columns()).map(String::as_str).collect();
    columns.sort_unstable();
    columns.dedup();
    columns.into_iter().filter_map(|name| {
        let column = table.columns.iter().find(|column| column.name == name)?;
        let printed = printed(column.type_oid)?;
        Some(format!("{name} is {}: keys must have it as {printed}", column.type_name))
    })
}

/// How a type is printed with the feed's settings, where that depends on settings.
fn printed(type_oid: u32) -> Option<&'static str> {
    Some(match type_oid {
        17 => "\\x0102",
        700 | 701 => "the shortest digits that tell it exactly (extra_float_digits = 1)",
        790 => "$1,234.50 (lc_monetary = C)",
        1082 => "2026-01-31",
        1114 => "2026-01-31 12:00:00",
        1184 => "2026-01-31 12:00:00+00 (in UTC)",
        1186 => "1 day 02:00:00",
        1042 => "it is stored, with blanks at its end",
        _ => return None,
    })
}

/// The publication.
pub(super) async fn publication(
    client: &Client,
    name: &str,
    guards: &Guards,
    slot: Option<(&str, &Slot)>,
) -> Result<Vec<Row>, CatalogError> {
    const NAME: &str = "publication";
    match catalog::publication(client, name, guards).await? {
        Publication::Missing { create } => {
            let found = format!("there is no publication {name:?}");
            let create = format!("{}{create};", drop_older(slot).unwrap_or_default());
            let row = if may_create(client, guards).await? {
                Row::warning(NAME, found).means("the proxy makes it at its start")
            } else {
                Row::failed(NAME, found).means(
                    "the proxy's role may not make it: that takes CREATE on the database and the tables' owner",
                )
            };
            Ok(vec![row.sql(create)])
        }
        Publication::Present(problems) if problems.is_empty() => {
            let found = format!("{name:?} has every guarded table, and every operation");
            Ok(vec![Row::good(NAME, found)])
        }
        Publication::Present(problems) => {
            let label = |problem: &Problem| problem.guard().and_then(|id| guards.get(id)).map(|g| &g.label);
            let row = |problem: &Problem| Row { on: label(problem).cloned(), ..Row::problem(NAME, problem) };
            Ok(problems.iter().map(row).collect())
        }
    }
}

/// A slot that is older than the publication cannot decode with it (fact F14): it goes first. One that is being read
/// is replaced by the proxy itself.
fn drop_older(slot: Option<(&str, &Slot)>) -> Option<String> {
    let (name, _) = slot.filter(|(_, slot)| !slot.active && slot.problem.is_none())?;
    Some(format!("SELECT pg_drop_replication_slot({}); ", literal(name)))
}

/// Whether the role may create a publication of all guarded tables.
async fn may_create(client: &Client, guards: &Guards) -> Result<bool, CatalogError> {
    let sql = "SELECT pg_catalog.has_database_privilege(current_database(), 'CREATE')";
    if !client.query_one(sql, &[]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let owns = client
        .prepare(
            "SELECT coalesce(bool_and(pg_catalog.pg_has_role(c.relowner, 'USAGE')), true) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2",
        )
        .await?;
    for guard in guards {
        if !client.query_one(&owns, &[&guard.schema, &guard.table]).await?.get::<_, bool>(0) {
            return Ok(false);
        }
    }
    Ok(true)
}
