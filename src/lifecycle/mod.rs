//! The process among others: the signals that end it, what systemd is told, how many files it may open, and what becomes of
//! a panic.

pub mod descriptors;
pub mod notify;
pub mod panics;
pub mod signals;
