//! What was found, for a person and for a program.

use std::fmt;

use serde::Serialize;

use crate::feed::catalog::Problem;

/// How a precondition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// As it must be.
    #[serde(rename = "ok")]
    Good,
    /// Not wrong; somebody should know of it.
    Warning,
    /// Not as it must be.
    Failed,
    /// What it takes to look at it was not there.
    NotLookedAt,
}

impl Standing {
    const fn word(self) -> &'static str {
        match self {
            Standing::Good => "ok",
            Standing::Warning => "WARNING",
            Standing::Failed => "FAILED",
            Standing::NotLookedAt => "-",
        }
    }

    /// The ANSI colour of [`Standing::word`].
    const fn colour(self) -> &'static str {
        match self {
            Standing::Good => "32",
            Standing::Warning => "33",
            Standing::Failed => "31",
            Standing::NotLookedAt => "2",
        }
    }
}

/// What takes a [`Remedy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunIn {
    /// SQL.
    Psql,
    /// A command to Redis.
    RedisCli,
    /// A shell.
    Shell,
    /// A line of the settings, of this program or of a server.
    Settings,
}

/// What mends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// The text, as it is to be run or written.
    pub run: String,
    /// Where.
    pub run_in: RunIn,
}

/// One precondition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name: never changes.
    pub name: &'static str,
    /// The table, source, address or role that it is about, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// How it stands.
    pub standing: Standing,
    /// What was found.
    pub found: String,
    /// What follows from that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub means: Option<String>,
    /// What mends it.
    #[serde(flatten)]
    pub remedy: Option<Remedy>,
}

impl Row {
    fn new(name: &'static str, standing: Standing, found: impl Into<String>) -> Self {
        Self { name, on: None, standing, found: found.into(), means: None, remedy: None }
    }

    pub(super) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Standing::Good, found)
    }

    pub(super) fn warning(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Standing::Warning, found)
    }

    pub(super) fn failed(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Standing::Failed, found)
    }

    pub(super) fn not_looked_at(name: &'static str, why: &str) -> Self {
        Self::new(name, Standing::NotLookedAt, format!("not looked at: {why}"))
    }

    /// A problem of the catalog, in its own words.
    pub(super) fn problem(name: &'static str, problem: &Problem) -> Self {
        let row = Self::failed(name, problem.to_string());
        match problem.remedy() {
            Some(sql) => row.sql(sql),
            None => row,
        }
    }

    pub(super) fn on(self, on: impl Into<String>) -> Self {
        Self { on: Some(on.into()), ..self }
    }

    pub(super) fn means(self, means: impl Into<String>) -> Self {
        Self { means: Some(means.into()), ..self }
    }

    pub(super) fn sql(self, run: impl Into<String>) -> Self {
        self.remedy(run, RunIn::Psql)
    }

    pub(super) fn redis(self, run: impl Into<String>) -> Self {
        self.remedy(run, RunIn::RedisCli)
    }

    pub(super) fn shell(self, run: impl Into<String>) -> Self {
        self.remedy(run, RunIn::Shell)
    }

    pub(super) fn settings(self, run: impl Into<String>) -> Self {
        self.remedy(run, RunIn::Settings)
    }

    fn remedy(self, run: impl Into<String>, run_in: RunIn) -> Self {
        Self { remedy: Some(Remedy { run: run.into(), run_in }), ..self }
    }
}

/// Everything that was looked at.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// In the order in which it was looked at.
    pub rows: Vec<Row>,
}

/// As `--json` prints it.
#[derive(Serialize)]
struct Json<'a> {
    ok: usize,
    warning: usize,
    failed: usize,
    not_looked_at: usize,
    rows: &'a [Row],
}

impl Report {
    pub(super) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// What comes after something that failed.
    pub(super) fn not_looked_at(&mut self, names: &[&'static str], why: &str) {
        self.rows.extend(names.iter().map(|name| Row::not_looked_at(name, why)));
    }

    /// How many stand so.
    pub fn count(&self, standing: Standing) -> usize {
        self.rows.iter().filter(|row| row.standing == standing).count()
    }

    /// One JSON object.
    ///
    /// # Errors
    /// The serializer's.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(&Json {
            ok: self.count(Standing::Good),
            warning: self.count(Standing::Warning),
            failed: self.count(Standing::Failed),
            not_looked_at: self.count(Standing::NotLookedAt),
            rows: &self.rows,
        })
    }

    /// The table, and how many of each there are.
    pub fn text(&self, colour: bool) -> String {
        let rows: String = self.rows.iter().map(|row| row.text(colour)).collect();
        let count = |standing| self.count(standing);
        let (good, failed) = (count(Standing::Good), count(Standing::Failed));
        let (warnings, unseen) = (count(Standing::Warning), count(Standing::NotLookedAt));
        let plural = if warnings == 1 { "" } else { "s" };
        format!("{rows}\n{good} ok, {warnings} warning{plural}, {failed} failed, {unseen} not looked at\n")
    }
}

