//! Answers to the local socket.

use std::time::Duration;

use serde_json::json;

use super::calls::{Awaited, Counters, Kept, TableQuestion};
use super::health::code;
use super::{Answer, CallId, Caller, Effect, Engine, Now, Refusal, Request, StateFile, Subject, VERSION};
use crate::control::ServerUrl;
use crate::plan::diff;
use crate::types::{CapabilityVersion, Fingerprint, IpNet, NodeId, UserId};
use crate::wire::control::{Node, UserProfile};
use crate::wire::local::{
    BackendState, HealthReply, LoginProfile, Mask, MaskedPrefs, NetworkProfile, Notify, PlanReply, Prefs, StartOptions,
    VersionReply, WhoIs,
};

/// How long somebody waits for the kernel to hold the wish before being told how far it is.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a status waits for fresh counters.
const LOOK: Duration = Duration::from_secs(1);

impl Engine {
    /// Somebody at the local socket asks: [`Effect::Answer`] or [`Effect::Watch`] of this number comes, now or later.
    pub fn handle_call(&mut self, id: CallId, caller: &Caller, request: Request, now: Now) {
        if request.changes() && !self.may_change(caller) {
            return self.reply(id, Answer::refused(403, "this needs root or a member of the operator group"));
        }
        let answer = match request {
            // What has to wait for something.
            Request::Status { peers: true } if self.has_device() => return self.look(id, now),
            Request::Settled => return self.calls.wait(id, Awaited::Settled, Some(now.tick + SETTLE)),
            Request::Kept => return self.tell_when_kept(id, Kept::Health, now),
            Request::Logout => return self.logout(id, now),
            Request::RotateKeys => return self.rotate_keys(id, now),
            Request::Ping(address, kind) => return self.ping(id, address, kind, now),
            Request::Netcheck => return self.netcheck(id, now),
            Request::Relays => return self.ask_counters(id, Counters::Relays, now),
            Request::Metrics { all } => return self.ask_counters(id, Counters::Metrics { all }, now),
            Request::DnsQuery(name, kind) => return self.dns_query(id, &name, kind, now),
            Request::Acl => return self.ask_table(id, TableQuestion::Acl),
            Request::Why(question) => return self.ask_why(id, question),
            Request::Watch(mask) => return self.watch(id, mask, now),
            // What is known.
            Request::EditPrefs(change) => self.edit_prefs(change, now),
            Request::Start(options) => self.handle_start(options, now),
            Request::Login => self.handle_login(now),
            Request::CheckPrefs(prefs) => Ok(checked(&prefs)),
            Request::Status { peers } => Ok(self.status_json(peers, now)),
            Request::WhoIs(subject) => self.who_is(subject).map(|found| Answer::json(&found)),
            Request::Peer(id) => self.node(id).map(Answer::json),
            Request::User(id) => self.user(id).map(Answer::json),
            Request::Prefs => Ok(Answer::json(&*self.prefs)),
            Request::DerpMap => Ok(Answer::json(self.netmap.derp())),
            Request::DnsConfig => Ok(Answer::json(self.netmap.dns())),
            Request::DnsOsConfig => Ok(Answer::json(&self.dns_os_config())),
            Request::DnsStatus => Ok(Answer::json(&self.dns_status())),
            Request::Dial(host, port) => self.dial(&host, port),
            Request::NetMap => Ok(self.net_map()),
            Request::BugReport(note) => Ok(self.bug_report(&note, now)),
            Request::LockStatus => Ok(Answer::json(&json!({ "Enabled": false }))),
            Request::Features => Ok(Answer::json(&json!({ "Features": {} }))),
            // Packets pass in the kernel, so there is nothing to warn of.
            Request::CheckGro => Ok(Answer::json(&json!({ "Warning": "" }))),
            Request::CertDomains => Ok(Answer::json(&self.netmap.dns().cert_domains)),
            Request::Profile => Ok(Answer::json(&self.profile())),
            Request::ServeConfig => Ok(Answer::json(&json!({}))),
            Request::Profiles => Ok(Answer::json(&[self.profile()])),
            Request::Plan => self.plan().map(|plan| Answer::json(&plan)),
            Request::Health => Ok(Answer::json(&HealthReply { entries: self.health.entries() })),
            Request::Version => Ok(Answer::json(&VersionReply {
                version: VERSION.to_owned(),
                capability_version: CapabilityVersion::CURRENT.0,
            })),
        };
        self.reply(id, answer);
    }

    fn may_change(&self, caller: &Caller) -> bool {
        let named = &self.prefs.operator_user;
        caller.is_operator || (!named.is_empty() && caller.name.as_ref() == Some(named))
    }

    fn has_device(&self) -> bool {
        self.reconciler.observed().is_some_and(|observed| observed.device.is_some())
    }

    /// A status is to have fresh counters.
    fn look(&mut self, id: CallId, now: Now) {
        self.calls.wait(id, Awaited::Look, Some(now.tick + LOOK));
        self.reconciler.handle_changed(now.tick);
    }

    fn edit_prefs(&mut self, change: MaskedPrefs, now: Now) -> Result<Answer, Refusal> {
        let prefs = change.apply(&self.prefs).map_err(bad_request)?;
        self.take_prefs(prefs, None, now)?;
        self.start("", now);
        Ok(Answer::json(&*self.prefs))
    }

    fn handle_login(&mut self, now: Now) -> Result<Answer, Refusal> {
        self.check_coordinator()?;
        self.start_interactive(now);
        Ok(Answer::Done)
    }

