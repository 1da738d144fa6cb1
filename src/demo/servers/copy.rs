//! The data of a running primary, copied for a replica of it: for versions whose `pg_basebackup` is not there, as that of
//! another version does not speak with them.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::ServerError;
use super::account::Account;

/// Directories whose contents are the primary's own, or come to the replica by streaming.
const EMPTY: [&str; 8] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];
/// Files that say that a server runs here, or how it was started.
const LEFT: [&str; 2] = ["postmaster.pid", "postmaster.opts"];

/// Copies a data directory while its server writes to it, between the start and the end of a backup: what the log says
/// since then mends what was copied half.
pub(super) fn copy_data(from: &Path, to: &Path, account: Account) -> Result<(), ServerError> {
    make(to, account)?;
    for name in names(from)? {
        let (source, copy) = (from.join(&name), to.join(&name));
        if EMPTY.iter().any(|empty| name == *empty) {
            make(&copy, account)?;
        } else if !LEFT.iter().any(|left| name == *left) {
            copy_entry(&source, &copy, account)?;
        }
    }
    Ok(())
}

fn copy_entry(from: &Path, to: &Path, account: Account) -> Result<(), ServerError> {
    if from.is_dir() {
        make(to, account)?;
        for name in names(from)? {
            copy_entry(&from.join(&name), &to.join(&name), account)?;
        }
        return Ok(());
    }
    match fs::copy(from, to) {
        Ok(_) => account.own(to),
        // Dropped meanwhile: the log says so too.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ServerError::io(format!("copy {}", from.display()))(error)),
    }
}

fn make(dir: &Path, account: Account) -> Result<(), ServerError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().mode(0o700).create(dir);
    made.map_err(ServerError::io(format!("make {}", dir.display())))?;
    account.own(dir)
}

fn names(dir: &Path) -> Result<Vec<std::ffi::OsString>, ServerError> {
    let failed = || ServerError::io(format!("read {}", dir.display()));
    let entries = fs::read_dir(dir).map_err(failed())?;
    entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(failed())).collect()
}
