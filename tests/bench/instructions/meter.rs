//! What is counted: the function that callgrind watches.

use std::hint::black_box;

/// Counts the operations that a case does while callgrind watches.
#[derive(Default)]
pub struct Meter {
    operations: u32,
}

impl Meter {
    /// How many were done.
    pub fn operations(&self) -> u32 {
        self.operations
    }

    /// Does the same so many times. The first time is not counted: what is allocated once is not the operation's.
    pub fn repeat<R>(&mut self, times: u32, mut operation: impl FnMut() -> R) {
        black_box(operation());
        watched(times, &mut || _ = black_box(operation()));
        self.operations += times;
    }

    /// The same with something that is made anew for each, which is not counted.
    pub fn repeat_with<S, R>(
        &mut self,
        times: u32,
        mut make: impl FnMut() -> S,
        mut operation: impl FnMut(&mut S) -> R,
    ) {
        black_box(operation(&mut make()));
        for _ in 0..times {
            let mut made = make();
            watched(1, &mut || _ = black_box(operation(&mut made)));
        }
        self.operations += times;
    }
}

/// The name by which callgrind knows [`watched`].
pub const WATCHED: &str = "*meter::watched*";

/// What runs in here is counted, and nothing else.
#[inline(never)]
fn watched(times: u32, operation: &mut dyn FnMut()) {
    for _ in 0..times {
        operation();
    }
}
