//! Between two policies, and where an agent is killed on the way, nothing is let in that both forbid.

use warren_core::plan::{Desired, Step};

use super::agree;
use super::network::{self, Network};
use super::packet::Probe;
use super::scene::{Scene, Tunnel};
use super::{Kernels, prove};
use crate::common::*;

/// Seeds of cases that once failed.
const ONCE_FAILED: &[u64] = &[];

/// What is let in before the first and after the last of some steps.
struct Ends {
    steps: Vec<Step>,
    allowed: Vec<bool>,
}

impl Ends {
    async fn of(kernels: &mut Kernels, to: &Desired, probes: &[(u8, Probe)]) -> Self {
        let steps = kernels.steps(to).await;
        let admitted = |kernels: &Kernels| -> Vec<bool> {
            probes.iter().map(|(peer, probe)| kernels.admits(*peer, probe)).collect()
        };
        let before = admitted(kernels);
        let beginning = kernels.model.clone();
        steps.iter().for_each(|step| kernels.model.carry_out(step).unwrap());
        let after = admitted(kernels);
        kernels.model = beginning;
        let allowed = before.into_iter().zip(after).map(|(before, after)| before || after).collect();
        Self { steps, allowed }
    }

    /// Sends all packets after some step.
    fn check(&self, scene: &Scene, kernels: &Kernels, probes: &[(u8, Probe)], last: &Step) -> Result<(), String> {
        let taken = kernels.taken(scene, probes);
        for (((peer, probe), taken), allowed) in probes.iter().zip(taken).zip(&self.allowed) {
            let modelled = kernels.admits(*peer, probe);
            if taken != modelled || taken && !allowed {
                let steps: Vec<String> = self.steps.iter().map(Step::to_string).collect();
                return Err(format!(
                    "after {last} of {steps:#?}\npeer {peer} sends {probe:?}: the kernel says {taken}, the model \
                     {modelled}; let in at the beginning or the end: {allowed}\n{:?}",
                    kernels.firewall(),
                ));
            }
        }
        Ok(())
    }
}

/// Whether what comes out of the tunnel may fare otherwise after this step: routes and rules only lead what we send.
fn matters(step: &Step) -> bool {
    !matches!(step, Step::Route(_) | Step::Rule(_))
}

#[test]
fn policy_model_and_kernel_agree_and_no_step_between_two_policies_lets_in_what_both_forbid() {
    in_namespace(Needs::Namespace, || async {
        let scene = Scene::build(Tunnel::Cable);
        let mut kernels = Kernels::new(Tunnel::Cable);
        agree::about_every_packet(&scene, &mut kernels).await;

        let mut tried = 0;
        prove((network::change(), network::probes(80)), ONCE_FAILED, 3, async |((from, to), probes)| {
            let mut network = Network::new(from);
            kernels.converge(&network.wish()).await;
            network.become_other(to);
            let ends = Ends::of(&mut kernels, &network.wish(), &probes).await;
            for step in &ends.steps {
                kernels.apply(step).await;
                if matters(step) {
                    ends.check(&scene, &kernels, &probes, step)?;
                    tried += 1;
                }
            }
            Ok(())
        })
        .await;
        println!("tried after {tried} steps");
        assert!(tried > 0);
    });
}
