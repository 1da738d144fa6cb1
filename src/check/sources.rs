//! The sources: is each a standby of this system, and how far behind is it?

use tokio_postgres::Client;

use super::postgres::{Primary, limited, reached};
use super::report::{Report, Row};
use super::{size, standbys};
use crate::config::{Config, Source};
use crate::feed::catalog::CatalogError;
use crate::feed::sources::look_at_replica;
use crate::pg::session;
use crate::pg::target::Target;
use crate::position::Lsn;

const NAME: &str = "source";
/// A standby that is so far behind is not only a moment late.
const FAR: i64 = 16 << 20;

/// Looks at every source, and at standbys that are none.
pub(super) async fn look(config: &Config, primary: Option<&Primary>, report: &mut Report) {
    let mut receivers = Vec::new();
    let mut unasked = 0;
    let own = config.sources.iter().find(|source| source.url.is_none());
    match own {
        Some(own) => report.push(Row::good(NAME, "is the feed's primary").on(&own.name)),
        None if config.sources.is_empty() => report.push(Row::good(NAME, "the primary is the only one")),
        None => report.push(
            Row::warning(NAME, "the primary is not listed")
                .on("primary")
                .means("right only if no application reads from it what it then fills")
                .settings("[[source]]\nname = \"primary\""),
        ),
    }
    for source in &config.sources {
        let target = match source.target() {
            Ok(Some(target)) => target,
            Ok(None) => continue,
            Err(error) => {
                report.push(Row::failed(NAME, error.to_string()).on(&source.name));
                continue;
            }
        };
        let (row, receiver) = standby(config, source, target, primary).await;
        report.push(row.on(&source.name));
        match receiver {
            Asked::Receiver(receiver) => receivers.extend(receiver),
            Asked::Nothing => unasked += 1,
        }
    }
    if let Some(primary) = primary {
        match limited(standbys::look(primary, &receivers, unasked)).await {
            Ok(rows) => report.rows.extend(rows),
            Err(error) => report.push(Row::failed(standbys::NAME, error.to_string())),
        }
    } else {
        report.not_looked_at(&[standbys::NAME], "Postgres cannot be asked");
    }
}

/// What a source says of itself.
enum Asked {
    Receiver(Option<standbys::Receiver>),
    /// It does not answer.
    Nothing,
}

async fn standby(
    config: &Config,
    source: &Source,
    target: Target,
    primary: Option<&Primary>,
) -> (Row, Asked) {
    let connecting = reached(Ok(target.clone()), async |target| {
        Ok(session::connect(&target, &config.postgres.application_name).await?)
    });
    let (client, host) = match connecting.await {
        Ok(connected) => connected,
        Err(error) => {
            let row = Row::failed(NAME, error.to_string()).means(
                "no lease counts until it can be polled; a standby takes sessions with hot_standby = on, and needs a line \
                 for the role in pg_hba.conf of its own",
            );
            return (row, Asked::Nothing);
        }
    };
    let receiver = limited(standbys::receiver(&client)).await.map_or(Asked::Nothing, Asked::Receiver);
    let Some(identity) = primary.and_then(|primary| primary.identity) else {
        return (Row::not_looked_at(NAME, "the primary's system is not known"), receiver);
    };
    let name = &config.postgres.application_name;
    // Of several hosts the one that has answered.
    let row = match look_at_replica(&target.only(&host), name, identity).await {
        Ok(replayed) => match limited(state(&client, primary, replayed)).await {
            Ok(row) => row,
            Err(error) => Row::failed(NAME, error.to_string()),
        },
        Err(error) => {
            let wrong = format!("the url of [[source]] {:?}", source.name);
            Row::failed(NAME, error).means("it is not trusted, so no lease counts").settings(wrong)
        }
    };
    (row, receiver)
}

/// How it replays.
async fn state(client: &Client, primary: Option<&Primary>, replayed: Lsn) -> Result<Row, CatalogError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.pg_is_wal_replay_paused(), \
                    coalesce((SELECT setting::int8 FROM pg_catalog.pg_settings \
                              WHERE name = 'recovery_min_apply_delay'), 0), \
                    current_setting('recovery_min_apply_delay')",
            &[],
        )
        .await?;
    let (paused, delay, delay_text): (bool, i64, &str) = (row.get(0), row.get(1), row.get(2));
    let flushed = match primary {
        Some(primary) => {
            let sql = "SELECT pg_catalog.pg_current_wal_flush_lsn()::text";
            primary.client.query_one(sql, &[]).await?.get::<_, String>(0).parse().unwrap_or(replayed)
        }
        None => replayed,
    };
    let behind = i64::try_from(flushed.0.saturating_sub(replayed.0)).unwrap_or(i64::MAX);
    let found = format!("a standby of this system, {} behind", size(behind));
    let late = "what it does not show yet is not settled: recently written keys stay unfilled";
    Ok(if paused {
        Row::warning(NAME, format!("{found}; its replay is paused"))
            .means(late)
            .sql("SELECT pg_wal_replay_resume(); -- on this standby")
    } else if delay > 0 {
        Row::warning(NAME, format!("{found}; it replays {delay_text} late, as recovery_min_apply_delay says"))
            .means(late)
            .sql("ALTER SYSTEM SET recovery_min_apply_delay = 0; SELECT pg_reload_conf(); -- on this standby")
    } else if behind > FAR {
        Row::warning(NAME, found).means(late)
    } else {
        Row::good(NAME, found)
    })
}
