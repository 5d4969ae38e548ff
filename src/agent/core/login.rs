//! The session with the coordinator: when it is begun and ended, and what comes of its events.

use super::{Core, Effect, Now, Stale};
use crate::agent::clock;
use crate::agent::local_api::Answer;
use crate::agent::state::StateFile;
use crate::control::{self, AuthKey, Event, Failure, ServerUrl, Session, Setup};
use crate::netmap::Netmap;
use crate::types::{NodePrivate, NodePublic, Timestamp};
use crate::wire::control::MapResponse;
use crate::wire::local::{BackendState, Notify, Severity};

/// How far we are with the coordinator.
#[derive(Debug, Default)]
pub(super) struct Login {
    /// The page where a person lets us in.
    pub(super) auth_url: String,
    /// The coordinator does not let us in as we are.
    pub(super) needed: bool,
    /// It says that our key has run out.
    pub(super) expired: bool,
    /// A log-in is under way that somebody asked for: a refusal is their answer.
    pub(super) asked: bool,
    /// The map stream is open.
    pub(super) online: bool,
    /// Whether traffic was allowed when the wish was last computed.
    pub(super) was_open: bool,
    /// The kernel has held the whole wish since traffic was allowed. What is still to do later is health's matter.
    pub(super) has_run: bool,
    /// The key that takes the place of the present one once the coordinator knows it.
    pub(super) next_key: Option<NodePrivate>,
}

impl Core {
    /// Begins, with a key or without.
    ///
    /// What a key is for is to come in: where we are in, it is not looked at.
    pub(super) fn start(&mut self, auth_key: &str, now: Now) {
        if !self.prefs.want_running {
            return self.stop_session();
        }
        let spent = self.key_is_spent(now);
        let comes_in = self.session.is_none() || self.login.needed || spent || self.netmap.node().is_none();
        if auth_key.is_empty() {
            if self.node_key.is_some() && (self.session.is_none() || !self.login.online && !self.login.asked) {
                self.start_session(control::Login::default(), now);
            }
        } else if comes_in {
            self.login.asked = true;
            let login = control::Login { auth_key: Some(AuthKey::new(auth_key)), renew: spent };
            self.start_session(login, now);
        }
    }

    /// A person wants to let us in.
    pub(super) fn start_interactive(&mut self, now: Now) {
        if !self.login.auth_url.is_empty() {
            let url = Some(self.login.auth_url.clone());
            return self.watchers.tell(&Notify { browse_to_url: url, ..Notify::default() });
        }
        if self.login.asked {
            return;
        }
        self.login.asked = true;
        let renew = self.key_is_spent(now) || self.login.online;
        self.start_session(control::Login { auth_key: None, renew }, now);
    }

    pub(super) fn start_session(&mut self, login: control::Login, now: Now) {
        let server: ServerUrl = match self.prefs.control_url.parse() {
            Ok(server) => server,
            Err(error) => {
                let text = format!("coordinator `{}`: {error}; `warren up --coordinator URL`", self.prefs.control_url);
                return self.health.set("coordinator-url", Severity::High, text, now.wall);
            }
        };
        self.health.clear("coordinator-url");
        let node_key = self.node_key_or_new(now);
        if self.session.is_none() {
            let setup = Setup {
                server: server.clone(),
                node_key,
                hostinfo: self.hostinfo(),
                disco_key: self.disco_key.public(),
                endpoints: self.endpoints(),
                ephemeral: false,
            };
            self.session = Some(Session::new(setup, clock::seed()));
            self.effects.push_back(Effect::Connect(Box::new(server), self.machine_key.clone()));
        }
        self.login.needed = false;
        self.login.auth_url.clear();
        if let Some(session) = &mut self.session {
            session.handle_start(login, now.tick);
        }
    }

    pub(super) fn stop_session(&mut self) {
        if let Some(session) = &mut self.session {
            session.handle_stop();
        }
        self.login = Login { needed: self.login.needed, expired: self.login.expired, ..Login::default() };
        self.stale.wish = true;
    }

    /// The coordinator has another address: nothing of the old one holds there.
    pub(super) fn leave_coordinator(&mut self, now: Now) {
        if let Some(session) = &mut self.session {
            session.handle_stop();
            while let Some(transmit) = session.poll_transmit() {
                self.effects.push_back(Effect::Transmit(transmit));
            }
        }
        self.session = None;
        self.forget(now);
    }

    pub(super) fn logout(&mut self, reply: tokio::sync::oneshot::Sender<Answer>, now: Now) {
        self.logging_out.push(reply);
        match &mut self.session {
            Some(session) if self.node_key.is_some() => session.handle_logout(now.tick),
            _ => self.logged_out(true, now),
        }
    }

    pub(super) fn handle_session_events(&mut self, now: Now) {
        while let Some(event) = self.session.as_mut().and_then(Session::poll_event) {
            self.handle_session_event(event, now);
        }
    }

