//! What the strict contract asks of guards: each setting that would let something in without proof, or serve what may
//! be old, has another default there and is refused where it is written down.

use toml::{Table, Value};

use super::schema::{Wrong, join};

/// A guard's setting: where it is, what strict does not allow, and what to write instead.
struct Demand {
    path: &'static [&'static str],
    forbidden: &'static [&'static str],
    instead: &'static [&'static str],
    /// What it is if nothing is written, where that differs from the bounded contract.
    default: Option<&'static str>,
}

const DEMANDS: [Demand; 5] = [
    Demand {
        path: &["unproven"],
        forbidden: &["cap", "allow"],
        instead: &["refuse"],
        default: Some("refuse"),
    },
    Demand { path: &["on_stale"], forbidden: &["cap"], instead: &["refuse", "delete"], default: None },
    Demand { path: &["lease"], forbidden: &["key"], instead: &["connection", "off"], default: None },
    Demand {
        path: &["when_feed_lost", "reads"],
        forbidden: &["serve"],
        instead: &["miss"],
        default: Some("miss"),
    },
    Demand {
        path: &["when_feed_lost", "fills"],
        forbidden: &["cap"],
        instead: &["refuse"],
        default: Some("refuse"),
    },
];

/// With `contract = "strict"`: fills in what guards leave out, and returns what they must not say. For settings of the
/// right shape.
pub(super) fn apply(settings: &mut Value) -> Vec<Wrong> {
    let contract = settings.get("postgres").and_then(|postgres| postgres.get("contract"));
    if contract.and_then(Value::as_str) != Some("strict") {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    let guards = settings.get_mut("guard").and_then(Value::as_array_mut);
    for (n, guard) in guards.into_iter().flatten().enumerate() {
        let Some(guard) = guard.as_table_mut() else { continue };
        for demand in &DEMANDS {
            let path = join(&format!("guard[{n}]"), &demand.path.join("."));
            wrong.extend(demand.apply(guard).map(|what| Wrong::new(path, what)));
        }
    }
    wrong
}

impl Demand {
    fn apply(&self, guard: &mut Table) -> Option<String> {
        let (name, outer) = self.path.split_last()?;
        let mut table = guard;
        for step in outer {
            if self.default.is_none() && !table.contains_key(*step) {
                return None;
            }
            table = table.entry(*step).or_insert_with(|| Table::new().into()).as_table_mut()?;
        }
        let Some(written) = table.get(*name) else {
            if let Some(default) = self.default {
                table.insert((*name).to_owned(), default.into());
            }
            return None;
        };
        let written = written.as_str().filter(|written| self.forbidden.contains(written))?;
        let instead: Vec<String> = self.instead.iter().map(|choice| format!("{choice:?}")).collect();
        Some(format!(
            "found {written:?}, with which postgres.contract = \"strict\" cannot be kept; write {}, or set \
             postgres.contract = \"bounded\"",
            instead.join(" or ")
        ))
    }
}
