//! Follows Postgres's logical replication: commits become fences and deletions.
