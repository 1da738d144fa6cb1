//! Clients, lanes and pins: a command's way to Redis and its reply's way back.
