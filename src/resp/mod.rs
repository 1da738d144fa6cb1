//! Cuts RESP bytes into requests and replies without copying them.
