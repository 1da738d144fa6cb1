//! A client's bytes: cut into the same requests whole and in pieces, with the library's arguments.
#![no_main]

use cachefence::resp::{Arguments, RequestScanner, Scanned};
use libfuzzer_sys::fuzz_target;
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;

fuzz_target!(|input: (&[u8], u8)| {
    let (bytes, step) = (input.0, usize::from(input.1 % 16) + 1);
    let mut rest = bytes;
    loop {
        let mut whole = RequestScanner::default();
        let found = whole.scan(rest);
        // In pieces.
        let mut pieces = RequestScanner::default();
        let mut arrived = 0;
        let piecewise = loop {
            arrived = (arrived + step).min(rest.len());
            match pieces.scan(&rest[..arrived]) {
                Ok(Scanned::Partial) if arrived < rest.len() => {}
                other => break other,
            }
        };
        assert_eq!(found, piecewise);
        let length = match found {
            Ok(Scanned::Request(length)) => {
                let arguments: Vec<&[u8]> = whole.arguments(&rest[..length]).from(0).collect();
                assert_eq!(arguments.len(), whole.arguments(&rest[..length]).len());
                // The library also checks the line breaks after arguments, which Redis skips.
                if let Ok(Some((OwnedFrame::Array(frames), used))) = decode(rest) {
                    assert_eq!(used, length);
                    let theirs: Vec<&[u8]> = frames
                        .iter()
                        .map(|frame| match frame {
                            OwnedFrame::BulkString(bytes) => bytes.as_slice(),
                            other => panic!("{other:?} is no argument"),
                        })
                        .collect();
                    assert_eq!(arguments, theirs);
                }
                length
            }
            Ok(Scanned::Nothing(length) | Scanned::Inline(length, _)) => length,
            Ok(Scanned::Partial) | Err(_) => return,
        };
        assert!(length > 0 && length <= rest.len());
        if let Ok(Scanned::Request(_)) = whole.scan(rest) {
            in_parts(&rest[..length], whole.arguments(&rest[..length]), step);
        }
        rest = &rest[length..];
    }
});

/// What is passed on while it comes in, and what is left at the end, are together what came.
fn in_parts(request: &[u8], whole: Arguments<'_>, step: usize) {
    let mut scanner = RequestScanner::default();
    let mut buffer = Vec::new();
    let mut gone: Option<(usize, Vec<u8>)> = None;
    for piece in request.chunks(step) {
        buffer.extend_from_slice(piece);
        match scanner.scan(&buffer) {
            Ok(Scanned::Partial) => {}
            Ok(Scanned::Request(length)) => {
                assert_eq!(length, buffer.len());
                break;
            }
            other => panic!("{other:?} of a good request"),
        }
        let arrived = buffer.len();
        let Some(incomplete) = scanner.incomplete(&buffer) else { continue };
        let start = incomplete.start;
        if gone.as_ref().is_some_and(|(from, _)| *from != start) || incomplete.length == 0 {
            continue;
        }
        let end = arrived.min(start + incomplete.length - 1);
        if end > start {
            gone.get_or_insert((start, Vec::new())).1.extend(buffer.drain(start..end));
            scanner.elide(end - start);
        }
    }
    let (start, gone) = gone.unwrap_or_default();
    let left = scanner.arguments(&buffer).after(start);
    assert_eq!([&request[..start], &gone, left.unsent()].concat(), request);
    assert_eq!(left.len(), whole.len());
    let differing = left.from(0).zip(whole.from(0)).filter(|(a, b)| a != b).count();
    assert!(differing <= 1, "only what was passed on is shorter");
}
