//! What happens to the proxy: it is killed, at any moment and at each step of a commit and of a fill.

use std::path::Path;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::{Cachefence, wait_until};
use cachefence::failpoint::Point;
use tokio::time::sleep;

use crate::dice::Dice;
use crate::fault::{BOTH, BOUNDED, Fault, STRICT};
use crate::line::Line;
use crate::load::Load;
use crate::stand::{Options, STANDBYS, Stand};
use crate::support::{BINARY, Fallible, Outcome, PATIENCE, text};

/// Kills that need nothing but a signal.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "proxy killed at random",
        contracts: BOTH,
        rounds: 100,
        quick: true,
        soak: false,
        options: |options| options,
        round: |stand, _, dice| Box::pin(at_random(stand, dice)),
    },
    Fault {
        name: "predecessor's fill on its way to Redis",
        contracts: BOTH,
        rounds: 5,
        quick: false,
        soak: false,
        options: |options| Options { lines: true, ..options },
        round: |stand, _, _| Box::pin(a_fill_on_its_way(stand)),
    },
    Fault {
        name: "predecessor's fill in the buffer of a busy Redis",
        contracts: BOTH,
        rounds: 5,
        quick: false,
        soak: false,
        options: |options| options,
        round: |stand, _, _| Box::pin(a_fill_in_the_buffer(stand)),
    },
    Fault {
        name: "one of two strict proxies killed",
        contracts: STRICT,
        rounds: 5,
        quick: false,
        soak: false,
        options: |options| options,
        round: |stand, load, _| Box::pin(one_of_two(stand, load)),
    },
];

/// A kill at a step that the load takes all the time.
macro_rules! killed {
    ($name:literal, $point:ident, $passings:literal) => {
        Fault {
            name: concat!("proxy killed: ", $name),
            contracts: BOTH,
            rounds: 3,
            quick: false,
            soak: false,
            options: |options| options,
            round: |stand, _, dice| Box::pin(at(stand, Point::$point, 1 + dice.roll($passings))),
        }
    };
}

/// A kill in the middle of work that is caused for it.
macro_rules! killed_in {
    ($name:literal, $contracts:ident, $round:ident) => {
        Fault {
            name: concat!("proxy killed: ", $name),
            contracts: $contracts,
            rounds: 2,
            quick: false,
            soak: false,
            options: |options| options,
            round: |stand, load, dice| Box::pin($round(stand, load, dice)),
        }
    };
}

/// Those at the steps of a commit and of a fill: they need a proxy that is built with the feature `failpoints`.
pub const AT_POINTS: &[Fault] = &[
    killed!("keys fenced", Fenced, 40),
    killed!("deletions handed over", Handed, 40),
    killed!("fills drained", Drained, 40),
    killed!("deletions sent", Sent, 40),
    killed!("keys deleted, no marker", Deleted, 40),
    killed!("marker written", Marked, 40),
    killed!("applied, not confirmed", Applied, 40),
    killed!("about to confirm", Confirming, 40),
    killed!("confirmed", Confirmed, 40),
    killed!("predecessors' connections ended", Succeeded, 1),
    killed!("brought level, no stream", Level, 1),
    killed!("a miss granted", Granted, 200),
    killed!("a fill admitted", Admitted, 100),
    killed!("a fill sent", Forwarded, 100),
    killed!("a fill answered", Answered, 100),
    killed_in!("part of a large transaction", BOTH, in_a_large_transaction),
    killed_in!("a gap's purge", BOTH, in_a_gaps_purge),
    killed_in!("a lost slot's purge", BOUNDED, in_a_lost_slots_purge),
    killed_in!("TRUNCATE's purge", BOTH, in_a_truncates_purge),
];

/// The row that the load leaves alone.
const ROW: &str = "user:0";
/// Keys of rows that there never were: more than one page of a purge finds.
const PLANTED: std::ops::Range<u32> = 2_000_000..2_004_000;
/// Rows of a large transaction: so many parts that the first are deleted when the last are handed over.
const LARGE: &str = "generate_series(1000001, 1080000)";

/// Without a warning, at any moment; some also while they start.
async fn at_random(stand: &mut Stand, dice: &mut Dice) -> Outcome {
    sleep(dice.millis(300)).await;
    stand.proxy.kill().await?;
    if dice.one_in(3) {
        stand.proxy.relaunch_unready().await?;
        sleep(dice.millis(700)).await;
        stand.proxy.kill().await?;
    }
    Ok(stand.proxy.relaunch().await?)
}

