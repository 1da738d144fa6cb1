//! Clients share connections to Redis. So Redis must never cut the bytes of one client into other requests than the
//! proxy did: what was left over would be executed for, or answered to, somebody else.

use super::wire::{Outcome, Wire};
use super::{Servers, logged_in};

#[path = "../wire/pair.rs"]
mod pair;
use super::wire;
use pair::{Random, seed};

/// Requests whose answers are the same however often they come.
/// No word in them is a command whose answer differs: a line that is cut wrong is typed by hand.
const REQUESTS: &[&str] = &[
    "*1\r\n$4\r\nPING\r\n",
    "*2\r\n$4\r\nECHO\r\n$5\r\nsalut\r\n",
    "*2\r\n$3\r\nGET\r\n$4\r\nnone\r\n",
    "*3\r\n$3\r\nSET\r\n$7\r\nwritten\r\n$2\r\nok\r\n",
    "*3\r\n$4\r\nMGET\r\n$4\r\nnone\r\n$3\r\nnil\r\n",
    "*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n",
    "*2\r\n$4\r\nECHO\r\n$12\r\n*1\r\n$4\r\nPING\r\n",
    "*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
    "*3\r\n$3\r\nSET\r\n$6\r\nuser:1\r\n$2\r\nv1\r\n",
    "*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nECHO\r\n$1\r\nx\r\n*1\r\n$4\r\nEXEC\r\n",
    "PING\r\n",
    "ECHO \"a\\x20b\" \r\n",
    "ECHO 'it\\'s'\n",
    "GET none\r\n",
    "*0\r\n",
    "*-1\r\n",
    "\r\n",
];
/// In place of a number.
const NUMBERS: &[&str] = &[
    "+1",
    "01",
    "-0",
    "00",
    " 1",
    "1 ",
    "1\0",
    "\x001",
    "",
    "-1",
    "-2",
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "12",
    "0x1",
    "1e0",
    "1.0",
    "2147483647",
    "2147483648",
    "4294967297",
    "18446744073709551617",
    "9223372036854775808",
    "00000000000000000000000000000000001",
];
/// In place of a line's end.
const BREAKS: &[&str] =
    &["\n", "\r", "\r\r", "\n\r", "\r\r\n", "\r\n\r\n", "\rX", "\0\r\n", " \r\n", "", "XY"];
const BYTES: &[&str] =
    &["\0", "\r", "\n", "$", "*", "+", "-", ":", " ", "\"", "'", "\\", "\u{1b}", "1", "*1\r\n", "$1\r\n"];

/// Some requests, of which one is not as it should be.
fn crafted(random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=random.below(3)).flat_map(|_| random.of(REQUESTS).bytes()).collect();
    for _ in 0..random.below(3) {
        let places = |wanted: &dyn Fn(&[u8]) -> bool| -> Vec<usize> {
            (0..bytes.len()).filter(|at| wanted(&bytes[*at..])).collect()
        };
        let (places, replaced, by) = match random.below(4) {
            0 => {
                let digits = |rest: &[u8]| matches!(rest, [b'*' | b'$', b'-' | b'0'..=b'9', ..]);
                (places(&digits).into_iter().map(|at| at + 1).collect(), 1, random.of(NUMBERS))
            }
            1 => (places(&|rest| rest.starts_with(b"\r\n")), 2, random.of(BREAKS)),
            2 => (places(&|_| true), 0, random.of(BYTES)),
            _ => (places(&|_| true), 1, ""),
        };
        if places.is_empty() {
            continue;
        }
        let at = places[random.below(places.len())];
        bytes.splice(at..(at + replaced).min(bytes.len()), by.bytes());
    }
    bytes
}

/// Everything that is answered to these bytes, which come in two pieces, up to the end of the connection.
async fn answers(mut wire: Wire, bytes: &[u8], cut: usize) -> super::Fallible<Vec<u8>> {
    // Redis may have closed before it has all of it.
    let _ = wire.send(&bytes[..cut]).await;
    let _ = wire.send(&bytes[cut..]).await;
    let _ = wire.finish().await;
    wire.rest().await
}

/// Byte for byte what Redis itself answers; and whoever shares the connection gets their own answers.
pub async fn nobody_is_answered_what_another_asked(servers: &Servers) -> Outcome {
    let one_thread = ("[postgres]\n", "[proxy]\nthreads = 1\n[postgres]\n");
    let proxy = servers.proxy("smuggling", &[one_thread]).await?;
    let mut neighbour = logged_in(proxy.address()).await?;
    let mut random = Random(seed());
    let rounds =
        std::env::var("CACHEFENCE_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(150);
    let mut refused = 0;
    for round in 0..rounds {
        let end = format!("end-{round}");
        let mut bytes = crafted(&mut random);
        bytes.extend(cachefence::demo::client::encode(&["ECHO", &end]));
        let cut = random.below(bytes.len());
        let shown = bytes.escape_ascii();
        let direct = answers(logged_in(&servers.redis.address()).await?, &bytes, cut).await?;
        let word = format!("neighbour-{round}");
        let echo = cachefence::demo::client::encode(&["ECHO", &word]);
        // Before, so that it is on its way with the crafted bytes, and after.
        neighbour.send(&echo).await?;
        let ours = answers(logged_in(proxy.address()).await?, &bytes, cut).await?;
        neighbour.send(&echo).await?;
        // Redis looks for the end of a line in a C string, and waits for ever behind a NUL. The proxy does not, and sends
        // on nothing of it as it came: a length with a NUL is refused, and a line typed by hand is put anew.
        let same = if bytes.contains(&0) { ours.starts_with(&direct) } else { ours == direct };
        assert!(same, "{shown}: {}, not {}", ours.escape_ascii(), direct.escape_ascii());
        for _ in 0..2 {
            let answer = String::from_utf8_lossy(&neighbour.reply().await?).into_owned();
            assert_eq!(answer, format!("${}\r\n{word}\r\n", word.len()), "{shown}");
        }
        refused += usize::from(String::from_utf8_lossy(&direct).contains("Protocol error"));
    }
    assert!(refused > rounds / 20, "{refused} of {rounds} were no requests: too few to tell anything");
    Ok(())
}

/// A page that makes a browser send commands to the port as the body of a request: nothing of it is executed.
pub async fn browsers_are_not_obeyed(servers: &Servers) -> Outcome {
    let proxy = servers.proxy("browsers", &[]).await?;
    let in_transaction = "MULTI\r\nPOST / HTTP/1.1\r\n";
    for head in
        ["POST / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: cache:6380\r\n", "post x\r\n", in_transaction]
    {
        let request = format!("{head}\r\nSET smuggled 1\r\nEXEC\r\n");
        for address in [&servers.redis.address(), proxy.address()] {
            let answer = answers(logged_in(address).await?, request.as_bytes(), 5).await?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(
                !answer.contains("EXEC") && answer.lines().count() <= 1,
                "{address}: {request}: {answer}"
            );
        }
    }
    let kept = servers.direct().await?.cmd(&["EXISTS", "smuggled"]).await?;
    assert_eq!(kept, cachefence::demo::client::Reply::Int(0));
    // Anybody can do it as often as connections can be made: it must not fill the log.
    assert_eq!(proxy.log().matches("a client speaks HTTP").count(), 1, "{}", proxy.log());
    Ok(())
}
