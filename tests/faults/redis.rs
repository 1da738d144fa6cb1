//! What happens to Redis.

mod data;
mod refusal;
mod silence;

use std::time::{Duration, Instant};

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::wait_until;
use tokio::time::sleep;

use crate::dice::Dice;
use crate::fault::{BOTH, Fault, Round};
use crate::load::Load;
use crate::stand::{Options, Stand};
use crate::support::{Fallible, Outcome, PATIENCE};

type Cause = for<'a> fn(&'a mut Stand, &'a Load, &'a mut Dice) -> Round<'a>;

const fn fault(name: &'static str, rounds: u32, round: Cause) -> Fault {
    Fault { name, contracts: BOTH, rounds, quick: false, soak: true, options: |options| options, round }
}

pub const FAULTS: &[Fault] = &[
    Fault {
        quick: true,
        ..fault("redis killed and restarted empty", 10, |s, l, d| Box::pin(data::emptied(s, l, d)))
    },
    fault("redis restarted from an old dump", 10, |s, l, d| Box::pin(data::went_back(s, l, d))),
    Fault {
        options: with_lines,
        soak: false,
        ..fault("redis failed over to a replica that lags", 5, |s, l, d| Box::pin(data::failed_over(s, l, d)))
    },
    Fault {
        options: with_lines,
        soak: false,
        ..fault("redis's address moves, old connections stay", 5, |s, l, d| {
            Box::pin(data::moved_away(s, l, d))
        })
    },
    fault("redis made a replica of older data and promoted", 5, |s, l, d| Box::pin(data::demoted(s, l, d))),
    fault("redis flushed, and its marker removed", 10, |s, l, d| Box::pin(data::flushed(s, l, d))),
    Fault {
        quick: true,
        ..fault("redis stopped for 2 s, a fill in flight", 10, |s, l, d| {
            Box::pin(silence::stopped_briefly(s, l, d))
        })
    },
    fault("redis stopped for 10 s, a fill in flight", 5, |s, l, d| Box::pin(silence::stopped(s, l, d))),
    Fault {
        options: with_lines,
        ..fault("redis out of reach, no connection closed", 5, |s, l, d| {
            Box::pin(silence::unreachable(s, l, d))
        })
    },
    Fault {
        options: with_lines,
        ..fault("redis's connections lost on the way", 5, |s, l, d| Box::pin(silence::lost(s, l, d)))
    },
    Fault {
        options: |options| with_args(options, &["--enable-debug-command", "yes"]),
        soak: false,
        ..fault("redis slow for 3 s", 5, |s, l, d| Box::pin(silence::slow(s, l, d)))
    },
    fault("redis busy with a script", 5, |s, l, d| Box::pin(silence::busy(s, l, d))),
    Fault {
        // It loads a key every 20 ms, and looks at its clients every kilobyte.
        options: |options| {
            let slowly = ["--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024"];
            let options = with_args(options, &slowly);
            with_args(options, &["--enable-debug-command", "yes", "--rdbcompression", "no"])
        },
        soak: false,
        ..fault("redis loads its data for long", 3, |s, l, d| Box::pin(silence::loading(s, l, d)))
    },
    fault("redis full (maxmemory)", 5, |s, l, d| Box::pin(refusal::full(s, l, d))),
    fault("redis takes a right away", 3, |s, l, d| Box::pin(refusal::without_rights(s, l, d))),
    Fault {
        options: |options| with_args(options, &["--enable-protected-configs", "yes"]),
        soak: false,
        ..fault("redis cannot save and refuses writes", 5, |s, l, d| Box::pin(refusal::cannot_save(s, l, d)))
    },
    fault("redis at maxclients, a fill in flight", 5, |s, l, d| Box::pin(refusal::crowded(s, l, d))),
    fault("redis kills all clients", 10, |s, l, d| Box::pin(refusal::kills(s, l, d))),
    fault("redis closes idle connections after 1 s", 3, |s, l, d| Box::pin(refusal::idle(s, l, d))),
];

fn with_lines(options: Options) -> Options {
    Options { lines: true, ..options }
}

fn with_args(options: Options, args: &[&str]) -> Options {
    Options { redis: options.redis.args(args), ..options }
}

/// Asserts what Redis itself answers.
async fn ask(redis: &mut Client, command: &[&str]) -> Outcome {
    match redis.cmd(command).await? {
        Reply::Error(error) => Err(format!("{command:?}: {error}").into()),
        _ => Ok(()),
    }
}

/// Waits until the proxy's log says this once more than it did.
async fn logged(stand: &Stand, what: &str, before: usize) -> Outcome {
    let said = async || stand.proxy.log().matches(what).count() > before;
    Ok(wait_until(&format!("the log to say: {what}"), PATIENCE, said).await?)
}

/// A fill of `user:0`, which no application reads, and that its miss vouches for. It is not sent yet.
struct Filler {
    client: Client,
    version: String,
}

impl Filler {
    async fn miss(stand: &Stand) -> Fallible<Self> {
        stand.redis.client().await?.cmd(&["DEL", "user:0"]).await?;
        let mut client = stand.proxy.client().await?;
        let sql = stand.sql().await?;
        let version = async |client: &mut Client| -> Fallible<String> {
            client.cmd(&["GET", "user:0"]).await?;
            let row = sql.query_one("SELECT version::text FROM users WHERE id = 0", &[]).await?;
            Ok(row.try_get(0)?)
        };
        let mut found = version(&mut client).await?;
        // Its last write has to be settled, or its miss would vouch for nothing.
        wait_until("a fill of user:0 to get in", PATIENCE, async || {
            if let Ok(now) = version(&mut client).await {
                found = now;
            }
            let _ = client.cmd(&["SET", "user:0", &found]).await;
            client.cmd(&["GET", "user:0"]).await.is_ok_and(|held| held.text().as_ref() == Some(&found))
        })
        .await?;
        stand.redis.client().await?.cmd(&["DEL", "user:0"]).await?;
        let version = version(&mut client).await?;
        Ok(Self { client, version })
    }

    /// Sends it to a Redis that does not answer, and changes its row once it has been let in: what is filled is old from
    /// then on. Should something else be before it in the worker's way, nobody waits for it, and it is refused or done.
    async fn fill_and_write(&mut self, stand: &Stand) -> Outcome {
        self.client.send(&["SET", "user:0", &self.version]).await?;
        sleep(Duration::from_millis(50)).await;
        let update = "UPDATE users SET version = version + 1 WHERE id = 0";
        Ok(stand.sql().await?.batch_execute(update).await?)
    }

    /// The same while Redis is stopped for so long. Whether the fill was given up.
    async fn stall(&mut self, stand: &mut Stand, load: &Load, time: Duration) -> Fallible<bool> {
        load.stop_writing();
        stand.level().await?;
        let before = stand.proxy.log().matches(GIVEN_UP).count();
        let given_up = |stand: &Stand| stand.proxy.log().matches(GIVEN_UP).count() > before;
        stand.redis.freeze()?;
        let began = Instant::now();
        let caused = self.fill_and_write(stand).await;
        while began.elapsed() < time {
            sleep(Duration::from_millis(20)).await;
        }
        let alive = stand.lives().await;
        stand.redis.thaw()?;
        load.resume_writing();
        caused?;
        alive?;
        Ok(given_up(stand))
    }
}

/// How often a fill is tried that nothing else shall stand in the way of.
const ATTEMPTS: u32 = 10;
const GIVEN_UP: &str = "fills not answered within drain_timeout: ending their connections";
