//! Clients that go.

use cachefence::demo::client::{Reply, encode};
use cachefence::demo::servers::wait_until;

use super::wire::Wire;
use super::{A_WHILE, Before, ROW, connect, connect_to_leave, proven_fill, put, write};
use crate::dice::Dice;
use crate::load::Load;
use crate::stand::Stand;
use crate::support::{Fallible, Outcome, PATIENCE};

/// What a client has said, and how many replies it has seen, when it goes.
async fn states(stand: &Stand) -> Fallible<Vec<(Vec<u8>, usize)>> {
    let (fill, _) = proven_fill(stand).await?;
    let said = |line: &str| encode(&line.split(' ').collect::<Vec<_>>());
    let get = said("GET gone");
    let after = said("AFTER FFFFFFFF/0 TIMEOUT 3600000 GET gone");
    // Of a key that nobody reads a thousand times.
    let large = encode(&["SET", "gone:large", &"x".repeat(1 << 20)]);
    let half = |bytes: &[u8]| bytes.get(..bytes.len() / 2).unwrap_or_default().to_vec();
    let multi = said("MULTI");
    Ok(vec![
        (Vec::new(), 0),
        (half(&get), 0),
        (get.repeat(1000), 0),
        (get.repeat(1000), 500),
        (multi.clone(), 1),
        ([multi.clone(), fill.clone()].concat(), 2),
        ([multi.clone(), fill.clone(), said("EXEC")].concat(), 0),
        (said("WATCH gone"), 1),
        (said("BLPOP nothing 0"), 0),
        // More behind it than is read ahead where nothing has to wait.
        ([said("BLPOP nothing 0"), get.repeat(10_000)].concat(), 0),
        (after.clone(), 0),
        ([after, get.repeat(10_000)].concat(), 0),
        (said("SUBSCRIBE gone"), 1),
        (said("PSUBSCRIBE gone*"), 0),
        (said("MONITOR"), 1),
        (fill.clone(), 0),
        (half(&fill), 0),
        (large.clone(), 0),
        (half(&large), 0),
        (said("GET large"), 0),
        (said("AUTH nobody nothing"), 0),
        (half(&said("AUTH nobody nothing")), 0),
        (said("HELLO 3"), 0),
        (said("HELLO 3 AUTH nobody nothing"), 1),
        (said("SELECT 1"), 0),
        (said("CLIENT REPLY OFF"), 0),
        (said("EVAL return{} 0"), 0),
        (said("WAIT 1 60000"), 0),
        (said("NOSUCH"), 0),
    ])
}

/// By FIN and by RST.
pub async fn every_state(stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    let before = Before::of(stand).await?;
    put(stand, "large", 1 << 22).await?;
    for _ in 0..3 {
        let mut leaving = Vec::new();
        for (said, seen) in states(stand).await? {
            let mut wire = connect_to_leave(stand, dice).await?;
            // What waits behind a command that waits is taken only so far.
            let _ = tokio::time::timeout(A_WHILE, wire.send(&said)).await;
            for _ in 0..seen {
                // Where Redis is slow, a connection that has a fill on it as well may be ended meanwhile.
                if wire.reply().await.is_err() {
                    break;
                }
            }
            leaving.push(wire);
        }
        drop(leaving);
    }
    load.warm().await?;
    write(stand).await?;
    before.returns(stand).await
}

/// They have said all that they will say, and get all answers; one that waits for what may never come gets none.
pub async fn half_closed(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    let before = Before::of(stand).await?;
    let (fill, _) = proven_fill(stand).await?;
    let many = encode(&["CLIENT", "GETNAME"]).repeat(20_000);
    let large = encode(&["EVAL", "return string.rep('y', 300000)", "0"]);
    let blocked = encode(&["BLPOP", "nothing", "0"]);
    let after = encode(&["AFTER", "FFFFFFFF/0", "TIMEOUT", "3600000", "PING"]);
    let cases: [(&[u8], &[u8], usize); 6] = [
        (&fill, b"+OK\r\n", 5),
        (&many, b"$-1\r\n", 20_000 * 5),
        (&large, b"yyy\r\n", 300_000 + 11),
        (&encode(&["SUBSCRIBE", "gone"]), b":1\r\n", 33),
        (&blocked, b"", 0),
        (&after, b"", 0),
    ];
    for (said, end, length) in cases {
        let mut closing: Vec<Wire> = Vec::new();
        for _ in 0..8 {
            let mut wire = connect(stand).await?;
            wire.send(said).await?;
            wire.finish().await?;
            closing.push(wire);
        }
        for mut wire in closing {
            let answers = wire.rest().await?;
            let shown = String::from_utf8_lossy(answers.get(..80).unwrap_or(&answers)).into_owned();
            assert!(answers.ends_with(end), "{shown}");
            assert_eq!(answers.len(), length, "{shown}");
        }
    }
    load.warm().await?;
    write(stand).await?;
    before.returns(stand).await
}

/// Readers of a key that somebody else is to fill: those that go are gone, those that have closed their side are told what
/// there is, and the others get the fill.
pub async fn waiting(stand: &mut Stand, _: &Load, dice: &mut Dice) -> Outcome {
    write(stand).await?;
    let before = Before::of(stand).await?;
    let mut filler = connect(stand).await?;
    assert_eq!(filler.cmd(&format!("GET {ROW}")).await?, "$-1\r\n");
    let (mut going, mut closing, mut staying) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..10 {
        for those in [&mut going, &mut closing, &mut staying] {
            let mut wire = connect_to_leave(stand, dice).await?;
            wire.send(&encode(&["GET", ROW])).await?;
            those.push(wire);
        }
    }
    for wire in &mut staying {
        assert!(tokio::time::timeout(A_WHILE, wire.reply()).await.is_err(), "they wait");
    }
    drop(going);
    for wire in &mut closing {
        wire.finish().await?;
    }
    for wire in &mut closing {
        assert_eq!(wire.rest().await?, b"$-1\r\n");
    }
    let left = before.clients + 1.0 + staying.len() as f64 + super::OTHERS as f64;
    let gone = async || stand.proxy.metric("cachefence_clients").await.is_ok_and(|now| now <= left);
    wait_until("those that went to be gone", PATIENCE, gone).await?;
    let (fill, version) = proven_fill(stand).await?;
    filler.send(&fill).await?;
    assert_eq!(filler.reply().await?, b"+OK\r\n");
    let text = version.to_string();
    for wire in &mut staying {
        assert_eq!(wire.reply().await?, format!("${}\r\n{text}\r\n", text.len()).into_bytes());
    }
    assert_eq!(stand.redis.client().await?.cmd(&["GET", ROW]).await?, Reply::bulk(text));
    drop((filler, closing, staying));
    before.returns(stand).await
}
