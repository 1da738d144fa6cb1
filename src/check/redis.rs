//! Redis: what it is, what the proxy's user may do there, and what becomes of the data.

use tokio::time::timeout;

use super::PATIENCE;
use super::report::{Report, Row};
use crate::cache::{CacheError, Connection, Endpoint, Reply, info_field, is_too_old, text};
use crate::config::{Config, RedisUrl, marker_key};
use crate::guard::Guards;

/// What is looked at once Redis answers.
const AFTER_CONNECTING: [&str; 7] = [
    "redis_version",
    "redis_role",
    "redis_cluster",
    "redis_rights",
    "redis_db",
    "redis_eviction",
    "redis_persistence",
];

/// Looks at Redis.
pub(super) async fn look(config: &Config, guards: &Guards, report: &mut Report) {
    let looked = timeout(2 * PATIENCE, ask_all(config, guards, report)).await;
    let error = match looked {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(_) => format!("no answer within {:?}", 2 * PATIENCE),
    };
    let missing: Vec<&'static str> =
        AFTER_CONNECTING.into_iter().filter(|name| report.rows.iter().all(|row| row.name != *name)).collect();
    report.push(
        Row::failed("redis", error)
            .means("nothing can be deleted, so the feed does not begin")
            .settings("redis.url of a Redis that answers, with the proxy's user and password"),
    );
    report.not_looked_at(&missing, "Redis cannot be asked");
}

