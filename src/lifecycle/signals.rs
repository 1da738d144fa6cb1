//! SIGTERM and SIGINT: the first asks the proxy to stop, the second ends it where it stands.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::warn;

/// What the shell adds to a signal's number to tell that a program was ended by it.
const ENDED_BY_SIGNAL: i32 = 128;

/// A signal that ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
}

impl Ending {
    /// As it is written in a manual.
    pub fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }

    /// The status of a process that was ended by it: 143, or 130.
    pub fn status(self) -> i32 {
        let kind = match self {
            Self::Terminate => SignalKind::terminate(),
            Self::Interrupt => SignalKind::interrupt(),
        };
        ENDED_BY_SIGNAL + kind.as_raw_value()
    }
}

/// Listens, on a thread of its own: the second signal must end a process whose other threads hang, too.
///
/// The receiver is told of the first. The process is gone after the second: a crash like any other, after which a successor
/// finds what was not confirmed in the slot.
///
/// # Errors
/// When the operating system gives no thread or no handler.
pub fn listen() -> io::Result<watch::Receiver<Option<Ending>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tell, told) = watch::channel(None);
    let mut signals = {
        let _inside = runtime.enter();
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async move {
            tell.send_replace(Some(signals.next().await));
            let second = signals.next().await;
            warn!(signal = second.name(), "a second signal: ending at once");
            std::process::exit(second.status());
        });
    })?;
    Ok(told)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) -> Ending {
        tokio::select! {
            _ = self.terminate.recv() => Ending::Terminate,
            _ = self.interrupt.recv() => Ending::Interrupt,
        }
    }
}
