//! The proxy as a child process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::process::Process;
use super::{PORT_ATTEMPTS, Postgres, Redis, ServerError, free_port, log_file, port_was_taken, temporary};
use crate::demo::client::Client;
use crate::failpoint::Point;

/// The settings that name the servers: guards, and anything else, are appended by the caller.
pub fn config(primary: &Postgres, replicas: &[&Postgres], redis: &Redis) -> String {
    let mut text = format!(
        "[redis]\nurl = \"{}\"\n\n[postgres]\nurl = \"{}\"\n\n[[source]]\nname = \"primary\"\n",
        redis.url(),
        primary.url()
    );
    for (number, replica) in replicas.iter().enumerate() {
        text += &format!("\n[[source]]\nname = \"replica-{}\"\nurl = \"{}\"\n", number + 1, replica.url());
    }
    text
}

/// A running proxy. Dropping it ends the process.
#[derive(Debug)]
pub struct Cachefence {
    // The process goes before the directory that it writes to.
    process: Option<Process>,
    dir: TempDir,
    binary: PathBuf,
    log_filter: Option<String>,
    /// Where a process that is started now kills itself, in a build with failpoints.
    failpoint: Option<String>,
    listen: String,
    admin: String,
}

impl Cachefence {
    /// Starts the proxy and waits until it is ready.
    ///
    /// Where the settings leave out `proxy.listen` or `admin.listen`, it gets free ports of loopback.
    pub async fn start(binary: impl AsRef<Path>, settings: &str) -> Result<Self, ServerError> {
        let mut attempts = 1;
        loop {
            let mut proxy = Self::launch(binary.as_ref(), settings)?;
            match proxy.ready().await {
                Ok(()) => return Ok(proxy),
                Err(error) if port_was_taken(&error) && attempts < PORT_ATTEMPTS => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts the proxy and does not wait: for when Redis or Postgres is away.
    pub fn launch(binary: &Path, settings: &str) -> Result<Self, ServerError> {
        Self::launch_logging(binary, settings, None)
    }

    /// [`Cachefence::launch`] with a filter for what is logged.
    pub fn launch_logging(
        binary: &Path,
        settings: &str,
        log_filter: Option<&str>,
    ) -> Result<Self, ServerError> {
        let dir = temporary("cachefence-proxy-")?;
        let (settings, listen, admin) = with_ports(settings)?;
        let path = dir.path().join("cachefence.toml");
        std::fs::write(&path, settings).map_err(ServerError::io(format!("write {}", path.display())))?;
        let mut proxy = Self {
            process: None,
            dir,
            binary: binary.to_owned(),
            log_filter: log_filter.map(str::to_owned),
            failpoint: None,
            listen,
            admin,
        };
        proxy.spawn()?;
        Ok(proxy)
    }

    /// Waits until `/readyz` says yes.
    pub async fn ready(&mut self) -> Result<(), ServerError> {
        self.answers("/readyz", "to be ready").await
    }

    /// Waits until a path of the admin port is answered with 200.
    async fn answers(&mut self, path: &str, what: &str) -> Result<(), ServerError> {
        let Some(process) = self.process.as_mut() else {
            return Err(ServerError::Answer {
                what: "wait for the proxy".into(),
                answer: "it was stopped".into(),
            });
        };
        let admin = self.admin.clone();
        process.until_ready(what, async |_| matches!(get(&admin, path).await, Ok((200, _)))).await
    }

    /// Starts it again after [`Cachefence::stop`] or [`Cachefence::kill`]: same settings, same ports.
    pub async fn relaunch(&mut self) -> Result<(), ServerError> {
        self.relaunch_and(async |proxy| proxy.ready().await).await
    }

    /// The same, for when it cannot be ready: waits until it lives.
    pub async fn relaunch_unready(&mut self) -> Result<(), ServerError> {
        self.relaunch_and(async |proxy| proxy.answers("/livez", "to live").await).await
    }

    /// From its next start on it is to be killed at the n-th passing of a point: for a binary with failpoints. Until
    /// [`Cachefence::killed`] has seen that.
    pub fn doom(&mut self, point: Point, passing: u64) {
        self.failpoint = Some(format!("{}:{passing}", point.name()));
    }

    /// Starts it again, and waits until it is killed, as [`Cachefence::doom`] has said.
    pub async fn relaunch_doomed(&mut self) -> Result<(), ServerError> {
        self.relaunch_and(async |proxy| proxy.killed().await).await
    }

    async fn relaunch_and(
        &mut self,
        wait: impl AsyncFn(&mut Self) -> Result<(), ServerError>,
    ) -> Result<(), ServerError> {
        let mut attempts = 0;
        loop {
            self.spawn()?;
            match wait(self).await {
                // A passing connection can hold the port.
                Err(error) if port_was_taken(&error) && attempts < 20 => attempts += 1,
                answer => return answer,
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Waits until it has been killed by itself or somebody else. Another end is an error.
    pub async fn killed(&mut self) -> Result<(), ServerError> {
        if let Some(mut process) = self.process.take() {
            process.killed().await?;
        }
        self.failpoint = None;
        Ok(())
    }

    /// Ends it in order.
    pub async fn stop(&mut self) -> Result<(), ServerError> {
        if let Some(mut process) = self.process.take() {
            process.end(&[Signal::TERM]).await?;
        }
        Ok(())
    }

    /// Ends it as a crash would.
    pub async fn kill(&mut self) -> Result<(), ServerError> {
        if let Some(mut process) = self.process.take() {
            process.end(&[Signal::KILL]).await?;
        }
        Ok(())
    }

    /// Sends it a signal, and does not wait for what comes of it.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ServerError> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(signal))
    }

    /// Waits until it has ended; its exit status, if it was not killed by a signal.
    pub async fn ended(&mut self) -> Result<Option<i32>, ServerError> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let status = process.gone().await?;
        self.process = None;
        Ok(status.code())
    }

    /// Stops the process where it stands: clients hang, nothing is closed.
    pub fn freeze(&mut self) -> Result<(), ServerError> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(Signal::STOP))
    }

    /// Lets it go on.
    pub fn thaw(&mut self) -> Result<(), ServerError> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(Signal::CONT))
    }

