//! A value in a JSON document, by its pointer (RFC 6901). The document is walked, not built.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A JSON pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

/// What it may lead to: anything else is as good as nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A whole number, written without fraction and exponent.
    Integer(i64),
    /// A string.
    Text(String),
}

impl Pointer {
    /// Reads `/a/0/b`, in which `~1` stands for a slash and `~0` for a tilde. The empty one is the document itself.
    pub fn parse(text: &str) -> Option<Self> {
        let Some(rest) = text.strip_prefix('/') else { return text.is_empty().then(|| Self(Vec::new())) };
        rest.split('/').map(token).collect::<Option<Vec<String>>>().map(Self)
    }

    /// What it leads to in a document. Nothing, if that is not valid JSON to its end, or names one of the members on the
    /// way twice: programs differ in which of the two they take.
    pub fn find(&self, document: &[u8]) -> Option<Scalar> {
        let mut deserializer = serde_json::Deserializer::from_slice(document);
        let found = Way(&self.0).deserialize(&mut deserializer).ok()?;
        deserializer.end().ok()?;
        found
    }
}

fn token(text: &str) -> Option<String> {
    let escapes = text.split('~').skip(1);
    let good = escapes.into_iter().all(|after| after.starts_with(['0', '1']));
    good.then(|| text.replace("~1", "/").replace("~0", "~"))
}

/// The place of a token in an array.
fn index(token: &str) -> Option<usize> {
    let digits = token.bytes().all(|byte| byte.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
    digits.then(|| token.parse().ok()).flatten()
}

/// What is left of the way.
#[derive(Clone, Copy)]
struct Way<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for Way<'_> {
    type Value = Option<Scalar>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Way<'_> {
    type Value = Option<Scalar>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then_some(Scalar::Integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(value).ok().filter(|_| self.0.is_empty()).map(Scalar::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then(|| Scalar::Text(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let (wanted, rest) = match self.0.split_first() {
            Some((token, rest)) => (index(token), rest),
            None => (None, self.0),
        };
        let (mut found, mut place) = (None, 0);
        loop {
            if wanted == Some(place) {
                let Some(value) = items.next_element_seed(Way(rest))? else { return Ok(found) };
                found = value;
            } else if items.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            place += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let step = self.0.split_first();
        let (mut found, mut seen) = (None, false);
        while let Some(is_wanted) = members.next_key_seed(Name(step.map(|(token, _)| token.as_str())))? {
            match step {
                Some((_, rest)) if is_wanted => {
                    if std::mem::replace(&mut seen, true) {
                        return Err(A::Error::custom("a member twice"));
                    }
                    found = members.next_value_seed(Way(rest))?;
                }
                _ => _ = members.next_value::<IgnoredAny>()?,
            }
        }
        Ok(found)
    }
}

/// Whether a member's name is this one.
#[derive(Clone, Copy)]
struct Name<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(self.0 == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(pointer: &str, document: &str) -> Option<Scalar> {
        Pointer::parse(pointer).expect("a pointer").find(document.as_bytes())
    }

    fn text(text: &str) -> Option<Scalar> {
        Some(Scalar::Text(text.into()))
    }

    #[test]
    fn it_leads_to_numbers_and_strings() {
        let document = r#" {"a": [0, {"b/c": "x", "m~n": 7}], "": 1, "n": {"v": -9223372036854775808}} "#;
        assert_eq!(find("/a/1/b~1c", document), text("x"));
        assert_eq!(find("/a/1/m~0n", document), Some(Scalar::Integer(7)));
        assert_eq!(find("/a/0", document), Some(Scalar::Integer(0)));
        assert_eq!(find("/", document), Some(Scalar::Integer(1)));
        assert_eq!(find("/n/v", document), Some(Scalar::Integer(i64::MIN)));
        assert_eq!(find("", "42"), Some(Scalar::Integer(42)));
        assert_eq!(find("/v", r#"{"v": "\u0041\n"}"#), text("A\n"));
        assert_eq!(find("/v\u{e9}", "{\"v\\u00e9\": 1}"), Some(Scalar::Integer(1)));
    }

    #[test]
    fn everything_else_is_nothing() {
        for (pointer, document) in [
            ("/v", "{}"),
            ("/v", "[1]"),
            ("/0/v", "[1]"),
            ("/01", "[1, 2]"),
            ("/-", "[1]"),
            ("/2", "[1, 2]"),
            ("/v/x", r#"{"v": 1}"#),
            ("/v", r#"{"v": 1.0}"#),
            ("/v", r#"{"v": 1e3}"#),
            ("/v", r#"{"v": 9223372036854775808}"#),
            ("/v", r#"{"v": 99999999999999999999999}"#),
            ("/v", r#"{"v": null}"#),
            ("/v", r#"{"v": true}"#),
            ("/v", r#"{"v": {"v": 1}}"#),
            ("/v", r#"{"v": 1, "v": 1}"#),
            ("/a/v", r#"{"a": {"v": 1}, "b": 0, "a": 0}"#),
            ("/v", r#"{"v": 1}}"#),
            ("/v", r#"{"v": 1} x"#),
            ("/v", r#"{"v": 1"#),
            ("/v", r#"{"v": 1, "w": tru}"#),
            ("/v", r#"{"v": 01}"#),
            ("/v", ""),
            ("", "{}"),
        ] {
            assert_eq!(find(pointer, document), None, "{pointer} in {document}");
        }
        assert_eq!(Pointer::parse("/v").expect("a pointer").find(b"{\"v\": \"\xff\"}"), None);
        // What lies beside the way may come twice, and may be nested deep.
        assert_eq!(find("/v", r#"{"w": 1, "w": 2, "v": 3}"#), Some(Scalar::Integer(3)));
        let deep = format!("{{\"w\": {}{}, \"v\": 3}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(find("/v", &deep), Some(Scalar::Integer(3)));
    }

    #[test]
    fn what_is_no_pointer_is_none() {
        for text in ["v", "v/w", "/a~", "/a~2", "/~/0", "#/v"] {
            assert_eq!(Pointer::parse(text), None, "{text}");
        }
    }

    proptest! {
        /// `serde_json` builds the document, and has pointers of its own.
        #[test]
        fn it_agrees_with_a_document_that_is_built(
            pointer in "(/(a|b|0|1|~0)){0,3}",
            document in r#"[\[\]{}:,"ab01~ ]{0,12}|\{"a":(1|"b"|\[0,1\]|\{"b":1,"a":"0"\}),"b":[01]\}"#,
        ) {
            let built: Option<serde_json::Value> = serde_json::from_str(&document).ok();
            let value = built.as_ref().and_then(|document| document.pointer(&pointer));
            let expected = value.and_then(|value| match value {
                serde_json::Value::Number(number) => number.as_i64().map(Scalar::Integer),
                serde_json::Value::String(text) => Some(Scalar::Text(text.clone())),
                _ => None,
            });
            let found = find(&pointer, &document);
            // Where a member comes twice, the last one counts there and none here.
            prop_assert!(found == expected || (found.is_none() && document.matches("\":").count() > 1));
        }
    }
}
