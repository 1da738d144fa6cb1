//! Too many clients, too few descriptors, and clients that take their time.

use std::time::Duration;

use cachefence::demo::client::encode;
use cachefence::demo::servers::wait_until;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::wire::Wire;
use super::{A_WHILE, Before, connect, connect_to_leave, logged, pid, write};
use crate::dice::Dice;
use crate::load::Load;
use crate::stand::Stand;
use crate::support::{Fallible, Outcome, PATIENCE};

const TOO_MANY: &str = "-ERR max number of clients reached\r\n";

/// So many more clients, all at once: those that are served, and how many were told that they are too many.
async fn flood(stand: &Stand, clients: usize) -> Fallible<(Vec<Wire>, usize)> {
    let mut wires = Vec::new();
    for _ in 0..clients {
        wires.push(connect(stand).await?);
    }
    let (mut served, mut refused) = (Vec::new(), 0);
    for mut wire in wires {
        // One that is too many may be closed before it has said anything.
        match wire.cmd("GET none").await {
            Ok(answer) if answer == "$-1\r\n" => served.push(wire),
            Ok(answer) if answer == TOO_MANY => refused += 1,
            Ok(answer) => return Err(answer.into()),
            Err(_) => refused += 1,
        }
    }
    Ok((served, refused))
}

/// More than there may be, and many that come and go at once.
pub async fn connections(stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    let before = Before::of(stand).await?;
    let (served, refused) = flood(stand, 300).await?;
    assert!(refused > 0 && !served.is_empty(), "{} served, {refused} refused", served.len());
    assert!(served.len() <= 120, "{} served", served.len());
    for _ in 0..1000 {
        drop(connect_to_leave(stand, dice).await?);
    }
    load.warm().await?;
    drop(served);
    for _ in 0..1000 {
        drop(connect_to_leave(stand, dice).await?);
    }
    write(stand).await?;
    load.warm().await?;
    before.grew_at_most(stand, 64)?;
    before.returns(stand).await
}

/// The limit of the proxy's descriptors, until this is dropped.
struct Limited {
    process: Pid,
    usual: Rlimit,
}

impl Limited {
    fn to(stand: &Stand, descriptors: u64) -> Fallible<Self> {
        let pid = pid(stand)?;
        let process = Pid::from_raw(pid.cast_signed()).ok_or("no process")?;
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
        let mut words = files.split_whitespace().map(|word| word.parse::<u64>().ok());
        let (current, maximum) = (words.next().ok_or("no limit")?, words.next().ok_or("no limit")?);
        prlimit(Some(process), Resource::Nofile, Rlimit { current: Some(descriptors), maximum })?;
        Ok(Self { process, usual: Rlimit { current, maximum } })
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // It fails only for a process that is gone.
        let _ = prlimit(Some(self.process), Resource::Nofile, self.usual);
    }
}

/// Ends every connection that the proxy has to Postgres's log and to Redis.
async fn cut_off(stand: &Stand) -> Outcome {
    let sql = stand.sql().await?;
    sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'cachefence'",
        &[],
    )
    .await?;
    stand.redis.client().await?.cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await?;
    Ok(())
}

/// Clients take what they get, and what is the proxy's own is there all the same; then nothing is left for anybody.
pub async fn descriptors(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let before = Before::of(stand).await?;
    // Below 256, half of the limit is for clients.
    let limited = Limited::to(stand, 2 * before.held.descriptors + 40)?;
    let (mut served, refused) = flood(stand, 80).await?;
    assert!(refused > 0 && !served.is_empty(), "{} served, {refused} refused", served.len());
    load.warm().await?;
    cut_off(stand).await?;
    // While they hold on to theirs.
    let first = served.first_mut().ok_or("nobody is served")?;
    wait_until("a client to be served", PATIENCE, async || {
        first.cmd("GET none").await.is_ok_and(|answer| answer == "$-1\r\n")
    })
    .await?;
    let ready = async || matches!(stand.proxy.get("/readyz").await, Ok((200, _)));
    wait_until("the feed and Redis to be back", PATIENCE, ready).await?;
    write(stand).await?;
    // Room for those of the load that have given up a connection.
    served.clear();
    load.warm().await?;

    drop(limited);
    let limited = Limited::to(stand, 10)?;
    let log = stand.proxy.log().len();
    cut_off(stand).await?;
    // It is taken when there is room again.
    let mut waiting = connect(stand).await?;
    assert!(timeout(A_WHILE, waiting.cmd("GET none")).await.is_err(), "there is room");
    logged(stand, log, "Too many open files").await?;
    drop(limited);
    // By Redis, or with an error if that is not connected yet.
    waiting.reply().await?;
    stand.recovered().await?;
    drop(waiting);
    before.returns(stand).await
}

/// A byte at a time, for ever, to the proxy and to the admin port, whose probes are answered meanwhile.
pub async fn slowloris(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    const EACH: usize = 150;
    /// Of connections to the admin port at a time.
    const ADMIN: u64 = 64;
    let before = Before::of(stand).await?;
    let admin = stand.proxy.admin_url().trim_start_matches("http://").to_owned();
    let ports = [
        (admin.as_str(), b"GET /metrics HTTP/1.1\r\nX-Header: and so on".to_vec()),
        (stand.proxy.address(), encode(&["GET", "user:1", "and", "so", "on", "and", "on"])),
    ];
    let mut slow = Vec::new();
    for _ in 0..EACH {
        for (address, text) in &ports {
            slow.push((TcpStream::connect(*address).await?, text.clone()));
        }
    }
    for at in 0..30 {
        for (stream, text) in &mut slow {
            // Those that had to make room for others are closed.
            let _ = stream.write_all(text.get(at..=at).unwrap_or_default()).await;
        }
        for path in ["/livez", "/readyz", "/metrics"] {
            let (status, body) = timeout(A_WHILE * 30, stand.proxy.get(path)).await.map_err(|_| path)??;
            assert_eq!(status, 200, "{path}: {body}");
        }
        sleep(Duration::from_millis(20)).await;
    }
    let held = stand.resources()?;
    assert!(held.descriptors <= before.held.descriptors + EACH as u64 + ADMIN + 8, "{held}");
    load.warm().await?;
    write(stand).await?;
    before.grew_at_most(stand, 64)?;
    drop(slow);
    before.returns(stand).await
}
