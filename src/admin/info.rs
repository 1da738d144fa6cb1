//! The status in the format of Redis's INFO, for those who ask by `FENCE STATUS`: the same numbers as `/status`.

use std::fmt::Write;

use serde_json::{Map, Value};

/// Sections, and a line for each value. Of a list each element is one line, `guard0:table=public.users,broken=0`, as
/// INFO has its replicas.
pub fn info(status: &Value) -> String {
    let Value::Object(status) = status else { return String::new() };
    let mut text = String::new();
    section(
        &mut text,
        "Proxy",
        status.iter().filter(|(_, value)| !value.is_object() && !value.is_array()),
        "",
    );
    for (name, value) in status {
        match value {
            Value::Object(values) => section(&mut text, &title(name), values.iter(), &format!("{name}_")),
            Value::Array(values) => list(&mut text, name, values),
            _ => {}
        }
    }
    text
}

fn title(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

fn head(text: &mut String, title: &str) {
    let blank = if text.is_empty() { "" } else { "\r\n" };
    let _ = write!(text, "{blank}# {title}\r\n");
}

fn section<'a>(
    text: &mut String,
    title: &str,
    values: impl Iterator<Item = (&'a String, &'a Value)>,
    prefix: &str,
) {
    head(text, title);
    for (name, value) in values {
        let _ = write!(text, "{prefix}{name}:{}\r\n", word(value));
    }
}

fn list(text: &mut String, name: &str, values: &[Value]) {
    head(text, &title(name));
    let singular = name.strip_suffix('s').unwrap_or(name);
    for (n, value) in values.iter().enumerate() {
        let fields = value.as_object().into_iter().flat_map(Map::iter);
        let fields: Vec<String> = fields.map(|(name, value)| format!("{name}={}", word(value))).collect();
        let _ = write!(text, "{singular}{n}:{}\r\n", fields.join(","));
    }
}

/// A value that ends neither its line nor its field, whatever it says.
fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(yes) => u8::from(*yes).to_string(),
        Value::String(text) => text.replace(|c: char| c.is_control(), " ").replace(',', ";"),
        Value::Array(values) => values.iter().map(word).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_line_and_no_text_breaks_one() {
        let status = serde_json::json!({
            "mode": "enforce",
            "feed": { "lost": false, "applied_lsn": "0/16B3748", "error": "one, two\r\nthree:4", "none": null },
            "sources": [{ "name": "a", "up": true }, { "name": "b,c=d", "up": false }],
            "guards": [{ "keys": ["user:<id>", "users"] }],
        });
        let lines: Vec<String> = info(&status).split("\r\n").map(str::to_owned).collect();
        for line in [
            "# Proxy",
            "mode:enforce",
            "# Feed",
            "feed_lost:0",
            "feed_applied_lsn:0/16B3748",
            "feed_error:one; two  three:4",
            "feed_none:",
            "# Sources",
            "source0:name=a,up=1",
            "source1:name=b;c=d,up=0",
            "guard0:keys=user:<id> users",
        ] {
            assert!(lines.iter().any(|found| found == line), "{line}: {lines:?}");
        }
    }
}
