//! The differential test: what the feed fences of each transaction is what triggers in the database say.
//!
//! Several sessions run random statements. Triggers on the guarded tables write down, in the transaction itself, which
//! keys its rows feed before and after: the oracle ([`tables`]). The feed follows, and its cache notes what each commit
//! fences ([`follower`]). Every transaction has a tag, which is a key too, so that the two can be compared one by one:
//!
//! - the same transactions: none that was rolled back, none twice, none left out;
//! - of each, the same keys, each with its db; and the same guards as a whole (TRUNCATE, a table that was renamed and
//!   back). Of a guard that goes as a whole the keys do not count;
//! - each key once.
//!
//! What Postgres has no room for while it decodes is sent before its commit: here that is little, so that many transactions
//! go that way. With `IMMEDIATE=yes` (Postgres 16 and later) all of them do.
//!
//! `SEED` is printed, `TRANSACTIONS` makes it longer. One seed gives the same statements each time, but sessions that
//! wait for each other do not always meet in the same way.

mod follower;
mod session;
mod statements;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use cachefence::demo::servers::{Postgres, PrimaryOptions};
use cachefence::feed::sql;
use cachefence::guard::Guards;
use follower::{Fenced, Follower, Key};
use session::{Session, Tally};
use tables::{HOME_DB, TABLES, TAGS};
use tokio::task::JoinSet;

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Publication and slot.
const NAME: &str = "differential";
const SESSIONS: u64 = 4;
/// The tag that comes last.
const LAST: u64 = 1;
/// Mismatches that are shown.
const SHOWN: usize = 3;

/// What the oracle has written down of a transaction.
#[derive(Debug, Default)]
struct Expected {
    fenced: Fenced,
    /// Keys of each guard.
    of_guard: BTreeMap<usize, BTreeSet<Key>>,
}