    fn handle_start(&mut self, options: StartOptions, now: Now) -> Result<Answer, Refusal> {
        let StartOptions { update_prefs, auth_key, coordinator_key } = options;
        if let Some(prefs) = update_prefs {
            self.take_prefs(*prefs, coordinator_key, now)?;
        }
        if self.prefs.want_running {
            self.check_coordinator()?;
        }
        if let Some(told) = coordinator_key {
            self.take_word(told, now);
        }
        self.start(&auth_key, now);
        // Whoever starts us waits to be told how far we are, also where that is no news.
        self.told_state = BackendState::NoState;
        Ok(Answer::Done)
    }

    /// Takes new preferences, or none of them.
    fn take_prefs(&mut self, prefs: Prefs, told: Option<Fingerprint>, now: Now) -> Result<(), Refusal> {
        prefs.check().map_err(bad_request)?;
        self.health.clear(code::PREFS);
        if prefs == *self.prefs {
            return Ok(());
        }
        if !prefs.control_url.is_empty() {
            prefs
                .control_url
                .parse::<ServerUrl>()
                .map_err(|error| bad_request(format!("coordinator `{}`: {error}", prefs.control_url)))?;
        }
        if prefs.control_url != self.prefs.control_url {
            self.go_to(&prefs.control_url, told, now);
        }
        self.prefs.set(prefs);
        self.saves.want(StateFile::Prefs, now);
        self.notify(&Notify { prefs: Some(Box::new(self.prefs.clone())), ..Notify::default() });
        Ok(())
    }

    /// Without a coordinator nothing can be started, and nobody must be told that it was.
    fn check_coordinator(&self) -> Result<(), Refusal> {
        if self.prefs.control_url.is_empty() {
            return Err(bad_request("no coordinator is named; `warren up --coordinator URL`"));
        }
        Ok(())
    }

    fn watch(&mut self, id: CallId, mask: Mask, now: Now) {
        let state = self.state(now);
        let first = Notify {
            session_id: format!("{:016x}", self.entropy.number()),
            state: mask.has(Mask::INITIAL_STATE).then(|| state.number()),
            browse_to_url: (mask.has(Mask::INITIAL_STATE) && !self.login.auth_url.is_empty())
                .then(|| self.login.auth_url.clone()),
            prefs: mask.has(Mask::INITIAL_PREFS).then(|| Box::new(self.prefs.clone())),
            health: mask.has(Mask::INITIAL_HEALTH).then(|| self.health.state()),
            initial_status: mask
                .has(Mask::INITIAL_STATUS)
                .then(|| Box::new(self.status(self.peers(now).collect(), now))),
            ..Notify::default()
        };
        let first = self.watchers.add(id, &first);
        self.effects.push_back(Effect::Watch(id, first));
    }

    fn who_is(&self, subject: Subject) -> Result<WhoIs, Refusal> {
        let unknown = || Refusal::new(404, "no peer match");
        let ours = self.netmap.node().filter(|node| match subject {
            Subject::Address(address) => self.netmap.addresses().contains(&IpNet::from(address)),
            Subject::Key(key) => node.key == key,
        });
        let node = match (ours, subject) {
            (Some(node), _) => node,
            (None, Subject::Address(address)) => &*self.netmap.owner(&IpNet::from(address)).ok_or_else(unknown)?.node,
            (None, Subject::Key(key)) => &*self.netmap.peer_by_key(&key).ok_or_else(unknown)?.node,
        };
        Ok(WhoIs { node: node.clone(), user_profile: self.owner_of(node), ..WhoIs::default() })
    }

    /// A tagged node belongs to its tags and to no person.
    fn owner_of(&self, node: &Node) -> UserProfile {
        const TAGGED: &str = "tagged-devices";
        if !node.tags.is_empty() {
            return UserProfile {
                id: node.user,
                login_name: TAGGED.to_owned(),
                display_name: TAGGED.to_owned(),
                ..UserProfile::default()
            };
        }
        self.netmap.user(node.user).cloned().unwrap_or_default()
    }

    fn node(&self, id: NodeId) -> Result<&Node, Refusal> {
        let mut nodes = self.netmap.told_peers().map(|node| &**node);
        nodes.find(|node| node.id == id).ok_or_else(|| Refusal::new(404, "no peer of that number"))
    }

    fn user(&self, id: UserId) -> Result<&UserProfile, Refusal> {
        self.netmap.user(id).ok_or_else(|| Refusal::new(404, "no user of that number"))
    }

    fn plan(&self) -> Result<PlanReply, Refusal> {
        let unknown = || Refusal::new(503, "nothing is known yet of what the kernel holds and should hold; try again");
        let (desired, observed) = self.reconciler.desired().zip(self.reconciler.observed()).ok_or_else(unknown)?;
        let plan = diff(desired, observed);
        Ok(PlanReply { steps: plan.steps.iter().map(ToString::to_string).collect() })
    }

    fn profile(&self) -> LoginProfile {
        let Some(node) = self.netmap.node() else { return LoginProfile::default() };
        let user_profile = self.owner_of(node);
        LoginProfile {
            id: "0".to_owned(),
            name: user_profile.login_name.clone(),
            network_profile: NetworkProfile {
                magic_dns_name: super::report::suffix(node).to_owned(),
                domain_name: self.netmap.domain().to_owned(),
                display_name: self.netmap.domain().to_owned(),
            },
            key: "profile-0".to_owned(),
            user_profile,
            node_id: node.stable_id.clone(),
            local_user_id: String::new(),
            control_url: self.prefs.control_url.clone(),
        }
    }
}

fn bad_request(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(400, error.to_string())
}

fn checked(prefs: &Prefs) -> Answer {
    match prefs.check() {
        Ok(()) => Answer::json(&json!({})),
        Err(error) => Answer::json(&json!({ "Error": error.to_string() })),
    }
}
