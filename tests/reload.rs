//! Settings that are read again while clients are served: guards and sources that come, go and change, and what is refused.

mod support;

use cachefence::demo::client::{Client, Reply};
use cachefence::demo::servers::wait_until;
use support::{EXACT, Fallible, Outcome, PATIENCE, Setup, World, assert_passed, assert_refused};

/// A guard of the table that no guard knows at first.
const BADGES: &str = "
[[guard]]
table = \"badges\"
keys = [\"badge:<id>\"]
reply = \"error\"
unproven = \"refuse\"
";

/// Reloads with these guards; what the proxy has answered.
async fn reload(world: &World, guards: &str) -> Fallible<(u16, String)> {
    world.proxy.rewrite(&(world.servers.clone() + guards))?;
    Ok(world.proxy.reload().await?)
}

/// The same, which has to be taken, and is waited for.
async fn reloaded(world: &mut World, guards: &str) -> Fallible<String> {
    let (status, body) = reload(world, guards).await?;
    assert_eq!(status, 200, "{body}");
    world.proxy.ready().await?;
    Ok(body)
}

/// The same, which has to be refused, and to change nothing.
async fn refused(world: &World, guards: &str) -> Fallible<String> {
    let before = guarded(world).await?;
    let (status, body) = reload(world, guards).await?;
    assert_eq!(status, 400, "{body}");
    assert!(body.starts_with("not reloaded; the old settings go on\n"), "{body}");
    assert_eq!(guarded(world).await?, before);
    Ok(body)
}

/// Tables and keys of the guards in force.
async fn guarded(world: &World) -> Fallible<String> {
    Ok(world.status().await?["guards"].to_string())
}

async fn plant(world: &World, key: &str) -> Outcome {
    assert_eq!(world.redis(&["SET", key, "from before"]).await?, Reply::ok());
    Ok(())
}

/// A client that is connected all the time, and one that waits in Redis.
struct Stayers {
    plain: Client,
    waiting: tokio::task::JoinHandle<std::io::Result<Reply>>,
}

impl Stayers {
    async fn arrive(world: &World) -> Fallible<Self> {
        let mut blocked = world.client().await?;
        let waiting = tokio::spawn(async move { blocked.cmd(&["BLPOP", "queue", "0"]).await });
        let mut redis = world.redis.client().await?;
        wait_until("a client to wait in Redis", PATIENCE, async || {
            let clients = redis.cmd(&["INFO", "clients"]).await.ok().and_then(|reply| reply.text());
            clients.is_some_and(|clients| clients.contains("blocked_clients:1"))
        })
        .await?;
        Ok(Self { plain: world.client().await?, waiting })
    }

    async fn are_still_served(mut self, world: &World) -> Outcome {
        assert_eq!(self.plain.cmd(&["ECHO", "here"]).await?.text(), Some("here".into()));
        assert!(!self.waiting.is_finished());
        world.redis(&["RPUSH", "queue", "at last"]).await?;
        assert!(matches!(self.waiting.await??, Reply::Array(_)));
        Ok(())
    }
}

#[tokio::test]
async fn guards_change_while_clients_stay() -> Outcome {
    let mut world = Setup::new(EXACT).start().await?;
    let stayers = Stayers::arrive(&world).await?;
    what_is_wrong_changes_nothing(&world).await?;
    a_guard_begins(&mut world).await?;
    policies_hold_at_once(&mut world).await?;
    other_keys_make_another_guard(&mut world).await?;
    a_guard_ends(&mut world).await?;
    what_is_on_its_way_does_not_outlive_the_beginning(&mut world).await?;
    a_crash_in_the_middle_begins_again(&mut world, stayers).await?;
    a_redis_of_before_a_guard_was_gone_is_not_believed(&mut world).await?;
    nothing_is_removed_while_another_guard_is_broken(&mut world).await
}

async fn what_is_wrong_changes_nothing(world: &World) -> Outcome {
    let said = refused(world, &format!("{EXACT}{BADGES}")).await?;
    assert!(said.contains("ALTER PUBLICATION") && said.contains("badges"), "{said}");
    let said = refused(world, &EXACT.replace("<id>", "<nothing>")).await?;
    assert!(said.contains("nothing"), "{said}");
    let said =
        refused(world, &format!("{EXACT}[proxy]\nmax_clients = 5\n[fence]\nmax_keys = 1000\n")).await?;
    assert!(
        said.contains("proxy.max_clients, fence.max_keys: cannot be changed while the proxy runs"),
        "{said}"
    );
    world.proxy.write_settings("[postgres\n")?;
    let (status, said) = world.proxy.reload().await?;
    assert!(status == 400 && said.contains("not TOML"), "{said}");
    assert!(world.proxy.log().contains("settings not reloaded: the old ones go on"));
    assert_eq!(world.proxy.get("/reload").await?.0, 405);
    assert!(reload(world, EXACT).await?.1.contains("nothing has changed"));
    world.warm(1).await
}

/// What was cached before is gone, what is proven by something from before is refused, and commits delete. Other guards
/// have not noticed: their keys and their history are what they were.
async fn a_guard_begins(world: &mut World) -> Outcome {
    world.sql.batch_execute("ALTER PUBLICATION cachefence ADD TABLE badges").await?;
    world.sql.batch_execute("INSERT INTO badges VALUES (1, 'a')").await?;
    let old = world.snapshot().await?;
    world.rename(5, "v2").await?;
    world.level().await?;
    let newer = world.snapshot().await?;
    plant(world, "badge:1").await?;
    let mut in_transaction = world.client().await?;
    for command in [&["MULTI"][..], &["SET", "badge:2", "queued without a guard"]] {
        assert!(!matches!(in_transaction.cmd(command).await?, Reply::Error(_)));
    }

    let said = reloaded(world, &format!("{EXACT}{BADGES}")).await?;
    assert!(said.contains("guard public.badges: added"), "{said}");
    world.gone("badge:1").await?;
    assert_eq!(world.purges("guards_added").await?, 1.0);
    assert_eq!(world.purges("guards_changed").await?, 0.0, "{}", world.proxy.log());
    assert_eq!(in_transaction.cmd(&["EXEC"]).await?, Reply::Nil, "what was queued was never judged");
    assert_eq!(world.held("user:1").await?, Some("v1".into()), "other guards' keys stay");

    let mut client = world.client().await?;
    for evidence in [&old, &newer] {
        assert_refused(&client.cmd(&["ASOF", evidence, "SET", "badge:3", "x"]).await?, "STALE");
    }
    assert_refused(&client.cmd(&["ASOF", &old, "SET", "user:5", "v1"]).await?, "STALE");
    assert_passed(&client.cmd(&["ASOF", &newer, "SET", "user:5", "v2"]).await?);
    world.level().await?;
    let now = world.snapshot().await?;
    assert_passed(&client.cmd(&["ASOF", &now, "SET", "badge:1", "a"]).await?);
    world.sql.execute("UPDATE badges SET note = 'b' WHERE id = 1", &[]).await?;
    world.gone("badge:1").await?;
    // A deletion is counted when Redis has answered it, which is after it can be seen.
    wait_until("the deletion to be counted", PATIENCE, async || {
        let writes = world.proxy.metric("cachefence_writes_total{guard=\"public.badges\"}").await;
        writes.is_ok_and(|writes| writes >= 1.0)
    })
    .await?;
    Ok(())
}

async fn policies_hold_at_once(world: &mut World) -> Outcome {
    let mut client = world.client().await?;
    assert_refused(&client.cmd(&["SET", "user:6", "v1"]).await?, "UNPROVEN");
    let allowing = EXACT.replace("unproven = \"refuse\"", "unproven = \"allow\"");
    let said = reloaded(world, &format!("{allowing}{BADGES}")).await?;
    assert_eq!(said, "reloaded\nguard public.users: policy changed\n");
    assert_passed(&client.cmd(&["SET", "user:6", "v1"]).await?);
    assert_eq!(reloaded(world, &format!("{EXACT}{BADGES}")).await?, said);
    assert_refused(&client.cmd(&["SET", "user:7", "v1"]).await?, "UNPROVEN");
    Ok(())
}

async fn other_keys_make_another_guard(world: &mut World) -> Outcome {
    plant(world, "name:1").await?;
    plant(world, "badge:9").await?;
    let more = EXACT.replace("\"user:<id>\"", "\"user:<id>\", \"name:<id>\"");
    world.proxy.rewrite(&format!("{}{more}{BADGES}", world.servers))?;
    world.proxy.hang_up()?;
    wait_until("the signal to have been heard", PATIENCE, async || {
        guarded(world).await.is_ok_and(|guards| guards.contains("name:<id>"))
    })
    .await?;
    world.proxy.ready().await?;
    for key in ["name:1", "user:1"] {
        world.gone(key).await?;
    }
    assert_eq!(world.held("badge:9").await?, Some("from before".into()), "another guard's");
    plant(world, "name:2").await?;
    world.rename(2, "v2").await?;
    world.gone("name:2").await
}

async fn a_guard_ends(world: &mut World) -> Outcome {
    let said = reloaded(world, EXACT).await?;
    assert!(said.contains("guard public.badges: removed; its keys stay as they are"), "{said}");
    assert_passed(&world.client().await?.cmd(&["SET", "badge:1", "nobody judges"]).await?);
    world.sql.execute("UPDATE badges SET note = 'c' WHERE id = 1", &[]).await?;
    world.applied().await?;
    assert_eq!(world.held("badge:1").await?, Some("nobody judges".into()));
    Ok(())
}

/// A SET of before the guard, which Redis executes only later, would come after the deletion of the guard's keys.
async fn what_is_on_its_way_does_not_outlive_the_beginning(world: &mut World) -> Outcome {
    let mut redis = world.redis.client().await?;
    let mut client = world.client().await?;
    assert_eq!(redis.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]).await?, Reply::ok());
    let setting = tokio::spawn(async move {
        let reply = client.cmd(&["SET", "badge:7", "on its way"]).await;
        (client, reply)
    });
    wait_until("the SET to be held back by Redis", PATIENCE, async || {
        let list =
            redis.cmd(&["CLIENT", "LIST"]).await.ok().and_then(|reply| reply.text()).unwrap_or_default();
        list.lines().any(|line| line.contains(" cmd=set ") && line.contains("name=cachefence:"))
    })
    .await?;
    let (status, said) = reload(world, &format!("{EXACT}{BADGES}")).await?;
    assert_eq!(status, 200, "{said}");
    let (mut client, reply) = setting.await?;
    assert!(matches!(reply?, Reply::Error(_)), "it may have been executed, or not");
    assert_eq!(redis.cmd(&["CLIENT", "UNPAUSE"]).await?, Reply::ok());
    world.proxy.ready().await?;
    assert_eq!(client.cmd(&["GET", "badge:7"]).await?, Reply::Nil, "the same client, on another connection");
    assert_eq!(world.held("badge:7").await?, None);
    Ok(())
}

