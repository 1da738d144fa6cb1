//! What can go wrong between us and Postgres, and whether waiting can help.

use std::fmt;
use std::io;

use thiserror::Error;

/// What can go wrong between us and Postgres.
#[derive(Debug, Error)]
pub enum PgError {
    /// The connection could not be made, broke, or was closed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Postgres answered with an error.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// Bytes that Postgres would not send.
    #[error("unexpected answer from Postgres: {0}")]
    Protocol(String),
    /// The login cannot work as configured.
    #[error("login at Postgres: {0}")]
    Login(String),
    /// A setting in the URL that is wrong or not supported.
    #[error("Postgres URL: {0}")]
    Url(String),
    /// No TLS as it is asked for.
    #[error("{0}")]
    Tls(String),
    /// The server is not of the kind that `target_session_attrs` asks for.
    #[error("it {0}")]
    Unfit(&'static str),
    /// The last of what was tried, and where that was.
    #[error("{}{place}: {last}", .earlier.iter().map(|error| format!("{error}; ")).collect::<String>())]
    At {
        /// What was tried before, and why that failed.
        earlier: Vec<String>,
        /// What was tried last.
        place: String,
        /// Why that failed.
        last: Box<PgError>,
    },
}

impl PgError {
    /// The SQLSTATE, if Postgres itself answered.
    pub fn code(&self) -> Option<&str> {
        match self {
            PgError::Server(error) => Some(&error.code),
            PgError::At { last, .. } => last.code(),
            _ => None,
        }
    }

    /// Whether trying again later cannot help: a person has to change something.
    pub fn is_permanent(&self) -> bool {
        match self {
            PgError::Io(_) | PgError::Protocol(_) | PgError::Unfit(_) => false,
            PgError::Login(_) | PgError::Url(_) | PgError::Tls(_) => true,
            PgError::Server(error) => permanent_sqlstate(&error.code),
            PgError::At { last, .. } => last.is_permanent(),
        }
    }

    /// That it failed one way, and then another.
    pub(super) fn and_then(self, first: &str, second: &str, last: PgError) -> Self {
        PgError::At {
            earlier: vec![format!("{first}: {self}")],
            place: second.to_owned(),
            last: Box::new(last),
        }
    }
}

/// Whether an SQLSTATE says that a person has to change something: wrong password (28), no such database (3D),
/// no such object or syntax, or a missing right (42), a feature or setting that is absent (0A).
///
/// Everything else (starting up, shutting down, out of slots, object in use) may pass by itself.
pub fn permanent_sqlstate(code: &str) -> bool {
    ["28", "3D", "42", "0A"].iter().any(|class| code.starts_with(class))
}

impl From<tokio_postgres::Error> for PgError {
    /// What `tokio-postgres` has against a login.
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(answer) = error.as_db_error() {
            return PgError::Server(Box::new(ServerError {
                severity: answer.severity().to_owned(),
                code: answer.code().code().to_owned(),
                message: answer.message().to_owned(),
                detail: answer.detail().map(str::to_owned),
                hint: answer.hint().map(str::to_owned),
            }));
        }
        let text = error_chain(&error);
        if error.is_closed() {
            return PgError::Io(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
        match cause {
            // A wrong answer in SCRAM is one too, and is final.
            Some(cause) if !matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Other) => {
                PgError::Io(io::Error::new(cause.kind(), text))
            }
            _ => PgError::Login(text),
        }
    }
}

/// Postgres's ErrorResponse (or NoticeResponse).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, never translated.
    pub severity: String,
    /// The SQLSTATE, five characters.
    pub code: String,
    /// The message for people.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ServerError {
    /// Reads the fields of an ErrorResponse's body; what is missing or garbled stays empty.
    pub fn parse(mut body: &[u8]) -> Self {
        let mut error = ServerError::default();
        let mut translated = None;
        while let [field, rest @ ..] = body {
            if *field == 0 {
                break;
            }
            let Some(end) = rest.iter().position(|b| *b == 0) else { break };
            let text = String::from_utf8_lossy(&rest[..end]).into_owned();
            match field {
                b'V' => error.severity = text,
                b'S' => translated = Some(text),
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
            body = &rest[end + 1..];
        }
        if error.severity.is_empty() {
            error.severity = translated.unwrap_or_else(|| "ERROR".into());
        }
        error
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

/// An error with all its causes: `tokio-postgres` says "db error" and hides the rest in `source()`.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    if text == "db error" {
        text = source.map_or(text, ToString::to_string);
    }
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_code_detail_and_hint() {
        let error =
            ServerError::parse(b"SFEHLER\0VERROR\0C55006\0Mslot is active\0DPID 42\0Htry later\0Fslot.c\0\0");
        assert_eq!(error.severity, "ERROR");
        assert_eq!(error.to_string(), "ERROR: slot is active (SQLSTATE 55006); PID 42; hint: try later");
        // Garbled fields are skipped, not trusted.
        assert_eq!(ServerError::parse(b"C42").severity, "ERROR");
        assert_eq!(ServerError::parse(b"").code, "");
    }

    #[test]
    fn permanent_are_errors_that_a_person_must_mend() {
        for code in ["28P01", "28000", "3D000", "42704", "42501", "0A000"] {
            assert!(permanent_sqlstate(code), "{code}");
        }
        for code in ["57P03", "57P01", "53300", "55006", "08006", "XX000"] {
            assert!(!permanent_sqlstate(code), "{code}");
        }
    }
}
