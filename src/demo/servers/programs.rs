//! Where the servers' programs are.

use std::path::{Path, PathBuf};

use super::ServerError;

/// Names the directory of Postgres's programs.
const PG_BIN: &str = "CACHEFENCE_PG_BIN";
/// Names the redis-server program.
const REDIS_SERVER: &str = "CACHEFENCE_REDIS_SERVER";
/// Where Debian puts one directory for each major version.
const DEBIAN_VERSIONS: &str = "/usr/lib/postgresql";

/// The directory that has initdb and postgres, and with Debian's packages pg_basebackup and psql.
pub(crate) fn postgres_bin() -> Result<PathBuf, ServerError> {
    let missing =
        || ServerError::Missing { program: "initdb".into(), package: "postgresql", variable: PG_BIN };
    if let Some(chosen) = std::env::var_os(PG_BIN) {
        let chosen = PathBuf::from(chosen);
        return if has_postgres(&chosen) { Ok(chosen) } else { Err(missing()) };
    }
    path_directories()
        .into_iter()
        .find(|dir| has_postgres(dir))
        .map(|dir| home(&dir))
        .or_else(|| newest_version(Path::new(DEBIAN_VERSIONS)))
        .ok_or_else(missing)
}

/// Where the programs really are: a directory of links to some of them has not all that is needed.
fn home(dir: &Path) -> PathBuf {
    let real = dir.join("initdb").canonicalize().ok();
    let home = real.as_deref().and_then(Path::parent).filter(|home| has_postgres(home));
    home.unwrap_or(dir).to_owned()
}

/// The psql beside a server's programs, or any other: it speaks with servers of every version.
pub(crate) fn psql(bin: &Path) -> Result<PathBuf, ServerError> {
    std::iter::once(bin.to_owned())
        .chain(path_directories())
        .chain(newest_version(Path::new(DEBIAN_VERSIONS)))
        .map(|dir| dir.join("psql"))
        .find(|psql| psql.is_file())
        .ok_or(ServerError::Missing { program: "psql".into(), package: "postgresql", variable: PG_BIN })
}

/// The redis-server program.
pub(crate) fn redis_server() -> Result<PathBuf, ServerError> {
    let chosen = std::env::var_os(REDIS_SERVER).map(PathBuf::from);
    let found = match chosen {
        Some(chosen) => Some(chosen).filter(|path| path.is_file()),
        None => {
            path_directories().into_iter().map(|dir| dir.join("redis-server")).find(|path| path.is_file())
        }
    };
    found.ok_or(ServerError::Missing {
        program: "redis-server".into(),
        package: "redis-server",
        variable: REDIS_SERVER,
    })
}

/// The programs of both servers: Postgres's, and Redis's.
///
/// # Errors
/// When one of them is missing.
pub fn installed() -> Result<[PathBuf; 2], ServerError> {
    Ok([postgres_bin()?.join("postgres"), redis_server()?])
}

fn path_directories() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

fn has_postgres(dir: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| dir.join(program).is_file())
}

/// The `bin` of the highest version number below `versions`.
fn newest_version(versions: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(versions).ok()?;
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            has_postgres(&bin).then_some((version, bin))
        })
        .max_by_key(|(version, _)| *version)
        .map(|(_, bin)| bin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_is_whole_is_taken() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        for (version, programs) in
            [("9", &["initdb", "postgres"][..]), ("15", &["initdb", "postgres"]), ("16", &["psql"])]
        {
            let bin = root.path().join(version).join("bin");
            std::fs::create_dir_all(&bin)?;
            for program in programs {
                std::fs::write(bin.join(program), "")?;
            }
        }
        assert_eq!(newest_version(root.path()), Some(root.path().join("15").join("bin")));
        Ok(())
    }

    #[test]
    fn links_lead_to_where_all_programs_are() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let (real, links) = (root.path().join("real"), root.path().join("links"));
        for dir in [&real, &links] {
            std::fs::create_dir(dir)?;
        }
        for program in ["initdb", "postgres"] {
            std::fs::write(real.join(program), "")?;
            std::os::unix::fs::symlink(real.join(program), links.join(program))?;
        }
        assert_eq!(home(&links), real.canonicalize()?);
        assert_eq!(home(&real), real.canonicalize()?);
        Ok(())
    }
}
