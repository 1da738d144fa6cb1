//! The primary: whether it can be followed.

use tokio_postgres::Client;

use super::report::{Report, Row};
use super::{PATIENCE, audit, rights, slot, strict, tables};
use crate::config::{Config, Contract};
use crate::feed::Identity;
use crate::feed::catalog::{self, CatalogError, Problem, Slot};
use crate::guard::Guards;
use crate::pg::error::PgError;
use crate::pg::session;
use crate::pg::target::Target;

/// The primary, as far as it could be looked at.
pub(super) struct Primary {
    pub(super) client: Client,
    /// Where it is: of several hosts the one that was the primary.
    target: Target,
    /// `server_version_num`.
    version: i32,
    /// Its cluster; none where no walsender could be had.
    pub(super) identity: Option<Identity>,
    /// Whether the role sees what others' sessions do.
    pub(super) sees_all: bool,
    /// A question was not answered: no more are asked.
    silent: bool,
}

/// What is known of the server before anything else is asked.
struct Room {
    max_slots: i32,
    slots: i64,
    max_senders: i32,
    senders: i64,
}

/// What is not looked at where Postgres cannot be reached.
const AFTER_CONNECTING: [&str; 12] = [
    "version",
    "wal_level",
    "max_replication_slots",
    "max_wal_senders",
    "replication",
    "pg_monitor",
    "open_transactions",
    "functions",
    "table",
    "publication",
    "slot",
    "slot_wal",
];

/// What is not looked at then either, with the strict contract.
const OF_STRICT: [&str; 2] = [strict::NAMES, strict::COMMIT];

/// What is not looked at where the slot cannot be.
const AFTER_SLOT: [&str; 5] =
    ["max_replication_slots", "max_wal_senders", "replication", "open_transactions", "slot_wal"];

/// Looks at all that concerns the primary; none if it cannot be reached.
pub(super) async fn look(config: &Config, guards: &Guards, report: &mut Report) -> Option<Primary> {
    let settings = &config.postgres;
    let connecting = reached(settings.target(), async |target| {
        let (client, host) = session::connect(&target, &settings.application_name).await?;
        let target = target.only(&host);
        let server = catalog::server(&client).await?;
        let row = client.query_one("SELECT current_user::text, current_database()::text", &[]).await?;
        Ok((client, target, server, row.get::<_, String>(0), row.get::<_, String>(1)))
    });
    let (client, target, server, role, database) = match connecting.await {
        Ok(connected) => connected,
        Err(error) => {
            report.push(unreachable(&error));
            report.not_looked_at(&AFTER_CONNECTING, "Postgres cannot be asked");
            if settings.contract == Contract::Strict {
                report.not_looked_at(&OF_STRICT, "Postgres cannot be asked");
            }
            return None;
        }
    };
    report.push(Row::good("postgres", format!("database {database:?} answers role {role:?}")));
    let version = format!("{}.{}", server.version / 10_000, server.version % 10_000);
    of_server("version", &server.problems, version, report);
    of_server("wal_level", &server.problems, "logical".to_owned(), report);

    let version = server.version;
    let mut primary = Primary { client, target, version, identity: None, sees_all: false, silent: false };
    primary.look(config, guards, &role, report).await;
    Some(primary)
}

