//! Who may use the relay. Whatever cannot be asked is refused: a relay that is open by accident is everybody's.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use warren_core::types::NodePublic;

/// A client that has proved its key and wants in.
#[derive(Clone, Copy, Debug)]
pub struct Applicant {
    pub node: NodePublic,
    /// Where it connects from, if the transport tells.
    pub source: Option<IpAddr>,
}

type Answer = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Decides.
#[derive(Clone)]
pub enum Admission {
    /// Everybody: for tests, and for an operator who says so.
    Everyone,
    /// Whom this asks about and gets a yes, which is asked for again every so often while the client is connected.
    Ask(Arc<dyn Fn(Applicant) -> Answer + Send + Sync>, Duration),
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Everyone => "Everyone",
            Self::Ask(..) => "Ask",
        })
    }
}

impl Admission {
    /// Asks `judge` about each client, and again every so often: an end that was missed is noticed then.
    pub fn ask<F, R>(judge: F, again_every: Duration) -> Self
    where
        F: Fn(Applicant) -> R + Send + Sync + 'static,
        R: Future<Output = bool> + Send + 'static,
    {
        Self::Ask(Arc::new(move |applicant| Box::pin(judge(applicant))), again_every)
    }

    pub(super) async fn admits(&self, applicant: Applicant) -> bool {
        match self {
            Self::Everyone => true,
            Self::Ask(judge, _) => judge(applicant).await,
        }
    }

    pub(super) const fn asks_every(&self) -> Option<Duration> {
        match self {
            Self::Everyone => None,
            Self::Ask(_, every) => Some(*every),
        }
    }
}
