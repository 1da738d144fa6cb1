//! `tls-server-end-point` (RFC 5929): the hash of the server's certificate, which binds a login to the TLS connection.

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256, Sha384, Sha512};

/// The hash with the function of the certificate's own signature; SHA-256 where that is MD5 or SHA-1. Nothing for a
/// signature that names none, such as Ed25519: Postgres has no channel binding with those either.
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    Some(match hash_of_signature(certificate)? {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// Object identifiers of signatures, as DER has them. RSA-PSS, whose hash is in its parameters, is not here.
const SIGNATURES: &[(&[u8], Hash)] = &[
    // 1.2.840.113549.1.1: RSA with MD5 (4), SHA-1 (5), SHA-256 (11), SHA-384 (12), SHA-512 (13).
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", Hash::Sha256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", Hash::Sha256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", Hash::Sha256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", Hash::Sha384),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", Hash::Sha512),
    // 1.2.840.10045.4: ECDSA with SHA-1 (1), SHA-256 (3.2), SHA-384 (3.3), SHA-512 (3.4).
    (b"\x2a\x86\x48\xce\x3d\x04\x01", Hash::Sha256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", Hash::Sha256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", Hash::Sha384),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x04", Hash::Sha512),
];

/// `Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, .. }, .. }`
fn hash_of_signature(certificate: &[u8]) -> Option<Hash> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (whole, _) = value(SEQUENCE, certificate)?;
    let (_, rest) = value(SEQUENCE, whole)?;
    let (algorithm, _) = value(SEQUENCE, rest)?;
    let (identifier, _) = value(OBJECT_IDENTIFIER, algorithm)?;
    SIGNATURES.iter().find(|(known, _)| *known == identifier).map(|(_, hash)| *hash)
}

/// The content of a value of this kind, and what follows it.
fn value(kind: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, length], rest) = der.split_first_chunk::<2>()?;
    if found != kind {
        return None;
    }
    let (length, rest) = match length {
        0..0x80 => (usize::from(length), rest),
        // So many bytes hold the length.
        _ => {
            let (bytes, rest) =
                rest.split_at_checked(usize::from(length & 0x7f)).filter(|(b, _)| b.len() <= 4)?;
            (bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)), rest)
        }
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};

    use super::*;

    fn certificate(algorithm: &'static SignatureAlgorithm) -> CertificateDer<'static> {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let params = CertificateParams::new(vec!["localhost".into()]).expect("parameters");
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let of = |algorithm| hash_of_signature(&certificate(algorithm));
        assert_eq!(of(&rcgen::PKCS_ECDSA_P256_SHA256), Some(Hash::Sha256));
        assert_eq!(of(&rcgen::PKCS_ECDSA_P384_SHA384), Some(Hash::Sha384));
        assert_eq!(of(&rcgen::PKCS_ED25519), None);
        let certificate = certificate(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert_eq!(server_end_point(&certificate).map(|hash| hash.len()), Some(48));
    }

    #[test]
    fn what_is_cut_off_has_none() {
        let certificate = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        for end in 0..certificate.len() {
            assert_eq!(hash_of_signature(&certificate[..end]), None, "{end}");
        }
        assert_eq!(hash_of_signature(b"\x30\x84\xff\xff\xff\xff"), None);
        assert_eq!(hash_of_signature(b"\x30\x89"), None);
    }
}
