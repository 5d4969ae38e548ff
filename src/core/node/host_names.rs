//! What this host's own resolver is to be told of names, and what became of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use data_encoding::BASE64;

use super::tracked::Computed;
use super::{Answer, CallId, Effect, Engine, Now};
use crate::dns::host::{HostNames, HostReport};
use crate::dns::{self, Explained, Outcome, QueryId, Transport, WayOut, Zones};
use crate::plan::Ability;
use crate::types::RESOLVER_ADDRESSES;
use crate::wire::control::Resolver;
use crate::wire::local::{DnsReply, DnsRoute, DnsStatusReply, Severity};

/// See the module.
#[derive(Default)]
pub(super) struct HostSide {
    /// The settings of the map; names of nodes are the resolver's business.
    zones: Zones,
    wished: HostNames,
    /// What had to be left out of it.
    left_out: Option<String>,
    made: Option<Computed<6>>,
    /// What whoever tells the host says, or why nobody does.
    heard: Option<Result<HostReport, String>>,
    /// The name servers that files name now.
    found: BTreeSet<IpAddr>,
    /// Those that the host's file named before it named us. Where nobody says anything any more, it may still do so.
    kept: Vec<IpAddr>,
}

impl Engine {
    /// These are the name servers that the host's files name.
    pub fn handle_resolvers(&mut self, found: BTreeSet<IpAddr>) {
        self.host_side.found = found;
        self.renew_resolvers();
    }

    /// How the host is told of names now; or why nobody can tell it.
    pub fn handle_host_report(&mut self, heard: Result<HostReport, String>) {
        if let Ok(report) = &heard {
            self.host_side.kept.clone_from(&report.upstreams);
        }
        self.host_side.heard = Some(heard);
        self.renew_resolvers();
    }

    /// Those that files name, and those that they named before we took their place.
    fn renew_resolvers(&mut self) {
        let HostSide { found, kept, .. } = &self.host_side;
        let servers = found.iter().chain(kept).filter(|server| !RESOLVER_ADDRESSES.contains(server));
        let servers = servers.copied().collect();
        self.surroundings.resolvers.set(servers);
    }

    /// Has the host told, where what it should be told is another than before.
    pub(super) fn renew_host_names(&mut self) {
        let Some(port) = self.settings.resolver_port else { return };
        // Before the kernel holds the addresses, nobody would answer there.
        let is_on = self.prefs.corp_dns && self.login.was_open && self.login.has_run && self.netmap.node().is_some();
        let lacking = self.reconciler.observed().map(|observed| &observed.lacking);
        let has_port_53 = lacking.is_some_and(|lacking| !lacking.contains(&Ability::Translate));
        let inputs = super::tracked::Inputs([
            self.netmap.version(),
            self.surroundings.resolvers.version(),
            self.prefs.version(),
            is_on.into(),
            has_port_53.into(),
            port.into(),
        ]);
        if !self.host_side.made.get_or_insert(Computed::NEVER).renew(inputs) {
            return;
        }
        let servers = self.name_servers();
        let way_out = self.way_out();
        self.host_side.zones.set_way_out(way_out);
        let is_other = self.host_side.zones.update_settings(&self.netmap, &servers);
        let before = self.host_side.wished.clone();
        let as_before = before.has_port_53 == has_port_53 && before.port == port;
        if is_on && !is_other && as_before && !before.is_nothing() {
            return;
        }
        let (wished, left_out) = match is_on {
            true => HostNames::of(&self.host_side.zones, port, has_port_53),
            false => (HostNames::default(), None),
        };
        self.host_side.left_out = left_out;
        if before != wished {
            self.host_side.wished = wished.clone();
            self.effects.push_back(Effect::HostNames(wished));
        }
    }

    /// What of it is not as it should be. It is never more than that: the network goes on.
    pub(super) fn renew_names_health(&mut self, now: Now) {
        let side = &self.host_side;
        let wanted = !side.wished.is_nothing();
        let is_told = matches!(&side.heard, Some(Ok(report)) if !report.told_by.is_empty());
        let trouble = match &side.heard {
            Some(Ok(report)) => report.trouble.clone(),
            Some(Err(missing)) => missing.clone(),
            None => String::new(),
        };
        let severity = if is_told { Severity::Low } else { Severity::Medium };
        let entries = [("host", trouble), ("left-out", side.left_out.clone().unwrap_or_default())];
        let entries = entries.into_iter().filter(|(_, text)| wanted && !text.is_empty());
        let entries = entries.map(|(code, text)| (code.to_owned(), text));
        let faults = side.zones.faults().iter().map(|fault| (fault.clone(), format!("names: {fault}")));
        let faults: Vec<_> = entries.chain(faults.filter(|_| wanted)).collect();
        self.health.set_kind("dns", severity, faults, now.wall);
    }

