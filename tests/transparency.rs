//! What goes through the proxy is answered as Redis answers it, byte for byte.

#[path = "wire/pair.rs"]
mod pair;
mod wire;

use cachefence::demo::client::encode;
use cachefence::demo::servers::{Postgres, RedisOptions};
use pair::{Pair, Random, seed, server_version, speaks_resp3};
use wire::{Fallible, Outcome, Wire, postgres};

/// Commands by what they need around them: each line is one, and a group is run in one go.
const TABLE: &str = include_str!("wire/commands.txt");

/// What the proxy answers otherwise on purpose, in the same form.
const DIFFERENCES: &str = include_str!("wire/differences.txt");

/// A command of a table.
#[derive(Clone)]
struct Line {
    text: String,
    bytes: Vec<u8>,
    /// The reply tells a time, an id or a size: only its kind is compared.
    kind_only: bool,
    /// Not for pipelines.
    alone: bool,
}

impl Line {
    fn new(text: &str) -> Self {
        let (alone, text) = text.strip_prefix("1 ").map_or((false, text), |text| (true, text));
        let (kind_only, text) = text.strip_prefix("~ ").map_or((false, text), |text| (true, text));
        Self { text: text.to_owned(), bytes: bytes_of(text), kind_only, alone }
    }

    /// The next reply, as far as it has to be the same.
    async fn reply(&self, wire: &mut Wire) -> Fallible<String> {
        let reply = wire.reply().await.map_err(|error| format!("{}: {error}", self.text))?;
        Ok(if self.kind_only { shown(&reply[..1]) } else { shown(&without_id(&reply)) })
    }
}

/// A greeting tells the connection's id, which is Redis's own affair.
fn without_id(reply: &[u8]) -> Vec<u8> {
    const FIELD: &[u8] = b"$2\r\nid\r\n:";
    let mut out = reply.to_vec();
    if let Some(at) = reply.windows(FIELD.len()).position(|bytes| bytes == FIELD) {
        let digits = at + FIELD.len();
        let end = reply[digits..].iter().position(|b| *b == b'\r').map_or(reply.len(), |n| digits + n);
        out.splice(digits..end, *b"N");
    }
    out
}

/// The groups of a table.
fn groups(table: &str) -> Vec<Vec<Line>> {
    let groups = table.split("\n\n").map(|group| {
        let lines = group.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(Line::new).collect::<Vec<_>>()
    });
    groups.filter(|group| !group.is_empty()).collect()
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

/// Keys that a guard knows are among the commands only where the guards change nothing.
fn applies(line: &str, guarded: bool) -> bool {
    guarded || !["user:", "item:", "order:"].iter().any(|prefix| line.contains(prefix))
}

/// How a connection speaks, as the bytes that it begins with, and begins with again after each RESET.
#[derive(Clone, Copy, PartialEq)]
enum Speech {
    Resp2,
    Resp3,
}

impl Speech {
    fn name(self) -> &'static str {
        if self == Self::Resp2 { "RESP2" } else { "RESP3" }
    }

    /// A group as this speech has it: greetings are put in, and those of the other version left out.
    fn of(self, group: &[Line]) -> Vec<Line> {
        let greeting = Line::new("HELLO 3");
        let mut lines = Vec::new();
        if self == Self::Resp3 {
            lines.push(greeting.clone());
        }
        for line in group {
            let mut line = line.clone();
            if self == Self::Resp3 && line.text.starts_with("HELLO 2") {
                let alone = if line.alone { "1 " } else { "" };
                line = Line::new(&format!("{alone}{}", line.text.replacen('2', "3", 1)));
            }
            let resets = line.text == "RESET";
            lines.push(line);
            if self == Self::Resp3 && resets {
                lines.push(greeting.clone());
            }
        }
        // The next group on this connection begins as every connection does.
        if self == Self::Resp3 {
            lines.push(Line::new("HELLO 2"));
        }
        lines
    }
}

/// What was compared.
#[derive(Default)]
struct Count {
    /// Byte for byte.
    equal: usize,
    /// By the kind of the reply only.
    alike: usize,
    /// And were not the same, for a reason.
    different: usize,
}

