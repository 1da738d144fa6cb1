//! Whom Postgres runs as: it refuses root.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::ServerError;

/// The name Debian's packages give the account that runs Postgres.
const NAME: &str = "postgres";

/// An account other than our own.
#[derive(Debug, Clone, Copy)]
struct Other {
    uid: u32,
    gid: u32,
}

/// Whom Postgres's programs run as: ourselves, or `postgres` when we are root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account(Option<Other>);

impl Account {
    /// Ourselves if that is not root.
    pub(crate) fn for_postgres() -> Result<Self, ServerError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self(None));
        }
        let passwd = std::fs::read_to_string("/etc/passwd").map_err(ServerError::io("read /etc/passwd"))?;
        find(&passwd).map(|other| Self(Some(other))).ok_or(ServerError::Account)
    }

    /// Makes `command` run as this account. Setting a user id as root also drops the supplementary groups.
    pub(crate) fn run_as(self, command: &mut Command) {
        if let Some(other) = self.0 {
            command.gid(other.gid).uid(other.uid);
        }
    }

    /// Gives it a directory.
    pub(crate) fn own(self, path: &Path) -> Result<(), ServerError> {
        match self.0 {
            Some(other) => chown(path, Some(other.uid), Some(other.gid))
                .map_err(ServerError::io(format!("give {} to {NAME}", path.display()))),
            None => Ok(()),
        }
    }
}

fn find(passwd: &str) -> Option<Other> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(NAME) {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Other { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_read_from_its_own_line() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\npostgres2:x:7:7::/:/bin/sh\npostgres:x:103:107:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\n";
        let other = find(passwd).map(|other| (other.uid, other.gid));
        assert_eq!(other, Some((103, 107)));
        assert!(find("root:x:0:0::/:/bin/sh\n").is_none());
    }
}
