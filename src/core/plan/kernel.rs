//! What the planner asks of a kernel. Two implementations: the real one, and a model for tests.

use std::future::Future;
use std::net::IpAddr;

use thiserror::Error;

use super::{Figures, Observed, RouteLookup, Step};

/// A kernel operation failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{operation}: {reason}")]
pub struct KernelError {
    /// The operation and its object: "add route 100.64.0.2/32 to table 22337".
    pub operation: String,
    /// What the kernel said.
    pub reason: String,
}

/// How soon to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Once notices have been gathered.
    Something,
    /// At once: a table of our name was deleted, and nothing may be filtered.
    FirewallGone,
}

/// Reads and changes what is ours, and says when to look again.
pub trait Kernel {
    /// Everything of ours.
    fn observe(&mut self) -> impl Future<Output = Result<Observed, KernelError>> + Send;
    /// Carries out one step.
    fn apply(&mut self, step: &Step) -> impl Future<Output = Result<(), KernelError>> + Send;
    /// Carries out a run ([`Step::goes_with`]) in order, and says of each step how it went: one that fails does not
    /// stop the others.
    fn apply_run(&mut self, steps: &[Step]) -> impl Future<Output = Vec<Result<(), KernelError>>> + Send
    where
        Self: Send,
    {
        async move {
            let mut results = Vec::with_capacity(steps.len());
            for step in steps {
                results.push(self.apply(step).await);
            }
            results
        }
    }
    /// Our table as it is at this moment, with its counters.
    fn figures(&mut self) -> impl Future<Output = Result<Figures, KernelError>> + Send;
    /// Where a packet would go, marked as our own outer packets are or not.
    fn look_up(&mut self, to: IpAddr, marked: bool) -> impl Future<Output = Result<RouteLookup, KernelError>> + Send;
    /// Waits until something may have changed. Which thing is not told: look at everything.
    fn changed(&mut self) -> impl Future<Output = Result<Change, KernelError>> + Send;
}
