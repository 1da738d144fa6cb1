//! Clients of a proxy that stops: what they have begun is finished, and nothing new is begun.
//!
//! A Redis client takes a connection that was closed between two commands well: it opens another one. What it cannot take
//! well is a command without an answer, for it does not know whether that was executed. So a client is let go at the first
//! moment at which nothing of it is under way: all commands that have come are answered, it has sent no part of another, and
//! it is in no transaction. A command that crosses with the end of its connection is not executed.
//!
//! Who waits in Redis (`BLPOP`), subscribes or monitors may have no such moment for ever. These are let go when nobody else
//! is left, or when half of the time is over. What Redis has popped for a blocked client by then is still delivered.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::client::Client;
use crate::fence::ConnId;

/// How far the proxy is in stopping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is not.
    #[default]
    Serving,
    /// Clients go as soon as nothing of theirs is under way.
    Finishing,
    /// So do those that wait for what may never come; and nothing more is read but for transactions that have begun.
    Leaving,
    /// All go.
    Over,
}

/// The clients of one thread.
#[derive(Default)]
pub(super) struct Served {
    stage: Cell<Stage>,
    clients: RefCell<HashMap<ConnId, Rc<Client>>>,
}

impl Served {
    /// How far the proxy is in stopping.
    pub fn stage(&self) -> Stage {
        self.stage.get()
    }

    /// The next stage begins: every client looks what that means for it.
    pub fn turn(&self, stage: Stage) {
        self.stage.set(stage);
        self.clients.borrow().values().for_each(|client| client.wake());
    }

    /// Clients that are busy with something that has an end.
    pub fn busy(&self) -> usize {
        self.clients.borrow().values().filter(|client| !client.rests()).count()
    }

    /// A client has come.
    pub fn came(&self, client: &Rc<Client>) {
        self.clients.borrow_mut().insert(client.id, client.clone());
    }

    /// A client is gone.
    pub fn left(&self, id: ConnId) {
        self.clients.borrow_mut().remove(&id);
    }
}
