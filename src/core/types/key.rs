//! Curve25519 keys, one type per role.
//!
//! Text form: a prefix that names the role, then 64 hexadecimal digits. The node key is the WireGuard
//! key; the machine key authenticates the control connection; the disco key seals path probes.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Why a text is not a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The text does not begin with the prefix of this role.
    #[error("a key of this kind begins with `{0}`")]
    Prefix(&'static str),
    /// What follows the prefix is not 64 hexadecimal digits.
    #[error("a key is 64 hexadecimal digits after `{0}`")]
    Digits(&'static str),
}

fn parse(text: &str, prefix: &'static str) -> Result<[u8; 32], KeyError> {
    let digits = text.strip_prefix(prefix).ok_or(KeyError::Prefix(prefix))?;
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return Err(KeyError::Digits(prefix));
    }
    HEXLOWER_PERMISSIVE.decode_mut(digits.as_bytes(), &mut bytes).map_err(|_| KeyError::Digits(prefix))?;
    Ok(bytes)
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The prefix of the text form.
            pub const PREFIX: &'static str = $prefix;

            /// Takes the 32 bytes of the curve point.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes of the curve point.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Whether this is the all-zero key, which the protocol uses for "none".
            pub fn is_zero(&self) -> bool {
                self.0 == [0; 32]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                parse(text, $prefix).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            /// An absent key is written as the empty text by some senders.
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                if text.is_empty() {
                    return Ok(Self::default());
                }
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! private_key {
    ($(#[$doc:meta])* $name:ident, $public:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The prefix of the text form.
            pub const PREFIX: &'static str = "privkey:";

            /// Makes a key of 32 random bytes, which the caller draws.
            pub fn from_random(mut bytes: [u8; 32]) -> Self {
                bytes[0] &= 248;
                bytes[31] = (bytes[31] & 127) | 64;
                Self(bytes)
            }

            /// The secret itself. Name the reason where this is called.
            pub const fn expose_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The text form, secret included: for files that only the owner may read.
            pub fn expose_text(&self) -> zeroize::Zeroizing<String> {
                zeroize::Zeroizing::new(format!("privkey:{}", HEXLOWER.encode(&self.0)))
            }

            /// The public half.
            pub fn public(&self) -> $public {
                $public(PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[redacted]")
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                parse(text, "privkey:").map(Self::from_random)
            }
        }
    };
}

public_key!(
    /// Who a machine is to its coordinator: the static key of the Noise handshake.
    MachinePublic,
    "mkey:"
);
public_key!(
    /// Who a node is to its peers: the WireGuard public key.
    NodePublic,
    "nodekey:"
);
public_key!(
    /// The key that seals path probes to a node.
    DiscoPublic,
    "discokey:"
);
public_key!(
    /// The coordinator's challenge in the early payload.
    ChallengePublic,
    "chalpub:"
);
private_key!(
    /// The secret of a [`MachinePublic`].
    MachinePrivate,
    MachinePublic
);
private_key!(
    /// The secret of a [`NodePublic`]: the WireGuard private key.
    NodePrivate,
    NodePublic
);
private_key!(
    /// The secret of a [`DiscoPublic`].
    DiscoPrivate,
    DiscoPublic
);

impl NodePublic {
    /// The first five characters of the base64 form, in brackets: how logs name a peer.
    pub fn short(&self) -> String {
        format!("[{}]", &BASE64.encode(&self.0)[..5])
    }

    /// Reads the form that WireGuard's own tools write: base64, and nothing else before or after.
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// The base64 form that `wg show` prints.
    pub fn base64(&self) -> String {
        BASE64.encode(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "nodekey:8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";

    #[test]
    fn a_public_key_reads_back_what_it_prints() {
        let key: NodePublic = NODE.parse().unwrap();
        assert_eq!(key.to_string(), NODE);
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("\"{NODE}\""));
    }

    #[test]
    fn a_key_of_another_role_is_refused() {
        assert_eq!(NODE.parse::<MachinePublic>(), Err(KeyError::Prefix("mkey:")));
    }

    #[test]
    fn a_key_of_the_wrong_length_or_alphabet_is_refused() {
        for bad in ["nodekey:", "nodekey:00", "nodekey:zz", &format!("{NODE}00"), &NODE.replace('8', "g")] {
            assert_eq!(bad.parse::<NodePublic>(), Err(KeyError::Digits("nodekey:")), "{bad}");
        }
    }

    /// RFC 7748 §6.1, Alice's pair.
    #[test]
    fn a_private_key_gives_the_public_key_of_the_rfc() {
        let alice: NodePrivate =
            "privkey:77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a".parse().unwrap();
        assert_eq!(
            alice.public().to_string(),
            "nodekey:8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        );
    }

    #[test]
    fn a_private_key_never_prints() {
        let private = NodePrivate::from_random([7; 32]);
        assert_eq!(format!("{private:?}"), "[redacted]");
    }
}
