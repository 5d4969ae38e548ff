//! Identifiers that a coordinator hands out, and the version number both sides speak.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A node's number, unique within one coordinator and never given twice.
    NodeId,
    u64
);
number!(
    /// A user's number, unique within one coordinator.
    UserId,
    u64
);
number!(
    /// A relay region's number; 900 to 999 are left to whoever runs their own relays.
    RegionId,
    u16
);
number!(
    /// The capability version: how new the control protocol of a client is.
    CapabilityVersion,
    u32
);

impl CapabilityVersion {
    /// What our agent says it speaks.
    pub const CURRENT: Self = Self(145);
    /// The oldest client that our coordinator serves (client release 1.80).
    pub const OLDEST_SERVED: Self = Self(113);
}

/// A node's public identifier: stable text, the same for the life of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StableNodeId(pub String);

impl fmt::Display for StableNodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