/// The width of the table.
const WIDTH: usize = 100;
/// The width of its first two columns.
const STANDING: usize = 8;
const NAME: usize = 28;

impl Row {
    /// Its lines of the table. What is to be run stays in one piece, however long: it is for copying.
    fn text(&self, colour: bool) -> String {
        let word = self.standing.word();
        let mut text = match colour {
            true => format!("\x1b[{}m{word:<STANDING$}\x1b[0m", self.standing.colour()),
            false => format!("{word:<STANDING$}"),
        };
        let name = match &self.on {
            Some(on) => format!("{} {on}", self.name),
            None => self.name.to_owned(),
        };
        text += &format!("{name:<NAME$}");
        // A name that leaves no room has a line of its own.
        if name.chars().count() >= NAME {
            text += &margin();
        }
        text += &wrap(&self.found);
        if let Some(means) = &self.means {
            text += &(margin() + &wrap(&format!("means: {means}")));
        }
        if let Some(Remedy { run, run_in }) = &self.remedy {
            let label = match run_in {
                RunIn::Psql | RunIn::Shell => "run",
                RunIn::RedisCli => "redis-cli",
                RunIn::Settings => "set",
            };
            // A table of the settings has lines.
            let run = run.replace('\n', &format!("{}{:2$}", margin(), "", label.len() + 2));
            text += &format!("{}{label}: {run}", margin());
        }
        text.push('\n');
        text
    }
}

/// A new line of the last column.
fn margin() -> String {
    format!("\n{:1$}", "", STANDING + NAME)
}

/// Cuts a text at blanks into lines of the last column.
fn wrap(text: &str) -> String {
    let room = WIDTH - STANDING - NAME;
    let (mut out, mut used) = (String::new(), 0);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > room {
            out += &margin();
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out += word;
        used += length;
    }
    out
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(false).trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let long = "word ".repeat(40);
        Report {
            rows: vec![
                Row::good("wal_level", "logical"),
                Row::warning("slot_wal", long.clone())
                    .means(long)
                    .sql("SELECT 1; -- in one piece, however long it may be, beyond any width"),
                Row::failed("source", "gone").on("a-replica-with-a-very-long-name").settings("x = 1"),
                Row::not_looked_at("publication", "Postgres cannot be reached"),
            ],
        }
    }

    #[test]
    fn the_table_is_of_100_columns_but_for_what_is_copied() {
        let text = report().text(false);
        let (runs, others): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.trim_start().starts_with("run: "));
        assert!(others.iter().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(runs.len(), 1);
        assert!(
            runs[0].ends_with("run: SELECT 1; -- in one piece, however long it may be, beyond any width")
        );
        let gone =
            format!("FAILED  source a-replica-with-a-very-long-name\n{:36}gone\n{:36}set: x = 1\n", "", "");
        assert!(text.contains(&gone), "{text}");
        assert!(
            text.contains(
                "\n-       publication                 not looked at: Postgres cannot be reached\n"
            )
        );
        assert!(text.ends_with("\n1 ok, 1 warning, 1 failed, 1 not looked at\n"), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(report().text(true).starts_with("\x1b[32mok      \x1b[0mwal_level"));
    }

    #[test]
    fn the_names_of_the_json_are_these() {
        let json: serde_json::Value =
            serde_json::from_str(&report().json().expect("JSON")).expect("JSON again");
        assert_eq!(json["ok"], 1);
        assert_eq!(json["warning"], 1);
        assert_eq!(json["failed"], 1);
        assert_eq!(json["not_looked_at"], 1);
        assert_eq!(
            json["rows"][0],
            serde_json::json!({"name": "wal_level", "standing": "ok", "found": "logical"})
        );
        assert_eq!(
            json["rows"][2],
            serde_json::json!({
                "name": "source", "on": "a-replica-with-a-very-long-name", "standing": "failed",
                "found": "gone", "run": "x = 1", "run_in": "settings",
            })
        );
        assert_eq!(json["rows"][1]["run_in"], "psql");
        assert_eq!(json["rows"][3]["standing"], "not_looked_at");
    }
}
