//! A byte stream to a client, to Redis or to Postgres: TCP, with or without TLS, or a unix socket.

use std::any::Any;
use std::io::{self, Write};
use std::ops::DerefMut;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::sockopt;
use rustls::{ConnectionCommon, SideData};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{client, server};

use crate::tls::Peer;

/// Questions without an answer after which the other end counts as gone.
const KEEPALIVE_PROBES: u32 = 3;

/// A connected stream.
#[derive(Debug)]
pub struct Transport {
    // Before the socket: whoever sees that end finds what was held free.
    _held: Option<Box<dyn Any + Send>>,
    stream: Stream,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Towards a client.
    TlsServer(Box<Tls<server::TlsStream<TcpStream>>>),
    /// Towards a server.
    TlsClient(Box<Tls<client::TlsStream<TcpStream>>>, &'static Peer),
}

impl Transport {
    /// TCP.
    pub fn tcp(stream: TcpStream) -> Self {
        Self::new(Stream::Tcp(stream))
    }

    /// A unix socket.
    pub fn unix(stream: UnixStream) -> Self {
        Self::new(Stream::Unix(stream))
    }

    /// TLS with a client, after its handshake.
    pub fn tls_server(stream: server::TlsStream<TcpStream>) -> Self {
        Self::new(Stream::TlsServer(Box::new(Tls::new(stream))))
    }

    /// TLS with a server, after its handshake.
    pub fn tls_client(stream: client::TlsStream<TcpStream>, peer: &'static Peer) -> Self {
        Self::new(Stream::TlsClient(Box::new(Tls::new(stream)), peer))
    }

    /// Keeps a value until right before the socket is closed.
    #[must_use]
    pub fn holding(self, held: impl Any + Send) -> Self {
        Self { _held: Some(Box::new(held)), ..self }
    }

    /// The number of its descriptor.
    pub fn descriptor(&self) -> RawFd {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
            Stream::TlsServer(tls) => tls.stream.as_raw_fd(),
            Stream::TlsClient(tls, _) => tls.stream.as_raw_fd(),
        }
    }

    fn new(stream: Stream) -> Self {
        Self { _held: None, stream }
    }
}

/// Sets what every TCP connection of ours has: no delay, since messages are small and somebody waits for each, and
/// keepalive after so long, unless that is zero.
pub fn prepare(stream: &TcpStream, keepalive: Duration) {
    // All of it fails only on a socket that is gone, which the first read will tell.
    let _ = stream.set_nodelay(true);
    if keepalive.is_zero() {
        return;
    }
    // The system counts in seconds. As Redis does it: three questions in the same time once more.
    let idle = Duration::from_secs(keepalive.as_millis().div_ceil(1000) as u64);
    let interval = Duration::from_secs((idle.as_secs() / u64::from(KEEPALIVE_PROBES)).max(1));
    let _ = sockopt::set_tcp_keepidle(stream, idle);
    let _ = sockopt::set_tcp_keepintvl(stream, interval);
    let _ = sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES);
    let _ = sockopt::set_socket_keepalive(stream, true);
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::TlsServer(tls) => Pin::new(&mut tls.stream).poll_read(cx, buf),
            Stream::TlsClient(tls, peer) => {
                let read = ready!(Pin::new(&mut tls.stream).poll_read(cx, buf));
                Poll::Ready(read.map(|()| tls.heard = true).map_err(|error| tls.in_words(error, peer)))
            }
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::TlsServer(tls) => tls.poll_write(cx, bytes),
            Stream::TlsClient(tls, peer) => {
                tls.poll_write(cx, bytes).map_err(|error| tls.in_words(error, peer))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::TlsServer(tls) => Pin::new(&mut tls.stream).poll_flush(cx),
            Stream::TlsClient(tls, _) => Pin::new(&mut tls.stream).poll_flush(cx),
        }
    }

    /// With TLS it says so to the other end first.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::TlsServer(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
            Stream::TlsClient(tls, _) => Pin::new(&mut tls.stream).poll_shutdown(cx),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        match self {
            Stream::Tcp(_) | Stream::Unix(_) => {}
            Stream::TlsServer(tls) => {
                let (socket, session) = tls.stream.get_mut();
                say_goodbye(socket, session);
            }
            Stream::TlsClient(tls, _) => {
                let (socket, session) = tls.stream.get_mut();
                say_goodbye(socket, session);
            }
        }
    }
}

