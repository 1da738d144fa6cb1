//! Guards that change while the feed runs.
//!
//! The stream starts over with the new ones, from the position that was confirmed: from there on commits are rendered by them.
//! What went by before that, unguarded, is dealt with as a whole. The guards that are new begin at a position that lies behind
//! all of it, so that a fill has to prove that it has seen it; and their keys are deleted before the stream goes on.

use super::Feed;
use super::state::FeedState;
use crate::position::Lsn;

/// Where guards begin: behind all that the server has flushed. Nobody ever stands in the middle of a record, so that the next
/// position that anybody can have reached will do.
pub(super) fn beginning(flushed: Lsn) -> Lsn {
    Lsn(flushed.0.saturating_add(1))
}

impl Feed {
    /// Takes the guards of a reload, between two streams.
    pub(super) fn take_guards(&mut self) {
        let Some(wanted) = self.state.reloaded() else { return };
        let (new, gone) = (wanted.beyond(&self.guards), self.guards.beyond(&wanted));
        if new.is_empty() && gone.is_empty() {
            self.guards = wanted;
            return;
        }
        tracing::info!(added = new.len(), removed = gone.len(), "the guards are others from here on");
        self.added.retain(|guard| wanted.get(*guard).is_some());
        self.added.extend(new);
        gone.into_iter().for_each(|guard| self.state.forget_broken(guard));
        self.stream.applier.set_guards(wanted.clone());
        self.guards = wanted;
    }
}

impl FeedState {
    /// A guard is none any more, and can no longer be broken.
    fn forget_broken(&self, guard: crate::guard::GuardId) {
        self.set_broken(guard, u8::MAX, false);
    }
}
