//! The command line.

use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cachefence::cache::{Connection, Endpoint, EndpointError, purge_guards};
use cachefence::check::{self, Standing};
use cachefence::config::{Config, ConfigError};
use cachefence::demo::DemoOptions;
use cachefence::feed::{catalog, sql};
use cachefence::guard::{GuardError, Guards};
use cachefence::lifecycle::panics;
use cachefence::run::RunError;
use cachefence::{admin, demo, run};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Gives memory back after a peak, a burst of large replies say, where the C library's keeps it. See the soak in
/// docs/reliability.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A Redis-protocol proxy that keeps a cache from going back in time
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Options {
    /// The settings [default: $CACHEFENCE_CONFIG, else cachefence.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How log lines look; what is logged is set by CACHEFENCE_LOG or RUST_LOG, such as "info,cachefence::feed=debug"
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "CACHEFENCE_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy
    Run,
    /// Test every precondition, and print what to do about those that do not hold
    Check {
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Create the publication, the slot and the SQL functions, where they are missing
    Init {
        /// Print the SQL instead of running it
        #[arg(long)]
        print: bool,
    },
    /// Play the four ways a cache goes wrong, without and with the proxy, on servers of its own
    Demo {
        /// Leave everything running at the end, and say how to reach it
        #[arg(long)]
        stay: bool,
    },
    /// Delete the keys of a guard
    Purge {
        /// The guard's table, such as public.users
        #[arg(long, value_name = "TABLE")]
        guard: String,
    },
    /// Print what completes the commands in a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page, or write one for each command
    Man {
        /// The directory to write them into; it is made if missing
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
    },
    /// Ask the running proxy whether it is alive (for containers)
    #[command(hide = true)]
    Healthcheck,
}

/// Why the process ends with another status than 0.
#[derive(Debug, Error)]
enum Failure {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}: {1}; write it as \"info\" or \"info,cachefence::feed=debug\"")]
    Log(&'static str, ParseError),
    #[error("{0}")]
    Guard(#[from] GuardError),
    #[error("--guard: no guard of table {0:?} in the settings; there are guards of: {1}")]
    NoSuchGuard(String, String),
    #[error("{0} of {1} checks failed")]
    Check(usize, usize),
    #[error("{0}")]
    Redis(#[from] EndpointError),
    #[error("{0}")]
    Run(#[from] run::RunError),
    #[error("{0}")]
    Catalog(#[from] catalog::CatalogError),
    #[error("{0}")]
    Cache(#[from] cachefence::cache::CacheError),
    #[error("{0}")]
    Demo(#[from] demo::DemoError),
    #[error("the demo did not show what it should: see the table above")]
    DemoNotProven,
    #[error("the operating system gives no threads: {0}")]
    Threads(#[from] std::io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    #[error("cannot write {0}: {1}")]
    Write(String, io::Error),
    #[error("not alive: {0}")]
    Health(#[from] admin::HealthError),
}

impl Failure {
    /// 2 for what the caller wrote, 1 for what went wrong.
    fn status(&self) -> ExitCode {
        match self {
            Failure::Config(_) | Failure::Log(..) | Failure::Guard(_) | Failure::NoSuchGuard(..) => {
                ExitCode::from(2)
            }
            Failure::Redis(_) | Failure::Run(RunError::Redis(_) | RunError::Tls(_)) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start_logging(cli.options.log_format).and_then(|()| dispatch(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Not by tracing: a filter must not be able to hide why nothing runs.
            for line in failure.to_string().lines() {
                eprintln!("cachefence: {line}");
            }
            match cli.command {
                // Docker knows 0 and 1 only.
                Command::Healthcheck => ExitCode::FAILURE,
                _ => failure.status(),
            }
        }
    }
}

fn start_logging(format: LogFormat) -> Result<(), Failure> {
    let set = |name| Some((name, std::env::var(name).ok().filter(|filter| !filter.is_empty())?));
    let (name, filter) = ["CACHEFENCE_LOG", EnvFilter::DEFAULT_ENV]
        .into_iter()
        .find_map(set)
        .unwrap_or(("CACHEFENCE_LOG", "info".to_owned()));
    let filter = EnvFilter::try_new(filter).map_err(|error| Failure::Log(name, error))?;
    // To stderr: stdout is for what the demo, `init --print` and `check` have to say.
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match format {
        LogFormat::Text => subscriber.with_ansi(stderr().is_terminal()).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    panics::tell();
    Ok(())
}

fn dispatch(cli: &Cli) -> Result<(), Failure> {
    // The demo makes settings of its own.
    match &cli.command {
        Command::Demo { stay } => return demo(*stay),
        Command::Completions { shell } => return completions(*shell),
        Command::Man { into } => return man(into.as_deref()),
        _ => {}
    }
    let config = Config::load(cli.options.config.as_deref())?;
    match &cli.command {
        Command::Run => run(config, cli.options.config.clone()),
        Command::Check { json } => check(&config, *json),
        Command::Init { print } => init(config, *print),
        Command::Purge { guard } => purge(config, guard),
        Command::Healthcheck => Ok(admin::health(&config.admin.listen)?),
        Command::Demo { .. } | Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cachefence", &mut text);
    stdout().write_all(&text).map_err(Failure::Output)
}

/// What clap does not know of, for the manual page.
const MORE: &str = "\
.SH EXIT STATUS
0 if all went well, 1 if something did not, 2 for wrong arguments or settings. \\fBrun\\fR ends with 143 or 130 at a second signal.
.SH ENVIRONMENT
.TP
CACHEFENCE_CONFIG
the settings, where \\-\\-config does not name them
.TP
CACHEFENCE_LOG, RUST_LOG
what is logged, such as \\(lqinfo,cachefence::proxy=debug\\(rq
.TP
CACHEFENCE_LOG_FORMAT
text or json
.TP
CACHEFENCE_SECTION__SETTING
any setting, such as CACHEFENCE_REDIS__URL; it counts before the file
.SH FILES
cachefence.toml in the working directory, unless named otherwise
.SH SEE ALSO
.BR redis-server (1),
.BR postgres (1)
";

fn man(into: Option<&Path>) -> Result<(), Failure> {
    let page = |command: &clap::Command| -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        clap_mangen::Man::new(command.clone()).render(&mut text)?;
        text.extend_from_slice(MORE.as_bytes());
        Ok(text)
    };
    let mut command = Cli::command();
    command.build();
    let Some(dir) = into else {
        return page(&command).and_then(|text| stdout().write_all(&text)).map_err(Failure::Output);
    };
    let write = |name: String, command: &clap::Command| {
        let path = dir.join(name);
        let written = page(command).and_then(|text| std::fs::write(&path, text));
        written.map_err(|error| Failure::Write(path.display().to_string(), error))
    };
    std::fs::create_dir_all(dir).map_err(|error| Failure::Write(dir.display().to_string(), error))?;
    write("cachefence.1".into(), &command)?;
    for command in
        command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
    {
        let name = format!("cachefence-{}", command.get_name());
        write(format!("{name}.1"), &command.clone().name(name))?;
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn run(config: Config, file: Option<PathBuf>) -> Result<(), Failure> {
    if stderr().is_terminal() {
        // Whoever closes the terminal at once does not need it.
        let _ = stderr().write_all(run::introduction(&config).as_bytes());
    }
    // Clients have threads of their own, and so has the admin port. The feed, the deletions and the polls of the sources
    // share this one: a commit passes from the feed to the deletion and back, and to hand it to another thread that sleeps
    // costs more than all else that is done for it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(run::run(config, move || Config::load(file.as_deref())));
    // Tasks that sit in a blocking call (a look-up of a name) must not hold up the end.
    runtime.shutdown_background();
    Ok(ended?)
}

fn init(config: Config, print: bool) -> Result<(), Failure> {
    let guards = Guards::new(&config.guards, config.redis.db())?;
    let publication = &config.postgres.publication;
    let slot = (!config.postgres.temporary_slot).then_some(config.postgres.slot.as_str());
    if print {
        print!(
            "{}",
            sql::script(
                &guards,
                publication,
                slot,
                config.postgres.target().map_err(catalog::CatalogError::from)?.database()
            )
        );
        return Ok(());
    }
    let done = runtime()?.block_on(async {
        let client = catalog::connect(&config.postgres.target()?, &config.postgres.application_name).await?;
        sql::init(&client, &guards, publication, slot).await
    })?;
    done.iter().for_each(|done| println!("{done}"));
    Ok(())
}

fn check(config: &Config, json: bool) -> Result<(), Failure> {
    let guards = Guards::new(&config.guards, config.redis.db())?;
    let report = runtime()?.block_on(check::check(config, &guards));
    if json {
        println!("{}", report.json().map_err(io::Error::from)?);
    } else {
        let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        print!("{}", report.text(colour));
    }
    match report.count(Standing::Failed) {
        0 => Ok(()),
        failed => Err(Failure::Check(failed, report.rows.len())),
    }
}

fn demo(stay: bool) -> Result<(), Failure> {
    let outcome = runtime()?.block_on(async { demo::run(DemoOptions::new(stay)?).await })?;
    if outcome.proven() { Ok(()) } else { Err(Failure::DemoNotProven) }
}

fn purge(config: Config, table: &str) -> Result<(), Failure> {
    let guards = Guards::new(&config.guards, config.redis.db())?;
    let label = if table.contains('.') { table.to_owned() } else { format!("public.{table}") };
    if guards.by_label(&label).is_none() {
        let known: Vec<&str> = guards.iter().map(|guard| guard.label.as_str()).collect();
        return Err(Failure::NoSuchGuard(label, known.join(", ")));
    }
    let redis = Endpoint::new(&config)?;
    let name = format!("cachefence:{}:purge", config.postgres.slot);
    let purged = runtime()?.block_on(async {
        let mut connection = Connection::open(&redis, &name).await?;
        purge_guards(&mut connection, &guards, |id| guards.get(id).is_some_and(|guard| guard.label == label))
            .await
    })?;
    println!("{purged} keys of {label} deleted");
    Ok(())
}
