//! Passwords that are not in the URL: a file of one password (a mounted secret), `PGPASSWORD`, and libpq's password file.
//!
//! All are read at every connection, so that one that was changed is used without a restart.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use super::error::PgError;
use super::target::{Address, Host, Target};

/// Directories of the socket that the password file calls `localhost`: libpq's own default, and that of Debian.
const DEFAULT_SOCKETS: [&str; 2] = ["/tmp", "/var/run/postgresql"];

/// More is no password, nor a file of them.
const LONGEST: u64 = 1024 * 1024;

/// The password for a host: `password_file`, else the URL's, else `PGPASSWORD`, else the password file's.
pub(super) fn password(target: &Target, host: &Host) -> Result<Option<Vec<u8>>, PgError> {
    if let Some(file) = &target.password_file {
        return secret(file).map(Some);
    }
    if let Some(password) = &target.password {
        return Ok(Some(password.clone()));
    }
    if let Some(password) = env::var_os("PGPASSWORD").filter(|password| !password.is_empty()) {
        return Ok(Some(password.into_encoded_bytes()));
    }
    let named = target.passfile.clone().or_else(|| env::var_os("PGPASSFILE").map(PathBuf::from));
    let Some(file) = named.or_else(|| in_home(".pgpass")) else { return Ok(None) };
    Ok(read(&file).and_then(|text| lookup(&text, host, &target.dbname, &target.user)))
}

/// A file in the home directory.
pub(super) fn in_home(name: &str) -> Option<PathBuf> {
    env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(name))
}

/// The text of a file that holds a password and nothing else; an end of line is not part of it.
fn secret(file: &Path) -> Result<Vec<u8>, PgError> {
    let wrong = |what: String| PgError::Login(format!("password_file: {}: {what}", file.display()));
    let unreadable = |error: io::Error| wrong(format!("cannot be read: {error}"));
    // Whoever opens a pipe waits for a writer, and all else with it; and the file may be quite another one.
    let found = fs::metadata(file).map_err(unreadable)?;
    if !found.is_file() {
        return Err(wrong("it is no plain file".into()));
    }
    if found.len() > LONGEST {
        return Err(wrong(format!("it is longer than {LONGEST} bytes: that is no password")));
    }
    let mut text = fs::read(file).map_err(unreadable)?;
    if text.ends_with(b"\n") {
        text.pop();
        if text.ends_with(b"\r") {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err(wrong("it is empty".into()));
    }
    Ok(text)
}

/// The password file, if it is there and nobody else can read it. As libpq has it, one that is not fit is passed over
/// with a warning.
fn read(file: &Path) -> Option<Vec<u8>> {
    let unfit = |what: &str| {
        tracing::warn!(file = %file.display(), "the password file is not used: {what}");
        None
    };
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => unfit(&error.to_string()),
        Ok(found) if !found.is_file() => unfit("it is no plain file"),
        Ok(found) if found.len() > LONGEST => unfit("it is too long"),
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            unfit("others may read it; its permissions must be u=rw (0600) or less")
        }
        Ok(_) => fs::read(file).map(Some).unwrap_or_else(|error| unfit(&error.to_string())),
    }
}

/// The password of the first line that fits: `host:port:database:user:password`, each of the first four perhaps `*`.
fn lookup(text: &[u8], host: &Host, dbname: &str, user: &str) -> Option<Vec<u8>> {
    let place = match &host.name {
        Some(Address::Tcp(name)) => name.clone(),
        Some(Address::Unix(path)) if DEFAULT_SOCKETS.iter().any(|default| path == Path::new(default)) => {
            "localhost".to_owned()
        }
        Some(Address::Unix(path)) => path.display().to_string(),
        None => host.address.map(|address| address.to_string()).unwrap_or_default(),
    };
    let port = host.port.to_string();
    let wanted = [place.as_str(), &port, dbname, user];
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.starts_with(b"#") {
            return None;
        }
        let mut rest = line;
        for wanted in wanted {
            let (field, after) = field(rest)?;
            if field != b"*" && unescaped(field) != wanted.as_bytes() {
                return None;
            }
            rest = after;
        }
        // The password ends where another field would begin.
        let end = field(rest).map_or(rest, |(password, _)| password);
        Some(unescaped(end)).filter(|password| !password.is_empty())
    })
}

