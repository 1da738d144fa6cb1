//! A throw-away Postgres: a primary, or a streaming replica of one.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::account::Account;
use super::copy::copy_data;
use super::process::Process;
use super::{PATIENCE, PORT_ATTEMPTS, ServerError, free_port, log_file, port_was_taken, programs, temporary};
use crate::position::Lsn;

/// The superuser. Everybody on loopback is trusted.
const USER: &str = "postgres";
/// The database that [`Postgres::url`] and [`Postgres::client`] mean.
const DATABASE: &str = "app";

/// What every throw-away server is set to, before its own settings. Nothing has to survive a power cut here.
const BASE_SETTINGS: &str = "
listen_addresses = '127.0.0.1'
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
max_connections = 100
max_prepared_transactions = 10
hot_standby = on
hot_standby_feedback = off
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 100ms
wal_keep_size = 512MB
fsync = off
full_page_writes = off
shared_buffers = 16MB
max_wal_size = 1GB
autovacuum = off
log_line_prefix = '%m [%p] %a '
";

/// What a primary is started with.
#[derive(Debug, Clone, Default)]
pub struct PrimaryOptions {
    /// Lines of `postgresql.conf`: name, and value without quotes.
    pub settings: Vec<(String, String)>,
}

impl PrimaryOptions {
    /// Adds a setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are cut off, then everything is written out.
    Fast,
    /// As in a crash: recovery follows at the next start.
    Immediate,
}

/// A running Postgres. Dropping it ends the server and removes its data.
#[derive(Debug)]
pub struct Postgres {
    // The process goes before the directory that it writes to.
    process: Option<Process>,
    dir: TempDir,
    bin: PathBuf,
    account: Account,
    port: u16,
}

