//! Version evidence: what a fill says of the row that it was made from, against what the feed has seen of that row.

mod support;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config};
use support::{BINARY, Fallible, Outcome, World, assert_passed, assert_refused};

const SCHEMA: &str = "
CREATE TABLE users (id bigint PRIMARY KEY, name text);
CREATE TABLE docs (id bigint PRIMARY KEY, version int, body text);
CREATE TABLE plain (id bigint PRIMARY KEY, version bigint, body text);
CREATE TABLE indexed (id bigint PRIMARY KEY, version bigint NOT NULL, body text);
CREATE UNIQUE INDEX identity ON indexed (id, version);
ALTER TABLE indexed REPLICA IDENTITY USING INDEX identity;
CREATE TABLE pages (id int PRIMARY KEY, changed timestamptz);
CREATE TABLE local (id int PRIMARY KEY, changed timestamp);
CREATE TABLE items (id int PRIMARY KEY, version smallint, name text);
CREATE TABLE heads (id int PRIMARY KEY, version int);
ALTER TABLE docs REPLICA IDENTITY FULL;
ALTER TABLE pages REPLICA IDENTITY FULL;
ALTER TABLE local REPLICA IDENTITY FULL;
ALTER TABLE items REPLICA IDENTITY FULL;
ALTER TABLE heads REPLICA IDENTITY FULL;
INSERT INTO users SELECT n, 'v1' FROM generate_series(1, 5) n;
INSERT INTO docs SELECT n, 1, 'a' FROM generate_series(1, 40) n;
INSERT INTO plain SELECT n, 1, 'a' FROM generate_series(1, 10) n;
INSERT INTO indexed SELECT * FROM plain;
INSERT INTO pages SELECT n, '2026-01-01Z' FROM generate_series(1, 5) n;
INSERT INTO local SELECT n, '2026-01-01' FROM generate_series(1, 5) n;
INSERT INTO items SELECT n, 1, 'a' FROM generate_series(1, 5) n;
INSERT INTO heads SELECT n, 1 FROM generate_series(1, 5) n;
";

/// Guards of these tables, which let in what is proven and nothing else.
fn guards() -> String {
    let guard = |table: &str, keys: &str, version: &str| {
        format!(
            "[[guard]]\ntable = \"{table}\"\nkeys = [{keys}]\nreply = \"error\"\nunproven = \"refuse\"\n{version}\n"
        )
    };
    let json = "version = { column = \"version\", json = \"/version\" }";
    [
        guard("users", "\"user:<id>\", \"both:<id>\", \"pair:<id>\"", ""),
        guard("docs", "\"doc:<id>\", \"docs:all\"", json),
        guard("plain", "\"plain:<id>\", \"both:<id>\"", json),
        guard("indexed", "\"indexed:<id>\", \"pair:<id>\"", json),
        guard("pages", "\"page:<id>\"", "version = { column = \"changed\", json = \"/meta/0/changed\" }"),
        guard("local", "\"local:<id>\"", "version = { column = \"changed\", raw = true }"),
        guard("items", "\"item:<id>\"", "version = { column = \"version\", field = \"version\" }"),
        guard(
            "heads",
            "\"head:<id>:version\", \"head:<id>:v<version>\"",
            "version = { column = \"version\", raw = true }",
        ),
    ]
    .concat()
}

async fn world() -> Fallible<World> {
    let primary = Postgres::primary(PrimaryOptions::default()).await?;
    let sql = primary.client().await?;
    sql.batch_execute(SCHEMA).await?;
    let redis = Redis::start(RedisOptions::default()).await?;
    let (servers, guards) = (config(&primary, &[], &redis), guards());
    let proxy = Cachefence::start(BINARY, &(servers.clone() + &guards)).await?;
    let world = World { proxy, redis, replica: None, sql, primary, servers, guards };
    world.level().await?;
    Ok(world)
}

/// A change that the feed has applied.
async fn change(world: &World, sql: &str) -> Outcome {
    world.sql.batch_execute(sql).await?;
    world.applied().await?;
    Ok(())
}

