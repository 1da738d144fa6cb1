//! The four divergences, side by side, on real servers.
//!
//! The same scripts are played twice at the same time: by an application that talks straight to Redis, and by the
//! same application through the proxy. Each has a Redis of its own, since the proxy would clean up after both.
//!
//! [`scenarios`](self) are the scripts, `application` is the cache-aside application that they move, `onlooker`
//! watches cache and database meanwhile, `narration` prints. Nothing that is printed was decided beforehand.

mod application;
pub mod client;
mod narration;
mod onlooker;
mod play;
mod scenarios;
pub mod servers;
mod stage;

use std::path::PathBuf;

use narration::Narrator;
use onlooker::Sighting;
use play::Play;
use scenarios::Scenario;
pub use servers::ServerError;
use stage::Stage;

/// What to play.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Leave everything running afterwards, until Ctrl-C.
    pub stay: bool,
    /// What stands between the second application and its Redis.
    pub between: Between,
}

/// What stands between the second application and its Redis.
#[derive(Debug, Clone)]
pub enum Between {
    /// The proxy: this program, started as `PROGRAM run --config FILE`.
    Proxy(PathBuf),
    /// Nothing: the demo's own control, which has to report that both go wrong.
    Nothing,
}

impl DemoOptions {
    /// With the running program as the proxy.
    pub fn new(stay: bool) -> Result<Self, DemoError> {
        let program = std::env::current_exe().map_err(ServerError::io("find the running program"))?;
        Ok(Self { stay, between: Between::Proxy(program) })
    }
}

/// What became of the four divergences.
#[derive(Debug, Clone)]
pub struct DemoOutcome {
    /// One for each divergence, in the order played.
    pub rows: Vec<DemoRow>,
}

/// What became of one divergence.
#[derive(Debug, Clone)]
pub struct DemoRow {
    /// Its name.
    pub divergence: &'static str,
    /// Whether a wrong value stayed in the cache without the proxy.
    pub direct_went_wrong: bool,
    /// Whether a wrong value stayed in the cache with the proxy, or the right one did not come back into it.
    pub through_went_wrong: bool,
}

impl DemoOutcome {
    /// Whether all went wrong directly and none did through the proxy: the demo's exit status is 0 only then.
    pub fn proven(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.direct_went_wrong && !row.through_went_wrong)
    }
}

/// Why the demo could not be played to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// A server could not be started, reached or ended.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A cache connection failed.
    #[error("the cache at {address}: {source}")]
    Cache {
        /// Where the connection went.
        address: String,
        /// What happened to it.
        source: std::io::Error,
    },
    /// The cache answered something that the application cannot read.
    #[error("{command} was answered {answer}")]
    Answer {
        /// The command.
        command: String,
        /// The answer.
        answer: String,
    },
    /// The terminal or a supervisor ended the demo.
    #[error("interrupted: all servers were stopped and their data removed")]
    Interrupted,
}

/// Plays all four divergences and prints what happened. All servers have ended when this returns.
pub async fn run(options: DemoOptions) -> Result<DemoOutcome, DemoError> {
    let interrupted = interrupted()?;
    tokio::pin!(interrupted);
    // Dropping the performance drops, and so ends, its servers.
    let outcome = tokio::select! {
        biased;
        () = &mut interrupted => return Err(DemoError::Interrupted),
        outcome = perform(&options) => outcome,
    };
    match outcome {
        Ok((outcome, Some(stage))) => {
            interrupted.await;
            drop(stage);
            Ok(outcome)
        }
        Ok((outcome, None)) => Ok(outcome),
        // Ctrl-C reaches the servers too, and theirs can be the first answer to it.
        Err(error) => {
            let patience = std::time::Duration::from_millis(50);
            match tokio::time::timeout(patience, interrupted).await {
                Ok(()) => Err(DemoError::Interrupted),
                Err(_) => Err(error),
            }
        }
    }
}

/// Plays everything; returns the stage if it is to stay.
async fn perform(options: &DemoOptions) -> Result<(DemoOutcome, Option<Stage>), DemoError> {
    let narrator = Narrator::for_stdout(&options.between);
    narrator.line("Starting throw-away servers on loopback ...");
    let stage = Stage::start(options).await?;
    narrator.line(&stage.description());
    let mut results = Vec::new();
    for (number, scenario) in scenarios::all().into_iter().enumerate() {
        narrator.heading(number + 1, scenario);
        let (direct, through) = tokio::try_join!(
            play(&stage, scenario, Play::direct(&stage, number)),
            play(&stage, scenario, Play::through(&stage, number)),
        )?;
        narrator.timelines(&direct, &through);
        results.push((scenario, direct.sighting, through.sighting));
    }
    narrator.summary(&results);
    if let Some(metrics) = stage.metrics().await? {
        narrator.counters(&metrics);
    }
    let rows = results.iter().map(|(scenario, direct, through)| DemoRow {
        divergence: scenario.name,
        direct_went_wrong: direct.went_wrong(),
        through_went_wrong: through.went_wrong() || !through.recovered,
    });
    let outcome = DemoOutcome { rows: rows.collect() };
    narrator.outcome(&outcome);
    if !options.stay {
        return Ok((outcome, None));
    }
    narrator.line(&stage.invitation().await?);
    Ok((outcome, Some(stage)))
}

/// What one play left behind.
struct Played {
    id: i64,
    steps: Vec<play::Step>,
    sighting: Sighting,
}

/// Plays one scenario for one application, with an onlooker.
async fn play(
    stage: &Stage,
    scenario: Scenario,
    play: impl Future<Output = Result<Play<'_>, DemoError>>,
) -> Result<Played, DemoError> {
    let mut play = play.await?;
    let mut onlooker = stage.onlooker(&play).await?;
    let over = std::sync::atomic::AtomicBool::new(false);
    let script = async {
        let end = scenarios::script(scenario.kind, &mut play).await;
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        end
    };
    let (end, seen) = tokio::join!(script, onlooker.watch(&over));
    end?;
    let sighting = seen?.with_traffic(&play.traffic);
    Ok(Played { id: play.id, steps: play.steps, sighting })
}

/// Resolves at Ctrl-C, SIGTERM or SIGHUP.
fn interrupted() -> Result<impl Future<Output = ()>, DemoError> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(ServerError::io("listen for signals"));
    let mut int = listen(SignalKind::interrupt())?;
    let mut term = listen(SignalKind::terminate())?;
    let mut hup = listen(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    })
}
