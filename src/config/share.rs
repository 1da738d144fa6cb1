//! Shares: numbers from 0 to 1.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use toml::Value;

/// A share of something, from none of it to all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share(u64);

impl Share {
    /// The number, if it is one from 0 to 1.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let share = value.as_float().or_else(|| value.as_integer().map(|n| n as f64))?;
        // Not so of NaN. The conversion stays within the range of the integer.
        (0.0..=1.0).contains(&share).then(|| Self((share * 2_f64.powi(64)) as u64))
    }

    /// Of so many things it is so many.
    pub fn of_u64(self) -> u64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::read(&value).ok_or_else(|| D::Error::custom("allowed: a number from 0 to 1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_from_none_to_all() {
        let read = |text: &str| Share::read(&text.parse().expect("a value")).map(Share::of_u64);
        assert_eq!(read("0"), Some(0));
        assert_eq!(read("0.5"), Some(1 << 63));
        assert_eq!(read("1"), Some(u64::MAX));
        assert_eq!(read("1.0"), Some(u64::MAX));
        for text in ["1.1", "-0.1", "nan", "inf", "2", "\"1\"", "true"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
