//! Lengths of time as operators write them.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use thiserror::Error;

/// Why a text is not a length of time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not a length of time such as 90s, 15m, 36h or 7d")]
pub struct DurationError(String);

/// Reads `90s`, `15m`, `36h`, `7d`, `1h30m`; a day has 24 hours. A bare `0` is zero.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let span: Span = text.parse().map_err(|_| error())?;
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| error())?;
    signed.try_into().map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_in_the_units_operators_use() {
        for (text, seconds) in [
            ("90s", 90),
            ("15m", 900),
            ("36h", 129_600),
            ("7d", 604_800),
            ("1h30m", 5_400),
            ("0", 0),
            ("2w", 1_209_600),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_length_of_time_is_refused_in_words() {
        for text in ["", "5", "soon", "-5m", "1y"] {
            let error = parse_duration(text).unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{text}` is not a length of time")), "{error}");
        }
    }
}
