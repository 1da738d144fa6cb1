//! How many instructions the hot paths take: `make instructions`.
//!
//! Times depend on the machine and on what else it does; instructions do not. Each case runs in a process of its own under
//! callgrind, which counts what one function executes, and is compared with the count in `counts.toml`. More than a tenth
//! above it fails. `make instructions ACCEPT=yes` writes the counts of now into that file.
//!
//! CASE picks the cases whose names have that in them.

mod callgrind;
mod cases;
mod counts;
mod meter;

use std::error::Error;
use std::process::ExitCode;

use counts::{Compiler, Counts};

/// What a case comes to.
pub type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A case is told to the process that is measured by this.
const MEASURED: &str = "--measured";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let done = match (arguments.next().as_deref(), arguments.next()) {
        (Some(MEASURED), Some(name)) => measured(&name).map(|()| true),
        _ => compared(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one case, and tells how many operations were counted.
fn measured(name: &str) -> Fallible<()> {
    let case = cases::all().into_iter().find(|case| case.name == name);
    let case = case.ok_or_else(|| format!("no case is called {name:?}"))?;
    let mut meter = meter::Meter::default();
    (case.run)(&mut meter)?;
    println!("{}", meter.operations());
    Ok(())
}

/// Counts every case and compares. False if one takes too many.
fn compared() -> Fallible<bool> {
    let wanted = std::env::var("CASE").unwrap_or_default();
    let names: Vec<&str> =
        cases::all().iter().map(|case| case.name).filter(|name| name.contains(&wanted)).collect();
    let compiler = Compiler::of_now()?;
    let now = callgrind::count(&names)?;
    let committed = Counts::read()?;
    let comparable = committed.compiler.as_ref() == Some(&compiler);
    print!("{}", counts::table(&now, &committed, comparable));
    if accepts() {
        committed.accept(compiler, now)?.write()?;
        println!("\naccepted: they are in {} now", counts::FILE);
        return Ok(true);
    }
    match &committed.compiler {
        Some(other) if !comparable => {
            println!("\nNOT COMPARED: the counts were taken with {other}, and this is {compiler}");
            Ok(true)
        }
        _ => Ok(counts::judge(&now, &committed)),
    }
}

fn accepts() -> bool {
    std::env::var("ACCEPT").is_ok_and(|accept| accept == "yes")
}
