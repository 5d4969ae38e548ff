//! The only door to the kernel: WireGuard, links, routes, rules, nftables, and the change monitor.

mod local;

use crate::plan::{Kernel, KernelError, Observed, Step};

pub use local::{LocalAddress, LocalNetwork};

/// The kernel of this host, in the network namespace of the thread that opened it.
pub struct LinuxKernel {}

impl LinuxKernel {
    /// Opens the door. Call it within a Tokio runtime; changes are noticed from here on.
    pub fn new() -> Result<Self, KernelError> {
        Ok(Self {})
    }
}

impl Kernel for LinuxKernel {
    async fn observe(&mut self) -> Result<Observed, KernelError> {
        Ok(Observed::default())
    }

    async fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        Err(KernelError { operation: format!("{step:?}"), reason: "unknown step".to_owned() })
    }

    async fn changed(&mut self) -> Result<(), KernelError> {
        std::future::pending().await
    }
}
