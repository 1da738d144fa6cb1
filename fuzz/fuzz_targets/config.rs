//! Settings: read or refused, with a message.
#![no_main]

use cachefence::config::Config;
use cachefence::guard::Guards;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Config::parse(None, text, []) {
        Ok(config) => drop(Guards::new(&config.guards, config.redis.db())),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
