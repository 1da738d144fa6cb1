//! A template and the values of its columns: a rendered key matches it.
#![no_main]

use cachefence::fence::GuardId;
use cachefence::guard::{GuardList, Matcher, Template};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, Vec<Vec<u8>>)| {
    let (text, values) = input;
    let Ok(template) = Template::parse(text) else { return };
    let _ = template.glob();
    let mut key = Vec::new();
    let whole = template.render(|n| values.get(n).map(Vec::as_slice), &mut key);
    let matcher = Matcher::new([(GuardId(0), &template)]);
    let mut guards = GuardList::default();
    if whole {
        assert!(key.starts_with(template.prefix()));
        assert!(template.matches(&key), "{text:?} {key:?}");
        matcher.guards(&key, &mut guards);
        assert!(!guards.is_empty());
    }
    // And of any other key both say the same.
    for value in &values {
        let mut guards = GuardList::default();
        matcher.guards(value, &mut guards);
        assert_eq!(template.matches(value), !guards.is_empty());
    }
});