impl Postgres {
    /// Starts a primary with an empty database `app`, ready for logical decoding and streaming.
    pub async fn primary(options: PrimaryOptions) -> Result<Self, ServerError> {
        let mut server = Self::empty("cachefence-primary-")?;
        let mut initdb = server.program("initdb");
        initdb.arg("-D").arg(server.data()).args(["-U", USER, "-E", "UTF8", "--locale=C"]);
        initdb.args(["--auth=trust", "--no-sync"]);
        server.run(&mut initdb).await?;
        server.configure(options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        server.start_on_a_free_port().await?;
        let client = server.client_for("postgres").await?;
        let create = format!("CREATE DATABASE {DATABASE}");
        client.batch_execute(&create).await.map_err(ServerError::sql(create))?;
        Ok(server)
    }

    /// Starts a streaming replica of `primary` with settings of its own, such as `recovery_min_apply_delay`.
    ///
    /// It uses no slot: the primary keeps enough WAL. Its name in `pg_stat_replication` is [`Postgres::name`].
    pub async fn replica(primary: &Postgres, settings: &[(&str, &str)]) -> Result<Self, ServerError> {
        let mut server = Self::empty("cachefence-replica-")?;
        server.copy_of(primary).await?;
        server.configure(settings.iter().copied())?;
        server.start_on_a_free_port().await?;
        Ok(server)
    }

    /// Makes a replica's data directory.
    async fn copy_of(&self, primary: &Postgres) -> Result<(), ServerError> {
        let upstream =
            format!("host=127.0.0.1 port={} user={USER} application_name={}", primary.port, self.name());
        if self.bin.join("pg_basebackup").is_file() {
            let mut backup = self.program("pg_basebackup");
            backup.arg("-D").arg(self.data()).args(["-d", &upstream, "-R", "-X", "stream", "-c", "fast"]);
            backup.args(["--no-sync", "--no-manifest"]);
            return self.run(&mut backup).await;
        }
        // What pg_basebackup does. The primary keeps its log, so the replica gets all of it by streaming.
        let client = primary.client().await?;
        let (start, stop) = match version(&client).await? {
            150_000.. => (
                "SELECT pg_backup_start('replica', true)::text",
                "SELECT labelfile FROM pg_backup_stop(false)",
            ),
            _ => (
                "SELECT pg_start_backup('replica', true, false)::text",
                "SELECT labelfile FROM pg_stop_backup(false, false)",
            ),
        };
        text(&client, start).await?;
        let (from, to, account) = (primary.data(), self.data(), self.account);
        tokio::task::spawn_blocking(move || copy_data(&from, &to, account))
            .await
            .map_err(|error| ServerError::io("copy a primary")(std::io::Error::other(error)))??;
        let label = text(&client, stop).await?;
        self.write("backup_label", &label)?;
        self.write("standby.signal", "")?;
        // Behind what the primary was told by ALTER SYSTEM, which holds for its copy too.
        let auto = self.data().join("postgresql.auto.conf");
        let told =
            std::fs::read_to_string(&auto).map_err(ServerError::io(format!("read {}", auto.display())))?;
        self.write("postgresql.auto.conf", &format!("{told}primary_conninfo = '{upstream}'\n"))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ServerError> {
        let path = self.data().join(name);
        std::fs::write(&path, text).map_err(ServerError::io(format!("write {}", path.display())))?;
        self.account.own(&path)
    }

    fn empty(prefix: &str) -> Result<Self, ServerError> {
        let bin = programs::postgres_bin()?;
        let account = Account::for_postgres()?;
        let dir = temporary(prefix)?;
        account.own(dir.path())?;
        Ok(Self { process: None, dir, bin, account, port: 0 })
    }

    /// One of a kind on this machine, and an identifier in SQL without quotes.
    pub fn name(&self) -> String {
        let directory = self.dir.path().file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        directory.replace(|c: char| !c.is_ascii_alphanumeric(), "_")
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of the server's programs, and of the clients that come with it.
    pub fn programs(&self) -> &Path {
        &self.bin
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Where the proxy or an application connects to.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    /// What to type to open a shell on it.
    pub fn psql_command(&self) -> String {
        format!("psql -h 127.0.0.1 -p {} -U {USER} {DATABASE}", self.port)
    }

    /// A session on the database `app`.
    pub async fn client(&self) -> Result<Client, ServerError> {
        self.client_for(DATABASE).await
    }

    /// A session on another database.
    pub async fn client_for(&self, database: &str) -> Result<Client, ServerError> {
        let settings =
            format!("host=127.0.0.1 port={} user={USER} dbname={database} connect_timeout=10", self.port);
        let (client, connection) = tokio_postgres::connect(&settings, NoTls)
            .await
            .map_err(ServerError::sql(format!("connect to {database} on port {}", self.port)))?;
        // Its end is seen by the client's next statement.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs one statement, or several, with the real psql, as a person would; returns what it printed.
    pub async fn psql(&self, sql: &str) -> Result<String, ServerError> {
        let port = self.port.to_string();
        let mut psql = self.program_at(&programs::psql(&self.bin)?);
        psql.args([
            "-X",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            USER,
            "-c",
            sql,
            DATABASE,
        ]);
        psql.stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || psql.output())
            .await
            .map_err(|error| ServerError::io("run psql")(std::io::Error::other(error)))?
            .map_err(ServerError::io("run psql"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(ServerError::Failed {
            program: "psql".into(),
            status: output.status.to_string(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Stops it; its data and its port stay, for [`Postgres::start`].
    pub async fn stop(&mut self, mode: StopMode) -> Result<(), ServerError> {
        if let Some(mut process) = self.process.take() {
            let signals: &[Signal] = match mode {
                StopMode::Fast => &[Signal::INT, Signal::QUIT],
                StopMode::Immediate => &[Signal::QUIT],
            };
            process.end(signals).await?;
        }
        Ok(())
    }

    /// Starts it again after [`Postgres::stop`], on the same port, and waits until it accepts sessions.
    pub async fn start(&mut self) -> Result<(), ServerError> {
        let mut attempts = 0;
        loop {
            match self.launch().await {
                // The old server's last child, or a passing connection, can still hold the port.
                Err(error) if port_was_taken(&error) && attempts < 20 => attempts += 1,
                answer => return answer,
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Stops and starts it.
    pub async fn restart(&mut self, mode: StopMode) -> Result<(), ServerError> {
        self.stop(mode).await?;
        self.start().await
    }

    /// Stops it, and starts a new copy of `primary` in its place: same port, other data.
    pub async fn copy_again(&mut self, primary: &Postgres) -> Result<(), ServerError> {
        self.stop(StopMode::Immediate).await?;
        let data = self.data();
        std::fs::remove_dir_all(&data).map_err(ServerError::io(format!("remove {}", data.display())))?;
        self.copy_of(primary).await?;
        self.configure(std::iter::empty())?;
        self.start().await
    }

    /// Stops and starts it, with transaction ids that have come round so many times.
    pub async fn set_epoch(&mut self, epoch: u32) -> Result<(), ServerError> {
        self.stop(StopMode::Fast).await?;
        let mut reset = self.program("pg_resetwal");
        reset.arg("-D").arg(self.data()).args(["-e", &epoch.to_string()]);
        self.run(&mut reset).await?;
        self.start().await
    }

    /// Stops every process of the server where it stands: sessions hang, nothing is closed.
    pub fn freeze(&mut self) -> Result<(), ServerError> {
        self.signal_all(Signal::STOP)
    }

    /// Lets it go on.
    pub fn thaw(&mut self) -> Result<(), ServerError> {
        self.signal_all(Signal::CONT)
    }

    /// Its parent first, which would start others meanwhile.
    fn signal_all(&mut self, signal: Signal) -> Result<(), ServerError> {
        self.process.as_mut().map_or(Ok(()), |process| {
            process.signal(signal)?;
            process.signal_children(signal)
        })
    }

    /// Stops a replica's replay, and waits until it has stopped.
    pub async fn pause_replay(&self) -> Result<(), ServerError> {
        let client = self.client().await?;
        execute(&client, "SELECT pg_wal_replay_pause()").await?;
        // Version 13 knows only that a pause was asked for. What is logged later is not replayed there either.
        let state = match version(&client).await? {
            140_000.. => "SELECT pg_get_wal_replay_pause_state()",
            _ => "SELECT CASE WHEN pg_is_wal_replay_paused() THEN 'paused' END",
        };
        super::wait_until("replay to pause", PATIENCE, async || {
            text(&client, state).await.is_ok_and(|state| state == "paused")
        })
        .await
    }

    /// Lets a replica's replay go on.
    pub async fn resume_replay(&self) -> Result<(), ServerError> {
        execute(&self.client().await?, "SELECT pg_wal_replay_resume()").await
    }

    /// How far a primary has written its WAL.
    pub async fn write_lsn(&self) -> Result<Lsn, ServerError> {
        lsn(&self.client().await?, "SELECT pg_current_wal_lsn()::text").await
    }

    /// How far a replica has replayed.
    pub async fn replay_lsn(&self) -> Result<Lsn, ServerError> {
        lsn(&self.client().await?, "SELECT pg_last_wal_replay_lsn()::text").await
    }

    /// Waits until this replica has replayed `position`.
    pub async fn wait_replayed(&self, position: Lsn) -> Result<(), ServerError> {
        let client = self.client().await?;
        super::wait_until(&format!("the replica to replay {position}"), PATIENCE, async || {
            lsn(&client, "SELECT pg_last_wal_replay_lsn()::text")
                .await
                .is_ok_and(|replayed| replayed >= position)
        })
        .await
    }

    /// Waits until this replica has replayed all that `primary` has written so far.
    pub async fn catch_up(&self, primary: &Postgres) -> Result<(), ServerError> {
        self.wait_replayed(primary.write_lsn().await?).await
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_file(&self.dir)).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A program of this version, run as the right account, blind to the caller's own PG* settings.
    fn program(&self, name: &str) -> Command {
        self.program_at(&self.bin.join(name))
    }

    fn program_at(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PG") {
                command.env_remove(variable);
            }
        }
        command.env("LC_ALL", "C").env("HOME", self.dir.path()).current_dir(self.dir.path());
        self.account.run_as(&mut command);
        command
    }

    async fn run(&self, command: &mut Command) -> Result<(), ServerError> {
        Process::spawn(command, &log_file(&self.dir), Signal::TERM)?.finish().await
    }

    /// Appends to postgresql.conf, where the last line of a setting counts; a replica starts from its primary's.
    fn configure<'a>(&self, settings: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), ServerError> {
        let mut lines = format!("{BASE_SETTINGS}unix_socket_directories = '{}'\n", self.dir.path().display());
        for (name, value) in settings {
            let _ = writeln!(lines, "{name} = '{}'", value.replace('\'', "''"));
        }
        let path = self.data().join("postgresql.conf");
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(lines.as_bytes()))
            .map_err(ServerError::io(format!("write {}", path.display())))
    }

    async fn start_on_a_free_port(&mut self) -> Result<(), ServerError> {
        let mut attempts = 1;
        loop {
            self.port = free_port()?;
            match self.launch().await {
                Err(error) if port_was_taken(&error) && attempts < PORT_ATTEMPTS => attempts += 1,
                answer => return answer,
            }
        }
    }

    /// Starts the server and waits for its own word, in postmaster.pid, that it accepts sessions: a connection
    /// to the port might reach somebody else's server.
    async fn launch(&mut self) -> Result<(), ServerError> {
        let port = self.port.to_string();
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &port]);
        let mut process = Process::spawn(&mut command, &log_file(&self.dir), Signal::QUIT)?;
        let pidfile = self.data().join("postmaster.pid");
        process.until_ready("to accept sessions", async |id| accepts_sessions(&pidfile, id)).await?;
        self.process = Some(process);
        Ok(())
    }
}

/// Line 1 of postmaster.pid is the process id, line 8 the state.
fn accepts_sessions(pidfile: &Path, id: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(pidfile) else { return false };
    let mut lines = text.lines();
    lines.next().is_some_and(|line| line.trim() == id.to_string())
        && lines.nth(6).is_some_and(|line| matches!(line.trim(), "ready" | "standby"))
}

async fn execute(client: &Client, sql: &str) -> Result<(), ServerError> {
    client.batch_execute(sql).await.map_err(ServerError::sql(sql))
}

/// The first column of the only row, as text.
async fn text(client: &Client, sql: &str) -> Result<String, ServerError> {
    let row = client.query_one(sql, &[]).await.map_err(ServerError::sql(sql))?;
    row.try_get(0).map_err(ServerError::sql(sql))
}

/// `server_version_num`.
async fn version(client: &Client) -> Result<i32, ServerError> {
    let sql = "SHOW server_version_num";
    let answer = text(client, sql).await?;
    answer.parse().map_err(|_| ServerError::Answer { what: sql.to_owned(), answer })
}

async fn lsn(client: &Client, sql: &str) -> Result<Lsn, ServerError> {
    let answer = text(client, sql).await?;
    answer.parse().map_err(|_| ServerError::Answer { what: sql.to_owned(), answer })
}