/// The marker tells of the new guards only when their keys have been deleted.
async fn a_crash_in_the_middle_begins_again(world: &mut World, stayers: Stayers) -> Outcome {
    reloaded(world, EXACT).await?;
    stayers.are_still_served(world).await?;
    plant(world, "badge:1").await?;
    // Of how many reloads the feed has taken the guards.
    let taken = |world: &World| world.proxy.log().matches("the guards are others from here on").count();
    let before = taken(world);
    assert_eq!(world.redis(&["CLIENT", "PAUSE", "60000", "WRITE"]).await?, Reply::ok());
    let (status, said) = reload(world, &format!("{EXACT}{BADGES}")).await?;
    assert_eq!(status, 200, "{said}");
    let (status, said) = world.proxy.get("/readyz").await?;
    assert!(status == 503 && said.contains("the guards of a reload are not in force yet"), "{said}");
    // Redis holds back the deletion, or a marker before it.
    wait_until("the feed to take the guards", PATIENCE, async || taken(world) > before).await?;
    world.proxy.kill().await?;
    assert_eq!(world.redis(&["CLIENT", "UNPAUSE"]).await?, Reply::ok());
    world.proxy.relaunch().await?;
    assert_eq!(world.purges("guards_changed").await?, 1.0, "{}", world.proxy.log());
    world.gone("badge:1").await
}

