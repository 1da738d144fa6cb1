//! Key templates: `user:<id>:profile` makes keys from rows, and tells which keys rows could have made.

use smallvec::SmallVec;
use thiserror::Error;

/// Why a template is not one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// Nothing at all.
    #[error("the template is empty; write the key's shape, such as \"user:<id>\"")]
    Empty,
    /// `<` without its `>`.
    #[error("the `<` at byte {at} is not closed; placeholders are written <column>")]
    Unclosed {
        /// Where the `<` stands.
        at: usize,
    },
    /// `<>`.
    #[error("the placeholder at byte {at} names no column; placeholders are written <column>")]
    EmptyPlaceholder {
        /// Where the `<` stands.
        at: usize,
    },
    /// A placeholder comes first: every key in Redis could be of that shape.
    #[error(
        "it begins with a placeholder, so it would guard every key; begin it with fixed text, such as \"user:<id>\""
    )]
    NoPrefix,
}

/// The texts that a column can print, as far as they tell keys apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ColumnKind {
    /// Any text, the empty one and `:` included.
    #[default]
    Any,
    /// `smallint`, `integer`, `bigint`: an optional minus, then up to 19 digits.
    Integer,
    /// 8-4-4-4-12 lower-case hexadecimal digits.
    Uuid,
    /// `t` or `f`.
    Bool,
}

impl ColumnKind {
    /// Whether a column of this kind could print this text.
    fn prints(self, text: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Integer => {
                let digits = text.strip_prefix(b"-").unwrap_or(text);
                (1..=INTEGER_DIGITS).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
            }
            Self::Uuid => text.len() == UUID_LEN && is_uuid_prefix(text),
            Self::Bool => matches!(text, b"t" | b"f"),
        }
    }

    /// How much of the beginning of a text it can have printed, where no digit follows a number.
    fn first(self, text: &[u8]) -> usize {
        match self {
            Self::Any => text.len(),
            Self::Integer => {
                let sign = usize::from(text.first() == Some(&b'-'));
                let digits =
                    text.iter().skip(sign).take(INTEGER_DIGITS).take_while(|byte| byte.is_ascii_digit());
                sign + digits.count()
            }
            Self::Uuid => UUID_LEN,
            Self::Bool => 1,
        }
    }

    /// How much of the end of a text it can have printed, where neither a digit nor a minus is before a number.
    fn last(self, text: &[u8]) -> usize {
        match self {
            Self::Integer => {
                let digits =
                    text.iter().rev().take(INTEGER_DIGITS).take_while(|byte| byte.is_ascii_digit()).count();
                let before = text.len().checked_sub(digits + 1).and_then(|place| text.get(place));
                digits + usize::from(before == Some(&b'-'))
            }
            kind => kind.first(text),
        }
    }
}

/// The longest run of digits that a `bigint` prints.
const INTEGER_DIGITS: usize = 19;
const UUID_LEN: usize = 36;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Box<[u8]>),
    Column(ColumnKind),
}

/// The shape of the keys that a table's rows feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    segments: Vec<Segment>,
    columns: Vec<String>,
    /// Each key of it is of one row of its table, as far as the catalog has told.
    is_one_row: bool,
}