fn doc(version: i64) -> String {
    format!("{{\"body\": \"...\", \"version\": {version}}}")
}

/// Refused because it is older.
#[track_caller]
fn assert_older(reply: &Reply) {
    assert!(matches!(reply, Reply::Error(e) if e.starts_with("STALE the fill's data does not")), "{reply:?}");
}

/// Refused because nothing shows that it is not.
#[track_caller]
fn assert_no_evidence(reply: &Reply) {
    assert!(matches!(reply, Reply::Error(e) if e.contains("no evidence says")), "{reply:?}");
}

/// One stand for all: what it costs is starting it.
#[tokio::test]
async fn a_fill_is_judged_by_the_version_in_it() -> Outcome {
    let world = world().await?;
    let mut client = world.client().await?;
    by_json(&world, &mut client).await?;
    by_every_command(&world, &mut client).await?;
    by_a_large_value(&world, &mut client).await?;
    without_the_old_row(&world, &mut client).await?;
    by_the_instant(&world, &mut client).await?;
    by_a_field(&world, &mut client).await?;
    by_pointers_and_versioned_keys(&world, &mut client).await?;
    as_the_client_states_it(&world, &mut client).await?;
    Ok(())
}

/// Without any miss: a version that has grown passes, an older one never, and none that somebody left as it was.
async fn by_json(world: &World, client: &mut Client) -> Outcome {
    assert_refused(&client.cmd(&["SET", "doc:1", &doc(1)]).await?, "UNPROVEN");
    change(world, "UPDATE docs SET version = 2, body = 'b' WHERE id = 1").await?;
    assert_older(&client.cmd(&["SET", "doc:1", &doc(1)]).await?);
    assert_passed(&client.cmd(&["SET", "doc:1", &doc(2)]).await?);
    assert_passed(&client.cmd(&["SET", "doc:1", "{\"version\": \"2\"}"]).await?);
    assert_passed(&client.cmd(&["SET", "doc:1", &doc(3)]).await?);

    // In psql, by someone who does not know of versions.
    change(world, "UPDATE docs SET body = 'by hand' WHERE id = 1").await?;
    assert_eq!(world.held("doc:1").await?, None);
    assert_no_evidence(&client.cmd(&["SET", "doc:1", &doc(2)]).await?);
    assert_older(&client.cmd(&["SET", "doc:1", &doc(1)]).await?);
    change(world, "UPDATE docs SET version = version + 1 WHERE id = 1").await?;
    assert_older(&client.cmd(&["SET", "doc:1", &doc(2)]).await?);
    assert_passed(&client.cmd(&["SET", "doc:1", &doc(3)]).await?);

    // What cannot be read proves nothing, and leaves it to the miss.
    for value in ["no JSON", "{\"version\": 3.0}", "{\"version\": null}", "{\"version\": 3, \"version\": 3}"]
    {
        assert_no_evidence(&client.cmd(&["SET", "doc:1", value]).await?);
    }
    world.level().await?;
    for (value, passes) in [("no JSON", true), (&doc(2), false)] {
        client.cmd(&["DEL", "doc:1"]).await?;
        assert_eq!(client.cmd(&["GET", "doc:1"]).await?, Reply::Nil);
        let reply = client.cmd(&["SET", "doc:1", value]).await?;
        if passes { assert_passed(&reply) } else { assert_older(&reply) }
    }
    // A snapshot that is good does not help an older version.
    let snapshot = world.snapshot().await?;
    assert_older(&client.cmd(&["ASOF", &snapshot, "SET", "doc:1", &doc(2)]).await?);
    assert_passed(&client.cmd(&["ASOF", &snapshot, "SET", "doc:1", "no JSON"]).await?);

    // Deleted, and inserted again with the version that it once had.
    change(world, "DELETE FROM docs WHERE id = 1; INSERT INTO docs VALUES (1, 3, 'another')").await?;
    assert_no_evidence(&client.cmd(&["SET", "doc:1", &doc(3)]).await?);
    // A key of many rows, and one of two tables.
    change(world, "UPDATE docs SET version = 2 WHERE id = 2; UPDATE plain SET version = 2 WHERE id < 6")
        .await?;
    assert_no_evidence(&client.cmd(&["SET", "docs:all", &doc(2)]).await?);
    change(world, "UPDATE plain SET version = 3 WHERE id < 6").await?;
    assert_no_evidence(&client.cmd(&["SET", "both:1", &doc(3)]).await?);
    assert_older(&client.cmd(&["SET", "both:1", &doc(2)]).await?);
    // Named in a message: something else that it depends on has changed. Version 13 has no messages.
    let has_messages = "SELECT current_setting('server_version_num')::int4 >= 140000";
    if !world.sql.query_one(has_messages, &[]).await?.get::<_, bool>(0) {
        return Ok(());
    }
    let message = "SELECT pg_logical_emit_message(true, 'cachefence', 'doc:2')";
    assert_passed(&client.cmd(&["SET", "doc:2", &doc(2)]).await?);
    change(world, message).await?;
    assert_no_evidence(&client.cmd(&["SET", "doc:2", &doc(2)]).await?);
    Ok(())
}

