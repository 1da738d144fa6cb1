//! Visits every state that a model can reach, breadth first.
//!
//! Of a state that was visited only a 64-bit hash is kept, with the hash of the state before it and the step between
//! them: enough to tell the shortest way to a state that breaks an invariant. Two states of one hash would hide one of
//! them: with a million states that has a chance of one in thirty million.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;

/// What is explored.
pub trait Model {
    type State: Copy + Eq + Hash;
    type Step: Copy;

    fn start(&self) -> Self::State;
    /// Adds every step that can be made from a state.
    fn steps(&self, state: &Self::State, steps: &mut Vec<Self::Step>);
    fn after(&self, state: &Self::State, step: Self::Step) -> Self::State;
    /// What is broken in a state.
    fn broken(&self, state: &Self::State) -> Option<String>;
    /// A step in words.
    fn tell(&self, before: &Self::State, step: Self::Step) -> String;
    /// Kinds of steps are counted, to see that each is made at all.
    fn kind(step: Self::Step) -> usize;
    /// A state that has to be reached, for the model to mean anything.
    fn is_goal(&self, state: &Self::State) -> bool;
}

/// What an exploration found.
pub struct Explored {
    pub states: usize,
    pub steps: usize,
    /// Steps from the start to the state that is farthest from it.
    pub depth: usize,
    pub time: Duration,
    /// States that had to be reached.
    pub goals: usize,
    /// How often each kind of step was made.
    pub kinds: Vec<usize>,
    /// The shortest way to a state that breaks an invariant.
    pub counterexample: Option<Counterexample>,
}

/// The steps from the start to a broken state.
pub struct Counterexample {
    pub steps: Vec<String>,
    pub broken: String,
}

impl Display for Counterexample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:>4}  {step}", n + 1)?;
        }
        write!(f, "      {}", self.broken)
    }
}

/// The keys of the map are hashes already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// From the hash of a state to that of the one before, and the step between.
type Visited<S> = HashMap<u64, (u64, Option<S>), BuildHasherDefault<AsItIs>>;

/// Visits every state, or those up to the first that is broken.
pub fn explore<M: Model>(model: &M) -> Explored {
    let began = Instant::now();
    // Of one seed: every run visits, and counts, the same.
    let hasher = FixedState::with_seed(0);
    let start = model.start();
    let mut visited: Visited<M::Step> = HashMap::default();
    visited.insert(hasher.hash_one(start), (0, None));
    let mut explored = Explored {
        states: 1,
        steps: 0,
        depth: 0,
        time: Duration::ZERO,
        goals: 0,
        kinds: Vec::new(),
        counterexample: None,
    };
    let (mut level, mut next, mut steps) = (vec![start], Vec::new(), Vec::new());
    while !level.is_empty() {
        for state in &level {
            let from = hasher.hash_one(state);
            explored.goals += usize::from(model.is_goal(state));
            model.steps(state, &mut steps);
            for step in steps.drain(..) {
                explored.count(M::kind(step));
                let after = model.after(state, step);
                let hash = hasher.hash_one(after);
                let Entry::Vacant(entry) = visited.entry(hash) else { continue };
                entry.insert((from, Some(step)));
                explored.states += 1;
                if let Some(broken) = model.broken(&after) {
                    explored.counterexample =
                        Some(Counterexample { steps: way(model, &visited, hash), broken });
                    explored.time = began.elapsed();
                    return explored;
                }
                next.push(after);
            }
        }
        explored.depth += usize::from(!next.is_empty());
        level.clear();
        std::mem::swap(&mut level, &mut next);
    }
    explored.time = began.elapsed();
    explored
}

impl Explored {
    fn count(&mut self, kind: usize) {
        self.steps += 1;
        if self.kinds.len() <= kind {
            self.kinds.resize(kind + 1, 0);
        }
        self.kinds[kind] += 1;
    }
}

/// The steps from the start to a state, in words.
fn way<M: Model>(model: &M, visited: &Visited<M::Step>, to: u64) -> Vec<String> {
    let mut steps = Vec::new();
    let mut at = to;
    while let Some((before, Some(step))) = visited.get(&at) {
        steps.push(*step);
        at = *before;
    }
    let mut state = model.start();
    let mut words = Vec::new();
    for step in steps.into_iter().rev() {
        words.push(model.tell(&state, step));
        state = model.after(&state, step);
    }
    words
}
