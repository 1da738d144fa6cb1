//! Redis's bytes: a reply ends at the same place whole, in pieces, taken as it comes, and for the library.
#![no_main]

use cachefence::resp::ReplyScanner;
use libfuzzer_sys::fuzz_target;
use redis_protocol::resp2::decode::decode;

fuzz_target!(|input: (&[u8], u8)| {
    let (bytes, step) = (input.0, usize::from(input.1 % 16) + 1);
    let whole = ReplyScanner::default().scan(bytes);
    let end = whole.as_ref().ok().filter(|progress| progress.done).map(|progress| progress.bytes);

    let mut pieces = ReplyScanner::default();
    let mut taking = ReplyScanner::default();
    let (mut arrived, mut taken) = (0, 0);
    let mut found = (None, None);
    while arrived < bytes.len() && (found.0.is_none() || found.1.is_none()) {
        arrived = (arrived + step).min(bytes.len());
        if found.0.is_none() {
            let Ok(progress) = pieces.scan(&bytes[..arrived]) else { break };
            assert!(progress.bytes <= arrived);
            found.0 = progress.done.then_some(progress.bytes);
        }
        if found.1.is_none() {
            let Ok(progress) = taking.scan(&bytes[taken..arrived]) else { break };
            if progress.done {
                found.1 = Some(taken + progress.bytes);
            } else {
                taking.take(progress.bytes);
                taken += progress.bytes;
            }
        }
    }
    if whole.is_ok() {
        assert_eq!(found, (end, end));
    }
    // The library recurses: what is nested deeply would end it.
    if bytes.iter().filter(|b| **b == b'*').count() < 50
        && let (Some(end), Ok(Some((_, used)))) = (end, decode(bytes))
    {
        assert_eq!(used, end);
    }
});
