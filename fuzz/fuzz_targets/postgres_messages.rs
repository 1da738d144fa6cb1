//! What a server of Postgres sends, or somebody in its place: messages, whatever they hold, and a certificate.
#![no_main]

use cachefence::pg::error::ServerError;
use cachefence::pg::replication::event;
use cachefence::pg::wire::{data_row, frame};
use cachefence::tls::server_end_point;
use libfuzzer_sys::fuzz_target;

const LONGEST: usize = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some((found, after))) = frame(rest, LONGEST) {
        assert!(found.body.len() < LONGEST);
        assert_eq!(rest.len(), 5 + found.body.len() + after.len());
        // Cut anywhere, it is waited for.
        assert!(matches!(frame(&rest[..rest.len() - after.len() - 1], LONGEST), Ok(None)));
        let error = ServerError::parse(found.body);
        assert!(!error.severity.is_empty() || found.body.contains(&b'V') || found.body.contains(&b'S'));
        let _ = error.to_string();
        if let Ok(row) = data_row(found.body) {
            let texts: usize = row.iter().flatten().map(|text| text.chars().count()).sum();
            assert!(row.len() * 4 + texts <= found.body.len());
        }
        let _ = event(found.body);
        rest = after;
    }
    assert!(server_end_point(&bytes.into()).is_none_or(|hash| [32, 48, 64].contains(&hash.len())));
});
