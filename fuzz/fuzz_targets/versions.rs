//! A version in a payload: a timestamp, and a value in JSON by its pointer.
#![no_main]

use cachefence::guard::{Instant, Pointer, Scalar, VersionKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (pointer, payload) = input;
    if let Some(instant) = Instant::read(payload) {
        assert!([1, 10, 100, 1_000, 10_000, 100_000, 1_000_000].contains(&instant.step));
        assert_eq!(instant.micros % instant.step, 0);
        assert!(VersionKind::Timestamp.read(payload).is_some());
        assert_eq!(VersionKind::TimestampTz.read(payload).is_some(), instant.has_offset);
        assert!(VersionKind::Integer.read(payload).is_none());
    }
    let Some(parsed) = Pointer::parse(pointer) else { return };
    let found = parsed.find(payload);
    // A document that is built says the same, but for members that come twice.
    let built = serde_json::from_slice::<serde_json::Value>(payload).ok();
    match (found, built.as_ref().and_then(|document| document.pointer(pointer))) {
        (Some(Scalar::Integer(n)), Some(value)) => assert_eq!(value.as_i64(), Some(n)),
        (Some(Scalar::Text(text)), Some(value)) => assert_eq!(value.as_str(), Some(text.as_str())),
        // Nested so deeply that it is not built.
        (Some(_), None) => assert!(built.is_none()),
        (None, _) => {}
    }
});
