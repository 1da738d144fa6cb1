//! The whole feed against a real Postgres, with a cache that only takes notes. Each test has servers of its own.

use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::demo::servers::{Postgres, PrimaryOptions};
use crate::fence::{Fence, Limits, SourceKind};

const WAIT: Duration = Duration::from_secs(10);

fn guards(settings: &[(&str, &[&str])]) -> Arc<Guards> {
    let guard = |(table, keys): &(&str, &[&str])| {
        toml::from_str(&format!("table = {table:?}\nkeys = {keys:?}")).expect("settings")
    };
    Arc::new(Guards::new(&settings.iter().map(guard).collect::<Vec<_>>(), 0).expect("guards"))
}

/// A primary of a test's own.
struct Database {
    url: String,
    target: Target,
    client: Client,
    server: Postgres,
}

async fn database() -> Database {
    let server = Postgres::primary(PrimaryOptions::default()).await.expect("a server");
    let url = server.url();
    let target = Target::parse(&url).expect("a target");
    let client = catalog::connect(&target, "test").await.expect("a connection");
    // Ours find nothing but the catalog; the tests' tables are where everybody's are.
    client.batch_execute("SET search_path = public").await.expect("a setting");
    Database { url, target, client, server }
}

impl Database {
    /// `server_version_num`.
    async fn version(&self) -> i32 {
        let sql = "SELECT current_setting('server_version_num')::int4";
        self.client.query_one(sql, &[]).await.expect("a version").get(0)
    }

