//! Answers to the local socket.

use std::time::Duration;

use tokio::sync::oneshot;

use super::load::code;
use super::stored::Kept;
use super::why::Question;
use super::{Core, Effect, Now};
use crate::VERSION;
use crate::local_api::{Answer, Ask, Call, Caller, Refusal, Subject};
use crate::state::StateFile;
use warren_core::control::ServerUrl;
use warren_core::plan::diff;
use warren_core::types::{CapabilityVersion, Fingerprint, IpNet, NodeId, UserId};
use warren_core::wire::control::{Node, UserProfile};
use warren_core::wire::local::{
    BackendState, HealthReply, LoginProfile, Mask, NetworkProfile, Notify, PlanReply, Prefs, StartOptions,
    VersionReply, WhoIs,
};

/// How long somebody waits for the kernel to hold the wish before being told how far it is.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a status waits for fresh counters.
const LOOK: Duration = Duration::from_secs(1);

impl Core {
    /// Answers a question, now or later.
    pub fn handle_call(&mut self, call: Call, now: Now) {
        let Call { caller, ask, reply } = call;
        if ask.changes() && !self.may_change(&caller) {
            return send(reply, Answer::refused(403, "this needs root or a member of the operator group"));
        }
        match ask {
            Ask::Status { peers: true } if self.reconciler.observed().is_some_and(|seen| seen.device.is_some()) => {
                self.looking.push((now.tick + LOOK, reply));
                self.reconciler.handle_changed(now.tick);
            }
            Ask::Settled => self.settling.push((now.tick + SETTLE, reply)),
            Ask::Kept => self.tell_when_kept(Kept::Health, reply, now),
            Ask::Logout => self.logout(reply, now),
            Ask::Ping(address, kind) => self.ping(address, kind, reply, now),
            Ask::Netcheck => self.netcheck(reply, now),
            Ask::Relays => self.effects.push_back(Effect::Counters(self.relays_reply(), reply)),
            Ask::Metrics { all } => self.metrics(all, reply),
            Ask::Acl => self.ask_kernel(Question::Acl, reply),
            Ask::Why(question) => self.ask_why(question, reply),
            ask => {
                let answer = self.answer(ask, now);
                send(reply, answer.unwrap_or_else(Answer::Refused));
            }
        }
    }

    fn may_change(&self, caller: &Caller) -> bool {
        let named = &self.prefs.operator_user;
        caller.is_operator || (!named.is_empty() && caller.name.as_ref() == Some(named))
    }

    fn answer(&mut self, ask: Ask, now: Now) -> Result<Answer, Refusal> {
        Ok(match ask {
            Ask::Status { peers } => self.status_json(peers, now),
            Ask::WhoIs(subject) => Answer::json(&self.who_is(subject)?),
            Ask::Peer(id) => Answer::json(self.node(id)?),
            Ask::User(id) => Answer::json(&self.user(id)?),
            Ask::Prefs => Answer::json(&self.prefs),
            Ask::EditPrefs(change) => {
                let prefs = change.apply(&self.prefs).map_err(bad_request)?;
                self.take_prefs(prefs, None, now)?;
                self.start("", now);
                Answer::json(&self.prefs)
            }
            Ask::CheckPrefs(prefs) => match prefs.check() {
                Ok(()) => Answer::json(&serde_json::json!({})),
                Err(error) => Answer::json(&serde_json::json!({ "Error": error.to_string() })),
            },
            Ask::Start(options) => {
                self.handle_start(options, now)?;
                Answer::Done
            }
            Ask::Login => {
                self.check_coordinator()?;
                self.start_interactive(now);
                Answer::Done
            }
            Ask::Watch(mask) => self.watch(mask, now),
            Ask::DerpMap => Answer::json(self.netmap.derp()),
            Ask::DnsConfig => Answer::json(self.netmap.dns()),
            Ask::DnsQuery(name, kind) => self.dns_query(&name, kind)?,
            Ask::DnsOsConfig => {
                Answer::json(&serde_json::json!({ "Nameservers": [], "SearchDomains": [], "MatchDomains": [] }))
            }
            Ask::Dial(host, port) => self.dial(&host, port)?,
            Ask::NetMap => self.net_map(),
            Ask::BugReport(note) => self.bug_report(&note, now),
            Ask::LockStatus => Answer::json(&serde_json::json!({ "Enabled": false })),
            Ask::Features => Answer::json(&serde_json::json!({ "Features": {} })),
            // Packets pass in the kernel, so there is nothing to warn of.
            Ask::CheckGro => Answer::json(&serde_json::json!({ "Warning": "" })),
            Ask::CertDomains => Answer::json(&self.netmap.dns().cert_domains),
            Ask::Profile => Answer::json(&self.profile()),
            Ask::ServeConfig => Answer::json(&serde_json::Map::new()),
            Ask::Profiles => Answer::json(&[self.profile()]),
            Ask::Plan => Answer::json(&self.plan()?),
            Ask::Health => Answer::json(&HealthReply { entries: self.health.entries() }),
            Ask::Version => Answer::json(&VersionReply {
                version: VERSION.to_owned(),
                capability_version: CapabilityVersion::CURRENT.0,
            }),
            Ask::Settled
            | Ask::Kept
            | Ask::Logout
            | Ask::Ping(..)
            | Ask::Netcheck
            | Ask::Relays
            | Ask::Acl
            | Ask::Why(_)
            | Ask::Metrics { .. } => Answer::refused(500, "answered elsewhere"),
        })
    }

    fn handle_start(&mut self, options: StartOptions, now: Now) -> Result<(), Refusal> {
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
        Ok(())
    }

    /// Takes new preferences, or none of them.
    fn take_prefs(&mut self, prefs: Prefs, told: Option<Fingerprint>, now: Now) -> Result<(), Refusal> {
        prefs.check().map_err(bad_request)?;
        self.health.clear(code::PREFS);
        if prefs == self.prefs {
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
        self.prefs = prefs;
        self.saves.want(StateFile::Prefs, now);
        self.stale = super::Stale { paths: true, wish: true, facts: true };
        self.watchers.tell(&Notify { prefs: Some(Box::new(self.prefs.clone())), ..Notify::default() });
        Ok(())
    }

    /// Without a coordinator nothing can be started, and nobody must be told that it was.
    fn check_coordinator(&self) -> Result<(), Refusal> {
        if self.prefs.control_url.is_empty() {
            return Err(bad_request("no coordinator is named; `warren up --coordinator URL`"));
        }
        Ok(())
    }

    fn watch(&mut self, mask: Mask, now: Now) -> Answer {
        let state = self.state(now);
        let first = Notify {
            session_id: format!("{:016x}", crate::clock::seed()),
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
        Answer::Stream(self.watchers.add(Some(&first)))
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

/// Nobody waits any more where this fails.
fn send(reply: oneshot::Sender<Answer>, answer: Answer) {
    let _ = reply.send(answer);
}
