//! What systemd is told, by the protocol of `sd_notify(3)`: datagrams of lines to the socket that `NOTIFY_SOCKET` names.
//!
//! Nothing here fails: without systemd there is no socket, and one that takes no message changes nothing for clients.

use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tracing::{debug, warn};

/// A line of systemd's status is no place for more, in bytes.
const LONGEST_STATUS: usize = 300;

/// Tells systemd. Does nothing where that does not listen.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` with `WATCHDOG_PID`.
    ///
    /// The variables are left as they are: the proxy starts no other programs that could take them for theirs.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(address) = variable("NOTIFY_SOCKET") else { return Self::default() };
        let mut notifier = Self::to(&address);
        let of_another = variable("WATCHDOG_PID").is_some_and(|pid| pid != std::process::id().to_string());
        if !of_another && let Some(microseconds) = variable("WATCHDOG_USEC").and_then(|us| us.parse().ok()) {
            notifier.watchdog = Some(Duration::from_micros(microseconds)).filter(|time| !time.is_zero());
        }
        notifier
    }

    /// To a socket: a path, or `@` and a name that is in no directory.
    pub fn to(address: &str) -> Self {
        let connected = || {
            let address = match address.strip_prefix('@') {
                #[cfg(target_os = "linux")]
                Some(name) => SocketAddr::from_abstract_name(name)?,
                _ => SocketAddr::from_pathname(address)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            // Whoever listens may be slow; the feed's thread must not wait for that.
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        let socket = connected()
            .inspect_err(
                |error| warn!(address, %error, "NOTIFY_SOCKET cannot be used: systemd is told nothing"),
            )
            .ok();
        Self { socket, watchdog: None }
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// After how long without [`Notifier::alive`] the process is killed, if it is.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Clients can be sent here: for the first time, or again after [`Notifier::reloading`].
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The settings are being read again. [`Notifier::ready`] has to follow.
    pub fn reloading(&self) {
        // systemd compares it with the time at which it asked.
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec).saturating_mul(1_000_000) + i128::from(now.tv_nsec) / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// The process is about to end, within this time.
    pub fn stopping(&self, within: Duration) {
        self.send(&format!("STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC={}", within.as_micros()));
    }

    /// Not stuck.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// How it goes, in a line.
    pub fn status(&self, text: &str) {
        let mut end = text.len().min(LONGEST_STATUS);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let line = text.get(..end).unwrap_or_default().replace(['\n', '\r'], " ");
        self.send(&format!("STATUS={line}"));
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            debug!(%error, message, "systemd was not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 1024];
        let length = socket.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn a_path_and_an_abstract_name_are_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("a socket");
        let name = format!("cachefence-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let by_name = UnixDatagram::bind_addr(&address).expect("a socket");
        for (socket, address) in
            [(by_path, path.to_string_lossy().into_owned()), (by_name, format!("@{name}"))]
        {
            let notifier = Notifier::to(&address);
            assert!(notifier.is_heard());
            notifier.ready();
            assert_eq!(heard(&socket), "READY=1");
            notifier.alive();
            assert_eq!(heard(&socket), "WATCHDOG=1");
            notifier.stopping(Duration::from_secs(10));
            assert_eq!(heard(&socket), "STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=10000000");
            notifier.status("two\nlines");
            assert_eq!(heard(&socket), "STATUS=two lines");
            notifier.status(&"ä".repeat(1000));
            assert!(heard(&socket).len() <= LONGEST_STATUS + "STATUS=".len());
            notifier.reloading();
            let reloading = heard(&socket);
            let microseconds = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("the form");
            assert!(microseconds.parse::<u64>().is_ok_and(|us| us > 0), "{reloading}");
        }
    }

    #[test]
    fn nobody_who_listens_is_no_error() {
        for address in ["/nowhere/at/all", "", "@"] {
            let notifier = Notifier::to(address);
            notifier.ready();
            notifier.status("well");
        }
    }
}
