//! `AFTER`: read-your-writes. A command waits until the feed has come to a position, which is when every key that was
//! written before it is deleted.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::sleep;

use super::session::{Session, Step};
use super::shape::miss;
use super::wait::Wait;
use crate::command::{Command, Read};
use crate::position::Lsn;
use crate::resp::{Arguments, RequestScanner, Scanned, integer};

/// How long it waits if it is not told.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest that it can be told to wait, in milliseconds.
const MAX_TIMEOUT: i64 = 3_600_000;
/// How often is looked whether Redis is level: nobody wakes those who wait for that, which is rare.
const LOOK: Duration = Duration::from_millis(10);

/// `AFTER lsn [TIMEOUT ms] command ...`, read.
struct Terms {
    lsn: Lsn,
    timeout: Duration,
    /// Where the command begins.
    command: usize,
}

impl Session {
    /// Waits, and goes on with the command. What the client sends behind it waits as well: its commands are executed in
    /// its order.
    pub(super) fn after(&mut self, arguments: Arguments<'_>) -> Step {
        let terms = match Terms::read(arguments) {
            Ok(terms) => terms,
            Err(error) => return self.own(format!("-ERR {error}\r\n")),
        };
        let request = arguments.request_from(terms.command);
        let mut scanner = RequestScanner::default();
        let Ok(Scanned::Request(_)) = scanner.scan(&request) else { return Step::Done };
        let command = scanner.arguments(&request);
        let what = self.gate.commands.load().of(command);
        if what == Command::After {
            return self.own("-ERR cachefence: AFTER takes one position; give it the higher one\r\n");
        }
        // Somebody who has yet to log in hears so at once, and from Redis.
        if !self.client.is_stranger(&self.gate.upstreams.strangers) && self.waits_for(&terms) {
            return Step::Wait;
        }
        let late = self.waiting.take().is_some_and(|wait| wait.over) && !self.has_reached(terms.lsn);
        match what {
            _ if !late => {}
            Command::Read(read) if !read.changes => return self.miss_late(read, command),
            _ => {
                let at = self.gate.feed.reached.lsn();
                let timeout = terms.timeout.as_millis();
                return self.own(format!(
                    "-LAGGING the feed has not come to {} within {timeout} ms: it is at {at}\r\n",
                    terms.lsn
                ));
            }
        }
        self.take_plainly(what, command)
    }

    /// A Redis that is not level may hold what was deleted before: one that was rolled back, for instance.
    fn has_reached(&self, lsn: Lsn) -> bool {
        self.gate.feed.reached.lsn() >= lsn && self.gate.cache.is_level()
    }

    /// Whether there is still something to wait for.
    fn waits_for(&mut self, terms: &Terms) -> bool {
        if self.has_reached(terms.lsn) {
            return false;
        }
        let Some(waker) = self.client.waker() else { return false };
        // Anew each time: a position that woke us may have gone back since.
        let reached = self.gate.feed.reached.wait(terms.lsn, waker);
        let wait = match self.waiting.take() {
            Some(wait) => Wait { _reached: reached, ..wait },
            None => {
                // So that the session's task looks at the clock, which it does before it takes commands.
                self.client.wake();
                let over = terms.timeout.is_zero();
                Wait { _reached: reached, look: None, deadline: Box::pin(sleep(terms.timeout)), over }
            }
        };
        let wait = self.waiting.insert(wait);
        if wait.look.is_none() && self.gate.feed.reached.lsn() >= terms.lsn {
            wait.look = Some(Box::pin(sleep(LOOK)));
            self.client.wake();
        }
        !wait.over && !self.has_reached(terms.lsn)
    }

    /// A read whose position was not reached in time: what Redis holds may be older than the write that the client
    /// knows of, so it is a miss, be the key guarded or not.
    fn miss_late(&mut self, read: Read, arguments: Arguments<'_>) -> Step {
        if let Some(db) = self.client.db.get() {
            // Like any miss it vouches for the fill that follows: for what is settled now.
            let keys = read.keys.places(arguments).filter_map(|place| arguments.get(place));
            for key in keys.filter_map(|key| self.gate.guarded(db, key)) {
                self.gate.read(&key, self.client.id, true);
            }
        }
        self.own(miss(read.miss, arguments, self.client.protocol.get()))
    }
}

impl Terms {
    fn read(arguments: Arguments<'_>) -> Result<Self, String> {
        let wrong_number = || "wrong number of arguments for 'after' command".to_owned();
        let (Some(lsn), Some(next)) = (arguments.get(1), arguments.get(2)) else {
            return Err(wrong_number());
        };
        let lsn = std::str::from_utf8(lsn).map_err(|_| "cachefence: AFTER: the position is not text")?;
        let lsn = Lsn::from_str(lsn).map_err(|error| format!("cachefence: AFTER: {error}"))?;
        let (mut timeout, mut command) = (DEFAULT_TIMEOUT, 2);
        if next.eq_ignore_ascii_case(b"TIMEOUT") {
            let ms = arguments.get(3).ok_or_else(wrong_number)?;
            let ms = integer(ms).filter(|ms| (0..=MAX_TIMEOUT).contains(ms)).ok_or_else(|| {
                format!(
                    "cachefence: AFTER: the timeout is not a number of milliseconds from 0 to {MAX_TIMEOUT}"
                )
            })?;
            (timeout, command) = (Duration::from_millis(ms as u64), 4);
        }
        if arguments.len() <= command {
            return Err(wrong_number());
        }
        Ok(Self { lsn: lsn.record_end(), timeout, command })
    }
}
