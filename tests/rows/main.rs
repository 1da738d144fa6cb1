//! Every row: whatever a table is and whatever happens to its rows, the keys that they feed are deleted, and no others.
//!
//! One stand for all of it. What is to be deleted and what is to stay is put into Redis behind the proxy's back; then a
//! commit is made; when that is applied, the first is gone and the rest is there.

#[path = "../support/mod.rs"]
mod support;

mod alterations;

use cachefence::demo::client::Reply;
use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, config, wait_until,
};
use cachefence::pg::target::SESSION;
use support::{BINARY, Fallible, Outcome, PATIENCE, World, assert_passed, assert_refused, text};

/// Transaction ids have come round so often before anything begins.
const EPOCH: u64 = 7;

const TABLES: &str = r#"
CREATE TABLE plain (id int PRIMARY KEY, note text);
CREATE TABLE tenants (tenant int, id uuid, email text, PRIMARY KEY (tenant, id));
ALTER TABLE tenants REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL, note text);
CREATE UNIQUE INDEX by_index_code ON by_index (code);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
CREATE TABLE large (gone int, id int PRIMARY KEY, body text NOT NULL, note text,
                    twice int GENERATED ALWAYS AS (id * 2) STORED);
ALTER TABLE large DROP COLUMN gone, ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE large REPLICA IDENTITY FULL;
CREATE SCHEMA one; CREATE TABLE one.items (id int PRIMARY KEY);
CREATE SCHEMA two; CREATE TABLE two.items (id int PRIMARY KEY);
CREATE SCHEMA "Größe"; CREATE TABLE "Größe"."Käufe, neu" ("Nr." int, "Straße" text, PRIMARY KEY ("Nr.", "Straße"));
CREATE TABLE owners (id int PRIMARY KEY);
CREATE TABLE pets (id int PRIMARY KEY, owner int REFERENCES owners);