impl Expected {
    /// Without the keys of guards that go as a whole.
    fn compared(&self, fenced: &Fenced) -> Fenced {
        let of_whole = |key: &Key| {
            self.fenced.whole.iter().any(|n| self.of_guard.get(n).is_some_and(|of| of.contains(key)))
        };
        let keys = fenced.keys.iter().filter(|key| !of_whole(key)).cloned().collect();
        Fenced { keys, whole: fenced.whole.clone() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_transaction_fences_what_the_oracle_says() -> Fallible<()> {
    let seed = number("SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let transactions = number("TRANSACTIONS").unwrap_or(400);
    println!("SEED={seed} TRANSACTIONS={transactions}");

    let mut options = PrimaryOptions::default().set("logical_decoding_work_mem", "64kB");
    if std::env::var_os("IMMEDIATE").is_some() {
        options = options.set("debug_logical_replication_streaming", "immediate");
    }
    let primary = Postgres::primary(options).await?;
    let sql = primary.client().await?;
    for statements in tables::schema() {
        sql.batch_execute(&statements).await?;
    }
    let guards = guards()?;
    sql::init(&sql, &guards, NAME, Some(NAME)).await?;
    let follower = Follower::start(&primary.url(), NAME, guards, HOME_DB).await?;

    let mut sessions = JoinSet::new();
    for n in 1..=SESSIONS {
        let session = Session::new(primary.client().await?, n, seed).await?;
        sessions.spawn(session.run((transactions / SESSIONS) as usize));
    }
    let mut tally = Tally::default();
    while let Some(done) = sessions.join_next().await {
        add(&mut tally, done??);
    }
    sql.execute("INSERT INTO tags VALUES ($1)", &[&i64::try_from(LAST)?]).await?;
    follower.until(LAST).await?;

    let expected = expected(&sql).await?;
    let streamed = streamed(&sql).await?;
    let mut notes = follower.notes.lock().map_err(|_| "the cache has panicked")?;
    notes.close();
    let keys: usize = expected.values().map(|e| e.fenced.keys.len()).sum();
    let whole: usize = expected.values().map(|e| e.fenced.whole.len()).sum();
    println!(
        "{} transactions committed and compared: {keys} keys, {whole} guards as a whole, {} in parts; {} rolled back, {} \
         savepoints rolled back, {} prepared, {} of {} statements failed",
        expected.len(),
        notes.parts,
        tally.rolled_back,
        tally.savepoints_rolled_back,
        tally.prepared,
        tally.failed_statements,
        tally.statements
    );
    for (error, times) in &tally.errors {
        println!("  {times} times {error}");
    }
    let wrong = mismatches(&expected, &notes.commits, &tally);
    assert!(
        wrong.is_empty(),
        "SEED={seed}: {} differ\n{}",
        wrong.len(),
        wrong[..wrong.len().min(SHOWN)].join("\n")
    );
    assert!(notes.wrong.is_empty(), "SEED={seed}: {:?}", notes.wrong);
    assert_eq!(notes.starts, 1, "the stream was interrupted");
    let unaltered = notes.looks.iter().find(|n| !TABLES.get(**n).is_some_and(|table| table.altered));
    assert!(unaltered.is_none(), "SEED={seed}: {unaltered:?}");
    println!("sent while they ran: {streamed:?}");
    assert!(streamed.is_none_or(|transactions| transactions > 0), "all were sent after their commits");
    // The last one is ours. All of this would be true of nothing, too.
    assert_eq!(expected.len(), tally.committed + 1);
    assert!(
        tally.committed as u64 > transactions / 2,
        "{} of {transactions} were committed",
        tally.committed
    );
    Ok(())
}

/// How many transactions were sent while they ran, if Postgres counts them.
async fn streamed(sql: &tokio_postgres::Client) -> Fallible<Option<i64>> {
    let row = sql.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?;
    if row.get::<_, i32>(0) < 140_000 {
        return Ok(None);
    }
    let counted = "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = $1";
    Ok(Some(sql.query_one(counted, &[&NAME]).await?.get(0)))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

fn guards() -> Fallible<Arc<Guards>> {
    let mut settings = Vec::new();
    for table in &TABLES {
        settings.push(toml::from_str(&format!(
            "table = {:?}\nkeys = {:?}\ndb = {}",
            table.label, table.keys, table.db
        ))?);
    }
    Ok(Arc::new(Guards::new(&settings, HOME_DB)?))
}

fn add(all: &mut Tally, one: Tally) {
    all.committed += one.committed;
    all.rolled_back += one.rolled_back;
    all.savepoints_rolled_back += one.savepoints_rolled_back;
    all.prepared += one.prepared;
    all.statements += one.statements;
    all.failed_statements += one.failed_statements;
    all.sent.extend(one.sent);
    for (error, times) in one.errors {
        *all.errors.entry(error).or_default() += times;
    }
}

/// The oracle's log, by tag.
async fn expected(sql: &tokio_postgres::Client) -> Fallible<BTreeMap<u64, Expected>> {
    let rows = sql.query("SELECT xid::text, guard, db, key FROM oracle.log", &[]).await?;
    let mut by_xid: BTreeMap<String, Expected> = BTreeMap::new();
    let mut xids: BTreeMap<u64, String> = BTreeMap::new();
    for row in rows {
        let (xid, guard, db): (String, Option<i32>, i32) = (row.get(0), row.get(1), row.get(2));
        let guard = guard.map(usize::try_from).transpose()?;
        let expected = by_xid.entry(xid.clone()).or_default();
        match (guard, row.get::<_, Option<String>>(3)) {
            (Some(guard), None) => drop(expected.fenced.whole.insert(guard)),
            (guard, key) => {
                let key = (u32::try_from(db)?, key.ok_or("neither a guard nor a key")?);
                if guard == Some(TAGS) {
                    xids.insert(key.1.trim_start_matches("tag:").parse()?, xid);
                }
                if let Some(guard) = guard {
                    expected.of_guard.entry(guard).or_default().insert(key.clone());
                }
                expected.fenced.keys.insert(key);
            }
        }
    }
    let mut found = BTreeMap::new();
    for (tag, xid) in xids {
        found.insert(tag, by_xid.remove(&xid).ok_or("a transaction with two tags")?);
    }
    if by_xid.is_empty() { Ok(found) } else { Err(format!("without a tag: {by_xid:?}").into()) }
}

/// Each with its transaction, what was sent, and both sets.
fn mismatches(
    expected: &BTreeMap<u64, Expected>,
    commits: &BTreeMap<u64, Fenced>,
    tally: &Tally,
) -> Vec<String> {
    let (nothing, unexpected) = (Fenced::default(), Expected::default());
    let tags: BTreeSet<&u64> = expected.keys().chain(commits.keys()).collect();
    let mut wrong = Vec::new();
    for tag in tags {
        let oracle = expected.get(tag).unwrap_or(&unexpected);
        let fenced = commits.get(tag).unwrap_or(&nothing);
        let (should, mut is) = (oracle.compared(&oracle.fenced), oracle.compared(fenced));
        let sent = tally.sent.get(tag).map(Vec::as_slice).unwrap_or_default();
        is.keys.retain(|key| should.keys.contains(key) || !was_named_and_rolled_back(&key.1, sent));
        if should == is {
            continue;
        }
        let mut text = format!("transaction {tag}\n");
        for statement in tally.sent.get(tag).into_iter().flatten() {
            let _ = writeln!(text, "    {}", shown(statement));
        }
        let _ = writeln!(text, "  the oracle says {}\n  the feed fenced {}", told(&should), told(&is));
        let (missing, more) = (&should.keys - &is.keys, &is.keys - &should.keys);
        let _ = writeln!(text, "  missing: {}\n  not expected: {}", listed(&missing), listed(&more));
        wrong.push(text);
    }
    wrong
}

/// Of a transaction that is sent while it runs, Postgres does not tell which subtransaction a message belongs to: what one
/// names that was rolled back is fenced if the rest commits.
fn was_named_and_rolled_back(key: &str, sent: &[String]) -> bool {
    let names = |statement: &String| {
        statement.contains(&format!("cachefence.fence('{key}')"))
            || key.starts_with("report:") && statement.contains("cachefence.fence('report:' ||")
    };
    sent.iter().position(names).is_some_and(|at| sent[at..].iter().any(|after| after == "ROLLBACK TO s"))
}

fn told(fenced: &Fenced) -> String {
    let whole: Vec<&str> =
        fenced.whole.iter().filter_map(|n| TABLES.get(*n)).map(|table| table.label).collect();
    format!("{} keys: {}; as a whole: {whole:?}", fenced.keys.len(), listed(&fenced.keys))
}

fn listed(keys: &BTreeSet<Key>) -> String {
    let keys: Vec<String> = keys.iter().take(40).map(|(db, key)| format!("{db}/{}", shown(key))).collect();
    format!("{keys:?}")
}

fn shown(text: &str) -> String {
    let mut text: String = text.chars().take(300).collect();
    if text.chars().count() == 300 {
        text.push('…');
    }
    text
}
