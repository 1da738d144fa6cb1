//! Ways that take turns, and the table of what they came to.

use std::fmt::Write as _;

use crate::median;
use crate::proxies::{DIRECT, Figures, HAPROXY, Way};

/// The figures of each round, in the order of the ways.
pub type Rounds = Vec<Vec<Figures>>;

/// Medians of all rounds, and the medians of the rounds' ratios.
pub fn table(ways: &[Way], rounds: &[Vec<Figures>]) -> String {
    let mut text = String::from(
        "| | requests/s | / direct | / HAProxy | CPU of the proxy, us | / HAProxy | CPU of Redis, us | / direct |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let place = |name: &str| ways.iter().position(|way| way.name == name);
    let (direct, haproxy) = (place(DIRECT), place(HAPROXY));
    for (number, way) in ways.iter().enumerate() {
        let middle = |of: fn(&Figures) -> f64| median(rounds.iter().map(|round| of(&round[number])));
        let ratio = |to: Option<usize>, of: fn(&Figures) -> f64| {
            to.filter(|&to| to != number).map_or_else(String::new, |to| {
                let ratios = rounds.iter().map(|round| of(&round[number]) / of(&round[to]));
                format!("{:.2}", median(ratios))
            })
        };
        let proxied = way.pid().is_some();
        let _ = writeln!(
            text,
            "| {} | {:.0} | {} | {} | {} | {} | {:.1} | {} |",
            way.name,
            middle(|figures| figures.rate),
            ratio(direct, |figures| figures.rate),
            ratio(haproxy, |figures| figures.rate),
            if proxied { format!("{:.1}", middle(|figures| figures.proxy)) } else { String::new() },
            if proxied { ratio(haproxy, |figures| figures.proxy) } else { String::new() },
            middle(|figures| figures.redis),
            ratio(direct, |figures| figures.redis),
        );
    }
    text
}