    /// Writes other settings, with the same addresses where they leave those out. The proxy takes them when it is told to.
    pub fn rewrite(&self, settings: &str) -> Result<(), ServerError> {
        let bad = |error: toml::de::Error| ServerError::Settings(error.to_string());
        let mut table: toml::Table = settings.parse().map_err(bad)?;
        let own = [
            ("admin", toml::Value::String(self.admin.clone())),
            ("proxy", toml::Value::Array(vec![self.listen.clone().into()])),
        ];
        for (section, listen) in own {
            let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
            if let Some(section) = section.as_table_mut() {
                section.entry("listen").or_insert(listen);
            }
        }
        let text = toml::to_string(&table).map_err(|error| ServerError::Settings(error.to_string()))?;
        self.write_settings(&text)
    }

    /// Writes any text in place of the settings.
    pub fn write_settings(&self, text: &str) -> Result<(), ServerError> {
        let path = self.dir.path().join("cachefence.toml");
        std::fs::write(&path, text).map_err(ServerError::io(format!("write {}", path.display())))
    }

    /// Has it read its settings again by `POST /reload`: status and body of the answer.
    pub async fn reload(&self) -> Result<(u16, String), ServerError> {
        let answer = ask(&self.admin, "POST", "/reload").await;
        answer.map_err(ServerError::io(format!("post {}/reload", self.admin_url())))
    }

    /// Has it read its settings again by SIGHUP.
    pub fn hang_up(&mut self) -> Result<(), ServerError> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(Signal::HUP))
    }

    /// The proxy's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// `host:port` for Redis clients.
    pub fn address(&self) -> &str {
        &self.listen
    }

    /// Where Redis clients connect to.
    pub fn redis_url(&self) -> String {
        format!("redis://{}/0", self.listen)
    }

    /// The port for Redis clients.
    pub fn port(&self) -> u16 {
        self.listen.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default()
    }

    /// The base of the HTTP addresses.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// A plain connection through the proxy.
    pub async fn client(&self) -> Result<Client, ServerError> {
        Client::connect(&self.listen)
            .await
            .map_err(ServerError::io(format!("connect to {}", self.redis_url())))
    }

    /// Status and body of an HTTP GET on the admin port.
    pub async fn get(&self, path: &str) -> Result<(u16, String), ServerError> {
        get(&self.admin, path).await.map_err(ServerError::io(format!("get {}{path}", self.admin_url())))
    }

    /// All metrics, in Prometheus's text format.
    pub async fn metrics(&self) -> Result<String, ServerError> {
        match self.get("/metrics").await? {
            (200, body) => Ok(body),
            (status, body) => {
                Err(ServerError::Answer { what: "get /metrics".into(), answer: format!("{status} {body}") })
            }
        }
    }

    /// The sum of a metric's series that have these labels, among others:
    /// `cachefence_fills_total{verdict="stale"}`. Zero if there is no such series yet.
    pub async fn metric(&self, series: &str) -> Result<f64, ServerError> {
        Ok(sum(&self.metrics().await?, series))
    }

    /// What the proxy has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_file(&self.dir)).unwrap_or_default()
    }

    fn spawn(&mut self) -> Result<(), ServerError> {
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(self.dir.path().join("cachefence.toml"));
        // The environment overrides the file: what the caller has set for a proxy of its own must not.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("CACHEFENCE_") {
                command.env_remove(variable);
            }
        }
        command.envs(self.log_filter.as_ref().map(|filter| ("CACHEFENCE_LOG", filter)));
        command.env_remove("FAILPOINT").envs(self.failpoint.as_ref().map(|point| ("FAILPOINT", point)));
        self.process = Some(Process::spawn(&mut command, &log_file(&self.dir), Signal::TERM)?);
        Ok(())
    }
}

