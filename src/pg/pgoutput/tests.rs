//! Against bytes that PostgreSQL 15 sent, and against garbage.

use proptest::prelude::*;

use super::*;

/// `CREATE TABLE users (id int PRIMARY KEY, email text, m mood, big text STORAGE external)`, replica identity
/// default; `CREATE TABLE full_t (a int, b text)`, replica identity full. As
/// `pg_logical_slot_peek_binary_changes` returned them, without the 3000 bytes of `big`.
const CAPTURED: &[&str] = &[
    "42000000000196a198000303e65273e455000002e6",
    "59000040067075626c6963006d6f6f6400",
    "520000400b7075626c6963007573657273006400040169640000000017ffffffff00656d61696c0000000019ffffffff006d000000\
     4006ffffffff006269670000000019ffffffff",
    "490000400b4e00047400000001317400000003613a6274000000026f6b6e",
    "550000400b4e00047400000001316e74000000026f6b75",
    "550000400b4b00047400000001316e6e6e4e00047400000001326e74000000026f6b75",
    "440000400b4b00047400000001326e6e6e",
    "4300000000000196a198000000000196a1c8000303e65273e455",
    "52000040127075626c69630066756c6c5f740066000201610000000017ffffffff01620000000019ffffffff",
    "55000040124f00027400000001377400000002c3a94e000274000000013774000000017a",
    "44000040124f000274000000013774000000017a",
    "5400000002000000400b00004012",
    "4d01000000000196b6a0636163686566656e636500000000026b31",
];

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).expect("a hex digit") as u8;
    let digits: Vec<u8> = hex.bytes().filter(|c| !c.is_ascii_whitespace()).map(digit).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn values(tuple: Tuple<'_>) -> Vec<String> {
    let show = |value| match value {
        Value::Null => "NULL".to_owned(),
        Value::Unchanged => "unchanged".to_owned(),
        Value::Text(text) => String::from_utf8(text.to_vec()).expect("UTF-8"),
    };
    tuple.values().map(show).collect()
}

#[test]
fn transactions_carry_positions_and_the_short_xid() {
    let begin = bytes(CAPTURED[0]);
    let Ok(Message::Begin { commit_lsn, xid, .. }) = decode(&begin) else { panic!("{begin:?}") };
    assert_eq!((commit_lsn.to_string().as_str(), xid), ("0/196A198", 742));
    let commit = bytes(CAPTURED[7]);
    let Ok(Message::Commit { commit_lsn, end_lsn, commit_time }) = decode(&commit) else {
        panic!("{commit:?}")
    };
    assert_eq!((commit_lsn.to_string().as_str(), end_lsn.to_string().as_str()), ("0/196A198", "0/196A1C8"));
    assert!(commit_time > 0);
}

#[test]
fn layouts_name_columns_and_their_part_in_the_identity() {
    let message = bytes(CAPTURED[2]);
    let Ok(Message::Relation(relation)) = decode(&message) else { panic!("{message:?}") };
    assert_eq!((relation.schema, relation.name, relation.replica_identity), ("public", "users", b'd'));
    let columns: Vec<_> = relation.columns().map(|c| (c.name, c.in_identity, c.type_oid)).collect();
    assert_eq!(columns, [("id", true, 23), ("email", false, 25), ("m", false, 16390), ("big", false, 25)]);
    let message = bytes(CAPTURED[8]);
    let Ok(Message::Relation(relation)) = decode(&message) else { panic!("{message:?}") };
    assert_eq!(relation.replica_identity, b'f');
    assert!(relation.columns().all(|c| c.in_identity));
    let message = bytes(CAPTURED[1]);
    assert_eq!(decode(&message), Ok(Message::Type { oid: 16390, schema: "public", name: "mood" }));
}

#[test]
fn rows_are_read_without_copies() {
    let insert = bytes(CAPTURED[3]);
    let Ok(Message::Insert { relation: 16395, new }) = decode(&insert) else { panic!("{insert:?}") };
    assert_eq!(values(new), ["1", "a:b", "ok", "NULL"]);

    let update = bytes(CAPTURED[4]);
    let Ok(Message::Update { old: None, new, .. }) = decode(&update) else { panic!("{update:?}") };
    assert_eq!(values(new), ["1", "NULL", "ok", "unchanged"]);

    let update = bytes(CAPTURED[5]);
    let Ok(Message::Update { old: Some(OldTuple::Key(old)), new, .. }) = decode(&update) else {
        panic!("{update:?}")
    };
    assert_eq!(values(old), ["1", "NULL", "NULL", "NULL"]);
    assert_eq!(values(new), ["2", "NULL", "ok", "unchanged"]);

    let update = bytes(CAPTURED[9]);
    let Ok(Message::Update { old: Some(OldTuple::Full(old)), new, .. }) = decode(&update) else {
        panic!("{update:?}")
    };
    assert_eq!((values(old), values(new)), (vec!["7".into(), "é".into()], vec!["7".into(), "z".into()]));

    let delete = bytes(CAPTURED[6]);
    let Ok(Message::Delete { old: old @ OldTuple::Key(_), .. }) = decode(&delete) else {
        panic!("{delete:?}")
    };
    assert_eq!(values(old.tuple()), ["2", "NULL", "NULL", "NULL"]);
}

