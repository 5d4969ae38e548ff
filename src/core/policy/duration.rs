//! Durations as policies write them: `12h`, `1h30m`, `90s`, `-1m`. Seconds are the finest unit kept.

use std::fmt;

const UNITS: &[(&str, i64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3600 * SECOND),
];
const SECOND: i64 = 1_000_000_000;

/// Reads a duration as whole seconds.
pub(super) fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let (number, tail) = split_while(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, tail) = split_while(tail, char::is_alphabetic);
        let unit = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, unit)| *unit).ok_or_else(invalid)?;
        total = nanoseconds(number, unit).and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
        rest = tail;
    }
    Ok(if negative { -total / SECOND } else { total / SECOND })
}

fn split_while(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

/// `NUMBER` or `NUMBER.FRACTION` of a unit; digits past the ninth of a fraction count for nothing.
fn nanoseconds(number: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i64>().ok() };
    let fraction = &fraction[..fraction.len().min(9)];
    let exponent = u32::try_from(fraction.len()).ok()?;
    let part = i128::from(digits(fraction)?) * i128::from(unit) / 10_i128.pow(exponent);
    let total = i128::from(digits(whole)?) * i128::from(unit) + part;
    (!number.is_empty() && number != ".").then_some(total)?.try_into().ok()
}

/// Seconds in the form `168h0m1s`.
pub(super) struct Shown(pub(super) i64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let seconds = self.0.unsigned_abs();
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        match (hours, minutes) {
            (0, 0) => write!(f, "{sign}{seconds}s"),
            (0, _) => write!(f, "{sign}{minutes}m{seconds}s"),
            _ => write!(f, "{sign}{hours}h{minutes}m{seconds}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_numbers_with_units() {
        for (text, seconds) in [
            ("1h", 3600),
            ("1h30m", 5400),
            ("90s", 90),
            ("-1m", -60),
            ("1.5h", 5400),
            ("0", 0),
            ("0s", 0),
            ("999ms", 0),
        ] {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
        for bad in ["", "abc", "1", "h", "1x", ".h", "1h-1m", "99999999999999h", "1h ", "1.2.3s"] {
            assert_eq!(parse(bad), Err(format!("time: invalid duration {bad:?}")));
        }
    }

    #[test]
    fn a_duration_is_shown_with_every_unit_below_its_largest() {
        for (seconds, shown) in [(168 * 3600 + 1, "168h0m1s"), (-60, "-1m0s"), (200 * 3600, "200h0m0s"), (30, "30s")] {
            assert_eq!(Shown(seconds).to_string(), shown);
        }
    }
}