/// Started to be killed at the passing of a point, and started again.
async fn at(stand: &mut Stand, point: Point, passing: u64) -> Outcome {
    stand.proxy.kill().await?;
    stand.proxy.doom(point, passing);
    stand.proxy.relaunch_doomed().await?;
    Ok(stand.proxy.relaunch().await?)
}

/// What a dead process has written can be anywhere between it and Redis, and arrive after its successor has deleted.
async fn a_fill_on_its_way(stand: &mut Stand) -> Outcome {
    // The predecessor's connections are led over a line of their own.
    let line = Line::to(stand.redis.port()).await?;
    stand.lines()?.redis.switch(line.port());
    stand.lines()?.redis.cut();
    stand.recovered().await?;
    let mut client = missed(stand).await?;
    line.black_hole();
    stand.lines()?.redis.switch(stand.redis.port());
    fill(stand, &mut client, "").await?;
    let predecessor = kill_with_a_fill(stand).await?;
    stand.proxy.relaunch().await?;
    stand.level().await?;
    line.heal();
    nothing_comes_of(stand, &predecessor).await
}

/// The same where it has arrived, and Redis has not read it.
async fn a_fill_in_the_buffer(stand: &mut Stand) -> Outcome {
    let padding = " ".repeat(40_000);
    let mut client = missed(stand).await?;
    stand.redis.freeze()?;
    fill(stand, &mut client, &padding).await?;
    let port = stand.redis.port();
    wait_until("the fill to be in Redis's buffer", PATIENCE, async || {
        unread(port).is_ok_and(|bytes| bytes > padding.len())
    })
    .await?;
    stand.proxy.kill().await?;
    raise(stand).await?;
    stand.proxy.relaunch_unready().await?;
    stand.redis.thaw()?;
    stand.proxy.ready().await?;
    stand.level().await?;
    assert_eq!(stand.redis.client().await?.cmd(&["GET", ROW]).await?, Reply::Nil);
    Ok(())
}

/// A client that has missed the row's key on a connection that Redis knows.
async fn missed(stand: &Stand) -> Fallible<Client> {
    let mut client = stand.proxy.client().await?;
    stand.redis.client().await?.cmd(&["DEL", ROW]).await?;
    assert_eq!(client.cmd(&["GET", ROW]).await?, Reply::Nil);
    Ok(client)
}

/// Sends a fill of the row's key with good evidence, which is let in.
async fn fill(stand: &Stand, client: &mut Client, padding: &str) -> Outcome {
    let sql = stand.sql().await?;
    let evidence = text(&sql, "SELECT cachefence.asof()").await?;
    let version = text(&sql, "SELECT version::text FROM users WHERE id = 0").await?;
    client.send(&["ASOF", &evidence, "SET", ROW, &format!("{version}{padding}")]).await?;
    wait_until("the fill to be under way", PATIENCE, async || {
        let told = stand.proxy.get(&format!("/explain?key={ROW}")).await.unwrap_or_default().1;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
        told.pointer("/fills_in_flight").is_some_and(|fills| *fills == 1)
    })
    .await?;
    Ok(())
}

/// Kills the proxy and changes the row. Returns how Redis calls the connections that it does not know to be gone.
async fn kill_with_a_fill(stand: &mut Stand) -> Fallible<Vec<String>> {
    stand.proxy.kill().await?;
    raise(stand).await?;
    let left = connections(stand).await?;
    assert!(!left.is_empty(), "the predecessor's connections must outlive it");
    Ok(left)
}

/// Another version of the row.
async fn raise(stand: &Stand) -> Outcome {
    let raise = "UPDATE users SET version = version + 1 WHERE id = 0";
    Ok(stand.sql().await?.batch_execute(raise).await?)
}

/// Names of the connections that a proxy's clients use, as Redis has them.
async fn connections(stand: &Stand) -> Fallible<Vec<String>> {
    let list = stand.redis.client().await?.cmd(&["CLIENT", "LIST"]).await?.text().unwrap_or_default();
    let names = list.split([' ', '\n']).filter_map(|word| word.strip_prefix("name="));
    Ok(names.filter(|name| name.split(':').count() == 4).map(str::to_owned).collect())
}