/// Whether there is room for the proxy's slot and walsender, and whether the role may have one.
async fn followable(config: &Config, slot: Option<&Slot>, primary: &mut Primary, report: &mut Report) {
    let Some(room) = primary.ask(report, "max_replication_slots", room).await else { return };
    let needs_slot = i64::from(slot.is_none());
    let needs_sender = i64::from(!slot.is_some_and(|slot| slot.active));
    report.push(enough("max_replication_slots", room.max_slots, room.slots, needs_slot));
    report.push(enough("max_wal_senders", room.max_senders, room.senders, needs_sender));
    if room.senders >= i64::from(room.max_senders) {
        report.push(Row::not_looked_at("replication", "no walsender is free"));
        return;
    }
    let identifying = reached(Ok(primary.target.clone()), async |target| {
        let mut sender = catalog::walsender(&target, &config.postgres.application_name).await?;
        Ok(sender.identify().await?)
    });
    match identifying.await {
        Ok(system) => {
            primary.identity = Some(Identity { system_id: system.system_id, timeline: system.timeline });
            report.push(Row::good("replication", "the role may stream"));
        }
        Err(Trouble::Catalog(CatalogError::Problems(problems))) => {
            let hosted = "on Amazon RDS the right is another: GRANT rds_replication TO the role";
            let row = |problem| Row::problem("replication", problem).means(hosted);
            problems.iter().for_each(|problem| report.push(row(problem)));
        }
        Err(error) => report.push(Row::failed("replication", error.to_string())),
    }
}

async fn room(client: &Client) -> Result<Room, CatalogError> {
    let row = client
        .query_one(
            "SELECT current_setting('max_replication_slots')::int4, \
                    (SELECT count(*) FROM pg_catalog.pg_replication_slots), \
                    current_setting('max_wal_senders')::int4, \
                    (SELECT count(*) FROM pg_catalog.pg_stat_replication)",
            &[],
        )
        .await?;
    Ok(Room { max_slots: row.get(0), slots: row.get(1), max_senders: row.get(2), senders: row.get(3) })
}

/// A number of the server that only a restart raises.
fn enough(name: &'static str, max: i32, used: i64, needed: i64) -> Row {
    let found = format!("{used} of {max} used");
    if used + needed <= i64::from(max) {
        return Row::good(name, found);
    }
    Row::failed(name, format!("{found}: none is left for the proxy"))
        .sql(format!("ALTER SYSTEM SET {name} = {}; -- and restart Postgres", used + needed + 4))
}

/// A row of the server's own problems of this kind.
fn of_server(name: &'static str, problems: &[Problem], good: String, report: &mut Report) {
    let is_of = |problem: &&Problem| match problem {
        Problem::Version { .. } => name == "version",
        _ => name == "wal_level",
    };
    let row = match problems.iter().find(is_of) {
        None => Row::good(name, good),
        Some(problem @ Problem::WalLevel { .. }) => Row::problem(name, problem).means(
            "there is nothing to follow; a hosted Postgres has it as a parameter of the instance (Amazon RDS: \
             rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on)",
        ),
        Some(problem) => Row::problem(name, problem),
    };
    report.push(row);
}

/// Postgres cannot be asked anything.
fn unreachable(error: &Trouble) -> Row {
    let row =
        Row::failed("postgres", error.to_string()).means("the feed cannot start, and nothing is judged");
    let code = match error {
        Trouble::Catalog(CatalogError::Postgres(error)) => error.code(),
        Trouble::Catalog(CatalogError::Standby) => return row.settings("postgres.url of the primary"),
        _ => None,
    };
    match code {
        Some("28P01") => row.settings("the role's password, in postgres.url or postgres.password_file"),
        Some("28000") => row.settings(
            "a line of the primary's pg_hba.conf: host <database> <role> <this host's address>/32 scram-sha-256",
        ),
        Some("3D000") => row.settings("postgres.url with the database of the guarded tables"),
        _ => row.settings("postgres.url with an address that the primary listens on"),
    }
}

/// Why something could not be found out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("no answer within {PATIENCE:?}")]
    Silent,
}

/// Waits for an answer no longer than [`PATIENCE`].
pub(super) async fn limited<T>(asking: impl Future<Output = Result<T, CatalogError>>) -> Result<T, Trouble> {
    Ok(tokio::time::timeout(PATIENCE, asking).await.map_err(|_| Trouble::Silent)??)
}

/// Connects, and asks: no host of several may use up the time of the others.
pub(super) async fn reached<T>(
    target: Result<Target, PgError>,
    asking: impl AsyncFnOnce(Target) -> Result<T, CatalogError>,
) -> Result<T, Trouble> {
    let target = target.map_err(CatalogError::from)?.within(PATIENCE);
    let hosts = u32::try_from(target.host_count()).unwrap_or(u32::MAX).max(1);
    let all = PATIENCE.saturating_mul(hosts.saturating_add(1));
    Ok(tokio::time::timeout(all, asking(target)).await.map_err(|_| Trouble::Silent)??)
}

