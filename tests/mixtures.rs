//! Random mixtures: connections change their state (db, user, protocol, transaction, subscriptions, replies off) in
//! the middle of deep pipelines, and everything that comes back has to be what Redis itself sends.
//!
//! `CACHEFENCE_TEST_SEED` repeats a run. A mixture that differs is made as short as it can be before it is shown.

#[path = "wire/pair.rs"]
mod pair;
mod wire;

use cachefence::demo::client::{Reply, encode};
use cachefence::demo::servers::Postgres;
use pair::{Pair, Random, seed, server_version, speaks_resp3};
use wire::{Fallible, Outcome, Wire, postgres};

/// Commands of one mixture.
const DEPTH: usize = 150;
/// Mixtures of one run.
const MIXTURES: usize = 25;

/// The users that a mixture logs in as, besides `default`.
const USERS: &[&[&str]] = &[
    &["ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"],
    &["ACL", "SETUSER", "reader", "on", ">secret", "~*", "&*", "+@read", "+@connection"],
];

/// Every mixture begins with the same data.
const BEGINNING: &[&str] =
    &["SELECT 1", "FLUSHDB", "SELECT 2", "FLUSHDB", "SELECT 0", "DEL a b c d e f g q q2", "RESET"];

/// ... and ends in the same state, whatever it did.
const ENDING: &[&str] = &["RESET", "ECHO the-end"];
const LAST: &[u8] = b"$7\r\nthe-end\r\n";

const PLAIN: &[&str] = &[
    "SET a 1",
    "SET b two EX 1000",
    "SET c (70000)",
    "GET a",
    "GET b",
    "STRLEN c",
    "GET c",
    "GET nothing",
    "INCR a",
    "INCRBYFLOAT d 1.5",
    "APPEND b x",
    "MGET a b nothing",
    "MSET a 5 b 6",
    "HSET e f v g w",
    "HGETALL e",
    "HGETALL nothing",
    "ZADD f 1.5 x 2 y",
    "ZRANGE f 0 -1 WITHSCORES",
    "ZSCORE f x",
    "SADD g 1 2 3",
    "SMEMBERS g",
    "RPUSH q 1 2",
    "LRANGE q 0 -1",
    "LPOP q",
    "DEL a e",
    "EXISTS a b",
    "TYPE f",
    "PING",
    "PING hello",
    "ECHO hello",
    "ECHO (66000)",
    "EVAL return{1,'x',{2}} 0",
    "EVAL return(redis.call('GET',KEYS[1])) 1 a",
    "LPUSH a wrong",
    "GET",
    "NOSUCHCOMMAND a b",
    "OBJECT ENCODING g",
    "ACL WHOAMI",
    "CONFIG GET maxmemory",
    "PUBLISH elsewhere x",
    "MEMORY USAGE nothing",
];

const STATES: &[&str] = &[
    "SELECT 0",
    "SELECT 1",
    "SELECT 2",
    "SELECT 99",
    "AUTH app secret",
    "AUTH default whatever",
    "AUTH reader secret",
    "AUTH app wrong",
    "AUTH",
    "HELLO 2",
    "HELLO 2 SETNAME someone",
    "HELLO 2 AUTH app secret",
    "HELLO 2 AUTH app wrong",
    "HELLO 7",
    "MULTI",
    "MULTI",
    "EXEC",
    "EXEC",
    "EXEC",
    "DISCARD",
    "WATCH a",
    "WATCH b f",
    "UNWATCH",
    "BLPOP q 0.001",
    "BLPOP q q2 0.001",
    "BLMOVE q q2 LEFT RIGHT 0.001",
    "BZPOPMIN f 0.001",
    "WAIT 0 1",
    "XREAD BLOCK 1 STREAMS nothing $",
    "CLIENT SETNAME me",
    "CLIENT GETNAME",
    "CLIENT NO-EVICT ON",
    "CLIENT GETREDIR",
    "CLIENT REPLY ON",
    "CLIENT REPLY SKIP",
    "RESET",
];

