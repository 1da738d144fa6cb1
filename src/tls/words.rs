//! What went wrong between the proxy and a server, in words that say what to do.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// A server, and the settings that are about it.
#[derive(Debug)]
pub struct Peer {
    name: &'static str,
    /// Where its CA is named.
    ca: &'static str,
    /// Where its name is, and what else can say it.
    host: &'static str,
    /// Where our certificate is named, and its key.
    cert: &'static str,
    key: &'static str,
    /// What has it ask for ours.
    asks: &'static str,
    /// What to do where no TLS answers.
    plain: &'static str,
}

/// Redis.
pub static REDIS: Peer = Peer {
    name: "Redis",
    ca: "redis.tls.ca",
    host: "use that in redis.url, or name it with redis.tls.server_name",
    cert: "redis.tls.cert",
    key: "redis.tls.key",
    asks: "tls-auth-clients",
    plain: "use redis://, or the port that Redis calls tls-port",
};

/// Postgres: the settings are parameters of its URL.
pub static POSTGRES: Peer = Peer {
    name: "Postgres",
    ca: "sslrootcert",
    host: "use that as the host, or give the certificate a subjectAltName (its common name is not looked at)",
    cert: "sslcert",
    key: "sslkey",
    asks: "clientcert in pg_hba.conf",
    plain: "look whether something is between, or use sslmode=disable",
};

impl Peer {
    /// Turns an error of a TLS connection to it into one that names the setting that helps.
    pub fn in_words(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(inner) => io::Error::new(kind, format!("TLS: {}", self.words(inner))),
            None => error,
        }
    }

    /// A server checks a client's certificate after the client's part of the handshake is done, and closes; its reason
    /// may come too late to be read.
    pub(crate) fn closed_early(&self, kind: io::ErrorKind) -> io::Error {
        let Self { name, asks, cert, .. } = self;
        let hint = format!("if it asks for a certificate ({asks}), it does not accept {cert}");
        io::Error::new(kind, format!("{name} closed the connection after the handshake; {hint}"))
    }

    fn words(&self, error: &Error) -> String {
        match error {
            Error::InvalidCertificate(error) => self.certificate(error),
            Error::InvalidMessage(_) => format!("what answers does not speak TLS; {}", self.plain),
            Error::AlertReceived(alert) => self.refused(*alert),
            error => error.to_string(),
        }
    }

    fn certificate(&self, error: &CertificateError) -> String {
        let Self { name, ca, host, .. } = self;
        match error {
            CertificateError::UnknownIssuer => {
                format!("{name}'s certificate is of a CA that is not trusted; name its file with {ca}")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("{name}'s certificate is for another name ({error}); {host}")
            }
            // The library has no name of its own for it.
            CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => format!(
                "{name}'s certificate is that of a CA (basicConstraints CA:TRUE), which must not be a server's; make \
                 {name} a certificate of its own, signed by that CA, and leave the CA in {ca} (`openssl req -x509` \
                 makes CAs unless told `-addext basicConstraints=critical,CA:FALSE`)"
            ),
            CertificateError::Other(other) if format!("{other:?}").contains("UnsupportedCertVersion") => {
                format!(
                    "{name}'s certificate is of X.509 version 1, which is not supported; make one of version 3 (`openssl \
                 x509 -req` does with any `-extfile`)"
                )
            }
            error => format!("{name}'s certificate is not accepted: {error}"),
        }
    }

    fn refused(&self, alert: AlertDescription) -> String {
        let Self { name, cert, key, .. } = self;
        match alert {
            AlertDescription::CertificateRequired => {
                format!("{name} asks for a certificate; name one with {cert} and {key}")
            }
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown => {
                format!("{name} does not accept the certificate of {cert}, if there is one ({alert:?})")
            }
            alert => format!("{name} broke it off ({alert:?})"),
        }
    }
}
