//! Settings as people write them, right and wrong.

use std::ffi::OsString;
use std::path::Path;

use super::*;

const MINIMAL: &str = "[postgres]\nurl = \"postgres://cachefence@127.0.0.1:5432/app\"\n";

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::parse(Some(Path::new("c.toml")), text, variables)
}

/// The messages for `text` after a minimal file of two lines.
fn errors(text: &str) -> String {
    parse(&format!("{MINIMAL}{text}"), &[]).expect_err("an error").to_string()
}

#[test]
fn a_minimal_file_has_the_defaults() {
    let config = parse(MINIMAL, &[]).expect("settings");
    assert_eq!(config.proxy, Proxy::default());
    assert_eq!(config.redis, Redis::default());
    assert_eq!(config.fence, Fence::default());
    assert_eq!(config.admin, Admin::default());
    assert_eq!((config.sources, config.guards), (vec![], vec![]));
    assert_eq!(config.postgres.max_lag, Duration::from_secs(10));
}

#[test]
fn the_environment_goes_over_the_file() {
    let config = parse(
        MINIMAL,
        &[
            ("CACHEFENCE_POSTGRES__URL", "postgres://me@db/x"),
            ("CACHEFENCE_GUARD__0__TABLE", "users"),
            ("CACHEFENCE_GUARD__0__KEYS", "[\"user:<id>\"]"),
            ("CACHEFENCE_FENCE__HISTORY", "5m"),
            ("CACHEFENCE_PROXY__MODE", "observe"),
        ],
    )
    .expect("settings");
    assert_eq!(config.postgres.url, "postgres://me@db/x");
    assert_eq!(config.guards[0].keys, ["user:<id>"]);
    assert_eq!(config.fence.history, Duration::from_secs(300));
    assert_eq!(config.proxy.mode, Mode::Observe);
    let alone = Config::parse(None, "", [("CACHEFENCE_POSTGRES__URL".into(), "postgres://me@db/x".into())]);
    assert!(alone.is_ok(), "{alone:?}");
}

#[test]
fn a_wrong_setting_is_named_with_its_place_and_what_is_allowed() {
    assert_eq!(
        errors("[proxy]\nmode = \"monitor\""),
        "c.toml:4: proxy.mode: found \"monitor\"; allowed: \"enforce\", \"observe\""
    );
    assert_eq!(
        errors("[fence]\nmax_keys = 0\nhistroy = \"1s\""),
        "c.toml:4: fence.max_keys: found 0; allowed: a whole number from 1 to 1099511627776\n\
         c.toml:5: fence.histroy: no such setting; allowed here: history, lease_ttl, drain_timeout, max_keys, \
         poll_interval"
    );
    assert!(
        errors("[fence]\npoll_interval = \"2s\"").starts_with("c.toml:4: fence.poll_interval: found \"2s\";")
    );
    assert!(errors("[fence]\nhistory = \"0s\"").contains("from 1ms"));
    assert!(errors("[fence]\nhistory = \"2s\"").contains("at least fence.lease_ttl, which is 5s"));
    assert!(errors("[proxy]\nlisten = []").contains("c.toml:4: proxy.listen: found an empty list"));
    assert!(
        errors("[proxy]\nlisten = [\n\"a:1\",\n\"b\"]").starts_with("c.toml:6: proxy.listen[1]: found \"b\"")
    );
    assert!(errors("[[source]]\nurl = \"postgres://h\"").contains("c.toml:3: source[0].name: it is missing"));
    assert!(
        errors("[[source]]\nname = \"a\"\n[[source]]\nname = \"b\"").contains("c.toml:5: source[1].url: ")
    );
    assert!(
        errors("[redis]\nurl = \"http://h\"").contains("c.toml:4: redis.url: found \"http://h\"; allowed")
    );
}

