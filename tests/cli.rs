//! The command line as scripts see it: exit status, and what is on stderr.

use std::process::{Command, Output};

/// Runs the program in an empty directory, with these variables of its own.
fn cachefence(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachefence"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CACHEFENCE_"))
    {
        command.env_remove(name);
    }
    command.args(arguments).envs(variables.iter().copied()).current_dir(directory.path());
    command.output().expect("the program runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_settings_end_with_status_2_and_say_what_is_allowed() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "[postgres]\nurl = \"postgres://u@h/d\"\n[proxy]\nmode = \"off\"\n")
        .expect("written");
    let path = file.path().to_str().expect("a path");
    for command in ["run", "check", "init"] {
        let output = cachefence(&[command, "--config", path], &[]);
        assert_eq!(output.status.code(), Some(2));
        let expected =
            format!("cachefence: {path}:4: proxy.mode: found \"off\"; allowed: \"enforce\", \"observe\"\n");
        assert_eq!(stderr(&output), expected);
    }
    let by_variable = cachefence(&["run"], &[("CACHEFENCE_CONFIG", path)]);
    assert!(stderr(&by_variable).contains(":4: proxy.mode: "), "{}", stderr(&by_variable));
}

#[test]
fn every_mistake_has_its_own_line() {
    let output =
        cachefence(&["run"], &[("CACHEFENCE_REDIS_URL", "redis://h"), ("CACHEFENCE_REDIS__URL", "h")]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("CACHEFENCE_REDIS_URL: it names no setting; allowed here: "), "{text}");
    assert!(text.contains("postgres.url: it is missing"), "{text}");
    assert!(text.lines().all(|line| line.starts_with("cachefence: ")), "{text}");
}

#[test]
fn an_unknown_guard_or_filter_is_refused() {
    let url = ("CACHEFENCE_POSTGRES__URL", "postgres://u@h/d");
    let guard = [url, ("CACHEFENCE_GUARD__0__TABLE", "users"), ("CACHEFENCE_GUARD__0__KEYS", "user:<id>")];
    let output = cachefence(&["purge", "--guard", "orders"], &guard);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("\"public.orders\"") && stderr(&output).contains("public.users"));
    let output = cachefence(&["run"], &[url, ("CACHEFENCE_LOG", "cachefence=[")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("cachefence: CACHEFENCE_LOG: "), "{}", stderr(&output));
}

#[test]
fn a_proxy_that_does_not_run_is_not_healthy() {
    let variables =
        [("CACHEFENCE_POSTGRES__URL", "postgres://u@h/d"), ("CACHEFENCE_ADMIN__LISTEN", "127.0.0.1:1")];
    let output = cachefence(&["healthcheck"], &variables);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("127.0.0.1:1 does not answer"), "{}", stderr(&output));
    // Docker has no meaning for status 2, not even for wrong settings.
    assert_eq!(cachefence(&["healthcheck"], &[]).status.code(), Some(1));
}
