//! The table against what servers say.

use redis_protocol::resp2::types::BytesFrame as Reply;

use super::*;
use crate::resp::{RequestScanner, Scanned, put_request};

fn word(text: &str) -> Reply {
    Reply::SimpleString(text.to_owned().into())
}

fn words(texts: &[&str]) -> Reply {
    Reply::Array(texts.iter().map(|text| word(text)).collect())
}

/// An entry without specifications; `keys` are the first, the last and the step.
fn entry(name: &str, arity: i64, flags: &[&str], keys: [i64; 3], categories: &[&str]) -> Reply {
    let mut parts = vec![Reply::BulkString(name.to_owned().into()), Reply::Integer(arity), words(flags)];
    parts.extend(keys.map(Reply::Integer));
    parts.push(words(categories));
    Reply::Array(parts)
}

/// The same with specifications and commands within.
fn specified(entry: Reply, specs: Vec<Reply>, within: Vec<Reply>) -> Reply {
    let Reply::Array(mut parts) = entry else { unreachable!("an entry is an array") };
    parts.extend([Reply::Array(vec![]), Reply::Array(specs), Reply::Array(within)]);
    Reply::Array(parts)
}

fn map(pairs: Vec<(&str, Reply)>) -> Reply {
    let bulk = |name: &str| Reply::BulkString(name.to_owned().into());
    Reply::Array(pairs.into_iter().flat_map(|(name, value)| [bulk(name), value]).collect())
}

fn spec(flags: &[&str], begin: (&str, Reply), find: (&str, Vec<(&str, i64)>)) -> Reply {
    let details = find.1.into_iter().map(|(name, n)| (name, Reply::Integer(n))).collect();
    map(vec![
        ("notes", word("for the reader")),
        ("flags", words(flags)),
        ("begin_search", map(vec![("type", word(begin.0)), ("spec", begin.1)])),
        ("find_keys", map(vec![("type", word(find.0)), ("spec", map(details))])),
    ])
}

fn index(place: i64) -> (&'static str, Reply) {
    ("index", map(vec![("index", Reply::Integer(place))]))
}

fn range(last: i64, step: i64, limit: i64) -> (&'static str, Vec<(&'static str, i64)>) {
    ("range", vec![("lastkey", last), ("keystep", step), ("limit", limit)])
}

