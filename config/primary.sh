#!/bin/sh
# Prepares the primary of compose.yaml, once, when its volume is new: roles, a table to guard, and its publication.
set -eu

# The image's own rules cover ordinary connections, the feed's included; only the replica needs one.
echo "host replication replicator samenet scram-sha-256" >>"$PGDATA/pg_hba.conf"

psql --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'replicator';

-- pg_monitor: to see which transactions of others are idle.
CREATE ROLE cachefence LOGIN REPLICATION PASSWORD 'cachefence';
GRANT pg_monitor TO cachefence;

CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL);
INSERT INTO users VALUES (1, 'Ada'), (2, 'Grace');
GRANT SELECT ON users TO cachefence;
-- For the schema of the SQL functions, which `cachefence init` makes.
GRANT CREATE ON DATABASE :"DBNAME" TO cachefence;

-- Only a table's owner may publish it. Where cachefence owns the tables, it does this itself.
CREATE PUBLICATION cachefence FOR TABLE users;
SQL
