//! A message of the replication stream, whatever it holds.
#![no_main]

use cachefence::pg::pgoutput::{Message, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = decode(bytes) {
        // All that hangs off it is read by its Debug.
        let _ = format!("{message:?}");
        match message {
            Message::Relation(relation) => assert!(relation.columns().count() <= bytes.len()),
            Message::Truncate(truncate) => assert!(truncate.relations().count() <= bytes.len()),
            _ => {}
        }
    }
});