    fn handle_session_event(&mut self, event: Event, now: Now) {
        match event {
            Event::AuthUrl(url) => {
                self.login.needed = true;
                self.login.auth_url.clone_from(&url);
                self.watchers.tell(&Notify { browse_to_url: Some(url), ..Notify::default() });
            }
            Event::NodeKeyWanted => {
                let key = NodePrivate::from_random(clock::key_bytes());
                let public = key.public();
                self.login.next_key = Some(key);
                self.saves.want(StateFile::NodeKey, now);
                if let Some(session) = &mut self.session {
                    session.handle_node_key(public, now.tick);
                }
            }
            Event::LoggedIn { .. } => self.logged_in(now),
            Event::FullMap(map) => self.handle_map(*map, true, now),
            Event::Delta(map) => self.handle_map(*map, false, now),
            Event::KeyExpired => {
                self.login.expired = true;
                self.login.needed = true;
            }
            Event::LoggedOut { told } => self.logged_out(told, now),
            Event::Online => {
                self.login.online = true;
                self.note_confirmed(now);
                self.health.clear("coordinator");
            }
            Event::Failed(failure) => self.handle_failure(&failure, now),
        }
    }

    fn logged_in(&mut self, now: Now) {
        if let Some(key) = self.login.next_key.take() {
            self.node_key = Some(key);
            self.stale = Stale { wish: true, ..self.stale };
        }
        self.login = Login { was_open: self.login.was_open, has_run: self.login.has_run, ..Login::default() };
        self.prefs.logged_out = false;
        self.saves.want(StateFile::Prefs, now);
        self.watchers.tell(&Notify { login_finished: Some(Default::default()), ..Notify::default() });
    }

    fn handle_map(&mut self, map: MapResponse, whole: bool, now: Now) {
        let told_of_us = map.node.is_some();
        if self.login.expired && map.node.as_ref().is_some_and(|node| !node.expired) {
            // An administrator let the key go on: it needs no log-in any more.
            (self.login.expired, self.login.needed) = (false, false);
        }
        if let Some(at) = map.control_time {
            self.clock.handle_told(at, now);
        }
        let time = self.time(now);
        if whole {
            self.netmap.replace(map, time);
        } else {
            self.netmap.apply(map, time);
        }
        self.confirmed = Some(time);
        self.stale.paths = true;
        self.stale.wish = true;
        self.saves.want(StateFile::Map, now);
        if told_of_us {
            let node = self.netmap.node().cloned().map(Box::new);
            self.watchers.tell(&Notify { self_change: node, ..Notify::default() });
        }
    }

    fn handle_failure(&mut self, failure: &Failure, now: Now) {
        self.note_confirmed(now);
        self.login.online = false;
        self.health.set("coordinator", Severity::Medium, failure.to_string(), now.wall);
        if matches!(failure, Failure::Refused(_)) {
            self.login.needed = true;
            if std::mem::take(&mut self.login.asked) {
                self.watchers.tell(&Notify { err_message: Some(failure.to_string()), ..Notify::default() });
            }
        }
    }

    fn logged_out(&mut self, told: bool, now: Now) {
        if !told {
            let text = "logged out here, but the coordinator did not hear of it; delete this machine there";
            self.health.note("logout", Severity::Medium, text, now.wall, now.tick);
        }
        self.session = None;
        self.forget(now);
        self.prefs.want_running = false;
        self.prefs.logged_out = true;
        self.saves.want(StateFile::Prefs, now);
        self.watchers.tell(&Notify { prefs: Some(Box::new(self.prefs.clone())), ..Notify::default() });
        for reply in std::mem::take(&mut self.logging_out) {
            let _ = reply.send(Answer::Done);
        }
    }

    /// Forgets who we were.
    fn forget(&mut self, now: Now) {
        self.node_key = None;
        self.netmap = Netmap::default();
        self.confirmed = None;
        self.login = Login::default();
        self.adopting = false;
        self.health.clear("coordinator");
        self.stale.paths = true;
        self.stale.wish = true;
        self.saves.want_gone(StateFile::NodeKey, now);
        self.saves.want_gone(StateFile::Map, now);
    }

    fn node_key_or_new(&mut self, now: Now) -> NodePublic {
        let key = match &self.node_key {
            Some(key) => key.clone(),
            None => {
                self.saves.want(StateFile::NodeKey, now);
                NodePrivate::from_random(clock::key_bytes())
            }
        };
        self.node_key.insert(key).public()
    }

    /// While the stream is open, the map is as good as confirmed.
    pub(super) fn note_confirmed(&mut self, now: Now) {
        if self.login.online && self.netmap.node().is_some() {
            self.confirmed = Some(self.time(now));
        }
    }

    /// How far we have come.
    pub(super) fn state(&self, now: Now) -> BackendState {
        let needed = self.login.needed || self.key_is_spent(now);
        if self.node_key.is_none() || (self.prefs.want_running && needed) {
            BackendState::NeedsLogin
        } else if !self.prefs.want_running {
            BackendState::Stopped
        } else if self.netmap.node().is_some_and(|node| !node.machine_authorized) {
            BackendState::NeedsMachineAuth
        } else if self.login.has_run {
            BackendState::Running
        } else {
            BackendState::Starting
        }
    }

    /// Whether our own key has run out, by the coordinator's word or by the clock.
    pub(super) fn key_is_spent(&self, now: Now) -> bool {
        self.login.expired || self.own_expiry().is_some_and(|at| at <= self.time(now))
    }

    /// When our own key runs out.
    pub(super) fn own_expiry(&self) -> Option<Timestamp> {
        self.netmap.node().and_then(|node| node.key_expiry)
    }
}
