//! Metrics, health and status over HTTP, for Prometheus, orchestrators and people.

mod answer;
mod events;
mod health;
mod history;
mod info;
mod origin;
mod page;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::complaint::Complaint;

use events::{Connection, Streams};
pub use health::{HealthError, health};
pub use history::Sample;
pub use info::info;

use crate::reload::Reloads;

/// What the HTTP port shows.
pub trait AdminSource: Send + Sync + 'static {
    /// Prometheus's text format.
    fn metrics(&self) -> String;

    /// Whether clients should be sent here, and what is not as it should be all the same.
    ///
    /// # Errors
    /// Why they should not, in words.
    fn ready(&self) -> Result<Vec<String>, Vec<String>>;

    /// Feed, sources, table, cache.
    fn status(&self) -> serde_json::Value;

    /// All that the page shows of now.
    fn glance(&self) -> serde_json::Value {
        self.status()
    }

    /// What the page draws of now.
    fn sample(&self) -> Sample {
        Sample::default()
    }

    /// Who reloads the settings, if anybody does.
    fn reloads(&self) -> Option<&Reloads> {
        None
    }
}

/// Who knows of single keys.
pub trait Explain: Send + Sync + 'static {
    /// What is known of a key of a db (that of the proxy's own connection, if none is named), and what fills of it would
    /// get now.
    fn explain(&self, db: Option<u32>, key: &[u8]) -> serde_json::Value;
}

/// Connections at a time. Whoever looks is done in milliseconds.
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// From accepting a connection to its end, for whoever reads slowly.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Serves on a thread of its own: probes and scrapes are answered however busy the feed is, and do not hold it up.
///
/// # Errors
/// When the operating system gives no thread, or what a thread needs to wait for sockets.
pub fn start(listener: TcpListener, source: Arc<dyn AdminSource>, keys: Arc<dyn Explain>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The listener belongs to the thread that waits for it.
    let listener = listener.into_std()?;
    let serve = move || {
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => match serve(listener, source, keys).await {},
                Err(error) => tracing::error!(%error, "the admin port cannot be served"),
            }
        });
    };
    std::thread::Builder::new().name("admin".into()).spawn(serve).map(drop)
}

/// Serves until the task is dropped.
///
/// When [`MAX_CONNECTIONS`] are open, the oldest makes room: many slow peers cannot keep a health probe out.
pub async fn serve(
    listener: TcpListener,
    source: Arc<dyn AdminSource>,
    keys: Arc<dyn Explain>,
) -> Infallible {
    let streams = Arc::new(Streams::default());
    tokio::spawn(streams.clone().run(source.clone()));
    let mut open: VecDeque<(AbortHandle, Arc<Connection>)> = VecDeque::new();
    let mut complaint = Complaint::default();
    let loopback = listener.local_addr().is_ok_and(|address| origin::is_loopback(address.ip()));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: trying again at once would only spin.
                if complaint.is_due() {
                    tracing::warn!(%error, "the admin port cannot accept a connection");
                }
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|(task, _)| !task.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            // Streams are meant to be old, and bounded by themselves.
            let oldest = open.iter().position(|(_, connection)| !connection.is_stream()).unwrap_or(0);
            if let Some((oldest, _)) = open.remove(oldest) {
                oldest.abort();
            }
        }
        let known = Arc::new(Connection::default());
        let asked = Asked { source: source.clone(), keys: keys.clone(), streams: streams.clone() };
        let task = tokio::spawn(connection(stream, loopback, asked, known.clone()));
        open.push_back((task.abort_handle(), known));
    }
}

/// Those who answer.
struct Asked {
    source: Arc<dyn AdminSource>,
    keys: Arc<dyn Explain>,
    streams: Arc<Streams>,
}

async fn connection(stream: TcpStream, loopback: bool, asked: Asked, known: Arc<Connection>) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(match origin::objection(&request, loopback) {
            Some(why) => answer::forbid(why),
            None => answer::answer(&request, &asked, &known).await,
        })
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        // One request each: an idle connection would only be in the way.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let too_long = async {
        sleep(CONNECTION_TIMEOUT).await;
        if known.is_stream() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // Malformed requests and peers that left are theirs, not ours: nothing to log.
        _ = serving => {}
        () = too_long => {}
        () = known.gone.notified() => {}
    }
}

#[cfg(test)]
mod tests;
