//! The four divergences, side by side, on real servers.
