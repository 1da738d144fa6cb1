//! What the faults came to.

use std::fmt;
use std::time::Duration;

use cachefence::config::Contract;

use crate::support::Outcome;

/// Of one fault under one contract.
#[derive(Clone, Debug)]
pub struct Row {
    pub fault: &'static str,
    pub contract: Contract,
    pub rounds: u32,
    /// Hits that were judged.
    pub reads: u64,
    /// Those older than the contract allows.
    pub stale: u64,
    /// One of them, in words.
    pub example: Option<String>,
    /// Keys in Redis that differ from the database when all is applied.
    pub lost: Vec<String>,
    /// From the end of each round's fault until everything worked again.
    pub recovered: Vec<Duration>,
}

impl Row {
    fn median(&self) -> Duration {
        let mut sorted = self.recovered.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    fn longest(&self) -> Duration {
        self.recovered.iter().max().copied().unwrap_or_default()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, rounds, reads, stale, .. } = self;
        let (contract, lost) = (name(self.contract), self.lost.len());
        let (median, longest) = (self.median().as_secs_f64(), self.longest().as_secs_f64());
        write!(
            f,
            "| {fault} | {contract} | {rounds} | {reads} | {stale} | {median:.1} s | {longest:.1} s | "
        )?;
        if lost == 0 { write!(f, "nothing |") } else { write!(f, "{lost} keys |") }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

impl Table {
    pub fn push(&mut self, row: Row) {
        self.0.push(row);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// No read was older than the contract allows, and no key differs in the end.
    pub fn assert_kept(&self) -> Outcome {
        for row in &self.0 {
            assert_eq!(row.stale, 0, "{}: {:?}", row.fault, row.example);
            assert!(row.lost.is_empty(), "{}: {:?}", row.fault, row.lost);
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = "| fault | contract | rounds | reads checked | stale beyond the contract | recovered in, median | longest | lost |";
        writeln!(f, "{head}\n| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

pub fn name(contract: Contract) -> &'static str {
    match contract {
        Contract::Bounded => "bounded",
        Contract::Strict => "strict",
    }
}
