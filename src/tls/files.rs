//! Certificates and keys in PEM files.

use std::fs;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// The certificates of a file, in its order.
pub(super) fn certificates(
    setting: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(setting, file)?;
    let unusable = |problem| TlsError::Unusable { setting, file: file.to_owned(), problem };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(not_pem(&error)))?;
    if found.is_empty() {
        return Err(unusable("there is no certificate in it (-----BEGIN CERTIFICATE-----)".into()));
    }
    Ok(found)
}

/// The CAs of a file.
pub(super) fn roots(setting: &'static str, file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(setting, file)? {
        roots.add(certificate).map_err(|error| TlsError::Unusable {
            setting,
            file: file.to_owned(),
            problem: format!("a certificate in it cannot be read: {error}"),
        })?;
    }
    Ok(roots)
}

/// The private key of a file.
pub(super) fn key(setting: &'static str, file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(setting, file)?;
    let problem = match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => return Ok(key),
        Err(pem::Error::NoItemsFound) if contains(&text, b"ENCRYPTED PRIVATE KEY") => {
            "the key in it is encrypted; decrypt it with `openssl pkey`, and let nobody but the proxy read the file"
                .into()
        }
        Err(pem::Error::NoItemsFound) => {
            "there is no private key in it (-----BEGIN PRIVATE KEY-----)".into()
        }
        Err(error) => not_pem(&error),
    };
    Err(TlsError::Unusable { setting, file: file.to_owned(), problem })
}

fn read(setting: &'static str, file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Unreadable { setting, file: file.to_owned(), source })
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

/// Without the library's own text, which may quote the file.
fn not_pem(error: &pem::Error) -> String {
    let what = match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "a section begins with a malformed line",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "it cannot be read",
    };
    format!("it is not PEM: {what}")
}
