//! Which settings a reload can take up, and which need a restart.

use super::{Admin, Audit, Config, Fence, Postgres, Proxy, Redis};

/// Names the fields of a section that differ and are fixed. Every field has to be in one of the lists: one that is
/// added later does not compile until somebody has decided where it belongs.
macro_rules! differing {
    ($found:ident, $old:expr, $new:expr, $section:literal, $type:ident {
        fixed: $($fixed:ident),*; live: $($live:ident),*
    }) => {
        let $type { $($fixed: _,)* $($live: _,)* } = $old;
        $(if $old.$fixed != $new.$fixed {
            $found.push(concat!($section, ".", stringify!($fixed)));
        })*
    };
}

/// The settings that differ and cannot be changed while the proxy runs.
pub fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    let Config { proxy, redis, postgres, sources: _, fence, guards: _, audit, admin } = old;
    let mut found = Vec::new();
    differing!(found, proxy, &new.proxy, "proxy", Proxy {
        fixed: listen, mode, max_clients, max_buffered, threads, tcp_keepalive, proxy_protocol, unix_socket_mode, shutdown_grace,
               shutdown_delay; live: tls
    });
    // Which files they are can change, but not what clients have to speak.
    if proxy.tls.is_some() != new.proxy.tls.is_some() {
        found.push("proxy.tls");
    }
    differing!(found, redis, &new.redis, "redis", Redis { fixed: url, upstream, reply_timeout; live: tls });
    differing!(found, postgres, &new.postgres, "postgres", Postgres {
        fixed: url, password_file, slot, temporary_slot, failover_slot, streaming, publication, contract,
               application_name, feed_lost_after, max_lag; live:
    });
    differing!(found, fence, &new.fence, "fence", Fence {
        fixed: history, lease_ttl, drain_timeout, max_keys, poll_interval; live:
    });
    differing!(found, audit, &new.audit, "audit", Audit { fixed: grace, max_queries_per_second; live: sample });
    differing!(found, admin, &new.admin, "admin", Admin { fixed: listen, show_keys; live: });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let text = format!("{text}\n[postgres]\nurl = \"postgres://u@h/app\"\n");
        Config::parse(None, &text, []).expect("settings")
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        let old = config("");
        assert_eq!(fixed(&old, &old), [""; 0]);
        let guard = "[[guard]]\ntable = \"users\"\nkeys = [\"user:<id>\"]\n[[source]]\nname = \"primary\"\n";
        assert_eq!(fixed(&old, &config(guard)), [""; 0], "these can be changed");
        let other = "[proxy]\nmax_clients = 5\ntls = { cert = \"c\", key = \"k\" }\n[redis]\nurl = \"redis://h\"\n\
                     [fence]\nmax_keys = 1000\n[admin]\nlisten = \"h:1\"\n";
        assert_eq!(
            fixed(&old, &config(other)),
            ["proxy.max_clients", "proxy.tls", "redis.url", "fence.max_keys", "admin.listen"]
        );
    }
}
