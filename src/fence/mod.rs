//! The decision: what is remembered of recent writes, and whether a fill is newer.
