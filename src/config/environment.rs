//! Settings from the environment: `CACHEFENCE_` and the path in upper case, levels joined by `__`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use toml::{Table, Value};

use super::schema::{Kind, Node, ROOT, join};

const PREFIX: &str = "CACHEFENCE_";

/// Variables with the prefix that are no settings: the file, the log filter and format, and where the demo and the
/// tests find the servers that they start.
const OTHERS: [&str; 5] = [
    "CACHEFENCE_CONFIG",
    "CACHEFENCE_LOG",
    "CACHEFENCE_LOG_FORMAT",
    "CACHEFENCE_PG_BIN",
    "CACHEFENCE_REDIS_SERVER",
];

/// A variable that sets nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrongVariable {
    pub name: String,
    /// The setting it is about, when it is about one.
    pub path: Option<String>,
    pub what: String,
}

/// The variable that sets the setting at `path`.
pub(super) fn variable(path: &str) -> String {
    let path = path.replace(['.', '['], "__").replace(']', "");
    format!("{PREFIX}{}", path.to_ascii_uppercase())
}

/// Puts the environment's settings over those of the file. Returns which variable set which path.
pub(super) fn overlay(
    settings: &mut Table,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    wrong: &mut Vec<WrongVariable>,
) -> BTreeMap<String, String> {
    let mut assignments = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)).map(str::to_owned) else {
            continue;
        };
        if OTHERS.contains(&name.as_str()) {
            continue;
        }
        let Ok(value) = value.into_string() else {
            wrong.push(WrongVariable { name, path: None, what: "its value is not UTF-8".into() });
            continue;
        };
        if is_service_link(&name[PREFIX.len()..], &value) {
            continue;
        }
        match resolve(&name) {
            Ok((steps, node)) => assignments.push((steps, node, name, value)),
            Err(refused) => wrong.push(refused),
        }
    }
    // Whole lists before their items, item 2 before item 10: the order of the environment means nothing.
    assignments.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let mut origins = BTreeMap::new();
    for (steps, node, name, value) in assignments {
        let path = path_of(&steps);
        let value = typed(node, &value);
        match assign(settings, &steps, value) {
            Ok(()) => drop(origins.insert(path, name)),
            Err(what) => wrong.push(WrongVariable { name, path: Some(path), what }),
        }
    }
    origins
}

/// Where a Service or a linked container is called cachefence, Kubernetes and Docker put variables of this prefix into
/// every container. They are told by forms that no setting has.
fn is_service_link(rest: &str, value: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let ported = |kind: &str| rest.starts_with(kind) || rest.contains(&format!("_{kind}"));
    !rest.contains("__")
        && (rest.ends_with("SERVICE_HOST")
            || ported("SERVICE_PORT")
            || (is_url && rest.ends_with("PORT"))
            || (ported("PORT_") && ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| rest.contains(protocol))))
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Name(&'static str),
    Item(usize),
}

fn path_of(steps: &[Step]) -> String {
    steps.iter().fold(String::new(), |path, step| match step {
        Step::Name(name) => join(&path, name),
        Step::Item(n) => format!("{path}[{n}]"),
    })
}

/// Finds the setting that a variable names.
fn resolve(name: &str) -> Result<(Vec<Step>, &'static Node), WrongVariable> {
    let no_setting = |reason: String| WrongVariable {
        name: name.to_owned(),
        path: None,
        what: format!("it names no setting; {reason}"),
    };
    let mut node = &ROOT;
    let mut steps = Vec::new();
    for part in name[PREFIX.len()..].split("__") {
        let path = path_of(&steps);
        match node {
            Node::Table { settings, .. } => {
                let known = settings.iter().find(|(name, _)| name.to_ascii_uppercase() == part);
                let Some((name, found)) = known else {
                    let names: Vec<_> =
                        settings.iter().map(|(name, _)| variable(&join(&path, name))).collect();
                    return Err(no_setting(format!("allowed here: {}", names.join(", "))));
                };
                steps.push(Step::Name(name));
                node = found;
            }
            Node::List(item) => {
                let first = variable(&format!("{path}[0]"));
                let n = part
                    .parse()
                    .map_err(|_| no_setting(format!("{path} is a list, numbered from {first}")))?;
                steps.push(Step::Item(n));
                node = item;
            }
            Node::Leaf(_) => return Err(no_setting(format!("{path} has no parts"))),
        }
    }
    Ok((steps, node))
}

/// The text as a TOML value where that is of the setting's type, else as it is.
fn typed(node: &Node, text: &str) -> Value {
    let value = text.parse::<Value>().ok();
    let value = value.filter(|value| match node {
        Node::Leaf(kind) => kind.fits(value),
        Node::Table { .. } => value.is_table(),
        Node::List(_) => value.is_array(),
    });
    value.unwrap_or_else(|| match node {
        // One text where a list is expected is a list of one.
        Node::Leaf(Kind::Texts) if !text.trim_start().starts_with('[') => {
            Value::Array(vec![Value::String(text.to_owned())])
        }
        _ => Value::String(text.to_owned()),
    })
}

