//! TLS: towards clients, towards Redis, and towards Postgres.
//!
//! Files are read at the start and at a reload (for Postgres at every connection); what is wrong with one is said by its
//! setting and its name.

mod end_point;
mod files;
mod postgres;
mod words;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::config::{ProxyTls, RedisTls};
pub use end_point::server_end_point;
use files::{certificates, key, roots};
pub(crate) use postgres::PostgresTls;
pub use words::{POSTGRES, Peer, REDIS};

/// Why TLS cannot be used as it is set.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{setting}: {}: cannot be read: {source}", file.display())]
    Unreadable {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{setting}: {}: {problem}", file.display())]
    Unusable {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and what helps.
        problem: String,
    },
    /// A key and a certificate that are each right.
    #[error(
        "{setting}: {}: it is not the key of the certificate in {}; name the two that were made together, the \
         server's own certificate first in its file", key.display(), cert.display()
    )]
    KeyMismatch {
        /// The setting that names the key.
        setting: &'static str,
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        cert: PathBuf,
    },
    /// There is no CA to trust.
    #[error(
        "{setting}: no file is named, and the system has no CA certificates{why}; name the file of the server's CA"
    )]
    NoSystemRoots {
        /// The setting that could name a file.
        setting: &'static str,
        /// What the system's have against them.
        why: String,
    },
    /// Something is to be verified, and there is nothing to do it with.
    #[error(
        "sslrootcert: it is missing, and there is no ~/.postgresql/root.crt; name the file of Postgres's CA, or \"system\" \
         for the system's"
    )]
    NoRoots,
    /// A name that no certificate can be for.
    #[error("{setting}: {name:?} is neither a host name nor an IP address")]
    Name {
        /// The setting that has it.
        setting: &'static str,
        /// The name.
        name: String,
    },
    /// The library refuses what was made of the files.
    #[error("{setting}: {source}")]
    Refused {
        /// The setting that it is about.
        setting: &'static str,
        /// What the library says.
        source: rustls::Error,
    },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// TLS towards clients. All copies change together.
#[derive(Clone)]
pub struct ServerTls(Arc<ArcSwap<ServerConfig>>);

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one is missing or not what it should be.
    pub fn load(settings: &ProxyTls) -> Result<Self, TlsError> {
        let chain = certificates("proxy.tls.cert", &settings.cert)?;
        let private = key("proxy.tls.key", &settings.key)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Refused { setting: "proxy.tls", source })?;
        let config = match &settings.client_ca {
            None => config.with_no_client_auth(),
            Some(file) => {
                let roots = Arc::new(roots("proxy.tls.client_ca", file)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
                config.with_client_cert_verifier(verifier.map_err(|error| TlsError::Unusable {
                    setting: "proxy.tls.client_ca",
                    file: file.clone(),
                    problem: error.to_string(),
                })?)
            }
        };
        let config = config.with_single_cert(chain, private).map_err(|error| {
            pair_error(error, ("proxy.tls.cert", &settings.cert), ("proxy.tls.key", &settings.key))
        })?;
        Ok(Self(Arc::new(ArcSwap::from_pointee(config))))
    }

    /// From now on handshakes are as the other one has them. Connections that stand go on as they are.
    pub fn become_as(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// The handshake with a client.
    ///
    /// # Errors
    /// When the client breaks it off, or does not show the certificate that it has to.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.load_full()).accept(stream).await
    }
}

/// TLS towards Redis. All copies change together.
#[derive(Clone)]
pub struct ClientTls(Arc<ArcSwap<Towards>>);

struct Towards {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl ClientTls {
    /// Reads the files. `host` is that of the URL.
    ///
    /// # Errors
    /// When one is missing or not what it should be.
    pub fn load(settings: &RedisTls, host: &str) -> Result<Self, TlsError> {
        let (setting, name) = match &settings.server_name {
            Some(name) => ("redis.tls.server_name", name.as_str()),
            None => ("redis.url", host),
        };
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| TlsError::Name { setting, name: name.to_owned() })?;
        let roots = match &settings.ca {
            Some(file) => roots("redis.tls.ca", file)?,
            None => system_roots("redis.tls.ca")?,
        };
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| TlsError::Refused { setting: "redis.tls", source })?
            .with_root_certificates(roots);
        let config = match (&settings.cert, &settings.key) {
            (Some(cert), Some(private)) => config
                .with_client_auth_cert(certificates("redis.tls.cert", cert)?, key("redis.tls.key", private)?)
                .map_err(|error| pair_error(error, ("redis.tls.cert", cert), ("redis.tls.key", private)))?,
            _ => config.with_no_client_auth(),
        };
        Ok(Self(Arc::new(ArcSwap::from_pointee(Towards { config: Arc::new(config), name }))))
    }

    /// From now on handshakes are as the other one has them. Connections that stand go on as they are.
    pub fn become_as(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// The handshake with Redis.
    ///
    /// # Errors
    /// When either side does not trust the other; in words that say what to do.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        let towards = self.0.load_full();
        let connector = TlsConnector::from(towards.config.clone());
        connector.connect(towards.name.clone(), stream).await.map_err(|error| REDIS.in_words(error))
    }
}

// By hand: nothing that leads to a key is printed.
impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("name", &self.0.load().name).finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

/// What the library has against a certificate and a key together.
fn pair_error(
    error: rustls::Error,
    (cert_setting, cert): (&'static str, &PathBuf),
    (setting, key): (&'static str, &PathBuf),
) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::KeyMismatch { setting, key: key.clone(), cert: cert.clone() }
        }
        rustls::Error::InvalidCertificate(error) => TlsError::Unusable {
            setting: cert_setting,
            file: cert.clone(),
            problem: format!("the certificate cannot be read: {error:?}"),
        },
        error => TlsError::Unusable {
            setting,
            file: key.clone(),
            problem: format!(
                "the key cannot be used: {error}; allowed: RSA of 2048 bits and more, ECDSA with P-256 or P-384, \
                 Ed25519"
            ),
        },
    }
}

fn system_roots(setting: &'static str) -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(TlsError::NoSystemRoots { setting, why });
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
