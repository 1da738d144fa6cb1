//! What the log says of refused fills and of what comes and goes: enough, once, and on one line.

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use cachefence::demo::servers::{Cachefence, StopMode, wait_until};
use support::{BINARY, Fallible, Outcome, PATIENCE, Setup, World};

/// People by their names, which can be anything.
const SETTINGS: &str = "
[[guard]]
table = \"users\"
keys = [\"user:<id>\"]

[[guard]]
table = \"badges\"
keys = [\"badge:<note>\"]
unproven = \"refuse\"
";

async fn world(guards: &str, filter: &str) -> Fallible<World> {
    let world = Setup::new(support::DEFAULT).replica().start().await?;
    world.sql.batch_execute("ALTER TABLE badges REPLICA IDENTITY FULL").await?;
    world.sql.batch_execute("ALTER PUBLICATION cachefence ADD TABLE badges").await?;
    let World { mut proxy, redis, replica, sql, primary, servers, .. } = world;
    proxy.stop().await?;
    let settings = servers.clone() + guards;
    let mut proxy = Cachefence::launch_logging(Path::new(BINARY), &settings, Some(filter))?;
    proxy.ready().await?;
    let world = World { proxy, redis, replica, sql, primary, servers, guards: guards.into() };
    world.level().await?;
    Ok(world)
}

fn lines(log: &str, with: &str) -> Vec<String> {
    log.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
}

#[tokio::test]
async fn many_refused_fills_are_few_lines() -> Outcome {
    let world = world(SETTINGS, "info").await?;
    let before = world.snapshot().await?;
    world.rename(1, "Ada").await?;
    world.applied().await?;
    let mut client = world.client().await?;
    for _ in 0..2000 {
        client.cmd(&["ASOF", &before, "SET", "user:1", "old"]).await?;
    }
    assert_eq!(world.fills("stale", "refused").await?, 2000.0);
    let told = lines(&world.proxy.log(), "fills refused");
    assert!(
        told[0].contains(" INFO ") && told[0].contains("fills=1 last_guard=public.users last_key=user:1"),
        "{told:?}"
    );
    // One every 10 s, on a machine that is as slow as it likes.
    assert!(told.len() < 20, "{}", told.len());
    Ok(())
}

#[tokio::test]
async fn at_debug_level_each_has_a_line_whatever_its_key_is() -> Outcome {
    let world = world(SETTINGS, "info,cachefence::refusals=debug").await?;
    let mut client = world.client().await?;
    let hostile = "badge:x\r\n2026-01-01 ERROR \u{1b}[31mowned\u{202e}";
    for key in [hostile, "badge:2", &format!("badge:{}", "y".repeat(5000))] {
        client.cmd(&["SET", key, "old"]).await?;
    }
    let told = lines(&world.proxy.log(), "fill refused");
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].contains("badge:x\\r\\n2026-01-01 ERROR \\x1b[31mowned\\xe2\\x80\\xae"), "{}", told[0]);
    assert!(told[0].contains("verdict=\"unproven\"") && told[0].contains("evidence="), "{}", told[0]);
    assert!(told[2].len() < 1000, "{}", told[2].len());
    assert!(lines(&world.proxy.log(), "2026-01-01 ERROR").iter().all(|line| line.contains("badge:x")));
    Ok(())
}

#[tokio::test]
async fn hidden_keys_are_in_no_line_and_on_no_page() -> Outcome {
    let settings = SETTINGS.to_owned() + "\n[admin]\nshow_keys = false\n";
    let world = world(&settings, "info,cachefence::refusals=debug,cachefence::proxy=debug").await?;
    world.client().await?.cmd(&["SET", "badge:ada@example.org", "old"]).await?;
    assert_eq!(lines(&world.proxy.log(), "key=(hidden)").len(), 2, "one of either level");
    assert!(!world.proxy.log().contains("ada@example.org"));
    Ok(())
}

/// Who only observes needs no Redis for anything, and still says when it is away.
#[tokio::test]
async fn what_comes_and_goes_is_told_once_while_it_observes_too() -> Outcome {
    for mode in ["enforce", "observe"] {
        let mut world = world(&format!("\n[proxy]\nmode = \"{mode}\"\n{SETTINGS}"), "info").await?;
        world.redis.kill().await?;
        let away =
            async || matches!(world.proxy.get("/readyz").await, Ok((503, body)) if body.contains("Redis: "));
        wait_until("the proxy to see that Redis is away", PATIENCE, away).await?;
        world.replica.as_mut().ok_or("no replica")?.stop(StopMode::Immediate).await?;
        let told = async || !lines(&world.proxy.log(), "source=\"replica-1\" error=").is_empty();
        wait_until("the source to be missed", PATIENCE, told).await?;
        // What is still so at the next try is not said again.
        for line in ["source=\"replica-1\" error=", "deletions wait, and the feed with them"] {
            let told = lines(&world.proxy.log(), line).len();
            assert!(told <= 3, "{mode}: {line}: {}", world.proxy.log());
        }
    }
    Ok(())
}

#[test]
fn each_line_of_json_is_an_object() -> Outcome {
    let file = tempfile::NamedTempFile::new()?;
    let nobody = "[redis]\nurl = \"redis://127.0.0.1:1\"\n[postgres]\nurl = \"postgres://a@127.0.0.1:1/a\"\n\
                  [admin]\nlisten = \"127.0.0.1:0\"\n[proxy]\nlisten = [\"127.0.0.1:0\"]\n";
    std::fs::write(file.path(), nobody)?;
    let mut child = Command::new(BINARY)
        .args(["run", "--log-format", "json", "--config"])
        .arg(file.path())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut seen = Vec::new();
    for line in BufReader::new(child.stderr.take().ok_or("no pipe")?).lines() {
        let line: serde_json::Value = serde_json::from_str(&line?)?;
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
        seen.push(line["message"].as_str().unwrap_or_default().to_owned());
        if seen.iter().any(|line| line.contains("the feed is interrupted")) {
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    assert!(seen.iter().any(|line| line == "listening"), "{seen:?}");
    Ok(())
}