/// While a guard was gone nobody deleted its keys. A Redis that goes back to before that has a marker of the same guards.
async fn a_redis_of_before_a_guard_was_gone_is_not_believed(world: &mut World) -> Outcome {
    world.marked().await?;
    plant(world, "badge:1").await?;
    assert_eq!(world.redis(&["SAVE"]).await?, Reply::ok());
    reloaded(world, EXACT).await?;
    world.sql.execute("UPDATE badges SET note = 'd' WHERE id = 1", &[]).await?;
    world.marked().await?;
    reloaded(world, &format!("{EXACT}{BADGES}")).await?;
    world.gone("badge:1").await?;
    let behind = world.purges("marker_behind").await?;
    world.redis.kill().await?;
    world.redis.relaunch().await?;
    wait_until("the Redis of before to be purged", PATIENCE, async || {
        world.purges("marker_behind").await.is_ok_and(|purges| purges > behind)
    })
    .await?;
    world.gone("badge:1").await
}

/// The stream that a reload starts over would not begin while any guard is broken, and take the others with it.
async fn nothing_is_removed_while_another_guard_is_broken(world: &mut World) -> Outcome {
    const SPARE: &str = "[[guard]]\ntable = \"spare\"\nkeys = [\"spare:<id>\"]\n";
    world.sql.batch_execute("CREATE TABLE spare (id bigint PRIMARY KEY)").await?;
    world.sql.batch_execute("ALTER PUBLICATION cachefence ADD TABLE spare").await?;
    reloaded(world, &format!("{EXACT}{BADGES}{SPARE}")).await?;
    world.sql.batch_execute("ALTER TABLE badges RENAME id TO number").await?;
    world.sql.batch_execute("INSERT INTO badges VALUES (2, 'a')").await?;
    wait_until("the guard to be broken", PATIENCE, async || {
        world.proxy.get("/readyz").await.is_ok_and(|(_, said)| said.contains("guard public.badges is broken"))
    })
    .await?;
    let said = refused(world, &format!("{EXACT}{BADGES}")).await?;
    assert!(said.contains("public.badges"), "{said}");
    plant(world, "user:3").await?;
    world.rename(3, "v3").await?;
    world.gone("user:3").await?;
    // The broken one itself can go.
    reloaded(world, EXACT).await.map(drop)
}

