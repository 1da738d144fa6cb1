//! A client whose next command waits for the feed.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;

use tokio::time::Sleep;

use crate::feed::Awaited;

/// The wait of a client's next command.
pub(super) struct Wait {
    /// Wakes the session when the position is reached ...
    pub(super) _reached: Awaited,
    /// ... and this while it is, but Redis is not level ...
    pub(super) look: Option<Pin<Box<Sleep>>>,
    /// ... and this when its time is over.
    pub(super) deadline: Pin<Box<Sleep>>,
    pub(super) over: bool,
}

impl Wait {
    /// Looks at the clock. The session is woken when its time is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        self.over = self.over || self.deadline.as_mut().poll(cx).is_ready();
        self.look.take_if(|look| look.as_mut().poll(cx).is_ready());
    }
}
