//! What docs/security.md says: each answer to a threat that has no test elsewhere.

mod dependencies;
mod hostile;
mod secrets;
mod smuggling;
#[path = "../wire/mod.rs"]
mod wire;

use cachefence::demo::client::Client;
use cachefence::demo::servers::{Cachefence, Postgres, Redis, RedisOptions};
use wire::{BINARY, Fallible, Outcome, Wire, postgres, settings};

/// What every password in these tests has in it, and nothing else.
const SECRET: &str = "Zq7secret";

/// One after the other, on the same servers: to start some for each would take longer than all of it.
#[tokio::test]
async fn clients_and_keys_harm_nobody() -> Outcome {
    let mut servers = Servers::start().await?;
    println!("who has not logged in");
    hostile::a_stranger_learns_nothing(&servers).await?;
    println!("what fills the memory");
    hostile::who_fills_the_memory_pays(&servers).await?;
    println!("keys that are made to deceive");
    hostile::keys_deceive_nobody(&servers).await?;
    println!("bytes that are no requests");
    smuggling::nobody_is_answered_what_another_asked(&servers).await?;
    println!("HTTP");
    smuggling::browsers_are_not_obeyed(&servers).await?;
    println!("logins that fail");
    secrets::a_login_that_fails_tells_no_password(&servers)?;
    println!("passwords of a proxy that runs");
    secrets::a_running_proxy_tells_no_password(&mut servers).await
}

/// Functions that stand before the catalog's own wherever the proxy's role looks for one by its bare name.
const HIJACK: &str = "
CREATE SCHEMA evil;
CREATE FUNCTION evil.current_setting(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
CREATE FUNCTION evil.pg_is_in_recovery() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
CREATE FUNCTION evil.pg_backend_pid() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
ALTER ROLE fence SET search_path = evil, pg_catalog;";

/// A Redis and a Postgres that ask for passwords.
struct Servers {
    redis: Redis,
    postgres: Postgres,
}

impl Servers {
    async fn start() -> Fallible<Self> {
        let redis = RedisOptions::default().args(&["--requirepass", &password("redis")]);
        let (postgres, redis) = (postgres().await?, Redis::start(redis).await?);
        let sql = postgres.client().await?;
        sql.batch_execute(&format!(
            "CREATE ROLE fence SUPERUSER REPLICATION LOGIN PASSWORD '{}'; CREATE TABLE notes (id text PRIMARY KEY); {HIJACK}",
            password("postgres")
        ))
        .await?;
        let hba = "local all all trust\\nhost all postgres all trust\\nhost all all all scram-sha-256\\n";
        // What it is sent has to be read, or Postgres complains of a broken pipe.
        let write = format!("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; printf \"{hba}\" > pg_hba.conf'");
        sql.batch_execute(&write).await?;
        sql.batch_execute("SELECT pg_reload_conf()").await?;
        Ok(Self { redis, postgres })
    }

    /// Settings of a proxy that knows the passwords, with a slot of its own.
    fn settings(&self, slot: &str, changes: &[(&str, &str)]) -> String {
        let url = format!("redis://:{}@{}/0", password("redis"), self.redis.address());
        let database = self.postgres.url();
        let place = database.rsplit_once('@').map_or("", |(_, place)| place);
        let primary = format!("postgres://fence:{}@{place}", password("postgres"));
        let text =
            settings(&self.postgres, &self.redis, slot, &[(&self.redis.url(), &url), (&database, &primary)]);
        let notes = "[[guard]]\ntable = \"public.notes\"\nkeys = [\"note:<id>\"]\nreply = \"error\"\n";
        changes.iter().fold(text + notes, |text, (from, to)| {
            assert!(text.contains(from), "{from} is not in {text}");
            text.replacen(from, to, 1)
        })
    }

    async fn proxy(&self, slot: &str, changes: &[(&str, &str)]) -> Fallible<Cachefence> {
        Ok(Cachefence::start(BINARY, &self.settings(slot, changes)).await?)
    }

    /// Past the proxy.
    async fn direct(&self) -> Fallible<Client> {
        let mut client = self.redis.client().await?;
        client.cmd(&["AUTH", &password("redis")]).await?;
        Ok(client)
    }
}

/// The password of something.
fn password(of: &str) -> String {
    format!("{of}{SECRET}")
}

/// A connection that has logged in.
async fn logged_in(address: &str) -> Fallible<Wire> {
    let mut wire = Wire::connect(address).await?;
    assert_eq!(wire.cmd(&format!("AUTH {}", password("redis"))).await?, "+OK\r\n");
    Ok(wire)
}
