//! What clients do: stall, go away, say too much or nothing sensible. The load is other clients, which must not notice.

use std::time::Duration;

use cachefence::demo::client::{Reply, encode};
use cachefence::demo::servers::wait_until;
use rustix::net::sockopt::set_socket_linger;
use tokio::net::TcpStream;

use crate::dice::Dice;
use crate::fault::{BOTH, BOUNDED, Fault};
use crate::resources::{Resources, forget_peak, peak_kib};
use crate::stand::Stand;
use crate::support::{Fallible, Outcome, PATIENCE, text};

mod floods;
mod leaving;
mod speech;
mod stalls;
#[path = "../wire/mod.rs"]
mod wire;

use wire::Wire;

/// The row that the load does not touch.
const ROW: &str = "user:0";
/// Descriptors that the load and probes may have besides those that they had.
const OTHERS: u64 = 3;
/// Memory that the allocator may keep of a peak.
const KEPT_KIB: u64 = 64 * 1024;
/// Long enough for a reply that does come; what is waited for in vain costs this much.
const A_WHILE: Duration = Duration::from_millis(150);

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "clients: fills that stall for ever",
        contracts: BOTH,
        rounds: 10,
        quick: true,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(stalls::fills(stand, load, dice)),
    },
    Fault {
        name: "clients: replies that nobody reads",
        contracts: BOTH,
        rounds: 5,
        quick: false,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(stalls::readers(stand, load, dice)),
    },
    Fault {
        name: "clients: gone in every state",
        contracts: BOTH,
        rounds: 10,
        quick: false,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(leaving::every_state(stand, load, dice)),
    },
    Fault {
        name: "clients: half closed",
        contracts: BOTH,
        rounds: 10,
        quick: false,
        soak: false,
        options: |mut options| {
            // So that each has a connection to Redis that is yet to be opened.
            options.replaced.push(("[redis]\n", "[redis]\nupstream = \"pinned\"\n"));
            options
        },
        round: |stand, load, dice| Box::pin(leaving::half_closed(stand, load, dice)),
    },
    Fault {
        name: "clients: gone while they wait for another's fill",
        contracts: BOTH,
        rounds: 10,
        quick: false,
        soak: false,
        options: |mut options| {
            options.more = "coalesce = \"60s\"\n";
            options
        },
        round: |stand, load, dice| Box::pin(leaving::waiting(stand, load, dice)),
    },
    Fault {
        name: "clients: more than max_clients, and storms of them",
        contracts: BOTH,
        rounds: 5,
        quick: false,
        soak: false,
        options: |mut options| {
            options.more = "[proxy]\nmax_clients = 120\n";
            options
        },
        round: |stand, load, dice| Box::pin(floods::connections(stand, load, dice)),
    },
    Fault {
        name: "clients: no file descriptors left",
        contracts: BOTH,
        rounds: 5,
        quick: false,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(floods::descriptors(stand, load, dice)),
    },
    Fault {
        name: "clients: a byte at a time, on both ports",
        contracts: BOUNDED,
        rounds: 5,
        quick: false,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(floods::slowloris(stand, load, dice)),
    },
    Fault {
        name: "clients: 100,000 commands in one write",
        contracts: BOTH,
        rounds: 5,
        quick: false,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(speech::pipelined(stand, load, dice)),
    },
    Fault {
        name: "clients: garbage",
        contracts: BOTH,
        rounds: 5,
        quick: false,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(speech::garbage(stand, load, dice)),
    },
    Fault {
        name: "clients: CLIENT KILL and CLIENT PAUSE",
        contracts: BOTH,
        rounds: 10,
        quick: false,
        soak: true,
        options: |options| options,
        round: |stand, load, dice| Box::pin(speech::administration(stand, load, dice)),
    },
];

/// How things were before the fault.
struct Before {
    held: Resources,
    clients: f64,
}

impl Before {
    async fn of(stand: &Stand) -> Fallible<Self> {
        forget_peak(pid(stand)?)?;
        Ok(Self { held: stand.resources()?, clients: stand.proxy.metric("cachefence_clients").await? })
    }

