//! One application's part in a scenario: its people, its steps, and what was seen at each.

use std::time::{Duration, Instant};

use super::DemoError;
use super::application::{Cache, Reader, Saw, User, Writer};
use super::client::Reply;
use super::servers::{PATIENCE, ServerError};
use super::stage::Stage;
use crate::position::Lsn;

/// How long the readers go on once the replica is level.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// The pause between two reads.
const PAUSE: Duration = Duration::from_millis(25);
/// How long the right value may take to come back into the cache after that.
const RECOVERY: Duration = Duration::from_secs(10);

/// The node that a reader reads after a miss.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Primary,
    Replica,
}

/// How a step is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Right,
    Wrong,
}

/// One line of a timeline.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) at: Duration,
    pub(super) what: String,
    pub(super) saw: String,
    pub(super) tone: Tone,
}

/// What the readers saw after the scripted steps.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    reads: usize,
    hits: usize,
    wrong_hits: usize,
    /// Old, but from a lagging replica itself.
    old_from_source: usize,
    last_was_hit: bool,
    /// The last read was a hit, and right: the cache is of use again.
    pub(super) recovered: bool,
}

/// One application in one scenario.
pub(super) struct Play<'s> {
    stage: &'s Stage,
    /// Where the application finds its cache.
    cache: String,
    /// The Redis that holds it.
    redis: Cache,
    primary: tokio_postgres::Client,
    began: Instant,
    pub(super) id: i64,
    pub(super) steps: Vec<Step>,
    pub(super) traffic: Traffic,
}

impl<'s> Play<'s> {
    /// The application that talks straight to Redis.
    pub(super) async fn direct(stage: &'s Stage, scenario: usize) -> Result<Self, DemoError> {
        Self::new(stage, stage.direct.address(), stage.direct.address(), 101 + scenario as i64).await
    }

    /// The one that has the proxy in between.
    pub(super) async fn through(stage: &'s Stage, scenario: usize) -> Result<Self, DemoError> {
        Self::new(stage, stage.through_address(), stage.behind.address(), 201 + scenario as i64).await
    }

    async fn new(stage: &'s Stage, cache: String, redis: String, id: i64) -> Result<Self, DemoError> {
        Ok(Self {
            stage,
            cache,
            redis: Cache::connect(&redis).await?,
            primary: stage.primary.client().await?,
            began: Instant::now(),
            id,
            steps: Vec::new(),
            traffic: Traffic::default(),
        })
    }

    /// The address of the Redis that holds the cache, for the onlooker.
    pub(super) fn redis_address(&self) -> String {
        if self.id < 200 { self.stage.direct.address() } else { self.stage.behind.address() }
    }

    pub(super) async fn reader(&self, source: Source) -> Result<Reader, DemoError> {
        let node = match source {
            Source::Primary => &self.stage.primary,
            Source::Replica => &self.stage.replica,
        };
        Reader::new(&self.cache, node, self.id).await
    }

    pub(super) async fn writer(&self) -> Result<Writer, DemoError> {
        Writer::new(&self.cache, &self.stage.primary, self.id).await
    }

    /// Writes a line of the timeline.
    pub(super) fn step(&mut self, what: &str, saw: String, tone: Tone) {
        let (at, what) = (self.began.elapsed(), what.to_owned());
        self.steps.push(Step { at, what, saw, tone });
    }

    /// What Redis holds now.
    async fn held(&mut self) -> Result<Option<User>, DemoError> {
        self.redis.get(self.id).await
    }

    /// Starts with the row in the cache, put there by a reader. The clock starts afterwards.
    pub(super) async fn warm(&mut self) -> Result<(), DemoError> {
        let mut reader = self.reader(Source::Primary).await?;
        let began = Instant::now();
        let held = loop {
            reader.read().await?;
            if let Some(held) = self.held().await? {
                break held;
            }
            if began.elapsed() > PATIENCE {
                let what = format!("the fill of {} to be let in", super::application::key(self.id));
                return Err(ServerError::late(&what, PATIENCE).into());
            }
            tokio::time::sleep(PAUSE).await;
        };
        self.began = Instant::now();
        self.step("before: a reader has filled the cache", format!("Redis holds {held}"), Tone::Plain);
        Ok(())
    }

    /// A writer's transaction.
    pub(super) async fn update(
        &mut self,
        writer: &mut Writer,
        who: &str,
        name: &str,
    ) -> Result<(), DemoError> {
        let written = writer.update(name).await?;
        self.step(&format!("{who}: UPDATE, COMMIT"), format!("committed {written}"), Tone::Plain);
        Ok(())
    }

    /// A writer's invalidation.
    pub(super) async fn delete_key(&mut self, writer: &mut Writer, who: &str) -> Result<(), DemoError> {
        let reply = writer.delete_key().await?;
        self.step(&format!("{who}: DEL"), format!("answer {}", show(&reply)), Tone::Plain);
        Ok(())
    }

    /// The first half of a read; returns what is to be filled, if it was a miss.
    pub(super) async fn look(&mut self, reader: &mut Reader, what: &str) -> Result<Option<User>, DemoError> {
        let truth = User::selected(&self.primary, self.id).await?;
        let saw = reader.look().await?;
        let (text, tone) = describe(&saw, &truth);
        self.step(what, text, tone);
        Ok(match saw {
            Saw::Hit(_) => None,
            Saw::Miss(user) => Some(user),
        })
    }

