//! Reads the settings again while the proxy runs: guards, sources, and the files of TLS.
//!
//! All of it or nothing. Everything that can be wrong is found before anything is changed: the settings themselves, those that
//! need a restart, the files, and whether the database has what the new guards need. Then each part takes what is its own:
//! handshakes are by the new files, the sources are polled anew and all leases end, policies hold at once, and the feed starts its
//! stream over if there are other guards.

mod sources;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

pub use sources::sources;

use crate::audit::Auditor;
use crate::cache::{Endpoint, EndpointError};
use crate::config::{self, Config, ConfigError};
use crate::feed::catalog::{self, CatalogError};
use crate::feed::{FeedState, Source, Sources};
use crate::guard::{GuardError, Guards, Reloaded};
use crate::lifecycle::notify::Notifier;
use crate::metrics::Metrics;
use crate::pg::error::PgError;
use crate::proxy::Greeting;
use crate::tls::TlsError;

/// The database is asked about new guards for no longer than this.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(10);
/// Who asks for a reload while one is under way waits for its turn; this many do.
const WAITING: usize = 16;

/// Why nothing was changed.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The settings cannot be read, or are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// They change what is fixed.
    #[error(
        "{}: cannot be changed while the proxy runs; restart it, or put back what was there before",
        .0.join(", ")
    )]
    Fixed(Vec<&'static str>),
    /// A guard cannot be used.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The files of TLS towards clients.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The files of TLS towards Redis.
    #[error(transparent)]
    Redis(#[from] EndpointError),
    /// A URL of Postgres.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// The database does not have what the guards need, or cannot be asked.
    #[error("the guards: {0}")]
    Catalog(#[from] CatalogError),
    /// The process ends.
    #[error("the proxy is stopping")]
    Stopping,
}

/// What has changed, a line each; or why nothing has.
pub type Answer = Result<Vec<String>, ReloadError>;

/// Asks for reloads.
#[derive(Debug, Clone)]
pub struct Reloads(mpsc::Sender<oneshot::Sender<Answer>>);

impl Reloads {
    /// With the other end, for [`Reloader::run`].
    pub fn new() -> (Self, mpsc::Receiver<oneshot::Sender<Answer>>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Has the settings read again.
    ///
    /// # Errors
    /// When they cannot be used; then the old ones go on.
    pub async fn ask(&self) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| ReloadError::Stopping)?;
        answered.await.map_err(|_| ReloadError::Stopping)?
    }
}

/// Reloads the settings. To be run by the runtime of the feed.
pub struct Reloader {
    /// Reads them.
    pub read: Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>,
    /// Those in force.
    pub running: Config,
    /// Their guards, by number.
    pub guards: Arc<Guards>,
    /// The next guard's number.
    pub next: u16,
    /// Above all numbers that there is room for.
    pub end: u16,
    /// How clients are received.
    pub greeting: Arc<Greeting>,
    /// How Redis is reached.
    pub redis: Endpoint,
    /// What is polled.
    pub sources: Arc<Sources>,
    /// Takes the guards.
    pub feed: Arc<FeedState>,
    /// Looks at hits.
    pub auditor: Arc<Auditor>,
    /// Counts for new guards.
    pub metrics: Arc<Metrics>,
    /// Tells systemd, which may have asked.
    pub notifier: Arc<Notifier>,
}

impl Reloader {
    /// Reloads at each request and each signal, until the task is dropped.
    pub async fn run(mut self, mut requests: mpsc::Receiver<oneshot::Sender<Answer>>, mut hangup: Signal) {
        loop {
            let request = tokio::select! {
                request = requests.recv() => match request {
                    None => return,
                    request => request,
                },
                _ = hangup.recv() => None,
            };
            self.notifier.reloading();
            let answer = self.reload().await;
            self.notifier.ready();
            match &answer {
                Ok(changes) if changes.is_empty() => info!("settings reloaded; nothing has changed"),
                Ok(changes) => info!(changes = changes.join("; "), "settings reloaded"),
                Err(error) => error!(%error, "settings not reloaded: the old ones go on"),
            }
            if let Some(request) = request {
                // Who asked may have left.
                let _ = request.send(answer);
            }
        }
    }

    async fn reload(&mut self) -> Answer {
        let wanted = (self.read)()?;
        let fixed = config::fixed(&self.running, &wanted);
        if !fixed.is_empty() {
            return Err(ReloadError::Fixed(fixed));
        }
        let greet = self.greeting.reload(&wanted.proxy)?;
        let reach = self.redis.reload(&wanted)?;
        let target = wanted.postgres.target()?;
        let sources = sources(&wanted, &target, &self.sources.load())?;
        let guards = self.guards.reloaded(&wanted.guards, self.next, self.end)?;
        // A stream that starts over begins only if nothing is wrong with any guard, also one that was there before.
        if !guards.added.is_empty() || !guards.removed.is_empty() {
            self.look(&wanted, &guards.guards).await?;
        }

        // Nothing fails from here on.
        let mut changes = Vec::new();
        self.take_files(&wanted, &mut changes);
        greet();
        reach();
        self.take_sources(&wanted, sources, &mut changes).await;
        self.take_guards(guards, &mut changes);
        if self.running.audit != wanted.audit {
            self.auditor.set_sample(wanted.audit.sample);
            changes.push("audit.sample: changed".into());
        }
        self.running = wanted;
        Ok(changes)
    }

    /// Whether the database has what the guards need, by what the start asks as well.
    async fn look(&self, wanted: &Config, guards: &Guards) -> Result<(), CatalogError> {
        let (postgres, limit) = (&wanted.postgres, CatalogError::Timeout(CATALOG_TIMEOUT));
        let looked = async {
            let client = catalog::connect(&postgres.target()?, &postgres.application_name).await?;
            let (_, mut problems) = catalog::tables(&client, guards).await?;
            // One that is missing is made when the stream starts over, as at the start.
            if let catalog::Publication::Present(found) =
                catalog::publication(&client, &postgres.publication, guards).await?
            {
                problems.extend(found);
            }
            if problems.is_empty() { Ok(()) } else { Err(CatalogError::Problems(problems)) }
        };
        tokio::time::timeout(CATALOG_TIMEOUT, looked).await.map_err(|_| limit)?
    }

    /// What the files hold is not told from what they held before.
    fn take_files(&self, wanted: &Config, changes: &mut Vec<String>) {
        let before = &self.running;
        if wanted.proxy.tls.is_some() {
            changes.push("proxy.tls: files read, for connections from now on".into());
        }
        if wanted.redis.tls.is_some() || before.redis.tls.is_some() {
            changes.push("redis.tls: files read, for connections from now on".into());
        }
    }

    async fn take_sources(&self, wanted: &Config, sources: Vec<Source>, changes: &mut Vec<String>) {
        let before = &self.running.sources;
        if *before == wanted.sources {
            return;
        }
        for source in &wanted.sources {
            match before.iter().find(|known| known.name == source.name) {
                None => changes.push(format!("source {}: added", source.name)),
                Some(known) if known != source => changes.push(format!("source {}: changed", source.name)),
                Some(_) => {}
            }
        }
        let known = self.sources.load();
        self.sources.replace(sources).await;
        let now = self.sources.load();
        for gone in
            known.iter().filter(|known| now.iter().all(|source| source.state.name != known.state.name))
        {
            self.metrics.forget_source(&gone.state.name);
            changes.push(format!("source {}: removed", gone.state.name));
        }
    }

    fn take_guards(&mut self, reloaded: Reloaded, changes: &mut Vec<String>) {
        let Reloaded { guards, added, removed, changed } = reloaded;
        let label = |id: &_| guards.get(*id).map_or("", |guard| guard.label.as_str());
        let keys_of = |id: &_| removed.iter().any(|gone| gone == label(id));
        for id in &added {
            let what = if keys_of(id) { "its keys are others" } else { "added" };
            changes.push(format!(
                "guard {}: {what}; what is cached of them is deleted, and /readyz says when that is done",
                label(id)
            ));
        }
        let replaced = |gone: &&String| added.iter().any(|id| label(id) == **gone);
        for gone in removed.iter().filter(|gone| !replaced(gone)) {
            changes.push(format!("guard {gone}: removed; its keys stay as they are"));
        }
        changes.extend(changed.iter().map(|id| format!("guard {}: policy changed", label(id))));

        let others = !added.is_empty() || !removed.is_empty();
        // As many as there is room for, which `end` says.
        self.next += added.len() as u16;
        let guards = Arc::new(guards);
        // Before anybody matches a key with them.
        self.metrics.add_guards(&guards);
        self.feed.set_guards(guards.clone(), others);
        self.guards = guards;
    }
}
