//! What `cachefence run` says on a terminal before it begins: what it guards, and where to look.

use std::fmt::Write;

use crate::config::{Config, Contract, Mode};

/// For people who have just started it; nothing that a log would need.
pub fn introduction(config: &Config) -> String {
    let mut text = String::new();
    let promise = match (config.proxy.mode, config.postgres.contract) {
        (Mode::Observe, _) => "observe: it counts what it would refuse, and protects nothing",
        (Mode::Enforce, Contract::Bounded) => {
            "the bounded contract: once ready, no older value of a written key stays or gets in"
        }
        (Mode::Enforce, Contract::Strict) => {
            "the strict contract: once in force, a COMMIT returns only after its keys are deleted"
        }
    };
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<9} {value}");
    };
    line("keeps", promise);
    line("clients", &format!("redis at {}", config.proxy.listen.join(", ")));
    for (n, guard) in config.guards.iter().enumerate() {
        line(if n == 0 { "guards" } else { "" }, &format!("{}: {}", guard.table, guard.keys.join(", ")));
    }
    if config.guards.is_empty() {
        line("guards", "nothing: there is no [[guard]] in the settings");
    }
    let sources: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
    line("sources", &if sources.is_empty() { "primary".to_owned() } else { sources.join(", ") });
    line("look at", &format!("http://{}/ (the page), /readyz, /metrics", config.admin.listen));
    line("in doubt", "cachefence check");
    // Names come from a file that anybody may have written: nothing in them moves a cursor.
    let plain = |c: char| if c.is_control() && c != '\n' { '?' } else { c };
    format!("cachefence {}\n{}\n", env!("CARGO_PKG_VERSION"), text.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: &str = "[redis]\nurl = \"redis://127.0.0.1\"\n[postgres]\nurl = \"postgres://secret:secret@127.0.0.1/app\"\n";

    fn of(settings: &str) -> String {
        introduction(&toml::from_str(&(SERVERS.to_owned() + settings)).expect("settings"))
    }

    #[test]
    fn it_says_what_is_guarded_and_where_to_look_and_no_secret() {
        let text = of("[[guard]]\ntable = \"users\"\nkeys = [\"user:<id>\", \"\\u001b[2J<id>\"]\n");
        assert!(text.contains("guards    users: user:<id>, ?[2J<id>\n"), "{text}");
        assert!(text.contains("http://127.0.0.1:9187/"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn who_observes_promises_nothing() {
        let text = of("[proxy]\nmode = \"observe\"\n");
        assert!(text.contains("protects nothing") && !text.contains("contract"), "{text}");
        assert!(text.contains("there is no [[guard]]"), "{text}");
    }
}
