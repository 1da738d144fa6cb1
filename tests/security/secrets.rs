//! Passwords are in no log, no answer and no error, whatever goes wrong with them.

use std::process::{Command, Stdio};

use cachefence::demo::servers::{Cachefence, wait_until};

use super::wire::{BINARY, Fallible, Outcome, PATIENCE, Wire};
use super::{SECRET, Servers, password};

/// Fails if a text has a password in it, in plain or as a URL or Base64 would have it.
fn is_clean(what: &str, text: &str) -> Outcome {
    let core = SECRET.to_ascii_lowercase();
    match text.lines().find(|line| line.to_ascii_lowercase().contains(&core)) {
        Some(line) => Err(format!("{what} tells a password: {line}").into()),
        None => Ok(()),
    }
}

/// A proxy that logs all it can, whose sources cannot log in, with clients that log in, fail to, and make mistakes.
pub async fn a_running_proxy_tells_no_password(servers: &mut Servers) -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), password("file"))?;
    let place = format!("127.0.0.1:{}/app", servers.postgres.port());
    let sources = format!(
        "[[source]]\nname = \"wrong\"\nurl = \"postgres://fence:wrong{SECRET}@{place}\"\n\
         [[source]]\nname = \"file\"\nurl = \"postgres://fence@{place}\"\npassword_file = {:?}\n\
         [[source]]\nname = \"words\"\nurl = \"host=127.0.0.1 port=1 user=fence password='other {SECRET}' dbname=app\"\n\
         [fence]\n",
        file.path()
    );
    let text = servers.settings("secrets", &[]) + &sources;
    let mut proxy = Cachefence::launch_logging(BINARY.as_ref(), &text, Some("trace"))?;
    proxy.ready().await?;
    let direct = &mut servers.direct().await?;
    direct.cmd(&["ACL", "SETUSER", "app", "on", &format!(">{}", password("client")), "~*", "+@all"]).await?;
    let mut wire = Wire::connect(proxy.address()).await?;
    for (line, answer) in [
        (format!("AUTH app {}", password("client")), "+OK"),
        (format!("AUTH app {}", password("wrong")), "-WRONGPASS"),
        (format!("AUTH {}", password("redis")), "+OK"),
        (format!("HELLO 3 AUTH app {}", password("client")), "%"),
        (format!("HELLO 9 AUTH app {}", password("client")), "-NOPROTO"),
        (format!("AUTHX {}", password("client")), "-ERR unknown command"),
        ("GET user:1".into(), "_"),
        ("SET user:1 v".into(), "+OK"),
        ("FENCE STATUS".into(), "="),
        ("FENCE EXPLAIN user:1".into(), "*"),
    ] {
        let said = wire.cmd(&line).await?;
        assert!(said.starts_with(answer), "{line}: {said}");
        // What the client itself has just said Redis may repeat.
        if !line.starts_with("AUTHX") {
            is_clean(&line, &said)?;
        }
    }
    wire.send(format!("*2\r\n$4\r\nAUTH\r\n+{}\r\n", password("client")).as_bytes()).await?;
    is_clean("a protocol error", &String::from_utf8_lossy(&wire.rest().await?))?;
    wait_until("the sources to be called lost", PATIENCE, async || {
        proxy
            .get("/readyz")
            .await
            .is_ok_and(|(_, body)| ["wrong", "file", "words"].iter().all(|of| body.contains(of)))
    })
    .await?;
    servers.redis.kill().await?;
    let mut wire = Wire::connect(proxy.address()).await?;
    is_clean("the error of a lost Redis", &wire.cmd("PING").await?)?;
    for path in ["/", "/status", "/metrics", "/readyz", "/explain?key=user%3A1"] {
        is_clean(path, &proxy.get(path).await?.1)?;
    }
    let pid = proxy.pid().ok_or("it runs")?;
    is_clean("the list of processes", &std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?)?;
    proxy.stop().await?;
    let log = proxy.log();
    assert!(log.contains("TRACE") && log.contains("DEBUG"), "all of the log was looked at");
    is_clean("the log", &log)
}

