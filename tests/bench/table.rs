//! The table that `make bench` prints: what, figure, unit, limit, and whether the figure keeps to it.

#![allow(dead_code, reason = "each bench uses some of it")]

/// What a figure is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// For reading only.
    None,
    /// The figure may be this much.
    AtMost(f64),
    /// The figure must be this much.
    AtLeast(f64),
}

/// Prints one line of the table.
pub(crate) fn row(what: &str, figure: f64, unit: &str, limit: Limit) {
    let (bound, verdict) = match limit {
        Limit::None => (String::new(), ""),
        Limit::AtMost(most) => (format!("<= {}", short(most)), verdict(figure <= most)),
        Limit::AtLeast(least) => (format!(">= {}", short(least)), verdict(figure >= least)),
    };
    println!("{what:<64} {:>10} {unit:<8} {bound:<12} {verdict}", short(figure));
}

/// Prints the head of a table of ratios.
pub(crate) fn versus_head() {
    println!("{:<58} {:>10} {:>10} {:<8} {:>7}", "beside the others", "ours", "theirs", "unit", "ratio");
}

/// Prints one line of it: ours, theirs, and ours for each of theirs; or why there is none.
pub(crate) fn versus(what: &str, unit: &str, ours: Result<f64, &str>, theirs: Result<f64, &str>) {
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            let ratio = if theirs == 0.0 { "-".to_owned() } else { format!("{:.2}", ours / theirs) };
            println!("{what:<58} {:>10} {:>10} {unit:<8} {ratio:>7}", short(ours), short(theirs));
        }
        (Ok(ours), Err(reason)) => println!("{what:<58} {:>10} {unit}, theirs: {reason}", short(ours)),
        (Err(reason), _) => println!("{what:<58} {reason}"),
    }
}

/// The middle one.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn verdict(kept: bool) -> &'static str {
    if kept { "ok" } else { "OVER" }
}

/// Three figures are read; more are noise.
fn short(number: f64) -> String {
    if number >= 100.0 || number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.2}") }
}
