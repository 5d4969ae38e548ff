//! The session with the coordinator: when it is begun and ended, and what comes of its events.

use super::calls::{Awaited, Kept};
use super::{CallId, Effect, Engine, Now, StateFile};
use crate::control::{self, AuthKey, Failure, ServerUrl, Session, SessionEvent, Setup};
use crate::netmap::Netmap;
use crate::types::{NodePrivate, Timestamp};
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
    /// The kernel has held the wish since traffic was allowed, but for parts that nothing else depends on. What is
    /// still to do later is health's matter.
    pub(super) has_run: bool,
    /// The key that takes the place of the present one once the coordinator knows it.
    pub(super) next_key: Option<NodePrivate>,
    /// The session was told of that key.
    pub(super) next_key_told: bool,
    /// A log-in that waits until what this machine is known by is on disk.
    starting: Option<control::Login>,
    /// The coordinator does not know this machine any more: the network is closed.
    pub(super) signed_out: bool,
}

impl Engine {
    /// Begins, with a key or without.
    ///
    /// What a key is for is to come in: where we are in, it is not looked at.
    pub(super) fn start(&mut self, auth_key: &str, now: Now) {
        if !self.prefs.want_running {
            return self.stop_session(now);
        }
        let spent = self.key_is_spent(now);
        let comes_in = self.session.is_none() || self.login.needed || spent || self.netmap.node().is_none();
        if auth_key.is_empty() {
            let is_free = self.login.starting.is_none() && !self.identity.is_locked_out;
            if is_free
                && self.identity.node_key.is_some()
                && (self.session.is_none() || !self.login.online && !self.login.asked)
            {
                self.start_session(control::Login::default(), now);
            }
        } else if comes_in {
            self.unlock(now);
            self.login.asked = true;
            let login = control::Login { auth_key: Some(AuthKey::new(auth_key)), renew: spent };
            self.start_session(login, now);
        }
    }

    /// A person wants to let us in.
    pub(super) fn start_interactive(&mut self, now: Now) {
        if !self.login.auth_url.is_empty() {
            let url = Some(self.login.auth_url.clone());
            return self.notify(&Notify { browse_to_url: url, ..Notify::default() });
        }
        if self.login.asked {
            return;
        }
        self.unlock(now);
        self.login.asked = true;
        let renew = self.key_is_spent(now) || self.login.online;
        self.start_session(control::Login { auth_key: None, renew }, now);
    }

    /// Logs in once what this machine is known by is on disk.
    pub(super) fn start_session(&mut self, login: control::Login, now: Now) {
        if self.server(now).is_none() {
            return;
        }
        self.abandon_rotation("this machine signs in anew", now);
        self.go_to(&self.prefs.control_url.clone(), None, now);
        self.saves.want_owed(StateFile::MachineKey, now);
        self.node_key_or_new(now);
        self.login.needed = false;
        self.login.auth_url.clear();
        self.login.starting = Some(login);
        self.begin_login(now);
    }

    /// Begins what waits for the disk, where that is done.
    pub(super) fn begin_login(&mut self, now: Now) {
        if !self.saves.has_identity() {
            return;
        }
        if let Some(login) = self.login.starting.take() {
            self.open_session(now);
            if login.auth_key.is_none() && !login.renew && self.identity.spare_key.is_some() {
                self.resume_rotation(now);
            } else if let Some(session) = &mut self.session {
                session.handle_start(login, now.tick);
            }
        }
        if let (Some(key), Some(session)) = (&self.login.next_key, &mut self.session)
            && !std::mem::replace(&mut self.login.next_key_told, true)
        {
            session.handle_node_key(key.public(), now.tick);
        }
    }

    /// The keys cannot be written, so they are not used: the next start would not have them. Whoever asked is told.
    pub(super) fn give_up_login(&mut self, reason: &str, now: Now) {
        let is_asked = std::mem::take(&mut self.login.asked);
        if !is_asked {
            return;
        }
        self.login.starting = None;
        if self.session.is_none() && self.netmap.node().is_none() {
            // Nobody ever saw it.
            self.identity.node_key.set(None);
        }
        if self.login.next_key.is_some() {
            self.keep_key(now);
        }
        let text = format!(
            "this machine's keys cannot be written, so the coordinator was not asked to let it in, and an authentication \
             key is not spent: {reason}"
        );
        self.notify(&Notify { err_message: Some(text), ..Notify::default() });
    }

    /// Goes back from a key that was to be the next one, and was not let in. Where an answer was lost before, it may have
    /// been: it is tried where the present one is not known.
    pub(super) fn keep_key(&mut self, now: Now) {
        self.identity.spare_key = self.login.next_key.take();
        self.login.next_key_told = false;
        self.saves.want(StateFile::NodeKey, now);
        if let (Some(key), Some(session)) = (&*self.identity.node_key, &mut self.session) {
            session.handle_key_kept(key.public());
            session.handle_start(control::Login::default(), now.tick);
        }
    }