impl Template {
    /// Parses literal text with `<column>` placeholders.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() {
            return Err(TemplateError::Empty);
        }
        let mut segments = Vec::new();
        let mut columns = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let at = text.len() - rest.len();
            let Some(inside) = rest.strip_prefix('<') else {
                let end = rest.find('<').unwrap_or(rest.len());
                segments.push(Segment::Literal(rest.as_bytes()[..end].into()));
                rest = &rest[end..];
                continue;
            };
            // `<a<b>` is a forgotten `>`, not a column of that name.
            let end = inside.find(['<', '>']).filter(|&end| inside.as_bytes()[end] == b'>');
            let end = end.ok_or(TemplateError::Unclosed { at })?;
            if inside[..end].trim().is_empty() {
                return Err(TemplateError::EmptyPlaceholder { at });
            }
            columns.push(inside[..end].to_owned());
            segments.push(Segment::Column(ColumnKind::Any));
            rest = &inside[end + 1..];
        }
        match segments.first() {
            Some(Segment::Literal(_)) => {
                Ok(Self { text: text.to_owned(), segments, columns, is_one_row: false })
            }
            _ => Err(TemplateError::NoPrefix),
        }
    }

    /// The template as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The column of each placeholder, in order; a column used twice is there twice.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The text before the first placeholder: never empty; all of it when there is none.
    pub fn prefix(&self) -> &[u8] {
        match self.segments.first() {
            Some(Segment::Literal(text)) => text,
            _ => &[],
        }
    }

    /// Appends the key of a row to `out`. `value(n)` is the text of the n-th placeholder's column; where it is NULL
    /// there is no key: the answer is false, and `out` is as it was.
    pub fn render<'a>(&self, value: impl Fn(usize) -> Option<&'a [u8]>, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let mut placeholder = 0;
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => out.extend_from_slice(text),
                Segment::Column(_) => {
                    let Some(text) = value(placeholder) else {
                        out.truncate(start);
                        return false;
                    };
                    out.extend_from_slice(text);
                    placeholder += 1;
                }
            }
        }
        true
    }

    /// The `SCAN MATCH` pattern that finds every key of this shape. It may find others as well: ask
    /// [`matches`](Self::matches) before touching one.
    pub fn glob(&self) -> String {
        let mut pattern = String::with_capacity(self.text.len() + 4);
        let mut rest = self.text.as_str();
        // Parsed before, so every `<` has its `>`.
        while let Some((literal, placeholder)) = rest.split_once('<') {
            escape_glob(literal, &mut pattern);
            // Redis backtracks per star: two in a row would only cost.
            if !literal.is_empty() || pattern.is_empty() {
                pattern.push('*');
            }
            rest = placeholder.split_once('>').map_or("", |(_, rest)| rest);
        }
        escape_glob(rest, &mut pattern);
        pattern
    }

    /// Narrows what the n-th placeholder matches, once the catalog has told the column's type.
    pub fn set_column_kind(&mut self, n: usize, kind: ColumnKind) {
        let columns = self.segments.iter_mut().filter_map(|segment| match segment {
            Segment::Column(kind) => Some(kind),
            Segment::Literal(_) => None,
        });
        if let Some(column) = columns.into_iter().nth(n) {
            *column = kind;
        }
    }

    /// Whether each key of this shape is of one row of its table, as far as the catalog has told.
    pub fn is_one_row(&self) -> bool {
        self.is_one_row
    }

    pub(super) fn set_one_row(&mut self, is_one_row: bool) {
        self.is_one_row = is_one_row;
    }

    /// Whether two rows with other values always make other keys. Not so of `<a>:<b>`, if both may have a colon in
    /// them. Sure, if not always necessary: at most one placeholder may be any text, and what stands between two of
    /// them ends a number.
    pub(super) fn is_unambiguous(&self) -> bool {
        let is_any = |segment: &&Segment| **segment == Segment::Column(ColumnKind::Any);
        let in_number = |byte: Option<&u8>| byte.is_none_or(|byte| byte.is_ascii_digit() || *byte == b'-');
        let Some(first) = self.segments.iter().position(|s| matches!(s, Segment::Column(_))) else {
            return true;
        };
        let last = self.segments.iter().rposition(|s| matches!(s, Segment::Column(_))).unwrap_or(first);
        let between = self.segments.get(first..=last).unwrap_or_default();
        let ends = between.windows(2).all(|two| match two {
            [Segment::Column(_), Segment::Literal(text)] => !in_number(text.first()),
            [Segment::Literal(text), Segment::Column(_)] => !in_number(text.last()),
            _ => false,
        });
        ends && self.segments.iter().filter(is_any).count() <= 1
    }

    /// The texts that stand in a key in place of the placeholders, in order; none if the key is not of this shape, or could
    /// have been made from several texts.
    ///
    /// From both ends to the one placeholder that may be any text: each byte is looked at once, whatever the client sends.
    pub fn values<'k>(&self, key: &'k [u8]) -> Option<Vec<&'k [u8]>> {
        if !self.is_unambiguous() {
            return None;
        }
        let is_any = |segment: &Segment| *segment == Segment::Column(ColumnKind::Any);
        let any = self.segments.iter().position(is_any).unwrap_or(self.segments.len());
        let (front, back) = self.segments.split_at(any);
        let (mut rest, mut values, mut last) = (key, Vec::new(), Vec::new());
        for segment in front {
            match segment {
                Segment::Literal(text) => rest = rest.strip_prefix(&text[..])?,
                Segment::Column(kind) => {
                    let (value, after) = rest.split_at_checked(kind.first(rest))?;
                    values.push(Some(value).filter(|value| kind.prints(value))?);
                    rest = after;
                }
            }
        }
        for segment in back.iter().skip(1).rev() {
            match segment {
                Segment::Literal(text) => rest = rest.strip_suffix(&text[..])?,
                Segment::Column(kind) => {
                    let (before, value) = rest.split_at_checked(rest.len().checked_sub(kind.last(rest))?)?;
                    last.push(Some(value).filter(|value| kind.prints(value))?);
                    rest = before;
                }
            }
        }
        if !back.is_empty() {
            values.push(rest);
        } else if !rest.is_empty() {
            return None;
        }
        values.extend(last.into_iter().rev());
        Some(values)
    }

    /// Whether some row could have made this key.
    pub fn matches(&self, key: &[u8]) -> bool {
        key.starts_with(self.prefix()) && self.matches_after_prefix(key)
    }

    /// [`matches`](Self::matches) for a key that is known to start with [`prefix`](Self::prefix).
    ///
    /// At worst walks the segments once, with the set of places where the text so far can end: time grows with the key's
    /// length times the number of segments, never faster, whatever the client sends.
    pub(super) fn matches_after_prefix(&self, key: &[u8]) -> bool {
        // Most templates have one placeholder: what it has to match stands between two known places.
        let (kind, end) = match &self.segments[..] {
            [_, Segment::Column(kind)] => (kind, &[][..]),
            [_, Segment::Column(kind), Segment::Literal(end)] => (kind, &end[..]),
            _ => return self.walk(key),
        };
        let value = key.get(self.prefix().len()..).and_then(|rest| rest.strip_suffix(end));
        value.is_some_and(|value| kind.prints(value))
    }

    /// [`matches_after_prefix`](Self::matches_after_prefix) of any template.
    fn walk(&self, key: &[u8]) -> bool {
        let mut ends = Ends::At(SmallVec::from_slice(&[self.prefix().len()]));
        let mut segments = self.segments.iter().skip(1).peekable();
        while let Some(segment) = segments.next() {
            ends = match (segment, segments.peek()) {
                (Segment::Column(ColumnKind::Any), None) => return !ends.is_empty(),
                (Segment::Column(ColumnKind::Any), Some(_)) => ends.any(),
                (Segment::Column(kind), _) => ends.column(*kind, key),
                (Segment::Literal(text), None) => return ends.reaches_end_by(text, key),
                (Segment::Literal(text), Some(next)) => {
                    ends.literal(text, key, **next == Segment::Column(ColumnKind::Any))
                }
            };
            if ends.is_empty() {
                return false;
            }
        }
        ends.contains(key.len())
    }
}

