//! Connecting to Postgres: over TLS or not, with every way to log in and to say the password, to one of several hosts.
//! psql is the oracle: what it connects with, both of our clients connect with, and what it does not, they do not.

mod pki;
mod wire;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use cachefence::demo::servers::{
    Cachefence, Postgres, PrimaryOptions, Redis, RedisOptions, free_port, wait_until,
};
use cachefence::feed::catalog;
use cachefence::pg::target::Target;
use pki::Pki;
use tempfile::TempDir;
use wire::{BINARY, Fallible, GUARDS, Outcome, PATIENCE, write};

/// Who may log in how. `client` is the name in the certificate of that name.
const HBA: &str = "
local all all trust
host all,replication postgres 127.0.0.1/32 trust
hostssl all over_tls 127.0.0.1/32 scram-sha-256
hostnossl all plain 127.0.0.1/32 scram-sha-256
host all scram 127.0.0.1/32 scram-sha-256
host all hashed 127.0.0.1/32 md5
host all clear 127.0.0.1/32 password
host all trusted 127.0.0.1/32 trust
hostssl all client 127.0.0.1/32 scram-sha-256 clientcert=verify-full
";
const USERS: &[&str] = &["over_tls", "plain", "scram", "hashed", "clear", "trusted", "client"];
/// With what URLs and words have to encode.
const PASSWORD: &str = "s3cret @:/?#%&'\\";

struct Stand {
    pki: Pki,
    home: TempDir,
    primary: Postgres,
}

impl Stand {
    /// A primary that speaks TLS.
    async fn start() -> Fallible<Self> {
        let pki = Pki::new()?;
        for key in ["client", "stranger"] {
            fs::set_permissions(pki.path(&format!("{key}.key")), Permissions::from_mode(0o600))?;
        }
        let stand = Self {
            pki,
            home: tempfile::tempdir()?,
            primary: Postgres::primary(PrimaryOptions::default()).await?,
        };
        let client = stand.primary.client().await?;
        let quoted = PASSWORD.replace('\'', "''");
        for user in USERS {
            let encryption = if *user == "hashed" { "md5" } else { "scram-sha-256" };
            client
                .batch_execute(&format!(
                    "SET password_encryption = '{encryption}'; \
                     CREATE ROLE {user} SUPERUSER REPLICATION LOGIN PASSWORD '{quoted}'"
                ))
                .await?;
        }
        client.batch_execute("ALTER SYSTEM SET ssl_ca_file = 'ca.crt'").await?;
        client.batch_execute("ALTER SYSTEM SET ssl = on").await?;
        stand.file("ca.crt", &fs::read_to_string(stand.pki.path("ca.pem"))?).await?;
        stand.file("pg_hba.conf", HBA).await?;
        stand.certificate("server").await?;
        Ok(stand)
    }

    /// Writes a file into the data directory as Postgres's own account.
    async fn file(&self, name: &str, text: &str) -> Outcome {
        let text = text.replace('\'', "''");
        let sql = format!(
            "COPY (SELECT unnest(string_to_array('{text}', E'\\n'))) TO PROGRAM 'umask 077; cat > {name}.new; mv {name}.new {name}'"
        );
        Ok(self.primary.client().await?.batch_execute(&sql).await?)
    }

    /// Has the server show this certificate, and waits until it does.
    async fn certificate(&self, name: &str) -> Outcome {
        for (file, ending) in [("server.key", "key"), ("server.crt", "pem")] {
            self.file(file, &fs::read_to_string(self.pki.path(&format!("{name}.{ending}")))?).await?;
        }
        self.primary.client().await?.batch_execute("SELECT pg_reload_conf()").await?;
        // Trusted by itself alone: nothing else can pass for it.
        let alone = self.pki.file(&format!("{name}.pem"));
        let authority = if name == "server" { self.pki.file("ca.pem") } else { alone };
        let url = self.url("trusted", &format!("sslmode=verify-ca&sslrootcert={authority}"));
        Ok(wait_until("the certificate to be shown", PATIENCE, async || self.psql(&url, &[]).is_ok()).await?)
    }

    fn url(&self, user: &str, query: &str) -> String {
        self.url_at(user, &format!("127.0.0.1:{}", self.primary.port()), query)
    }

    fn url_at(&self, user: &str, hosts: &str, query: &str) -> String {
        format!("postgres://{user}:{}@{hosts}/app?{query}", encoded(PASSWORD))
    }