/// Waits until they are gone; what they carried has not been executed.
async fn nothing_comes_of(stand: &Stand, predecessor: &[String]) -> Outcome {
    wait_until("the predecessor's connections to end", PATIENCE, async || {
        connections(stand).await.is_ok_and(|now| !now.iter().any(|name| predecessor.contains(name)))
    })
    .await?;
    assert_eq!(stand.redis.client().await?.cmd(&["GET", ROW]).await?, Reply::Nil, "after its deletion");
    Ok(())
}

/// The most bytes that a connection to a port of loopback has brought and that nobody has read.
fn unread(port: u16) -> Fallible<usize> {
    let local = format!(":{port:04X}");
    let sockets = std::fs::read_to_string("/proc/net/tcp")?;
    let queued = sockets.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let to = fields.nth(1)?;
        let (_, unread) = fields.nth(2)?.split_once(':')?;
        to.ends_with(&local).then(|| usize::from_str_radix(unread, 16).ok())?
    });
    Ok(queued.max().unwrap_or_default())
}

/// Of two that commits wait for, either can go: commits wait until it is back, and reads through the other are exact.
async fn one_of_two(stand: &mut Stand, load: &Load) -> Outcome {
    let settings = stand.settings.replacen(
        "[postgres]\n",
        "[postgres]\nslot = \"other\"\napplication_name = \"other\"\n",
        1,
    );
    let mut other = Cachefence::launch(Path::new(BINARY), &settings)?;
    let sql = stand.sql().await?;
    let streams =
        "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = 'other'";
    wait_until("the other to stream", PATIENCE, async || {
        sql.query_one(streams, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 1)
    })
    .await?;
    stand.set_standbys("FIRST 2 (cachefence, other)").await?;
    other.ready().await?;
    load.written(20).await?;

    let own = stand.proxy.address().to_owned();
    lead(load, other.address());
    stand.proxy.kill().await?;
    commits_wait(stand).await?;
    stand.proxy.relaunch().await?;
    load.written(20).await?;
    load.warm().await?;

    lead(load, &own);
    other.kill().await?;
    commits_wait(stand).await?;
    other.relaunch().await?;
    load.written(20).await?;
    load.warm().await?;

    // Who was on the way to the other one may have come to it when it was back. It learns within half a second that commits no
    // longer wait for it, and in strict that is what an operator has to wait for.
    load.leave().await?;
    wait_until("the other to have no clients", PATIENCE, async || {
        other.metric("cachefence_clients").await.is_ok_and(|clients| clients == 0.0)
    })
    .await?;
    load.come_back();
    stand.set_standbys(STANDBYS).await?;
    other.stop().await?;
    wait_until("the other's slot to be dropped", PATIENCE, async || {
        sql.batch_execute("SELECT pg_drop_replication_slot('other')").await.is_ok()
    })
    .await?;
    // What it wrote of its position is of no more use, and no purge looks for it.
    stand.redis.client().await?.cmd(&["DEL", "cachefence:other"]).await?;
    Ok(())
}

/// Applications go to this proxy with their next connection.
fn lead(load: &Load, address: &str) {
    *load.shared().proxy.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = address.to_owned();
}

/// Waits until a commit hangs.
async fn commits_wait(stand: &Stand) -> Outcome {
    let sql = stand.sql().await?;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let waits = async || sql.query_one(waiting, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0);
    Ok(wait_until("commits to wait", PATIENCE, waits).await?)
}

/// Puts keys into Redis that no row stands for.
async fn plant(stand: &Stand) -> Outcome {
    let mut redis = stand.redis.client().await?;
    let keys: Vec<String> = PLANTED.map(|id| format!("user:{id}")).collect();
    let words: Vec<&str> = ["MSET"].into_iter().chain(keys.iter().flat_map(|key| [key, "0"])).collect();
    assert_eq!(redis.cmd(&words).await?, Reply::ok());
    Ok(())
}

