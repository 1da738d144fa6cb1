//! The HTTP port as its users see it: over a socket.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;

struct Source {
    ready: Result<Vec<String>, Vec<String>>,
}

impl AdminSource for Source {
    fn metrics(&self) -> String {
        "cachefence_clients 1\n".into()
    }
    fn ready(&self) -> Result<Vec<String>, Vec<String>> {
        self.ready.clone()
    }
    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "feed": { "streaming": true } })
    }
}

struct Keys;

impl Explain for Keys {
    fn explain(&self, db: Option<u32>, key: &[u8]) -> serde_json::Value {
        serde_json::json!({ "bytes": key, "db": db })
    }
}

async fn start(ready: Result<Vec<String>, Vec<String>>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(serve(listener, Arc::new(Source { ready }), Arc::new(Keys)));
    address
}

/// Sends a request's head, reads to the end.
async fn ask(address: std::net::SocketAddr, line: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn every_path_answers() {
    let address = start(Ok(vec![])).await;
    for (line, status, body) in [
        ("GET /livez", "200", "\r\n\r\nalive\n"),
        ("GET /readyz", "200", "\r\n\r\nready\n"),
        ("GET /metrics", "200", "\r\n\r\ncachefence_clients 1\n"),
        ("GET /status", "200", "\"streaming\": true"),
        ("GET /", "200", "<title>cachefence</title>"),
        ("GET /explain?key=a%3Ab+%ff", "200", "97,\n    58,\n    98,\n    32,\n    255\n"),
        ("GET /reload", "405", "\r\n\r\nonly POST\n"),
        ("POST /reload", "404", "nothing to reload"),
        ("POST /reload HTTP/1.1\r\nOrigin: http://x\r\nX:", "403", "a page of another site"),
        ("GET /explain?db=3&key=a", "200", "\"db\": 3"),
        ("GET /explain?key=a", "200", "\"db\": null"),
        ("GET /explain?key=a&db=x", "400", "&db=0"),
        ("GET /explain?key=", "400", "/explain?key="),
        ("GET /explain?keys=a", "400", "/explain?key="),
        ("GET /explain", "400", "/explain?key="),
        ("GET /explain?key=%zz", "400", "/explain?key="),
        ("GET /nothing", "404", "/metrics"),
        ("POST /metrics", "405", "only GET and HEAD"),
    ] {
        let answer = ask(address, line).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(body),
            "{line}: {answer}"
        );
        assert!(answer.contains("cache-control: no-store"), "{answer}");
    }
    let long = format!("GET /explain?key={}", "x".repeat(9_000));
    assert!(ask(address, &long).await.starts_with("HTTP/1.1 400"));
    let head = ask(address, "HEAD /livez").await;
    assert!(head.contains("content-length: 6\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

/// A page whose name was made to resolve to this host.
#[tokio::test]
async fn who_calls_a_loopback_port_by_another_name_is_told_nothing() {
    let address = start(Ok(vec![])).await;
    for path in ["/status", "/explain?key=a", "/metrics", "/livez"] {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: rebound.example:9187\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("localhost or an address"), "{answer}");
    }
}

#[tokio::test]
async fn what_is_not_ready_says_why() {
    let address = start(Err(vec!["the feed is lost".into(), "guard public.users is broken".into()])).await;
    let answer = ask(address, "GET /readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with("not ready\nthe feed is lost\nguard public.users is broken\n"), "{answer}");
}

#[tokio::test]
async fn slow_peers_keep_nobody_out() {
    let address = start(Ok(vec![])).await;
    let mut slow = Vec::new();
    for _ in 0..3 * MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(b"GET /livez HTTP/1.1\r\n").await.expect("sent");
        slow.push(stream);
    }
    let answer = timeout(Duration::from_secs(2), ask(address, "GET /livez")).await.expect("in time");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // The first of them had to leave.
    let mut rest = Vec::new();
    let end = timeout(Duration::from_secs(2), slow[0].read_to_end(&mut rest)).await;
    assert!(end.is_ok());
}

/// Opens a stream, and reads until it has said `wanted`.
async fn follow(address: std::net::SocketAddr, wanted: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    until(&mut stream, wanted).await;
    stream
}

async fn until(stream: &mut TcpStream, wanted: &str) {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let reading = timeout(Duration::from_secs(30), stream.read(&mut buffer)).await;
        let n = reading.expect("in time").expect("read");
        assert!(n > 0, "it ended after {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

#[tokio::test]
async fn a_stream_tells_what_was_and_what_is_again_and_again() {
    let address = start(Ok(vec![])).await;
    let mut stream = follow(address, "event: now\ndata: {\"feed\":{\"streaming\":true}}\n\n").await;
    for _ in 0..2 {
        until(&mut stream, "event: now\n").await;
    }
    let head = ask(address, "HEAD /events").await;
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let other = ask(address, "GET /events HTTP/1.1\r\nHost: evil.example\r\nX:").await;
    assert!(other.starts_with("HTTP/1.1 403"), "{other}");
}

#[tokio::test]
async fn streams_that_nobody_reads_keep_nobody_out() {
    let address = start(Ok(vec![])).await;
    let mut silent = Vec::new();
    for _ in 0..events::MAX_STREAMS {
        silent.push(follow(address, "event: history").await);
    }
    // One more gets in, and the oldest leaves.
    let mut more = follow(address, "event: now").await;
    let mut rest = Vec::new();
    timeout(Duration::from_secs(30), silent[0].read_to_end(&mut rest)).await.expect("it ends").expect("read");
    // Short questions that are asked slowly push out each other, no stream.
    let mut slow = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(b"GET /livez HTTP/1.1\r\n").await.expect("sent");
        slow.push(stream);
    }
    let answer = timeout(Duration::from_secs(5), ask(address, "GET /livez")).await.expect("in time");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    until(&mut more, "event: now").await;
    until(&mut silent[1], "event: now").await;
}

#[tokio::test]
async fn oversize_headers_end_the_connection() {
    let address = start(Ok(vec![])).await;
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let header = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(10 * MAX_HEADER_BYTES));
    // Closed while we still send: both ends of it may fail.
    let _ = stream.write_all(header.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("alive"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_check_asks_whether_it_is_alive() {
    let address = start(Err(vec!["not ready, but alive".into()])).await;
    let check = |listen: String| tokio::task::spawn_blocking(move || health(&listen));
    assert!(check(address.to_string()).await.expect("joined").is_ok());
    assert!(check(format!("0.0.0.0:{}", address.port())).await.expect("joined").is_ok());
    let free =
        TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("a port");
    let error = check(free.to_string()).await.expect("joined").expect_err("nobody there");
    assert!(error.to_string().contains("does not answer"), "{error}");
}
