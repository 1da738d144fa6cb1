//! A temporary slot is of one process: without a name in the settings it is called after the host, which stays the same
//! when a sidecar's container is started again.

use toml::{Table, Value};

/// The longest name that Postgres gives a slot.
pub(super) const LONGEST: usize = 63;

/// With `temporary_slot = true`: fills in `slot` where it is left out. For settings of the right shape.
pub(super) fn apply(settings: &mut Value) {
    let Some(postgres) = settings.get_mut("postgres").and_then(Value::as_table_mut) else { return };
    if is_temporary(postgres) && !postgres.contains_key("slot") {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        postgres.insert("slot".into(), of_host(&host).into());
    }
}

fn is_temporary(postgres: &Table) -> bool {
    postgres.get("temporary_slot").and_then(Value::as_bool) == Some(true)
}

/// In the letters that a slot's name can have. A host's name is told from others rather by its end.
fn of_host(host: &str) -> String {
    let prefix = "cachefence_";
    let letters: Vec<char> =
        host.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let from = letters.len().saturating_sub(LONGEST - prefix.len());
    prefix.chars().chain(letters.into_iter().skip(from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_s_name_becomes_a_slot_s() {
        assert_eq!(of_host("Web-7d9f.example"), "cachefence_web_7d9f_example");
        let long = of_host(&format!("{}-x2x4z", "a".repeat(80)));
        assert!(long.len() == LONGEST && long.ends_with("aa_x2x4z"), "{long}");
    }
}