    /// What psql says of the session: over TLS or not, of a standby or not, and on which port.
    fn psql(&self, url: &str, variables: &[(&str, &str)]) -> Result<String, String> {
        let output = Command::new("psql")
            .args(["-X", "-w", "-A", "-t", "-c", SESSION, url])
            .env_clear()
            .envs(std::env::vars().filter(|(name, _)| name == "PATH"))
            .env("HOME", self.home.path())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// What our client for SQL says of it, if the walsender's connects as well.
    async fn ours(&self, url: &str) -> Result<String, String> {
        let target = Target::parse(url).map_err(|error| error.to_string())?;
        let sql = async {
            let client = catalog::connect(&target, "test").await?;
            let row = client.query_one(SESSION, &[]).await?;
            Ok::<String, catalog::CatalogError>(row.get(0))
        };
        let sql = sql.await.map_err(|error| error.to_string());
        let stream = catalog::walsender(&target, "test").await.map_err(|error| error.to_string());
        assert_eq!(sql.is_ok(), stream.is_ok(), "{url}: {sql:?} {stream:?}");
        for error in [sql.as_ref().err(), stream.as_ref().err()].into_iter().flatten() {
            assert!(!error.contains("s3cret"), "{error}");
        }
        sql
    }

    /// Both agree; whether they connect.
    async fn agree(&self, url: &str) -> bool {
        let (theirs, ours) = (self.psql(url, &[]), self.ours(url).await);
        assert_eq!(theirs.clone().ok(), ours.clone().ok(), "{url}: psql {theirs:?}, ours {ours:?}");
        ours.is_ok()
    }
}

/// What a session is like, in one column.
const SESSION: &str = "SELECT concat_ws(' ', ssl, pg_is_in_recovery(), inet_server_port()) FROM pg_stat_ssl \
                       WHERE pid = pg_backend_pid()";

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_is_as_psql_has_it() -> Outcome {
    let stand = Stand::start().await?;
    modes(&stand).await;
    names_and_certificates(&stand).await;
    channel_binding(&stand).await;
    passwords(&stand)?;
    certificates_that_are_none(&stand).await?;
    several_hosts(stand).await
}

/// Every mode with no CA, the right one and a wrong one, where the line of pg_hba.conf depends on the encryption; the
/// other ways to log in with what can make a difference there.
async fn modes(stand: &Stand) {
    let (all, some) = (
        &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"][..],
        &["disable", "prefer", "require"][..],
    );
    let (mut connected, mut refused) = (0, 0);
    for user in USERS {
        let (modes, cas) = match *user {
            "over_tls" | "plain" => (all, &["", "ca.pem", "other-ca.pem"][..]),
            "scram" => (some, &["", "other-ca.pem"][..]),
            _ => (some, &[""][..]),
        };
        for (mode, ca) in modes.iter().flat_map(|mode| cas.iter().map(move |ca| (mode, ca))) {
            let file = stand.pki.file(ca);
            let root = if ca.is_empty() { String::new() } else { format!("&sslrootcert={file}") };
            match stand.agree(&stand.url(user, &format!("sslmode={mode}{root}"))).await {
                true => connected += 1,
                false => refused += 1,
            }
        }
    }
    // Else the oracle would say nothing.
    assert!(connected > 25 && refused > 20, "{connected} connected, {refused} refused");
}

/// The server's name, and our certificate.
async fn names_and_certificates(stand: &Stand) {
    let (port, file) = (stand.primary.port(), |name: &str| stand.pki.file(name));
    let ca = file("ca.pem");
    let named = |host: &str, mode: &str| {
        format!(
            "host={host} hostaddr=127.0.0.1 port={port} user=trusted dbname=app sslmode={mode} sslrootcert='{ca}'"
        )
    };
    assert!(stand.agree(&named("localhost", "verify-full")).await);
    assert!(!stand.agree(&named("cache.internal", "verify-full")).await);
    assert!(stand.agree(&named("cache.internal", "verify-ca")).await);
    let error = stand.ours(&named("cache.internal", "verify-full")).await.expect_err("another name");
    assert!(error.contains("Postgres's certificate is for another name"), "{error}");

    let cert = |name: &str| {
        let (cert, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
        format!("sslmode=require&sslcert={cert}&sslkey={key}")
    };
    assert!(stand.agree(&stand.url("client", &cert("client"))).await);
    assert!(!stand.agree(&stand.url("client", &cert("stranger"))).await);
    assert!(!stand.agree(&stand.url("client", "sslmode=require")).await);
    assert!(!stand.agree(&stand.url("client", &cert("client").replace("client.key", "stranger.key"))).await);
    // A key that others can read.
    assert!(!stand.agree(&stand.url("client", &cert("server"))).await);
    assert!(stand.agree(&stand.url("over_tls", "sslmode=require&ssl_min_protocol_version=TLSv1.3")).await);
    assert!(stand.agree(&stand.url("over_tls", "sslmode=require&ssl_max_protocol_version=TLSv1.2")).await);
    // Unix sockets have no TLS, whatever is asked for.
    let socket = encoded(&stand.primary.socket_dir().display().to_string());
    let url = stand.url_at("trusted", &format!("{socket}:{port}"), "sslmode=verify-full");
    assert!(stand.agree(&url).await);
}

/// Bound where it is asked for, refused where it cannot be had. That the server checks what a login is bound to is
/// tested by the logins that succeed.
async fn channel_binding(stand: &Stand) {
    for (user, mode, binding, connects) in [
        ("over_tls", "require", "require", true),
        ("over_tls", "require", "prefer", true),
        ("over_tls", "require", "disable", true),
        ("scram", "prefer", "require", true),
        ("scram", "disable", "require", false),
        ("scram", "disable", "prefer", true),
        ("hashed", "require", "require", false),
        ("clear", "require", "require", false),
        ("trusted", "require", "require", false),
    ] {
        let url = stand.url(user, &format!("sslmode={mode}&channel_binding={binding}"));
        assert_eq!(stand.agree(&url).await, connects, "{url}");
    }
    let wrong = stand.url("scram", "").replace(&encoded(PASSWORD), "wrong");
    assert!(!stand.agree(&wrong).await);
}

/// From wherever libpq takes them; and from a file that a setting names.
fn passwords(stand: &Stand) -> Outcome {
    let place = |name: &str| stand.home.path().join(name);
    let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
    let line = |user: &str| format!("127.0.0.1:{}:*:{user}:{escaped}\n", stand.primary.port());
    fs::create_dir(place("other"))?;
    for (name, text, mode) in [
        (".pgpass", format!("# comment\n127.0.0.1:1:*:*:wrong\n{}", line("scram")), 0o600),
        ("other/passfile", line("hashed"), 0o600),
        ("other/open", line("hashed"), 0o644),
        ("other/secret", format!("{PASSWORD}\n"), 0o644),
    ] {
        fs::write(place(name), text)?;
        fs::set_permissions(place(name), Permissions::from_mode(mode))?;
    }
    let (passfile, open) =
        (place("other/passfile").display().to_string(), place("other/open").display().to_string());
    let url = |user: &str, query: &str| {
        format!("postgres://{user}@127.0.0.1:{}/app?sslmode=require{query}", stand.primary.port())
    };
    for (url, variables, connects) in [
        (url("scram", ""), vec![], true),
        (url("hashed", ""), vec![], false),
        (url("hashed", ""), vec![("PGPASSWORD", PASSWORD)], true),
        (url("scram", ""), vec![("PGPASSWORD", "wrong")], false),
        (url("hashed", ""), vec![("PGPASSFILE", passfile.as_str())], true),
        (url("scram", ""), vec![("PGPASSFILE", passfile.as_str())], false),
        (url("hashed", ""), vec![("PGPASSFILE", open.as_str())], false),
        (url("hashed", &format!("&passfile={passfile}")), vec![], true),
        (url("hashed", &format!("&passfile={passfile}")), vec![("PGPASSFILE", open.as_str())], true),
        (url("hashed", &format!("&passfile={passfile}&password=wrong")), vec![], false),
    ] {
        let theirs = stand.psql(&url, &variables);
        assert_eq!(theirs.is_ok(), connects, "{url} {variables:?}: psql {theirs:?}");
        let ours = init(stand, &url, "", &variables)?;
        assert_eq!(ours.is_ok(), connects, "{url} {variables:?}: ours {ours:?}");
        assert!(ours.err().is_none_or(|error| error.contains("password")), "{url} {variables:?}");
    }
    let secret = format!("password_file = {:?}\n", place("other/secret"));
    assert_eq!(init(stand, &url("hashed", ""), &secret, &[("PGPASSWORD", "wrong")])?, Ok(()));
    let absent = secret.replace("secret", "absent");
    assert!(
        init(stand, &url("scram", ""), &absent, &[])?
            .is_err_and(|error| error.contains("absent: cannot be read"))
    );
    Ok(())
}

/// Whether `cachefence init` can connect with this URL, and what it says where not. Without guards there is nothing to
/// make that could fail.
fn init(stand: &Stand, url: &str, more: &str, variables: &[(&str, &str)]) -> Fallible<Result<(), String>> {
    let file = stand.home.path().join("cachefence.toml");
    fs::write(&file, format!("[postgres]\nurl = {url:?}\nslot = \"init\"\npublication = \"init\"\n{more}"))?;
    let output = Command::new(BINARY)
        .args(["init", "--config"])
        .arg(&file)
        .env_clear()
        .env("HOME", stand.home.path())
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("s3cret"), "{said}");
    Ok(if output.status.success() { Ok(()) } else { Err(said) })
}

/// Where we are stricter than psql: a CA in a server's place, which is what many self-signed certificates are.
async fn certificates_that_are_none(stand: &Stand) -> Outcome {
    stand.certificate("authority").await?;
    let url = |mode: &str| {
        stand.url("trusted", &format!("sslmode={mode}&sslrootcert={}", stand.pki.file("authority.pem")))
    };
    assert!(stand.psql(&url("verify-ca"), &[]).is_ok());
    let error = stand.ours(&url("verify-ca")).await.expect_err("a CA");
    assert!(error.contains("Postgres's certificate is that of a CA (basicConstraints CA:TRUE)"), "{error}");
    // Where nothing is verified it does not matter what it is.
    assert!(stand.agree(&stand.url("over_tls", "sslmode=require")).await);
    stand.certificate("server").await
}

/// A host where nobody listens, a standby, and the primary: each is found by what it is. A proxy follows the primary,
/// with every part of it secured, and takes a password that was changed.
async fn several_hosts(stand: Stand) -> Outcome {
    let replica = Postgres::replica(&stand.primary, &[]).await?;
    let (dead, standby, primary) = (free_port()?, replica.port(), stand.primary.port());
    let hosts = format!("127.0.0.1:{dead},127.0.0.1:{standby},127.0.0.1:{primary}");
    for (attrs, found) in [
        ("any", standby),
        ("read-write", primary),
        ("read-only", standby),
        ("primary", primary),
        ("standby", standby),
        ("prefer-standby", standby),
    ] {
        let url = stand.url_at("over_tls", &hosts, &format!("sslmode=require&target_session_attrs={attrs}"));
        let session = stand.ours(&url).await?;
        assert!(stand.agree(&url).await);
        assert!(session.ends_with(&format!(" {found}")), "{attrs}: {session}");
    }
    let two = format!("127.0.0.1:{dead},127.0.0.1:{primary}");
    assert!(!stand.agree(&stand.url_at("over_tls", &two, "target_session_attrs=standby")).await);
    assert!(stand.agree(&stand.url_at("over_tls", &two, "target_session_attrs=prefer-standby")).await);
    follows(&stand, &replica, &hosts).await
}

async fn follows(stand: &Stand, replica: &Postgres, hosts: &str) -> Outcome {
    let client = stand.primary.client().await?;
    for table in ["users", "items", "orders"] {
        let sql = format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, name text); INSERT INTO {table} VALUES (1, 'x')"
        );
        client.batch_execute(&sql).await?;
    }
    let secret = stand.home.path().join("rotated");
    fs::write(&secret, PASSWORD)?;
    let tls = format!("sslmode=verify-full&sslrootcert={}&channel_binding=require", stand.pki.file("ca.pem"));
    let redis = Redis::start(RedisOptions::default()).await?;
    let settings = format!(
        "[redis]\nurl = {:?}\n[postgres]\nurl = \"postgres://over_tls@{hosts}/app?{tls}\"\npassword_file = {secret:?}\n\
         [[source]]\nname = \"primary\"\n[[source]]\nname = \"replica\"\n\
         url = \"postgres://over_tls@127.0.0.1:{}/app?{tls}\"\npassword_file = {secret:?}\n{GUARDS}",
        redis.url(),
        replica.port(),
    );
    let proxy = Cachefence::start(Path::new(BINARY), &settings).await?;
    write(&stand.primary, &redis, "users", "user:1", 1).await?;
    let sql = "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
               WHERE usename = 'over_tls'";
    for server in [&stand.primary, replica] {
        let row = server.client().await?.query_one(sql, &[]).await?;
        let (all, over_tls): (i64, i64) = (row.get(0), row.get(1));
        assert!(all > 0 && all == over_tls, "{over_tls} of {all}");
    }
    let active = "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots";
    let before: i32 = client.query_one(active, &[]).await?.get(0);
    let changed = "SET password_encryption = 'scram-sha-256'; ALTER ROLE over_tls PASSWORD 'an0ther'";
    client.batch_execute(changed).await?;
    fs::write(&secret, "an0ther\n")?;
    client
        .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'over_tls'")
        .await?;
    wait_until("the stream to come again", PATIENCE, async || {
        let now = client.query_one(active, &[]).await.map(|row| row.get::<_, i32>(0));
        now.is_ok_and(|now| now != 0 && now != before)
    })
    .await?;
    write(&stand.primary, &redis, "users", "user:1", 1).await?;
    let (_, status) = proxy.get("/status").await?;
    for said in [proxy.log(), status] {
        assert!(!said.contains("s3cret") && !said.contains("an0ther"), "{said}");
    }
    Ok(())
}
