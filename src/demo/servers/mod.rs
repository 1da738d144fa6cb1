//! Throw-away servers: a Postgres primary, its streaming replicas, Redis, and the proxy itself.
//!
//! The demo and the integration tests run on these. They are the real programs, listening on loopback only, on
//! ports that were free, with their data in a temporary directory. Each ends with the value that owns it: dropping
//! a [`Postgres`], a [`Redis`] or a [`Cachefence`] ends its process and removes its data.

mod account;
mod cachefence;
mod copy;
mod postgres;
mod process;
mod programs;
mod redis;

use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

pub use cachefence::{Cachefence, config};
pub use postgres::{Postgres, PrimaryOptions, StopMode};
pub use programs::installed;
pub use redis::{Redis, RedisOptions};

/// How long a server may take to start or to end before that counts as a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a free port is asked for again when another process took it first.
const PORT_ATTEMPTS: usize = 5;

/// Why a throw-away server could not be started, reached or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A program is not installed, or not where it was looked for.
    #[error(
        "{program} was not found: install the Debian package {package}, or set {variable} to where it is"
    )]
    Missing {
        /// The program's name.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
        /// The environment variable that names its place.
        variable: &'static str,
    },
    /// Postgres refuses to run as root, and there is nobody else to run it as.
    #[error(
        "Postgres does not run as root, and /etc/passwd has no user \"postgres\": install the Debian package postgresql, or run as another user"
    )]
    Account,
    /// The operating system said no.
    #[error("could not {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A program ended that should have gone on, or ended badly.
    #[error("{program} failed ({status}); the end of what it said:\n{log}")]
    Failed {
        /// The program's name.
        program: String,
        /// Its exit status or signal.
        status: String,
        /// The last lines of its output.
        log: String,
    },
    /// A condition did not come true in time.
    #[error("waited {seconds:.1} s in vain for {what}{log}")]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: f64,
        /// The last lines of the server's output, if there is one.
        log: String,
    },
    /// A statement failed.
    #[error("{what}: {}", sql_text(source))]
    Sql {
        /// What was tried.
        what: String,
        /// What Postgres or the connection answered.
        source: tokio_postgres::Error,
    },
    /// A server answered, but not what was asked for.
    #[error("{what}: {answer}")]
    Answer {
        /// What was asked.
        what: String,
        /// The answer.
        answer: String,
    },
    /// The proxy's settings are not TOML.
    #[error("the proxy's settings cannot be read: {0}")]
    Settings(String),
}

impl ServerError {
    /// For `map_err` on what the operating system answers.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Something did not come true in time.
    pub(crate) fn late(what: &str, waited: Duration) -> Self {
        Self::Late { what: what.to_owned(), seconds: waited.as_secs_f64(), log: String::new() }
    }

    /// For `map_err` on what Postgres answers.
    pub(crate) fn sql(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let what = what.into();
        move |source| Self::Sql { what, source }
    }
}

/// tokio-postgres prints "db error" alone; the cause is what helps.
fn sql_text(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(answer), _) => {
            format!("{}: {} ({})", answer.severity(), answer.message(), answer.code().code())
        }
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

/// Polls `look` until it returns something, at most for `timeout`.
pub async fn wait_for<T, F>(
    what: &str,
    timeout: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T, ServerError>
where
    F: Future<Output = Option<T>>,
{
    let began = Instant::now();
    let polled = tokio::time::timeout(timeout, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    polled.await.map_err(|_| ServerError::late(what, began.elapsed()))
}

/// Polls `condition` until it is true, at most for `timeout`.
pub async fn wait_until(
    what: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> Result<(), ServerError> {
    let began = Instant::now();
    let polled = tokio::time::timeout(timeout, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    polled.await.map_err(|_| ServerError::late(what, began.elapsed()))
}

/// A loopback port that is free now. Another process can take it before it is used: callers try again.
pub fn free_port() -> Result<u16, ServerError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(ServerError::io("find a free port"))?;
    Ok(listener.local_addr().map_err(ServerError::io("find a free port"))?.port())
}

/// A new temporary directory.
fn temporary(prefix: &str) -> Result<tempfile::TempDir, ServerError> {
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir()
        .map_err(ServerError::io(format!("make a temporary directory in {}", std::env::temp_dir().display())))
}

/// Whether a server's output says that its port was taken.
fn port_was_taken(error: &ServerError) -> bool {
    matches!(error, ServerError::Failed { log, .. } if log.contains("in use"))
}

/// The file that a server's output goes to.
fn log_file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("log")
}