    /// The second half.
    pub(super) async fn fill(
        &mut self,
        reader: &mut Reader,
        what: &str,
        user: Option<User>,
    ) -> Result<(), DemoError> {
        let Some(user) = user else {
            self.step(what, "nothing to fill".into(), Tone::Plain);
            return Ok(());
        };
        let reply = reader.fill(&user).await?;
        let held = self.held().await?;
        let truth = User::selected(&self.primary, self.id).await?;
        let tone = match &held {
            Some(held) if held.version < truth.version => Tone::Wrong,
            _ => Tone::Right,
        };
        let held = held.map_or_else(|| "nothing".into(), |held| held.to_string());
        self.step(what, format!("answer {}; Redis holds {held}", show(&reply)), tone);
        Ok(())
    }

    /// A whole read.
    pub(super) async fn read(&mut self, reader: &mut Reader, what: &str) -> Result<(), DemoError> {
        let truth = User::selected(&self.primary, self.id).await?;
        let saw = reader.read().await?;
        let (text, tone) = describe(&saw, &truth);
        self.step(what, text, tone);
        Ok(())
    }

    /// Someone at a terminal changes the row.
    pub(super) async fn psql(&mut self, name: &str) -> Result<(), DemoError> {
        let sql = format!("UPDATE users SET name = '{name}', version = version + 1 WHERE id = {}", self.id);
        let printed = self.stage.primary.psql(&sql).await?;
        let truth = User::selected(&self.primary, self.id).await?;
        self.step("psql: UPDATE", format!("psql says {}; row is {truth}", printed.trim()), Tone::Plain);
        Ok(())
    }

    /// Readers go on until the replica has what was written before, and a while longer.
    pub(super) async fn traffic(&mut self, source: Source) -> Result<(), DemoError> {
        let mut reader = self.reader(source).await?;
        let written = self.stage.primary.write_lsn().await?;
        let replica = self.stage.replica.client().await?;
        let mut level_since: Option<Instant> = None;
        let mut seen = Traffic::default();
        loop {
            let truth = User::selected(&self.primary, self.id).await?;
            seen.note(&reader.read().await?, &truth);
            if level_since.is_none() && replayed(&replica).await? >= written {
                level_since = Some(Instant::now());
            }
            let level_for = level_since.map_or(Duration::ZERO, |since| since.elapsed());
            if level_for >= AFTERWARDS && (seen.last_was_hit || level_for >= RECOVERY) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let tone = if seen.wrong_hits > 0 { Tone::Wrong } else { Tone::Right };
        self.step("readers until the replica is level, +1 s", seen.text(), tone);
        self.traffic = seen;
        Ok(())
    }
}

impl Traffic {
    fn note(&mut self, saw: &Saw, truth: &User) {
        self.reads += 1;
        self.last_was_hit = matches!(saw, Saw::Hit(_));
        match saw {
            Saw::Hit(user) => {
                let wrong = user.version < truth.version;
                self.hits += 1;
                self.wrong_hits += usize::from(wrong);
                self.recovered = !wrong;
            }
            Saw::Miss(user) => {
                self.old_from_source += usize::from(user.version < truth.version);
                self.recovered = false;
            }
        }
    }

    fn text(&self) -> String {
        let misses = self.reads - self.hits;
        let wrong = if self.wrong_hits > 0 { "WRONG" } else { "wrong" };
        let mut text = format!("{} hits, {} {wrong}; {misses} misses", self.hits, self.wrong_hits);
        if self.old_from_source > 0 {
            text += &format!(" ({} read the replica before it was level)", self.old_from_source);
        }
        text
    }
}

async fn replayed(replica: &tokio_postgres::Client) -> Result<Lsn, DemoError> {
    let sql = "SELECT pg_last_wal_replay_lsn()::text";
    let row = replica.query_one(sql, &[]).await.map_err(ServerError::sql(sql))?;
    let text: String = row.try_get(0).map_err(ServerError::sql(sql))?;
    text.parse().map_err(|_| DemoError::Answer { command: sql.into(), answer: text })
}

/// What a reader saw, against what the primary said just before.
fn describe(saw: &Saw, truth: &User) -> (String, Tone) {
    match saw {
        Saw::Hit(user) if user.version < truth.version => (format!("hit: {user}  WRONG"), Tone::Wrong),
        Saw::Hit(user) => (format!("hit: {user}"), Tone::Right),
        Saw::Miss(user) if user.version < truth.version => {
            (format!("miss; source says {user} (old)"), Tone::Plain)
        }
        Saw::Miss(user) => (format!("miss; source says {user}"), Tone::Plain),
    }
}

/// A reply as redis-cli shows it, more or less.
fn show(reply: &Reply) -> String {
    match reply {
        Reply::Simple(text) => text.clone(),
        Reply::Error(text) => format!("error {text}"),
        Reply::Int(number) => number.to_string(),
        Reply::Nil => "nil".into(),
        Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::Array(replies) => format!("{} replies", replies.len()),
    }
}