async fn ask_all(config: &Config, guards: &Guards, report: &mut Report) -> Result<(), String> {
    let endpoint = Endpoint::new(config).map_err(|error| error.to_string())?;
    let mut connection = Connection::login(&endpoint).await.map_err(|error| error.to_string())?;
    let mut ask = async |command: &[&[u8]]| ask(&mut connection, command).await;
    // Not the name of a process that follows the slot: those are ended at its start.
    let name = format!("cachefence-check:{}", config.postgres.slot);
    if let Answer::Refused(error) = ask(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await?
        && error.starts_with("NOAUTH")
    {
        return Err(format!("Redis at {endpoint} wants a password: write it into redis.url"));
    }
    report.push(Row::good("redis", format!("{endpoint} answers")));
    match ask(&[b"INFO"]).await? {
        Answer::Reply(info) => of_info(text(&info).unwrap_or_default(), report),
        Answer::Refused(_) => {
            report.not_looked_at(&AFTER_CONNECTING[..3], "INFO is refused, see redis_rights")
        }
    }

    let mut missing = Missing::default();
    for (right, command) in probes(config, guards) {
        let command: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        if let Answer::Refused(error) = ask(&command).await? {
            missing.note(&right, &error);
        }
    }
    report.push(missing.row(config));

    for db in guards.dbs() {
        let selected = ask(&[b"SELECT", db.to_string().as_bytes()]).await?;
        let row = match selected {
            Answer::Reply(_) => Row::good("redis_db", "is there"),
            Answer::Refused(error) => Row::failed("redis_db", error)
                .settings(format!("databases {} (in redis.conf; a restart of Redis)", db + 1)),
        };
        report.push(row.on(db.to_string()));
    }

    let Answer::Reply(info) = ask(&[b"INFO"]).await? else {
        report.not_looked_at(&AFTER_CONNECTING[5..], "INFO is refused, see redis_rights");
        return Ok(());
    };
    let info = text(&info).unwrap_or_default();
    report.push(eviction(info));
    let save = match ask(&[b"CONFIG", b"GET", b"save"]).await? {
        Answer::Reply(Reply::Array(pair)) => pair.get(1).and_then(text).map(str::to_owned),
        _ => None,
    };
    report.push(persistence(info, save.as_deref()));
    Ok(())
}

enum Answer {
    Reply(Reply),
    /// Redis's own error.
    Refused(String),
}

async fn ask(connection: &mut Connection, command: &[&[u8]]) -> Result<Answer, String> {
    match connection.call(command).await {
        Ok(reply) => Ok(Answer::Reply(reply)),
        Err(CacheError::Refused { error, .. }) => Ok(Answer::Refused(error)),
        Err(error) => Err(error.to_string()),
    }
}

/// What this Redis is.
fn of_info(info: &str, report: &mut Report) {
    let field = |name| info_field(info, name).unwrap_or_default();
    let version = field("redis_version");
    report.push(if is_too_old(version) {
        Row::failed("redis_version", format!("{version}; 7.0 or later is needed (PEXPIRE ... LT)"))
    } else {
        Row::good("redis_version", version)
    });
    report.push(match (field("role"), field("master_host"), field("master_port")) {
        ("slave", host, port) => Row::failed("redis_role", format!("is a replica of {host}:{port}"))
            .means("nothing can be deleted here")
            .settings(format!("redis.url = \"redis://{host}:{port}/...\"")),
        _ => Row::good("redis_role", "is a master"),
    });
    report.push(if field("cluster_enabled") == "1" {
        Row::failed("redis_cluster", "is a node of a Redis Cluster")
            .means("Redis Cluster is not supported: keys are on other nodes too")
            .settings("redis.url of a single server")
    } else {
        Row::good("redis_cluster", "is a single server")
    });
}

/// A right, as ACL rules name it, and a command that needs it and does nothing.
type Probe = (String, Vec<Vec<u8>>);

/// Redis judges rights before arguments: a user without the right does not come to see what is wrong with these. UNLINK
/// has no wrong arguments, so it gets a key that nobody has; whether it may have the guards' keys, SET can tell.
fn probes(config: &Config, guards: &Guards) -> Vec<Probe> {
    let marker = marker_key(&config.postgres.slot);
    let words = |right: &str, command: &str| {
        (right.to_owned(), command.split(' ').map(|word| word.as_bytes().to_vec()).collect())
    };
    let mut probes = vec![
        words("+client|setname", &format!("CLIENT SETNAME cachefence-check:{}", config.postgres.slot)),
        words("+client|list", "CLIENT LIST ID 0"),
        words("+client|kill", "CLIENT KILL ID 0"),
        words("+info", "INFO server"),
        words("+command", "COMMAND"),
        words("+scan", "SCAN none"),
        words("+unlink", "UNLINK cachefence-check"),
        words("+select", &format!("SELECT {}", config.redis.db())),
        words(&format!("+get ~{marker}"), &format!("GET {marker}")),
        words(&format!("+set ~{marker}"), &format!("SET {marker} x NOSUCHOPTION")),
    ];
    for guard in guards {
        for template in &guard.templates {
            let mut key = Vec::new();
            template.render(|_| Some(b"cachefence-check"), &mut key);
            let set = [b"SET", &key[..], b"x", b"NOSUCHOPTION"].map(<[u8]>::to_vec);
            probes.push((format!("+set ~{}", template.glob()), set.to_vec()));
        }
    }
    probes
}

/// Rights that are missing, as ACL rules.
#[derive(Default)]
struct Missing(Vec<String>);

impl Missing {
    /// Of a command and its key only one may be refused.
    fn note(&mut self, right: &str, error: &str) {
        if !error.starts_with("NOPERM") {
            return;
        }
        let (command, key) = right.split_once(' ').unwrap_or((right, ""));
        let rule = if error.contains(" key") { key } else { command };
        if !rule.is_empty() && !self.0.iter().any(|noted| noted == rule) {
            self.0.push(rule.to_owned());
        }
    }

    fn row(&self, config: &Config) -> Row {
        const NAME: &str = "redis_rights";
        let url = RedisUrl::parse(&config.redis.url).ok();
        let user = url.as_ref().and_then(|url| url.user.as_deref()).unwrap_or("default");
        if self.0.is_empty() {
            return Row::good(NAME, format!("user {user:?} may do all that the proxy does"));
        }
        let rules = self.0.join(" ");
        Row::failed(NAME, format!("user {user:?} lacks {rules}"))
            .means("deletions wait for it, and the feed with them")
            .redis(format!("ACL SETUSER {user} {rules}"))
    }
}

/// What Redis throws away when it is full.
fn eviction(info: &str) -> Row {
    const NAME: &str = "redis_eviction";
    let max: i64 = info_field(info, "maxmemory").and_then(|max| max.parse().ok()).unwrap_or_default();
    let policy = info_field(info, "maxmemory_policy").unwrap_or_default();
    if max == 0 {
        return Row::good(NAME, "no maxmemory: nothing is evicted");
    }
    let found = format!("{policy} at {}", super::size(max));
    if policy.starts_with("allkeys-") {
        return Row::warning(NAME, found)
            .means(
                "the marker may be evicted, and the next start or reconnect then purges the guarded keys; with volatile-* \
                 only keys with a TTL go, so give every key one",
            )
            .redis(format!("CONFIG SET maxmemory-policy {}", policy.replacen("allkeys", "volatile", 1)));
    }
    if policy == "noeviction" {
        return Row::warning(NAME, found)
            .means(
                "when it is full fills fail, and the marker cannot be written: a restart of Redis or of the proxy then purges",
            )
            .redis("CONFIG SET maxmemory-policy volatile-lru");
    }
    Row::good(NAME, found)
}

/// Data that comes back from a disk is as old as the disk's copy; the marker in it says how old.
fn persistence(info: &str, save: Option<&str>) -> Row {
    const NAME: &str = "redis_persistence";
    if info_field(info, "loading") == Some("1") {
        return Row::warning(NAME, "is loading its data: everything waits");
    }
    let aof = info_field(info, "aof_enabled") == Some("1");
    let rdb = save.map(|save| !save.is_empty());
    let found = match (aof, rdb) {
        (true, Some(true)) => "append-only file and snapshots",
        (true, _) => "append-only file",
        (false, Some(true)) => "snapshots",
        (false, Some(false)) => return Row::good(NAME, "none: a restart empties it"),
        (false, None) => "no append-only file; snapshots are not known (CONFIG is refused)",
    };
    Row::good(
        NAME,
        format!("{found}: after a restart what the copy has missed is deleted again, or all is purged"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Standing;

    #[test]
    fn a_missing_right_is_named_once_and_as_a_rule() {
        let mut missing = Missing::default();
        missing.note("+set ~user:*", "NOPERM this user has no permissions to run the 'set' command");
        missing.note("+set ~order:*", "NOPERM User proxy has no permissions to run the 'set' command");
        missing.note("+unlink", "NOPERM No permissions to access a key");
        missing.note(
            "+get ~cachefence:a",
            "NOPERM this user has no permissions to access one of the keys used as arguments",
        );
        missing.note("+set ~cachefence:a", "NOPERM No permissions to access a key");
        missing.note("+scan", "ERR invalid cursor");
        assert_eq!(missing.0, ["+set", "~cachefence:a"]);
    }

    #[test]
    fn what_eviction_does_to_the_marker() {
        let row =
            |max: &str, policy: &str| eviction(&format!("maxmemory:{max}\r\nmaxmemory_policy:{policy}\r\n"));
        assert_eq!(row("0", "allkeys-lru").standing, Standing::Good);
        assert_eq!(row("1048576", "volatile-ttl").standing, Standing::Good);
        assert_eq!(row("1048576", "noeviction").standing, Standing::Warning);
        let evicts = row("1048576", "allkeys-lfu").to_string();
        assert!(
            evicts.starts_with("WARNING redis_eviction              allkeys-lfu at 1024 kB\n"),
            "{evicts}"
        );
        assert!(evicts.ends_with("redis-cli: CONFIG SET maxmemory-policy volatile-lfu"), "{evicts}");
    }

    #[test]
    fn what_this_redis_is() {
        let standing = |info: &str| {
            let mut report = Report::default();
            of_info(info, &mut report);
            report.rows.iter().map(|row| row.standing == Standing::Good).collect::<Vec<_>>()
        };
        assert_eq!(standing("redis_version:7.0.15\nrole:master\ncluster_enabled:0\n"), [true; 3]);
        assert_eq!(
            standing("redis_version:6.2.1\nrole:slave\nmaster_host:h\nmaster_port:1\ncluster_enabled:1\n"),
            [false; 3]
        );
    }

    #[test]
    fn a_restart_brings_back_what_was_saved() {
        let row = |info: &str, save| persistence(info, save).found;
        assert!(row("aof_enabled:1", Some("")).starts_with("append-only file: after a restart"));
        assert!(row("aof_enabled:0", Some("3600 1")).starts_with("snapshots: "));
        assert_eq!(row("aof_enabled:0", Some("")), "none: a restart empties it");
        assert!(row("aof_enabled:0", None).contains("CONFIG is refused"));
    }
}