pub(super) fn with<T>(command: &str, read: impl Fn(Arguments<'_>) -> T) -> T {
    let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
    let mut request = Vec::new();
    put_request(&mut request, &words);
    let mut scanner = RequestScanner::default();
    assert_eq!(scanner.scan(&request), Ok(Scanned::Request(request.len())));
    read(scanner.arguments(&request))
}

fn of(table: &CommandTable, command: &str) -> Command {
    with(command, |arguments| table.of(arguments))
}

/// The keys that a request fills, by their names.
fn filled(table: &CommandTable, command: &str) -> Vec<String> {
    with(command, |arguments| match table.of(arguments) {
        Command::Fill(form) => form
            .keys
            .places(arguments)
            .filter_map(|n| arguments.get(n))
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect(),
        other => vec![format!("{other:?}")],
    })
}

#[test]
fn the_server_decides_what_can_share_a_lane() {
    let plain = |name, flags: &[&str]| entry(name, 1, flags, [0; 3], &[]);
    let table = CommandTable::of_server(&Reply::Array(vec![
        plain("dbsize", &["readonly", "fast"]),
        plain("blexpop", &["write", "blocking"]),
        plain("config", &["admin"]),
        plain("publish", &["pubsub", "fast"]),
        plain("get", &["readonly", "fast"]),
        plain("punsubscribe", &["pubsub"]),
    ]));
    assert_eq!(of(&table, "DbSize"), Command::Plain);
    assert_eq!(of(&table, "PUBLISH"), Command::Plain);
    assert_eq!(of(&table, "BLEXPOP"), Command::Blocking);
    assert_eq!(of(&table, "config"), Command::Pinned);
    assert_eq!(of(&table, "PUNSUBSCRIBE"), Command::Subscribe);
    assert_eq!(of(&table, "my.module"), Command::Unknown);
    assert_eq!(of(&table, "EXEC"), Command::Exec, "what the proxy understands stays its own");
}

/// A renamed SELECT or MULTI on a lane would change the db, or the meaning, of everybody's commands.
#[test]
fn a_renamed_command_of_the_connection_gets_a_pin() {
    let renamed = |name, category| entry(name, -1, &["fast"], [0; 3], &[category]);
    let table = CommandTable::of_server(&Reply::Array(vec![
        renamed("choose", "@connection"),
        renamed("begin", "@transaction"),
        renamed("ping", "@connection"),
        renamed("raise", "@write"),
    ]));
    assert_eq!(of(&table, "CHOOSE 1"), Command::Unknown);
    assert_eq!(of(&table, "BEGIN"), Command::Unknown);
    assert_eq!(of(&table, "PING"), Command::Plain);
    assert_eq!(of(&table, "RAISE"), Command::Plain);
}

#[test]
fn names_that_cannot_be_known_are_not() {
    let table = CommandTable::known();
    assert_eq!(of(&table, &"x".repeat(100)), Command::Unknown);
    assert_eq!(of(&table, &format!("SCRIPT {}", "x".repeat(100))), Command::Pinned);
    assert_eq!(of(&table, ""), Command::Unknown);
}

/// A command that this proxy has never heard of is judged by its specifications.
#[test]
fn a_new_command_is_what_its_specifications_say() {
    let new = |name, flags: &[&str], specs| specified(entry(name, -2, flags, [0; 3], &[]), specs, vec![]);
    let first = |flags: &[&str]| spec(flags, index(1), range(0, 1, 0));
    let table = CommandTable::of_server(&Reply::Array(vec![
        new("overwrite", &["write"], vec![first(&["OW", "update"])]),
        new("extend", &["write"], vec![first(&["RW", "access", "insert"])]),
        new("shrink", &["write"], vec![first(&["RW", "delete"])]),
        new("remove", &["write"], vec![first(&["RM", "delete"])]),
        new("look", &["readonly"], vec![first(&["RO", "access"])]),
        new("channel", &["write"], vec![first(&["OW", "not_key"])]),
        new("derive", &["write"], vec![first(&["OW"]), spec(&["RO"], index(2), range(-1, 1, 0))]),
        new(
            "counted",
            &["write"],
            vec![spec(
                &["RW", "update"],
                index(1),
                ("keynum", vec![("keynumidx", 0), ("firstkey", 1), ("keystep", 2)]),
            )],
        ),
        new(
            "behind",
            &["write"],
            vec![spec(
                &["OW"],
                ("keyword", map(vec![("keyword", word("INTO")), ("startfrom", Reply::Integer(1))])),
                range(0, 1, 0),
            )],
        ),
        new("partly", &["write"], vec![first(&["OW", "incomplete"])]),
        new("murky", &["write"], vec![spec(&["OW"], ("unknown", map(vec![])), ("unknown", vec![]))]),
        new("waits", &["write", "blocking"], vec![first(&["RW", "insert"])]),
    ]));
    let effect = |command| match of(&table, command) {
        Command::Fill(form) => Some(form.effect),
        _ => None,
    };
    assert_eq!(effect("OVERWRITE k"), Some(Effect::Replaces));
    assert_eq!(effect("EXTEND k"), Some(Effect::Adds));
    assert_eq!(effect("DERIVE k a b"), Some(Effect::Derives));
    assert_eq!(filled(&table, "DERIVE k a b"), ["k"]);
    for plain in ["SHRINK k", "REMOVE k", "CHANNEL k"] {
        assert_eq!(of(&table, plain), Command::Plain, "{plain}");
    }
    assert!(matches!(of(&table, "LOOK k"), Command::Read(Read { miss: Miss::Unknown, .. })));
    assert_eq!(filled(&table, "COUNTED 2 a 1 b 2"), ["a", "b"]);
    assert_eq!(filled(&table, "BEHIND x into k"), ["k"]);
    assert_eq!(filled(&table, "PARTLY a b"), ["a", "b"]);
    assert_eq!(filled(&table, "MURKY a b"), ["a", "b"], "whatever may be a key");
    assert!(matches!(of(&table, "WAITS k"), Command::Fill(FillForm { route: Route::Blocking, .. })));
    assert_eq!(of(&table, "OVERWRITE"), Command::Plain, "too few arguments: an error in Redis's words");
}

/// Modules, and servers before Redis 7, say only where the keys are.
#[test]
fn modules_and_old_servers_are_understood() {
    let full = |place| spec(&["RW", "access", "update"], index(place), range(0, 1, 0));
    let table = CommandTable::of_server(&Reply::Array(vec![
        entry("old.write", -3, &["write"], [1, 1, 1], &[]),
        entry("old.pairs", -3, &["write"], [1, -1, 2], &[]),
        entry("old.second", -3, &["write"], [2, 3, 1], &[]),
        entry("old.moving", -3, &["write", "movablekeys"], [0, 0, 0], &[]),
        entry("old.read", -2, &["readonly"], [1, 1, 1], &[]),
        specified(entry("bf.add", 3, &["write", "module"], [1, 1, 1], &[]), vec![full(1)], vec![]),
        specified(
            entry("m.set", 3, &["write", "module", "movablekeys"], [1, 1, 1], &[]),
            vec![full(1)],
            vec![],
        ),
        specified(entry("ts.del", 4, &["write", "module"], [1, 1, 1], &[]), vec![full(1)], vec![]),
        specified(entry("json.type", -2, &["readonly", "module"], [1, 1, 1], &[]), vec![full(1)], vec![]),
    ]));
    assert_eq!(filled(&table, "OLD.WRITE k v"), ["k"]);
    assert_eq!(filled(&table, "OLD.PAIRS a 1 b 2"), ["a", "b"]);
    assert_eq!(filled(&table, "OLD.SECOND x a b c"), ["a", "b"]);
    assert_eq!(filled(&table, "OLD.MOVING 1 k"), ["1", "k"]);
    assert_eq!(filled(&table, "BF.ADD k v"), ["k"]);
    assert_eq!(filled(&table, "M.SET a b"), ["a", "b"]);
    assert_eq!(of(&table, "TS.DEL k 0 1"), Command::Plain);
    for read in ["OLD.READ k", "JSON.TYPE k"] {
        assert!(matches!(of(&table, read), Command::Read(_)), "{read}");
    }
}

#[test]
fn commands_within_a_container_have_keys_of_their_own() {
    let within = vec![
        specified(
            entry("box|put", 4, &["write"], [2, 2, 1], &[]),
            vec![spec(&["OW"], index(2), range(0, 1, 0))],
            vec![],
        ),
        entry("box|reset", 2, &["admin"], [0; 3], &[]),
    ];
    let container = specified(entry("box", -2, &[], [0; 3], &[]), vec![], within);
    let table = CommandTable::of_server(&Reply::Array(vec![container]));
    assert_eq!(filled(&table, "BOX put k v"), ["k"]);
    assert_eq!(of(&table, "BOX PUT k"), Command::Plain, "an error");
    assert_eq!(of(&table, "box Reset"), Command::Pinned);
    assert_eq!(of(&table, "BOX other"), Command::Plain);
    assert_eq!(of(&table, "BOX"), Command::Plain);
}

#[test]
fn some_commands_depend_on_their_arguments() {
    let table = CommandTable::known();
    let of_streams = |request, changes| match of(&table, request) {
        Command::Read(read) => read.miss == Miss::NilArray && read.changes == changes,
        _ => false,
    };
    assert!(of_streams("XREAD COUNT 1 STREAMS s 0", false));
    assert!(of_streams("XREADGROUP GROUP g c STREAMS s >", true));
    assert_eq!(of(&table, "XREAD block 0 STREAMS s 0"), Command::Blocking);
    for read in ["BITFIELD k GET u8 0", "SORT k BY nosort", "GEORADIUS k 1 1 1 m"] {
        assert!(matches!(of(&table, read), Command::Read(_)), "{read}");
    }
    assert_eq!(filled(&table, "BITFIELD k GET u8 0 incrby u8 0 1"), ["k"]);
    assert_eq!(filled(&table, "SORT k ALPHA STORE a"), ["a"]);
    assert_eq!(filled(&table, "GEORADIUSBYMEMBER k m 1 m STORE a STOREDIST b"), ["a", "b"]);
    assert_eq!(filled(&table, "EVAL x 2 a b c"), ["a", "b"]);
    assert_eq!(filled(&table, "BITOP AND k a b"), ["k"]);
    assert_eq!(filled(&table, "MSETEX 2 a 1 b 2 EX 10"), ["a", "b"]);
    let part = |command| match of(&table, command) {
        Command::Fill(form) => form.is_part(),
        other => panic!("{command}: {other:?}"),
    };
    assert!(part("JSON.SET k $.a 1") && !part("JSON.SET k $ 1") && !part("JSON.SET k . 1"));
}

/// They put nothing into a key, and only with an option does GETEX do more than read.
#[test]
fn what_changes_how_long_a_key_lives_is_known() {
    let table = CommandTable::known();
    for line in ["EXPIRE k 1", "pexpire k 1 NX", "EXPIREAT k 1", "PEXPIREAT k 1", "PERSIST k"] {
        assert_eq!(of(&table, line), Command::Expire, "{line}");
    }
    for (line, changes) in
        [("GETEX k", false), ("GETEX k PERSIST", true), ("GETEX k EX 1", true), ("GET k", false)]
    {
        assert!(
            matches!(of(&table, line), Command::Read(Read { expires, .. }) if expires == changes),
            "{line}"
        );
    }
    assert_eq!(of(&table, "HEXPIRE k 1 FIELDS 1 a"), Command::Plain);
}

#[test]
fn scripts_and_administration_are_pinned_for_their_time_only() {
    let table = CommandTable::known();
    for pinned in ["DEBUG SLEEP 1", "SCRIPT KILL", "FUNCTION KILL", "SHUTDOWN", "SCRIPT"] {
        assert_eq!(of(&table, pinned), Command::Pinned, "{pinned}");
    }
    for plain in ["script load x", "SCRIPT EXISTS x", "SCRIPT FLUSH", "SPUBLISH c m", "PUBSUB CHANNELS"] {
        assert_eq!(of(&table, plain), Command::Plain, "{plain}");
    }
    for unknown in ["SCRIPT DEBUG YES", "READONLY", "ASKING"] {
        assert_eq!(of(&table, unknown), Command::Unknown, "{unknown}");
    }
    assert!(matches!(of(&table, "EVAL x 1 k"), Command::Fill(FillForm { route: Route::Pin, .. })));
    assert!(matches!(of(&table, "FCALL_RO x 1 k"), Command::Read(Read { route: Route::Pin, .. })));
}

/// How a refused fill answers can be looked up.
#[test]
fn every_fill_is_documented() {
    let text = include_str!("../../docs/commands.md");
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c)).collect();
    for (name, command, _) in known::commands() {
        let internal = name == "RESTORE-ASKING";
        let judged = matches!(command, Command::Fill(_)) && !internal;
        assert!(!judged || words.contains(&name), "{name}");
    }
}

/// A name stands for one thing.
#[test]
fn no_command_is_known_twice() {
    let mut names: Vec<&str> = known::commands().map(|(name, ..)| name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
