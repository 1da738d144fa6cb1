//! LSNs and snapshots: what is printed reads the same.
#![no_main]

use cachefence::position::{Lsn, Snapshot, Xid};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    if let Ok(snapshot) = text.parse::<Snapshot>() {
        assert_eq!(snapshot.to_string().parse().as_ref(), Ok(&snapshot));
        assert!(snapshot.includes(&snapshot));
        assert!(!snapshot.sees(snapshot.xmax()));
        assert!(snapshot.in_progress().iter().all(|xid| !snapshot.sees(*xid)));
        assert!(snapshot.xmin() == Xid(0) || snapshot.sees(Xid(snapshot.xmin().0 - 1)));
    }
});
