//! Lengths of time as operators write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not a length of time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DurationError {
    /// It is something else.
    #[error("`{0}` is not a length of time such as 90s, 15m, 36h or 7d")]
    Other(String),
    /// It has more digits than anybody counts.
    #[error("`{0}` is too long to be counted")]
    TooLong(String),
}

/// Reads `90s`, `15m`, `36h`, `7d`, `1h30m`; a day has 24 hours. A bare `0` is zero.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let error = || {
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let is_number = number.len() < text.len() && number.bytes().all(|byte| byte.is_ascii_digit());
        match is_number && number.len() > 4 {
            true => DurationError::TooLong(text.to_owned()),
            false => DurationError::Other(text.to_owned()),
        }
    };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let span: Span = text.parse().map_err(|_| error())?;
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| error())?;
    signed.try_into().map_err(|_| error())
}

/// How long something is good: for a length of time, or without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Lifetime {
    /// This long, which is more than nothing.
    For(Duration),
    /// Without end.
    Endless,
}

impl Lifetime {
    /// The length of time, where it has an end.
    pub const fn duration(self) -> Option<Duration> {
        match self {
            Self::For(duration) => Some(duration),
            Self::Endless => None,
        }
    }
}

impl FromStr for Lifetime {
    type Err = DurationError;

    /// Reads a length of time, or `never`.
    fn from_str(text: &str) -> Result<Self, DurationError> {
        match text {
            "never" => Ok(Self::Endless),
            _ => match parse_duration(text)? {
                Duration::ZERO => Err(DurationError::Other(text.to_owned())),
                duration => Ok(Self::For(duration)),
            },
        }
    }
}

impl TryFrom<String> for Lifetime {
    type Error = DurationError;

    fn try_from(text: String) -> Result<Self, DurationError> {
        text.parse()
    }
}

impl From<Lifetime> for String {
    fn from(lifetime: Lifetime) -> Self {
        lifetime.to_string()
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(duration) => write!(f, "{}s", duration.as_secs()),
            Self::Endless => f.write_str("never"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_a_number_and_a_unit_or_never() {
        let lifetime = |text: &str| text.parse::<Lifetime>();
        assert_eq!(lifetime("never"), Ok(Lifetime::Endless));
        assert_eq!(lifetime("12h"), Ok(Lifetime::For(Duration::from_secs(12 * 3600))));
        assert_eq!(lifetime("30d"), Ok(Lifetime::For(Duration::from_secs(30 * 86400))));
        for bad in ["", "12", "0s", "-1h", "1 month", "soon"] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
        assert_eq!(lifetime("99999999d").unwrap_err().to_string(), "`99999999d` is too long to be counted");
    }

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
