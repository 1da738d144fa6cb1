//! What the proxy makes of the server's own table of commands.

mod commands;

use cachefence::command::{Command, CommandTable};
use cachefence::demo::client::Reply;
use cachefence::demo::servers::{Redis, RedisOptions};
use cachefence::resp::{RequestScanner, Scanned, put_request};
use commands::{FILLS, is_there};
use redis_protocol::resp2::types::BytesFrame;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Commands of this server that write to a key and put nothing into it.
const NO_FILLS: &[&str] = &[
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "DEL",
    "EXPIRE",
    "EXPIREAT",
    "GETDEL",
    "GETEX",
    "HDEL",
    "LMPOP",
    "LPOP",
    "LREM",
    "LTRIM",
    "MIGRATE",
    "PERSIST",
    "PEXPIRE",
    "PEXPIREAT",
    "PFCOUNT",
    "PFDEBUG",
    "RPOP",
    "SPOP",
    "SREM",
    "UNLINK",
    "XACK",
    "XAUTOCLAIM",
    "XCLAIM",
    "XDEL",
    "XGROUP|CREATE",
    "XGROUP|CREATECONSUMER",
    "XGROUP|DELCONSUMER",
    "XGROUP|DESTROY",
    "XGROUP|SETID",
    "XREADGROUP",
    "XSETID",
    "XTRIM",
    "ZMPOP",
    "ZPOPMAX",
    "ZPOPMIN",
    "ZREM",
    "ZREMRANGEBYLEX",
    "ZREMRANGEBYRANK",
    "ZREMRANGEBYSCORE",
    // Of later versions.
    "DELEX",
    "DELIFEQ",
    "HEXPIRE",
    "HEXPIREAT",
    "HGETDEL",
    "HGETEX",
    "HPERSIST",
    "HPEXPIRE",
    "HPEXPIREAT",
    "VREM",
    "XACKDEL",
    "XCFGSET",
    "XDELEX",
];

/// A version of Redis that has a new command which writes to a key fails here until somebody has said what it is.
#[tokio::test]
async fn every_command_that_writes_to_a_key_is_known_for_what_it_does() -> Outcome {
    let redis = Redis::start(RedisOptions::default()).await?;
    let mut client = redis.client().await?;
    let reply = client.cmd(&["COMMAND"]).await?;
    let table = CommandTable::of_server(&frame(&reply));
    let mut seen = 0;
    for entry in list(&reply) {
        let parts = list(entry);
        for part in std::iter::once(entry).chain(list(&parts[9])) {
            let parts = list(part);
            let name = parts[0].text().unwrap_or_default().to_uppercase();
            let Reply::Int(arity) = parts[1] else { return Err("no arity".into()) };
            let has_keys = !list(&parts[8]).is_empty() && !format!("{:?}", parts[8]).contains("not_key");
            if !format!("{:?}", parts[2]).contains("\"write\"") || !has_keys {
                continue;
            }
            seen += 1;
            let fills = ["", "STORE k", "SET k"].iter().any(|more| {
                let mut words: Vec<&str> = name.split('|').collect();
                words.resize(arity.unsigned_abs() as usize, "1");
                words.extend(more.split(' ').filter(|word| !word.is_empty()));
                matches!(of(&table, &words).0, Command::Fill(_))
            });
            assert_ne!(fills, NO_FILLS.contains(&&*name), "{name}: a fill, or not?");
        }
    }
    assert!(seen > 90, "{seen}");
    Ok(())
}

/// The keys that are known by hand are those that Redis itself finds.
#[tokio::test]
async fn the_keys_that_are_filled_are_where_redis_finds_them() -> Outcome {
    let redis = Redis::start(RedisOptions::default()).await?;
    let mut client = redis.client().await?;
    let table = CommandTable::of_server(&frame(&client.cmd(&["COMMAND"]).await?));
    for (fill, ..) in FILLS {
        if !is_there(&mut client, fill).await? {
            continue;
        }
        let words: Vec<&str> = fill.split(' ').collect();
        let (command, places) = of(&table, &words);
        assert!(matches!(command, Command::Fill(_)), "{fill}");
        let mut asked = vec!["COMMAND", "GETKEYSANDFLAGS"];
        asked.extend(&words);
        let reply = client.cmd(&asked).await?;
        let filled: Vec<String> = list(&reply)
            .iter()
            .filter(|key| {
                let flags = format!("{:?}", list(key)[1]);
                let changes =
                    flags.contains("\"RW\"") && (flags.contains("insert") || flags.contains("update"));
                flags.contains("\"OW\"") || changes
            })
            .filter_map(|key| list(key)[0].text())
            .collect();
        let ours: Vec<&str> = places.into_iter().map(|place| words[place]).collect();
        assert_eq!(ours, filled, "{fill}: {reply:?}");
    }
    Ok(())
}

/// What a request is, and where the keys are that it fills.
fn of(table: &CommandTable, words: &[&str]) -> (Command, Vec<usize>) {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let mut request = Vec::new();
    put_request(&mut request, &words);
    let mut scanner = RequestScanner::default();
    assert_eq!(scanner.scan(&request).ok(), Some(Scanned::Request(request.len())));
    let arguments = scanner.arguments(&request);
    let command = table.of(arguments);
    let places =
        if let Command::Fill(form) = command { form.keys.places(arguments).collect() } else { vec![] };
    (command, places)
}

fn list(reply: &Reply) -> &[Reply] {
    if let Reply::Array(elements) = reply { elements } else { &[] }
}

fn frame(reply: &Reply) -> BytesFrame {
    match reply {
        Reply::Array(elements) => BytesFrame::Array(elements.iter().map(frame).collect()),
        Reply::Int(n) => BytesFrame::Integer(*n),
        other => BytesFrame::BulkString(other.text().unwrap_or_default().into()),
    }
}
