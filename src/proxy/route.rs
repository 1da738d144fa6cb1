//! Lanes and pins of one thread, and which of them a session's next command takes.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::spawn_local;

use super::client::Client;
use super::gate::Gate;
use super::link::Link;
use crate::config::Upstream;

/// Idle pins that are kept for the next client: MULTI shall not open a connection each time.
const IDLE_PINS: usize = 16;

/// The links of one thread.
pub struct Links {
    gate: Arc<Gate>,
    mode: Upstream,
    lane: RefCell<Option<Rc<Link>>>,
    idle: RefCell<Vec<Rc<Link>>>,
}

impl Links {
    /// None yet; they are opened when somebody needs them.
    pub fn new(gate: Arc<Gate>, mode: Upstream) -> Self {
        Self { gate, mode, lane: RefCell::default(), idle: RefCell::default() }
    }

    /// Whether every client has a pin, always.
    pub fn all_pinned(&self) -> bool {
        self.mode == Upstream::Pinned
    }

    /// The lane of the default user and db. One that was lost is opened anew, once, by whoever needs it first.
    pub fn lane(&self) -> Rc<Link> {
        let mut lane = self.lane.borrow_mut();
        match &*lane {
            Some(lane) if lane.is_open() => lane.clone(),
            _ => lane.insert(self.open(None)).clone(),
        }
    }

    /// A pin for a client.
    pub fn pin(&self, client: &Rc<Client>) -> Rc<Link> {
        while let Some(link) = self.idle.borrow_mut().pop() {
            if link.is_open() {
                link.own(Some(client.clone()));
                return link;
            }
        }
        self.open(Some(client.clone()))
    }

    /// Takes back a pin that has no state of its client's and nothing to answer.
    pub fn release(&self, link: Rc<Link>) {
        let mut idle = self.idle.borrow_mut();
        if link.is_open() && !link.is_tainted() && idle.len() < IDLE_PINS {
            link.own(None);
            idle.push(link);
        } else {
            link.close();
        }
    }

    fn open(&self, owner: Option<Rc<Client>>) -> Rc<Link> {
        let link = Link::new(self.gate.clone(), owner);
        spawn_local(link.clone().run());
        link
    }
}