/// Switches that take a while to come back from: rarer.
const RARE: &[&str] = &["CLIENT REPLY OFF", "CLIENT REPLY ON", "SCRIPT EXISTS x", "FUNCTION STATS"];

const RESP3: &[&str] = &[
    "HELLO 3",
    "HELLO 3",
    "HELLO 3 SETNAME three",
    "HELLO 3 AUTH app secret",
    "HELLO 3 AUTH reader secret SETNAME three",
    "HELLO",
];

const SUBSCRIPTIONS: &[&str] = &[
    "SUBSCRIBE x",
    "SUBSCRIBE x y z",
    "PSUBSCRIBE x* y*",
    "SSUBSCRIBE s",
    "UNSUBSCRIBE x",
    "UNSUBSCRIBE",
    "UNSUBSCRIBE never there",
    "PUNSUBSCRIBE",
    "SUNSUBSCRIBE",
    "SUNSUBSCRIBE s",
    "SUBSCRIBE",
];

/// What the proxy refuses in a transaction, on purpose.
const NOT_IN_MULTI: &[&str] = &[
    "HELLO",
    "AUTH",
    "CLIENT GETNAME",
    "CLIENT SETNAME",
    "CLIENT REPLY",
    "SUBSCRIBE",
    "PSUBSCRIBE",
    "SSUBSCRIBE",
    "UNSUBSCRIBE",
    "PUNSUBSCRIBE",
    "SUNSUBSCRIBE",
];

/// A mixture. With subscriptions only if they are wanted: a connection that has some is another thing in RESP2.
fn mixture(random: &mut Random, resp3: bool, subscriptions: bool, refusals: bool) -> Vec<&'static str> {
    let mut commands = Vec::with_capacity(DEPTH);
    while commands.len() < DEPTH {
        let command = match random.below(100) {
            0..=59 => random.of(PLAIN),
            60..=84 => random.of(STATES),
            85..=86 => random.of(RARE),
            87..=92 if resp3 => random.of(RESP3),
            93..=99 if subscriptions => random.of(SUBSCRIPTIONS),
            _ => continue,
        };
        if !refusals && command.ends_with("wrong") && command.contains("AUTH") {
            continue;
        }
        commands.push(command);
        if !may_be_sent(&commands) {
            commands.pop();
        }
    }
    commands
}

/// Whether nothing is in a transaction that the proxy refuses there.
fn may_be_sent(commands: &[&str]) -> bool {
    let mut perhaps_in_multi = false;
    commands.iter().all(|command| {
        match *command {
            "MULTI" => perhaps_in_multi = true,
            "EXEC" | "DISCARD" | "RESET" => perhaps_in_multi = false,
            _ => {}
        }
        !perhaps_in_multi || !NOT_IN_MULTI.iter().any(|refused| command.starts_with(refused))
    })
}

/// Redis 8.2.3 loses the reply to a wrong password in a pipeline: a server's fault that the proxy does not share.
async fn loses_refusals(pair: &Pair) -> Fallible<bool> {
    let refused = ["PING", "AUTH app wrong"];
    Ok(replies(&pair.direct.address(), &refused, 1 << 20).await?.len() < refused.len() + 1)
}

fn bytes_of(command: &str) -> Vec<u8> {
    let words: Vec<Vec<u8>> = command
        .split(' ')
        .map(|word| match word.strip_prefix('(').and_then(|n| n.strip_suffix(')')?.parse().ok()) {
            Some(n) => vec![b'x'; n],
            None => word.as_bytes().to_vec(),
        })
        .collect();
    encode(&words)
}

/// All replies to a mixture, sent in pieces of at most `piece` bytes.
async fn replies(address: &str, commands: &[&str], piece: usize) -> Fallible<Vec<String>> {
    let mut wire = Wire::connect(address).await?;
    for command in BEGINNING {
        wire.cmd(command).await?;
    }
    let all = commands.iter().chain(ENDING);
    let bytes: Vec<u8> = all.flat_map(|command| bytes_of(command)).collect();
    for piece in bytes.chunks(piece) {
        wire.send(piece).await?;
    }
    let mut replies = Vec::new();
    loop {
        match wire.reply().await {
            Ok(last) if last == LAST => return Ok(replies),
            Ok(reply) => replies.push(shown(&reply)),
            Err(error) => {
                replies.push(format!("({error})"));
                return Ok(replies);
            }
        }
    }
}