    /// Memory never grew by more.
    fn grew_at_most(&self, stand: &Stand, mib: u64) -> Outcome {
        let peak = peak_kib(pid(stand)?)?;
        if peak > self.held.rss_kib + mib * 1024 {
            return Err(format!("memory grew from {} to {peak} KiB", self.held.rss_kib).into());
        }
        Ok(())
    }

    /// Those that came with the fault have left nothing.
    async fn returns(&self, stand: &Stand) -> Outcome {
        let mut last = None;
        let waited = wait_until("all to be as before", PATIENCE * 3, async || {
            let Ok(clients) = stand.proxy.metric("cachefence_clients").await else { return false };
            let Ok(now) = stand.resources() else { return false };
            last = Some((clients, now));
            clients <= self.clients + OTHERS as f64
                && now.descriptors <= self.held.descriptors + OTHERS
                && now.threads <= self.held.threads
                && now.rss_kib <= self.held.rss_kib + KEPT_KIB
        });
        let Err(error) = waited.await else { return Ok(()) };
        let Self { held, clients, .. } = self;
        let of_redis = stand.redis.client().await?.cmd(&["CLIENT", "LIST"]).await?.text().unwrap_or_default();
        Err(format!("{error}: {held}, {clients} clients before; now {last:?}\n{of_redis}").into())
    }
}

fn pid(stand: &Stand) -> Fallible<u32> {
    stand.proxy.pid().ok_or_else(|| "the proxy does not run".into())
}

async fn connect(stand: &Stand) -> Fallible<Wire> {
    Wire::connect(stand.proxy.address()).await
}

/// A connection that, when it is dropped, ends with a FIN, or with a RST and all that it has not read.
async fn connect_to_leave(stand: &Stand, dice: &mut Dice) -> Fallible<Wire> {
    let stream = TcpStream::connect(stand.proxy.address()).await?;
    stream.set_nodelay(true)?;
    if dice.one_in(2) {
        set_socket_linger(&stream, Some(Duration::ZERO))?;
    }
    Ok(Wire::over(stream))
}

/// A fill of the row with evidence that it is new.
async fn proven_fill(stand: &Stand) -> Fallible<(Vec<u8>, i64)> {
    let sql = stand.sql().await?;
    let evidence = text(&sql, "SELECT cachefence.asof()").await?;
    let version = sql.query_one("SELECT version FROM users WHERE id = 0", &[]).await?.try_get(0)?;
    Ok((encode(&["ASOF", &evidence, "SET", ROW, &format!("{version}"), "PX", "60000"]), version))
}

/// Commits a change of the row, as applications do, and waits until its key is deleted.
async fn write(stand: &Stand) -> Outcome {
    let sql = stand.primary.client().await?;
    let written = sql.batch_execute("UPDATE users SET version = version + 1 WHERE id = 0");
    tokio::time::timeout(PATIENCE, written).await.map_err(|_| "COMMIT hangs")??;
    deleted(stand).await
}

async fn deleted(stand: &Stand) -> Outcome {
    let mut redis = stand.redis.client().await?;
    let gone = async || redis.cmd(&["EXISTS", ROW]).await.is_ok_and(|found| found == Reply::Int(0));
    Ok(wait_until("the row's key to be deleted", PATIENCE, gone).await?)
}

/// Waits until Redis itself holds the row's version.
async fn holds(stand: &Stand, version: i64) -> Outcome {
    let mut redis = stand.redis.client().await?;
    let wanted = Reply::bulk(version.to_string());
    let there = async || redis.cmd(&["GET", ROW]).await.is_ok_and(|found| found == wanted);
    Ok(wait_until("the fill to be executed", PATIENCE, there).await?)
}

/// Puts a value of so many bytes into Redis.
async fn put(stand: &Stand, key: &str, bytes: usize) -> Outcome {
    stand.redis.client().await?.cmd(&["SET", key, &"x".repeat(bytes)]).await?;
    Ok(())
}

/// Waits until the proxy has logged this, behind so many bytes of its log.
async fn logged(stand: &Stand, after: usize, words: &str) -> Outcome {
    let said = async || stand.proxy.log().get(after..).is_some_and(|log| log.contains(words));
    Ok(wait_until(&format!("{words:?} in the log"), PATIENCE, said).await?)
}