fn assign(settings: &mut Table, steps: &[Step], value: Value) -> Result<(), String> {
    let [Step::Name(name), rest @ ..] = steps else { return Ok(()) };
    if rest.is_empty() {
        settings.insert((*name).to_owned(), value);
        return Ok(());
    }
    if let [Step::Item(n), rest @ ..] = rest {
        let list = settings.entry(*name).or_insert_with(|| Value::Array(Vec::new()));
        // Of another type: that is the file's mistake, and reported as such.
        let Value::Array(list) = list else { return Ok(()) };
        if *n > list.len() {
            return Err(format!("{name} has {} items, so the next is {name}[{}]", list.len(), list.len()));
        }
        if *n == list.len() {
            list.push(Value::Table(Table::new()));
        }
        if rest.is_empty() {
            list[*n] = value;
            return Ok(());
        }
        let Value::Table(item) = &mut list[*n] else { return Ok(()) };
        return assign(item, rest, value);
    }
    match settings.entry(*name).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => assign(inner, rest, value),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlaid(
        file: &str,
        variables: &[(&str, &str)],
    ) -> (Table, BTreeMap<String, String>, Vec<WrongVariable>) {
        let mut settings: Table = file.parse().expect("TOML");
        let mut wrong = Vec::new();
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let origins = overlay(&mut settings, variables, &mut wrong);
        (settings, origins, wrong)
    }

    #[test]
    fn variables_are_typed_by_their_setting() {
        let (settings, origins, wrong) = overlaid(
            "[proxy]\nmax_clients = 5",
            &[
                ("CACHEFENCE_PROXY__MAX_CLIENTS", "10_000"),
                ("CACHEFENCE_PROXY__LISTEN", "127.0.0.1:1"),
                ("CACHEFENCE_POSTGRES__SLOT", "true"),
                ("CACHEFENCE_POSTGRES__PUBLICATION", "'quoted'"),
                ("CACHEFENCE_POSTGRES__URL", "postgres://u:p=1@h/db\nx = 1"),
                ("OTHER", "x"),
            ],
        );
        assert_eq!(wrong, []);
        let expected = "proxy = { max_clients = 10000, listen = ['127.0.0.1:1'] }\n\
                        postgres = { slot = 'true', publication = 'quoted', url = \"postgres://u:p=1@h/db\\nx = 1\" }";
        assert_eq!(settings, expected.parse::<Table>().expect("TOML"));
        assert_eq!(origins.get("proxy.listen").map(String::as_str), Some("CACHEFENCE_PROXY__LISTEN"));
    }

    #[test]
    fn lists_of_tables_are_numbered() {
        let (settings, _, wrong) = overlaid(
            "[[guard]]\ntable = 'a'",
            &[
                ("CACHEFENCE_GUARD__1__TABLE", "b"),
                ("CACHEFENCE_GUARD__1__KEYS", "['b:<id>', 'c']"),
                ("CACHEFENCE_GUARD__0__WHEN_FEED_LOST", "{ reads = 'miss' }"),
                ("CACHEFENCE_GUARD__0__WHEN_FEED_LOST__FILLS", "refuse"),
                ("CACHEFENCE_SOURCE", "[{ name = 'primary' }]"),
            ],
        );
        assert_eq!(wrong, []);
        let expected = "[[guard]]\ntable = 'a'\nwhen_feed_lost = { reads = 'miss', fills = 'refuse' }\n\
                        [[guard]]\ntable = 'b'\nkeys = ['b:<id>', 'c']\n[[source]]\nname = 'primary'";
        assert_eq!(settings, expected.parse::<Table>().expect("TOML"));
    }

    #[test]
    fn ten_comes_after_two() {
        let names: Vec<String> = (0..12).rev().map(|n| format!("CACHEFENCE_SOURCE__{n}__NAME")).collect();
        let variables: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
        let (settings, _, wrong) = overlaid("", &variables);
        assert_eq!(wrong, []);
        assert_eq!(settings["source"].as_array().map(Vec::len), Some(12));
    }

    #[test]
    fn what_names_no_setting_is_refused() {
        let what = |name: &str| {
            let (_, _, wrong) = overlaid("", &[(name, "x")]);
            wrong.first().map(|wrong| wrong.what.clone()).unwrap_or_default()
        };
        assert!(
            what("CACHEFENCE_REDIS_URL").starts_with("it names no setting; allowed here: CACHEFENCE_PROXY,")
        );
        assert!(
            what("CACHEFENCE_REDIS__URI").ends_with(
                "CACHEFENCE_REDIS__UPSTREAM, CACHEFENCE_REDIS__REPLY_TIMEOUT, CACHEFENCE_REDIS__TLS"
            )
        );
        assert!(what("CACHEFENCE_GUARD__X__TABLE").contains("CACHEFENCE_GUARD__0"));
        assert!(what("CACHEFENCE_REDIS__URL__X").contains("redis.url has no parts"));
        assert!(what("CACHEFENCE_GUARD__2__TABLE").contains("the next is guard[0]"));
        assert!(what("CACHEFENCE_PROXY__TLS__CA").ends_with("CACHEFENCE_PROXY__TLS__CLIENT_CA"));
    }

    #[test]
    fn service_links_are_not_settings() {
        let (settings, _, wrong) = overlaid(
            "",
            &[
                ("CACHEFENCE_LOG", "debug"),
                ("CACHEFENCE_SERVICE_HOST", "10.0.0.1"),
                ("CACHEFENCE_SERVICE_PORT", "6380"),
                ("CACHEFENCE_SERVICE_PORT_METRICS", "9187"),
                ("CACHEFENCE_PORT", "tcp://10.0.0.1:6380"),
                ("CACHEFENCE_PORT_6380_TCP", "tcp://10.0.0.1:6380"),
                ("CACHEFENCE_PORT_6380_TCP_ADDR", "10.0.0.1"),
                ("CACHEFENCE_DEMO_SERVICE_HOST", "10.0.0.1"),
                ("CACHEFENCE_DEMO_PORT", "tcp://10.0.0.1:6380"),
            ],
        );
        assert_eq!((settings.len(), wrong), (0, vec![]));
        assert_eq!(overlaid("", &[("CACHEFENCE_REDIS_PORT", "6379")]).2.len(), 1);
    }
}
