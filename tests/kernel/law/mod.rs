//! The laws on the real kernel, with packets.
//!
//! What is decided about a packet is decided three times: by the policy, from names and addresses; by the model of the
//! kernel, from the planned table; and by the kernel, to which the packet comes. Policies, networks and packets are
//! random; `WARREN_LAW_SEED` is the first seed, `WARREN_LAW_CASES` how many.

mod agree;
mod kinds;
mod log;
mod network;
mod packet;
mod scene;
mod steps;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestRunner};
use warren_core::plan::{
    Denied, Desired, Firewall, Kernel, ModelKernel, Observed, ObservedFirewall, RuleId, Step, diff,
};
use warren_linux::LinuxKernel;

use packet::Probe;
use scene::{Scene, Tunnel, key};

/// Looks for a smaller failure at most this often.
const SHRINKS: usize = 100;

/// Checks so many random cases, and the seeds that once failed; of a case that fails a small one is shown.
async fn prove<S: Strategy>(
    strategy: S,
    once_failed: &[u64],
    cases: u64,
    mut check: impl AsyncFnMut(S::Value) -> Result<(), String>,
) {
    let chosen = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = chosen("WARREN_LAW_SEED").unwrap_or(1);
    let cases = chosen("WARREN_LAW_CASES").unwrap_or(cases);
    println!("seeds {once_failed:?} and from {first} on {cases}");
    for seed in once_failed.iter().copied().chain(first..first + cases) {
        let config = Config { rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() };
        let mut tree = strategy.new_tree(&mut TestRunner::new(config)).unwrap();
        let Err(mut fault) = check(tree.current()).await else { continue };
        println!("seed {seed}: {fault}\nlooking for a smaller case");
        let mut goes_on = tree.simplify();
        for _ in 0..SHRINKS {
            if !goes_on {
                break;
            }
            goes_on = match check(tree.current()).await {
                Ok(()) => tree.complicate(),
                Err(smaller) => {
                    fault = smaller;
                    tree.simplify()
                }
            };
        }
        panic!("seed {seed}: {fault}");
    }
}

/// The real kernel, and the model of it beside. Where a cable stands for WireGuard, WireGuard's part is the model's.
struct Kernels {
    real: LinuxKernel,
    model: ModelKernel,
    tunnel: Tunnel,
}

impl Kernels {
    fn new(tunnel: Tunnel) -> Self {
        Self { real: LinuxKernel::new().unwrap(), model: ModelKernel::default(), tunnel }
    }

    async fn observe(&mut self) -> Observed {
        let seen = self.real.observe().await.unwrap();
        assert_eq!(seen.firewall, self.model.state.firewall);
        match self.tunnel {
            Tunnel::WireGuard => seen,
            Tunnel::Cable => {
                Observed { firewall: seen.firewall, flows_judged: seen.flows_judged, ..self.model.state.clone() }
            }
        }
    }

    async fn apply(&mut self, step: &Step) {
        self.model.carry_out(step).unwrap();
        let is_of_the_table = matches!(step, Step::Firewall(_));
        if is_of_the_table || self.tunnel == Tunnel::WireGuard {
            self.real.apply(step).await.unwrap_or_else(|error| panic!("{step}: {error}"));
        }
    }

    /// The plan as an agent makes it that has just looked.
    async fn steps(&mut self, wish: &Desired) -> Vec<Step> {
        let observed = self.observe().await;
        diff(wish, &observed).steps
    }

    /// That the real kernel came to the same as the model is seen at its next look.
    async fn converge(&mut self, wish: &Desired) {
        for step in self.steps(wish).await {
            self.apply(&step).await;
        }
        assert_eq!(diff(wish, &self.model.state).steps, []);
    }

    /// Nothing comes out of a link that is down, whatever peers it has.
    fn link_is_up(&self) -> bool {
        self.model.state.link.as_ref().is_some_and(|link| link.up)
    }

    /// Whether a packet of this peer comes out of the tunnel at all.
    fn holds(&self, peer: u8, probe: &Probe) -> bool {
        if !self.link_is_up() {
            return false;
        }
        let mut open = self.model.clone();
        open.state.firewall = ObservedFirewall::Absent;
        open.admits(&key(peer).public(), &probe.packet())
    }

    /// What the model makes of a packet.
    fn admits(&self, peer: u8, probe: &Probe) -> bool {
        match self.firewall() {
            Some(_) if probe.is_answer() => false,
            _ => self.link_is_up() && self.model.admits(&key(peer).public(), &probe.packet()),
        }
    }

    fn firewall(&self) -> Option<&Firewall> {
        match &self.model.state.firewall {
            ObservedFirewall::Table(firewall) => Some(firewall),
            ObservedFirewall::Absent | ObservedFirewall::Altered(_) => None,
        }
    }

    /// Sends packets and says which were taken.
    fn taken(&self, scene: &Scene, probes: &[(u8, Probe)]) -> Vec<bool> {
        scene.taken(probes.iter().map(|(peer, probe)| (*peer, probe, self.holds(*peer, probe))))
    }
}

/// What the table counts a packet as.
fn counted_as(verdict: Result<RuleId, Denied>) -> String {
    match verdict {
        Ok(rule) => format!("rule_{rule}"),
        Err(Denied::NotServed) => "denied_foreign_destination".to_owned(),
        Err(Denied::NoRights) => "denied_unknown_source".to_owned(),
        Err(Denied::NotAdmitted) => "denied_by_policy".to_owned(),
    }
}
