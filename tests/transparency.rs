//! What goes through the proxy is answered as Redis answers it, byte for byte.

mod wire;

use std::time::{SystemTime, UNIX_EPOCH};

use cachefence::demo::client::encode;
use cachefence::demo::servers::{Cachefence, Postgres, Redis, RedisOptions};
use wire::{BINARY, Fallible, Outcome, Wire, postgres, settings};

/// Commands by what they need around them: each line is one, and a group is run in one go.
const TABLE: &str = include_str!("wire/commands.txt");

/// The groups of the table, each with its commands as they go over the wire.
fn groups() -> Vec<Vec<(String, Vec<u8>)>> {
    TABLE
        .split("\n\n")
        .map(|group| {
            let lines = group.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
            lines.map(|line| (line.to_owned(), bytes_of(line))).collect()
        })
        .collect()
}

/// A line's bytes: `> ...` is typed by hand, everything else is an array; `\xNN` and friends are bytes, `""` is
/// empty, `(N)` is an argument of N letters.
fn bytes_of(line: &str) -> Vec<u8> {
    if let Some(inline) = line.strip_prefix("> ") {
        return format!("{inline}\r\n").into_bytes();
    }
    let words: Vec<Vec<u8>> = line
        .split(' ')
        .map(|word| {
            let long = word.strip_prefix('(').and_then(|n| n.strip_suffix(')')?.parse().ok());
            match (long, word) {
                (Some(n), _) => vec![b'x'; n],
                (None, "\"\"") => Vec::new(),
                (None, word) => unescaped(word),
            }
        })
        .collect();
    encode(&words)
}

