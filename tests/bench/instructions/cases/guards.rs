//! From a key to its guards, and from a row to its key.

use std::hint::black_box;

use cachefence::config;
use cachefence::guard::{ColumnKind, Guards, Template};

use super::Listed;
use crate::Fallible;
use crate::meter::Meter;

const KEY: &[u8] = b"user:1234567";

pub const CASES: &[Listed] = &[
    ("guard: none", |meter| matching(meter, 0, "", KEY, 0)),
    ("guard: 10, none matches", |meter| matching(meter, 10, "other", KEY, 0)),
    ("guard: 1,000, none matches", |meter| matching(meter, 1000, "other", KEY, 0)),
    ("guard: 1,000, the prefix matches", |meter| matching(meter, 1000, "user", b"user:1234567:orders", 0)),
    ("guard: 10, one matches", |meter| matching(meter, 10, "user", KEY, 1)),
    ("guard: 1,000, one matches", |meter| matching(meter, 1000, "user", KEY, 1)),
    ("template: a key of one column", |meter| render(meter, "user:<id>", &[b"1234567"])),
    ("template: a key of two columns", |meter| {
        render(meter, "tenant:<tenant>:user:<id>:profile", &[b"acme", b"1234567"])
    }),
];

/// So many guards on tables of their own; the first one's keys begin with `prefix`. `typed`: their columns are known to
/// be numbers.
pub fn guards(count: usize, prefix: &str, typed: bool) -> Fallible<Guards> {
    let settings = (0..count).map(|n| -> Fallible<config::Guard> {
        let name = if n == 0 { prefix.to_owned() } else { format!("{prefix}-{n}") };
        Ok(toml::from_str(&format!("table = \"table_{n}\"\nkeys = [\"{name}:<id>\"]"))?)
    });
    let guards = Guards::new(&settings.collect::<Fallible<Vec<_>>>()?, 0)?;
    let kind = if typed { ColumnKind::Integer } else { ColumnKind::Any };
    Ok(guards.with_column_kinds(|_, _| kind))
}

fn matching(meter: &mut Meter, count: usize, prefix: &str, key: &[u8], expected: usize) -> Fallible<()> {
    let guards = guards(count, prefix, true)?;
    let found = guards.matching(0, key).len();
    if found != expected {
        return Err(format!("{found} guards match").into());
    }
    meter.repeat(1000, || guards.matching(0, black_box(key)).len());
    Ok(())
}

fn render(meter: &mut Meter, text: &str, values: &[&[u8]]) -> Fallible<()> {
    let template = Template::parse(text)?;
    let mut key = Vec::new();
    meter.repeat(1000, || {
        key.clear();
        template.render(|n| black_box(values).get(n).copied(), &mut key)
    });
    Ok(())
}
