//! What went wrong between the proxy and Redis, in words that say what to do.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Turns an error of a TLS connection to Redis into one that names the setting that helps.
pub fn in_words(error: io::Error) -> io::Error {
    let kind = error.kind();
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) => io::Error::new(kind, format!("TLS: {}", words(inner))),
        None => error,
    }
}

fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::InvalidMessage(_) => {
            "what answers does not speak TLS; use redis://, or the port that Redis calls tls-port".into()
        }
        Error::AlertReceived(alert) => refused(*alert),
        error => error.to_string(),
    }
}

fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "Redis's certificate is of a CA that is not trusted; name its file with redis.tls.ca".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "Redis's certificate is for another name ({error}); use that in redis.url, or name it with \
             redis.tls.server_name"
        ),
        // The library has no name of its own for it.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "Redis's certificate is that of a CA (basicConstraints CA:TRUE), which must not be a server's; make Redis \
             a certificate of its own, signed by that CA, and leave the CA in redis.tls.ca (`openssl req -x509` makes \
             CAs unless told `-addext basicConstraints=critical,CA:FALSE`)"
                .into()
        }
        error => format!("Redis's certificate is not accepted: {error}"),
    }
}

fn refused(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "Redis asks for a certificate; name one with redis.tls.cert and redis.tls.key".into()
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown => {
            format!("Redis does not accept the certificate of redis.tls.cert, if there is one ({alert:?})")
        }
        alert => format!("Redis broke it off ({alert:?})"),
    }
}
