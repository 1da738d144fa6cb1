//! Points at which the process can be made to die, so that tests can show what a crash there leaves behind.
//!
//! They are there with the cargo feature `failpoints` only; without it [`pass`] is nothing. `FAILPOINT=<name>:<n>` has the
//! process killed by SIGKILL at the n-th passing of a point: nothing is unwound, closed or written any more, as when the
//! kernel ends it for lack of memory.

/// A step of a commit's way to Redis and back, or of a fill's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Point {
    /// The keys of a commit are fenced; nobody was told yet.
    Fenced,
    /// The cache has been given what to delete.
    Handed,
    /// A part of a large transaction has been given to the cache; the rest is still to come.
    PartHanded,
    /// The fills of the keys have ended.
    Drained,
    /// The deletions and the marker are sent, and not answered.
    Sent,
    /// The keys are deleted, the marker tells nothing of it.
    Deleted,
    /// The marker is written.
    Marked,
    /// The applied position has moved; Postgres was not told.
    Applied,
    /// A position is about to be confirmed.
    Confirming,
    /// A position was confirmed.
    Confirmed,
    /// Some of the keys of a purge are deleted.
    Purging,
    /// The connections of earlier processes are gone.
    Succeeded,
    /// What Redis holds is level with where the stream will begin.
    Level,
    /// A miss has been granted its lease; the client has no answer.
    Granted,
    /// A fill is let in, and not sent.
    Admitted,
    /// A fill was sent.
    Forwarded,
    /// Redis has answered a fill; the client has no answer.
    Answered,
}

impl Point {
    /// All of them, in the order of their names' numbers.
    pub const ALL: [Point; 17] = [
        Point::Fenced,
        Point::Handed,
        Point::PartHanded,
        Point::Drained,
        Point::Sent,
        Point::Deleted,
        Point::Marked,
        Point::Applied,
        Point::Confirming,
        Point::Confirmed,
        Point::Purging,
        Point::Succeeded,
        Point::Level,
        Point::Granted,
        Point::Admitted,
        Point::Forwarded,
        Point::Answered,
    ];

    /// Its name in `FAILPOINT`.
    pub fn name(self) -> &'static str {
        match self {
            Point::Fenced => "fenced",
            Point::Handed => "handed",
            Point::PartHanded => "part-handed",
            Point::Drained => "drained",
            Point::Sent => "sent",
            Point::Deleted => "deleted",
            Point::Marked => "marked",
            Point::Applied => "applied",
            Point::Confirming => "confirming",
            Point::Confirmed => "confirmed",
            Point::Purging => "purging",
            Point::Succeeded => "succeeded",
            Point::Level => "level",
            Point::Granted => "granted",
            Point::Admitted => "admitted",
            Point::Forwarded => "forwarded",
            Point::Answered => "answered",
        }
    }
}

pub use switch::{is_armed, pass};

#[cfg(not(feature = "failpoints"))]
mod switch {
    use super::Point;

    /// Nothing: there are no failpoints.
    #[inline(always)]
    pub fn pass(_: Point) {}

    /// No.
    #[inline(always)]
    pub fn is_armed(_: Point) -> bool {
        false
    }
}

#[cfg(feature = "failpoints")]
mod switch {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Point;

    /// The point at which the process dies, and at which passing.
    static ARMED: LazyLock<Option<(Point, u64)>> =
        LazyLock::new(|| read(&std::env::var("FAILPOINT").unwrap_or_default()));
    static PASSED: AtomicU64 = AtomicU64::new(0);

    /// Passes a point, alive or not.
    pub fn pass(point: Point) {
        let Some((_, passing)) = ARMED.filter(|(armed, _)| *armed == point) else { return };
        if PASSED.fetch_add(1, Ordering::SeqCst) + 1 == passing {
            let killed =
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // Not reached: to itself a process can send any signal.
            tracing::error!(?killed, point = point.name(), "a failpoint did not end the process");
        }
    }

    /// Whether the process is to die at this point: for those that have to be made, because nothing happens there otherwise.
    pub fn is_armed(point: Point) -> bool {
        ARMED.is_some_and(|(armed, _)| armed == point)
    }

    /// `name:passing`, or a name alone for the first passing.
    fn read(text: &str) -> Option<(Point, u64)> {
        let (name, passing) = text.split_once(':').unwrap_or((text, "1"));
        let point = Point::ALL.into_iter().find(|point| point.name() == name)?;
        Some((point, passing.parse().ok()?))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_is_named_with_its_passing() {
            assert_eq!(read("fenced:3"), Some((Point::Fenced, 3)));
            assert_eq!(read("part-handed"), Some((Point::PartHanded, 1)));
            assert_eq!(read(""), None);
            assert_eq!(read("fenced:x"), None);
        }
    }
}
