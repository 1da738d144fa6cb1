//! What settings there are, as data: what each may be, for the file and the environment alike.
//!
//! The shapes in [`super`] say how settings are held; this table says how a wrong one is refused. That a setting is in
//! both is tested.

use std::time::Duration;

use toml::{Table, Value};

use super::address::redact;
use super::duration;
use super::share::Share;

/// A place in the tree of settings.
#[derive(Debug)]
pub(super) enum Node {
    /// A table with these settings, and those that have to be there: so has a table of which one has to.
    Table { settings: &'static [(&'static str, Node)], required: &'static [&'static str] },
    /// A list of tables.
    List(&'static Node),
    /// A setting.
    Leaf(Kind),
}

/// What a setting can be.
#[derive(Debug)]
pub(super) enum Kind {
    Text,
    /// A text that may hold a password.
    Url,
    Texts,
    /// A whole number in this range.
    Count(i64, i64),
    /// `true` or `false`.
    Switch,
    /// A number from 0 to 1.
    Share,
    /// A duration in this range.
    Duration(Duration, Duration),
    /// One of these.
    Choice(&'static [&'static str]),
}

const MILLISECOND: Duration = Duration::from_millis(1);
/// Redis's and Postgres's timers are far from overflow up to here, and nobody means more.
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// Linux takes no more than 32767 s.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(9 * 3_600);
/// Whoever stops a process waits for its end.
const LONGEST_SHUTDOWN: Duration = Duration::from_secs(3_600);
const TIME: Node = Node::Leaf(Kind::Duration(MILLISECOND, YEAR));
const TEXT: Node = Node::Leaf(Kind::Text);
const URL: Node = Node::Leaf(Kind::Url);
const TEXTS: Node = Node::Leaf(Kind::Texts);

const fn choice(allowed: &'static [&'static str]) -> Node {
    Node::Leaf(Kind::Choice(allowed))
}

const fn table(settings: &'static [(&'static str, Node)]) -> Node {
    Node::Table { settings, required: &[] }
}

/// All settings.
pub(super) static ROOT: Node = Node::Table { settings: &SETTINGS, required: &["postgres"] };

static SETTINGS: [(&str, Node); 8] = [
    (
        "proxy",
        table(&[
            ("listen", TEXTS),
            ("mode", choice(&["enforce", "observe"])),
            ("max_clients", Node::Leaf(Kind::Count(1, 1_000_000))),
            ("max_buffered", Node::Leaf(Kind::Count(1 << 20, 1 << 50))),
            ("threads", Node::Leaf(Kind::Count(0, 1_024))),
            (
                "tls",
                Node::Table {
                    settings: &[("cert", TEXT), ("key", TEXT), ("client_ca", TEXT)],
                    required: &["cert", "key"],
                },
            ),
            ("tcp_keepalive", Node::Leaf(Kind::Duration(Duration::ZERO, LONGEST_KEEPALIVE))),
            ("proxy_protocol", Node::Leaf(Kind::Switch)),
            ("unix_socket_mode", TEXT),
            ("shutdown_grace", Node::Leaf(Kind::Duration(Duration::ZERO, LONGEST_SHUTDOWN))),
            ("shutdown_delay", Node::Leaf(Kind::Duration(Duration::ZERO, LONGEST_SHUTDOWN))),
        ]),
    ),
    (
        "redis",
        table(&[
            ("url", URL),
            ("upstream", choice(&["shared", "pinned"])),
            ("reply_timeout", TIME),
            ("tls", table(&[("ca", TEXT), ("cert", TEXT), ("key", TEXT), ("server_name", TEXT)])),
        ]),
    ),
    (
        "postgres",
        Node::Table {
            settings: &[
                ("url", URL),
                ("password_file", TEXT),
                ("slot", TEXT),
                ("temporary_slot", Node::Leaf(Kind::Switch)),
                ("failover_slot", Node::Leaf(Kind::Switch)),
                ("streaming", Node::Leaf(Kind::Switch)),
                ("publication", TEXT),
                ("contract", choice(&["bounded", "strict"])),
                ("application_name", TEXT),
                ("feed_lost_after", TIME),
                ("max_lag", TIME),
            ],
            required: &["url"],
        },
    ),
    (
        "source",
        Node::List(&Node::Table {
            settings: &[("name", TEXT), ("url", URL), ("password_file", TEXT)],
            required: &["name"],
        }),
    ),
    (
        "fence",
        table(&[
            ("history", TIME),
            ("lease_ttl", TIME),
            ("drain_timeout", TIME),
            ("max_keys", Node::Leaf(Kind::Count(1, 1 << 40))),
            ("poll_interval", Node::Leaf(Kind::Duration(MILLISECOND, Duration::from_secs(1)))),
        ]),
    ),
    ("guard", Node::List(&GUARD)),
    (
        "audit",
        table(&[
            ("sample", Node::Leaf(Kind::Share)),
            ("grace", Node::Leaf(Kind::Duration(MILLISECOND, Duration::from_secs(60)))),
            ("max_queries_per_second", Node::Leaf(Kind::Count(1, 1_000))),
        ]),
    ),
    ("admin", table(&[("listen", TEXT), ("show_keys", Node::Leaf(Kind::Switch))])),
];