fn unescaped(word: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = word;
    while let Some(at) = rest.find("\\x") {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let digits = rest.get(at + 2..at + 4).unwrap_or_default();
        out.extend(u8::from_str_radix(digits, 16).ok());
        rest = rest.get(at + 4..).unwrap_or_default();
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// A Redis by itself, and one behind a proxy.
struct Pair {
    direct: Redis,
    _behind: Redis,
    proxy: Cachefence,
}

impl Pair {
    async fn start(postgres: &Postgres, slot: &str, changes: &[(&str, &str)]) -> Fallible<Self> {
        let direct = Redis::start(RedisOptions::default()).await?;
        let behind = Redis::start(RedisOptions::default()).await?;
        let proxy = Cachefence::start(BINARY, &settings(postgres, &behind, slot, changes)).await?;
        Ok(Self { direct, _behind: behind, proxy })
    }

    async fn connect(&self) -> Fallible<[Wire; 2]> {
        Ok([Wire::connect(&self.direct.address()).await?, Wire::connect(self.proxy.address()).await?])
    }
}

/// Keys that a guard knows are among the commands only where the guards change nothing.
fn applies(line: &str, guarded: bool) -> bool {
    guarded || !["user:", "item:", "order:"].iter().any(|prefix| line.contains(prefix))
}

/// One command after the other.
async fn sequentially(pair: &Pair, guarded: bool) -> Fallible<usize> {
    let mut compared = 0;
    for group in groups() {
        let [mut direct, mut through] = pair.connect().await?;
        for (line, bytes) in group.iter().filter(|(line, _)| applies(line, guarded)) {
            direct.send(bytes).await?;
            through.send(bytes).await?;
            let (expected, got) = (direct.reply().await?, through.reply().await?);
            assert_eq!(shown(&got), shown(&expected), "{line}");
            compared += 1;
        }
    }
    Ok(compared)
}

/// A random order of the groups on one connection, sent in random pieces.
async fn in_pipelines(pair: &Pair, guarded: bool, seed: u64) -> Fallible<usize> {
    let groups = groups();
    let mut random = Random(seed | 1);
    let [mut direct, mut through] = pair.connect().await?;
    let mut compared = 0;
    for round in 0..12 {
        let mut lines = Vec::new();
        let mut bytes = Vec::new();
        for _ in 0..random.below(12) + 1 {
            let group = &groups[random.below(groups.len())];
            for (line, command) in group.iter().filter(|(line, _)| applies(line, guarded)) {
                lines.push(line);
                bytes.extend_from_slice(command);
            }
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at((random.below(3000) + 1).min(rest.len()));
            through.send(piece).await?;
            rest = tail;
        }
        direct.send(&bytes).await?;
        for (n, line) in lines.iter().enumerate() {
            let (expected, got) = (direct.reply().await?, through.reply().await?);
            let before: Vec<_> = lines[n.saturating_sub(6)..n].iter().collect();
            assert_eq!(
                shown(&got),
                shown(&expected),
                "{line}, after {before:?}; seed {seed}, round {round}, command {n}"
            );
            compared += 1;
        }
    }
    Ok(compared)
}

fn shown(reply: &[u8]) -> String {
    let text: String = reply.iter().flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect();
    if text.len() > 400 { format!("{}... {} bytes", &text[..400], reply.len()) } else { text }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// `CACHEFENCE_TEST_SEED` repeats a run.
fn seed() -> u64 {
    let given = std::env::var("CACHEFENCE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64 & 0xffff_ffff)
    });
    println!("seed {seed}");
    seed
}

/// Messages of a subscription, which answer nothing.
async fn subscribed(pair: &Pair) -> Outcome {
    let [mut direct, mut through] = pair.connect().await?;
    let [mut direct_says, mut through_says] = pair.connect().await?;
    let greetings = ["SUBSCRIBE a b", "PSUBSCRIBE a*", "PING", "PING hello", "GET k", "UNSUBSCRIBE b"];
    for line in greetings {
        let replies = if line == "SUBSCRIBE a b" { 2 } else { 1 };
        direct.send(&bytes_of(line)).await?;
        through.send(&bytes_of(line)).await?;
        for _ in 0..replies {
            assert_eq!(shown(&through.reply().await?), shown(&direct.reply().await?), "{line}");
        }
    }
    for line in [
        "PUBLISH a 1",
        "PUBLISH b 2",
        "PUBLISH abc \\x00\\x0d\\x0a",
        "PUBLISH a (200000)",
        "PUBSUB CHANNELS a",
    ] {
        direct_says.send(&bytes_of(line)).await?;
        through_says.send(&bytes_of(line)).await?;
        assert_eq!(shown(&through_says.reply().await?), shown(&direct_says.reply().await?), "{line}");
    }
    // a twice (by name and by pattern), abc once, a twice; then the end of it all.
    for wire in [&mut direct, &mut through] {
        wire.send(&bytes_of("UNSUBSCRIBE")).await?;
        wire.send(&bytes_of("PUNSUBSCRIBE")).await?;
        wire.send(&bytes_of("GET k")).await?;
    }
    for n in 0..8 {
        assert_eq!(shown(&through.reply().await?), shown(&direct.reply().await?), "message {n}");
    }
    Ok(())
}

/// A client that asks for no replies gets none but those that it asks for.
async fn replies_off(pair: &Pair) -> Outcome {
    let [mut direct, mut through] = pair.connect().await?;
    let commands = [
        "SET quiet 1",
        "CLIENT REPLY OFF",
        "INCR quiet",
        "BLPOP nothing 0.01",
        "INCR quiet",
        "(70000)",
        "SET quiet:big (70000)",
        "CLIENT REPLY ON",
        "GET quiet",
        "CLIENT REPLY SKIP",
        "INCR quiet",
        "INCR quiet",
        "STRLEN quiet:big",
    ];
    let bytes: Vec<u8> = commands.iter().flat_map(|line| bytes_of(line)).collect();
    direct.send(&bytes).await?;
    through.send(&bytes).await?;
    for expected in ["+OK", "+OK", "$1\r\n3", ":5", ":70000"] {
        let (direct, through) = (direct.reply().await?, through.reply().await?);
        assert_eq!(shown(&through), shown(&direct));
        assert!(direct.starts_with(expected.as_bytes()), "{}", shown(&direct));
    }
    Ok(())
}

async fn all_ways(postgres: &Postgres, slot: &str, changes: &[(&str, &str)], guarded: bool) -> Outcome {
    let pair = Pair::start(postgres, slot, changes).await?;
    assert!(sequentially(&pair, guarded).await? > 250);
    replies_off(&pair).await?;
    subscribed(&pair).await?;
    // The data that the sequence left is the same on both sides, and stays so.
    assert!(in_pipelines(&pair, guarded, seed()).await? > 100);
    assert!(in_pipelines(&pair, guarded, seed()).await? > 100);
    Ok(())
}

const OBSERVE: (&str, &str) = ("[postgres]\n", "[proxy]\nmode = \"observe\"\n[postgres]\n");
const PINNED: (&str, &str) = ("[redis]\n", "[redis]\nupstream = \"pinned\"\n");

/// Lanes and pins; guarded keys among the commands, and a proxy that only observes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observing_proxy_changes_no_reply() -> Outcome {
    let postgres = postgres().await?;
    all_ways(&postgres, "lanes", &[OBSERVE], true).await?;
    all_ways(&postgres, "pins", &[OBSERVE, PINNED], true).await
}

/// Keys that no guard knows, and a proxy that enforces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_without_a_guard_are_none_of_its_business() -> Outcome {
    let postgres = postgres().await?;
    all_ways(&postgres, "lanes", &[], false).await?;
    all_ways(&postgres, "pins", &[PINNED], false).await
}
