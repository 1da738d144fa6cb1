//! The proxy's own work in Redis: deletions, the marker, purges.
