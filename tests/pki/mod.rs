//! Certificates for tests: a CA, what it has signed, and what it has not.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::wire::Fallible;

/// A directory of files: `ca.pem`; `server`, `named` (for cache.internal alone) and `client` with `.pem` and `.key`,
/// all signed by it; `other-ca.pem` and `stranger`, which that has signed; `authority`, a CA in a server's place; and
/// `alone`, a server's that has signed itself.
pub struct Pki(TempDir);

impl Pki {
    pub fn new() -> Fallible<Self> {
        let pki = Self(tempfile::tempdir()?);
        let ours = pki.authority("ca")?;
        pki.signed("server", &["localhost", "127.0.0.1"], &ours)?;
        pki.signed("named", &["cache.internal"], &ours)?;
        pki.signed("client", &["application"], &ours)?;
        let other = pki.authority("other-ca")?;
        pki.signed("stranger", &["application"], &other)?;
        pki.authority("authority")?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()])?;
        params.is_ca = IsCa::ExplicitNoCa;
        pki.write("alone", &params.self_signed(&key)?.pem(), &key)?;
        Ok(pki)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A path as text.
    pub fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn authority(&self, name: &str) -> Fallible<Issuer<'static, KeyPair>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        self.write(name, &params.self_signed(&key)?.pem(), &key)?;
        Ok(Issuer::new(params, key))
    }

    fn signed(&self, name: &str, names: &[&str], issuer: &Issuer<'_, KeyPair>) -> Fallible<()> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        self.write(name, &params.signed_by(&key, issuer)?.pem(), &key)
    }

    fn write(&self, name: &str, certificate: &str, key: &KeyPair) -> Fallible<()> {
        std::fs::write(self.path(&format!("{name}.pem")), certificate)?;
        Ok(std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem())?)
    }

    #[allow(dead_code, reason = "each test file uses a part")]
    /// A handshake as a client that trusts `ca.pem`, with a certificate or without.
    pub async fn connect(
        &self,
        stream: TcpStream,
        certificate: Option<&str>,
    ) -> Fallible<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem"))?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match certificate {
            Some(name) => config.with_client_auth_cert(
                vec![CertificateDer::from_pem_file(self.path(&format!("{name}.pem")))?],
                PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key")))?,
            )?,
            None => config.with_no_client_auth(),
        };
        let name = ServerName::try_from("127.0.0.1")?;
        Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
    }
}
