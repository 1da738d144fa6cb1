//! Commits wait for the proxy: what if it is not there, or they no longer do.

use super::*;

/// Commits that hang wait for the proxy.
async fn hanging(stand: &Stand) -> Outcome {
    let sql = stand.sql().await?;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let hang = async || sql.query_one(waiting, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0);
    Ok(wait_until("commits to hang", PATIENCE, hang).await?)
}

/// What `/readyz` says is to be run, once it says so with this word.
async fn remedy(stand: &Stand, word: &str) -> Fallible<String> {
    let asked = async || {
        let (_, text) = stand.proxy.get("/readyz").await.ok()?;
        let line = text.lines().find(|line| line.contains(word))?;
        let (_, run) = line.split_once("run: ")?;
        let end = run.rfind(';')? + 1;
        run.get(..end).map(str::to_owned)
    };
    Ok(wait_for(&format!("a remedy: {word}"), PATIENCE, asked).await?)
}

/// As it would be typed: statement by statement.
async fn carry_out(stand: &Stand, remedy: &str) -> Outcome {
    for statement in remedy.split_inclusive(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        stand.primary.psql(statement).await?;
    }
    Ok(())
}

/// Whoever commits waits for the proxy, the proxy for a slot, and the slot for whoever commits, until an operator does
/// what the proxy says (F14).
pub async fn slot_lost(stand: &mut Stand, load: &Load) -> Outcome {
    let sql = stand.sql().await?;
    let end =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'cachefence'";
    let dropped = async || {
        sql.query(end, &[]).await.is_ok()
            && sql.execute("SELECT pg_drop_replication_slot('cachefence')", &[]).await.is_ok()
    };
    wait_until("the slot to be dropped", PATIENCE, dropped).await?;
    hanging(stand).await?;
    let out = remedy(stand, "wait for this proxy").await?;
    stand.lives().await?;
    carry_out(stand, &out).await?;
    // Writers go on, and the proxy has its slot.
    load.written(20).await?;
    let back = remedy(stand, "does not name it").await?;
    stand.counted("cachefence_gaps_total{reason=\"fresh_slot\"}", 1.0).await?;
    carry_out(stand, &back).await
}

/// Nobody answers, so nobody is acknowledged; a new one takes over.
pub async fn killed(stand: &mut Stand, load: &Load) -> Outcome {
    stand.proxy.kill().await?;
    let mut redis = stand.redis.client().await?;
    redis.cmd(&["SET", "user:0", "old"]).await?;
    let session = stand.primary.client().await?;
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%id = 0%'";
    let commit = tokio::spawn(async move {
        session.batch_execute("UPDATE users SET version = version + 1 WHERE id = 0").await
    });
    let sql = stand.sql().await?;
    let hangs = async || sql.query_one(waiting, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0);
    wait_until("the commit to hang", PATIENCE, hangs).await?;
    stand.proxy.relaunch().await?;
    commit.await??;
    // Without waiting: it has returned.
    assert_eq!(redis.cmd(&["EXISTS", "user:0"]).await?, Reply::Int(0), "acknowledged, and its key is there");
    load.written(20).await
}

/// The contract is not in force as long as commits do not wait, and under another setting it begins anew.
pub async fn names_cleared(stand: &mut Stand, load: &Load) -> Outcome {
    stand.set_standbys("").await?;
    stand.not_ready("the strict contract is not in force").await?;
    let let_in = "cachefence_fills_total{action=\"forwarded\"}";
    let before = stand.proxy.metric(let_in).await?;
    load.written(50).await?;
    assert_eq!(stand.proxy.metric(let_in).await?, before, "fills were let in");
    let anew = |stand: &Stand| stand.proxy.log().matches("is looked at anew").count();
    stand.set_standbys(STANDBYS).await?;
    stand.recovered().await?;
    let before = anew(stand);
    stand.set_standbys("ANY 1 (cachefence)").await?;
    wait_until("the contract to begin anew", PATIENCE, async || anew(stand) > before).await?;
    stand.recovered().await?;
    stand.set_standbys(STANDBYS).await
}

/// They do not wait, and nothing is promised of them. What is promised of the others holds.
pub async fn off(stand: &mut Stand, load: &Load) -> Outcome {
    let sql = stand.primary.client().await?;
    sql.batch_execute("SET synchronous_commit = off").await?;
    for n in 0..300_i64 {
        sql.execute("UPDATE users SET version = version + 1 WHERE id = $1", &[&(1 + n % 20)]).await?;
        if n % 10 == 0 {
            load.written(1).await?;
        }
    }
    Ok(())
}
