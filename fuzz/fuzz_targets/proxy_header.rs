//! The header of the PROXY protocol: it ends in the same place however it is cut.
#![no_main]

use cachefence::proxy::ProxyHeader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = ProxyHeader::parse(bytes);
    // As a socket is read: what is there, and as much more as is asked for.
    let mut arrived = 0;
    let piecewise = loop {
        match ProxyHeader::parse(&bytes[..arrived]) {
            Ok(ProxyHeader::Partial(missing)) if arrived < bytes.len() => {
                assert!(missing > 0);
                arrived = (arrived + missing).min(bytes.len());
            }
            other => break other,
        }
    };
    match whole {
        Ok(ProxyHeader::Whole { length, .. }) => {
            assert_eq!(piecewise, whole);
            // Not a byte of the client's was asked for.
            assert_eq!(arrived, length);
        }
        Ok(ProxyHeader::Partial(missing)) => {
            assert_eq!(piecewise, Ok(ProxyHeader::Partial(missing)));
            assert_eq!(arrived, bytes.len());
        }
        Err(_) => assert!(piecewise.is_err()),
    }
});
