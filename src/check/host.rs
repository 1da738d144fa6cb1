//! The host that the proxy runs on: its ports, and the files of its certificates.

use std::io::ErrorKind;
use std::path::Path;

use tokio::net::TcpListener;

use super::report::{Report, Row};
use crate::admin;
use crate::config::{Address, Config};
use crate::lifecycle::descriptors::{Wanted, hard_limit};
use crate::run::threads;
use crate::tls::ServerTls;

/// Looks at them.
pub(super) async fn look(config: &Config, report: &mut Report) {
    // Its ports are taken while it runs.
    let runs = admin::health(&config.admin.listen).is_ok();
    for address in &config.proxy.listen {
        report.push(listen("proxy.listen", address, runs).await);
    }
    report.push(listen("admin.listen", &config.admin.listen, runs).await);
    report.push(descriptors(config, hard_limit()));
    if let Some(tls) = &config.proxy.tls {
        report.push(match ServerTls::load(tls) {
            Ok(_) => Row::good("proxy.tls", "the certificate and its key can be used"),
            Err(error) => Row::failed("proxy.tls", error.to_string()),
        });
    }
}

/// What a process that is started like this one would get.
fn descriptors(config: &Config, limit: u64) -> Row {
    const NAME: &str = "open_files";
    let sources = config.sources.len().max(1);
    let wanted = Wanted { clients: config.proxy.max_clients, threads: threads(config), sources };
    let (needed, clients) = (wanted.descriptors(), wanted.clients_within(limit));
    if clients == wanted.clients {
        return Row::good(NAME, format!("enough for {clients} clients"));
    }
    // Few clients have a connection to Redis of their own: half of what is needed at worst is no trouble yet.
    if clients > wanted.clients / 2 {
        return Row::good(
            NAME,
            format!("enough for {clients} clients, which is less than proxy.max_clients"),
        );
    }
    Row::warning(NAME, format!("{limit} are allowed, and {} clients may need {needed}", wanted.clients))
        .means(format!("the proxy takes no more than {clients} clients, if it is started with this limit"))
        .shell(format!("ulimit -n {needed}"))
}

async fn listen(name: &'static str, text: &str, runs: bool) -> Row {
    let row = match Address::parse_listen(text) {
        Ok(Address::Unix(path)) => unix(name, &path),
        Ok(Address::Tcp(address)) => match TcpListener::bind(&address).await {
            Ok(_) => Row::good(name, "is free"),
            Err(error) if error.kind() == ErrorKind::AddrInUse && runs => {
                Row::good(name, "is taken; a cachefence answers at admin.listen")
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                Row::failed(name, "is taken by another program: the proxy cannot start")
            }
            Err(error) => Row::failed(name, format!("cannot be listened on: {error}"))
                .means("the address has to be one of the host that check and the proxy run on"),
        },
        Err(error) => Row::failed(name, error.to_string()),
    };
    row.on(text)
}

/// A socket that is there is replaced at the start; its directory is not made.
fn unix(name: &'static str, path: &Path) -> Row {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() && !directory.is_dir() => {
            Row::failed(name, format!("there is no directory {}", directory.display()))
        }
        _ => Row::good(name, "its directory is there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Standing;

    #[test]
    fn too_few_open_files_are_told_with_what_is_needed() {
        let config: Config = toml::from_str(
            "proxy.threads = 1\npostgres.url = \"postgres://localhost/app\"\nproxy.max_clients = 1000",
        )
        .expect("settings");
        assert_eq!(descriptors(&config, 1 << 20).standing, Standing::Good);
        assert_eq!(descriptors(&config, 1265).standing, Standing::Good);
        let row = descriptors(&config, 1198);
        assert_eq!(row.standing, Standing::Warning);
        assert_eq!(row.remedy.map(|remedy| remedy.run).as_deref(), Some("ulimit -n 2198"));
        assert!(row.means.is_some_and(|means| means.contains("no more than 500 clients")));
    }
}
