//! Standbys that stream from the primary and are no source: what is read from them can be old, and nobody knows.

use tokio_postgres::Client;

use super::postgres::Primary;
use super::report::Row;
use crate::feed::catalog::CatalogError;

pub(super) const NAME: &str = "standby";

/// The receiving end, as a source tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Receiver {
    slot: Option<String>,
    application_name: Option<String>,
    address: Option<String>,
}

/// The sending end, as the primary tells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sender {
    slot: Option<String>,
    application_name: String,
    address: Option<String>,
}

/// What a source says of its walreceiver; none if it has none, as a primary, or a standby that reads an archive.
pub(super) async fn receiver(client: &Client) -> Result<Option<Receiver>, CatalogError> {
    let sql = "SELECT nullif(slot_name, ''), conninfo, host(inet_server_addr()) FROM pg_catalog.pg_stat_wal_receiver";
    let Some(row) = client.query_opt(sql, &[]).await? else { return Ok(None) };
    let conninfo: Option<String> = row.get(1);
    Ok(Some(Receiver {
        slot: row.get(0),
        application_name: conninfo.as_deref().and_then(application_name),
        address: row.get(2),
    }))
}

/// The name that a walreceiver goes by at its primary.
fn application_name(conninfo: &str) -> Option<String> {
    let value = |name: &str| {
        let word = conninfo.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
        Some(word.trim_matches('\'').to_owned())
    };
    value("application_name").or_else(|| value("fallback_application_name"))
}

/// A row for each standby that is no source. Of those that no source is known to be, as many may be sources as have not
/// been asked.
pub(super) async fn look(
    primary: &Primary,
    receivers: &[Receiver],
    unasked: usize,
) -> Result<Vec<Row>, CatalogError> {
    if !primary.sees_all {
        return Ok(vec![Row::not_looked_at(NAME, "the role is no member of pg_monitor")]);
    }
    // Logical ones read a slot; those that take a backup or keep an archive answer no queries.
    let rows = primary
        .client
        .query(
            "SELECT s.slot_name::text, r.application_name, host(r.client_addr) \
             FROM pg_catalog.pg_stat_replication r \
             LEFT JOIN pg_catalog.pg_replication_slots s ON s.active_pid = r.pid \
             WHERE r.state IN ('streaming', 'catchup') AND s.slot_type IS DISTINCT FROM 'logical' \
               AND r.application_name NOT IN ('pg_basebackup', 'pg_receivewal') \
             ORDER BY r.application_name, r.client_addr, r.client_port",
            &[],
        )
        .await?;
    let senders: Vec<Sender> = rows
        .iter()
        .map(|row| Sender { slot: row.get(0), application_name: row.get(1), address: row.get(2) })
        .collect();
    let strangers = unlisted(senders.clone(), receivers);
    if strangers.is_empty() {
        let found = match senders.len() {
            0 => "none streams from the primary".to_owned(),
            n => format!("all {n} that stream from the primary are sources"),
        };
        return Ok(vec![Row::good(NAME, found)]);
    }
    if strangers.len() <= unasked {
        return Ok(vec![Row::not_looked_at(NAME, "a source does not answer, which may be what streams")]);
    }
    Ok(strangers.iter().map(unlisted_row).collect())
}

fn unlisted_row(sender: &Sender) -> Row {
    let address = sender.address.as_deref().unwrap_or("a unix socket");
    let name = &sender.application_name;
    Row::warning(NAME, format!("streams to {address}, and is no source"))
        .on(name)
        .means("if applications fill the cache with what they read there, old values get in: list it")
        .settings(format!(
            "[[source]]\nname = {name:?}\nurl = \"postgres://...@{}/...\"",
            sender.address.as_deref().unwrap_or("host")
        ))
}

/// The senders that belong to no receiver. A slot is of one standby; a name often is; standbys that all go by the
/// same name are told by their addresses, and where those differ by where one looks from, they are counted.
fn unlisted(mut senders: Vec<Sender>, receivers: &[Receiver]) -> Vec<Sender> {
    let mut open: Vec<&Receiver> = receivers.iter().collect();
    let same_name = |sender: &Sender, receiver: &Receiver| {
        receiver.application_name.as_ref().is_none_or(|name| *name == sender.application_name)
    };
    let mut leave_out = |fits: &dyn Fn(&Sender, &Receiver) -> bool| {
        senders.retain(|sender| match open.iter().position(|receiver| fits(sender, receiver)) {
            Some(place) => {
                open.swap_remove(place);
                false
            }
            None => true,
        });
    };
    leave_out(&|sender, receiver| sender.slot.is_some() && sender.slot == receiver.slot);
    leave_out(&|sender, receiver| same_name(sender, receiver) && sender.address == receiver.address);
    leave_out(&same_name);
    senders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(slot: Option<&str>, name: &str, address: &str) -> Sender {
        Sender {
            slot: slot.map(str::to_owned),
            application_name: name.to_owned(),
            address: Some(address.to_owned()),
        }
    }

    fn receiver(slot: Option<&str>, name: Option<&str>, address: &str) -> Receiver {
        Receiver {
            slot: slot.map(str::to_owned),
            application_name: name.map(str::to_owned),
            address: Some(address.to_owned()),
        }
    }

    #[test]
    fn standbys_are_known_by_slot_name_or_address() {
        let senders = vec![
            sender(Some("s1"), "walreceiver", "10.0.0.1"),
            sender(None, "walreceiver", "10.0.0.2"),
            sender(None, "walreceiver", "10.0.0.3"),
            sender(None, "b", "10.0.0.4"),
        ];
        let receivers = [
            receiver(None, Some("walreceiver"), "10.0.0.3"),
            // Reached by an address that the primary does not know.
            receiver(Some("s1"), Some("walreceiver"), "192.168.0.1"),
        ];
        assert_eq!(unlisted(senders.clone(), &receivers), [senders[1].clone(), senders[3].clone()]);
        // One that says nothing of itself is known by its address.
        assert_eq!(unlisted(senders.clone(), &[receiver(None, None, "10.0.0.2")]).len(), 3);
        assert_eq!(unlisted(senders.clone(), &[]), senders);
    }

    #[test]
    fn a_receivers_name_is_in_its_connection_string() {
        for (conninfo, name) in [
            ("user=r host=h application_name=a fallback_application_name=walreceiver", Some("a")),
            ("user=r fallback_application_name='walreceiver' sslmode=prefer", Some("walreceiver")),
            ("user=r", None),
        ] {
            assert_eq!(application_name(conninfo).as_deref(), name, "{conninfo}");
        }
    }
}
