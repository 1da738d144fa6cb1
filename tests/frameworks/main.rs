//! The caches of frameworks, as docs/recipes.md has them: what they fill is guarded without a change of theirs.

#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use cachefence::demo::client::Reply;
use support::{Fallible, Outcome, Setup, World};

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frameworks").join(name)
}

/// A program that asks its framework's cache, and us when that has missed.
struct Application {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Application {
    fn start(mut command: Command) -> Fallible<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().ok_or("no pipe")?;
        let output = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        Ok(Self { child, input, output })
    }

    /// Says something, and returns what it answers.
    fn say(&mut self, line: &str) -> Fallible<String> {
        writeln!(self.input, "{line}")?;
        self.input.flush()?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn there(world: &World, key: &str) -> Fallible<bool> {
    Ok(world.redis(&["EXISTS", key]).await? == Reply::Int(1))
}

/// The framework's value is cached, a commit deletes it, and what was read before a commit is not put in after it.
async fn guarded(framework: &str, key: &str, command: impl FnOnce(&World) -> Command) -> Outcome {
    let template = key.replace("user:1", "user:<id>");
    let world =
        Setup::new(&format!("[[guard]]\ntable = \"users\"\nkeys = [\"{template}\"]\n")).start().await?;
    let mut application = Application::start(command(&world))?;
    assert_eq!(application.say("ask")?, "reading", "{framework}");
    assert_eq!(application.say("v1")?, "name v1");
    assert!(there(&world, key).await?, "{framework}: {key} is cached");
    assert_eq!(application.say("ask")?, "name v1", "{framework}: from the cache");
    assert_eq!(world.fills("fresh", "forwarded").await?, 1.0, "{framework}: its own miss proves it");

    world.rename(1, "v2").await?;
    world.gone(key).await?;
    world.level().await?;

    assert_eq!(application.say("ask")?, "reading", "{framework}");
    world.rename(1, "v3").await?;
    world.applied().await?;
    assert_eq!(application.say("v2")?, "name v2", "{framework}: it has what it has read");
    assert!(!there(&world, key).await?, "{framework}: and the cache has not");
    assert_eq!(world.fills("stale", "refused").await?, 1.0, "{framework}");
    println!("{framework}: {key}: cached, deleted, refused");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Django: make test-clients"]
async fn what_django_caches_is_guarded() -> Outcome {
    let dir = tempfile::tempdir()?;
    let packages = dir.path().to_owned();
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "django==5.2.*",
        "redis==8.*",
        "--target",
    ];
    let installed = Command::new("python3").args(pip).arg(&packages).status()?;
    assert!(installed.success(), "pip: {installed}");
    guarded("Django", ":1:user:1", |world| {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", packages).arg(source("with_django.py")).arg(world.proxy.redis_url());
        command
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Rails: make test-clients"]
async fn what_rails_caches_is_guarded() -> Outcome {
    guarded("Rails", "app:user:1", |world| {
        let mut command = Command::new("ruby");
        command.arg(source("with_rails.rb")).arg(world.proxy.redis_url());
        command
    })
    .await
}

/// What people copy is what is run.
#[test]
fn the_recipes_are_those_that_are_run() -> Outcome {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes.md"))?;
    for program in ["with_django.py", "with_rails.rb"] {
        let text = std::fs::read_to_string(source(program))?;
        let recipe = text
            .split_once("# recipe\n")
            .and_then(|(_, rest)| rest.split_once("# end"))
            .ok_or("no recipe")?
            .0;
        assert!(page.contains(recipe), "docs/recipes.md has not the recipe of {program}:\n{recipe}");
    }
    Ok(())
}
