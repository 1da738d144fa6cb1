//! A line between the proxy and a server, which can be cut, switched, or made to swallow everything.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards bytes of TCP connections both ways.
pub struct Line {
    address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

struct State {
    /// Where new connections lead.
    port: AtomicU16,
    gate: Mutex<Gate>,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

/// Whether bytes are forwarded. While not, sockets stay open and nothing moves: no FIN, no RST.
type Gate = Arc<watch::Sender<bool>>;

impl Line {
    /// To a port of loopback.
    pub async fn to(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            port: AtomicU16::new(port),
            gate: Mutex::new(Arc::new(watch::Sender::new(true))),
            connections: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Ok(Self { address, state, accepting })
    }

    /// Where it begins, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Swallows everything from now on: connections stay open, and new ones are accepted.
    pub fn black_hole(&self) {
        self.state.gate().send_replace(false);
    }

    /// What there is of connections swallows everything for good, also that one end closes it; new ones are forwarded. As
    /// behind a router that has forgotten them.
    pub fn strand(&self) {
        let mut gate = self.state.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.send_replace(false);
        *gate = Arc::new(watch::Sender::new(true));
    }

    /// Forwards again. What was held up since is forwarded too.
    pub fn heal(&self) {
        self.state.gate().send_replace(true);
    }

    /// Forgets all connections without a word to the server: as a router that lost its state. The proxy's side is closed.
    pub fn cut(&self) {
        let mut connections = self.state.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.drain(..).for_each(|connection| connection.abort());
    }

    /// New connections lead to another server.
    pub fn switch(&self, port: u16) {
        self.state.port.store(port, Ordering::Release);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl State {
    fn gate(&self) -> Gate {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let connection = tokio::spawn(forward(client, state.clone()));
        let mut connections = state.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| !connection.is_finished());
        connections.push(connection);
    }
}

async fn forward(client: TcpStream, state: Arc<State>) {
    let gate = state.gate();
    opened(&gate).await;
    let port = state.port.load(Ordering::Acquire);
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(copy(from_client, to_server, &gate), copy(from_server, to_client, &gate));
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    gate: &Gate,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        opened(gate).await;
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // What arrived while it was open may go out after it has been closed: it waits, too.
        opened(gate).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

async fn opened(gate: &Gate) {
    // The sender is the gate.
    let _ = gate.subscribe().wait_for(|open| *open).await;
}