#[test]
fn truncates_and_messages() {
    let truncate = bytes(CAPTURED[11]);
    let Ok(Message::Truncate(tables)) = decode(&truncate) else { panic!("{truncate:?}") };
    assert_eq!(tables.relations().collect::<Vec<_>>(), [16395, 16402]);
    let message = bytes(CAPTURED[12]);
    let Ok(Message::Logical { transactional: true, prefix: "cachefence", content: b"k1", .. }) =
        decode(&message)
    else {
        panic!("{message:?}")
    };
}

#[test]
fn every_cut_and_every_extension_is_an_error() {
    for hex in CAPTURED {
        let whole = bytes(hex);
        assert!(decode(&whole).is_ok(), "{hex}");
        for end in 0..whole.len() {
            assert!(decode(&whole[..end]).is_err(), "{hex} cut at {end}");
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(matches!(decode(&longer), Err(DecodeError::Long(_))), "{hex}");
    }
}

#[test]
fn lengths_that_lie_are_errors() {
    let row = bytes("490000400b4e0001 74 ffffffff 31");
    assert_eq!(decode(&row), Err(DecodeError::Short('I')));
    let tables = bytes("54 ffffffff 00 0000400b");
    assert_eq!(decode(&tables), Err(DecodeError::Short('T')));
}

/// Walks all that a decoded message offers.
fn walk(message: Message<'_>) {
    match message {
        Message::Relation(relation) => {
            relation.columns().for_each(drop);
        }
        Message::Insert { new, .. } => assert_eq!(new.values().count(), new.len()),
        Message::Update { old, new, .. } => {
            assert_eq!(new.values().count(), new.len());
            old.iter().for_each(|old| assert_eq!(old.tuple().values().count(), old.tuple().len()));
        }
        Message::Delete { old, .. } => assert_eq!(old.tuple().values().count(), old.tuple().len()),
        Message::Truncate(tables) => tables.relations().for_each(drop),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn garbage_never_panics(tag in prop::sample::select(b"BCORYIUDTMx".to_vec()), rest in prop::collection::vec(any::<u8>(), 0..200)) {
        let input = [&[tag], &rest[..]].concat();
        if let Ok(message) = decode(&input) {
            walk(message);
        }
    }

    #[test]
    fn mutated_messages_never_panic(which in 0..CAPTURED.len(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut input = bytes(CAPTURED[which]);
        let at = at.index(input.len());
        input[at] = byte;
        if let Ok(message) = decode(&input) {
            walk(message);
        }
    }
}

/// The same bytes as outside, behind the xid; what begins and ends transactions is not in a block.
#[test]
fn inside_a_block_each_message_names_its_subtransaction() {
    for message in CAPTURED.iter().map(|hex| bytes(hex)) {
        let inside = [&message[..1], &[0, 0, 2, 0xe7], &message[1..]].concat();
        match message[0] {
            b'B' | b'C' => assert!(decode_in_block(&message).is_err() && decode_in_block(&inside).is_err()),
            _ => {
                let outside = decode(&message).expect("a message");
                assert_eq!(decode_in_block(&inside), Ok((Some(743), outside)));
                assert_eq!(table_of_row_in_block(&inside), table_of_row(&message));
            }
        }
        for end in 0..inside.len() {
            assert!(decode_in_block(&inside[..end]).is_err(), "{end}");
        }
    }
    assert_eq!(decode_in_block(b"E"), Ok((None, Message::StreamStop)));
}

/// By hand, from the description of the protocol.
#[test]
fn blocks_begin_and_end_and_commit_or_abort_follows() {
    let message = |hex| format!("{:?}", decode(&bytes(hex)).expect("a message"));
    assert_eq!(message("53000002e701"), "StreamStart { xid: 743, is_first: true }");
    assert_eq!(message("53000002e700"), "StreamStart { xid: 743, is_first: false }");
    assert_eq!(message("45"), "StreamStop");
    assert_eq!(message("41000002e7000002e8"), "StreamAbort { xid: 743, subxid: 744 }");
    let commit = bytes("63000002e7000000000001a2b3c80000000001a2b3f8000303e65273e455");
    let Ok(Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time }) = decode(&commit) else {
        panic!("{commit:?}")
    };
    assert_eq!((xid, commit_lsn, end_lsn), (743, Lsn(0x01a2_b3c8), Lsn(0x01a2_b3f8)));
    assert!(commit_time > 0);
}
