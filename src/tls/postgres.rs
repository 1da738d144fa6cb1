//! TLS towards Postgres, with libpq's rules of what is verified.
//!
//! | sslmode | without CAs | with CAs |
//! | --- | --- | --- |
//! | allow, prefer, require | nothing | that one of them has signed the certificate |
//! | verify-ca | refused | the same |
//! | verify-full | refused | the same, and that the certificate is for the host |
//!
//! Files are read at every connection, so that renewed ones are used without a restart.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, SupportedProtocolVersion,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};

use super::files::{certificates, key, roots};
use super::{TlsError, pair_error, provider, system_roots};
use crate::pg::target::{Roots, SslMode, TlsParameters};

/// The protocol's name, which Postgres 17 insists on where TLS is not negotiated first.
const ALPN: &[u8] = b"postgresql";

/// TLS with one server, before the handshake.
pub(crate) struct PostgresTls {
    connector: TlsConnector,
    name: ServerName<'static>,
    direct: bool,
}

impl PostgresTls {
    /// Reads the files. `host` is what the server was called, where it was called anything but an address.
    pub(crate) fn load(
        parameters: &TlsParameters,
        host: Option<&str>,
        address: &str,
    ) -> Result<Self, TlsError> {
        let mode = parameters.mode;
        let unusable = |name: &str| TlsError::Name { setting: "host", name: name.to_owned() };
        let name = match host.map(|host| ServerName::try_from(host.to_owned())) {
            Some(Ok(name)) => name,
            // libpq: a host name must be specified for a verified connection.
            None | Some(Err(_)) if mode == SslMode::VerifyFull => {
                return Err(unusable(host.unwrap_or_default()));
            }
            _ => ServerName::try_from(address.to_owned()).map_err(|_| unusable(address))?,
        };
        let roots = match (&parameters.roots, parameters.root_file()) {
            (Roots::System, _) => Some(system_roots("sslrootcert")?),
            (_, Some(file)) => Some(roots("sslrootcert", &file)?),
            (_, None) if mode >= SslMode::VerifyCa => return Err(TlsError::NoRoots),
            (_, None) => None,
        };
        let provider = provider();
        let verifier = Verifier { provider: provider.clone(), roots, names: mode == SslMode::VerifyFull };
        let versions: Vec<&SupportedProtocolVersion> = [&TLS12, &TLS13]
            .into_iter()
            .zip(parameters.versions)
            .filter_map(|(v, on)| on.then_some(v))
            .collect();
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|source| TlsError::Refused { setting: "ssl_min_protocol_version", source })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match parameters.cert_files() {
            Some((cert, private)) => {
                kept_from_others(&private)?;
                config
                    .with_client_auth_cert(certificates("sslcert", &cert)?, key("sslkey", &private)?)
                    .map_err(|error| pair_error(error, ("sslcert", &cert), ("sslkey", &private)))?
            }
            None => config.with_no_client_auth(),
        };
        config.enable_sni = parameters.sni;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, direct: parameters.direct })
    }

    /// The handshake.
    pub(crate) async fn connect(self, stream: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        let stream = self.connector.connect(self.name, stream).await?;
        // Without it another protocol's server could have been talked into answering.
        if self.direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            let what = "the server does not say that it is Postgres; sslnegotiation=direct needs Postgres 17";
            return Err(io::Error::other(what));
        }
        Ok(stream)
    }
}

/// As libpq has it: a key that others can read is not used.
fn kept_from_others(file: &Path) -> Result<(), TlsError> {
    let unreadable = |source| TlsError::Unreadable { setting: "sslkey", file: file.to_owned(), source };
    let found = fs::metadata(file).map_err(unreadable)?;
    let others = if found.uid() == 0 { 0o027 } else { 0o077 };
    if found.mode() & others == 0 {
        return Ok(());
    }
    Err(TlsError::Unusable {
        setting: "sslkey",
        file: file.to_owned(),
        problem: "others may read it; its permissions must be u=rw (0600) or less, or u=rw,g=r (0640) if root owns it"
            .into(),
    })
}

/// What is asked of a server's certificate.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// None: whose it is is not looked at.
    roots: Option<RootCertStore>,
    /// Whether it has to be for the host.
    names: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        if self.names {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
