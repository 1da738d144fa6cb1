//! From a commit to the deletion of its keys, beside what any reader of the log needs: pg_recvlogical's receipt of the
//! same commit and one round trip to Redis.
//!
//! When a commit happened is its own timestamp. That the keys are gone is told by Redis itself, by keyspace
//! notifications: nobody polls.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cachefence::demo::servers::Cachefence;

use super::stand::Stand;
use crate::{BINARY, Fallible, median, percentile};

/// Commits come one by one: with so much time between them nothing is under way any more.
const PAUSE: Duration = Duration::from_millis(5);
const WARM_UP: usize = 50;
const IN_TIME: Duration = Duration::from_secs(10);
/// How long a Commit message of pgoutput is, and the line feed that pg_recvlogical puts behind each message.
const COMMIT: usize = 26;

pub async fn run(commits: usize) -> Fallible<String> {
    let mut stand = Stand::start(1).await?;
    stand.redis_says(&["CONFIG", "SET", "notify-keyspace-events", "Kg"]).await?;
    // As applications do: without it a commit waits for nobody, and the log for its writer.
    stand.sql.batch_execute("SET synchronous_commit = on").await?;
    let deleted = deletions(&stand.redis.address())?;
    let mut proxy = Cachefence::start(BINARY, &stand.settings).await?;
    let mut child = stand.recvlogical("-", &[])?;
    let output = child.stdout.take().ok_or("pg_recvlogical has no output")?;
    let received = receipts(output, &stand.redis.address())?;

    let mut times = Vec::new();
    for _ in 0..WARM_UP + commits {
        stand.fill().await?;
        // The proxy commits too, when its stream begins: that is no receipt of ours.
        while received.try_recv().is_ok() {}
        let update =
            "UPDATE items SET price = price + 1 WHERE id = 1 RETURNING pg_current_xact_id()::xid::text";
        let xid: String = stand.sql.query_one(update, &[]).await?.try_get(0)?;
        let theirs = received.recv_timeout(IN_TIME)?;
        let ours = deleted.recv_timeout(IN_TIME)?.max(deleted.recv_timeout(IN_TIME)?);
        let committed =
            format!("SELECT (extract(epoch FROM pg_xact_commit_timestamp('{xid}')) * 1000000)::bigint");
        let committed: i64 = stand.sql.query_one(&committed, &[]).await?.try_get(0)?;
        times.push((theirs - committed, ours - committed));
        tokio::time::sleep(PAUSE).await;
    }
    child.kill()?;
    child.wait()?;
    proxy.stop().await?;
    let times = &times[WARM_UP..];
    let row = |name: &str, values: Vec<f64>| {
        let (p50, p99) = (percentile(values.clone(), 50), percentile(values, 99));
        format!("| {name} | {p50:.0} | {p99:.0} |\n")
    };
    let theirs =
        row("pg_recvlogical and a round trip", times.iter().map(|(theirs, _)| *theirs as f64).collect());
    let ours = row("cachefence", times.iter().map(|(_, ours)| *ours as f64).collect());
    let ratio = median(times.iter().map(|(theirs, ours)| *ours as f64 / *theirs as f64));
    Ok(format!(
        "From commit to deleted, {commits} commits one by one, in us; the ratio, median over the commits: {ratio:.2}.\n\n\
         | | p50 | p99 |\n| --- | ---: | ---: |\n{theirs}{ours}"
    ))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// When keys were deleted, as Redis tells its subscribers.
fn deletions(redis: &str) -> Fallible<Receiver<i64>> {
    let mut socket = TcpStream::connect(redis)?;
    socket.set_nodelay(true)?;
    socket.write_all(b"PSUBSCRIBE __keyspace@0__:item:*\r\n")?;
    let mut lines = BufReader::new(socket).lines();
    // The subscription is confirmed: pattern and count are its last lines.
    while lines.next().ok_or("Redis closed the connection")?? != ":1" {}
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            if line == "del" && sender.send(now()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// When commits had arrived by pg_recvlogical and Redis had answered a PING that was sent at that.
fn receipts(mut output: impl Read + Send + 'static, redis: &str) -> Fallible<Receiver<i64>> {
    let mut redis = TcpStream::connect(redis)?;
    redis.set_nodelay(true)?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let (mut text, mut piece, mut pong) = (Vec::new(), [0; 4096], [0; 7]);
        while let Ok(length) = output.read(&mut piece) {
            if length == 0 {
                return;
            }
            text.extend_from_slice(&piece[..length]);
            let commit = text.len().checked_sub(COMMIT + 1).and_then(|at| text.get(at..));
            if !commit.is_some_and(|commit| commit.starts_with(b"C\0") && commit.ends_with(b"\n")) {
                continue;
            }
            text.clear();
            let answered = redis.write_all(b"PING\r\n").and_then(|()| redis.read_exact(&mut pong));
            if answered.is_err() || sender.send(now()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