#[test]
fn transport_settings() {
    let config = parse(
        &format!("{MINIMAL}[proxy]\ntls = {{ cert = \"c\", key = \"k\" }}\n[redis]\nurl = \"rediss://h\""),
        &[
            ("CACHEFENCE_PROXY__TLS__CERT", "/c"),
            ("CACHEFENCE_PROXY__TLS__CLIENT_CA", "/ca"),
            ("CACHEFENCE_PROXY__TCP_KEEPALIVE", "0s"),
            ("CACHEFENCE_PROXY__PROXY_PROTOCOL", "true"),
            ("CACHEFENCE_PROXY__UNIX_SOCKET_MODE", "0770"),
            ("CACHEFENCE_REDIS__TLS__SERVER_NAME", "cache"),
        ],
    )
    .expect("settings");
    let tls = ProxyTls { cert: "/c".into(), key: "k".into(), client_ca: Some("/ca".into()) };
    assert_eq!(config.proxy.tls, Some(tls));
    assert_eq!((config.proxy.tcp_keepalive, config.proxy.proxy_protocol), (Duration::ZERO, true));
    assert_eq!(config.proxy.unix_socket_mode.as_deref(), Some("0770"));
    let tls = RedisTls { server_name: Some("cache".into()), ..RedisTls::default() };
    assert_eq!(config.redis.tls, Some(tls));
}

#[test]
fn transport_settings_that_are_wrong() {
    assert_eq!(
        errors("[proxy]\ntls = { cert = \"c\" }"),
        "c.toml:4: proxy.tls.key: it is missing, and has no default"
    );
    assert!(errors("[proxy]\nproxy_protocol = \"yes\"").ends_with("found \"yes\"; allowed: true, false"));
    assert!(errors("[proxy]\ntcp_keepalive = \"10h\"").ends_with("from 0ms to 9h"));
    assert!(
        errors("[proxy]\nunix_socket_mode = \"rwx\"")
            .starts_with("c.toml:4: proxy.unix_socket_mode: found \"rwx\"; allowed: permissions in octal")
    );
    assert!(
        errors("[redis]\ntls = { ca = \"c\" }").starts_with("c.toml:4: redis.tls: redis.url is without TLS")
    );
    let half = errors("[redis]\nurl = \"rediss://h\"\n[redis.tls]\ncert = \"c\"");
    assert!(half.starts_with("c.toml:5: redis.tls.key: it is missing: a certificate and its key"), "{half}");
}

#[test]
fn guards_are_checked() {
    let guard = |rest: &str| errors(&format!("[[guard]]\ntable = \"users\"\n{rest}"));
    assert!(guard("").contains("c.toml:3: guard[0].keys: it is missing"));
    assert!(guard("keys = [\"user:<id\"]").contains("c.toml:5: guard[0].keys[0]: found \"user:<id\": "));
    assert!(guard("keys = [\"cachefence:<id>\"]").contains("c.toml:5: guard[0].keys[0]: it covers"));
    let twice = guard("keys = [\"a\"]\n[[guard]]\ntable = \"public.users\"\nkeys = [\"b\"]");
    assert!(twice.starts_with("c.toml:7: guard[1].table: guard[0] is of public.users already"), "{twice}");
    let lost = guard("keys = [\"a\"]\nwhen_feed_lost = { reads = \"skip\" }");
    assert!(lost.starts_with("c.toml:6: guard[0].when_feed_lost.reads: found \"skip\"; allowed"), "{lost}");
}