    /// The coordinator does not know the key that we have. Where we were about to change it when we ended, it may know
    /// the next one.
    fn try_spare_key(&mut self, now: Now) -> bool {
        let Some(spare) = self.identity.spare_key.take() else { return false };
        self.identity.node_key.set(Some(spare));
        self.keep_key(now);
        self.saves.want(StateFile::Map, now);
        true
    }

    fn server(&mut self, now: Now) -> Option<ServerUrl> {
        let parsed = self.prefs.control_url.parse().map_err(|error| {
            format!("coordinator `{}`: {error}; `warren up --coordinator URL`", self.prefs.control_url)
        });
        self.health.keep("coordinator-url", Severity::High, parsed.is_err(), now.wall, || {
            parsed.as_ref().err().cloned().unwrap_or_default()
        });
        parsed.ok()
    }

    /// Makes a session, and the connection that it will use, where there is none.
    fn open_session(&mut self, now: Now) {
        let node_key = self.identity.node_key.as_ref().map(NodePrivate::public);
        let (Some(server), Some(node_key), true) = (self.server(now), node_key, self.session.is_none()) else {
            return;
        };
        let setup = Setup {
            server: server.clone(),
            node_key,
            hostinfo: self.hostinfo(),
            disco_key: self.identity.disco_key.public(),
            endpoints: self.endpoints(),
            ephemeral: false,
        };
        self.session = Some(Session::new(setup, self.entropy.number()));
        let (server, machine_key) = (Box::new(server), self.identity.machine_key.clone());
        self.effects.push_back(Effect::Connect { server, machine_key, pin: self.home.pin.clone() });
    }

    pub(super) fn stop_session(&mut self, now: Now) {
        if let Some(session) = &mut self.session {
            session.handle_stop();
        }
        self.abandon_rotation("this machine leaves the network", now);
        self.login = Login { needed: self.login.needed, expired: self.login.expired, ..Login::default() };
    }

    /// Signs this machine out. The coordinator is asked to forget it, also where nobody talks to it at this moment.
    pub(super) fn logout(&mut self, id: CallId, now: Now) {
        self.calls.wait(id, Awaited::SignOut, None);
        self.abandon_rotation("this machine signs out", now);
        if self.identity.node_key.is_none() {
            return self.logged_out(None, now);
        }
        self.login.starting = None;
        if !self.identity.is_locked_out {
            self.open_session(now);
        }
        match &mut self.session {
            Some(session) => session.handle_logout(now.tick),
            None => self.logged_out(Some("this machine cannot talk to it as itself"), now),
        }
    }

    pub(super) fn handle_session_events(&mut self, now: Now) {
        while let Some(event) = self.session.as_mut().and_then(Session::poll_event) {
            self.handle_session_event(event, now);
        }
    }

    fn handle_session_event(&mut self, event: SessionEvent, now: Now) {
        match event {
            SessionEvent::AuthUrl(url) => {
                if self.login.next_key.is_none() {
                    if self.try_spare_key(now) {
                        return;
                    }
                    self.sign_out(now);
                    // Whatever it answered before means this.
                    self.health.clear("coordinator");
                }
                self.login.needed = true;
                self.login.auth_url.clone_from(&url);
                self.notify(&Notify { browse_to_url: Some(url), ..Notify::default() });
            }
            SessionEvent::NodeKeyWanted => {
                self.login.next_key = Some(NodePrivate::from_random(self.entropy.key()));
                self.login.next_key_told = false;
                self.saves.want(StateFile::NodeKey, now);
            }
            SessionEvent::LoggedIn { .. } => self.logged_in(now),
            SessionEvent::FullMap(map) => self.handle_map(*map, true, now),
            SessionEvent::Delta(map) => self.handle_map(*map, false, now),
            SessionEvent::KeyExpired => {
                self.login.expired = true;
                self.login.needed = true;
            }
            SessionEvent::LoggedOut { unheard } => {
                self.logged_out(unheard.map(|failure| failure.to_string()).as_deref(), now);
            }
            SessionEvent::Online => {
                self.login.online = true;
                self.note_confirmed(now);
                self.health.clear("coordinator");
                self.forgive_keys();
            }
            SessionEvent::Failed(failure) => self.handle_failure(&failure, now),
        }
    }