/// How many of them are there.
async fn planted(stand: &Stand) -> Fallible<i64> {
    let keys: Vec<String> = PLANTED.map(|id| format!("user:{id}")).collect();
    let words: Vec<&str> = ["EXISTS"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    match stand.redis.client().await?.cmd(&words).await? {
        Reply::Int(there) => Ok(there),
        other => Err(format!("{other:?}").into()),
    }
}

/// Started again after a purge that was broken off: it is done again, to its end.
async fn purged_again(stand: &mut Stand) -> Outcome {
    let left = planted(stand).await?;
    assert!(left > 0, "the purge was to be broken off");
    stand.proxy.relaunch().await?;
    let purged = async || planted(stand).await.is_ok_and(|left| left == 0);
    Ok(wait_until("the purge to be done again", PATIENCE, purged).await?)
}

/// Killed between two parts of a transaction: all of it is sent again.
async fn in_a_large_transaction(stand: &mut Stand, _: &Load, dice: &mut Dice) -> Outcome {
    stand.proxy.kill().await?;
    let (sql, mut redis) = (stand.sql().await?, stand.redis.client().await?);
    let keys = ["user:1000001", "user:1040000", "user:1080000", ROW];
    for key in keys {
        redis.cmd(&["SET", key, "0"]).await?;
    }
    let large = format!(
        "BEGIN; INSERT INTO users SELECT id, 1 FROM {LARGE} AS id; \
         UPDATE users SET version = version + 1 WHERE id = 0; COMMIT"
    );
    sql.batch_execute(&large).await?;
    stand.proxy.doom(Point::PartHanded, 1 + dice.roll(8));
    stand.proxy.relaunch_doomed().await?;
    stand.proxy.relaunch().await?;
    stand.level().await?;
    for key in keys {
        assert_eq!(redis.cmd(&["GET", key]).await?, Reply::Nil, "{key}");
    }
    Ok(sql.batch_execute("DELETE FROM users WHERE id > 1000000").await?)
}

/// Killed while it purges because commits of a table were not published for a while: nobody sends them to its successor.
async fn in_a_gaps_purge(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    stand.proxy.kill().await?;
    // A table that leaves has its few keys purged at once, in one go: that is not the purge that is meant.
    stand.proxy.doom(Point::Purging, 2);
    stand.proxy.relaunch().await?;
    let sql = stand.sql().await?;
    silent(&sql, load).await?;
    stand.level().await?;
    sql.batch_execute("ALTER PUBLICATION cachefence DROP TABLE users").await?;
    stand.not_ready("is broken").await?;
    plant(stand).await?;
    raise(stand).await?;
    sql.batch_execute("ALTER PUBLICATION cachefence ADD TABLE users").await?;
    stand.proxy.killed().await?;
    load.resume_writing();
    purged_again(stand).await
}

/// Waits until nobody writes.
async fn silent(sql: &tokio_postgres::Client, load: &Load) -> Outcome {
    load.stop_writing();
    // A session's last statement tells a writer.
    let writers = "SELECT count(*) FROM pg_stat_activity \
        WHERE application_name = '' AND query ~ '^(BEGIN|UPDATE|COMMIT|SELECT pg_current_wal_flush)'";
    // One that has just begun to write may have no session yet.
    let mut looks = 0;
    let none = async || {
        let writers = sql.query_one(writers, &[]).await.map(|row| row.get::<_, i64>(0));
        looks = if matches!(writers, Ok(0)) { looks + 1 } else { 0 };
        looks >= 20
    };
    Ok(wait_until("writers to be silent", PATIENCE, none).await?)
}

/// Killed while it purges because the slot was gone: the slot that it has made is all that its successor finds.
async fn in_a_lost_slots_purge(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    stand.proxy.kill().await?;
    let sql = stand.sql().await?;
    wait_until("the slot to be dropped", PATIENCE, async || {
        sql.batch_execute("SELECT pg_drop_replication_slot('cachefence')").await.is_ok()
    })
    .await?;
    raise(stand).await?;
    plant(stand).await?;
    stand.proxy.doom(Point::Purging, 1);
    stand.proxy.relaunch_doomed().await?;
    purged_again(stand).await
}

/// Killed while it purges what a TRUNCATE has emptied. The same rows come back with it.
async fn in_a_truncates_purge(stand: &mut Stand, _: &Load, _: &mut Dice) -> Outcome {
    stand.proxy.kill().await?;
    stand.proxy.doom(Point::Purging, 1);
    stand.proxy.relaunch().await?;
    plant(stand).await?;
    let truncate = "BEGIN; LOCK TABLE users; CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM users; \
        TRUNCATE users; INSERT INTO users SELECT * FROM kept; COMMIT";
    stand.sql().await?.batch_execute(truncate).await?;
    stand.proxy.killed().await?;
    purged_again(stand).await
}
