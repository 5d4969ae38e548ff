//! The kernel: what it was seen to hold, what became of the steps, and what is asked of it next.

use std::time::Duration;

use super::{Awaited, Effect, Engine, Now};
use crate::path::Evidence;
use crate::plan::{Change, KernelAction, KernelError, Observed};

/// Memory is given back at most this often: with 10,000 peers it takes milliseconds.
const MEMORY_PACE: Duration = Duration::from_secs(15);

impl Engine {
    /// The kernel was looked at.
    pub fn handle_observed(&mut self, observed: Result<Observed, KernelError>, now: Now) {
        self.reconciler.handle_observed(observed, now.tick);
        let device = self.reconciler.observed().and_then(|observed| observed.device.as_ref());
        for (key, peer) in device.iter().flat_map(|device| &device.peers) {
            let evidence = Evidence {
                endpoint: peer.endpoint,
                last_handshake: peer.last_handshake,
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
            };
            self.book.handle_observed(key, evidence, now.tick, now.wall);
        }
        self.book.handle_looked(now.tick);
        self.memory.due.get_or_insert(self.memory.last.map_or(now.tick, |at| now.tick.max(at + MEMORY_PACE)));
        for (id, _) in self.calls.take(|awaited| matches!(awaited, Awaited::Look).then_some(())) {
            self.reply(id, self.status_json(true, now));
        }
    }

    /// Steps were carried out, or failed.
    pub fn handle_steps(&mut self, results: Vec<Result<(), KernelError>>, now: Now) {
        self.reconciler.handle_steps(results, now.tick);
    }

    /// Something in the kernel may have changed.
    pub fn handle_kernel_changed(&mut self, change: Change, now: Now) {
        match change {
            Change::Something => self.reconciler.handle_changed(now.tick),
            Change::FirewallGone => self.reconciler.handle_firewall_gone(now.tick),
        }
    }

    /// What the reconciler asks of the kernel, one action at a time.
    pub(super) fn send_kernel_actions(&mut self) {
        while let Some(event) = self.reconciler.poll_event() {
            tracing::info!("kernel: {event:?}");
        }
        if let Some(action) = self.reconciler.poll_action() {
            if let KernelAction::Apply(steps) = &action {
                steps.iter().for_each(|step| tracing::debug!("kernel: {step}"));
            }
            self.effects.push_back(Effect::Kernel(action));
        }
    }

    pub(super) fn give_back_memory(&mut self, now: Now) {
        if self.memory.due.take_if(|at| *at <= now.tick).is_some() {
            self.memory.last = Some(now.tick);
            self.effects.push_back(Effect::GiveBackMemory);
        }
    }
}
