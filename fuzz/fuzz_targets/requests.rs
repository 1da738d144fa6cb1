//! A client's bytes: cut into the same requests whole and in pieces, with the library's arguments.
#![no_main]

use cachefence::resp::{RequestScanner, Scanned};
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
        rest = &rest[length..];
    }
});
