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

/// What stands on standard output of a command that succeeds without any settings.
fn printed(arguments: &[&str]) -> String {
    let output = cachefence(arguments, &[]);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn shells_complete_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("purge") && script.contains("print"), "{shell}: {script}");
    }
    // The shell itself says whether it would take it.
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("cachefence.bash");
    std::fs::write(&file, printed(&["completions", "bash"])).expect("written");
    let commands = "source \"$1\"; COMP_WORDS=(cachefence pu); COMP_CWORD=1; _cachefence cachefence pu cachefence; echo \"${COMPREPLY[*]}\"";
    let output = Command::new("bash").args(["-c", commands, "bash"]).arg(&file).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "purge", "{}", stderr(&output));
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let page = printed(&["man"]);
    for section in ["NAME", "SYNOPSIS", "OPTIONS", "SUBCOMMANDS", "EXIT STATUS", "ENVIRONMENT", "FILES"] {
        let head = [format!(".SH {section}\n"), format!(".SH \"{section}\"\n")];
        assert!(head.iter().any(|head| page.contains(head)), "{section}: {page}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    // It is made, as `install -D` would.
    let into = directory.path().join("share/man/man1");
    printed(&["man", "--into", into.to_str().expect("a path")]);
    let mut pages: Vec<_> = std::fs::read_dir(&into)
        .expect("made")
        .map(|page| page.expect("a page").file_name().into_string().expect("text"))
        .collect();
    pages.sort();
    let names = ["check", "completions", "demo", "init", "man", "purge", "run"];
    let mut expected: Vec<_> = names.map(|name| format!("cachefence-{name}.1")).to_vec();
    expected.push("cachefence.1".into());
    expected.sort();
    assert_eq!(pages, expected);
    let purge = std::fs::read_to_string(into.join("cachefence-purge.1")).expect("a page");
    assert!(purge.contains("cachefence\\-purge") && purge.contains("TABLE"), "{purge}");
}
