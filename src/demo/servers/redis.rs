//! A throw-away Redis.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::Process;
use super::{PORT_ATTEMPTS, ServerError, free_port, log_file, port_was_taken, programs, temporary};
use crate::demo::client::{Client, Reply};

/// What a Redis is started with.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Arguments after ours, such as `--maxmemory 10mb` in two words. Ours: nothing is saved to disk.
    pub args: Vec<String>,
}

impl RedisOptions {
    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }
}

/// A running Redis. Dropping it ends the server and removes its data.
#[derive(Debug)]
pub struct Redis {
    // The process goes before the directory that it writes to.
    process: Option<Process>,
    dir: TempDir,
    program: PathBuf,
    args: Vec<String>,
    port: u16,
}

impl Redis {
    /// Starts one, and waits until it answers.
    pub async fn start(options: RedisOptions) -> Result<Self, ServerError> {
        let program = programs::redis_server()?;
        let dir = temporary("cachefence-redis-")?;
        let mut server = Self { process: None, dir, program, args: options.args, port: 0 };
        let mut attempts = 1;
        loop {
            server.port = free_port()?;
            match server.launch().await {
                Ok(()) => return Ok(server),
                Err(error) if port_was_taken(&error) && attempts < PORT_ATTEMPTS => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where a client or the proxy connects to.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// A plain connection to it.
    pub async fn client(&self) -> Result<Client, ServerError> {
        Client::connect(&self.address()).await.map_err(ServerError::io(format!("connect to {}", self.url())))
    }

    /// Ends it in order; its directory and its port stay, for [`Redis::relaunch`].
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

    /// Starts it again after [`Redis::stop`] or [`Redis::kill`], on the same port, with what it has on disk.
    pub async fn relaunch(&mut self) -> Result<(), ServerError> {
        let mut attempts = 0;
        loop {
            match self.launch().await {
                // A passing connection can hold the port.
                Err(error) if port_was_taken(&error) && attempts < 20 => attempts += 1,
                answer => return answer,
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Stops it in order and starts it again.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await?;
        self.relaunch().await
    }

    /// Stops the process where it stands: clients hang, nothing is closed.
    pub fn freeze(&mut self) -> Result<(), ServerError> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(Signal::STOP))
    }

    /// Lets it go on.
    pub fn thaw(&mut self) -> Result<(), ServerError> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(Signal::CONT))
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_file(&self.dir)).unwrap_or_default()
    }

    async fn launch(&mut self) -> Result<(), ServerError> {
        let mut command = Command::new(&self.program);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no"]);
        command.args(["--save", "", "--appendonly", "no"]).arg("--dir").arg(self.dir.path()).args(&self.args);
        command.current_dir(self.dir.path());
        let mut process = Process::spawn(&mut command, &log_file(&self.dir), Signal::TERM)?;
        let address = self.address();
        process.until_ready("to answer", async |id| answers(&address, id).await).await?;
        self.process = Some(process);
        Ok(())
    }
}

/// Whether the Redis that answers there is this process, and done with loading. One that wants a password is taken
/// for ours: it does not tell strangers.
async fn answers(address: &str, id: u32) -> bool {
    let Ok(mut client) = Client::connect(address).await else { return false };
    match client.cmd(&["INFO"]).await {
        Ok(Reply::Bulk(info)) => {
            let info = String::from_utf8_lossy(&info);
            let has = |line: &str| info.lines().any(|other| other == line);
            has(&format!("process_id:{id}")) && has("loading:0")
        }
        Ok(Reply::Error(error)) => error.starts_with("NOAUTH") || error.starts_with("NOPERM"),
        _ => false,
    }
}
