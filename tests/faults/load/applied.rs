//! What the proxy reports as applied.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cachefence::position::Lsn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Acknowledged, GIVE_UP, Shared, Waiting};

/// How often the proxy is asked.
const ASKED_EVERY: Duration = Duration::from_millis(10);

/// Asks the proxy again and again, and moves what it has applied from the one to the other.
pub async fn watch(shared: Arc<Shared>, mut acknowledged: mpsc::UnboundedReceiver<Acknowledged>) {
    let mut waiting = Waiting::new();
    let mut rebased = 0;
    while !shared.is_stopped() {
        sleep(ASKED_EVERY).await;
        let now = shared.rebased.load(Ordering::SeqCst);
        let answer = timeout(GIVE_UP, reported(&shared.admin())).await.ok().flatten();
        while let Ok(commit) = acknowledged.try_recv() {
            waiting.push_back(commit);
        }
        if now != rebased {
            // Of the database before.
            waiting.clear();
            rebased = now;
        } else if let Some(applied) = answer {
            waiting.retain(|commit| {
                let is = commit.lsn <= applied;
                if is {
                    shared.apply(*commit);
                }
                !is
            });
        }
    }
}

/// `applied_lsn` of `/status`, if there is an answer.
async fn reported(admin: &str) -> Option<Lsn> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let status: serde_json::Value = serde_json::from_str(body).ok()?;
    status.pointer("/feed/applied_lsn")?.as_str()?.parse().ok()
}
