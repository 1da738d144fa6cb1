//! A load of commands at a fixed rate, so that all that are compared have the same to do.
//!
//! Every reply is looked at: a figure of refusals must not pass for one of fills.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use cachefence::demo::client::encode;

use crate::{Fallible, cpu};

/// Of each load.
const CONNECTIONS: usize = 50;

/// A command, and the reply that it must get, byte by byte.
pub struct Exchange {
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Exchange {
    /// A GET that must miss.
    pub fn miss(key: &str) -> Self {
        Self { request: encode(&["GET", key]), reply: b"$-1\r\n".to_vec() }
    }

    /// A GET that must hit.
    pub fn hit(key: &str, value: &str) -> Self {
        let reply = format!("${}\r\n{value}\r\n", value.len()).into_bytes();
        Self { request: encode(&["GET", key]), reply }
    }

    /// Anything that is answered with OK. So are fills that are refused, by default.
    pub fn ok(command: &[&str]) -> Self {
        Self { request: encode(command), reply: b"+OK\r\n".to_vec() }
    }
}

/// Clients of one server.
pub struct Clients {
    /// Those that are not at work. Each has its place: an operation of the same number comes by the same connection.
    idle: Vec<TcpStream>,
    rate: u32,
}

/// What a load came to.
pub struct Done {
    /// Nanoseconds of CPU of the process for one operation.
    pub cpu: f64,
    /// Operations per second.
    pub rate: f64,
}

impl Clients {
    /// Connects all of them, to do so many operations per second together.
    pub async fn connect(address: &str, rate: u32) -> Fallible<Self> {
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            idle.push(stream);
        }
        Ok(Self { idle, rate })
    }

    /// Does these operations, each of some exchanges one after the other, and tells what they cost a process.
    pub async fn run(
        &mut self,
        pid: u32,
        numbers: std::ops::Range<u32>,
        operation: impl Fn(u32) -> Vec<Exchange> + Send + Sync + 'static,
    ) -> Fallible<Done> {
        let operation = Arc::new(operation);
        let (count, connections) = (numbers.len() as f64, self.idle.len());
        let (used, began) = (cpu::nanos(pid), Instant::now());
        let mut tasks = JoinSet::new();
        for (place, mut stream) in self.idle.drain(..).enumerate() {
            let (operation, rate, numbers) = (operation.clone(), self.rate, numbers.clone());
            tasks.spawn(async move {
                for number in numbers.clone().skip(place).step_by(connections) {
                    let due = Duration::from_secs_f64(f64::from(number - numbers.start) / f64::from(rate));
                    tokio::time::sleep_until((began + due).into()).await;
                    for exchange in operation(number) {
                        exchange.on(&mut stream).await?;
                    }
                }
                Ok::<_, io::Error>((place, stream))
            });
        }
        let mut streams = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            streams.push(ended??);
        }
        let (took, used) = (began.elapsed().as_secs_f64(), cpu::nanos(pid).saturating_sub(used));
        streams.sort_by_key(|(place, _)| *place);
        self.idle.extend(streams.into_iter().map(|(_, stream)| stream));
        Ok(Done { cpu: used as f64 / count, rate: count / took })
    }
}

impl Exchange {
    async fn on(&self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(&self.request).await?;
        let mut reply = vec![0; self.reply.len()];
        stream.read_exact(&mut reply).await?;
        if reply == self.reply {
            return Ok(());
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Err(io::Error::other(format!("{:?} was answered {:?}", text(&self.request), text(&reply))))
    }
}