/// A reply, without the connection's id, which is Redis's own affair.
fn shown(reply: &[u8]) -> String {
    const FIELD: &str = "$2\\r\\nid\\r\\n:";
    let text: String = reply.iter().flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect();
    if let Some((before, after)) = text.split_once(FIELD) {
        let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
        return format!("{before}{FIELD}N{after}");
    }
    if let (true, Some((_, count))) = (text.contains("unsubscribe\\r\\n"), text.rsplit_once(':')) {
        // Which of several channels goes first is left to Redis's hash.
        return format!("unsubscribe ... {count}");
    }
    if text.len() > 200 { format!("{}... {} bytes", &text[..200], reply.len()) } else { text }
}

/// Where the replies part: what was expected there and what came.
async fn difference(
    pair: &Pair,
    commands: &[&str],
    piece: usize,
) -> Fallible<Option<(usize, String, String)>> {
    let expected = replies(&pair.direct.address(), commands, 1 << 20).await?;
    let got = replies(pair.proxy.address(), commands, piece).await?;
    let n = expected.iter().zip(&got).take_while(|(expected, got)| expected == got).count();
    if n == expected.len() && n == got.len() {
        return Ok(None);
    }
    let at = |replies: &[String]| replies.get(n).cloned().unwrap_or_else(|| "nothing more".to_owned());
    Ok(Some((n, at(&expected), at(&got))))
}

/// Leaves out commands as long as the replies still part.
async fn shortest(pair: &Pair, commands: &[&'static str], piece: usize) -> Fallible<Vec<&'static str>> {
    let mut commands = commands.to_vec();
    let mut width = commands.len() / 2;
    while width > 0 {
        let mut at = 0;
        while at < commands.len() {
            let mut shorter = commands.clone();
            shorter.drain(at..(at + width).min(commands.len()));
            if may_be_sent(&shorter) && difference(pair, &shorter, piece).await?.is_some() {
                commands = shorter;
            } else {
                at += width;
            }
        }
        width /= 2;
    }
    Ok(commands)
}

async fn mixtures(postgres: &Postgres, slot: &str, changes: &[(&str, &str)]) -> Outcome {
    let pair = Pair::start(postgres, slot, changes).await?;
    for redis in [&pair.direct, &pair.behind] {
        let mut client = redis.client().await?;
        for user in USERS {
            assert_eq!(client.cmd(user).await?, Reply::ok());
        }
    }
    let (version, resp3) = (server_version(&pair.direct).await?, speaks_resp3(&pair.proxy).await?);
    let (seed, refusals) = (seed(), !loses_refusals(&pair).await?);
    println!("{version}, {slot}, RESP3 {resp3}: seed {seed}");
    for number in 0..MIXTURES {
        // A mixture can be repeated by itself.
        let mut random = Random((seed + number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let piece = if random.below(2) == 0 { 1 << 20 } else { random.below(5000) + 1 };
        let subscriptions = resp3 && random.below(3) == 0;
        let commands = mixture(&mut random, resp3, subscriptions, refusals);
        if difference(&pair, &commands, piece).await?.is_some() {
            let shortest = shortest(&pair, &commands, piece).await?;
            let parted = difference(&pair, &shortest, piece).await?;
            panic!(
                "seed {}: in pieces of {piece} bytes\n  {}\nreply, straight, proxied: {parted:#?}",
                seed + number as u64,
                shortest.join("\n  ")
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_may_change_their_state_at_any_time() -> Outcome {
    let postgres = postgres().await?;
    mixtures(&postgres, "lanes", &[]).await?;
    mixtures(&postgres, "pins", &[("[redis]\n", "[redis]\nupstream = \"pinned\"\n")]).await
}
