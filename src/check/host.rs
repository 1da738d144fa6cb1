//! The host that the proxy runs on: its ports, and the files of its certificates.

use std::io::ErrorKind;
use std::path::Path;

use tokio::net::TcpListener;

use super::report::{Report, Row};
use crate::admin;
use crate::config::{Address, Config};
use crate::tls::ServerTls;

/// Looks at them.
pub(super) async fn look(config: &Config, report: &mut Report) {
    // Its ports are taken while it runs.
    let runs = admin::health(&config.admin.listen).is_ok();
    for address in &config.proxy.listen {
        report.push(listen("proxy.listen", address, runs).await);
    }
    report.push(listen("admin.listen", &config.admin.listen, runs).await);
    if let Some(tls) = &config.proxy.tls {
        report.push(match ServerTls::load(tls) {
            Ok(_) => Row::good("proxy.tls", "the certificate and its key can be used"),
            Err(error) => Row::failed("proxy.tls", error.to_string()),
        });
    }
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
