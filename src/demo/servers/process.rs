//! A child process that cannot outlive the value that owns it.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, ServerError};

/// How long a process gets between the polite signal and SIGKILL when its owner is dropped.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// How much of a log an error shows.
const TAIL_LINES: usize = 25;

/// A running child whose output goes to a file.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// What ends it quickly but in order.
    ending: Signal,
}

impl Process {
    /// Starts `command`, its output appended to `log`. `ending` is the signal it gets when dropped.
    pub(crate) fn spawn(command: &mut Command, log: &Path, ending: Signal) -> Result<Self, ServerError> {
        let name = Path::new(command.get_program())
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let out = open().map_err(ServerError::io(format!("open {}", log.display())))?;
        let err = open().map_err(ServerError::io(format!("open {}", log.display())))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(ServerError::io(format!("start {}", command.get_program().display())))?;
        Ok(Self { name, child, log: log.to_owned(), ending })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, ServerError> {
        self.child.try_wait().map_err(ServerError::io(format!("wait for {}", self.name)))
    }

    /// Sends a signal. The child is not reaped before this value learns of its end, so the id is still its own.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), ServerError> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) else { return Ok(()) };
        kill_process(pid, signal)
            .map_err(|errno| ServerError::io(format!("send a signal to {}", self.name))(errno.into()))
    }

    /// The same, for the processes that it has started.
    pub(crate) fn signal_children(&self, signal: Signal) -> Result<(), ServerError> {
        let id = self.child.id();
        let list = format!("/proc/{id}/task/{id}/children");
        let children = std::fs::read_to_string(&list).map_err(ServerError::io(format!("read {list}")))?;
        for child in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            match kill_process(child, signal) {
                // It has just ended.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => {
                    return Err(ServerError::io(format!("send a signal to a child of {}", self.name))(
                        errno.into(),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Waits for it to end by itself, and with success.
    pub(crate) async fn finish(mut self) -> Result<(), ServerError> {
        let status = self.wait(PATIENCE * 2).await?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.failed(status)),
            None => Err(self.late("to finish")),
        }
    }

    /// Waits for its end, whatever its status is.
    pub(crate) async fn gone(&mut self) -> Result<ExitStatus, ServerError> {
        let ended = self.wait(PATIENCE).await?;
        ended.ok_or_else(|| self.late("to end"))
    }

    /// Waits until somebody has killed it. Another end is an error.
    pub(crate) async fn killed(&mut self) -> Result<(), ServerError> {
        match self.wait(PATIENCE).await? {
            Some(status) if status.signal() == Some(Signal::KILL.as_raw()) => Ok(()),
            Some(status) => Err(self.failed(status)),
            None => Err(self.late("to be killed")),
        }
    }

    /// Sends each signal in turn until it has ended: SIGKILL is the last.
    pub(crate) async fn end(&mut self, signals: &[Signal]) -> Result<ExitStatus, ServerError> {
        for signal in signals {
            self.signal(*signal)?;
            if let Some(status) = self.wait(PATIENCE / 2).await? {
                return Ok(status);
            }
        }
        self.child.kill().map_err(ServerError::io(format!("kill {}", self.name)))?;
        self.child.wait().map_err(ServerError::io(format!("wait for {}", self.name)))
    }

    /// Waits for its end, at most for `patience`.
    async fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>, ServerError> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if began.elapsed() > patience {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until `ready` says yes; an error if the process ends first or takes too long.
    pub(crate) async fn until_ready(
        &mut self,
        what: &str,
        mut ready: impl AsyncFnMut(u32) -> bool,
    ) -> Result<(), ServerError> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Err(self.failed(status));
            }
            let id = self.id();
            // A probe can hang on a socket that accepts and says nothing.
            if matches!(tokio::time::timeout(Duration::from_secs(2), ready(id)).await, Ok(true)) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(self.late(what));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The last lines of its output.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn failed(&self, status: ExitStatus) -> ServerError {
        ServerError::Failed { program: self.name.clone(), status: status.to_string(), log: self.tail() }
    }

    fn late(&self, what: &str) -> ServerError {
        ServerError::Late {
            what: format!("{} {what}", self.name),
            seconds: PATIENCE.as_secs_f64(),
            log: format!("; the end of what it said:\n{}", self.tail()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // A frozen process takes the signal only once it goes on.
        if self.signal(self.ending).is_ok() && self.signal(Signal::CONT).is_ok() {
            let began = Instant::now();
            while began.elapsed() < DROP_PATIENCE {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        // Nobody is left to tell of a failure here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