    fn logged_in(&mut self, now: Now) {
        if let Some(key) = self.login.next_key.take() {
            self.identity.node_key.set(Some(key));
            self.saves.want(StateFile::NodeKey, now);
        }
        if self.identity.spare_key.take().is_some() {
            self.saves.want(StateFile::NodeKey, now);
        }
        self.finish_rotation(now);
        self.login = Login { was_open: self.login.was_open, has_run: self.login.has_run, ..Login::default() };
        self.prefs.update(|prefs| std::mem::take(&mut prefs.logged_out));
        self.health.clear(&self.logout_code());
        self.saves.want(StateFile::Prefs, now);
        self.notify(&Notify { login_finished: Some(Default::default()), ..Notify::default() });
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
            self.netmap.edit().replace(map, time);
        } else {
            self.netmap.edit().apply(map, time);
        }
        self.confirmed = Some(time);
        self.saves.want(StateFile::Map, now);
        if told_of_us {
            let node = self.netmap.node().cloned().map(Box::new);
            self.notify(&Notify { self_change: node, ..Notify::default() });
        }
    }

    fn handle_failure(&mut self, failure: &Failure, now: Now) {
        self.note_confirmed(now);
        self.login.online = false;
        if let Failure::Stranger(found) = failure {
            let text = self.report_stranger(*found, now);
            return self.tell_asker(text);
        }
        let text = match failure {
            Failure::Unreachable(_) => format!("{failure}{}", self.by_last_map()),
            Failure::Status { status: 404, text } => {
                format!("the coordinator does not know this machine's key ({text}); it is asked to let it in again")
            }
            Failure::Status { .. }
            | Failure::Silent(_)
            | Failure::Busy(_)
            | Failure::Refused(_)
            | Failure::Stranger(_)
            | Failure::NotUnderstood(_) => failure.to_string(),
        };
        self.health.set("coordinator", Severity::Medium, text, now.wall);
        self.fail_rotation(failure, now);
        if matches!(failure, Failure::Refused(_)) {
            if self.login.next_key.is_some() && !self.key_is_spent(now) {
                // The key that we have is still good.
                self.keep_key(now);
            } else if self.login.next_key.is_some() || !self.try_spare_key(now) {
                self.sign_out(now);
                self.login.needed = true;
            }
            self.tell_asker(failure.to_string());
        }
    }

    /// Whoever asked for the log-in is told that it failed.
    fn tell_asker(&mut self, text: String) {
        if std::mem::take(&mut self.login.asked) {
            self.notify(&Notify { err_message: Some(text), ..Notify::default() });
        }
    }

    /// The coordinator says that it does not know this machine: it was deleted there, or signed out. Nothing of the map
    /// that it once sent holds, now or at the next start.
    fn sign_out(&mut self, now: Now) {
        if self.netmap.node().is_none() {
            return;
        }
        tracing::warn!("the coordinator does not know this machine any more: the network is closed");
        self.login.signed_out = true;
        *self.netmap.edit() = Netmap::default();
        self.confirmed = None;
        self.adopting = false;
        self.saves.want_gone(StateFile::Map, now);
    }

    /// The keys of this machine are forgotten here. Success is said where the coordinator heard of it, or there was
    /// nothing to say.
    fn logged_out(&mut self, unheard: Option<&str>, now: Now) {
        let text = unheard.map(|failure| {
            let name = self.netmap.node().map(|node| node.name.trim_end_matches('.').to_owned());
            let name = name.unwrap_or_else(|| self.hostinfo().hostname);
            format!(
                "signed out here, and the coordinator {} did not hear of it ({failure}): it still lists this machine as \
                 {name}; delete it there (`warren-coordinator node delete`)",
                self.home.url
            )
        });
        if let Some(text) = &text {
            self.health.note(&self.logout_code(), Severity::Medium, text.clone(), now.wall, now.tick);
        }
        self.session = None;
        self.identity.is_locked_out = false;
        self.forget(now);
        let prefs = self.prefs.edit();
        (prefs.want_running, prefs.logged_out) = (false, true);
        self.saves.want(StateFile::Prefs, now);
        self.notify(&Notify { prefs: Some(Box::new(self.prefs.clone())), ..Notify::default() });
        for (id, _) in self.calls.take(|awaited| matches!(awaited, Awaited::SignOut).then_some(())) {
            self.tell_when_kept(id, Kept::SignOut(text.clone()), now);
        }
    }

    /// The code of a sign-out that the present coordinator did not hear of. Whoever signs in there anew has the same
    /// node again; what another coordinator still lists is as true as before.
    fn logout_code(&self) -> String {
        format!("logout:{}", self.home.url)
    }

    /// Forgets who we were.
    pub(super) fn forget(&mut self, now: Now) {
        self.abandon_rotation("this machine signed out", now);
        self.identity.node_key.set(None);
        self.identity.spare_key = None;
        *self.netmap.edit() = Netmap::default();
        self.confirmed = None;
        self.login = Login::default();
        self.adopting = false;
        self.health.clear("coordinator");
        self.saves.want_gone(StateFile::NodeKey, now);
        self.saves.want_gone(StateFile::Map, now);
    }

    fn node_key_or_new(&mut self, now: Now) {
        if self.identity.node_key.is_none() {
            let key = NodePrivate::from_random(self.entropy.key());
            self.identity.node_key.set(Some(key));
            self.saves.want(StateFile::NodeKey, now);
        }
    }

    /// While the stream is open, the map is as good as confirmed.
    pub(super) fn note_confirmed(&mut self, now: Now) {
        if self.login.online && self.netmap.node().is_some() {
            self.confirmed = Some(self.time(now));
        }
    }

    /// How far we have come.
    pub(super) fn state(&self, now: Now) -> BackendState {
        let needed = self.login.needed || self.identity.is_locked_out || self.key_is_spent(now);
        if self.identity.node_key.is_none() || (self.prefs.want_running && needed) {
            BackendState::NeedsLogin
        } else if !self.prefs.want_running {
            BackendState::Stopped
        } else if self.netmap.node().is_some_and(|node| !node.machine_authorized) {
            BackendState::NeedsMachineAuth
        } else if self.login.has_run && !self.login.asked {
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