/// Up to the next colon that has no backslash before it, and what follows that.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut escaped = false;
    for (at, byte) in line.iter().enumerate() {
        match byte {
            b':' if !escaped => return Some((&line[..at], &line[at + 1..])),
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

/// Without the backslash before what it makes plain.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => plain.push(*bytes.next().unwrap_or(byte)),
            byte => plain.push(*byte),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        let name =
            if name.starts_with('/') { Address::Unix(name.into()) } else { Address::Tcp(name.to_owned()) };
        Host { name: Some(name), address: None, port: 5432 }
    }

    fn found(text: &str, place: &str) -> Option<String> {
        lookup(text.as_bytes(), &host(place), "app", "me").map(|found| String::from_utf8_lossy(&found).into())
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let text = "# db:5432:app:me:no\nother:*:*:*:no\ndb:5433:*:*:no\ndb:5432:app:me:yes\n*:*:*:*:late\n";
        assert_eq!(found(text, "db").as_deref(), Some("yes"));
        assert_eq!(found(text, "elsewhere").as_deref(), Some("late"));
        assert_eq!(found("db:5432:app:you:no\n", "db"), None);
        assert_eq!(found("db:5432:app\n\n", "db"), None);
        assert_eq!(found("db:5432:app:me:\n", "db"), None);
        assert_eq!(found("db:5432:app:me:crlf\r\n", "db").as_deref(), Some("crlf"));
    }

    #[test]
    fn escapes() {
        assert_eq!(found(r"db:5432:app:me:a\:b\\c:rest", "db").as_deref(), Some(r"a:b\c"));
        assert_eq!(found(r"a\:b:5432:app:me:x", "a:b").as_deref(), Some("x"));
        assert_eq!(found(r"\*:5432:app:me:x", "db"), None);
        assert_eq!(found(r"db:5432:app:me:x\", "db").as_deref(), Some(r"x\"));
    }

    #[test]
    fn sockets() {
        assert_eq!(found("localhost:5432:app:me:x", "/tmp").as_deref(), Some("x"));
        assert_eq!(found("localhost:5432:app:me:x", "/run/pg"), None);
        assert_eq!(found("/run/pg:5432:app:me:x", "/run/pg").as_deref(), Some("x"));
    }

    #[test]
    fn a_file_that_others_can_read_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pgpass");
        fs::write(&file, "*:*:*:*:x\n").expect("a file");
        for (mode, used) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("permissions");
            assert_eq!(read(&file).is_some(), used, "{mode:o}");
        }
        assert_eq!(read(directory.path()), None);
        assert_eq!(read(&directory.path().join("none")), None);
    }

    #[test]
    fn a_secret_is_the_file_without_its_end_of_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("secret");
        for (text, password) in [("x", "x"), ("x\n", "x"), ("x\r\n", "x"), (" x \n\n", " x \n")] {
            fs::write(&file, text).expect("a file");
            assert_eq!(secret(&file).expect("a password"), password.as_bytes());
        }
        fs::write(&file, "\n").expect("a file");
        assert!(secret(&file).expect_err("empty").to_string().contains("secret: it is empty"));
        assert!(secret(&directory.path().join("none")).is_err());
        fs::File::create(&file).and_then(|file| file.set_len(LONGEST + 1)).expect("a file");
        assert!(secret(&file).expect_err("long").to_string().contains("longer than 1048576 bytes"));
        // Read as a file, this would wait for ever.
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).expect("a pipe");
        assert!(secret(&pipe).expect_err("a pipe").to_string().contains("it is no plain file"));
        assert!(secret(directory.path()).expect_err("a directory").to_string().contains("no plain file"));
    }
}
