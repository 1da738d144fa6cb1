//! Servers that answer oddly, each played by the test. What real ones do is in `tests/postgres_connections.rs`.

use tokio::net::TcpListener;

use super::*;

/// A client that takes everybody.
struct Anybody(Standing);

impl Login for Anybody {
    async fn login(_: Transport, session: &Session<'_>) -> Result<Self, PgError> {
        // The user's name says what kind of server it was.
        let standby = session.target.user == "standby";
        Ok(Self(Standing { standby, read_only: session.target.user == "read-only", known: true }))
    }

    fn standing(&self) -> Standing {
        self.0
    }

    async fn ask_standing(&mut self) -> Result<Standing, PgError> {
        Err(PgError::Protocol("it has said so".into()))
    }
}

/// Answers every connection's first eight bytes with these, and then closes it.
async fn answering(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 8];
            if socket.read_exact(&mut request).await.is_ok() {
                drop(socket.write_all(answer).await);
            }
        }
    });
    port
}

async fn connected(url: &str) -> Result<Host, String> {
    let target = Target::parse(url).expect(url);
    connect::<Anybody>(&target, "test").await.map(|(_, host)| host).map_err(|error| error.to_string())
}

#[tokio::test]
async fn what_stands_between_the_word_for_tls_and_the_handshake_is_refused() {
    let port = answering(b"SR\0\0\0\x08").await;
    let error =
        connected(&format!("postgres://me@127.0.0.1:{port}?sslmode=require")).await.expect_err("injected");
    assert!(error.contains("bytes between the word for TLS and its handshake"), "{error}");
}

#[tokio::test]
async fn an_error_before_the_handshake_is_not_shown() {
    let port = answering(b"E\0\0\0\x10Mcome here\0\0").await;
    for mode in ["require", "verify-ca&sslrootcert=system&sslmode=verify-full"] {
        let error =
            connected(&format!("postgres://me@127.0.0.1:{port}?sslmode={mode}")).await.expect_err("E");
        assert!(!error.contains("come here"), "{error}");
    }
}

#[tokio::test]
async fn a_server_without_tls() {
    let port = answering(b"N").await;
    let url = |mode| format!("postgres://me@127.0.0.1:{port}?sslmode={mode}");
    for mode in ["disable", "allow", "prefer"] {
        assert!(connected(&url(mode)).await.is_ok(), "{mode}");
    }
    let error = connected(&url("require")).await.expect_err("no TLS");
    assert!(error.contains("the server does not speak TLS"), "{error}");
    let error = connected(&url("verify-ca")).await.expect_err("no CA");
    assert!(error.contains("sslrootcert: it is missing"), "{error}");
}

#[tokio::test]
async fn every_host_is_tried_and_named() {
    let port = answering(b"N").await;
    // Bound and given up: nobody listens there.
    let dead =
        TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("a port");
    let hosts = format!("127.0.0.1:{},127.0.0.1:{port}", dead.port());
    let reached = connected(&format!("postgres://me@{hosts}")).await.expect("the second");
    assert_eq!(reached.to_string(), format!("127.0.0.1:{port}"));
    let error = connected(&format!("postgres://standby@{hosts}?target_session_attrs=primary")).await;
    let error = error.expect_err("no primary");
    assert!(
        error.contains("cannot connect: ") && error.ends_with(&format!(":{port}: it is a standby")),
        "{error}"
    );
}

/// With and without TLS, as `sslmode=prefer` tries it.
#[test]
fn a_host_that_closes_every_connection_is_passed_over() {
    let closed = || PgError::Io(io::Error::from(io::ErrorKind::UnexpectedEof));
    let refused = || PgError::Login("nobody knows us".into());
    assert!(may_be_of_the_host(&closed().and_then("with TLS", "without TLS", closed())));
    assert!(!may_be_of_the_host(&closed().and_then("with TLS", "without TLS", refused())));
}

#[tokio::test]
async fn servers_of_the_wrong_kind_are_passed_over() {
    let port = answering(b"N").await;
    for (user, attrs, fits) in [
        ("primary", "any", true),
        ("primary", "read-write", true),
        ("primary", "read-only", false),
        ("primary", "primary", true),
        ("primary", "standby", false),
        ("primary", "prefer-standby", true),
        ("standby", "any", true),
        ("standby", "read-write", false),
        ("standby", "read-only", true),
        ("standby", "primary", false),
        ("standby", "standby", true),
        ("read-only", "primary", true),
        ("read-only", "read-write", false),
        ("read-only", "read-only", true),
    ] {
        let url = format!("postgres://{user}@127.0.0.1:{port}?target_session_attrs={attrs}");
        assert_eq!(connected(&url).await.is_ok(), fits, "{url}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = silent.local_addr().expect("address").port();
    let error =
        connected(&format!("postgres://me@127.0.0.1:{port}?connect_timeout=1")).await.expect_err("silence");
    assert!(error.contains("no answer within 1s"), "{error}");
}

#[tokio::test]
async fn keepalive_is_on_the_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let socket = async |query: &str| {
        let target = Target::parse(&format!("postgres://me@{address}?{query}")).expect(query);
        tcp(address, &target.keepalive).await.expect("a socket")
    };
    let found = |socket: &TcpStream| {
        let idle = sockopt::tcp_keepidle(socket).expect("idle").as_secs();
        let interval = sockopt::tcp_keepintvl(socket).expect("interval").as_secs();
        (idle, interval, sockopt::tcp_keepcnt(socket).expect("count"))
    };
    let usual = socket("").await;
    assert!(sockopt::socket_keepalive(&usual).expect("keepalive") && usual.nodelay().expect("no delay"));
    assert_eq!(found(&usual), (60, 10, 3));
    let query = "keepalives_idle=32767&keepalives_interval=32767&keepalives_count=127&tcp_user_timeout=900";
    let most = socket(query).await;
    assert_eq!(found(&most), (32_767, 32_767, 127));
    assert_eq!(sockopt::tcp_user_timeout(&most).expect("user timeout"), 900);
    assert!(!sockopt::socket_keepalive(&socket("keepalives=0").await).expect("keepalive"));
    for query in ["keepalives_idle=32768", "keepalives_interval=40000", "keepalives_count=128"] {
        let error = Target::parse(&format!("postgres://me@{address}?{query}")).expect_err(query);
        assert!(error.to_string().contains("at most"), "{error}");
    }
}