impl Primary {
    /// Looks at the rest, in the order in which things are to be mended.
    async fn look(&mut self, config: &Config, guards: &Guards, role: &str, report: &mut Report) {
        let settings = &config.postgres;
        let (name, temporary) = (&settings.slot, settings.temporary_slot);
        let slot =
            self.ask(report, "slot", async |client| catalog::slot(client, name, temporary).await).await;
        if let Some(slot) = &slot {
            followable(config, slot.as_ref(), self, report).await;
        } else {
            report.not_looked_at(&AFTER_SLOT, "the slots cannot be read");
        }
        if let Some(sees_all) = self.ask(report, "pg_monitor", rights::sees_all).await {
            self.sees_all = sees_all;
            report.push(rights::monitor(role, sees_all, settings.contract));
        }
        if let Some(slot) = &slot {
            // A slot cannot be created before these have ended, nor can `init` then do it.
            let to_be_made = slot.as_ref().is_none_or(|slot| slot.lost || slot.problem.is_some());
            let sees_all = self.sees_all;
            self.rows(report, "open_transactions", async |client| {
                slot::open_transactions(client, to_be_made, sees_all).await
            })
            .await;
        }
        let version = self.version;
        self.rows(report, "functions", async |client| rights::functions(client, version).await).await;
        let known = slot.as_ref().and_then(Option::as_ref).map(|slot| (settings.slot.as_str(), slot));
        self.rows(report, "table", async |client| tables::tables(client, guards).await).await;
        self.rows(report, "publication", async |client| {
            tables::publication(client, &settings.publication, guards, known).await
        })
        .await;
        self.rows(report, audit::NAME, async |client| {
            audit::statements(client, guards, &config.audit, role).await
        })
        .await;
        if let Some(slot) = &slot {
            self.rows(report, "slot", async |client| slot::slot(client, settings, slot.as_ref()).await).await;
        }
        if settings.contract == Contract::Strict {
            let name = settings.application_name.as_str();
            self.rows(report, strict::NAMES, async |client| strict::standby_names(client, name).await).await;
            let target = self.target.clone();
            self.rows(report, strict::COMMIT, async |client| {
                strict::synchronous_commit(&target, name, client).await
            })
            .await;
        }
    }

    /// Asks something; none if it could not be found out, which its row then says.
    pub(super) async fn ask<T>(
        &mut self,
        report: &mut Report,
        name: &'static str,
        question: impl AsyncFnOnce(&Client) -> Result<T, CatalogError>,
    ) -> Option<T> {
        if self.silent {
            report.push(Row::not_looked_at(name, "Postgres answers no more"));
            return None;
        }
        match limited(question(&self.client)).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.silent = matches!(error, Trouble::Silent) || self.client.is_closed();
                report.push(Row::failed(name, error.to_string()));
                None
            }
        }
    }

    async fn rows(
        &mut self,
        report: &mut Report,
        name: &'static str,
        question: impl AsyncFnOnce(&Client) -> Result<Vec<Row>, CatalogError>,
    ) {
        if let Some(rows) = self.ask(report, name, question).await {
            report.rows.extend(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Standing;

    #[test]
    fn there_is_room_or_there_is_sql() {
        assert_eq!(enough("max_wal_senders", 10, 9, 1).standing, Standing::Good);
        assert_eq!(enough("max_wal_senders", 10, 10, 0).standing, Standing::Good);
        let row = enough("max_wal_senders", 10, 10, 1).to_string();
        assert!(row.contains("10 of 10 used: none is left for the proxy"), "{row}");
        assert!(
            row.ends_with("run: ALTER SYSTEM SET max_wal_senders = 15; -- and restart Postgres"),
            "{row}"
        );
    }
}