#[test]
fn a_version_is_in_one_place() {
    let text =
        |version: &str| format!("[[guard]]\ntable = \"users\"\nkeys = [\"user:<id>\"]\nversion = {version}");
    for good in ["json = \"/a/0\"", "json = \"\"", "raw = true", "field = \"v\""] {
        let config = parse(&format!("{MINIMAL}{}", text(&format!("{{ column = \"v\", {good} }}"))), &[]);
        assert!(config.is_ok(), "{config:?}");
    }
    let allowed = "allowed: a column, and one of json = \"/pointer\", raw = true, field = \"name\"";
    for bad in ["", ", raw = false", ", raw = true, field = \"v\"", ", json = \"/v\", raw = false"] {
        let error = errors(&text(&format!("{{ column = \"v\"{bad} }}")));
        assert_eq!(error, format!("c.toml:6: guard[0].version: {allowed}"), "{bad}");
    }
    let pointer = errors(&text("{ column = \"v\", json = \"v\" }"));
    assert!(pointer.starts_with("c.toml:6: guard[0].version.json: found \"v\"; allowed: a JSON pointer"));
    assert!(errors(&text("{ raw = true }")).contains("guard[0].version.column: it is missing"));
    assert!(
        errors(&text("{ column = \"v\", path = \"/v\" }"))
            .contains("no such setting; allowed here: column, json")
    );
    assert!(errors(&text("\"v\"")).contains("found \"v\"; allowed: a table"));
    let config = parse(
        &format!("{MINIMAL}{}", text("{ column = \"v\" }")),
        &[("CACHEFENCE_GUARD__0__VERSION__RAW", "true")],
    );
    assert_eq!(
        config.expect("settings").guards[0].version.as_ref().and_then(|version| version.raw),
        Some(true)
    );
}

#[test]
fn urls_of_postgres_are_read_at_once() {
    let with = |query: &str| parse(&MINIMAL.replace("app", &format!("app?{query}")), &[]);
    assert!(with("sslmode=verify-full&sslrootcert=/ca.pem").is_ok());
    let error = |query: &str| with(query).expect_err(query).to_string();
    assert!(
        error("sslmode=on")
            .contains("postgres.url: found \"postgres://cachefence@127.0.0.1:5432/app?sslmode=on\"")
    );
    assert!(error("sslmode=on").contains("sslmode: allowed: disable, allow, prefer, require"));
    assert!(error("sslmod=require").contains("sslmod: there is no such parameter"));
    assert!(error("target_session_attrs=standby").contains("the feed needs the primary"));
    let file = "password_file = \"/run/secrets/postgres\"\n";
    let settings = parse(&format!("{MINIMAL}{file}"), &[]).expect("settings");
    assert_eq!(settings.postgres.password_file.as_deref(), Some(Path::new("/run/secrets/postgres")));
    let two = parse(&format!("{}{file}", MINIMAL.replace("cachefence@", "cachefence:secret@")), &[]);
    let two = two.expect_err("two").to_string();
    assert!(two.contains("password_file names another") && !two.contains("secret@"), "{two}");
    let stray = parse(&format!("{MINIMAL}[[source]]\nname = \"primary\"\n{file}"), &[]).expect_err("stray");
    assert!(stray.to_string().contains("source[0].password_file: it is for the source's url"), "{stray}");
}

/// What a guard leaves out is as strict wants it; what it says otherwise is refused, with what to write.
#[test]
fn strict_has_defaults_of_its_own_and_refuses_what_cannot_keep_it() {
    let guard = "[[guard]]\ntable = \"users\"\nkeys = [\"user:<id>\"]\n";
    let strict = |rest: &str, variables: &[(&str, &str)]| {
        parse(&format!("{MINIMAL}contract = \"strict\"\n{guard}{rest}"), variables)
    };
    let config = strict("", &[]).expect("settings");
    assert_eq!(config.postgres.contract, Contract::Strict);
    let lost = WhenFeedLost { reads: LostReads::Miss, fills: LostFills::Refuse, ..WhenFeedLost::default() };
    assert_eq!((config.guards[0].unproven, config.guards[0].when_feed_lost), (Unproven::Refuse, lost));
    let config = strict("when_feed_lost = { fills_ttl = \"2s\" }\nlease = \"off\"", &[]).expect("settings");
    let lost = WhenFeedLost { fills_ttl: Duration::from_secs(2), ..lost };
    assert_eq!((config.guards[0].lease, config.guards[0].when_feed_lost), (Lease::Off, lost));

    for (rest, path, instead) in [
        ("unproven = \"cap\"", "unproven", "\"refuse\""),
        ("unproven = \"allow\"", "unproven", "\"refuse\""),
        ("on_stale = \"cap\"", "on_stale", "\"refuse\" or \"delete\""),
        ("lease = \"key\"", "lease", "\"connection\" or \"off\""),
        ("when_feed_lost = { reads = \"serve\" }", "when_feed_lost.reads", "\"miss\""),
        ("when_feed_lost = { fills = \"cap\" }", "when_feed_lost.fills", "\"refuse\""),
    ] {
        let error = strict(rest, &[]).expect_err(rest).to_string();
        assert!(error.starts_with(&format!("c.toml:7: guard[0].{path}: found ")), "{error}");
        assert!(
            error.contains(&format!("write {instead}, or set postgres.contract = \"bounded\"")),
            "{error}"
        );
        let bounded = parse(&format!("{MINIMAL}{guard}{rest}"), &[]);
        assert!(bounded.is_ok(), "{bounded:?}");
    }
    let by_variable = strict("", &[("CACHEFENCE_GUARD__0__LEASE", "key")]).expect_err("an error").to_string();
    assert!(by_variable.starts_with("CACHEFENCE_GUARD__0__LEASE: guard[0].lease: found"), "{by_variable}");
}

