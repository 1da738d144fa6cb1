//! Postgres's wire protocol, as far as a walsender needs it.
