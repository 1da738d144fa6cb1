//! What can happen: one step at a time, of anybody, in any order.

use super::explorer::Model;
use super::rules::{Rules, Verdict};
use super::scenario::{Contract, Kind, Mutation, Row, Scenario, bit, up_to};
use super::state::{Client, Commits, Evidence, Flight, Leases, Node, Phase, Position, State, UNKNOWN};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next transaction's commit record is flushed. From here on the feed and the replica can have it.
    Commit,
    /// A backend leaves the proc array: its transaction is visible on the primary. In strict it has waited for the
    /// proxy's confirmation before.
    Show(Position),
    /// COMMIT returns.
    Acknowledge(Position),
    /// The replica replays the next commit record to its end, and shows the commit.
    Replay,
    /// The feed brings the next commit: its key is fenced, and is told which fills it has to wait for.
    Fence,
    /// Those fills have ended: the key is unlinked, and Redis has answered.
    Delete,
    /// Postgres is told.
    Confirm,
    PollPrimary,
    PollReplica,
    /// Writes up to here are forgotten: long settled, or no room.
    Forget(Position),
    /// A read was answered as a miss. Always possible: entries end by their TTL, or Redis evicts them.
    Miss(usize, u8),
    /// A client asks a node for evidence.
    Prove(usize, Node),
    /// A client reads a node.
    Read(usize, Node),
    /// A client's fill is there, all of it, on a connection: it is judged.
    Fill(usize, u8),
    /// Redis executes a fill, and its answer ends it.
    Land(usize),
    /// A miss ends. Its own fill has come: fills are taken to be faster than `lease_ttl`.
    Expire(usize),
    Crash,
    /// Another process takes over.
    Restart,
    /// The misses that the predecessor answered have ended.
    Trust,
}