/// Runs a command to its end; everything that it says.
fn said(command: &[&str], settings: &str, variables: &[(&str, &str)]) -> Fallible<String> {
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("cachefence.toml"), settings)?;
    let mut process = Command::new(BINARY);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CACHEFENCE_"))
    {
        process.env_remove(name);
    }
    process.args(command).current_dir(directory.path()).env("CACHEFENCE_LOG", "trace").stdin(Stdio::null());
    let output = process.envs(variables.iter().copied()).output()?;
    assert!(!output.status.success(), "{command:?} with {settings}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// Settings that are wrong around a password: what is wrong is said, and not what is secret.
#[test]
fn wrong_settings_tell_no_password() -> Outcome {
    let good = "url = \"postgres://fence@127.0.0.1:1/app\"";
    let postgres = |url: &str| format!("[postgres]\n{url}\n");
    let redis = |line: &str| format!("[postgres]\n{good}\n[redis]\n{line}\n");
    let key = tempfile::NamedTempFile::new()?;
    std::fs::write(
        key.path(),
        format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"),
    )?;
    let place = key.path().display();
    for settings in [
        redis(&format!("url = \"reds://:{SECRET}@h\"")),
        redis(&format!("url = \"redis://u:{SECRET}@h:x/0\"")),
        redis(&format!("url = \"redis://u:p@ss{SECRET}@h:x/0\"")),
        redis(&format!("url = \":{SECRET}@h\"")),
        redis(&format!("url = [\"redis://:{SECRET}@h\"]")),
        redis(&format!("url = {{ password = \"{SECRET}\" }}")),
        redis(&format!("url = \"redis://:{SECRET}@h")),
        redis(&format!("url = redis://:{SECRET}@h")),
        redis(&format!("password = \"{SECRET}\"")),
        redis(&format!("upstream = \"redis://:{SECRET}@h\"\nurl = \"x\"")).replace("upstream = ", "uri = "),
        postgres(&format!("url = \"postgres://u:{SECRET}@h:x/d\"")),
        postgres(&format!("url = \"postgres//u:{SECRET}@h/d\"")),
        postgres(&format!("url = \"host=h password={SECRET} nosuch=1\"")),
        postgres(&format!("url = \"postgres://h/d?password={SECRET}&nosuch=1\"")),
        postgres(&format!("url = \"postgres://h/d?sslpassword={SECRET}\"")),
        postgres(&format!("url = 7\npassword = \"{SECRET}\"")),
        postgres(&format!("{good}\n[[source]]\nname = \"s\"\nurl = \"postgres://u:{SECRET}@h:x/d\"")),
        postgres(&format!("{good}\n[[source]]\nname = \"s\"\npassword = \"{SECRET}\"")),
        postgres(&format!("{good}\n[proxy]\ntls = {{ cert = \"{place}\", key = \"{place}\" }}")),
    ] {
        is_clean(&settings, &said(&["run"], &settings, &[])?)?;
    }
    let secret = format!("reds://:{SECRET}@h");
    for name in [
        "CACHEFENCE_REDIS__URL",
        "CACHEFENCE_REDIS__PASSWORD",
        "CACHEFENCE_POSTGRES__URL",
        "CACHEFENCE_SOURCE",
    ] {
        is_clean(name, &said(&["run"], &postgres(good), &[(name, &secret)])?)?;
    }
    Ok(())
}

/// Commands that cannot log in say so, and not with what.
pub fn a_login_that_fails_tells_no_password(servers: &Servers) -> Outcome {
    let wrong_redis = servers.settings("wrong", &[(&password("redis"), &password("wrong"))]);
    let wrong_postgres = servers.settings("wrong", &[(&password("postgres"), &password("wrong"))]);
    for (command, settings, expected) in [
        (&["check"][..], &wrong_redis, "WRONGPASS"),
        (&["check", "--json"], &wrong_redis, "WRONGPASS"),
        (&["purge", "--guard", "users"], &wrong_redis, "WRONGPASS"),
        (&["check"], &wrong_postgres, "password authentication failed"),
        (&["check", "--json"], &wrong_postgres, "password authentication failed"),
        (&["init"], &wrong_postgres, "password authentication failed"),
    ] {
        let said = said(command, settings, &[])?;
        // In the table, lines are broken.
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(expected), "{command:?}: {said}");
        is_clean(&format!("{command:?}"), &said)?;
    }
    Ok(())
}