/// Fills in the addresses that the settings leave out; returns the settings and both addresses.
fn with_ports(settings: &str) -> Result<(String, String, String), ServerError> {
    let bad = |what: String| ServerError::Settings(what);
    let mut table: toml::Table = settings.parse().map_err(|error: toml::de::Error| bad(error.to_string()))?;
    let admin = address(&mut table, "admin", "", toml::Value::String)?;
    let listen = address(&mut table, "proxy", &admin, |address| toml::Value::Array(vec![address.into()]))?;
    let text = toml::to_string(&table).map_err(|error| bad(error.to_string()))?;
    Ok((text, listen, admin))
}

/// The `listen` of a section; if it has none, a free port of loopback, but not `taken`, which nobody listens on yet.
fn address(
    table: &mut toml::Table,
    section: &str,
    taken: &str,
    value: fn(String) -> toml::Value,
) -> Result<String, ServerError> {
    let own = table.entry(section).or_insert_with(|| toml::Table::new().into());
    let Some(own) = own.as_table_mut() else {
        return Err(ServerError::Settings(format!("{section} is not a table")));
    };
    if !own.contains_key("listen") {
        let mut free = format!("127.0.0.1:{}", free_port()?);
        while free == taken {
            free = format!("127.0.0.1:{}", free_port()?);
        }
        own.insert("listen".into(), value(free));
    }
    let first = match own.get("listen") {
        Some(toml::Value::Array(all)) => all.first().and_then(toml::Value::as_str),
        Some(one) => one.as_str(),
        None => None,
    };
    first.map(str::to_owned).ok_or_else(|| ServerError::Settings(format!("{section}.listen has no address")))
}

/// Enough of HTTP for our own admin port; as HTTP/1.0 so that the answer is not chunked.
async fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    ask(address, "GET", path).await
}

async fn ask(address: &str, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await??;
    let answer = String::from_utf8_lossy(&answer);
    let malformed = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not an HTTP answer");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
    Ok((status, body.to_owned()))
}

/// The sum of the series in `metrics` that have the name and the labels of `series`.
fn sum(metrics: &str, series: &str) -> f64 {
    let (name, wanted) = split_series(series);
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (own_name, labels) = split_series(series);
            let matches = own_name == name && wanted.iter().all(|label| labels.contains(label));
            matches.then(|| value.parse::<f64>().ok()).flatten()
        })
        .sum()
}

/// Name and labels. None of our label values has a comma in it.
fn split_series(series: &str) -> (&str, Vec<&str>) {
    match series.split_once('{') {
        Some((name, labels)) => {
            let labels = labels.trim_end().trim_end_matches('}').split(',').map(str::trim);
            (name.trim(), labels.filter(|label| !label.is_empty()).collect())
        }
        None => (series.trim(), Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_the_series_with_its_labels() {
        let text = "# HELP f x\n# TYPE f counter\nf{a=\"1\",b=\"x\"} 3\nf{a=\"1\",b=\"y\"} 4\nf{a=\"2\",b=\"x\"} 5\nff 7\n";
        assert_eq!(sum(text, "f{a=\"1\"}"), 7.0);
        assert_eq!(sum(text, "f{b=\"x\", a=\"2\"}"), 5.0);
        assert_eq!(sum(text, "f"), 12.0);
        assert_eq!(sum(text, "ff"), 7.0);
        assert_eq!(sum(text, "f{c=\"1\"}"), 0.0);
    }

    #[test]
    fn addresses_are_filled_in_only_where_they_are_missing() -> Result<(), ServerError> {
        let (text, listen, admin) =
            with_ports("[proxy]\nlisten = [\"127.0.0.1:6380\"]\n[fence]\nhistory = \"1s\"\n")?;
        assert_eq!(listen, "127.0.0.1:6380");
        assert!(admin.starts_with("127.0.0.1:"));
        assert!(text.contains("history = \"1s\"") && text.contains(&admin), "{text}");
        assert!(with_ports("proxy = 3").is_err());
        assert!(with_ports("[proxy]\nlisten = []").is_err());
        Ok(())
    }
}
