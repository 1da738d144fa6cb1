//! A session: transactions at random, each with a tag, some of which come to nothing.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::Fallible;
use crate::statements::{Dice, away_and_back, maintenance, statement};

/// Statements of a transaction at most.
const STATEMENTS: u64 = 7;
/// Numbers that one transaction may use.
const NUMBERS: u64 = 10_000;

/// What became of the transactions.
#[derive(Debug, Default)]
pub struct Tally {
    pub committed: usize,
    pub rolled_back: usize,
    pub savepoints_rolled_back: usize,
    pub prepared: usize,
    pub statements: usize,
    pub failed_statements: usize,
    /// What was sent, by tag.
    pub sent: BTreeMap<u64, Vec<String>>,
    /// Which errors there were, and how often.
    pub errors: BTreeMap<String, usize>,
}

/// A session and what it has done.
pub struct Session {
    sql: Client,
    version: i32,
    dice: Dice,
    next: u64,
    tag: u64,
    pub tally: Tally,
}

impl Session {
    /// `number` is above 0, and no other session's.
    pub async fn new(sql: Client, number: u64, seed: u64) -> Fallible<Self> {
        let row = sql.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?;
        let mut dice = Dice::new(seed.wrapping_mul(100).wrapping_add(number));
        // How a session likes to see values says nothing about their keys.
        for setting in [
            dice.pick(&["datestyle = 'German'", "datestyle = 'ISO'", "datestyle = 'SQL, DMY'"]),
            dice.pick(&["timezone = 'Asia/Tokyo'", "timezone = 'America/St_Johns'"]),
            dice.pick(&["intervalstyle = 'iso_8601'", "intervalstyle = 'sql_standard'"]),
            dice.pick(&["extra_float_digits = -10", "extra_float_digits = 3"]),
            dice.pick(&["bytea_output = 'escape'", "bytea_output = 'hex'"]),
            "lock_timeout = '200ms'",
            "deadlock_timeout = '20ms'",
        ] {
            sql.batch_execute(&format!("SET {setting}")).await?;
        }
        let next = number * 1_000_000_000;
        Ok(Self { sql, version: row.get(0), dice, next, tag: next, tally: Tally::default() })
    }

    /// Runs so many transactions.
    pub async fn run(mut self, transactions: usize) -> Fallible<Tally> {
        for _ in 0..transactions {
            if self.dice.one_in(60) {
                let sql = maintenance(&mut self.dice);
                self.send(sql).await?;
            }
            self.transaction().await?;
        }
        Ok(self.tally)
    }

    async fn transaction(&mut self) -> Fallible<()> {
        self.next += NUMBERS;
        self.tag = self.next;
        if !self.begin().await? {
            return Ok(());
        }
        let whole = self.dice.one_in(80);
        let statements = match whole {
            true => away_and_back(&mut self.dice, self.next + 1),
            false => {
                let n = 1 + self.dice.roll(STATEMENTS);
                (0..n).map(|n| statement(&mut self.dice, self.version, self.next + 1 + n * 1_000)).collect()
            }
        };
        // Some begin a savepoint, and some end one, in either way.
        let (careful, mut depth) = (!whole && self.dice.one_in(2), 0_usize);
        for statement in statements {
            if careful && (depth == 0 || self.dice.one_in(3)) {
                self.must("SAVEPOINT s").await?;
                depth += 1;
            }
            if !self.send(&statement).await? {
                if depth == 0 {
                    return self.roll_back().await;
                }
                self.must("ROLLBACK TO s").await?;
                self.tally.savepoints_rolled_back += 1;
            } else if depth > 0 && self.dice.one_in(3) {
                self.must("RELEASE s").await?;
                depth -= 1;
            } else if depth > 0 && self.dice.one_in(4) {
                self.must("ROLLBACK TO s").await?;
                self.tally.savepoints_rolled_back += 1;
            }
        }
        match self.dice.roll(10) {
            0 => self.roll_back().await,
            1 => self.in_two_phases().await,
            _ => self.commit("COMMIT").await,
        }
    }

    async fn begin(&mut self) -> Fallible<bool> {
        let level =
            self.dice.pick(&["", "", "", "ISOLATION LEVEL REPEATABLE READ", "ISOLATION LEVEL SERIALIZABLE"]);
        let tag = self.tag;
        let begun = self.send(&format!("BEGIN {level}; INSERT INTO tags VALUES ({tag})")).await?;
        if !begun {
            self.roll_back().await?;
        }
        Ok(begun)
    }

    async fn roll_back(&mut self) -> Fallible<()> {
        self.tally.rolled_back += 1;
        self.must("ROLLBACK").await
    }

    async fn commit(&mut self, how: &str) -> Fallible<()> {
        // A serializable one may not be able to.
        match self.send(how).await? {
            true => self.tally.committed += 1,
            false => self.tally.rolled_back += 1,
        }
        Ok(())
    }

    async fn in_two_phases(&mut self) -> Fallible<()> {
        let tag = self.tag;
        if !self.send(&format!("PREPARE TRANSACTION 'tag {tag}'")).await? {
            return self.roll_back().await;
        }
        self.tally.prepared += 1;
        // Whatever happens meanwhile is another transaction's.
        if self.dice.one_in(2) {
            self.next += NUMBERS;
            self.tag = self.next;
            if self.begin().await? {
                let statement = statement(&mut self.dice, self.version, self.next + 1);
                match self.send(&statement).await? {
                    true => self.commit("COMMIT").await?,
                    false => self.roll_back().await?,
                }
            }
            self.tag = tag;
        }
        match self.dice.roll(3) {
            0 => {
                self.tally.rolled_back += 1;
                self.must(&format!("ROLLBACK PREPARED 'tag {tag}'")).await
            }
            _ => {
                self.tally.committed += 1;
                self.must(&format!("COMMIT PREPARED 'tag {tag}'")).await
            }
        }
    }

    /// Sends what Postgres may refuse; says whether it did not.
    async fn send(&mut self, statement: &str) -> Fallible<bool> {
        let done = self.sql.batch_execute(statement).await;
        self.tally.statements += 1;
        let outcome = match &done {
            Ok(()) => String::new(),
            Err(error) if error.as_db_error().is_some() => {
                self.tally.failed_statements += 1;
                let code = error.code().map_or("", |code| code.code()).to_owned();
                let message = error.as_db_error().map_or("", |error| error.message());
                *self.tally.errors.entry(format!("{code} {message}")).or_default() += 1;
                format!("   -- failed: {code} {message}")
            }
            Err(error) => return Err(format!("{statement}: {error:?}").into()),
        };
        self.tally.sent.entry(self.tag).or_default().push(statement.to_owned() + &outcome);
        Ok(done.is_ok())
    }

    /// Sends what cannot fail.
    async fn must(&mut self, sql: &str) -> Fallible<()> {
        match self.send(sql).await? {
            true => Ok(()),
            false => Err(format!("failed: {:?}", self.tally.sent.get(&self.tag)).into()),
        }
    }
}
