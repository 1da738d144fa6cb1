//! What a run came to, as a table.

use std::fmt::Write as _;

use crate::check::{Consistent, Findings};
use crate::history::Micros;
use crate::run::Run;
use crate::stand::Contract;

const HEAD: &str = "\
| remedy | reads judged | hits | stale reads | share | stale seconds | oldest | at once | within 1 s | within 1 min |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

/// The table, in Markdown.
pub fn table(run: &Run, contract: Contract) -> String {
    let mut text = HEAD.to_owned();
    for (remedy, found) in &run.findings {
        let contract = if remedy.is_baseline() { String::new() } else { format!(", {}", contract.name()) };
        let _ = write!(
            text,
            "| {}{contract} | {} | {:.1} % | {} | {} | {:.2} | {} ms |",
            remedy.name(),
            found.judged,
            percent(found.hits, found.judged),
            found.stale,
            share(found.stale, found.judged),
            found.stale_time.as_secs_f64(),
            millis(found.oldest),
        );
        for within in found.within {
            let _ = write!(text, " {} |", nines(within));
        }
        text.push('\n');
    }
    text
}

/// What is not in the table.
pub fn remarks(run: &Run, contract: Contract) -> String {
    let mut text = format!(
        "{}: {:.0} s, {} writes; from an acknowledgement to when it was known to be applied: median {} ms, \
         99 % {} ms, longest {} ms.\n",
        contract.name(),
        run.took.as_secs_f64(),
        run.writes,
        millis(quantile(&run.lag, 50)),
        millis(quantile(&run.lag, 99)),
        millis(quantile(&run.lag, 100)),
    );
    for (remedy, found) in &run.findings {
        let Findings { unjudged, beyond_lag, impossible, .. } = found;
        let _ = writeln!(
            text,
            "{}: {unjudged} misses answered by the replica, {beyond_lag} stale reads beyond the lag of the proxy, \
             {impossible} of versions that did not exist.",
            remedy.name()
        );
    }
    text
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

fn millis(time: Micros) -> String {
    format!("{:.1}", f64::from(time) / 1000.0)
}

/// A small share, with enough digits to see it.
fn share(part: u64, whole: u64) -> String {
    match percent(part, whole) {
        0.0 => "0".into(),
        some if some < 0.01 => format!("{some:.6} %"),
        some => format!("{some:.3} %"),
    }
}

/// A share near one, rounded down: nothing that was not asked or not reached is shown as whole.
fn nines(within: Consistent) -> String {
    let Consistent { writes, consistent } = within;
    match writes - consistent {
        _ if writes == 0 => "-".into(),
        0 => "100 %".into(),
        _ => format!("{:.4} %", (1e6 * consistent as f64 / writes as f64).floor() / 1e4),
    }
}

/// Of sorted times the one that so many percent are not above.
fn quantile(sorted: &[Micros], percent: usize) -> Micros {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

#[test]
fn a_share_is_not_rounded_up_to_the_whole() {
    let of = |writes, consistent| nines(Consistent { writes, consistent });
    assert_eq!(of(0, 0), "-");
    assert_eq!(of(7, 7), "100 %");
    assert_eq!(of(10_000_000, 9_999_999), "99.9999 %");
    assert_eq!(of(3, 2), "66.6666 %");
}

#[test]
fn a_quantile_is_one_of_the_times() {
    assert_eq!(quantile(&[], 50), 0);
    let hundred: Vec<Micros> = (1..=100).collect();
    assert_eq!([50, 99, 100].map(|percent| quantile(&hundred, percent)), [50, 99, 100]);
}
