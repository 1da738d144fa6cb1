//! A real Prometheus scrapes a real proxy, things go wrong for real, and the alerts fire and end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cachefence::demo::servers::{StopMode, wait_until};

use super::ALERTS;
use super::support::{DEFAULT, Fallible, Outcome, Setup, World};

/// Alerts take a while to fire, shortened as they are.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running Prometheus.
struct Prometheus {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same rules over seconds in place of minutes.
fn hurried() -> String {
    let mut rules = String::new();
    for line in ALERTS.lines() {
        let line = match line.trim_start().starts_with("for: ") {
            true => "        for: 1s".to_owned(),
            false => line.into(),
        };
        rules += &line;
        rules += "\n";
    }
    for (long, brief) in
        [("[2m]", "[6s]"), ("[5m]", "[6s]"), ("[10m]", "[20s]"), ("[1h]", "[20s]"), ("[1d]", "[20s]")]
    {
        rules = rules.replace(long, brief);
    }
    rules.replace("offset 5m", "offset 10s")
}

impl Prometheus {
    fn start(target: &str) -> Fallible<Self> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("alerts.yaml"), hurried())?;
        let settings = include_str!("../../config/prometheus.yml")
            .replace("scrape_interval: 5s", "scrape_interval: 1s\n  scrape_timeout: 1s")
            .replace("evaluation_interval: 15s", "evaluation_interval: 1s")
            .replace("cachefence:9187", target);
        std::fs::write(path("prometheus.yml"), settings)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("log"))?)
            .spawn()?;
        Ok(Self { child, port, _dir: dir })
    }

    /// What fires now.
    fn firing(&self) -> Fallible<Vec<String>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.write_all(b"GET /api/v1/alerts HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body: serde_json::Value = serde_json::from_str(body)?;
        let alerts = body["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect())
    }

    async fn fires(&self, alert: &str) -> Outcome {
        let fires = async || self.firing().is_ok_and(|firing| firing.iter().any(|name| name == alert));
        wait_until(&format!("{alert} to fire"), PATIENCE, fires).await?;
        println!("{alert} fires");
        Ok(())
    }

    async fn ends(&self, alert: &str) -> Outcome {
        let ended = async || self.firing().is_ok_and(|firing| firing.iter().all(|name| name != alert));
        wait_until(&format!("{alert} to end"), PATIENCE, ended).await?;
        println!("{alert} has ended");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Prometheus: make test-alerts"]
async fn alerts_fire_when_something_breaks_and_end_when_it_is_mended() -> Outcome {
    let mut world = Setup::new(DEFAULT).replica().start().await?;
    world.warm(1).await?;
    let address = world.proxy.admin_url().trim_start_matches("http://").to_owned();
    let prometheus = Prometheus::start(&address)?;
    // CachefenceNoneUp is true until the first scrape, and ends with it.
    wait_until("the first scrape", PATIENCE, async || prometheus.firing().is_ok()).await?;
    prometheus.ends("CachefenceNoneUp").await?;

    world.redis.freeze()?;
    prometheus.fires("CachefenceRedisDown").await?;
    world.redis.thaw()?;
    prometheus.ends("CachefenceRedisDown").await?;

    world.replica.as_mut().ok_or("no replica")?.freeze()?;
    prometheus.fires("CachefenceSourceDown").await?;
    held(&world, &prometheus).await?;
    world.replica.as_mut().ok_or("no replica")?.thaw()?;
    prometheus.ends("CachefenceSourceDown").await?;
    prometheus.ends("CachefenceSettledHeld").await?;

    refused(&world, &prometheus).await?;

    world.sql.batch_execute("ALTER TABLE users RENAME COLUMN id TO number").await?;
    prometheus.fires("CachefenceGuardBroken").await?;
    prometheus.fires("CachefenceNotReady").await?;
    world.sql.batch_execute("ALTER TABLE users RENAME COLUMN number TO id").await?;
    prometheus.ends("CachefenceGuardBroken").await?;
    prometheus.ends("CachefenceNotReady").await?;

    world.primary.stop(StopMode::Fast).await?;
    prometheus.fires("CachefenceFeedLost").await?;
    world.primary.start().await?;
    prometheus.ends("CachefenceFeedLost").await?;

    // The walsender that is ended gives the slot free for a moment, in which it can be dropped.
    let sql = world.primary.client().await?;
    let drop = "SELECT pg_terminate_backend(active_pid), pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
    let dropped = async || sql.batch_execute(drop).await.is_ok();
    wait_until("the slot to be dropped", PATIENCE, dropped).await?;
    prometheus.fires("CachefenceGap").await?;
    prometheus.ends("CachefenceGap").await?;

    world.proxy.kill().await?;
    prometheus.fires("CachefenceDown").await?;
    prometheus.fires("CachefenceNoneUp").await?;
    world.proxy.relaunch().await?;
    prometheus.ends("CachefenceDown").await?;
    prometheus.ends("CachefenceNoneUp").await
}

/// Commits go on, and a frozen replica does not show them.
async fn held(world: &World, prometheus: &Prometheus) -> Outcome {
    let more = async || {
        world.rename(2, "again").await.is_ok()
            && prometheus
                .firing()
                .is_ok_and(|firing| firing.iter().any(|name| name == "CachefenceSettledHeld"))
    };
    wait_until("CachefenceSettledHeld to fire", PATIENCE, more).await?;
    println!("CachefenceSettledHeld fires");
    Ok(())
}

/// Stale fills, again and again.
async fn refused(world: &World, prometheus: &Prometheus) -> Outcome {
    let before = world.snapshot().await?;
    world.rename(3, "Grace").await?;
    world.applied().await?;
    let mut client = world.client().await?;
    let spike = async || {
        for _ in 0..20 {
            let _ = client.cmd(&["ASOF", &before, "SET", "user:3", "old"]).await;
        }
        prometheus.firing().is_ok_and(|firing| firing.iter().any(|name| name == "CachefenceRefusalsSpike"))
    };
    wait_until("CachefenceRefusalsSpike to fire", PATIENCE, spike).await?;
    println!("CachefenceRefusalsSpike fires");
    prometheus.ends("CachefenceRefusalsSpike").await
}