/// A source that is added was seen by nobody when the leases of before were given: none of them counts any more. One that is
/// removed holds nothing up.
#[tokio::test]
async fn sources_come_and_go() -> Outcome {
    let mut world = Setup::new(EXACT).replica().start().await?;
    let both = world.servers.clone();
    let (alone, _) =
        both.split_once("\n[[source]]\nname = \"replica-1\"").ok_or("no replica in the settings")?;
    let replica = world.replica()?.client().await?;
    replica.batch_execute("SELECT pg_wal_replay_pause()").await?;
    world.rename(1, "v2").await?;
    let written = world.applied().await?;
    assert!(
        support::lsn(&world.status().await?, "/fence/settled_lsn") < Some(written),
        "the replica holds it"
    );

    world.servers = alone.to_owned();
    assert!(reloaded(&mut world, EXACT).await?.contains("source replica-1: removed"));
    world.level().await?;
    assert!(!world.proxy.metrics().await?.contains("source=\"replica-1\""));
    world.warm(1).await?;

    let mut client = world.client().await?;
    assert_eq!(client.cmd(&["GET", "user:2"]).await?, Reply::Nil);
    world.servers = both;
    assert!(reloaded(&mut world, EXACT).await?.contains("source replica-1: added"));
    wait_until("the replica to be polled", PATIENCE, async || {
        world.proxy.metric("cachefence_source_up{source=\"replica-1\"}").await.is_ok_and(|up| up == 1.0)
    })
    .await?;
    assert_refused(&client.cmd(&["SET", "user:2", "v1"]).await?, "UNPROVEN");
    assert!(support::lsn(&world.status().await?, "/fence/settled_lsn") < Some(written), "it is behind");
    // Once the primary has been polled anew, too.
    let primary = Reply::Array(vec![Reply::Bulk("primary".into())]);
    wait_until("the primary to show the write", PATIENCE, async || {
        client.cmd(&["FENCE", "SOURCES", "user:1"]).await.is_ok_and(|sources| sources == primary)
    })
    .await?;
    replica.batch_execute("SELECT pg_wal_replay_resume()").await?;
    world.level().await?;
    world.warm(2).await
}
