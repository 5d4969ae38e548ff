//! A table that somebody deletes comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_core::plan::{
    Change, Desired, Firewall, Kernel, KernelAction, ObservedFirewall, Reconciler, ReconcilerEvent, Trouble,
};
use warren_linux::LinuxKernel;

use crate::common::*;

/// How soon the table is back on a real processor, however busy: long before the next look by the timer, a minute later. Each
/// time is printed, and is tens of milliseconds.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn a_flushed_ruleset_is_repaired_at_once_and_the_exposure_is_told() {
    in_namespace(Needs::Namespace, || async {
        let mut host = Host::new();
        host.until_converged().await;

        let mut exposures = Vec::new();
        for _ in 0..5 {
            sh("nft flush ruleset");
            let flushed = Instant::now();
            exposures.push(host.until_exposed().await);
            println!("flushed, and back after {:?}; {:?} since the kernel's word", flushed.elapsed(), exposures.last());
            assert!(matches!(observe(&mut host.kernel).await.firewall, ObservedFirewall::Table(_)));
            host.until_converged().await;
        }

        exposures.sort();
        assert!(exposures[2] < SOON * slowness(), "{exposures:?}");
        let told = host.reconciler.troubles(Instant::now());
        assert!(told.iter().any(|trouble| matches!(trouble, Trouble::Exposed { .. })), "{told:?}");
    });
}

/// The reconciler on the real kernel, with a wish for the table alone.
struct Host {
    kernel: LinuxKernel,
    reconciler: Reconciler,
}

impl Host {
    fn new() -> Self {
        let mut reconciler = Reconciler::new();
        let hosts = (0..5_000u32)
            .map(|number| (std::net::Ipv4Addr::from(0x6440_0000 + number).into(), warren_core::plan::ClassId(1)));
        let firewall = Firewall {
            classes: [(warren_core::plan::ClassId(1), Default::default())].into(),
            hosts: hosts.collect(),
            ..Firewall::default()
        };
        let desired = Desired { firewall: Some(Arc::new(firewall)), ..Desired::default() };
        reconciler.handle_desired(desired, Instant::now());
        Self { kernel: sharing(), reconciler }
    }

    async fn until_converged(&mut self) {
        for _ in 0..60 {
            if self.reconciler.is_settled() {
                return;
            }
            self.proceed().await;
        }
        panic!("{:?} {:?}", self.reconciler.troubles(Instant::now()), self.reconciler.poll_timeout());
    }

    async fn until_exposed(&mut self) -> Duration {
        for _ in 0..60 {
            while let Some(event) = self.reconciler.poll_event() {
                if let ReconcilerEvent::Trouble(Trouble::Exposed { took }) = event {
                    return took;
                }
            }
            self.proceed().await;
        }
        panic!("{:?}", self.reconciler.troubles(Instant::now()));
    }

    /// Does the next thing, as the agent's loop would.
    async fn proceed(&mut self) {
        match self.reconciler.poll_action() {
            Some(KernelAction::Observe) => {
                let observed = self.kernel.observe().await;
                self.reconciler.handle_observed(observed, Instant::now());
            }
            Some(KernelAction::Apply(steps)) => {
                let results = self.kernel.apply_run(&steps).await;
                self.reconciler.handle_steps(results, Instant::now());
            }
            None => {
                let timeout = self.reconciler.poll_timeout().map(tokio::time::Instant::from_std);
                let timeout = timeout.unwrap_or_else(|| tokio::time::Instant::now() + PATIENCE);
                match tokio::time::timeout_at(timeout, self.kernel.changed()).await {
                    Ok(Ok(Change::FirewallGone)) => self.reconciler.handle_firewall_gone(Instant::now()),
                    Ok(_) => self.reconciler.handle_changed(Instant::now()),
                    Err(_) => self.reconciler.handle_timeout(Instant::now()),
                }
            }
        }
    }
}
