//! A message of the replication stream, whatever it holds.
#![no_main]

use cachefence::pg::pgoutput::{Message, decode, decode_in_block};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let in_block = decode_in_block(bytes).map(|(_, message)| message);
    for message in [decode(bytes), in_block].into_iter().flatten() {
        // All that hangs off it is read by its Debug.
        let _ = format!("{message:?}");
        match message {
            Message::Relation(relation) => assert!(relation.columns().count() <= bytes.len()),
            Message::Truncate(truncate) => assert!(truncate.relations().count() <= bytes.len()),
            _ => {}
        }
    }
});