/// The fields that a shape has, from serde's own refusal of another.
fn fields<T: serde::de::DeserializeOwned>() -> Vec<String> {
    let error = toml::from_str::<T>("unknown = 1").err().map(|e| e.message().to_owned()).unwrap_or_default();
    let (_, names) = error.split_once("expected").unwrap_or_default();
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The supported settings that the schema has at a path of tables.
fn known(path: &[&str]) -> Vec<String> {
    use super::schema::{Node, ROOT};
    let settings = |node: &'static Node| match node {
        Node::Table { settings, .. } | Node::List(Node::Table { settings, .. }) => *settings,
        _ => panic!("{path:?} is no table"),
    };
    let found = path.iter().fold(settings(&ROOT), |inner, name| {
        settings(&inner.iter().find(|(known, _)| known == name).expect("a setting").1)
    });
    found.iter().map(|(name, _)| (*name).to_owned()).collect()
}

#[test]
fn shapes_and_schema_name_the_same_settings() {
    assert_eq!(fields::<Config>(), known(&[]));
    assert_eq!(fields::<Proxy>(), known(&["proxy"]));
    assert_eq!(fields::<ProxyTls>(), known(&["proxy", "tls"]));
    assert_eq!(fields::<Redis>(), known(&["redis"]));
    assert_eq!(fields::<RedisTls>(), known(&["redis", "tls"]));
    assert_eq!(fields::<Postgres>(), known(&["postgres"]));
    assert_eq!(fields::<Source>(), known(&["source"]));
    assert_eq!(fields::<super::Fence>(), known(&["fence"]));
    assert_eq!(fields::<super::Guard>(), known(&["guard"]));
    assert_eq!(fields::<WhenFeedLost>(), known(&["guard", "when_feed_lost"]));
    assert_eq!(fields::<Admin>(), known(&["admin"]));
}

#[test]
fn a_variable_is_named_as_the_place() {
    let error = |variables: &[(&str, &str)]| parse(MINIMAL, variables).expect_err("an error").to_string();
    assert_eq!(
        error(&[("CACHEFENCE_PROXY__MODE", "x")]),
        "CACHEFENCE_PROXY__MODE: proxy.mode: found \"x\"; allowed: \"enforce\", \"observe\""
    );
    let list = error(&[("CACHEFENCE_PROXY__LISTEN", "[\"a:1\", \"b\"]")]);
    assert!(list.starts_with("CACHEFENCE_PROXY__LISTEN: proxy.listen[1]: found \"b\""), "{list}");
    assert!(error(&[("CACHEFENCE_REDIS_URL", "x")]).starts_with("CACHEFENCE_REDIS_URL: it names no setting"));
    let missing = Config::parse(None, "", []).expect_err("an error").to_string();
    assert!(missing.contains("postgres.url: it is missing"), "{missing}");
    assert!(missing.ends_with("set it in the file or by CACHEFENCE_POSTGRES__URL"), "{missing}");
}

