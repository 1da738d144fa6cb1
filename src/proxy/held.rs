//! What Redis remembers of a client's connection, and which the client must therefore keep for itself.

use std::ops::BitOr;

/// The reasons for which a client keeps its pin, beside a transaction or a WATCH. Redis's replies set and end them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held(u16);

impl Held {
    /// It has subscriptions.
    pub const SUBSCRIBED: Self = Self(1);
    /// `CLIENT TRACKING ON`
    pub const TRACKING: Self = Self(1 << 1);
    /// `CLIENT NO-EVICT ON`
    pub const NO_EVICT: Self = Self(1 << 2);
    /// `CLIENT NO-TOUCH ON`
    pub const NO_TOUCH: Self = Self(1 << 3);
    /// A transaction went wrong around a SELECT: its db can be more than one, until the next SELECT.
    pub const DB: Self = Self(1 << 4);
    /// A WATCH that an UNWATCH did not end, because Redis refused it.
    pub const WATCHED: Self = Self(1 << 5);
    /// It has waited for its writes, which Redis counts by connection.
    pub const WAITED: Self = Self(1 << 6);
    /// Something that nobody can end, or that nobody knows: others know the connection by its id, for example.
    pub const FOR_GOOD: Self = Self(1 << 7);
    /// `MONITOR`: all that Redis says goes to it as it comes.
    pub const MONITORS: Self = Self(1 << 8);

    /// Whether there is any.
    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// Whether these are among them.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With these, or without them.
    pub fn set(self, other: Self, on: bool) -> Self {
        if on { self | other } else { Self(self.0 & !other.0) }
    }
}

impl BitOr for Held {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
