//! Who may use the relay. Whatever cannot be asked is refused: a relay that is open by accident is everybody's.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use crate::types::NodePublic;

/// A client that has proved its key and wants in.
#[derive(Clone, Copy, Debug)]
pub struct Applicant {
    /// Its node key.
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
    /// Whom this asks about and gets a yes.
    Ask(Arc<dyn Fn(Applicant) -> Answer + Send + Sync>),
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Everyone => "Everyone",
            Self::Ask(_) => "Ask",
        })
    }
}

impl Admission {
    /// Asks `judge` about each client.
    pub fn ask<F, R>(judge: F) -> Self
    where
        F: Fn(Applicant) -> R + Send + Sync + 'static,
        R: Future<Output = bool> + Send + 'static,
    {
        Self::Ask(Arc::new(move |applicant| Box::pin(judge(applicant))))
    }

    pub(super) async fn admits(&self, applicant: Applicant) -> bool {
        match self {
            Self::Everyone => true,
            Self::Ask(judge) => judge(applicant).await,
        }
    }
}