/// Where in a key the segments so far can end.
enum Ends {
    /// At these places, ascending.
    At(SmallVec<[usize; 24]>),
    /// Anywhere from here on.
    From(usize),
}

impl Ends {
    fn is_empty(&self) -> bool {
        matches!(self, Ends::At(places) if places.is_empty())
    }

    fn contains(&self, place: usize) -> bool {
        match self {
            Ends::At(places) => places.binary_search(&place).is_ok(),
            Ends::From(first) => *first <= place,
        }
    }

    /// After a placeholder that matches any text.
    fn any(self) -> Self {
        match self {
            Ends::At(places) => places.first().map_or(Ends::At(SmallVec::new()), |&first| Ends::From(first)),
            from => from,
        }
    }

    /// After a literal. When anything may follow, the first place implies all others.
    fn literal(self, text: &[u8], key: &[u8], first_only: bool) -> Self {
        let limit = if first_only { 1 } else { usize::MAX };
        let fits = |&at: &usize| key[at..].starts_with(text);
        let after = |at| at + text.len();
        Ends::At(match self {
            Ends::At(places) => places.into_iter().filter(fits).take(limit).map(after).collect(),
            Ends::From(first) => (first..key.len()).filter(fits).take(limit).map(after).collect(),
        })
    }

    /// Whether a literal from one of these places reaches the end of the key.
    fn reaches_end_by(&self, text: &[u8], key: &[u8]) -> bool {
        key.ends_with(text) && self.contains(key.len() - text.len())
    }

