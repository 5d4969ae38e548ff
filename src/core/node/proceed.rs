//! The order in which what came in is followed up: events of the cores, then what is made of all, then whoever is told.

use super::{Awaited, Effect, Engine, Now};
use crate::wire::local::Notify;

impl Engine {
    /// Brings everything in step.
    pub fn proceed(&mut self, now: Now) {
        self.begin_login(now);
        self.handle_session_events(now);
        self.renew_peers(now);
        self.handle_netcheck_events(now);
        self.handle_book_events(now);
        self.handle_netcheck_events(now);
        self.proceed_with_rotation(now);
        self.renew_facts(now);
        self.renew_wish(now);
        self.renew_names();
        self.send_probes();
        self.send_netcheck();
        self.send_kernel_actions();
        if let Some(session) = &mut self.session {
            while let Some(transmit) = session.poll_transmit() {
                self.effects.push_back(Effect::Transmit(transmit));
            }
        }
        while let Some(file) = self.saves.poll(now) {
            let content = self.content(file, now);
            self.effects.push_back(Effect::Save(file, content));
        }
        self.renew_health(now);
        self.tell_settled(now);
        self.renew_host_names();
        self.tell_kept(now);
        self.tell_watchers(now);
    }

    /// Answers who waits for kernel and disk to hold what they should.
    fn tell_settled(&mut self, now: Now) {
        // What could not be had is health's matter where the rest works.
        let works = self.is_wish_current() && self.reconciler.works();
        self.login.has_run |= works && self.login.was_open && self.netmap.node().is_some();
        if self.is_settled() && self.saves.is_quiet(now) {
            for (id, _) in self.calls.take(|awaited| matches!(awaited, Awaited::Settled).then_some(())) {
                self.reply(id, self.status_json(false, now));
            }
        }
    }

    fn tell_watchers(&mut self, now: Now) {
        let state = self.state(now);
        if state != self.told_state {
            self.told_state = state;
            tracing::info!("state: {state}");
            self.notify(&Notify { state: Some(state.number()), ..Notify::default() });
        }
        let moved = self.watchers.take_moved(now.tick);
        if !moved.is_empty() {
            let paths = moved.iter().filter_map(|key| self.peer_path(key, now)).collect();
            self.notify(&Notify { paths, ..Notify::default() });
        }
        if self.health.take_changed() {
            self.notify(&Notify { health: Some(self.health.state()), ..Notify::default() });
        }
    }
}
