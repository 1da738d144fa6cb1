//! The four divergences, side by side, on real servers.

pub mod client;
pub mod servers;
