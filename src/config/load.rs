//! From the file and the environment to checked settings, or to messages that say where the mistake is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use thiserror::Error;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::environment::{self, variable};
use super::schema::{ROOT, Wrong};
use super::{Config, check, slot, strict};

const DEFAULT_FILE: &str = "cachefence.toml";

/// Why there are no usable settings. The process ends with status 2.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file that was asked for cannot be read.
    #[error(
        "{}: cannot be read: {source}; name a readable file with --config or CACHEFENCE_CONFIG",
        file.display()
    )]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not TOML: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Where the parser stopped, from 1.
        line: usize,
        /// What it stumbled over.
        message: String,
    },
    /// Settings that are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Settings(Vec<Problem>),
}

/// One wrong setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was set.
    pub place: Place,
    /// Its path: `guard[0].keys[1]`. Empty for a variable that names no setting.
    pub setting: String,
    /// What was found, and what is allowed.
    pub what: String,
}

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, from 1.
    Line(PathBuf, usize),
    /// The file as a whole.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// Nowhere: there is no file.
    Nowhere,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Line(file, line) => write!(f, "{}:{line}: ", file.display())?,
            Place::File(file) => write!(f, "{}: ", file.display())?,
            Place::Variable(name) => write!(f, "{name}: ")?,
            Place::Nowhere => write!(f, "no {DEFAULT_FILE} here, and no other file named: ")?,
        }
        if !self.setting.is_empty() {
            write!(f, "{}: ", self.setting)?;
        }
        f.write_str(&self.what)
    }
}

impl Config {
    /// Reads the settings: `path`, else `$CACHEFENCE_CONFIG`, else `cachefence.toml` in the working directory if there
    /// is one, and over them the environment.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with(path, std::env::vars_os())
    }

    /// [`load`](Self::load) with these variables for an environment.
    pub fn load_with(
        path: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let variables: Vec<_> = variables.into_iter().collect();
        let named = path.map(Path::to_owned).or_else(|| {
            let variable = variables.iter().find(|(name, _)| name == "CACHEFENCE_CONFIG");
            variable.map(|(_, file)| PathBuf::from(file)).filter(|file| !file.as_os_str().is_empty())
        });
        let must_exist = named.is_some();
        let file = named.unwrap_or_else(|| DEFAULT_FILE.into());
        match fs::read_to_string(&file) {
            Ok(text) => Self::parse(Some(&file), &text, variables),
            // Everything can come from the environment.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {
                Self::parse(None, "", variables)
            }
            Err(source) => Err(ConfigError::Read { file, source }),
        }
    }

    /// Settings from a text, `file` being its name in messages, and over them `variables`.
    pub fn parse(
        file: Option<&Path>,
        text: &str,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut settings: Table = text.parse().map_err(|error| syntax(file, text, &error))?;
        let mut wrong_variables = Vec::new();
        let origins = environment::overlay(&mut settings, variables, &mut wrong_variables);
        let origin = Origin { file, text, variables: origins };

        let mut problems: Vec<Problem> = wrong_variables
            .into_iter()
            .map(|wrong| Problem {
                place: Place::Variable(wrong.name),
                setting: wrong.path.unwrap_or_default(),
                what: wrong.what,
            })
            .collect();
        let mut wrong = Vec::new();
        let mut settings = Value::Table(settings);
        ROOT.check("", &settings, &mut wrong);
        if wrong.is_empty() {
            slot::apply(&mut settings);
            wrong = strict::apply(&mut settings);
        }
        problems.extend(wrong.into_iter().map(|wrong| origin.problem(wrong)));
        if !problems.is_empty() {
            return Err(wrong_settings(problems));
        }

        // What the tree of settings lets through has the right shape: an error here is one of ours.
        let config: Config = settings.try_into().map_err(|error: toml::de::Error| {
            ConfigError::Settings(vec![origin.problem(Wrong::new("", error.message()))])
        })?;
        let problems: Vec<Problem> = check::check(&config).into_iter().map(|w| origin.problem(w)).collect();
        if problems.is_empty() { Ok(config) } else { Err(wrong_settings(problems)) }
    }
}

fn wrong_settings(mut problems: Vec<Problem>) -> ConfigError {
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    ConfigError::Settings(problems)
}

fn syntax(file: Option<&Path>, text: &str, error: &toml::de::Error) -> ConfigError {
    ConfigError::Syntax {
        file: file.unwrap_or(Path::new(DEFAULT_FILE)).to_owned(),
        line: error.span().map_or(1, |span| line(text, span.start)),
        // Not its Display, which quotes the line: that may be the one with the password.
        message: error.message().replace('\n', "; "),
    }
}

fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// Where the settings came from.
struct Origin<'a> {
    file: Option<&'a Path>,
    text: &'a str,
    /// Path to variable.
    variables: BTreeMap<String, String>,
}

impl Origin<'_> {
    fn problem(&self, wrong: Wrong) -> Problem {
        let place = self.place(&wrong.path);
        let what = match &place {
            // Without a line to look at, both ways to set it are worth a word.
            Place::File(_) | Place::Nowhere if !wrong.path.is_empty() => {
                format!("{}; set it in the file or by {}", wrong.what, variable(&wrong.path))
            }
            _ => wrong.what,
        };
        Problem { place, setting: wrong.path, what }
    }

    fn place(&self, path: &str) -> Place {
        // The variable may have set this setting, or a list or table around it.
        let around = |outer: &str| {
            path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        if let Some((_, variable)) = self.variables.iter().rev().find(|(outer, _)| around(outer)) {
            return Place::Variable(variable.clone());
        }
        let Some(file) = self.file else { return Place::Nowhere };
        match locate(self.text, path) {
            Some(at) => Place::Line(file.to_owned(), line(self.text, at)),
            None => Place::File(file.to_owned()),
        }
    }
}

/// Where in the text the setting at `path` stands; the table it should be in where it is missing.
fn locate(text: &str, path: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut table: Option<&DeTable<'_>> = Some(root.get_ref());
    let mut at = None;
    for part in path.split('.') {
        let (name, items) = part.split_once('[').map_or((part, ""), |(name, items)| (name, items));
        let Some((key, mut value)) = table.and_then(|table| table.get_key_value(name)) else { break };
        at = Some(key.span().start);
        for item in items.split(['[', ']']).filter_map(|item| item.parse::<usize>().ok()) {
            let Some(inner) = value.get_ref().get(item) else { break };
            value = inner;
            at = Some(start_of(value));
        }
        table = value.get_ref().as_table();
    }
    at
}

fn start_of(value: &Spanned<DeValue<'_>>) -> usize {
    value.span().start
}