/// A TLS stream that has written what it says it has.
///
/// The library takes bytes into a buffer of its own, and what the socket does not take at once stays there until
/// somebody flushes. Those who write here wait for room, write again, and never flush; so bytes count as written when
/// the socket has them. Until then the writer comes back with the same ones, as after every [`Poll::Pending`].
#[derive(Debug)]
struct Tls<S> {
    stream: S,
    /// Bytes of the writer that are in the library's buffer and not told as written.
    taken: usize,
    /// Something has been read.
    heard: bool,
}

impl<S: AsyncWrite + Unpin> Tls<S> {
    fn new(stream: S) -> Self {
        Self { stream, taken: 0, heard: false }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            self.taken = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.taken).min(bytes.len())))
    }

    fn in_words(&self, error: io::Error, peer: &Peer) -> io::Error {
        let kind = error.kind();
        let closed = matches!(
            kind,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
        );
        if closed && !self.heard {
            return peer.closed_early(kind);
        }
        peer.in_words(error)
    }
}

/// Without it the other end cannot tell an end from a cut. As much as the socket takes: nobody waits any more.
fn say_goodbye<D: SideData>(
    socket: &mut TcpStream,
    session: &mut impl DerefMut<Target = ConnectionCommon<D>>,
) {
    session.send_close_notify();
    let mut socket = Unwaiting(socket);
    while session.wants_write() && session.write_tls(&mut socket).is_ok_and(|written| written > 0) {}
}

struct Unwaiting<'a>(&'a TcpStream);

impl Write for Unwaiting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    struct Place(Arc<AtomicBool>);

    impl Drop for Place {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// A socket that takes a few bytes now and then.
    #[derive(Default)]
    struct Slow {
        buffered: Vec<u8>,
        sent: Vec<u8>,
        turn: usize,
    }

    impl AsyncWrite for Slow {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let taken = bytes.len().min(100);
            this.buffered.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            this.turn += 1;
            if !this.turn.is_multiple_of(3) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            this.sent.append(&mut this.buffered);
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_written_has_been_sent() {
        let mut tls = Tls::new(Slow::default());
        let bytes: Vec<u8> = (0..1000).map(|n| n as u8).collect();
        let mut written = 0;
        while written < bytes.len() {
            let step = std::future::poll_fn(|cx| tls.poll_write(cx, &bytes[written..])).await;
            written += step.expect("a write");
            assert_eq!(tls.stream.sent, bytes[..written]);
        }
    }

    /// The two ends of a TLS connection that holds a few bytes on its way.
    async fn tls_pair() -> (server::TlsStream<DuplexStream>, client::TlsStream<DuplexStream>) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("parameters");
        let certificate = params.self_signed(&key).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], private)
            })
            .expect("a server");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).expect("a root");
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (ours, theirs) = tokio::io::duplex(1000);
        let name = ServerName::try_from("localhost").expect("a name");
        let (server, client) = tokio::join!(
            TlsAcceptor::from(Arc::new(server)).accept(ours),
            TlsConnector::from(Arc::new(client)).connect(name, theirs)
        );
        (server.expect("a handshake"), client.expect("a handshake"))
    }

    #[tokio::test]
    async fn a_writer_that_never_flushes_is_read_to_its_last_byte() {
        let (server, mut client) = tls_pair().await;
        let bytes: Vec<u8> = (0..100_000).map(|n| (n % 251) as u8).collect();
        let mut tls = Tls::new(server);
        let mut out = bytes.clone();
        // As a session writes: what is left, whenever there may be room, and nothing once nothing is left.
        let writing = tokio::spawn(std::future::poll_fn(move |cx| {
            while !out.is_empty() {
                match tls.poll_write(cx, &out) {
                    Poll::Ready(written) => drop(out.drain(..written.expect("a write"))),
                    Poll::Pending => break,
                }
            }
            Poll::<()>::Pending
        }));
        let mut received = vec![0; bytes.len()];
        let reading = client.read_exact(&mut received);
        tokio::time::timeout(Duration::from_secs(30), reading).await.expect("all of it").expect("a read");
        assert!(received == bytes);
        writing.abort();
    }

    #[tokio::test]
    async fn what_is_held_is_free_when_the_socket_closes() -> io::Result<()> {
        for _ in 0..100 {
            let (ours, mut theirs) = UnixStream::pair()?;
            let free = Arc::new(AtomicBool::new(false));
            let mut transport = Transport::unix(ours).holding(Place(free.clone()));
            transport.write_all(b"x").await?;
            let ending = std::thread::spawn(move || drop(transport));
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).await?;
            assert!(free.load(Ordering::SeqCst));
            ending.join().expect("a thread");
        }
        Ok(())
    }
}
