//! Rows to keys.

use crate::guard::{CacheKey, Template};
use crate::pg::pgoutput::Value;

/// The values of a row.
pub(super) type Row<'a> = smallvec::SmallVec<[Value<'a>; 32]>;

/// Renders the keys of the old row and of the new one, and says which of them there are. None if a value that they need
/// was not sent.
pub(super) fn render(
    template: &Template,
    columns: &[usize],
    rows: [Option<&Row<'_>>; 2],
    db: u32,
    keys: &mut [Vec<u8>; 2],
) -> Option<[bool; 2]> {
    let [old, new] = rows;
    let [old_key, new_key] = keys;
    let mut made = [false; 2];
    for (made, (row, other, key)) in made.iter_mut().zip([(old, new, old_key), (new, old, new_key)]) {
        let Some(row) = row else { continue };
        let value = |n: usize| {
            let column = columns.get(n).copied()?;
            sent(row.get(column).copied(), other.and_then(|other| other.get(column)).copied())
        };
        if (0..columns.len()).any(|n| !matches!(value(n), Some(Value::Text(_) | Value::Null))) {
            return None;
        }
        key.clear();
        let text = |n: usize| match value(n) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        };
        *made = template.render(text, key);
        put_db(key, db);
    }
    Some(made)
}

/// Puts the db behind a key.
pub(super) fn put_db(key: &mut Vec<u8>, db: u32) {
    key.extend_from_slice(&db.to_le_bytes());
}

/// Takes it off again.
pub(super) fn without_db(mut key: Vec<u8>) -> CacheKey {
    let (_, db) = key.split_last_chunk().unwrap_or((&[], &[0; 4]));
    let db = u32::from_le_bytes(*db);
    key.truncate(key.len() - size_of::<u32>());
    CacheKey { db, name: key }
}

/// A value that one row leaves out as unchanged is in the other.
pub(super) fn sent<'a>(value: Option<Value<'a>>, other: Option<Value<'a>>) -> Option<Value<'a>> {
    if value == Some(Value::Unchanged) { other } else { value }
}
