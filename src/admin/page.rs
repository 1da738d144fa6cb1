//! The page for people: one file without any other, put together from three that are easier to read.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};

const FRAME: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The page, and what a browser may do with it.
pub(super) struct Page {
    /// All of it.
    pub(super) text: String,
    /// Its `Content-Security-Policy`.
    pub(super) policy: HeaderValue,
}

/// Made once.
pub(super) static PAGE: LazyLock<Page> = LazyLock::new(|| Page {
    text: FRAME.replacen("/* style */", STYLE, 1).replacen("/* script */", SCRIPT, 1),
    policy: policy(),
});

/// Its own style and script and no others, by their hashes: what an attacker gets into the page is not run. It asks
/// nobody but this port.
fn policy() -> HeaderValue {
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; frame-ancestors 'none'; \
         base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_file_that_asks_nobody_else() {
        let Page { text, policy } = &*PAGE;
        assert!(text.contains(STYLE) && text.contains(SCRIPT));
        // The one address is the name of SVG's namespace, which nobody is asked for.
        let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
        for word in ["http:", "https:", "src=", "@import", "url(", "innerHTML", "style=\"", "onclick"] {
            assert!(!elsewhere.contains(word), "{word}");
        }
        let policy = policy.to_str().expect("a policy");
        assert_eq!(policy.matches("'sha256-").count(), 2);
        assert!(!policy.contains("unsafe"), "{policy}");
    }

    #[test]
    fn a_hash_is_that_of_what_stands_between_the_tags() {
        let text = &PAGE.text;
        let between = |open: &str, close: &str| {
            let start = text.find(open).expect(open) + open.len();
            &text[start..start + text[start..].find(close).expect(close)]
        };
        assert_eq!(between("<style>", "</style>"), STYLE);
        assert_eq!(between("<script>", "</script>"), SCRIPT);
    }
}
