//! What a setting's own type cannot tell: forms of addresses and names, and settings that contradict each other.

use super::address::{Address, RedisUrl, redact, socket_mode};
use super::schema::Wrong;
use super::slot::LONGEST;
use super::{Config, Contract, duration};
use crate::guard::Guards;
use crate::pg::error::PgError;

/// All that is wrong with settings of the right shape.
pub(super) fn check(config: &Config) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    listeners(config, &mut wrong);
    redis(config, &mut wrong);
    postgres(config, &mut wrong);
    sources(config, &mut wrong);
    fence(config, &mut wrong);
    guards(config, &mut wrong);
    wrong
}

fn listeners(config: &Config, wrong: &mut Vec<Wrong>) {
    let listen = &config.proxy.listen;
    if listen.is_empty() {
        let what = "found an empty list; name at least one address, such as \"127.0.0.1:6380\"";
        wrong.push(Wrong::new("proxy.listen", what));
    }
    for (n, text) in listen.iter().enumerate() {
        let path = format!("proxy.listen[{n}]");
        if let Err(error) = Address::parse_listen(text) {
            wrong.push(Wrong::new(path, format!("found {text:?}; {error}")));
        } else if listen[..n].contains(text) && !text.ends_with(":0") {
            wrong.push(Wrong::new(path, format!("{text:?} is in the list already; remove it")));
        }
    }
    if let Some(mode) = &config.proxy.unix_socket_mode
        && let Err(error) = socket_mode(mode)
    {
        wrong.push(Wrong::new("proxy.unix_socket_mode", format!("found {mode:?}; {error}")));
    }
    let admin = &config.admin.listen;
    if let Err(error) = Address::parse_tcp(admin) {
        wrong.push(Wrong::new("admin.listen", format!("found {admin:?}; {error}")));
    } else if listen.contains(admin) && !admin.ends_with(":0") {
        wrong.push(Wrong::new(
            "admin.listen",
            format!("{admin:?} is in proxy.listen as well; use another port"),
        ));
    }
}

fn redis(config: &Config, wrong: &mut Vec<Wrong>) {
    let url = RedisUrl::parse(&config.redis.url);
    if let Err(error) = &url {
        wrong.push(Wrong::new("redis.url", format!("found {:?}; {error}", redact(&config.redis.url))));
    }
    let Some(tls) = &config.redis.tls else { return };
    if url.is_ok_and(|url| !url.tls) {
        let what = "redis.url is without TLS; write it with rediss://, or remove redis.tls";
        wrong.push(Wrong::new("redis.tls", what));
    }
    let missing = match (&tls.cert, &tls.key) {
        (Some(_), None) => "key",
        (None, Some(_)) => "cert",
        _ => return,
    };
    let what = "it is missing: a certificate and its key go together";
    wrong.push(Wrong::new(format!("redis.tls.{missing}"), what));
}

fn postgres(config: &Config, wrong: &mut Vec<Wrong>) {
    let postgres = &config.postgres;
    let error = postgres.target().err();
    wrong.extend(error.map(|error| Wrong::new("postgres.url", target_error(&postgres.url, &error))));
    let slot_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if postgres.temporary_slot && postgres.contract == Contract::Strict {
        // A new slot waits for commits that wait for us: each lost connection would need a person.
        let what = "found true, with which postgres.contract = \"strict\" cannot be kept: a broken connection would lose \
                    commits; write false, or set postgres.contract = \"bounded\"";
        wrong.push(Wrong::new("postgres.temporary_slot", what));
    }
    if !(1..=LONGEST).contains(&postgres.slot.len()) || !postgres.slot.bytes().all(slot_byte) {
        let what = format!("found {:?}; allowed: 1 to 63 of the characters a-z, 0-9 and _", postgres.slot);
        wrong.push(Wrong::new("postgres.slot", what));
    }
    // Longer ones Postgres would cut off, and then not find again.
    let publication = &postgres.publication;
    if !(1..=63).contains(&publication.len()) || publication.contains('\0') {
        let what = format!("found {publication:?}; allowed: a publication's name, 1 to 63 bytes");
        wrong.push(Wrong::new("postgres.publication", what));
    }
    let name = &postgres.application_name;
    if !(1..=63).contains(&name.len()) || !name.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        let what = format!("found {name:?}; allowed: 1 to 63 printable ASCII characters");
        wrong.push(Wrong::new("postgres.application_name", what));
    }
}

/// What is wrong with a URL of Postgres. No message has a value of it.
fn target_error(url: &str, error: &PgError) -> String {
    let reason = match error {
        PgError::Url(reason) => reason.clone(),
        error => error.to_string(),
    };
    format!(
        "found {:?}: {reason}; allowed: \"postgres://user[:password]@host[:port][,...]/database[?sslmode=...]\", with \
         special characters of the user and password percent-encoded",
        redact(url)
    )
}

fn sources(config: &Config, wrong: &mut Vec<Wrong>) {
    for (n, source) in config.sources.iter().enumerate() {
        let before = &config.sources[..n];
        if source.name.is_empty() {
            wrong.push(Wrong::new(
                format!("source[{n}].name"),
                "found \"\"; give it a name for metrics and logs",
            ));
        }
        if let Some(first) = before.iter().position(|other| other.name == source.name) {
            let what = format!("source[{first}] is called {:?} already; give each its own name", source.name);
            wrong.push(Wrong::new(format!("source[{n}].name"), what));
        }
        match &source.url {
            Some(url) => {
                let error = source.target().err();
                let what = error.map(|error| target_error(url, &error));
                wrong.extend(what.map(|what| Wrong::new(format!("source[{n}].url"), what)));
            }
            None if source.password_file.is_some() => {
                let what =
                    "it is for the source's url, which is missing; remove it: postgres.password_file counts";
                wrong.push(Wrong::new(format!("source[{n}].password_file"), what));
            }
            None => wrong.extend(before.iter().position(|other| other.url.is_none()).map(|first| {
                let what = format!(
                    "it is missing, which means the feed's own primary, and source[{first}] is that already; \
                     name the replica's URL"
                );
                Wrong::new(format!("source[{n}].url"), what)
            })),
        }
    }
}

fn fence(config: &Config, wrong: &mut Vec<Wrong>) {
    let fence = &config.fence;
    if fence.history < fence.lease_ttl {
        let what = format!(
            "found {}; allowed: at least fence.lease_ttl, which is {}, or a lease would outlive the writes it is \
             judged by",
            duration::print(fence.history),
            duration::print(fence.lease_ttl)
        );
        wrong.push(Wrong::new("fence.history", what));
    }
}

fn guards(config: &Config, wrong: &mut Vec<Wrong>) {
    match Guards::new(&config.guards, config.redis.db()) {
        Err(error) => wrong.push(Wrong::new(error.setting, error.problem.to_string())),
        Ok(guards) => {
            let marker = super::marker_key(&config.postgres.slot);
            for id in guards.matching(config.redis.db(), marker.as_bytes()) {
                let index = usize::from(id.0);
                let keys = guards.get(id).into_iter().flat_map(|guard| &guard.templates);
                let template = keys.into_iter().position(|template| template.matches(marker.as_bytes()));
                let what =
                    format!("it covers {marker:?}, the proxy's own key; choose another shape for these keys");
                wrong
                    .push(Wrong::new(format!("guard[{index}].keys[{}]", template.unwrap_or_default()), what));
            }
        }
    }
}
