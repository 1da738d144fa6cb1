//! Sessions for SQL: `tokio-postgres` on a socket that is connected already, with TLS already done.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_postgres::config::{ChannelBinding as Binding, SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use super::connect::{Login, STANDING, Session, Standing, within};
use super::error::{PgError, error_chain};
use super::target::{self, Host, SESSION, SESSION_SQL, Target};
use crate::transport::Transport;

/// Connects for SQL, with the session settings that we fix. Ends when the client is dropped.
///
/// # Errors
/// Where all of the hosts failed, each one's.
pub async fn connect(target: &Target, application_name: &str) -> Result<(Client, Host), PgError> {
    let (client, host, _) = connect_watched(target, application_name).await?;
    Ok((client, host))
}

/// The same, and what resolves when the connection has ended, whoever ended it.
///
/// # Errors
/// Where all of the hosts failed, each one's.
pub async fn connect_watched(
    target: &Target,
    application_name: &str,
) -> Result<(Client, Host, Ended), PgError> {
    let mut options = target.options.clone().unwrap_or_default();
    for (name, value) in SESSION {
        // Options are split at blanks; a backslash keeps one.
        options.push_str(&format!(" -c {name}={}", value.replace(' ', "\\ ")));
    }
    // Nothing that we ask takes long; a lock that never comes must not hold the start up silently.
    options.push_str(" -c lock_timeout=10s");
    let target = Target { options: Some(options.trim().to_owned()), ..target.clone() };
    let (session, host) = super::connect::connect::<Sql>(&target, application_name).await?;
    within(&target, async { Ok(session.client.batch_execute(SESSION_SQL).await?) }).await?;
    Ok((session.client, host, session.ended))
}

/// The same, in a session as anybody would get it.
///
/// # Errors
/// Where all of the hosts failed, each one's.
pub async fn as_it_is(target: &Target, application_name: &str) -> Result<(Client, Host), PgError> {
    let (session, host) = super::connect::connect::<Sql>(target, application_name).await?;
    Ok((session.client, host))
}

/// Resolves, with an error, when a connection has ended.
pub type Ended = oneshot::Receiver<Never>;

/// What is never sent.
#[derive(Debug)]
pub enum Never {}

/// A session after login. Its connection is a task of its own.
struct Sql {
    client: Client,
    ended: Ended,
    standing: Standing,
}

impl Login for Sql {
    async fn login(socket: Transport, session: &Session<'_>) -> Result<Self, PgError> {
        let target = session.target;
        let mut config = Config::new();
        config.user(&target.user).dbname(&target.dbname).application_name(session.application_name);
        if let Some(options) = &target.options {
            config.options(options);
        }
        if let Some(password) = &session.password {
            config.password(password);
        }
        config.channel_binding(match target.channel_binding {
            target::ChannelBinding::Disable => Binding::Disable,
            target::ChannelBinding::Prefer => Binding::Prefer,
            target::ChannelBinding::Require => Binding::Require,
        });
        // All that belongs to TLS is done. Of these two the library asks for no more than the stream that it has.
        config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        let connecting = config.connect_raw(socket, Done { end_point: session.end_point.clone() });
        let (client, connection) = connecting.await.map_err(|error| match error_chain(&error) {
            text if text.ends_with("password missing") => session.password().err().unwrap_or(error.into()),
            _ => error.into(),
        })?;
        let mut standing = Standing::default();
        for name in ["in_hot_standby", "default_transaction_read_only"] {
            if let Some(value) = connection.parameter(name) {
                standing.see(name, value);
            }
        }
        let (open, ended) = oneshot::channel();
        tokio::spawn(async move {
            let _open = open;
            if let Err(error) = connection.await {
                tracing::debug!(error = error_chain(&error), "an SQL connection ended");
            }
        });
        Ok(Self { client, ended, standing })
    }

    fn standing(&self) -> Standing {
        self.standing
    }

    async fn ask_standing(&mut self) -> Result<Standing, PgError> {
        let answer = self.client.simple_query(STANDING).await?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Standing::answered(row.and_then(|row| row.get(0)), row.and_then(|row| row.get(1)))
    }
}

/// A handshake that is over.
struct Done {
    end_point: Option<Vec<u8>>,
}

impl TlsConnect<Transport> for Done {
    type Stream = Secured;
    type Error = io::Error;
    type Future = Ready<io::Result<Secured>>;

    fn connect(self, socket: Transport) -> Self::Future {
        ready(Ok(Secured { socket, end_point: self.end_point }))
    }
}

/// A socket, and what channel binding binds to.
struct Secured {
    socket: Transport,
    end_point: Option<Vec<u8>>,
}

impl TlsStream for Secured {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point.clone().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for Secured {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