static GUARD: Node = Node::Table {
    settings: &[
        ("table", TEXT),
        ("keys", TEXTS),
        ("db", Node::Leaf(Kind::Count(0, 1_000_000))),
        ("on_stale", choice(&["refuse", "cap", "delete"])),
        ("stale_ttl", TIME),
        ("reply", choice(&["ok", "nil", "error"])),
        ("unproven", choice(&["cap", "allow", "refuse"])),
        ("unproven_ttl", TIME),
        ("lease", choice(&["connection", "key", "off"])),
        (
            "version",
            Node::Table {
                settings: &[
                    ("column", TEXT),
                    ("json", TEXT),
                    ("raw", Node::Leaf(Kind::Switch)),
                    ("field", TEXT),
                ],
                required: &["column"],
            },
        ),
        ("max_ttl", TIME),
        (
            "when_feed_lost",
            table(&[
                ("reads", choice(&["serve", "miss"])),
                ("fills", choice(&["cap", "refuse"])),
                ("fills_ttl", TIME),
            ]),
        ),
        ("coalesce", Node::Leaf(Kind::Duration(MILLISECOND, Duration::from_secs(60)))),
        ("audit_sql", TEXT),
        ("audit_json", TEXT),
    ],
    required: &["table", "keys"],
};

/// A wrong setting: its path, what was found there and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub path: String,
    pub what: String,
}

impl Wrong {
    pub(super) fn new(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self { path: path.into(), what: what.into() }
    }
}

/// The path of a setting in a table.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Node {
    /// Appends all that is wrong with `value`, which stands at `path`.
    pub(super) fn check(&self, path: &str, value: &Value, wrong: &mut Vec<Wrong>) {
        match (self, value) {
            (Node::Table { settings, required }, Value::Table(table)) => {
                check_table(path, settings, required, table, wrong);
            }
            (Node::Table { .. }, _) => wrong.push(Wrong::new(path, found(value, "a table"))),
            (Node::List(item), Value::Array(values)) => {
                for (n, value) in values.iter().enumerate() {
                    item.check(&format!("{path}[{n}]"), value, wrong);
                }
            }
            (Node::List(_), _) => {
                wrong.push(Wrong::new(
                    path,
                    found(value, &format!("a list of tables, each begun by [[{path}]]")),
                ));
            }
            (Node::Leaf(kind), _) => wrong.extend(kind.check(value).map(|what| Wrong::new(path, what))),
        }
    }
}

fn check_table(
    path: &str,
    settings: &'static [(&'static str, Node)],
    required: &[&str],
    table: &Table,
    wrong: &mut Vec<Wrong>,
) {
    for (name, value) in table {
        match settings.iter().find(|(known, _)| known == name) {
            Some((_, node)) => node.check(&join(path, name), value, wrong),
            None => {
                let known: Vec<&str> = settings.iter().map(|(name, _)| *name).collect();
                let what = format!("no such setting; allowed here: {}", known.join(", "));
                wrong.push(Wrong::new(join(path, name), what));
            }
        }
    }
    let absent = |name: &str| required.contains(&name) && !table.contains_key(name);
    for (name, node) in settings.iter().filter(|(name, _)| absent(name)) {
        match node {
            // What it lacks says more than that it is not there.
            Node::Table { .. } => node.check(&join(path, name), &Value::Table(Table::new()), wrong),
            _ => wrong.push(Wrong::new(join(path, name), "it is missing, and has no default")),
        }
    }
}

impl Kind {
    /// Whether a value is of the type, whatever it says.
    pub(super) fn fits(&self, value: &Value) -> bool {
        match self {
            Kind::Count(..) => value.is_integer(),
            Kind::Share => value.is_float() || value.is_integer(),
            Kind::Switch => value.is_bool(),
            Kind::Texts => value.as_array().is_some_and(|values| values.iter().all(Value::is_str)),
            Kind::Text | Kind::Url | Kind::Duration(..) | Kind::Choice(..) => value.is_str(),
        }
    }

    fn check(&self, value: &Value) -> Option<String> {
        match self {
            Kind::Text | Kind::Url => (!self.fits(value)).then(|| found(value, "a text in quotes")),
            Kind::Texts => {
                (!self.fits(value)).then(|| found(value, "a list of texts, such as [\"a\", \"b\"]"))
            }
            Kind::Count(min, max) => {
                let good = value.as_integer().is_some_and(|n| (*min..=*max).contains(&n));
                (!good).then(|| found(value, &format!("a whole number from {min} to {max}")))
            }
            Kind::Share => {
                Share::read(value).is_none().then(|| found(value, "a number from 0 to 1, such as 0.001"))
            }
            Kind::Switch => (!self.fits(value)).then(|| found(value, "true, false")),
            Kind::Duration(min, max) => {
                let read = value.as_str().and_then(duration::parse);
                let allowed = format!(
                    "{}, from {} to {}",
                    duration::FORM,
                    duration::print(*min),
                    duration::print(*max)
                );
                (!read.is_some_and(|d| (*min..=*max).contains(&d))).then(|| found(value, &allowed))
            }
            Kind::Choice(allowed) => {
                let quoted: Vec<String> = allowed.iter().map(|choice| format!("{choice:?}")).collect();
                match value.as_str() {
                    Some(text) if allowed.contains(&text) => None,
                    _ => Some(found(value, &quoted.join(", "))),
                }
            }
        }
    }
}

fn found(value: &Value, allowed: &str) -> String {
    format!("found {}; allowed: {allowed}", show(value))
}

/// A value for a message: short, and without what could be a password.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => {
            format!("{:?}", redact(text).chars().take(80).collect::<String>())
        }
        Value::Array(values) if values.iter().all(|value| value.is_array() || value.is_table()) => {
            "a list".into()
        }
        Value::Array(values) => format!("[{}]", values.iter().map(show).collect::<Vec<_>>().join(", ")),
        Value::Table(_) => "a table".into(),
        other => other.to_string(),
    }
}