CREATE TABLE measures (id int, day date, v int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE measures_1 PARTITION OF measures FOR VALUES FROM ('2001-01-01') TO ('2002-01-01');
CREATE TABLE measures_2 (junk int, v int, day date NOT NULL, id int NOT NULL, PRIMARY KEY (id, day));
ALTER TABLE measures_2 DROP COLUMN junk;
ALTER TABLE measures ATTACH PARTITION measures_2 FOR VALUES FROM ('2002-01-01') TO ('2003-01-01');
CREATE TABLE measures_3 PARTITION OF measures FOR VALUES FROM ('2003-01-01') TO ('2004-01-01') PARTITION BY LIST (id);
CREATE TABLE measures_3_all PARTITION OF measures_3 DEFAULT;
CREATE TABLE measures_9 (id int, day date, v int, PRIMARY KEY (id, day));
INSERT INTO measures_9 VALUES (9, '2009-01-01');
CREATE TABLE logs (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM (0) TO (100);
CREATE TABLE logs_2 PARTITION OF logs FOR VALUES FROM (100) TO (200);
INSERT INTO logs VALUES (1), (101);
CREATE TABLE events (id int PRIMARY KEY) PARTITION BY HASH (id);
CREATE TABLE events_1 PARTITION OF events FOR VALUES WITH (MODULUS 1, REMAINDER 0);
INSERT INTO events VALUES (1);

CREATE TABLE animals (id int PRIMARY KEY, name text);
CREATE TABLE cats (lives int, PRIMARY KEY (id)) INHERITS (animals);
CREATE TABLE codes (code int PRIMARY KEY);
CREATE TABLE replaced (id int PRIMARY KEY);
CREATE TABLE unguarded (id int PRIMARY KEY);
"#;

const GUARDS: &[(&str, &[&str])] = &[
    ("plain", &["plain:<id>"]),
    ("tenants", &["tenant:<tenant>:<id>", "by-email:<email>", "tenant-of:<email>:<tenant>"]),
    ("by_index", &["code:<code>"]),
    ("large", &["large:<id>", "body:<body>"]),
    ("one.items", &["one:<id>"]),
    ("two.items", &["two:<id>"]),
    ("Größe.Käufe, neu", &["kauf:<Nr.>:<Straße>"]),
    ("owners", &["owner:<id>"]),
    ("pets", &["pet:<id>"]),
    ("measures", &["measure:<id>", "measures:<day>:<id>"]),
    ("logs", &["log:<id>"]),
    ("events", &["event:<id>"]),
    ("animals", &["animal:<id>"]),
    ("codes", &["number:<code>"]),
    ("replaced", &["replaced:<id>"]),
];

/// A column for each type, with values of it.
const TYPES: &[(&str, &[&str])] = &[
    ("bool", &["true", "false"]),
    ("int2", &["-32768"]),
    ("int4", &["2147483647"]),
    ("int8", &["-9223372036854775808"]),
    // Version 13 has no infinite numeric.
    ("numeric", &["'NaN'", "1.50", "-0.0001"]),
    ("numeric(10,3)", &["2"]),
    ("float4", &["0.1", "'NaN'", "1e30"]),
    ("float8", &["0.1", "'-Infinity'", "1e-7", "-0.0"]),
    ("money", &["1234.5"]),
    ("text", &["''", "E'a:b\\n<c>'", "'ü'"]),
    ("varchar(10)", &["'x '"]),
    ("char(5)", &["'ab'"]),
    ("name", &["'n'"]),
    ("\"char\"", &["'c'"]),
    ("bytea", &["'\\x00ff'"]),
    ("uuid", &["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"]),
    ("date", &["'2024-02-29'", "'infinity'", "'0044-03-15 BC'"]),
    ("time", &["'23:59:59.5'"]),
    ("timetz", &["'10:00+02'"]),
    ("timestamp", &["'2024-02-29 12:00:00.123456'"]),
    ("timestamptz", &["'2024-02-29 12:00:00+02'"]),
    ("interval", &["'1 year 2 mons -3 days 04:05:06'"]),
    ("json", &["'{\"a\" : 1}'"]),
    ("jsonb", &["'{\"b\":1,\"a\":  2}'"]),
    ("xml", &["'<a>1</a>'"]),
    ("inet", &["'10.0.0.1'", "'10.0.0.0/8'", "'::1'"]),
    ("cidr", &["'10.0.0.0/8'"]),
    ("macaddr", &["'08:00:2B:01:02:03'"]),
    ("bit(4)", &["B'0101'"]),
    ("varbit", &["B'1'"]),
    ("point", &["'(1,2)'"]),
    ("int4[]", &["'{1,NULL,3}'"]),
    ("text[]", &["'{\"a b\",\"c,d\"}'"]),
    ("int4range", &["'[1,5]'"]),
    ("tsvector", &["'b a'"]),
    ("mood", &["'so so'"]),
    ("positive", &["7"]),
    ("pair", &["'(1,\"x y\")'"]),
    ("oid", &["4294967295"]),
    ("pg_lsn", &["'0/16B3748'"]),
];

async fn world() -> Fallible<World> {
    let mut primary = Postgres::primary(PrimaryOptions::default()).await?;
    // The packages of other versions have no pg_resetwal.
    if primary.programs().join("pg_resetwal").is_file() {
        primary.set_epoch(EPOCH as u32).await?;
    } else {
        println!("no pg_resetwal beside the server: transaction ids are those of the first epoch");
    }
    let sql = primary.client().await?;
    sql.batch_execute(TABLES).await?;
    sql.batch_execute(alterations::TABLES).await?;
    sql.batch_execute(&types_table()).await?;
    let redis = Redis::start(RedisOptions::default()).await?;
    let servers = config(&primary, &[], &redis);
    let guard = |table: &str, keys: &[String]| {
        format!("[[guard]]\ntable = {table:?}\nkeys = {keys:?}\nreply = \"error\"\nunproven = \"refuse\"\n")
    };
    let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let all = GUARDS.iter().chain(alterations::GUARDS);
    let mut guards: String = all.map(|(table, keys)| guard(table, &owned(keys))).collect();
    let keys: Vec<String> = (0..TYPES.len()).map(|n| format!("type{n}:<c{n}>")).collect();
    guards += &guard("types", &keys);
    guards += alterations::VERSIONED;
    support::init(&(servers.clone() + &guards))?;
    sql.batch_execute("ALTER PUBLICATION cachefence ADD TABLE unguarded").await?;
    let proxy = Cachefence::start(BINARY, &(servers.clone() + &guards)).await?;
    let world = World { proxy, redis, replica: None, sql, primary, servers, guards };
    world.level().await?;
    Ok(world)
}

fn types_table() -> String {
    let columns: Vec<String> =
        TYPES.iter().enumerate().map(|(n, (name, _))| format!("c{n} {name}")).collect();
    format!(
        "CREATE TYPE mood AS ENUM ('so so'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
         CREATE TYPE pair AS (a int, b text);
         CREATE TABLE types (id serial, {}); ALTER TABLE types REPLICA IDENTITY FULL",
        columns.join(", ")
    )
}

/// Puts keys into Redis, runs SQL, waits until it is applied: which keys are left?
async fn left(world: &World, sql: &str, keys: &[&str]) -> Fallible<Vec<String>> {
    let mut redis = world.redis.client().await?;
    for key in keys {
        redis.cmd(&["SET", key, "old"]).await?;
    }
    world.sql.batch_execute(sql).await.map_err(|error| format!("{sql}: {error:?}"))?;
    world.applied().await?;
    let mut left = Vec::new();
    for key in keys {
        if redis.cmd(&["GETDEL", key]).await?.text().is_some() {
            left.push((*key).to_owned());
        }
    }
    Ok(left)
}

/// Of `deleted` none is left after the SQL, of `kept` all.
async fn deletes(world: &World, sql: &str, deleted: &[&str], kept: &[&str]) -> Outcome {
    let keys = [deleted, kept].concat();
    assert_eq!(left(world, sql, &keys).await?, kept, "{sql}");
    Ok(())
}

/// Whether logical replication has messages: since version 14.
async fn has_messages(world: &World) -> Fallible<bool> {
    let sql = "SELECT current_setting('server_version_num')::int4 >= 140000";
    Ok(world.sql.query_one(sql, &[]).await?.get(0))
}

/// Keys that a later look at the catalog has deleted, with all others of the guard.
async fn purges(world: &World, sql: &str, keys: &[&str]) -> Outcome {
    let mut redis = world.redis.client().await?;
    for key in keys {
        redis.cmd(&["SET", key, "old"]).await?;
    }
    world.sql.batch_execute(sql).await.map_err(|error| format!("{sql}: {error:?}"))?;
    for key in keys {
        world.gone(key).await?;
    }
    // The message behind it is applied as well: nothing of it is under way any more.
    world.applied().await?;
    Ok(())
}

/// A table that the stream has never met makes the proxy look at the catalog at once.
fn nudge(n: u32) -> String {
    format!(
        "CREATE TABLE nudge_{n} (id int PRIMARY KEY); ALTER PUBLICATION cachefence ADD TABLE nudge_{n}; \
         INSERT INTO nudge_{n} VALUES (1)"
    )
}

async fn ready(world: &World) -> Outcome {
    let is_ready = async || world.proxy.get("/readyz").await.is_ok_and(|(status, _)| status == 200);
    Ok(wait_until("the proxy to be ready", PATIENCE, is_ready).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_deletes_its_keys_and_no_others() -> Outcome {
    let mut world = world().await?;
    types(&world).await?;
    identities(&world).await?;
    names(&world).await?;
    transactions(&world).await?;
    truncations(&world).await?;
    epoch(&world).await?;
    partitions(&world).await?;
    partitions_that_come_and_go(&world).await?;
    children(&world).await?;
    retyped(&world).await?;
    replaced(&world).await?;
    alterations::columns(&world).await?;
    alterations::partitions(&world).await?;
    alterations::primary_key(&world).await?;
    alterations::mended(&world).await?;
    alterations::publication(&world).await?;
    alterations::away(&mut world).await
}

/// A key is what a text-format answer prints under the fixed settings.
async fn types(world: &World) -> Outcome {
    let session = world.primary.client().await?;
    for (name, value) in SESSION {
        session.batch_execute(&format!("SET {name} = '{value}'")).await?;
    }
    let rows = TYPES.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    let value = |n: usize, row: usize| TYPES[n].1.get(row).copied().unwrap_or("NULL");
    let insert = |row: usize| {
        let values: Vec<&str> = (0..TYPES.len()).map(|n| value(n, row)).collect();
        format!("INSERT INTO public.types VALUES (DEFAULT, {});", values.join(", "))
    };
    let insert: String = (0..rows).map(insert).collect();
    session.batch_execute(&insert).await?;
    let mut keys = Vec::new();
    for message in session.simple_query("SELECT * FROM public.types").await? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            let key = |n: usize| Some(format!("type{n}:{}", row.get(n + 1)?));
            keys.extend((0..TYPES.len()).filter_map(key));
        }
    }
    assert_eq!(keys.len(), TYPES.iter().map(|(_, values)| values.len()).sum::<usize>());
    // What other casts, or none, would make of them.
    let kept = ["type0:true", "type12:ab", "type25:10.0.0.1/32", "type1:", "type7:NULL", "type38:6"];
    world.applied().await?;
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    // The rows before and those after.
    for sql in [insert.as_str(), "UPDATE types SET id = id + 100", "DELETE FROM types"] {
        deletes(world, sql, &keys, &kept).await?;
    }
    Ok(())
}

async fn identities(world: &World) -> Outcome {
    let id = "00000000-0000-0000-0000-00000000000";
    let sql = format!(
        "INSERT INTO tenants VALUES (1, '{id}1', 'a@x'), (1, '{id}2', NULL); INSERT INTO by_index VALUES (1, 'c1', 'n'); \
         INSERT INTO plain VALUES (1, 'n'), (2, 'n')"
    );
    let key = |n: u32| format!("tenant:1:{id}{n}");
    let (one, two) = (key(1), key(2));
    let keys = [&one, &two, "by-email:a@x", "tenant-of:a@x:1", "code:c1", "plain:1"];
    deletes(world, &sql, &keys, &["by-email:", "tenant-of::1", "code:n", "plain:3"]).await?;
    // Old and new, but NULL names nothing.
    let sql = "UPDATE tenants SET email = CASE WHEN email IS NULL THEN 'b@x' END";
    let keys = [&one, &two, "by-email:a@x", "by-email:b@x", "tenant-of:a@x:1", "tenant-of:b@x:1"];
    deletes(world, sql, &keys, &["by-email:", "plain:1"]).await?;
    let sql = "UPDATE tenants SET tenant = 2 WHERE email IS NULL";
    deletes(world, sql, &[&one, &one.replace(":1:", ":2:")], &[&two, "by-email:b@x"]).await?;
    // By an index: the primary key may change and is not told; the index's columns are.
    let sql = "UPDATE by_index SET id = 2, code = 'c2'";
    deletes(world, sql, &["code:c1", "code:c2"], &["code:n"]).await?;
    deletes(world, "UPDATE by_index SET note = 'm'", &["code:c2"], &["code:c1"]).await?;
    deletes(world, "DELETE FROM by_index", &["code:c2"], &["code:c1"]).await?;
    deletes(world, "UPDATE plain SET id = 3 WHERE id = 1", &["plain:1", "plain:3"], &["plain:2"]).await?;
    // Large values are not sent again where they have not changed: in a key, and beside it.
    let body = "x".repeat(9000);
    let large = format!("body:{body}");
    deletes(world, &format!("INSERT INTO large VALUES (1, '{body}')"), &["large:1", &large], &[]).await?;
    deletes(world, "UPDATE large SET note = 'm'", &["large:1", &large], &["large:2", "body:m"]).await?;
    deletes(world, "UPDATE large SET id = 2", &["large:1", "large:2", &large], &["large:4"]).await?;
    let sql = "UPDATE large SET body = 'short'";
    deletes(world, sql, &["large:2", "body:short", &large], &["large:1"]).await?;
    // A column more, while it runs.
    let sql = "ALTER TABLE large ADD COLUMN more text DEFAULT 'd'; INSERT INTO large VALUES (5, 'b5')";
    deletes(world, sql, &["large:5", "body:b5"], &["large:2", "body:d"]).await?;
    let sql = "ALTER TABLE large DROP COLUMN note; DELETE FROM large WHERE id = 5";
    deletes(world, sql, &["large:5", "body:b5"], &["large:2"]).await
}

async fn names(world: &World) -> Outcome {
    deletes(world, "INSERT INTO one.items VALUES (1)", &["one:1"], &["two:1", "one:2"]).await?;
    deletes(world, "INSERT INTO two.items VALUES (1)", &["two:1"], &["one:1"]).await?;
    let sql = r#"INSERT INTO "Größe"."Käufe, neu" VALUES (1, 'Gänsemarkt 5')"#;
    deletes(world, sql, &["kauf:1:Gänsemarkt 5"], &["kauf:1:", "kauf:2:Gänsemarkt 5"]).await
}

async fn transactions(world: &World) -> Outcome {
    let copied = world.primary.psql("COPY plain (id) FROM PROGRAM 'seq 100 102'");
    let mut redis = world.redis.client().await?;
    for key in ["plain:100", "plain:102", "plain:103"] {
        redis.cmd(&["SET", key, "old"]).await?;
    }
    copied.await?;
    world.applied().await?;
    assert_eq!(redis.cmd(&["EXISTS", "plain:100", "plain:102"]).await?, Reply::Int(0));
    assert_eq!(world.held("plain:103").await?.as_deref(), Some("old"));

    let (named, messages) = ("SELECT cachefence.fence('report:1')", has_messages(world).await?);
    let sql = format!(
        "BEGIN; INSERT INTO plain VALUES (10), (11); SAVEPOINT a; INSERT INTO plain VALUES (12); \
         ROLLBACK TO a; INSERT INTO plain VALUES (13); SAVEPOINT b; INSERT INTO plain VALUES (14); RELEASE b; \
         {}; INSERT INTO unguarded VALUES (1); COMMIT",
        if messages { named } else { "" }
    );
    let keys = ["plain:10", "plain:11", "plain:13", "plain:14", "report:1"];
    let keys = if messages { &keys[..] } else { &keys[..4] };
    deletes(world, &sql, keys, &["plain:12", "report:2", "unguarded:1"]).await?;
    let sql = "DO $$ BEGIN INSERT INTO plain VALUES (20); BEGIN INSERT INTO plain VALUES (21); RAISE 'no'; \
               EXCEPTION WHEN OTHERS THEN NULL; END; END $$";
    deletes(world, sql, &["plain:20"], &["plain:21"]).await?;
    deletes(world, "BEGIN; INSERT INTO plain VALUES (22); ROLLBACK", &[], &["plain:22"]).await?;

    // In two phases: nothing before the second.
    let sql = "BEGIN; INSERT INTO plain VALUES (30); PREPARE TRANSACTION 'p30'";
    deletes(world, sql, &[], &["plain:30"]).await?;
    let sql =
        "BEGIN; INSERT INTO plain VALUES (31); PREPARE TRANSACTION 'p31'; INSERT INTO plain VALUES (32)";
    // A batch of several statements: the last one is a transaction of its own.
    deletes(world, sql, &["plain:32"], &["plain:30", "plain:31"]).await?;
    deletes(world, "COMMIT PREPARED 'p30'", &["plain:30"], &["plain:31"]).await?;
    deletes(world, "ROLLBACK PREPARED 'p31'", &[], &["plain:31"]).await
}

async fn truncations(world: &World) -> Outcome {
    deletes(world, "TRUNCATE plain", &["plain:1", "plain:999"], &["large:1", "one:1"]).await?;
    deletes(world, "TRUNCATE one.items, two.items", &["one:7", "two:7"], &["plain:1"]).await?;
    world.sql.batch_execute("INSERT INTO owners VALUES (1); INSERT INTO pets VALUES (1, 1)").await?;
    deletes(world, "TRUNCATE owners CASCADE", &["owner:1", "pet:1"], &["plain:1"]).await?;
    deletes(world, "TRUNCATE measures", &["measure:1", "measures:2001-01-01:1"], &["log:1"]).await
}

/// Ids of 64 bits: a snapshot that sees the write proves a fill, and one that does not is refused.
async fn epoch(world: &World) -> Outcome {
    let before = world.snapshot().await?;
    world.sql.batch_execute("INSERT INTO plain VALUES (70)").await?;
    world.level().await?;
    let (xid, after) =
        (text(&world.sql, "SELECT pg_current_xact_id()::text").await?, world.snapshot().await?);
    let epoch = if world.primary.programs().join("pg_resetwal").is_file() { EPOCH } else { 0 };
    assert_eq!(xid.parse::<u64>()? >> 32, epoch);
    let mut client = world.client().await?;
    assert_refused(&client.cmd(&["ASOF", &before, "SET", "plain:70", "old"]).await?, "STALE");
    assert_passed(&client.cmd(&["ASOF", &after, "SET", "plain:70", "new"]).await?);
    Ok(())
}

async fn partitions(world: &World) -> Outcome {
    let sql = "INSERT INTO measures VALUES (1, '2001-05-01', 1), (2, '2002-05-01', 2), (3, '2003-05-01', 3)";
    let keys = [
        "measure:1",
        "measure:2",
        "measure:3",
        "measures:2001-05-01:1",
        "measures:2002-05-01:2",
        "measures:2003-05-01:3",
    ];
    // Columns of a leaf stand in another order than those of the root.
    deletes(world, sql, &keys, &["measure:4", "measures:2002-05-01:1"]).await?;
    deletes(world, "UPDATE measures SET v = 9", &keys, &["measure:9"]).await?;
    deletes(world, "UPDATE measures_2 SET id = 5", &["measure:2", "measure:5"], &["measure:1"]).await?;
    // To another leaf.
    let sql = "UPDATE measures SET day = '2003-06-01' WHERE id = 1";
    let keys = ["measure:1", "measures:2001-05-01:1", "measures:2003-06-01:1"];
    deletes(world, sql, &keys, &["measure:5"]).await?;
    deletes(world, "DELETE FROM measures_3_all WHERE id = 1", &["measure:1"], &["measure:3"]).await?;
    // A leaf that is new is known at once.
    let sql = "CREATE TABLE measures_4 PARTITION OF measures FOR VALUES FROM ('2004-01-01') TO ('2005-01-01'); \
               INSERT INTO measures VALUES (4, '2004-05-01')";
    deletes(world, sql, &["measure:4", "measures:2004-05-01:4"], &[]).await
}

/// Rows that come or go with a partition: no commit tells of them.
async fn partitions_that_come_and_go(world: &World) -> Outcome {
    // Told by whoever does it, it is exact.
    let attach =
        "ALTER TABLE measures ATTACH PARTITION measures_9 FOR VALUES FROM ('2009-01-01') TO ('2010-01-01')";
    let sql = format!("BEGIN; {attach}; SELECT cachefence.fence_table('measures_9'); COMMIT");
    let keys = ["measure:9", "measures:2009-01-01:9"];
    if has_messages(world).await? {
        deletes(world, &sql, &keys, &["log:1", "event:1"]).await?;
    } else {
        // Without messages it must not say that it has been done.
        assert!(world.sql.batch_execute(&sql).await.is_err());
        world.sql.batch_execute("ROLLBACK").await?;
        purges(world, &format!("{attach}; {}", nudge(0)), &keys).await?;
    }
    // And without that the catalog shows it.
    let sql = format!("ALTER TABLE logs DETACH PARTITION logs_2; {}", nudge(1));
    purges(world, &sql, &["log:101"]).await?;
    purges(world, &format!("TRUNCATE events_1; {}", nudge(2)), &["event:1"]).await?;
    let sql =
        format!("ALTER TABLE logs ATTACH PARTITION logs_2 FOR VALUES FROM (100) TO (200); {}", nudge(3));
    purges(world, &sql, &["log:101"]).await?;
    // One that comes empty brings nothing: the keys of the others stay.
    let sql = format!("CREATE TABLE logs_3 PARTITION OF logs FOR VALUES FROM (200) TO (300); {}", nudge(4));
    let before = world.proxy.metric("cachefence_purges_total{reason=\"truncate\"}").await?;
    let changed = changes_seen(world).await?;
    deletes(world, &sql, &[], &["log:1"]).await?;
    wait_until("the new partition to be known", PATIENCE, async || {
        changes_seen(world).await.is_ok_and(|now| now > changed)
    })
    .await?;
    world.applied().await?;
    assert_eq!(world.proxy.metric("cachefence_purges_total{reason=\"truncate\"}").await?, before);
    deletes(world, "INSERT INTO logs VALUES (201)", &["log:201"], &["log:1"]).await
}

/// How often the proxy has said that the catalog has changed.
async fn changes_seen(world: &World) -> Fallible<usize> {
    Ok(world.proxy.log().matches("the catalog has changed").count())
}

async fn children(world: &World) -> Outcome {
    deletes(world, "INSERT INTO animals VALUES (1, 'a')", &["animal:1"], &["animal:2"]).await?;
    deletes(world, "INSERT INTO cats VALUES (2, 'b', 9)", &["animal:2"], &["animal:1"]).await?;
    deletes(world, "UPDATE animals SET name = 'c'", &["animal:1", "animal:2"], &["animal:3"]).await?;
    deletes(world, "DELETE FROM cats", &["animal:2"], &["animal:1"]).await?;
    // A child that is new, and published before it is a child.
    let sql = "CREATE TABLE dogs (id int PRIMARY KEY, name text); ALTER PUBLICATION cachefence ADD TABLE dogs; \
               INSERT INTO dogs VALUES (3, 'd'); ALTER TABLE dogs INHERIT animals; UPDATE dogs SET name = 'e'";
    purges(world, sql, &["animal:3", "animal:999"]).await?;
    deletes(world, "INSERT INTO dogs VALUES (4, 'f')", &["animal:4"], &["animal:1"]).await?;
    deletes(world, "TRUNCATE ONLY dogs", &["animal:4", "animal:1"], &["plain:1"]).await
}

/// Another type of a key's column: other texts are keys from then on, without a restart.
async fn retyped(world: &World) -> Outcome {
    let mut client = world.client().await?;
    assert_passed(&client.cmd(&["ASOF", "0/1", "SET", "number:x", "nobody's"]).await?);
    let sql = "ALTER TABLE codes ALTER COLUMN code TYPE text; INSERT INTO codes VALUES ('a')";
    purges(world, sql, &["number:1", "number:x"]).await?;
    ready(world).await?;
    assert_refused(&client.cmd(&["ASOF", "0/1", "SET", "number:x", "old"]).await?, "STALE");
    deletes(world, "INSERT INTO codes VALUES ('x')", &["number:x"], &["number:a"]).await
}

/// Another table under the same name: what the first one held is gone.
async fn replaced(world: &World) -> Outcome {
    deletes(world, "INSERT INTO replaced VALUES (1), (2)", &["replaced:1"], &["replaced:3"]).await?;
    let sql = "BEGIN; ALTER TABLE replaced RENAME TO gone; CREATE TABLE replaced (id int PRIMARY KEY); \
               ALTER PUBLICATION cachefence ADD TABLE replaced; INSERT INTO replaced VALUES (3); COMMIT";
    deletes(world, sql, &["replaced:1", "replaced:2", "replaced:3"], &["plain:1"]).await?;
    world.applied().await?;
    ready(world).await?;
    deletes(world, "INSERT INTO replaced VALUES (4)", &["replaced:4"], &[]).await
}
