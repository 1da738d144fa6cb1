//! Durations as people write them: `5ms`, `10s`, `1h`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// What a duration may look like, for error messages.
pub(super) const FORM: &str = "a duration such as \"5ms\", \"10s\", \"2m\", \"1h\" or \"7d\"";

/// A whole number and its unit.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(millis).map(Duration::from_millis)
}

/// The largest unit that tells it exactly.
pub(super) fn print(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        // 60s rather than 1m: people think of small times in seconds.
        if millis >= 2 * unit && millis.is_multiple_of(unit) || millis == unit && name != "m" {
            return format!("{}{name}", millis / unit);
        }
    }
    format!("{millis}ms")
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not {FORM}")))
}

/// Of a setting that has no default.
pub(super) fn deserialize_some<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        for text in ["0ms", "5ms", "1s", "60s", "5m", "1h", "7d", "1500ms"] {
            assert_eq!(parse(text).map(print).as_deref(), Some(text));
        }
        for text in
            ["", "5", "s", "1.5s", "-1s", "5 s", "5S", "99999999999999999999s", "18446744073709551615d"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