    /// Whether programs of this host ask us for names, and we our exit node.
    pub(super) fn asks_exit_node(&self) -> bool {
        let is_told = matches!(&self.host_side.heard, Some(Ok(report)) if !report.told_by.is_empty());
        is_told && matches!(self.way_out(), WayOut::Exit(Some(_)))
    }

    /// For `warren dns status`.
    pub(super) fn dns_status(&self) -> DnsStatusReply {
        let side = &self.host_side;
        let heard = side.heard.as_ref().filter(|_| !side.wished.is_nothing());
        let (told_by, trouble) = match heard {
            Some(Ok(report)) => (report.told_by.clone(), report.trouble.clone()),
            Some(Err(missing)) => (String::new(), missing.clone()),
            None => Default::default(),
        };
        let text = |servers: &[crate::dns::Upstream]| servers.iter().map(ToString::to_string).collect::<Vec<_>>();
        let is_open = self.login.was_open;
        let routes = side.zones.routes().filter(|_| is_open);
        DnsStatusReply {
            accept_dns: self.prefs.corp_dns,
            magic_dns: self.netmap.dns().proxied,
            domain: side.zones.base().map(ToString::to_string).unwrap_or_default(),
            told_by,
            trouble: [Some(trouble), side.left_out.clone()]
                .into_iter()
                .flatten()
                .filter(|text| !text.is_empty())
                .collect(),
            faults: side.zones.faults().to_vec(),
            answers: self.settings.resolver_port.is_some() && is_open,
            search: side.wished.search.iter().map(ToString::to_string).collect(),
            routes: routes
                .map(|(suffix, servers)| DnsRoute { suffix: suffix.to_string(), servers: text(servers) })
                .collect(),
            others: text(side.zones.others()),
        }
    }

    /// Answers a question for a name as our resolver does; [`Effect::Question`] where others are to be asked.
    pub(super) fn dns_query(&mut self, id: CallId, name: &str, kind: u16, now: Now) {
        // The number of a message that is answered here means nothing.
        let Some(message) = dns::question(name, kind, 0) else {
            return self.reply(id, Answer::refused(400, format!("{name:?} is no name")));
        };
        let mut server = dns::Server::new([0; 32]);
        self.update_resolver(&mut server);
        let explained = server.zones().explain(name, kind);
        match server.handle_query(now.tick, QueryId(0), Transport::Tcp, &message) {
            Outcome::Answer(bytes) => self.reply(id, dns_answer(&bytes, explained, Duration::ZERO)),
            Outcome::Later if self.settings.resolver_port.is_some() => {
                self.effects.push_back(Effect::Question { id, message, explained });
            }
            Outcome::Later | Outcome::Silence => {
                let text =
                    format!("{name:?} is no name of this network; ask this host's resolver, with `getent hosts`");
                self.reply(id, Answer::refused(501, text));
            }
        }
    }

    /// What of this host's resolver we have set, as official clients ask.
    pub(super) fn dns_os_config(&self) -> serde_json::Value {
        let side = &self.host_side;
        let is_told = matches!(&side.heard, Some(Ok(report)) if !report.told_by.is_empty());
        let HostNames { routes, search, everything, .. } =
            if is_told { side.wished.clone() } else { HostNames::default() };
        let servers = if is_told { RESOLVER_ADDRESSES.to_vec() } else { Vec::new() };
        let routes = if everything { Vec::new() } else { routes };
        serde_json::json!({ "Nameservers": servers, "SearchDomains": search, "MatchDomains": routes })
    }
}

/// The answer to a question for a name.
pub fn dns_answer(bytes: &[u8], explained: Explained, took: Duration) -> Answer {
    let resolver = |addr| Resolver { addr, ..Resolver::default() };
    Answer::json(&DnsReply {
        bytes: BASE64.encode(bytes),
        resolvers: explained.servers.into_iter().map(resolver).collect(),
        rule: explained.rule,
        milliseconds: took.as_secs_f64() * 1e3,
    })
}