/// For each kind of step whether this scenario has to make it.
pub fn wanted(scenario: &Scenario) -> [(&'static str, bool); 19] {
    let strict = scenario.contract == Contract::Strict;
    let kinds = |wanted: fn(&Kind) -> bool| scenario.clients.iter().any(wanted);
    let (misses, crashes) = (kinds(|kind| kind.misses()), scenario.crashes > 0);
    [
        ("Commit", true),
        ("Show", true),
        ("Acknowledge", strict),
        ("Replay", scenario.replica),
        ("Fence", true),
        ("Delete", true),
        ("Confirm", strict || crashes),
        ("PollPrimary", true),
        ("PollReplica", scenario.replica),
        ("Forget", scenario.forgets),
        ("Miss", misses),
        ("Prove", kinds(|kind| matches!(kind, Kind::Asof | Kind::Mixed))),
        ("Read", true),
        ("Fill", true),
        ("Land", true),
        ("Expire", misses && scenario.clients.len() > 1),
        ("Crash", crashes),
        ("Restart", crashes),
        ("Trust", crashes),
    ]
}

impl Model for Scenario {
    type State = State;
    type Step = Step;

    fn start(&self) -> State {
        State::start(self)
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        self.postgres_steps(state, steps);
        if state.up {
            self.proxy_steps(state, steps);
        } else {
            steps.push(Step::Restart);
        }
        (0..self.clients.len()).for_each(|client| self.client_steps(state, client, steps));
    }

    fn after(&self, state: &State, step: Step) -> State {
        let after = self.apply(state, step);
        // A counterexample is read by people: nobody changes names on the way.
        if self.mutation.is_none() { after.canonical(self) } else { after }
    }

    fn broken(&self, state: &State) -> Option<String> {
        let (owed, why) = match self.contract {
            Contract::Bounded => (up_to(state.promised), "deleted by the proxy"),
            Contract::Strict => (state.acknowledged, "acknowledged"),
        };
        let missing = owed & self.key() & !state.cache?;
        (missing != 0).then(|| format!("a read hits a value without {}, which is {why}", commits(missing)))
    }

    fn tell(&self, before: &State, step: Step) -> String {
        self.tell_step(before, step)
    }

    fn kind(step: Step) -> usize {
        match step {
            Step::Commit => 0,
            Step::Show(_) => 1,
            Step::Acknowledge(_) => 2,
            Step::Replay => 3,
            Step::Fence => 4,
            Step::Delete => 5,
            Step::Confirm => 6,
            Step::PollPrimary => 7,
            Step::PollReplica => 8,
            Step::Forget(_) => 9,
            Step::Miss(..) => 10,
            Step::Prove(..) => 11,
            Step::Read(..) => 12,
            Step::Fill(..) => 13,
            Step::Land(_) => 14,
            Step::Expire(_) => 15,
            Step::Crash => 16,
            Step::Restart => 17,
            Step::Trust => 18,
        }
    }

    /// Everything is committed, deleted and filled anew.
    fn is_goal(&self, state: &State) -> bool {
        usize::from(state.promised) == self.rows.len() && state.cache == Some(self.key())
    }
}

impl Scenario {
    fn postgres_steps(&self, state: &State, steps: &mut Vec<Step>) {
        if let Some(row) = self.rows.get(usize::from(state.committed)) {
            // Who writes a row that another transaction has written waits until that one has left the proc array.
            let earlier = self.rows[..usize::from(state.committed)].iter().enumerate();
            let mut same = earlier.filter(|(_, other)| *row != Row::Other && *other == row);
            if same.all(|(place, _)| state.visible & 1 << place != 0) {
                steps.push(Step::Commit);
            }
        }
        for lsn in 1..=state.committed {
            let strict = self.contract == Contract::Strict;
            if state.visible & bit(lsn) == 0 {
                if !strict || state.confirmed >= lsn {
                    steps.push(Step::Show(lsn));
                }
            } else if strict && state.acknowledged & bit(lsn) == 0 {
                steps.push(Step::Acknowledge(lsn));
            }
        }
        if self.replica && state.replay < state.committed {
            steps.push(Step::Replay);
        }
    }

    fn proxy_steps(&self, state: &State, steps: &mut Vec<Step>) {
        let rules = Rules(self);
        let delete_first = self.is(Mutation::DeleteFirst);
        if state.fenced < state.committed && (!delete_first || state.deleted > state.fenced) {
            steps.push(Step::Fence);
        }
        let deletable = if delete_first { state.committed.min(state.fenced + 1) } else { state.fenced };
        if state.deleted < deletable && self.is_drained(state, state.deleted + 1) {
            steps.push(Step::Delete);
        }
        let confirms = self.contract == Contract::Strict || self.crashes > 0;
        if confirms && rules.confirmable(state) > state.confirmed {
            steps.push(Step::Confirm);
        }
        if self.polled_primary(state) != *state {
            steps.push(Step::PollPrimary);
        }
        if self.replica && state.replayed < state.replay {
            steps.push(Step::PollReplica);
        }
        if self.forgets {
            let settled = rules.settled(state).min(state.primary);
            let droppable = [settled, state.fenced];
            let places = if settled == state.fenced { &droppable[..1] } else { &droppable[..] };
            steps.extend(places.iter().filter(|lsn| **lsn > state.forgotten).map(|lsn| Step::Forget(*lsn)));
        }
        for (place, lease) in state.leases.all().iter().enumerate() {
            if usize::from(lease.owner) >= self.clients.len() || self.is(Mutation::SlowFills) {
                steps.push(Step::Expire(place));
            }
        }
        if state.distrust && state.clients.iter().all(|client| !client.orphaned) {
            steps.push(Step::Trust);
        }
        if state.crashes > 0 {
            steps.push(Step::Crash);
        }
    }

    /// Nobody that was let in before this commit was fenced is still under way.
    fn is_drained(&self, state: &State, lsn: Position) -> bool {
        let before = |client: &Client| client.flight.is_some_and(|flight| flight.at < lsn);
        !self.feeds(lsn) || self.is(Mutation::NoDrain) || !state.clients.iter().any(before)
    }

    fn client_steps(&self, state: &State, n: usize, steps: &mut Vec<Step>) {
        let (client, kind) = (&state.clients[n], self.clients[n]);
        // A client waits for the answer to its fill, unless the proxy that would bring it is dead.
        if client.flight.is_some() {
            steps.push(Step::Land(n));
        }
        let read = |steps: &mut Vec<Step>, step: fn(usize, Node) -> Step| {
            steps.push(step(n, Node::Primary));
            if self.replica {
                steps.push(step(n, Node::Replica));
            }
        };
        let connections = if kind == Kind::Through { self.pool..self.pool + 1 } else { 0..self.pool };
        match client.phase {
            Phase::Idle if client.rounds == 0 || client.flight.is_some() => {}
            Phase::Idle if kind.misses() && state.up => {
                steps.extend(connections.map(|conn| Step::Miss(n, conn)));
            }
            Phase::Idle if kind == Kind::Asof => read(steps, Step::Prove),
            Phase::Idle if kind == Kind::Through => read(steps, Step::Read),
            Phase::Missed => {
                read(steps, Step::Read);
                if kind == Kind::Mixed {
                    read(steps, Step::Prove);
                }
            }
            Phase::Proven(node, _) => steps.push(Step::Read(n, node)),
            Phase::Holding(..) if state.up => steps.extend(connections.map(|conn| Step::Fill(n, conn))),
            Phase::Idle | Phase::Holding(..) => {}
        }
    }

    /// A poll of the primary: what it shows, and which positions its snapshot is the first to cover.
    fn polled_primary(&self, state: &State) -> State {
        let mut after = *state;
        after.primary = Rules(self).polled(state);
        if self.has_snapshots() {
            let covered = usize::from(after.floor)..=usize::from(after.primary);
            for cover in after.covers.get_mut(covered).unwrap_or_default() {
                cover.get_or_insert(state.visible);
            }
        }
        after
    }

    /// The world after a step.
    pub fn apply(&self, before: &State, step: Step) -> State {
        let rules = Rules(self);
        let mut state = *before;
        match step {
            Step::Commit => state.committed += 1,
            Step::Show(lsn) => state.visible |= bit(lsn),
            Step::Acknowledge(lsn) => state.acknowledged |= bit(lsn),
            Step::Replay => state.replay += 1,
            Step::Fence => {
                state.fenced += 1;
                rules.bury(&mut state);
            }
            Step::Delete => {
                state.deleted += 1;
                if self.feeds(state.deleted) {
                    state.cache = None;
                }
            }
            Step::Confirm => state.confirmed = rules.confirmable(before),
            Step::PollPrimary => state = self.polled_primary(before),
            Step::PollReplica => state.replayed = state.replay,
            Step::Forget(lsn) => {
                state.forgotten = lsn;
                if !self.is(Mutation::FloorStays) {
                    state.floor = lsn;
                    state.covers[..usize::from(lsn)].fill(None);
                    rules.bury(&mut state);
                }
            }
            Step::Miss(n, conn) => {
                state.clients[n].phase = Phase::Missed;
                state.clients[n].rounds -= 1;
                rules.grant(&mut state, conn, n as u8);
            }
            Step::Prove(..) | Step::Read(..) | Step::Land(_) => self.apply_client(&mut state, step),
            Step::Fill(n, conn) => {
                self.fill(&mut state, n, conn);
            }
            Step::Expire(place) => {
                state.leases.remove(place);
            }
            Step::Crash => self.crash(&mut state),
            Step::Restart => self.restart(&mut state),
            Step::Trust => state.distrust = false,
        }
        state.promised = state.promised.max(state.deleted.min(state.fenced));
        state
    }

    /// What a client does by itself.
    fn apply_client(&self, state: &mut State, step: Step) {
        match step {
            Step::Prove(n, node) => {
                let evidence = match node {
                    Node::Replica => Evidence::Lsn(state.replay),
                    Node::Primary if self.is(Mutation::PrimaryLsn) => Evidence::Lsn(state.committed),
                    Node::Primary => Evidence::Snapshot(state.visible),
                };
                self.begin(&mut state.clients[n]);
                state.clients[n].phase = Phase::Proven(node, evidence);
            }
            Step::Read(n, node) => {
                let shown = match node {
                    Node::Primary => state.visible,
                    Node::Replica => up_to(state.replay),
                };
                let evidence = match state.clients[n].phase {
                    Phase::Proven(_, evidence) => evidence,
                    _ => Evidence::None,
                };
                self.begin(&mut state.clients[n]);
                state.clients[n].phase = Phase::Holding(shown & self.key(), evidence);
            }
            Step::Land(n) => state.cache = state.clients[n].flight.take().map(|flight| flight.data),
            _ => {}
        }
    }

    /// A client that saw no miss begins.
    fn begin(&self, client: &mut Client) {
        client.rounds -= u8::from(client.phase == Phase::Idle);
    }

    /// Judged, and in flight if it is let in, in one step. What is not fresh is refused.
    pub fn fill(&self, state: &mut State, n: usize, conn: u8) -> Verdict {
        let Phase::Holding(data, evidence) = state.clients[n].phase else { return Verdict::Unproven };
        let verdict = Rules(self).admit(state, conn, n as u8, evidence);
        let client = &mut state.clients[n];
        client.phase = Phase::Idle;
        client.orphaned = false;
        if verdict == Verdict::Fresh {
            // A second one while the first is under way is left out: see `client_steps`.
            client.flight = Some(Flight { data, at: state.fenced });
        }
        verdict
    }

    /// The proxy is gone, and what it knew. What it has sent to Redis may still be executed.
    fn crash(&self, state: &mut State) {
        state.up = false;
        state.crashes -= 1;
        (state.fenced, state.deleted) = (state.confirmed, state.confirmed);
        (state.primary, state.replayed, state.floor, state.forgotten) = (0, 0, 0, 0);
        state.covers = Default::default();
        state.leases = Leases::NONE;
        state.distrust = false;
        for (client, kind) in state.clients.iter_mut().zip(self.clients) {
            client.orphaned |= kind.misses() && client.awaits();
        }
    }

    /// The slot sends again what was not confirmed. The floor is where the log is flushed: what the predecessor
    /// deleted is not known until it comes again.
    fn restart(&self, state: &mut State) {
        state.up = true;
        state.slot = state.confirmed;
        (state.fenced, state.deleted) = (state.slot, state.slot);
        state.floor = if self.is(Mutation::FloorAtSlot) { state.slot } else { state.committed };
        state.forgotten = state.floor;
        state.distrust = !self.is(Mutation::NoDistrust);
        for client in &mut state.clients {
            // Its connections are killed and seen gone before anything is deleted.
            client.flight = client
                .flight
                .filter(|_| self.is(Mutation::PredecessorLives))
                .map(|flight| Flight { at: UNKNOWN, ..flight });
        }
    }

    fn tell_step(&self, before: &State, step: Step) -> String {
        let name = |n: usize| ["Ann", "Bob", "Cid"].get(n).copied().unwrap_or("?");
        match step {
            Step::Commit => format!("transaction {} writes its commit record", before.committed + 1),
            Step::Show(lsn) => format!("{lsn} becomes visible on the primary"),
            Step::Acknowledge(lsn) => format!("COMMIT of {lsn} returns"),
            Step::Replay => format!("the replica replays {}", before.replay + 1),
            Step::Fence => format!("the proxy fences {}", before.fenced + 1),
            Step::Delete => format!("the proxy deletes for {}", before.deleted + 1),
            Step::Confirm => format!("the proxy confirms {}", self.apply(before, step).confirmed),
            Step::PollPrimary => {
                format!("the primary is polled: it shows {}", self.apply(before, step).primary)
            }
            Step::PollReplica => format!("the replica is polled: it has replayed {}", before.replay),
            Step::Forget(lsn) => format!("the proxy forgets what was written up to {lsn}"),
            Step::Miss(n, conn) => {
                format!("{} misses on connection {conn}; settled is {}", name(n), Rules(self).settled(before))
            }
            Step::Prove(n, node) => match self.apply(before, step).clients[n].phase {
                Phase::Proven(_, evidence) => format!("{} asks the {node:?}: {evidence:?}", name(n)),
                _ => String::new(),
            },
            Step::Read(n, node) => match self.apply(before, step).clients[n].phase {
                Phase::Holding(data, _) => format!("{} reads the {node:?}: {}", name(n), commits(data)),
                _ => String::new(),
            },
            Step::Fill(n, conn) => {
                let verdict = self.fill(&mut before.clone(), n, conn);
                format!("{} fills on connection {conn}: {verdict:?}", name(n))
            }
            Step::Land(n) => format!("Redis executes the fill of {}", name(n)),
            Step::Expire(place) => format!("miss {place} ends"),
            Step::Crash => "the proxy crashes".into(),
            Step::Restart => {
                format!("another process starts, the log being flushed up to {}", before.committed)
            }
            Step::Trust => "the predecessor's misses have ended".into(),
        }
    }
}

/// A set of commits in words.
fn commits(set: Commits) -> String {
    let list: Vec<String> = (1..=8).filter(|lsn| set & bit(*lsn) != 0).map(|lsn| lsn.to_string()).collect();
    if list.is_empty() {
        "the value before all commits".into()
    } else {
        format!("commit {}", list.join(", "))
    }
}
