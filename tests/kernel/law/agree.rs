//! The policy, the model and the kernel agree about every packet.

use std::collections::BTreeMap;

use warren_core::plan::{Figures, Kernel};

use super::network::{self, Network};
use super::packet::Probe;
use super::scene::Scene;
use super::{Kernels, counted_as, prove};

/// Seeds of cases that once failed.
const ONCE_FAILED: &[u64] = &[];

/// What the table counts an answer as that nobody asked for.
const ANSWER: &str = "denied_answer_to_nothing";

/// How packets fared, to see that all kinds of them were tried.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: usize,
    pub(super) taken: usize,
    refused: BTreeMap<String, u64>,
}

pub(super) async fn about_every_packet(scene: &Scene, kernels: &mut Kernels) {
    let mut tally = Tally::default();
    prove((network::change(), network::probes(150)), ONCE_FAILED, 3, async |((from, to), probes)| {
        let mut network = Network::new(from.clone());
        kernels.converge(&network.wish()).await;
        agree(scene, kernels, &network, &probes, &mut tally).await?;
        network.become_other(to);
        kernels.converge(&network.wish()).await;
        agree(scene, kernels, &network, &probes, &mut tally).await
    })
    .await;
    println!("{tally:?}");
    assert!(tally.taken * 20 > tally.sent && tally.taken * 2 < tally.sent, "{tally:?}");
    assert!(tally.refused.len() == 4 && tally.refused.values().all(|count| *count > 10), "{tally:?}");
}

/// Sends the packets, and compares the three decisions about each and what the table counted.
pub(super) async fn agree(
    scene: &Scene,
    kernels: &mut Kernels,
    network: &Network,
    probes: &[(u8, Probe)],
    tally: &mut Tally,
) -> Result<(), String> {
    let before = counts(&kernels.real.figures().await.unwrap());
    let taken = kernels.taken(scene, probes);
    let after = counts(&kernels.real.figures().await.unwrap());

    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for ((peer, probe), kernel) in probes.iter().zip(taken) {
        let (policy, model) = (network.policy_allows(*peer, probe), kernels.admits(*peer, probe));
        if policy != model || model != kernel {
            return Err(format!(
                "peer {peer} sends {probe:?}: the policy says {policy}, the model {model}, the kernel {kernel}\n{}\n{:?}",
                network.describe(),
                kernels.firewall(),
            ));
        }
        tally.sent += 1;
        tally.taken += usize::from(kernel);
        let Some(firewall) = kernels.firewall().filter(|_| kernels.holds(*peer, probe)) else { continue };
        let decided = counted_as(firewall.decide(&probe.packet()));
        let is_answer = probe.is_answer() && firewall.served.contains(probe.destination);
        *expected.entry(if is_answer { ANSWER.to_owned() } else { decided }).or_default() += 1;
    }
    for (reason, count) in expected.iter().filter(|(name, _)| name.starts_with("denied")) {
        *tally.refused.entry(reason.clone()).or_default() += count;
    }
    let difference = |(name, count): (&String, &u64)| (name.clone(), count - before.get(name).unwrap_or(&0));
    let counted: BTreeMap<_, _> = after.iter().map(difference).filter(|(_, count)| *count > 0).collect();
    if counted == expected {
        return Ok(());
    }
    Err(format!("counted {counted:?}, expected {expected:?}\n{}\n{:?}", network.describe(), kernels.firewall()))
}

/// Every counter by its name in the table.
fn counts(figures: &Figures) -> BTreeMap<String, u64> {
    let rules = figures.rules.iter().map(|(id, count)| (format!("rule_{id}"), count.packets));
    rules.chain(figures.denied.iter().map(|(reason, count)| (reason.clone(), count.packets))).collect()
}