/// One command after the other.
async fn sequentially(pair: &Pair, guarded: bool, speech: Speech) -> Fallible<Count> {
    let (mut count, mut wrong) = (Count::default(), String::new());
    for group in groups(TABLE) {
        let [mut direct, mut through] = pair.connect().await?;
        for line in speech.of(&group).iter().filter(|line| applies(&line.text, guarded)) {
            direct.send(&line.bytes).await?;
            through.send(&line.bytes).await?;
            let (expected, got) = (line.reply(&mut direct).await?, line.reply(&mut through).await?);
            if got != expected {
                wrong += &format!(
                    "\n{}, {}\n    straight: {expected}\n    proxied:  {got}",
                    line.text,
                    speech.name()
                );
                continue;
            }
            *(if line.kind_only { &mut count.alike } else { &mut count.equal }) += 1;
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(count)
}

/// What is different on purpose really is: an entry that is out of date is an error too.
async fn differently(pair: &Pair, speech: Speech) -> Fallible<usize> {
    let mut different = 0;
    for group in groups(DIFFERENCES) {
        let [mut direct, mut through] = pair.connect().await?;
        for line in speech.of(&group) {
            let bytes = line.text.strip_prefix("! ").map_or(line.bytes.clone(), bytes_of);
            direct.send(&bytes).await?;
            through.send(&bytes).await?;
            let (expected, got) = (line.reply(&mut direct).await?, line.reply(&mut through).await?);
            if line.text.starts_with("! ") {
                assert_ne!(got, expected, "{}, in {}, is the same now", line.text, speech.name());
                different += 1;
            } else {
                assert_eq!(got, expected, "{}, in {}", line.text, speech.name());
            }
        }
    }
    Ok(different)
}

/// A random order of the groups on one connection, sent in random pieces.
async fn in_pipelines(pair: &Pair, guarded: bool, speeches: &[Speech], seed: u64) -> Fallible<usize> {
    let groups = groups(TABLE);
    let mut random = Random(seed | 1);
    let [mut direct, mut through] = pair.connect().await?;
    let mut compared = 0;
    for round in 0..12 {
        let (mut lines, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..random.below(12) + 1 {
            let group = &groups[random.below(groups.len())];
            let speech = speeches[random.below(speeches.len())];
            let lines_of_group = speech.of(group).into_iter().filter(|line| !line.alone);
            for line in lines_of_group.filter(|line| applies(&line.text, guarded)) {
                bytes.extend_from_slice(&line.bytes);
                lines.push(line);
            }
        }
        // Both at a time: what a server answers has to go somewhere while it is still being asked.
        let ask = async {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at((random.below(3000) + 1).min(rest.len()));
                through.send(piece).await?;
                rest = tail;
            }
            direct.send(&bytes).await
        };
        ask.await?;
        for (n, line) in lines.iter().enumerate() {
            let (expected, got) = (line.reply(&mut direct).await?, line.reply(&mut through).await?);
            let before: Vec<_> = lines[n.saturating_sub(6)..n].iter().map(|line| &line.text).collect();
            assert_eq!(
                got, expected,
                "{}, after {before:?}; seed {seed}, round {round}, command {n}",
                line.text
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
    // DEBUG PROTOCOL shows every type of reply that there is.
    let options = RedisOptions::default().args(&["--enable-debug-command", "yes"]);
    let pair = Pair::with(options, postgres, slot, changes).await?;
    let version = server_version(&pair.direct).await?;
    let mut speeches = vec![Speech::Resp2];
    if speaks_resp3(&pair.proxy).await? {
        speeches.push(Speech::Resp3);
    }
    for speech in &speeches {
        let mut count = sequentially(&pair, guarded, *speech).await?;
        if !guarded {
            count.different = differently(&pair, *speech).await?;
        }
        println!(
            "{version}, {}, {slot}: {} replies equal, {} of the same kind, {} different on purpose",
            speech.name(),
            count.equal,
            count.alike,
            count.different
        );
        assert!(count.equal > 800);
    }
    replies_off(&pair).await?;
    subscribed(&pair).await?;
    // The data that the sequence left is the same on both sides, and stays so.
    let seed = seed();
    let mut compared = 0;
    for round in 0..2 {
        compared += in_pipelines(&pair, guarded, &speeches, seed + round * 2).await?;
    }
    println!("{version}, {slot}: {compared} replies equal in pipelines");
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
