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

fn verdict(kept: bool) -> &'static str {
    if kept { "ok" } else { "OVER" }
}

/// Three figures are read; more are noise.
fn short(number: f64) -> String {
    if number >= 100.0 || number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.2}") }
}
