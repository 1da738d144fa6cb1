//! Clients that say too much, nothing sensible, or something dangerous.

use std::fmt::Write as _;

use cachefence::demo::client::{Reply, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::wire::Wire;
use super::{A_WHILE, Before, ROW, connect, connect_to_leave, proven_fill, write};
use crate::dice::Dice;
use crate::load::Load;
use crate::stand::Stand;
use crate::support::{Fallible, Outcome, PATIENCE};

/// All in one write, and answered in order: by the proxy itself, over a lane, and over a pin.
pub async fn pipelined(stand: &mut Stand, load: &Load, _: &mut Dice) -> Outcome {
    const COMMANDS: usize = 100_000;
    let before = Before::of(stand).await?;
    stand.redis.client().await?.cmd(&["DEL", "counter", "queue"]).await?;
    let (mut bytes, mut wanted, mut counter) = (Vec::new(), String::new(), 0);
    for n in 0..COMMANDS {
        match n % 1000 {
            999 => {
                bytes.extend(encode(&["BLPOP", "queue", "0"]));
                wanted += "*2\r\n$5\r\nqueue\r\n$1\r\nx\r\n";
            }
            998 => {
                bytes.extend(encode(&["RPUSH", "queue", "x"]));
                wanted += ":1\r\n";
            }
            n if n % 5 == 0 => {
                bytes.extend(encode(&["CLIENT", "GETNAME"]));
                wanted += "$-1\r\n";
            }
            _ => {
                counter += 1;
                bytes.extend(encode(&["INCR", "counter"]));
                write!(wanted, ":{counter}\r\n")?;
            }
        }
    }
    let (mut from, mut to) = TcpStream::connect(stand.proxy.address()).await?.into_split();
    let mut answers = vec![0; wanted.len()];
    // Its write ends when all has been taken; it reads meanwhile, as clients that send so much have to.
    let said = async { to.write_all(&bytes).await };
    let (said, read) = tokio::join!(said, timeout(PATIENCE * 2, from.read_exact(&mut answers)));
    said?;
    read.map_err(|_| "not all is answered")??;
    assert!(answers == wanted.as_bytes(), "the answers are not those of the commands, in their order");
    load.warm().await?;
    before.grew_at_most(stand, 64)?;
    drop((from, to));
    write(stand).await?;
    before.returns(stand).await
}

/// What is no request ends its own client, in words; what may become one waits, and costs no more than what came.
pub async fn garbage(stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    let before = Before::of(stand).await?;
    let nested = b"*1\r\n".repeat(100_000);
    let line = vec![b'a'; 8 << 20];
    let wrong: [(&[u8], &str); 8] = [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*2147483648\r\n", "invalid multibulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "invalid bulk length"),
        (b"*2\r\n$3\r\nGET\r\n:1\r\n", "expected '$', got ':'"),
        (b"SET k \"v\r\n", "unbalanced quotes in request"),
        (&nested, "expected '$', got '*'"),
        (&line, "too big inline request"),
    ];
    for (said, error) in wrong {
        let mut wire = connect(stand).await?;
        let short = said.len() < 1000;
        // The rest of what is long may meet with a connection that is closed, and the answer then be lost.
        let sent = wire.send(said).await;
        let answer = wire.rest().await;
        if short {
            sent?;
            assert_eq!(String::from_utf8_lossy(&answer?), format!("-ERR Protocol error: {error}\r\n"));
        }
    }
    let mut open = promising(stand).await?;
    for _ in 0..300 {
        let mut wire = connect_to_leave(stand, dice).await?;
        let mut noise: Vec<u8> = (0..dice.roll(2000)).map(|_| dice.roll(256) as u8).collect();
        // So that some of it goes on where requests do.
        if dice.one_in(2) {
            noise.splice(0..0, *b"*3\r\n$3\r\nGET\r\n$");
        }
        // It may be closed at any byte.
        let _ = wire.send(&noise).await;
        open.push(wire);
    }
    load.warm().await?;
    write(stand).await?;
    before.grew_at_most(stand, 96)?;
    drop(open);
    before.returns(stand).await
}

/// The beginnings of requests as large as there can be.
async fn promising(stand: &Stand) -> Fallible<Vec<Wire>> {
    let many = [b"*2147483647\r\n".to_vec(), b"$1\r\nx\r\n".repeat(100_000)].concat();
    let long = b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$536870912\r\nxyz".to_vec();
    let whole = b"*3\r\n$4\r\nMSET\r\n$3\r\nbig\r\n$536870912\r\nxyz".to_vec();
    let mut wires = Vec::new();
    for _ in 0..5 {
        for said in [&many, &long, &whole] {
            let mut wire = connect(stand).await?;
            wire.send(said).await?;
            wires.push(wire);
        }
    }
    Ok(wires)
}

/// A client ends all of the proxy's connections, its own among them, and has Redis answer nobody for a while.
pub async fn administration(stand: &mut Stand, load: &Load, dice: &mut Dice) -> Outcome {
    let before = Before::of(stand).await?;
    let lost = stand.proxy.metric("cachefence_upstream_reconnects_total").await?;
    let mut client = connect(stand).await?;
    client.send(&encode(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])).await?;
    client.reply().await?;
    stand.counted("cachefence_upstream_reconnects_total", lost + 1.0).await?;
    stand.lives().await?;
    stand.recovered().await?;
    load.warm().await?;

    let mode = if dice.one_in(2) { "ALL" } else { "WRITE" };
    let (fill, _) = proven_fill(stand).await?;
    let mut filling = connect(stand).await?;
    let paused = connect(stand).await?.cmd(&format!("CLIENT PAUSE 1500 {mode}")).await?;
    assert_eq!(paused, "+OK\r\n");
    filling.send(&fill).await?;
    // COMMIT or the deletion waits for the pause, and the fill, if it was executed at all, was before that.
    write(stand).await?;
    let _ = timeout(A_WHILE, filling.reply()).await;
    stand.level().await?;
    let mut redis = stand.redis.client().await?;
    assert_eq!(redis.cmd(&["EXISTS", ROW]).await?, Reply::Int(0), "after CLIENT PAUSE {mode}");
    drop((client, filling));
    before.returns(stand).await
}