#[test]
fn files_that_are_none() {
    let error = |text| parse(text, &[]).expect_err("an error").to_string();
    assert!(error("[proxy]\nx = = 1").starts_with("c.toml:2: not TOML: "));
    let secret = error("[postgres]\nurl = \"postgres://u:secret@h/d\" x");
    assert!(secret.starts_with("c.toml:2: not TOML: ") && !secret.contains("secret"), "{secret}");
    assert!(error("[postgres]\nurl = \"u:secret@h\"").contains("found \"***@h\""));
    assert!(error("guard = 1").contains("c.toml:1: guard: found 1; allowed: a list of tables"));
    let absent = Config::load_with(Some(Path::new("/nonexistent/c.toml")), []).expect_err("an error");
    assert!(absent.to_string().starts_with("/nonexistent/c.toml: cannot be read: "), "{absent}");
    let by_variable = Config::load_with(None, [("CACHEFENCE_CONFIG".into(), "/nonexistent/d.toml".into())])
        .expect_err("an error");
    assert!(by_variable.to_string().starts_with("/nonexistent/d.toml"), "{by_variable}");
}

#[test]
fn no_password_is_printed() {
    let text = "[postgres]\nurl = \"postgres://u:secret@h/d\"\n[redis]\nurl = \"redis://:secret@h\"\n\
                [[source]]\nname = \"r\"\nurl = \"postgres://u:secret@r/d\"";
    let printed = format!("{:#?}", parse(text, &[]).expect("settings"));
    assert!(!printed.contains("secret") && printed.contains("postgres://u:***@h/d"), "{printed}");
}

/// The annotated file that comes with the project.
static ANNOTATED: &str = include_str!("../../config/cachefence.toml");

/// The text with the settings in that are commented out: no blank follows their `#`.
fn with_defaults_in(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => setting.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_annotated_file_is_right_about_the_defaults() {
    let as_it_is = parse(ANNOTATED, &[]).expect("settings");
    let with_defaults = parse(&with_defaults_in(ANNOTATED), &[]).expect("settings");
    assert_eq!(as_it_is, with_defaults);
}

#[test]
fn the_annotated_file_names_every_setting() {
    use super::schema::{Node, ROOT};
    fn compare(path: &str, node: &Node, value: Option<&toml::Value>) {
        match node {
            // What cannot have a default shows up as an example in a comment.
            Node::Leaf(_) if value.is_none() => {
                let name = path.rsplit('.').next().unwrap_or(path);
                let example = |line: &str| line.starts_with("#   ") && line.contains(&format!("{name} = "));
                assert!(ANNOTATED.lines().any(example), "{path} is not in the annotated file");
            }
            Node::Leaf(_) => {}
            Node::List(item) => compare(path, item, value.and_then(|list| list.get(0))),
            Node::Table { settings, .. } => {
                for (name, node) in *settings {
                    compare(&super::schema::join(path, name), node, value.and_then(|table| table.get(name)));
                }
            }
        }
    }
    let all: toml::Table = with_defaults_in(ANNOTATED).parse().expect("TOML");
    compare("", &ROOT, Some(&toml::Value::Table(all)));
}

#[test]
fn a_temporary_slot_is_called_after_the_host_and_is_not_for_strict() {
    let postgres = |more: &str| parse(&format!("{MINIMAL}{more}"), &[]).expect("settings").postgres;
    assert_eq!(postgres("").slot, "cachefence");
    assert!(!postgres("").temporary_slot && postgres("").failover_slot);
    assert!(postgres("").streaming && !postgres("streaming = false").streaming);
    let slot = postgres("temporary_slot = true").slot;
    assert!(slot.len() > "cachefence_".len() && slot.starts_with("cachefence_"), "{slot}");
    assert_eq!(postgres("temporary_slot = true\nslot = \"mine\"").slot, "mine");
    let wrong = errors("temporary_slot = true\ncontract = \"strict\"");
    assert!(wrong.starts_with("c.toml:3: postgres.temporary_slot: found true"), "{wrong}");
}