    /// Waits until a query answers true.
    async fn until(&self, sql: &str) {
        let started = Instant::now();
        while !self.client.query_one(sql, &[]).await.expect(sql).get::<_, bool>(0) {
            assert!(started.elapsed() < WAIT, "{sql}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until a feed that was dropped has let go of its slot.
    async fn until_released(&self) {
        self.until("SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE active)").await;
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Note {
    Start(Lsn, Option<GapReason>),
    Keys(Vec<String>, usize),
}

/// A running feed and what its cache was told.
struct Running {
    state: Arc<FeedState>,
    positions: Arc<Positions>,
    notes: Arc<Mutex<Vec<Note>>>,
    sources: Vec<Arc<SourceState>>,
    /// Taken by a test that wants the cache to stand still.
    stall: Arc<tokio::sync::Mutex<()>>,
    task: tokio::task::JoinHandle<Result<(), FeedError>>,
}

impl Running {
    fn start(database: &Database, guards: Arc<Guards>, name: &str) -> Self {
        Self::with_replicas(database, guards, name, &[])
    }

    fn with_replicas(database: &Database, guards: Arc<Guards>, name: &str, replicas: &[&str]) -> Self {
        let kinds: Vec<SourceKind> = std::iter::once(SourceKind::Primary)
            .chain(replicas.iter().map(|_| SourceKind::Replica))
            .collect();
        let limits = Limits {
            history: 60_000,
            lease_ttl: 5_000,
            longest_cap: 60_000,
            max_keys: 1_000,
            max_leases: 10,
            guards: 8,
            shards: 4,
        };
        let positions = Arc::new(Positions::new(Arc::new(Fence::new(limits)), &kinds, Instant::now()));
        let state = Arc::new(FeedState::new(guards.len()));
        let (jobs, mut queue) = mpsc::channel(4);
        let (applied, applied_reader) = watch::channel(Lsn(0));
        let notes = Arc::new(Mutex::new(Vec::new()));
        let written = notes.clone();
        let stall = Arc::new(tokio::sync::Mutex::new(()));
        let stalled = stall.clone();
        tokio::spawn(async move {
            while let Some(job) = queue.recv().await {
                drop(stalled.lock().await);
                let note = match job {
                    CacheJob::Start { slot_position, gap, ready, .. } => {
                        applied.send_replace(slot_position);
                        let _ = ready.send(Found::Nothing);
                        Note::Start(slot_position, gap)
                    }
                    CacheJob::Invalidate(invalidation, _) => {
                        applied.send_replace(invalidation.end_lsn);
                        let mut keys: Vec<String> = invalidation
                            .keys
                            .into_iter()
                            .map(|k| String::from_utf8(k.name).expect("UTF-8"))
                            .collect();
                        keys.sort();
                        Note::Keys(keys, invalidation.truncated.len())
                    }
                    CacheJob::Advance(position) => {
                        applied.send_replace(position);
                        continue;
                    }
                };
                written.lock().expect("notes").push(note);
            }
        });
        let settings = Settings {
            target: database.target.clone(),
            slot: name.to_owned(),
            temporary_slot: false,
            failover_slot: true,
            streaming: true,
            publication: name.to_owned(),
            application_name: name.to_owned(),
            feed_lost_after: Duration::from_secs(1),
            max_lag: Duration::from_secs(10),
            poll_interval: Duration::from_millis(5),
            lease_ttl: Duration::from_secs(5),
            db: 0,
        };
        let urls = std::iter::once(database.url.as_str()).chain(replicas.iter().copied());
        let sources: Vec<Source> = urls
            .zip(kinds)
            .enumerate()
            .map(|(index, (url, kind))| Source {
                index: Some(index),
                target: Target::parse(url).expect("a target"),
                state: Arc::new(SourceState::new(&format!("source-{index}"), kind)),
            })
            .collect();
        let states = sources.iter().map(|source| source.state.clone()).collect();
        let feed = Feed::new(
            settings,
            guards,
            Arc::new(Sources::new(sources)),
            positions.clone(),
            state.clone(),
            jobs,
            applied_reader,
        );
        Self { state, positions, notes, sources: states, stall, task: tokio::spawn(feed.run()) }
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            assert!(started.elapsed() < WAIT, "{what}: {:?} {:?}", self.state, self.notes);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn until_note(&self, note: &Note) {
        self.until(&format!("{note:?}"), |r| r.notes.lock().expect("notes").contains(note)).await;
    }

    async fn until_streaming(&self) {
        self.until("streaming", |r| r.state.streaming.load(Ordering::Relaxed)).await;
    }

    fn starts(&self) -> Vec<Option<GapReason>> {
        let starts = |note: &Note| match note {
            Note::Start(_, gap) => Some(*gap),
            Note::Keys(..) => None,
        };
        self.notes.lock().expect("notes").iter().filter_map(starts).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn keys(keys: &[&str]) -> Note {
    Note::Keys(keys.iter().map(|key| (*key).to_owned()).collect(), 0)
}

#[tokio::test]
async fn commits_become_keys_and_are_confirmed_and_resumed() {
    let db = database().await;
    let sql = "CREATE TABLE users (id int PRIMARY KEY, email text NOT NULL, name text);
               ALTER TABLE users REPLICA IDENTITY FULL; CREATE TABLE other (id int PRIMARY KEY)";
    db.client.batch_execute(sql).await.expect("tables");
    let guards = guards(&[("users", &["user:<id>", "users:by-email:<email>"])]);
    sql::init(&db.client, &guards, "cachefence_stream", Some("cachefence_stream")).await.expect("init");
    sql::init(&db.client, &guards, "cachefence_stream", Some("cachefence_stream")).await.expect("init again");

    let feed = Running::start(&db, guards.clone(), "cachefence_stream");
    feed.until_streaming().await;
    assert_eq!(feed.starts(), [None]);
    db.client.batch_execute("INSERT INTO users VALUES (1, 'a', 'x')").await.expect("insert");
    feed.until_note(&keys(&["user:1", "users:by-email:a"])).await;
    db.client.batch_execute("UPDATE users SET email = 'b'").await.expect("update");
    feed.until_note(&keys(&["user:1", "users:by-email:a", "users:by-email:b"])).await;
    let fenced = db.client.batch_execute("SELECT cachefence.fence('report:1')").await;
    match db.version().await {
        140_000.. => {
            fenced.expect("fence");
            feed.until_note(&keys(&["report:1"])).await;
        }
        _ => assert!(format!("{fenced:?}").contains("needs PostgreSQL 14 or later"), "{fenced:?}"),
    }
    db.client.batch_execute("TRUNCATE users").await.expect("truncate");
    feed.until_note(&Note::Keys(vec![], 1)).await;
    feed.until("not lost", |r| !r.state.is_lost()).await;

    // A commit that nobody guards moves the confirmed position as well, and everything settles.
    db.client.batch_execute("INSERT INTO other VALUES (1)").await.expect("insert");
    let row = db.client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("lsn");
    let now: Lsn = row.get::<_, &str>(0).parse().expect("an LSN");
    feed.until("confirmed", |r| r.state.confirmed_lsn.load(Ordering::Relaxed) >= now.0).await;
    feed.until("settled", |r| *r.positions.primary_settled().borrow() >= now).await;
    assert!(!feed.positions.unsettled());
    drop(feed);

    // While nobody listens: the slot keeps it.
    db.client.batch_execute("INSERT INTO users VALUES (2, 'c', 'x')").await.expect("insert");
    let feed = Running::start(&db, guards.clone(), "cachefence_stream");
    feed.until_note(&keys(&["user:2", "users:by-email:c"])).await;
    assert_eq!(feed.starts(), [None]);

    // The walsender is killed: a plain reconnect, no gap.
    let kill = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()";
    db.client.execute(kill, &[]).await.expect("kill");
    feed.until("a second start", |r| r.starts().len() == 2).await;
    db.client.batch_execute("INSERT INTO users VALUES (3, 'd', 'x')").await.expect("insert");
    feed.until_note(&keys(&["user:3", "users:by-email:d"])).await;
    assert_eq!(feed.starts(), [None, None]);
}

#[tokio::test]
async fn publication_and_slot_are_created_and_a_dropped_slot_is_a_gap() {
    let db = database().await;
    db.client.batch_execute("CREATE TABLE users (id int PRIMARY KEY)").await.expect("table");
    let guards = guards(&[("users", &["user:<id>"])]);
    let feed = Running::start(&db, guards.clone(), "cachefence_gap");
    feed.until_streaming().await;
    assert_eq!(feed.starts(), [Some(GapReason::FreshSlot)]);
    db.client.batch_execute("INSERT INTO users VALUES (1)").await.expect("insert");
    feed.until_note(&keys(&["user:1"])).await;
    feed.until("settled", |r| !r.positions.unsettled()).await;

    // Dropped under our feet.
    let kill = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'cachefence_gap'";
    db.client.execute(kill, &[]).await.expect("kill");
    let drop_slot = "SELECT pg_drop_replication_slot('cachefence_gap')";
    while let Err(error) = db.client.batch_execute(drop_slot).await {
        assert!(error.code().is_some_and(|code| code.code() == "55006"), "{error:?}");
        db.client.execute(kill, &[]).await.expect("kill");
    }
    feed.until("a second start", |r| r.starts().len() >= 2).await;
    assert_eq!(feed.starts().last(), Some(&Some(GapReason::FreshSlot)));
    feed.until_streaming().await;
    db.client.batch_execute("INSERT INTO users VALUES (2)").await.expect("insert");
    feed.until_note(&keys(&["user:2"])).await;
    drop(feed);

    // A publication that is newer than its slot.
    db.client.batch_execute("DROP PUBLICATION cachefence_gap").await.expect("drop");
    db.until_released().await;
    let feed = Running::start(&db, guards.clone(), "cachefence_gap");
    feed.until_streaming().await;
    assert_eq!(feed.starts(), [Some(GapReason::NewPublication)]);
    db.client.batch_execute("INSERT INTO users VALUES (3)").await.expect("insert");
    feed.until_note(&keys(&["user:3"])).await;
    drop(feed);

    // The same, made anew by somebody else: only the stream can tell.
    db.until_released().await;
    for sql in [
        "DROP PUBLICATION cachefence_gap",
        "INSERT INTO users VALUES (4)",
        "CREATE PUBLICATION cachefence_gap FOR TABLE users",
    ] {
        db.client.batch_execute(sql).await.expect(sql);
    }
    let feed = Running::start(&db, guards.clone(), "cachefence_gap");
    feed.until("a second start", |r| r.starts().len() >= 2).await;
    assert_eq!(feed.starts().last(), Some(&Some(GapReason::NewPublication)));
    feed.until_streaming().await;
    db.client.batch_execute("INSERT INTO users VALUES (5)").await.expect("insert");
    feed.until_note(&keys(&["user:5"])).await;
}

/// Between the look at the slot and the start of the stream anybody can advance it, and Postgres starts from there.
#[tokio::test]
async fn a_slot_that_moves_while_it_is_being_taken_is_a_gap() {
    let db = database().await;
    db.client.batch_execute("CREATE TABLE users (id int PRIMARY KEY)").await.expect("table");
    let feed = Running::start(&db, guards(&[("users", &["user:<id>"])]), "cachefence_moved");
    feed.until_streaming().await;
    feed.until("settled", |r| !r.positions.unsettled()).await;

    // The cache does not answer the next start, so the feed waits between the two.
    let stalled = feed.stall.lock().await;
    feed.state.see_held("cachefence_moved", None);
    let kill = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active";
    db.client.execute(kill, &[]).await.expect("kill");
    feed.until("a look at the slot", |r| r.state.held().is_some()).await;
    db.client.batch_execute("INSERT INTO users VALUES (1)").await.expect("insert");
    let advance = "SELECT pg_replication_slot_advance('cachefence_moved', pg_current_wal_flush_lsn())";
    db.client.batch_execute(advance).await.expect("advance");
    drop(stalled);
    feed.until("two more starts", |r| r.starts().len() == 3).await;
    assert_eq!(feed.starts(), [Some(GapReason::FreshSlot), None, Some(GapReason::SlotAdvanced)]);
    feed.until_streaming().await;
    db.client.batch_execute("INSERT INTO users VALUES (2)").await.expect("insert");
    feed.until_note(&keys(&["user:2"])).await;
}

#[tokio::test]
async fn a_catalog_that_does_not_fit_stops_the_start_with_the_sql() {
    let db = database().await;
    let sql =
        "CREATE TABLE users (id int PRIMARY KEY, email text, n int GENERATED ALWAYS AS (id + 1) STORED);
               CREATE UNLOGGED TABLE logs (id int PRIMARY KEY); CREATE TABLE bare (id int);
               CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
               CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (9);
               CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (9) TO (19);
               ALTER TABLE parts_2 REPLICA IDENTITY NOTHING;
               CREATE UNLOGGED TABLE parts_3 PARTITION OF parts FOR VALUES FROM (19) TO (29);
               CREATE TABLE parent (id int PRIMARY KEY); CREATE VIEW seen AS SELECT 1 AS id;
               CREATE TABLE by_index (id int PRIMARY KEY, a int NOT NULL, b int NOT NULL);
               CREATE UNIQUE INDEX i ON by_index (a) INCLUDE (b);
               ALTER TABLE by_index REPLICA IDENTITY USING INDEX i;
               CREATE TABLE filtered (id int PRIMARY KEY);
               CREATE TABLE late (id int PRIMARY KEY, CONSTRAINT u UNIQUE (id) DEFERRABLE);
               CREATE PUBLICATION cachefence_catalog FOR TABLE users, parts, parent, filtered WITH (publish = 'insert');
               CREATE PUBLICATION roots FOR TABLE parts WITH (publish_via_partition_root);
               CREATE TABLE \"Child\" (PRIMARY KEY (id)) INHERITS (parent)";
    db.client.batch_execute(sql).await.expect("tables");
    // Row filters came with version 15.
    let filters = db.version().await >= 150_000;
    if filters {
        let sql = "ALTER PUBLICATION cachefence_catalog DROP TABLE filtered; \
                   ALTER PUBLICATION cachefence_catalog ADD TABLE filtered WHERE (id > 1)";
        db.client.batch_execute(sql).await.expect("a filter");
    }
    let guards = guards(&[
        ("users", &["user:<id>", "users:by-email:<email>", "u:<nope>", "n:<n>"]),
        ("logs", &["log:<id>"]),
        ("bare", &["bare:all"]),
        ("parts", &["part:<id>"]),
        ("by_index", &["i:<a>", "i:<a>:<b>"]),
        ("filtered", &["f:<id>"]),
        ("missing", &["m:<id>"]),
        ("parent", &["p:<id>"]),
        ("seen", &["seen:<id>"]),
    ]);
    let (tables, problems) = catalog::tables(&db.client, &guards).await.expect("tables");
    let text = catalog::describe(&problems);
    println!("{text}");
    for expected in [
        "\"users:by-email:<email>\" uses column \"email\", which is outside the table's replica identity",
        "; run: ALTER TABLE public.users REPLICA IDENTITY FULL;",
        "uses column \"nope\", which the table does not have (it has id, email, n)",
        "uses column \"n\", which is generated",
        "; run: ALTER TABLE public.logs SET LOGGED;",
        "; run: ALTER TABLE public.bare REPLICA IDENTITY FULL;",
        "guard public.parts: the table has no replica identity in public.parts_2 (no primary key",
        "; run: ALTER TABLE public.parts_2 REPLICA IDENTITY FULL;",
        "; run: ALTER TABLE public.parts_3 SET LOGGED;",
        "guard public.seen: the table cannot be guarded: a view has no rows of its own",
        "template \"i:<a>:<b>\" uses column \"b\"",
        "guard public.missing: there is no such table in database \"app\"",
    ] {
        assert!(text.contains(expected), "{expected}");
    }
    assert_eq!(problems.len(), 10);
    assert_eq!(tables.iter().map(|t| t.guard.0).collect::<Vec<_>>(), [5, 7]);
    assert_eq!((tables[1].parts.len(), tables[1].primary_key.len()), (1, 0), "a child may have the same key");
    let found = catalog::publication(&db.client, "cachefence_catalog", &guards).await.expect("publication");
    let Publication::Present(problems) = found else { panic!("{found:?}") };
    let text = catalog::describe(&problems);
    println!("{text}");
    for expected in [
        "leaves out update, delete, truncate; run: ALTER PUBLICATION cachefence_catalog SET (publish",
        "does not contain public.bare; run: ALTER PUBLICATION cachefence_catalog ADD TABLE public.bare;",
        "restricts public.filtered by a row filter",
        "guard public.parts: the table is partitioned, and publication cachefence_catalog publishes each partition",
        "; run: ALTER PUBLICATION cachefence_catalog SET (publish_via_partition_root = true);",
        "does not contain public.\"Child\"; run: ALTER PUBLICATION cachefence_catalog ADD TABLE public.\"Child\";",
    ] {
        assert!(text.contains(expected) || (!filters && expected.contains("filter")), "{expected}");
    }
    assert!(!text.contains("does not contain public.parts"), "{text}");
    let leaf = self::guards(&[("parts_1", &["p:<id>"])]);
    let found = catalog::publication(&db.client, "roots", &leaf).await.expect("publication");
    let Publication::Present(problems) = found else { panic!("{found:?}") };
    assert!(
        matches!(problems.as_slice(), [Problem::PublishedAsRoot { root, .. }] if root == "public.parts"),
        "{problems:?}"
    );
    let feed = Running::start(&db, guards, "cachefence_catalog");
    feed.until("stopped", |r| r.task.is_finished()).await;
}

#[tokio::test]
async fn a_column_dropped_while_running_breaks_the_guard() {
    let db = database().await;
    let sql = "CREATE TABLE users (id int PRIMARY KEY, email text); ALTER TABLE users REPLICA IDENTITY FULL";
    db.client.batch_execute(sql).await.expect("table");
    let guards = guards(&[("users", &["by-email:<email>"])]);
    let feed = Running::start(&db, guards, "cachefence_broken");
    feed.until_streaming().await;
    db.client.batch_execute("INSERT INTO users VALUES (1, 'a')").await.expect("insert");
    feed.until_note(&keys(&["by-email:a"])).await;
    let sql = "ALTER TABLE users RENAME email TO mail; INSERT INTO users VALUES (2, 'b')";
    db.client.batch_execute(sql).await.expect("rename");
    feed.until_note(&Note::Keys(vec![], 1)).await;
    assert!(feed.state.is_broken(GuardId(0)));
    let sql = "ALTER TABLE users RENAME mail TO email; INSERT INTO users VALUES (3, 'c')";
    db.client.batch_execute(sql).await.expect("rename");
    feed.until("mended", |r| !r.state.is_broken(GuardId(0))).await;
    db.client.batch_execute("INSERT INTO users VALUES (4, 'd')").await.expect("insert");
    feed.until_note(&keys(&["by-email:d"])).await;
}

/// The rows that are rewritten are not sent. What a look finds comes by a message, or where there are none, as a gap.
#[tokio::test]
async fn a_table_that_was_altered_has_its_guard_fenced() {
    let db = database().await;
    let sql = "CREATE TABLE prices (id int PRIMARY KEY, price int); INSERT INTO prices VALUES (1, 1)";
    db.client.batch_execute(sql).await.expect("table");
    let guards = guards(&[("prices", &["price:<id>"])]);
    let feed = Running::start(&db, guards, "cachefence_altered");
    feed.until_streaming().await;
    let sql =
        "ALTER TABLE prices ALTER price TYPE bigint USING price * 100; INSERT INTO prices VALUES (2, 2)";
    db.client.batch_execute(sql).await.expect("alter");
    let has_messages = db.version().await >= 140_000;
    if has_messages {
        feed.until_note(&Note::Keys(vec![], 1)).await;
    } else {
        feed.until("a gap", |r| r.starts().contains(&Some(GapReason::CatalogMended))).await;
        feed.until_streaming().await;
    }
    let sql = "INSERT INTO prices VALUES (3, 3)";
    db.client.batch_execute(sql).await.expect("insert");
    feed.until_note(&keys(&["price:3"])).await;
    assert_eq!(feed.starts().len(), if has_messages { 1 } else { 2 });
}

#[tokio::test]
async fn asof_puts_the_own_transaction_in_progress() {
    let mut db = database().await;
    sql::init(&db.client, &guards(&[]), "cachefence_asof", Some("cachefence_asof")).await.expect("init");
    let transaction = db.client.transaction().await.expect("begin");
    let sql = "SELECT pg_current_xact_id()::text, cachefence.asof(), pg_current_snapshot()::text";
    transaction.query_one(sql, &[]).await.expect("an xid");
    let row = transaction.query_one(sql, &[]).await.expect("asof");
    let (own, asof, plain): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let asof: crate::position::Snapshot = asof.parse().expect("a snapshot");
    let plain: crate::position::Snapshot = plain.parse().expect("a snapshot");
    let own = crate::position::Xid(own.parse().expect("an xid"));
    assert!(!asof.sees(own) && plain.includes(&asof), "{asof} {plain}");
}

async fn flushed(client: &Client) -> Lsn {
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.expect("an LSN");
    row.get::<_, &str>(0).parse().expect("an LSN")
}

#[tokio::test]
async fn a_cache_that_stands_still_stops_the_reading_but_not_the_status_messages() {
    let db = database().await;
    db.client.batch_execute("CREATE TABLE users (id int PRIMARY KEY)").await.expect("table");
    let feed = Running::start(&db, guards(&[("users", &["user:<id>"])]), "cachefence_stall");
    feed.until_streaming().await;
    let stalled = feed.stall.lock().await;
    for id in 0..500 {
        db.client.execute("INSERT INTO users VALUES ($1)", &[&id]).await.expect("insert");
    }
    let before = feed.state.reports.load(Ordering::Relaxed);
    let sent = |feed: &Running| feed.state.reports.load(Ordering::Relaxed) - before;
    feed.until("status messages", |feed| sent(feed) >= 3).await;
    feed.until("a lag", |feed| feed.state.lag_us.load(Ordering::Relaxed) > 1_000_000).await;
    let now = flushed(&db.client).await;
    assert!(feed.state.confirmed_lsn.load(Ordering::Relaxed) < now.0);
    drop(stalled);
    feed.until_note(&keys(&["user:499"])).await;
    let inserts = |note: &Note| matches!(note, Note::Keys(..));
    assert_eq!(feed.notes.lock().expect("notes").iter().filter(|note| inserts(note)).count(), 500);
    feed.until("confirmed", |r| r.state.confirmed_lsn.load(Ordering::Relaxed) >= now.0).await;
}

/// It arrives in parts, and is late from its commit on. None of it is applied before all of it is.
#[tokio::test]
async fn a_large_transaction_is_held_back_in_the_middle_by_a_cache_that_stands_still() {
    let db = database().await;
    db.client.batch_execute("CREATE TABLE users (id int PRIMARY KEY)").await.expect("table");
    let feed = Running::start(&db, guards(&[("users", &["user:<id>"])]), "cachefence_large");
    feed.until_streaming().await;
    feed.until("settled", |r| !r.positions.unsettled()).await;
    let stalled = feed.stall.lock().await;
    let sql = "INSERT INTO users SELECT * FROM generate_series(1, 100000)";
    db.client.batch_execute(sql).await.expect("insert");
    let end = flushed(&db.client).await;
    feed.until("a part", |r| r.state.transaction_keys.load(Ordering::Relaxed) > 0).await;
    feed.until("a lag", |r| r.state.lag_us.load(Ordering::Relaxed) > 1_000_000).await;
    // The rest is not even read: more keys than that are not on their way at a time.
    let passing = feed.state.transaction_keys.load(Ordering::Relaxed);
    assert!((10_000..100_000).contains(&passing), "{passing}");
    assert!(feed.state.reached.lsn() < end && feed.state.received_lsn.load(Ordering::Relaxed) < end.0);
    drop(stalled);
    feed.until("confirmed", |r| r.state.confirmed_lsn.load(Ordering::Relaxed) >= end.0).await;
    assert_eq!(feed.state.transaction_keys.load(Ordering::Relaxed), 0);
    let notes = feed.notes.lock().expect("notes");
    let parts = notes.iter().filter_map(|note| match note {
        Note::Keys(keys, truncated) => Some((keys.len(), *truncated)),
        Note::Start(..) => None,
    });
    let parts: Vec<_> = parts.collect();
    assert_eq!(parts, [vec![(10_000, 0); 10], vec![(0, 0)]].concat());
}

#[tokio::test]
async fn an_idle_stream_is_quiet() {
    let db = database().await;
    db.client.batch_execute("CREATE TABLE users (id int PRIMARY KEY)").await.expect("table");
    let feed = Running::start(&db, guards(&[("users", &["user:<id>"])]), "cachefence_idle");
    feed.until_streaming().await;
    feed.until("settled", |r| !r.positions.unsettled()).await;
    let (before, since) = (feed.state.reports.load(Ordering::Relaxed), Instant::now());
    feed.until("status messages", |r| r.state.reports.load(Ordering::Relaxed) >= before + 10).await;
    // A question and an answer each third of feed_lost_after. Noise makes this longer, never shorter.
    assert!(since.elapsed() > Duration::from_millis(250), "10 status messages in {:?}", since.elapsed());
    assert!(!feed.state.is_lost());
}

#[tokio::test]
async fn a_commit_that_is_held_invisible_is_not_settled_and_not_confirmed() {
    let db = database().await;
    db.client.batch_execute("CREATE TABLE users (id int PRIMARY KEY)").await.expect("table");
    let feed = Running::start(&db, guards(&[("users", &["user:<id>"])]), "cachefence_held");
    feed.until_streaming().await;
    feed.until("settled", |r| !r.positions.unsettled()).await;
    db.client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await.expect("alter");
    db.client.batch_execute("SELECT pg_reload_conf()").await.expect("reload");

    // The wait begins in shared memory some time after the reload: commits are tried until one hangs.
    let (before, held, id) = 'held: {
        for id in 1.. {
            let before = flushed(&db.client).await;
            let writer = catalog::connect(&db.target, "writer").await.expect("a connection");
            let insert = format!("SET synchronous_commit = on; INSERT INTO users VALUES ({id})");
            let commit = tokio::spawn(async move { writer.batch_execute(&insert).await });
            while !commit.is_finished() {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
                if db.client.query_one(sql, &[]).await.expect("waits").get::<_, i64>(0) == 1 {
                    break 'held (before, commit, id);
                }
            }
        }
        unreachable!("ids without end")
    };
    feed.until_note(&keys(&[&format!("user:{id}")])).await;
    // The primary has been polled since.
    let flushed = flushed(&db.client).await;
    feed.until("a poll", |r| r.sources[0].position.load(Ordering::Relaxed) >= flushed.0).await;
    let sql = "SELECT count(*) FROM users WHERE id = $1";
    let count: i64 = db.client.query_one(sql, &[&id]).await.expect("count").get(0);
    assert_eq!(count, 0, "fact F1");
    let received = feed.state.received_lsn.load(Ordering::Relaxed);
    let (settled, confirmed) =
        (*feed.positions.primary_settled().borrow(), feed.state.confirmed_lsn.load(Ordering::Relaxed));
    assert!(before.0 < received);
    assert!(settled.0 < received && confirmed < received, "{settled} {confirmed} {received}");

    db.client.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.expect("alter");
    db.client.batch_execute("SELECT pg_reload_conf()").await.expect("reload");
    held.await.expect("the task").expect("the commit");
    feed.until("confirmed", |r| r.state.confirmed_lsn.load(Ordering::Relaxed) >= received).await;
    assert!(!feed.positions.unsettled());
}

#[tokio::test]
async fn a_replica_holds_what_is_settled_until_it_has_replayed() {
    let db = database().await;
    db.client.batch_execute("CREATE TABLE users (id int PRIMARY KEY)").await.expect("table");
    let replica = Postgres::replica(&db.server, &[]).await.expect("a replica");
    let url = replica.url();
    let guards = guards(&[("users", &["user:<id>"])]);
    let feed = Running::with_replicas(&db, guards.clone(), "cachefence_replica", &[&url]);
    feed.until_streaming().await;
    let created = flushed(&db.client).await;
    feed.until("settled", |r| r.positions.fence().settled() >= created).await;
    feed.until("up", |r| r.sources.iter().all(|source| source.up.load(Ordering::Relaxed))).await;

    replica.pause_replay().await.expect("pause");
    db.client.batch_execute("INSERT INTO users VALUES (1)").await.expect("insert");
    let after = flushed(&db.client).await;
    feed.until_note(&keys(&["user:1"])).await;
    feed.until("the primary", |r| *r.positions.primary_settled().borrow() >= after).await;
    assert!(feed.positions.fence().settled() < after);
    // What is deleted and visible on the primary is confirmed: a lagging replica does not hold the log.
    feed.until("confirmed", |r| r.state.confirmed_lsn.load(Ordering::Relaxed) >= after.0).await;
    replica.resume_replay().await.expect("resume");
    feed.until("settled", |r| r.positions.fence().settled() >= after).await;
    drop(feed);

    // The primary itself, given as a replica.
    db.until_released().await;
    let feed = Running::with_replicas(&db, guards, "cachefence_replica", &[&db.url]);
    feed.until("a refusal", |r| r.sources[1].error().is_some()).await;
    assert!(feed.sources[1].error().is_some_and(|error| error.contains("not a standby")));
    assert!(!feed.sources[1].up.load(Ordering::Relaxed));
    assert_eq!(feed.positions.fence().settled(), Lsn(0));
}