/// Whichever command it comes by, alone, in a transaction, in a pipeline.
async fn by_every_command(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE docs SET version = 5 WHERE id BETWEEN 11 AND 20").await?;
    let (old, new) = (doc(4), doc(5));
    let forms: [(&[&str], Reply); 7] = [
        (&["SET", "doc:11", "V", "EX", "100", "GET"], Reply::Nil),
        (&["SETEX", "doc:12", "100", "V"], Reply::ok()),
        (&["PSETEX", "doc:13", "100000", "V"], Reply::ok()),
        (&["SETNX", "doc:14", "V"], Reply::Int(1)),
        (&["GETSET", "doc:15", "V"], Reply::Nil),
        (&["MSET", "x", "1", "doc:16", "V"], Reply::ok()),
        (&["MSETNX", "y", "1", "doc:17", "V"], Reply::Int(1)),
    ];
    for (form, answer) in forms {
        let with = |value: &str| form.iter().map(|word| word.replace('V', value)).collect::<Vec<_>>();
        let older = with(&old);
        assert_older(&client.cmd(&older.iter().map(String::as_str).collect::<Vec<_>>()).await?);
        let newer = with(&new);
        let reply = client.cmd(&newer.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        assert_eq!(reply, answer, "{form:?}");
    }
    // Each pair by its own value, and of two with one key by the last.
    let pairs = ["MSET", "doc:18", &new, "doc:19", &old, "doc:18", &new, "doc:20", &new];
    assert_older(&client.cmd(&pairs).await?);
    assert_eq!(world.held("doc:18").await?.as_ref(), Some(&new));
    assert_eq!(world.held("doc:19").await?, None);
    assert_older(&client.cmd(&["MSET", "doc:19", &new, "doc:19", &old]).await?);
    assert_passed(&client.cmd(&["MSET", "doc:19", &old, "doc:19", &new]).await?);

    for (value, reply) in [(&new, Reply::Array(vec![Reply::ok()])), (&old, Reply::Nil)] {
        let replies = client.pipeline(&[&["MULTI"], &["SET", "doc:11", value], &["EXEC"]]).await?;
        assert_eq!(replies.last(), Some(&reply));
    }
    let replies =
        client.pipeline(&[&["SET", "doc:12", &old], &["SET", "doc:12", &new], &["GET", "doc:12"]]).await?;
    assert_older(&replies[0]);
    assert_eq!(replies[1..], [Reply::ok(), Reply::bulk(&new)]);
    Ok(())
}

/// A large value is read as a whole, though it could go out while it comes in.
async fn by_a_large_value(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE docs SET version = 5 WHERE id IN (21, 22)").await?;
    let large = |version| format!("{{\"body\": \"{}\", \"version\": {version}}}", "x".repeat(300_000));
    assert_older(&client.cmd(&["SET", "doc:21", &large(4)]).await?);
    assert_passed(&client.cmd(&["SET", "doc:21", &large(5)]).await?);
    assert_eq!(world.redis(&["STRLEN", "doc:21"]).await?, Reply::Int(large(5).len() as i64));
    // Too large to be read.
    let too_large = format!("{{\"version\": 5, \"body\": \"{}\"}}", "x".repeat(5 << 20));
    assert_no_evidence(&client.cmd(&["SET", "doc:21", &too_large]).await?);
    // A raw version is short: the last byte of what has gone out is none.
    change(world, "UPDATE heads SET version = 7 WHERE id = 5").await?;
    assert_no_evidence(&client.cmd(&["SET", "head:5:version", &"7".repeat(300_000)]).await?);
    // Another field may be as large as it likes, before and after.
    change(world, "UPDATE items SET version = 7 WHERE id = 5").await?;
    let name = "7".repeat(300_000);
    for (version, passes) in [("6", false), ("7", true)] {
        for command in [
            ["HSET", "item:5", "version", version, "name", &name],
            ["HSET", "item:5", "name", &name, "version", version],
        ] {
            let reply = client.cmd(&command).await?;
            if passes { assert!(matches!(reply, Reply::Int(_)), "{reply:?}") } else { assert_older(&reply) }
        }
    }
    assert_no_evidence(&client.cmd(&["HSET", "item:5", "version", &name]).await?);
    Ok(())
}

/// With the default replica identity an UPDATE does not tell the version that it replaced: it may have left it as it
/// was, or lowered it.
async fn without_the_old_row(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE plain SET version = 9 WHERE id = 3").await?;
    assert_older(&client.cmd(&["SET", "plain:3", &doc(8)]).await?);
    assert_refused(&client.cmd(&["SET", "plain:3", &doc(9)]).await?, "UNPROVEN");
    assert_refused(&client.cmd(&["SET", "plain:3", &doc(10)]).await?, "UNPROVEN");
    // With one that contains the version, what is not told has not changed.
    change(world, "UPDATE indexed SET version = 2 WHERE id = 7").await?;
    assert_older(&client.cmd(&["SET", "indexed:7", &doc(1)]).await?);
    assert_passed(&client.cmd(&["SET", "indexed:7", &doc(2)]).await?);
    change(world, "UPDATE indexed SET body = 'by hand' WHERE id = 7").await?;
    assert_no_evidence(&client.cmd(&["SET", "indexed:7", &doc(2)]).await?);
    change(world, "UPDATE indexed SET version = 3 WHERE id = 7").await?;
    assert_passed(&client.cmd(&["SET", "indexed:7", &doc(3)]).await?);
    // What is told of a version is what then counts: of a key that another row feeds as well it vouches for nothing.
    change(world, "UPDATE indexed SET version = 2 WHERE id = 8").await?;
    for (key, vouches) in [("indexed:8", true), ("pair:8", false)] {
        let Reply::Array(lines) = client.cmd(&["FENCE", "EXPLAIN", key]).await? else {
            return Err(key.into());
        };
        let line = lines.iter().filter_map(Reply::text).find(|line| line.starts_with("version: 2"));
        let told = line.is_some_and(|line| line.starts_with("version: 2; a fill made from it is fresh"));
        let reply = client.cmd(&["SET", key, &doc(2)]).await?;
        assert_eq!((told, reply == Reply::ok()), (vouches, vouches), "{lines:?}");
    }
    Ok(())
}

/// One instant, however it is written.
async fn by_the_instant(world: &World, client: &mut Client) -> Outcome {
    let page = |changed: &str| format!("{{\"meta\": [{{\"changed\": \"{changed}\"}}]}}");
    change(
        world,
        "SET timezone = 'Asia/Kolkata'; UPDATE pages SET changed = '2026-11-23T07:31:05.25Z' WHERE id = 1",
    )
    .await?;
    for same in
        ["2026-11-23T07:31:05.25Z", "2026-11-23 13:01:05.250000+05:30", "2026-11-22t23:31:05,250-0800"]
    {
        assert_passed(&client.cmd(&["SET", "page:1", &page(same)]).await?);
    }
    assert_older(&client.cmd(&["SET", "page:1", &page("2026-11-23 07:31:05.249999+00")]).await?);
    assert_older(&client.cmd(&["SET", "page:1", &page("2026-11-23 12:31:05.25+05:30")]).await?);
    assert_no_evidence(&client.cmd(&["SET", "page:1", &page("2026-11-23T07:31:05.25")]).await?);
    assert_no_evidence(&client.cmd(&["SET", "page:1", "{\"meta\": [{\"changed\": 1795419065}]}"]).await?);
    // Milliseconds of microseconds.
    change(world, "UPDATE pages SET changed = '2026-11-23T07:31:05.777123Z' WHERE id = 1").await?;
    assert_no_evidence(&client.cmd(&["SET", "page:1", &page("2026-11-23T07:31:05.777Z")]).await?);
    assert_older(&client.cmd(&["SET", "page:1", &page("2026-11-23T07:31:05.776Z")]).await?);
    assert_passed(&client.cmd(&["SET", "page:1", &page("2026-11-23T07:31:05.777123Z")]).await?);
    change(world, "UPDATE pages SET changed = 'infinity' WHERE id = 1").await?;
    assert_no_evidence(&client.cmd(&["SET", "page:1", &page("2026-11-23T07:31:05.777123Z")]).await?);

    change(world, "UPDATE pages SET changed = '1970-01-01T00:00:07Z' WHERE id = 3").await?;
    let Reply::Array(lines) = client.cmd(&["FENCE", "EXPLAIN", "page:3"]).await? else {
        return Err("page:3".into());
    };
    let told = |line: String| line.starts_with("version: 7000000 microseconds since 1970");
    assert!(lines.iter().filter_map(Reply::text).any(told), "{lines:?}");

    // A column without a zone, read by whoever has one.
    change(world, "UPDATE local SET changed = '2026-11-23 07:31:05.5' WHERE id = 1").await?;
    assert_passed(&client.cmd(&["SET", "local:1", "2026-11-23 07:31:05.5"]).await?);
    assert_passed(&client.cmd(&["SET", "local:1", "2026-11-23T07:31:05.500Z"]).await?);
    assert_no_evidence(&client.cmd(&["SET", "local:1", "2026-11-23T06:31:05.500Z"]).await?);
    assert_no_evidence(&client.cmd(&["SET", "local:1", "2026-11-23T09:31:05.5+01"]).await?);
    assert_older(&client.cmd(&["SET", "local:1", "2026-11-23T06:31:05.500"]).await?);
    // A TRUNCATE says nothing of single rows.
    change(world, "TRUNCATE local").await?;
    change(world, "INSERT INTO local VALUES (1, '2026-11-23 08:00:00')").await?;
    assert_no_evidence(&client.cmd(&["SET", "local:1", "2026-11-23 08:00:00"]).await?);
    Ok(())
}

/// A hash whose field tells.
async fn by_a_field(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE items SET version = 2 WHERE id IN (1, 2, 3)").await?;
    assert_older(&client.cmd(&["HSET", "item:1", "name", "a", "version", "1"]).await?);
    assert_eq!(client.cmd(&["HSET", "item:1", "name", "b", "version", "2"]).await?, Reply::Int(2));
    assert_older(&client.cmd(&["HSET", "item:1", "version", "2", "version", "1"]).await?);
    assert_eq!(client.cmd(&["HGET", "item:1", "name"]).await?, Reply::Nil, "no torn value stays");
    assert_passed(&client.cmd(&["HMSET", "item:2", "version", "2", "name", "b"]).await?);
    assert_older(&client.cmd(&["HSETNX", "item:3", "version", "1"]).await?);
    assert_eq!(client.cmd(&["HSETNX", "item:3", "version", "2"]).await?, Reply::Int(1));
    assert_no_evidence(&client.cmd(&["HSET", "item:2", "name", "c"]).await?);
    assert_no_evidence(&client.cmd(&["SET", "item:2", "2"]).await?);
    Ok(())
}

/// A pointer to the current version never moves backwards, whoever sets it and when; and a version that is new can be
/// filled under its own key.
async fn by_pointers_and_versioned_keys(world: &World, client: &mut Client) -> Outcome {
    let mut slow = world.client().await?;
    assert_eq!(slow.cmd(&["GET", "head:1:version"]).await?, Reply::Nil);
    for version in 2..6 {
        change(world, &format!("UPDATE heads SET version = {version} WHERE id = 1")).await?;
        let (version, before) = (version.to_string(), (version - 1).to_string());
        assert_passed(&client.cmd(&["SET", "head:1:version", &version]).await?);
        assert_older(&slow.cmd(&["SET", "head:1:version", &before]).await?);
        assert_eq!(world.held("head:1:version").await?, Some(version));
    }
    world.level().await?;
    assert_eq!(client.cmd(&["GET", "head:1:v5"]).await?, Reply::Nil);
    assert_passed(&client.cmd(&["SET", "head:1:v5", "the whole of it"]).await?);
    Ok(())
}

/// `ASOF version=...`, around any fill.
async fn as_the_client_states_it(world: &World, client: &mut Client) -> Outcome {
    change(world, "UPDATE docs SET version = 5 WHERE id BETWEEN 31 AND 39; UPDATE pages SET changed = now() WHERE id = 2")
        .await?;
    assert_eq!(world.redis(&["SET", "dumped", "x"]).await?, Reply::ok());
    let restore = "return redis.call('RESTORE', KEYS[2], 0, redis.call('DUMP', KEYS[1]))";
    let fills: [&[&str]; 8] = [
        &["SET", "doc:31", "no JSON"],
        &["SETEX", "doc:32", "100", "x"],
        &["HSET", "doc:33", "f", "x"],
        &["MSET", "doc:34", "x", "doc:35", "{\"version\": 1}"],
        &["RPUSH", "doc:36", "x"],
        &["EVAL", restore, "2", "dumped", "doc:37"],
        &["COPY", "dumped", "doc:38"],
        &["SET", "unguarded", "x"],
    ];
    for fill in fills {
        let asof = |version| [&["ASOF", version][..], fill].concat();
        let refused = client.cmd(&asof("version=4")).await?;
        if fill[1] != "unguarded" {
            assert_older(&refused);
        }
        let reply = client.cmd(&asof("version=5")).await?;
        assert!(!matches!(reply, Reply::Error(_)), "{fill:?}: {reply:?}");
        let held = fill.iter().find(|word| word.starts_with("doc:")).unwrap_or(&"unguarded");
        assert_eq!(world.redis(&["EXISTS", held]).await?, Reply::Int(1), "{fill:?}");
    }
    let changed = support::text(&world.sql, "SELECT to_json(changed)::text FROM pages WHERE id = 2").await?;
    let changed = format!("version={}", changed.trim_matches('"'));
    assert_passed(&client.cmd(&["ASOF", &changed, "SET", "page:2", "x"]).await?);
    assert_older(&client.cmd(&["ASOF", "version=2026-01-02T00:00:00Z", "SET", "page:2", "x"]).await?);

    // In a transaction, and in a pipeline.
    for (version, reply) in [("version=5", Reply::Array(vec![Reply::ok()])), ("version=4", Reply::Nil)] {
        let replies =
            client.pipeline(&[&["MULTI"], &["ASOF", version, "SET", "doc:39", "x"], &["EXEC"]]).await?;
        assert_eq!(replies.last(), Some(&reply));
    }
    // Where no version is compared it proves nothing; one of another kind is an error.
    let replies = client
        .pipeline(&[
            &["ASOF", "version=5", "SET", "user:1", "x"],
            &["ASOF", "version=2026-01-02T00:00:00Z", "SET", "doc:31", "x"],
            &["ASOF", "version=5", "SET", "page:2", "x"],
            &["ASOF", "version=2026-01-02T00:00:00", "SET", "page:2", "x"],
            &["ASOF", "version=five", "SET", "user:1", "x"],
            &["MULTI"],
            &["ASOF", "version=5", "SET", "page:2", "x"],
            &["EXEC"],
        ])
        .await?;
    assert_refused(&replies[0], "UNPROVEN");
    for wrong in [1, 2, 3, 4, 6] {
        assert_refused(&replies[wrong], "ERR cachefence: ASOF: ");
    }
    assert_refused(&replies[7], "EXECABORT");
    Ok(())
}