    /// After a placeholder of a known type.
    fn column(self, kind: ColumnKind, key: &[u8]) -> Self {
        let mut ends: SmallVec<[usize; 24]> = SmallVec::new();
        let mut from = |at: usize| {
            let text = &key[at..];
            match kind {
                // Handled by `any`; kept total.
                ColumnKind::Any => ends.extend(at..=key.len()),
                ColumnKind::Bool => ends.extend(matches!(text.first(), Some(b't' | b'f')).then_some(at + 1)),
                ColumnKind::Uuid => ends.extend(is_uuid_prefix(text).then_some(at + UUID_LEN)),
                ColumnKind::Integer => {
                    let sign = usize::from(text.first() == Some(&b'-'));
                    let digits = text[sign..].iter().take(INTEGER_DIGITS).take_while(|b| b.is_ascii_digit());
                    let first = at + sign + 1;
                    ends.extend(first..first + digits.count());
                }
            }
        };
        match self {
            Ends::At(places) => places.into_iter().for_each(&mut from),
            Ends::From(first) => (first..key.len()).for_each(&mut from),
        }
        // Integers that start at different places of one run of digits end at the same places.
        ends.sort_unstable();
        ends.dedup();
        Ends::At(ends)
    }
}

fn is_uuid_prefix(text: &[u8]) -> bool {
    text.len() >= UUID_LEN
        && text[..UUID_LEN].iter().enumerate().all(|(n, byte)| match n {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

fn escape_glob(literal: &str, pattern: &mut String) {
    for c in literal.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The texts that made a key are found in it again.
        #[test]
        fn a_key_has_its_values_in_it(number in any::<i64>(), other in any::<i64>(), text in "[-a:9]{0,6}", yes in any::<bool>()) {
            let (any, integer) = (ColumnKind::Any, ColumnKind::Integer);
            let shapes = [
                template("k:<a>:<b>:<c>:<d>", &[integer, any, ColumnKind::Bool, integer]),
                template("k<a>x<b>", &[integer, any]),
                template("k:<a>x<b>:end", &[any, integer]),
                template("k1<a>:5", &[integer]),
                template("k<a>", &[any]),
            ];
            let texts = [number.to_string(), text, if yes { "t" } else { "f" }.to_owned(), other.to_string()];
            for (n, shape) in shapes.iter().enumerate() {
                let of: Vec<&[u8]> = match n {
                    0 => texts.iter().map(String::as_bytes).collect(),
                    1 => vec![texts[0].as_bytes(), texts[1].as_bytes()],
                    2 => vec![texts[1].as_bytes(), texts[3].as_bytes()],
                    3 => vec![texts[0].as_bytes()],
                    _ => vec![texts[1].as_bytes()],
                };
                let mut key = Vec::new();
                prop_assert!(shape.render(|n| of.get(n).copied(), &mut key));
                prop_assert_eq!(shape.values(&key), Some(of), "{} {:?}", shape.text(), key);
            }
        }
    }

    #[test]
    fn what_could_be_of_several_rows_has_no_values() {
        let (any, integer) = (ColumnKind::Any, ColumnKind::Integer);
        assert_eq!(template("k:<a>:<b>", &[any, any]).values(b"k:1:2"), None);
        assert_eq!(template("k:<a><b>", &[integer, any]).values(b"k:12"), None);
        for other in ["k:", "k:x", "k:1:", "x:1", "k:12345678901234567890", "k:-", "k:1x"] {
            assert_eq!(template("k:<a>", &[integer]).values(other.as_bytes()), None, "{other}");
        }
        // However long: each byte once.
        let long = [b"k:".as_slice(), &vec![b'1'; 10_000_000], b":t"].concat();
        let shape = template("k:<a>:<b>", &[any, ColumnKind::Bool]);
        assert_eq!(shape.values(&long).map(|values| values[0].len()), Some(10_000_000));
        assert_eq!(template("k:<a>:<b>", &[integer, any]).values(&long), None);
    }

    fn template(text: &str, kinds: &[ColumnKind]) -> Template {
        let mut template = Template::parse(text).expect("a template");
        for (n, kind) in kinds.iter().enumerate() {
            template.set_column_kind(n, *kind);
        }
        template
    }

    #[test]
    fn a_template_says_its_columns_prefix_and_pattern() {
        let t = template("user:<id>:by[<email>]", &[]);
        assert_eq!(t.columns(), ["id", "email"]);
        assert_eq!(t.prefix(), b"user:");
        assert_eq!(t.glob(), r"user:*:by\[*\]");
        assert_eq!(template("products:all", &[]).glob(), "products:all");
        assert_eq!(template("a<b><c>", &[]).glob(), "a*");
        assert_eq!(template("{user:<id>}:profile", &[]).glob(), "{user:*}:profile");
    }

    #[test]
    fn what_is_not_a_template_says_why() {
        assert_eq!(Template::parse(""), Err(TemplateError::Empty));
        assert_eq!(Template::parse("user:<id"), Err(TemplateError::Unclosed { at: 5 }));
        assert_eq!(Template::parse("user:<id:<name>"), Err(TemplateError::Unclosed { at: 5 }));
        assert_eq!(Template::parse("user:<>"), Err(TemplateError::EmptyPlaceholder { at: 5 }));
        assert_eq!(Template::parse("<id>:user"), Err(TemplateError::NoPrefix));
        assert!(Template::parse("a>b").is_ok());
    }

    #[test]
    fn keys_that_two_rows_can_make_are_told() {
        let is = |text, kinds: &[ColumnKind]| template(text, kinds).is_unambiguous();
        let (any, number) = (ColumnKind::Any, ColumnKind::Integer);
        assert!(is("all", &[]) && is("user:<id>", &[any]) && is("user:<id>:v<version>", &[any, number]));
        assert!(is("t<a>:<b>:<c>", &[number, any, number]) && is("t<a>:<b>", &[any, ColumnKind::Uuid]));
        assert!(!is("t<a>:<b>", &[any, any]), "a:b and c, or a and b:c");
        assert!(!is("t<a><b>", &[number, number]), "1 and 23, or 12 and 3");
        assert!(!is("t<a>-<b>", &[any, number]), "a- and 1, or a and -1");
        assert!(!is("t<a>0<b>", &[number, number]));
    }

    #[test]
    fn a_null_makes_no_key() {
        let t = template("user:<id>:<name>", &[]);
        let mut out = b"kept".to_vec();
        assert!(!t.render(|n| [Some(&b"7"[..]), None][n], &mut out));
        assert_eq!(out, b"kept");
        assert!(t.render(|n| Some([&b"7"[..], b"x"][n]), &mut out));
        assert_eq!(out, b"keptuser:7:x");
    }

    #[test]
    fn a_placeholder_of_unknown_type_matches_anything() {
        let t = template("user:<id>:profile", &[]);
        for key in ["user:1:profile", "user::profile", "user:a:b:profile", "user:x:profile:profile"] {
            assert!(t.matches(key.as_bytes()), "{key}");
        }
        for key in ["user:profile", "user:1:profil", "user:1:profiles", "user", "", "xuser:1:profile"] {
            assert!(!t.matches(key.as_bytes()), "{key}");
        }
        assert!(template("user:<id>", &[]).matches(b"user:"));
        assert!(template("products:all", &[]).matches(b"products:all"));
        assert!(!template("products:all", &[]).matches(b"products:all:1"));
    }

    #[test]
    fn a_type_narrows_what_a_placeholder_matches() {
        use ColumnKind::*;
        let id = template("user:<id>", &[Integer]);
        assert!(id.matches(b"user:1") && id.matches(b"user:-1") && id.matches(b"user:-9223372036854775808"));
        for key in ["user:", "user:-", "user:1:profile", "user:1x", "user:12345678901234567890"] {
            assert!(!id.matches(key.as_bytes()), "{key}");
        }
        // The digit after the placeholder belongs to the literal: the shortest and longest runs must be tried.
        let digits = template("n<a>5<b>", &[Integer, Integer]);
        assert!(digits.matches(b"n1555") && !digits.matches(b"n55") && !digits.matches(b"n15"));
        let uuid = template("u:<id>:x", &[Uuid]);
        assert!(uuid.matches(b"u:0123abcd-0000-0000-0000-0123456789ab:x"));
        assert!(!uuid.matches(b"u:0123ABCD-0000-0000-0000-0123456789ab:x"));
        let flag = template("f:<flag>:<text>:<id>", &[Bool, Any, Integer]);
        assert!(flag.matches(b"f:t::1") && flag.matches(b"f:f:1:2:x:3") && !flag.matches(b"f:x::1"));
        assert!(!flag.matches(b"f:t:1"));
    }

    /// The short way of templates with one placeholder, and the walk, which takes them all.
    #[test]
    fn the_short_way_finds_what_the_walk_finds() {
        let uuid = "0123abcd-0000-0000-0000-0123456789ab";
        let values =
            ["", "1", "-1", "-", "1-", "t", "f", "tt", "é", uuid, &uuid[1..], "12345678901234567890"];
        for kind in [ColumnKind::Any, ColumnKind::Integer, ColumnKind::Uuid, ColumnKind::Bool] {
            for text in ["n<a>", "n<a>1", "n<a>:t", "n<a>f"] {
                let template = template(text, &[kind]);
                for (value, end) in values.iter().flat_map(|v| ["", "1", ":t", "f"].map(|end| (v, end))) {
                    let key = format!("n{value}{end}");
                    let found = template.matches(key.as_bytes());
                    assert_eq!(found, template.walk(key.as_bytes()), "{text} {kind:?} {key}");
                }
            }
        }
    }

    #[test]
    fn a_hostile_key_costs_linear_time() {
        let t = template("a<b>a<c>a<d>a<e>a<f>b", &[]);
        assert!(!t.matches(&[b'a'; 200_000]));
        let t = template("a<b>a<c>1<d>x", &[ColumnKind::Any, ColumnKind::Integer, ColumnKind::Integer]);
        assert!(!t.matches(&b"a1".repeat(50_000)));
    }

    /// Redis's glob, by definition and slowly: `*`, and `\` before a literal byte.
    fn glob_matches(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', rest @ ..] => (0..=text.len()).any(|n| glob_matches(rest, &text[n..])),
            [b'\\', byte, rest @ ..] => text.first() == Some(byte) && glob_matches(rest, &text[1..]),
            [b'?' | b'[', ..] => panic!("an unescaped special in {pattern:?}"),
            [byte, rest @ ..] => text.first() == Some(byte) && glob_matches(rest, &text[1..]),
        }
    }

    /// A placeholder's kind and a text that its type can print.
    fn column() -> impl Strategy<Value = (ColumnKind, String)> {
        prop_oneof![
            "[a-c:0-9<*\\\\-]{0,6}".prop_map(|text| (ColumnKind::Any, text)),
            any::<i64>().prop_map(|n| (ColumnKind::Integer, n.to_string())),
            (-20..20i64).prop_map(|n| (ColumnKind::Integer, n.to_string())),
            "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
                .prop_map(|text| (ColumnKind::Uuid, text)),
            any::<bool>().prop_map(|b| (ColumnKind::Bool, if b { "t" } else { "f" }.to_owned())),
        ]
    }

    proptest! {
        #[test]
        fn a_rendered_key_matches_its_template_and_its_pattern(
            prefix in "[a-c:0-9*?\\[\\]\\\\^{}]{1,5}",
            parts in prop::collection::vec((column(), "[a-c:0-9*?\\[\\]\\\\^-]{0,3}"), 0..4),
        ) {
            let mut text = prefix;
            for (n, (_, literal)) in parts.iter().enumerate() {
                text += &format!("<c{n}>{literal}");
            }
            let kinds: Vec<_> = parts.iter().map(|((kind, _), _)| *kind).collect();
            let t = template(&text, &kinds);
            let mut key = Vec::new();
            prop_assert!(t.render(|n| Some(parts[n].0.1.as_bytes()), &mut key));
            prop_assert!(t.matches(&key));
            prop_assert!(template(&text, &[]).matches(&key), "an unknown type matches no less");
            prop_assert!(key.starts_with(t.prefix()));
            prop_assert!(glob_matches(t.glob().as_bytes(), &key));
        }

        #[test]
        fn matching_agrees_with_the_pattern_where_types_are_unknown(
            text in "[ab](<c>|[ab]){0,5}", key in "[ab]{0,8}",
        ) {
            let t = template(&text, &[]);
            prop_assert_eq!(t.matches(key.as_bytes()), glob_matches(t.glob().as_bytes(), key.as_bytes()));
        }
    }
}
