//! A template and the values of its columns: a rendered key matches it, whatever the columns' types are.
#![no_main]

use cachefence::fence::GuardId;
use cachefence::guard::{ColumnKind, GuardList, Matcher, Template};
use libfuzzer_sys::fuzz_target;

/// A column of some type, and a value as Postgres prints it.
fn column(kind: u8, number: u64, text: Vec<u8>) -> (ColumnKind, Option<Vec<u8>>) {
    match kind % 8 {
        0 => (ColumnKind::Integer, Some((number as i64).to_string().into_bytes())),
        // Those that are in use.
        1 => (ColumnKind::Integer, Some((number % 100).to_string().into_bytes())),
        2 => (ColumnKind::Uuid, Some(uuid(number).into_bytes())),
        3 => (ColumnKind::Bool, Some(if number % 2 == 0 { b"t".to_vec() } else { b"f".to_vec() })),
        4 => (ColumnKind::Any, None),
        _ => (ColumnKind::Any, Some(text)),
    }
}

fn uuid(number: u64) -> String {
    let hex = format!("{:016x}{:016x}", number, number.rotate_left(17));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fuzz_target!(|input: (&str, Vec<(u8, u64, Vec<u8>)>)| {
    let (text, columns) = input;
    let Ok(mut template) = Template::parse(text) else { return };
    let _ = template.glob();
    let texts: Vec<Vec<u8>> = columns.iter().map(|(_, _, text)| text.clone()).collect();
    let values: Vec<_> = columns.into_iter().map(|(kind, number, text)| column(kind, number, text)).collect();
    for (n, (kind, _)) in values.iter().enumerate() {
        template.set_column_kind(n, *kind);
    }
    let mut key = b"before".to_vec();
    let whole = template.render(|n| values.get(n)?.1.as_deref(), &mut key);
    let key = key.strip_prefix(b"before").expect("what was there stays");
    let matcher = Matcher::new([(GuardId(0), &template)]);
    if whole {
        assert!(key.starts_with(template.prefix()));
        assert!(template.matches(key), "{text:?} {key:?}");
    } else {
        assert!(key.is_empty(), "no key, no text");
    }
    // Of any key both say the same.
    for key in texts.iter().map(Vec::as_slice).chain([key]) {
        let mut guards = GuardList::default();
        matcher.guards(key, &mut guards);
        assert_eq!(template.matches(key), !guards.is_empty());
    }
});
