//! The values of options: each is read from a text or a number, and is sound once it is read.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use http::uri::Authority;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use warren_core::types::{HostLabel, Lifetime, RegionId, parse_duration};

/// The numbers that are left to whoever runs relays of their own.
const OWN_REGIONS: std::ops::RangeInclusive<u16> = 900..=999;
/// The longest name of a region; it stands in every map and in tables.
const NAME_LEN: usize = 64;
/// Shorter than any log-in takes would lock out whoever logs in.
const LEAST_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// More connections than any host has descriptors for.
const MOST_CONNECTIONS: usize = 1_000_000;

/// How nodes reach this server: `http://HOST` or `https://HOST`, without a final slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerUrl(String);

/// The domain of the nodes' names, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Domain(String);

/// How long node keys last; `None` without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyLifetime(pub(crate) Option<Duration>);

/// A length of time: a number of seconds, or a number and a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grace(pub(crate) Duration);

/// The number of an own relay's region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnRegion(pub(crate) RegionId);

/// The name of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionName(pub(crate) String);

/// A host, with or without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostAndPort(pub(crate) Authority);

/// Where STUN is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StunListen {
    /// Nowhere.
    Off,
    /// At the usual port of every address; where that is taken, nowhere.
    Usual,
    /// Here.
    At(SocketAddr),
}

/// An address and port that this host alone can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoopbackAddress(pub(crate) SocketAddr);

/// How many connections there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MaxConnections(pub(crate) usize);

impl ServerUrl {
    /// As nodes are told it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Of a server that has a certificate for this domain.
    pub(super) fn https(domain: &str) -> Self {
        Self(format!("https://{domain}"))
    }
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url: http::Uri = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
            return Err(format!("{text:?} does not begin with http://HOST or https://HOST"));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(format!("{text:?} has a path, and nodes ask at the root"));
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

impl Domain {
    /// Whether a host's name is this one or lies below it.
    pub(super) fn contains(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        host.strip_suffix(&self.0).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let domain = text.trim_end_matches('.').to_ascii_lowercase();
        for label in domain.split('.') {
            label
                .parse::<HostLabel>()
                .map_err(|error| format!("{text:?}: {}", error.to_string().replace("host name", "label")))?;
        }
        Ok(Self(domain))
    }
}

impl FromStr for KeyLifetime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lifetime: Lifetime = text.parse().map_err(|error| format!("{error}, or never"))?;
        match lifetime.duration() {
            Some(short) if short < LEAST_LIFETIME => {
                Err(format!("{text:?} is less than an hour, the least that there is"))
            }
            lifetime => Ok(Self(lifetime)),
        }
    }
}

impl FromStr for Grace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(seconds) => Ok(Self(Duration::from_secs(seconds))),
            Err(_) => parse_duration(text).map(Self).map_err(|error| error.to_string()),
        }
    }
}

impl FromStr for OwnRegion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| OWN_REGIONS.contains(number));
        number.map(|number| Self(RegionId(number))).ok_or_else(|| format!("{text} is not between 900 and 999"))
    }
}

impl FromStr for RegionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !(1..=NAME_LEN).contains(&text.len()) || text.chars().any(char::is_control) {
            return Err(format!("{text:?} is not 1 to {NAME_LEN} bytes of text"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for HostAndPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let authority = text.parse::<Authority>().ok().filter(|authority| !authority.host().is_empty());
        authority.map(Self).ok_or_else(|| format!("{text:?} is not HOST or HOST:PORT"))
    }
}

impl FromStr for StunListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::Off),
            "usual" => Ok(Self::Usual),
            _ => text.parse().map(Self::At).map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor none")),
        }
    }
}

impl FromStr for LoopbackAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address: SocketAddr = text.parse().map_err(|_| format!("{text:?} is not ADDRESS:PORT"))?;
        match address.ip().is_loopback() {
            true => Ok(Self(address)),
            false => Err(format!("{address} is not a loopback address")),
        }
    }
}

impl FromStr for MaxConnections {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| (1..=MOST_CONNECTIONS).contains(number));
        number.map(Self).ok_or_else(|| format!("{text} is not between 1 and {MOST_CONNECTIONS}"))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for KeyLifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(lifetime) => Lifetime::For(lifetime).fmt(f),
            None => Lifetime::Endless.fmt(f),
        }
    }
}

impl fmt::Display for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_secs().fmt(f)
    }
}

impl fmt::Display for OwnRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for HostAndPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for StunListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("none"),
            Self::Usual => f.write_str("usual"),
            Self::At(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for LoopbackAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for MaxConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the file may hold for a value: text, or text or a number.
struct Text<T>(std::marker::PhantomData<T>, &'static str);

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        match self.1 {
            NUMBER => Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
            _ => text.parse().map_err(E::custom),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        match self.1 {
            TEXT => Err(E::invalid_type(serde::de::Unexpected::Signed(number), &self)),
            _ => number.to_string().parse().map_err(E::custom),
        }
    }
}

const TEXT: &str = "a text";
const NUMBER: &str = "a number";
const EITHER: &str = "a number of seconds, or a text such as \"90s\"";

macro_rules! in_the_file_as {
    ($($kind:ident: $($value:ty),+;)+) => {$($(
        impl<'de> Deserialize<'de> for $value {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Text(std::marker::PhantomData, $kind))
            }
        }

        impl Serialize for $value {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+)+};
}

in_the_file_as! {
    TEXT: ServerUrl, Domain, KeyLifetime, RegionName, HostAndPort, StunListen, LoopbackAddress;
    NUMBER: OwnRegion, MaxConnections;
    EITHER: Grace;
}
