//! Proxies that others have written. Each has one thread for clients, as ours has, and what it has by default besides.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cachefence::demo::client::Client;
use cachefence::demo::servers::free_port;

use super::{HAPROXY, Other, Process, Way};
use crate::Fallible;

/// How often it is tried on another port, when somebody took the first.
const ATTEMPTS: usize = 5;
/// How long one may take to answer.
const IN_TIME: Duration = Duration::from_secs(20);

/// A proxy that may be installed here.
pub struct Proxy {
    pub name: &'static str,
    /// Names its program, if that is not on PATH.
    variable: &'static str,
    on_path: &'static str,
    /// The argument that makes it say its version.
    pub version: &'static str,
    /// Its settings: where it listens, a further port, Redis's.
    settings: fn(u16, u16, u16) -> String,
    /// Its arguments: the file of its settings, and that further port.
    arguments: fn(&str, u16) -> Vec<String>,
}

/// All that are compared.
pub const ALL: [Proxy; 4] = [
    Proxy {
        name: HAPROXY,
        variable: "CACHEFENCE_HAPROXY",
        on_path: "haproxy",
        version: "-v",
        settings: haproxy,
        arguments: |file, _| words(&["-db", "-f", file]),
    },
    Proxy {
        name: "twemproxy",
        variable: "CACHEFENCE_TWEMPROXY",
        on_path: "nutcracker",
        version: "-V",
        settings: twemproxy,
        arguments: |file, port| words(&["-c", file, "-a", "127.0.0.1", "-s", &port.to_string()]),
    },
    Proxy {
        name: "predixy",
        variable: "CACHEFENCE_PREDIXY",
        on_path: "predixy",
        version: "--version",
        settings: predixy,
        arguments: |file, _| words(&[file]),
    },
    Proxy {
        name: "Envoy",
        variable: "CACHEFENCE_ENVOY",
        on_path: "envoy",
        version: "--version",
        settings: envoy,
        arguments: |file, _| {
            words(&["-c", file, "--concurrency", "1", "--disable-hot-restart", "-l", "error"])
        },
    },
];

impl Proxy {
    /// Where its program is.
    pub fn program(&self) -> Option<PathBuf> {
        if let Some(chosen) = std::env::var_os(self.variable) {
            return Some(chosen.into());
        }
        let path = std::env::var_os("PATH")?;
        // Debian has some of them where only root looks.
        let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        places.map(|place| place.join(self.on_path)).find(|program| program.is_file())
    }

    /// Starts it, and waits until it answers as Redis would.
    pub async fn start(&self, program: &Path, redis: u16) -> Fallible<Way> {
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            match self.attempt(program, redis).await {
                Ok(way) => return Ok(way),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| "never tried".into()))
    }

    async fn attempt(&self, program: &Path, redis: u16) -> Fallible<Way> {
        let (port, further) = (free_port()?, free_port()?);
        let dir = tempfile::tempdir()?;
        // Envoy goes by the end of the name; the others do not care.
        let (file, log) = (dir.path().join("settings.yaml"), dir.path().join("log"));
        fs::write(&file, (self.settings)(port, further, redis))?;
        let child = Command::new(program)
            .args((self.arguments)(&file.to_string_lossy(), further))
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .current_dir(dir.path())
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let mut other = Other { child, dir };
        let answered = tokio::time::timeout(IN_TIME, answers(&mut other, port)).await;
        if let Ok(Ok(())) = answered {
            let process = Process::Other(other);
            return Ok(Way { name: self.name, port, process });
        }
        let said = fs::read_to_string(other.dir.path().join("log")).unwrap_or_default();
        Err(format!("{} does not answer: {answered:?}\n{said}", self.name).into())
    }
}

/// Waits until a command is answered by the child there.
async fn answers(other: &mut Other, port: u16) -> Fallible<()> {
    loop {
        if let Some(status) = other.child.try_wait()? {
            return Err(format!("it has ended: {status}").into());
        }
        if let Ok(mut client) = Client::connect(&format!("127.0.0.1:{port}")).await
            && client.cmd(&["SET", "probe", "x"]).await.is_ok()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| (*word).to_owned()).collect()
}

fn haproxy(port: u16, _: u16, redis: u16) -> String {
    format!(
        "global\n    nbthread 1\ndefaults\n    mode tcp\n    timeout connect 10s\n    timeout client 1h\n    \
         timeout server 1h\nlisten redis\n    bind 127.0.0.1:{port}\n    server redis 127.0.0.1:{redis}\n"
    )
}

fn twemproxy(port: u16, _: u16, redis: u16) -> String {
    format!(
        "redis:\n  listen: 127.0.0.1:{port}\n  redis: true\n  hash: fnv1a_64\n  distribution: ketama\n  \
         auto_eject_hosts: false\n  backlog: 4096\n  servers:\n  - 127.0.0.1:{redis}:1\n"
    )
}

fn predixy(port: u16, _: u16, redis: u16) -> String {
    format!(
        "Name bench\nBind 127.0.0.1:{port}\nWorkerThreads 1\nAuthority {{\n Auth {{\n  Mode write\n }}\n}}\n\
         StandaloneServerPool {{\n Databases 16\n Hash crc16\n HashTag \"{{}}\"\n Distribution modula\n \
         MasterReadPriority 60\n StaticSlaveReadPriority 50\n DynamicSlaveReadPriority 50\n RefreshMethod fixed\n \
         RefreshInterval 1\n Group redis {{\n  + 127.0.0.1:{redis}\n }}\n}}\n"
    )
}

fn envoy(port: u16, _: u16, redis: u16) -> String {
    let at = |port: u16| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    format!(
        "static_resources:
  listeners:
  - name: redis
    address: {}
    filter_chains:
    - filters:
      - name: envoy.filters.network.redis_proxy
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
          stat_prefix: redis
          settings: {{op_timeout: 60s}}
          prefix_routes: {{catch_all_route: {{cluster: redis}}}}
  clusters:
  - name: redis
    type: STATIC
    load_assignment:
      cluster_name: redis
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {}}}}}]}}]
",
        at(port),
        at(redis)
    )
}
