//! Lanes and pins of one thread, and which of them a session's next command takes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_local;

use super::account::{Account, Login};
use super::client::Client;
use super::drain::Served;
use super::gate::Gate;
use super::link::Link;
use crate::config::Upstream;

/// Requests above this size, in bytes, go on a pin: on a lane they would make others wait.
pub(super) const LANE_REQUEST: usize = 64 * 1024;
/// Idle pins that are kept for the next client: MULTI shall not open a connection each time.
const IDLE_PINS: usize = 256;
/// What nobody has used for so long is closed.
const LINGER: Duration = Duration::from_secs(10);

/// The links of one thread.
pub struct Links {
    gate: Arc<Gate>,
    mode: Upstream,
    lanes: RefCell<HashMap<Account, Shared>>,
    /// Those that were used last are at the end.
    idle: RefCell<Vec<(Rc<Link>, Instant)>>,
    /// Who uses them.
    pub(super) served: Served,
}

struct Shared {
    link: Rc<Link>,
    /// Clients that have joined it.
    clients: usize,
    left: Instant,
}

impl Links {
    /// None yet; they are opened when somebody needs them.
    pub fn new(gate: Arc<Gate>, mode: Upstream) -> Self {
        Self { gate, mode, lanes: RefCell::default(), idle: RefCell::default(), served: Served::default() }
    }

    /// Whether every client has a pin, always.
    pub fn all_pinned(&self) -> bool {
        self.mode == Upstream::Pinned
    }

    /// The lane of an account. One that was lost is opened anew, once, by whoever needs it first.
    pub fn join(self: &Rc<Self>, account: Account) -> Lane {
        let mut lanes = self.lanes.borrow_mut();
        let open = || self.open(account.clone(), None);
        let shared = lanes.entry(account.clone()).or_insert_with(|| Shared {
            link: open(),
            clients: 0,
            left: Instant::now(),
        });
        if !shared.link.is_open() || shared.link.is_retired() {
            shared.link = open();
        }
        shared.clients += 1;
        let link = shared.link.clone();
        drop(lanes);
        Lane { link, account, links: self.clone() }
    }

    /// A pin of a client's account.
    pub fn pin(&self, client: &Rc<Client>) -> Rc<Link> {
        let account = client.account();
        let same = |link: &Link| *link.account() == account;
        self.reuse(client, same).unwrap_or_else(|| self.open(account.clone(), Some(client.clone())))
    }

    /// A pin for a client that is about to change its account: one that belongs to whom it logs in as, so that not
    /// every client that comes and logs in costs a connection.
    pub fn negotiator(&self, client: &Rc<Client>, login: Option<&Rc<Login>>) -> Rc<Link> {
        let account = client.account();
        let (login, since) = match login {
            Some(login) => (Some(login), 0),
            None => (account.login.as_ref(), account.since),
        };
        let same = |link: &Link| link.account().login.as_ref() == login && link.account().since == since;
        self.reuse(client, same).unwrap_or_else(|| self.open(account.clone(), Some(client.clone())))
    }

    fn reuse(&self, client: &Rc<Client>, fits: impl Fn(&Link) -> bool) -> Option<Rc<Link>> {
        let mut idle = self.idle.borrow_mut();
        let at = idle.iter().rposition(|(link, _)| link.is_open() && fits(link))?;
        let (link, _) = idle.remove(at);
        link.own(Some(client.clone()));
        Some(link)
    }

    /// Takes back a pin that has no state of its client's and nothing to answer.
    pub fn release(&self, link: Rc<Link>) {
        let mut idle = self.idle.borrow_mut();
        if link.is_open() && !link.is_tainted() && idle.len() < IDLE_PINS {
            link.own(None);
            idle.push((link, Instant::now()));
        } else {
            link.close();
        }
    }

    /// Closes what nobody has used for long. To be called every now and then.
    pub fn tidy(&self) {
        self.idle.borrow_mut().retain(|(link, since)| {
            let keep = link.is_open() && since.elapsed() < LINGER;
            if !keep {
                link.close();
            }
            keep
        });
        self.lanes.borrow_mut().retain(|_, shared| {
            let keep = shared.clients > 0 || shared.left.elapsed() < LINGER;
            if !keep {
                shared.link.close();
            }
            keep
        });
    }

    fn open(&self, account: Account, owner: Option<Rc<Client>>) -> Rc<Link> {
        let link = Link::new(self.gate.clone(), account, owner);
        let (running, serving) = (self.gate.metrics.running(), link.clone());
        spawn_local(async move {
            let _running = running;
            serving.run().await;
        });
        link
    }
}

/// A client's place on a lane.
pub struct Lane {
    /// The connection.
    pub link: Rc<Link>,
    account: Account,
    links: Rc<Links>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(shared) = self.links.lanes.borrow_mut().get_mut(&self.account) {
            shared.clients = shared.clients.saturating_sub(1);
            shared.left = Instant::now();
        }
    }
}
