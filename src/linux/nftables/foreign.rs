//! Other programs' chains, listed by `nft` for whoever understands them.

use std::io;

use warren_core::hostfirewall::{ChainName, Survey};
use warren_core::plan::{Firewall, Obstacle};

use super::run;

/// The obstacles on this host for a table like ours.
pub(super) async fn obstacles(firewall: &Firewall) -> io::Result<Vec<Obstacle>> {
    let mut survey = Survey::new(&run::run(&["list", "chains"]).await?, firewall);
    while let Some(chain) = survey.next().cloned() {
        let ChainName { family, table, name } = &chain;
        let listing = run::run(&["list", "chain", family, table, name]).await.unwrap_or_default();
        survey.insert(chain, &listing);
    }
    Ok(survey.obstacles())
}
