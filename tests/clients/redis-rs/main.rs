//! redis-rs: the blocking connection, and the multiplexed one of tokio.

mod asynchronous;
mod blocking;

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What a case answers: `Ok(Some(why))` if it was not run.
pub type Outcome = Result<Option<&'static str>, Box<dyn Error>>;

/// How long anything may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where the cache is.
pub struct Place {
    /// 2 or 3.
    pub protocol: u32,
    host: String,
    port: String,
    /// A row of the guarded table that nobody else uses.
    pub user: Option<u32>,
}

impl Place {
    /// A client with this user (`name:password@`) and db.
    pub fn client(&self, user: &str, db: u8) -> redis::RedisResult<redis::Client> {
        let Self { protocol, host, port, .. } = self;
        redis::Client::open(format!("redis://{user}{host}:{port}/{db}?protocol={protocol}"))
    }
}

/// Every byte there is.
pub fn binary() -> Vec<u8> {
    (0..=255).collect()
}

/// Five megabytes.
pub fn big() -> Vec<u8> {
    (0..5u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Polls until the condition holds.
pub fn until(
    what: &str,
    mut condition: impl FnMut() -> redis::RedisResult<bool>,
) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    while !condition()? {
        if began.elapsed() > PATIENCE {
            return Err(format!("waited in vain for {what}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Reports a case.
pub fn report(failed: &mut bool, protocol: u32, name: &str, outcome: Outcome) {
    match outcome {
        Ok(None) => println!("ok resp{protocol} {name}"),
        Ok(Some(why)) => println!("ok resp{protocol} {name} # SKIP {why}"),
        Err(error) => {
            *failed = true;
            println!("not ok resp{protocol} {name}: {}", format!("{error}").replace('\n', " "));
        }
    }
}

/// An error instead of a panic, so that the other cases are run.
#[macro_export]
macro_rules! same {
    ($left:expr, $right:expr) => {
        match ($left, $right) {
            (left, right) if left != right => {
                let text: String = format!("{left:?} is not {right:?}").chars().take(300).collect();
                return Err(format!("line {}: {text}", line!()).into());
            }
            _ => {}
        }
    };
}

fn main() -> ExitCode {
    let setting = |name| std::env::var(name).unwrap_or_default();
    let mut failed = false;
    for protocol in setting("PROTOCOLS").split(' ').filter_map(|protocol| protocol.parse().ok()) {
        let user = setting("USER_ID").parse().ok().map(|user: u32| user + protocol);
        let place = Place { protocol, host: setting("CACHE_HOST"), port: setting("CACHE_PORT"), user };
        blocking::run(&place, &mut failed);
        asynchronous::run(&place, &mut failed);
    }
    ExitCode::from(u8::from(failed))
}
