//! Puts the parts together and runs them: threads for clients, a runtime for everything else.

mod gauges;
mod glance;
mod herald;
mod introduction;
mod status;
mod stop;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{error, warn};

use crate::admin;
use crate::audit::{self, Auditor};
use crate::cache::{
    self, CacheState, Endpoint, EndpointError, Reaper, Stranger, Upstreams, Witness, Worker, WorkerSettings,
};
use crate::command::CommandTable;
use crate::config::{self, Config, ConfigError, Contract, Mode, socket_mode};
use crate::feed::{self, Feed, FeedError, FeedState, Positions, SourceState, Sources};
use crate::fence::{Fence, Limits, Millis};
use crate::guard::{GuardError, Guards};
use crate::lifecycle::descriptors::{self, Wanted};
use crate::lifecycle::notify::Notifier;
use crate::lifecycle::{panics, signals};
use crate::metrics::Metrics;
use crate::position::Lsn;
use crate::proxy::{Buffered, Gate, Greeting, ListenError, Listener, Threads};
use crate::refusals::Refusals;
use crate::reload::{self, Reloader, Reloads};
use crate::tls::TlsError;

pub use introduction::introduction;
use status::Status;
use stop::Stop;

/// Why the proxy does not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// A guard cannot be used.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// Redis cannot be reached as it is set.
    #[error(transparent)]
    Redis(#[from] EndpointError),
    /// Clients cannot be served by TLS as it is set.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The database is not as it must be.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// A port is not to be had.
    #[error("{setting}: {source}")]
    Listen {
        /// The setting that names it.
        setting: &'static str,
        /// Which, and why.
        source: ListenError,
    },
    /// The metrics cannot be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The operating system gives no thread, or no signal handler.
    #[error("the operating system refused: {0}")]
    System(#[from] io::Error),
    /// A part that must never end has ended.
    #[error("{0} ended, which it never should; please report this with the log")]
    Ended(&'static str),
}

/// Outstanding misses that are remembered, at most: some 100 bytes each.
const MAX_LEASES: usize = 1_000_000;
/// Locks of the fence's table: growing or sweeping one of many shards stalls the others for no more than a fraction of a millisecond.
const SHARDS: usize = 1024;
/// Commits that wait for Redis, at most; the feed is held back beyond.
const BACKLOG: usize = 1024;

/// Runs the proxy until it is told to stop (SIGTERM, SIGINT). `read` reads the settings again, for a reload.
///
/// # Errors
/// When it cannot start: everything that can be away for a while (Postgres, Redis) is waited for instead.
pub async fn run(
    config: Config,
    read: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
) -> Result<(), RunError> {
    let mut signalled = signals::listen()?;
    let hangup = signal(SignalKind::hangup())?;
    let guards = Arc::new(Guards::new(&config.guards, config.redis.db())?);
    let redis = Endpoint::new(&config)?;
    let greeting = Arc::new(Greeting::new(&config.proxy)?);
    let observe = config.proxy.mode == Mode::Observe;
    let target = config.postgres.target().map_err(FeedError::from)?;
    let sources = reload::sources(&config, &target, &[]).map_err(FeedError::from)?;
    let read_sources: Vec<Arc<SourceState>> =
        sources.iter().filter(|s| s.index.is_some()).map(|s| s.state.clone()).collect();
    let names: Vec<&str> = read_sources.iter().map(|source| source.name.as_str()).collect();
    let metrics = Arc::new(Metrics::new(&guards, &names)?);

    let started = Instant::now();
    let fence = Arc::new(Fence::new(limits(&config, guards.numbers())));
    let positions = Arc::new(Positions::with_sources(fence.clone(), read_sources.clone(), started));
    let sources = Arc::new(Sources::new(sources));
    // What the catalog tells of the columns is learnt by the feed.
    let matching = Arc::new(ArcSwap::new(guards.clone()));
    let feed_state = Arc::new(feed_state(&config, guards.numbers()).teaching(matching.clone()));
    let cache_state = Arc::new(CacheState::default());

    let incarnation = incarnation();
    let slot_name = format!("cachefence:{}", config.postgres.slot);
    let name = format!("{slot_name}:{incarnation}");
    let (upstreams, handed) = Upstreams::new(name.clone());
    let upstreams = Arc::new(upstreams);
    let commands = Arc::new(ArcSwap::from_pointee(CommandTable::known()));
    let (reloads, requests) = Reloads::new();
    let refusals = Arc::new(Refusals::new(config.admin.show_keys));
    let status = Arc::new(Status {
        fence: fence.clone(),
        positions: positions.clone(),
        guards: matching.clone(),
        metrics: metrics.clone(),
        refusals: refusals.clone(),
        feed: feed_state.clone(),
        sources: sources.clone(),
        cache: cache_state.clone(),
        stopping: Arc::default(),
        config: config.clone(),
        reloads,
    });
    status.mirror();
    let around = audit::Surroundings {
        fence: fence.clone(),
        guards: matching.clone(),
        feed: feed_state.clone(),
        cache: cache_state.clone(),
        enforces: !observe,
        show_keys: config.admin.show_keys,
    };
    let (auditor, audited) = Auditor::new(&config.audit, around, metrics.clone(), started);
    let gate = Arc::new(Gate {
        fence: fence.clone(),
        guards: matching.clone(),
        commands: commands.clone(),
        named: config::Guard::of_messages(config.postgres.contract),
        positions: positions.clone(),
        account: status.clone(),
        metrics: metrics.clone(),
        refusals,
        auditor: auditor.clone(),
        feed: feed_state.clone(),
        cache: cache_state.clone(),
        upstreams: upstreams.clone(),
        address: redis.clone(),
        buffered: Buffered::new(config.proxy.max_buffered, metrics.clone()),
        observe,
        newer_counts: config.postgres.contract == Contract::Bounded,
        started,
    });

    // Ports first: whoever cannot have them shall not touch the slot or the cache.
    let mut listeners = Vec::new();
    // What is wrong with it has been said when the settings were read.
    let mode = config.proxy.unix_socket_mode.as_deref().and_then(|mode| socket_mode(mode).ok());
    for address in &config.proxy.listen {
        let bound = Listener::bind(address, mode).await;
        listeners.push(bound.map_err(|source| RunError::Listen { setting: "proxy.listen", source })?);
    }
    let admin_address = config.admin.listen.clone();
    let admin = TcpListener::bind(&admin_address).await.map_err(|source| RunError::Listen {
        setting: "admin.listen",
        source: ListenError { address: admin_address, source },
    })?;

    let max_clients = max_clients(&config, sources.load().len());
    let notifier = Arc::new(Notifier::from_environment());
    let stopping = status.stopping.clone();
    admin::start(admin, status.clone(), gate.clone())?;

    sweep(fence.clone(), positions.clone(), config.fence.history)?;

    let places = audit::Places {
        postgres: target.clone(),
        application_name: format!("{} audit", config.postgres.application_name),
        redis: redis.clone(),
        name: name.clone(),
    };
    let reloader = Reloader {
        read: Box::new(read),
        running: config.clone(),
        guards: guards.clone(),
        next: guards.len() as u16,
        end: guards.numbers() as u16,
        greeting: greeting.clone(),
        redis: redis.clone(),
        sources: sources.clone(),
        feed: feed_state.clone(),
        metrics: metrics.clone(),
        auditor: auditor.clone(),
        notifier: notifier.clone(),
    };
    let (jobs, job_receiver) = mpsc::channel(BACKLOG);
    let (applied, applied_receiver) = watch::channel(Lsn(0));
    let reaper = Reaper {
        address: redis.clone(),
        name: name.clone(),
        fence: fence.clone(),
        upstreams: upstreams.clone(),
        state: cache_state.clone(),
        abandoned: handed.abandoned,
    };
    let witness = Witness {
        address: redis.clone(),
        name: name.clone(),
        upstreams: upstreams.clone(),
        state: cache_state.clone(),
        questions: handed.questions,
    };
    let stranger = Stranger { address: redis.clone(), strangers: upstreams.strangers.clone() };
    let worker = Worker::new(
        WorkerSettings {
            address: redis,
            slot_name,
            name,
            slot: config.postgres.slot.clone(),
            incarnation,
            drain_timeout: config.fence.drain_timeout,
            observe,
            strict: config.postgres.contract == Contract::Strict,
            unseen: feed_state.unseen.clone(),
            temporary_slot: config.postgres.temporary_slot,
        },
        cache::Shared {
            fence,
            guards: matching,
            upstreams,
            commands,
            metrics,
            commits: auditor.commits.clone(),
        },
        cache_state,
        applied,
    );
    let feed = Feed::new(
        feed::Settings {
            target,
            slot: config.postgres.slot.clone(),
            temporary_slot: config.postgres.temporary_slot,
            failover_slot: config.postgres.failover_slot,
            streaming: config.postgres.streaming,
            publication: config.postgres.publication.clone(),
            application_name: config.postgres.application_name.clone(),
            feed_lost_after: config.postgres.feed_lost_after,
            max_lag: config.postgres.max_lag,
            poll_interval: config.fence.poll_interval,
            lease_ttl: config.fence.lease_ttl,
            db: gate.address.db,
        },
        guards,
        sources,
        positions,
        feed_state.clone(),
        jobs,
        applied_receiver,
    );

    let threads = Arc::new(Threads::start(&gate, greeting, config.redis.upstream, threads(&config))?);
    let (listen, listens) = watch::channel(true);
    let mut listening = JoinSet::new();
    for listener in listeners {
        let mut listens = listens.clone();
        let stop = async move { drop(listens.wait_for(|listens| !listens).await) };
        listening.spawn(listener.run(threads.clone(), max_clients, stop));
    }
    tokio::spawn(async move {
        // After a panic it begins anew: it holds nothing that could be wrong.
        while tokio::spawn(stranger.clone().run()).await.is_err() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    tokio::spawn(auditor.work(audited, places));
    tokio::spawn(reloader.run(requests, hangup));
    tokio::spawn(herald::run(notifier.clone(), status, threads.clone()));
    // A task of its own: a purge must not delay an acknowledgement.
    let mut feed = tokio::spawn(feed.run());
    let worker = worker.run(job_receiver);
    let parts = async {
        tokio::select! {
            ended = &mut feed => feed_ended(ended),
            // It ends when the feed does, which alone knows why.
            () = worker => feed_ended((&mut feed).await),
            ended = tokio::spawn(reaper.run()) => task_ended("the reaper", ended),
            // Without it no connection to Redis is taken any more: better a new process.
            ended = tokio::spawn(witness.run()) => task_ended("the witness", ended),
        }
    };
    tokio::pin!(parts);
    let signal = tokio::select! {
        ended = &mut parts => Err(ended),
        Some(ended) = listening.join_next() => Err(task_ended("a listener", ended)),
        signal = signalled.wait_for(Option::is_some) => {
            let signal = signal.ok().and_then(|signal| *signal);
            signal.ok_or(RunError::Ended("the thread that listens for signals"))
        }
    };
    let signal = match signal {
        Ok(signal) => signal,
        Err(error) => {
            // The files of unix sockets go with their listeners.
            listening.shutdown().await;
            return Err(error);
        }
    };
    let stop = Stop {
        delay: config.proxy.shutdown_delay,
        grace: config.proxy.shutdown_grace,
        application_name: config.postgres.application_name,
        stopping,
        notifier,
        threads,
        listening,
        listen,
        feed: feed_state,
        fence: gate.fence.clone(),
    };
    // What was not confirmed is sent again to the next one, and deleted again.
    stop.run(signal, parts).await;
    Ok(())
}

/// As many clients as there are file descriptors for.
fn max_clients(config: &Config, sources: usize) -> usize {
    let limit = descriptors::raise().unwrap_or_else(|(limit, error)| {
        warn!(limit, %error, "the limit of open files cannot be raised");
        limit
    });
    let wanted = Wanted { clients: config.proxy.max_clients, threads: threads(config), sources };
    let clients = wanted.clients_within(limit);
    if clients < wanted.clients {
        let (max_clients, needed) = (wanted.clients, wanted.descriptors());
        warn!(
            limit,
            needed,
            max_clients,
            "too few open files are allowed: no more than {clients} clients are taken. Raise the limit (ulimit -n, \
             LimitNOFILE= of systemd, --ulimit nofile= of Docker) to {needed}, or lower proxy.max_clients"
        );
    }
    clients
}

fn feed_ended(ended: Result<Result<(), FeedError>, tokio::task::JoinError>) -> RunError {
    match ended {
        Ok(Ok(())) => RunError::Ended("the feed"),
        Ok(Err(error)) => error.into(),
        Err(error) => failed("the feed", &error),
    }
}

fn task_ended(part: &'static str, ended: Result<(), tokio::task::JoinError>) -> RunError {
    ended.map_or_else(|error| failed(part, &error), |()| RunError::Ended(part))
}

fn failed(part: &'static str, error: &tokio::task::JoinError) -> RunError {
    error!(part, %error, "a part failed");
    RunError::Ended(part)
}

fn feed_state(config: &Config, guards: usize) -> FeedState {
    let state = FeedState::new(guards);
    match config.postgres.contract {
        Contract::Bounded => state,
        Contract::Strict => state.strictly(),
    }
}

fn limits(config: &Config, guards: usize) -> Limits {
    Limits {
        history: config.fence.history.as_millis() as Millis,
        lease_ttl: config.fence.lease_ttl.as_millis() as Millis,
        longest_cap: longest_cap(config),
        max_keys: config.fence.max_keys,
        max_leases: MAX_LEASES,
        guards,
        shards: SHARDS,
    }
}

/// The longest TTL that a verdict or the feed's loss gives to a fill.
fn longest_cap(config: &Config) -> Millis {
    if config.postgres.contract == Contract::Strict {
        return 0;
    }
    let by_name = config::Guard::of_messages(config.postgres.contract);
    let caps = config.guards.iter().chain([&by_name]);
    let caps = caps.flat_map(|guard| [guard.unproven_ttl, guard.stale_ttl, guard.when_feed_lost.fills_ttl]);
    caps.max().map_or(0, |cap| cap.as_millis() as Millis)
}

/// How many threads serve clients.
pub(crate) fn threads(config: &Config) -> usize {
    match config.proxy.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// Names this process among its predecessors and successors.
fn incarnation() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("{now:x}-{:x}", std::process::id())
}

/// Drops what the fence no longer needs, on a thread that may block: a walk over millions of keys takes a while.
fn sweep(fence: Arc<Fence>, positions: Arc<Positions>, history: Duration) -> io::Result<()> {
    let pace = (history / 8).clamp(Duration::from_millis(100), Duration::from_secs(10));
    let sweep = move || {
        loop {
            std::thread::sleep(pace);
            fence.sweep(positions.now());
        }
    };
    std::thread::Builder::new().name("sweep".into()).spawn(|| panics::outlast(sweep))?;
    Ok(())
}
