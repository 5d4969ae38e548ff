//! Other programs' chains, listed by `nft` for whoever understands them.

use std::sync::Once;

use warren_core::hostfirewall::{ChainName, Survey};
use warren_core::plan::{Firewall, Obstacle};

use super::run;

/// The obstacles on this host for a table like ours.
pub(super) async fn obstacles(firewall: &Firewall) -> Vec<Obstacle> {
    static TOLD: Once = Once::new();
    let listing = match run::run(&["list", "chains"]).await {
        Ok(listing) => listing,
        Err(error) => {
            TOLD.call_once(|| tracing::warn!(%error, "other programs' firewalls cannot be looked at"));
            return Vec::new();
        }
    };
    let mut survey = Survey::new(&listing, firewall);
    while let Some(chain) = survey.next().cloned() {
        let ChainName { family, table, name } = &chain;
        let listing = run::run(&["list", "chain", family, table, name]).await.unwrap_or_default();
        survey.insert(chain, &listing);
    }
    survey.obstacles()
}
