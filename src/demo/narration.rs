//! Prints: two timelines next to each other, a summary, the proxy's counters.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::onlooker::Sighting;
use super::play::Tone;
use super::scenarios::Scenario;
use super::{Between, DemoOutcome, Played};

/// Columns of a terminal that everything fits into.
const WIDTH: usize = 110;
/// The column of the steps.
const STEP: usize = 39;
/// Each application's column: its clock, then what was seen.
const CLOCK: usize = 7;
const CELL: usize = 26;

/// The counters worth showing, in this order.
const COUNTERS: [&str; 7] = [
    "cachefence_fills_total",
    "cachefence_reads_total",
    "cachefence_writes_total",
    "cachefence_invalidated_keys_total",
    "cachefence_invalidation_seconds_sum",
    "cachefence_invalidation_seconds_count",
    "cachefence_purges_total",
];

/// Writes to the terminal, or to whatever standard output is.
pub(super) struct Narrator {
    colour: bool,
    /// The title of the second application's column.
    second: &'static str,
}

impl Narrator {
    /// In colour only where somebody looks who wants that.
    pub(super) fn for_stdout(between: &Between) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let second = match between {
            Between::Proxy(_) => "through cachefence",
            Between::Nothing => "straight as well",
        };
        Self { colour: std::io::stdout().is_terminal() && !unwanted, second }
    }

    /// Writes one or several lines. A reader that went away, such as `head`, is no reason to stop the play.
    pub(super) fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    pub(super) fn heading(&self, number: usize, scenario: Scenario) {
        self.line(&format!("\n{number}. {}: {}", scenario.name, scenario.story));
    }

    pub(super) fn timelines(&self, direct: &Played, through: &Played) {
        for line in self.timeline_lines(direct, through) {
            self.line(&line);
        }
    }

    fn timeline_lines(&self, direct: &Played, through: &Played) -> Vec<String> {
        let rule = "-".repeat(WIDTH);
        let step = format!("step (on user:{} and user:{})", direct.id, through.id);
        let [left, right] =
            ["straight to Redis", self.second].map(|title| format!("{:>CLOCK$}  {title}", "ms"));
        let mut lines = vec![rule.clone(), format!("{step:STEP$}{left:<36}{right}"), rule.clone()];
        // Both played the same script: the steps are the same.
        for (left, right) in direct.steps.iter().zip(&through.steps) {
            let cells = [(millis(left.at), &left.saw, left.tone), (millis(right.at), &right.saw, right.tone)];
            lines.extend(self.row(&left.what, cells));
        }
        let [left, right] =
            [&direct.sighting, &through.sighting].map(|sighting| (lived(sighting), tone(sighting)));
        lines.push(rule);
        let cells = [(String::new(), &left.0, left.1), (String::new(), &right.0, right.1)];
        lines.extend(self.row("how long a wrong value lived in the cache", cells));
        lines
    }

    /// A row of three columns, as many lines as its longest cell needs.
    fn row(&self, what: &str, cells: [(String, &String, Tone); 2]) -> Vec<String> {
        let step = wrap(what, STEP - 2);
        let [left, right] = cells.map(|(clock, text, tone)| (clock, wrap(text, CELL), tone));
        let height = step.len().max(left.1.len()).max(right.1.len());
        (0..height)
            .map(|line| {
                let part = |lines: &[String]| lines.get(line).cloned().unwrap_or_default();
                let cell = |(clock, lines, tone): &(String, Vec<String>, Tone)| {
                    let clock = if line == 0 { clock.as_str() } else { "" };
                    format!("{clock:>CLOCK$}  {}", self.paint(&format!("{:<27}", part(lines)), *tone))
                };
                format!("{:STEP$}{}{}", part(&step), cell(&left), cell(&right)).trim_end().to_owned()
            })
            .collect()
    }

    pub(super) fn summary(&self, results: &[(Scenario, Sighting, Sighting)]) {
        let rule = "=".repeat(WIDTH);
        self.line(&format!("\n{rule}\n{:23}{:44}{}\n{rule}", "divergence", "straight to Redis", self.second));
        for (scenario, direct, through) in results {
            let cell = |sighting: &Sighting, width: usize| {
                self.paint(&format!("{:width$}", verdict(sighting)), tone(sighting))
            };
            let line = format!("{:23}{}{}", scenario.name, cell(direct, 44), cell(through, 0));
            self.line(line.trim_end());
        }
        self.line(&rule);
    }

    pub(super) fn counters(&self, metrics: &str) {
        self.line("\nThe proxy's own counters (/metrics):");
        for name in COUNTERS {
            let own = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            for line in metrics.lines().filter(own).filter(|line| !line.ends_with(" 0")) {
                self.line(&format!("  {line}"));
            }
        }
    }

    pub(super) fn outcome(&self, outcome: &DemoOutcome) {
        let count = outcome.rows.len();
        let direct = outcome.rows.iter().filter(|row| row.direct_went_wrong).count();
        let through = outcome.rows.iter().filter(|row| row.through_went_wrong).count();
        let text =
            format!("\n{direct} of {count} went wrong straight, {through} of {count} {}.", self.second);
        self.line(&self.paint(&text, if outcome.proven() { Tone::Right } else { Tone::Wrong }));
    }

    fn paint(&self, text: &str, tone: Tone) -> String {
        match tone {
            Tone::Right if self.colour => format!("\x1b[32m{text}\x1b[0m"),
            Tone::Wrong if self.colour => format!("\x1b[31m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

fn tone(sighting: &Sighting) -> Tone {
    if sighting.went_wrong() || !sighting.recovered { Tone::Wrong } else { Tone::Right }
}

/// What the onlooker saw, in a few lines.
fn lived(sighting: &Sighting) -> String {
    let looks = sighting.looks;
    match (sighting.still_wrong, sighting.ttl_left) {
        (true, Some(ttl)) => {
            format!(
                "{}, and still; only its TTL would end it, {ttl} s left ({looks} looks)",
                time(sighting.wrong_for)
            )
        }
        (true, None) => format!("{}, and still ({looks} looks)", time(sighting.wrong_for)),
        (false, _) if sighting.wrong_for.is_zero() => format!("not at all ({looks} looks)"),
        (false, _) => format!("{} ({looks} looks)", time(sighting.wrong_for)),
    }
}

/// The same for the summary.
fn verdict(sighting: &Sighting) -> String {
    if sighting.still_wrong {
        let ttl = sighting.ttl_left.map_or_else(String::new, |ttl| format!(", TTL {ttl} s left"));
        return format!("WRONG: still after {}{ttl}", time(sighting.wrong_for));
    }
    let seen = match time(sighting.wrong_for) {
        long if sighting.went_wrong() => format!("WRONG for {long}"),
        _ if sighting.wrong_for.is_zero() => "never a wrong value".into(),
        short => format!("wrong value for {short}"),
    };
    let now = if sighting.recovered { "right one cached" } else { "NOT cached again" };
    format!("{seen}; {now}")
}

fn millis(at: Duration) -> String {
    format!("{}", at.as_millis())
}

fn time(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// Breaks text into lines of at most `width` characters, between words where that can be.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
        while line.chars().count() > width {
            let rest = line.chars().skip(width).collect();
            line = line.chars().take(width).collect();
            lines.push(std::mem::replace(&mut line, rest));
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::super::play::Step;
    use super::*;

    #[test]
    fn text_is_broken_between_words_and_long_words_anywhere() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let played = |id| Played {
            id,
            steps: vec![Step {
                at: Duration::from_millis(123_456),
                what: "readers until the replica is level, and a long while after that".into(),
                saw: "100 hits, 0 wrong; 50 misses (49 read the replica before it was level)".into(),
                tone: Tone::Plain,
            }],
            sighting: Sighting { still_wrong: true, ttl_left: Some(299), ..Sighting::default() },
        };
        let narrator = Narrator { colour: false, second: "through cachefence" };
        let lines = narrator.timeline_lines(&played(101), &played(201));
        assert!(lines.len() > 6);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:#?}");
    }

    #[test]
    fn a_sighting_is_told_as_it_was() {
        let mut sighting = Sighting { recovered: true, ..Sighting::default() };
        assert_eq!(verdict(&sighting), "never a wrong value; right one cached");
        sighting.wrong_for = Duration::from_micros(3_400);
        assert_eq!(verdict(&sighting), "wrong value for 3.4 ms; right one cached");
        sighting.wrong_for = Duration::from_secs(3);
        assert_eq!(verdict(&sighting), "WRONG for 3.0 s; right one cached");
        sighting.still_wrong = true;
        assert_eq!(verdict(&sighting), "WRONG: still after 3.0 s");
    }
}
