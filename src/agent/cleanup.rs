//! Leaving no trace: the difference to nothing at all.

use super::StartError;
use warren_core::plan::{Desired, Kernel, diff};

/// Looks so often before giving up: each step is tried again as often.
const ROUNDS: usize = 5;

/// Removes everything of ours from a kernel. Says how many steps that took.
pub async fn cleanup(kernel: &mut impl Kernel) -> Result<usize, StartError> {
    let nothing = Desired::default();
    let mut taken = 0;
    for _ in 0..ROUNDS {
        let plan = diff(&nothing, &kernel.observe().await?);
        if plan.is_empty() {
            return Ok(taken);
        }
        for step in &plan.steps {
            match kernel.apply(step).await {
                Ok(()) => taken += 1,
                Err(error) => tracing::warn!("{step}: {error}"),
            }
        }
    }
    let plan = diff(&nothing, &kernel.observe().await?);
    let first = plan.steps.first().map(ToString::to_string);
    first.map_or(Ok(taken), |first| Err(StartError::Unclean(plan.steps.len(), first)))
}
