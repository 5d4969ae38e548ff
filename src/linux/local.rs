//! The host's own addresses outside the overlay: what peers may reach us at, and what the overlay must
//! never swallow.

use crate::plan::KernelError;
use crate::types::IpNet;

/// An address of an interface that is up, is not the loopback and is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address with the length of its on-link prefix.
    pub address: IpNet,
    /// The interface that has it.
    pub interface: String,
}

/// The host's links and addresses other than ours, and word of their changes.
pub struct LocalNetwork {}

impl LocalNetwork {
    /// Opens the door. Call it within a Tokio runtime.
    pub fn new() -> Result<Self, KernelError> {
        Ok(Self {})
    }

    /// Every usable address, in a stable order.
    pub async fn addresses(&mut self) -> Result<Vec<LocalAddress>, KernelError> {
        Ok(Vec::new())
    }

    /// Waits until a link or an address outside the overlay may have changed.
    pub async fn changed(&mut self) -> Result<(), KernelError> {
        std::future::pending().await
    }
}
