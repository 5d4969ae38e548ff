//! A port of the gateway that leads to us: PCP (RFC 6887), NAT-PMP (RFC 6886), UPnP's internet gateway device.
//!
//! The three are tried in turn, each with a few questions within a second or two; the first that opens a port keeps it
//! open. A mapping is renewed at half its lifetime, and sooner where the gateway has lost its memory: each answer says
//! since when it remembers, and a look now and then makes it answer. Only the gateway is believed, and a description is
//! read from its own address alone.
//!
//! A gateway is asked only where our address on its link is a private one: with an address of the whole world there is
//! nothing to map, and a data centre's router has nothing to do with us.

mod attempt;
mod news;
mod upnp;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

pub use news::{Action, Input};

use self::attempt::{Attempt, Progress, Protocol, ProtocolKind};
use super::{Gateway, MappingReport};
use crate::types::OVERLAY_V4;
use crate::wire::portmap::{Location, PORT, nat_pmp, pcp};

/// How long a mapping is asked for: what RFC 6886 §3.3 recommends.
const LIFETIME: Duration = Duration::from_secs(7_200);
/// A gateway that grants more or less than this is not taken at its word: renewals stay between a minute and half a day.
const GRANTED_LEAST: Duration = Duration::from_secs(120);
const GRANTED_MOST: Duration = Duration::from_secs(24 * 3_600);
/// A gateway that opened nothing is not asked again for this long.
const REST: Duration = Duration::from_secs(10 * 60);
/// A mapping this young is not looked after.
const CHECK_EVERY: Duration = Duration::from_secs(4 * 60);
/// A gateway that claims to forget all the time is not asked more often than this.
const LEAST_PAUSE: Duration = Duration::from_secs(30);
/// Slack in the comparison of a gateway's clock with ours (RFC 6887 §8.5).
const EPOCH_SLACK: u64 = 2;

/// The mapping, and the way to it.
#[derive(Debug)]
pub struct PortMapper {
    /// WireGuard's, which is to be mapped.
    port: u16,
    nonce: [u8; 12],
    gateway: Option<Gateway>,
    report: MappingReport,
    attempt: Option<Attempt>,
    held: Option<Held>,
    /// When the last attempt failed.
    failed: Option<Instant>,
    /// Numbers the questions over HTTP.
    questions: u64,
    actions: VecDeque<Action>,
}

/// A mapping that stands.
#[derive(Clone, Debug)]
struct Held {
    protocol: Protocol,
    external: SocketAddr,
    renew: Instant,
    expires: Instant,
    looked_after: Instant,
    granted: Instant,
    /// The gateway's memory at the last answer.
    epoch: Option<(u32, Instant)>,
}

impl PortMapper {
    /// Maps nothing until it is told to. The nonce binds mappings to this machine.
    pub fn new(port: u16, nonce: [u8; 12]) -> Self {
        Self {
            port,
            nonce,
            gateway: None,
            report: MappingReport::default(),
            attempt: None,
            held: None,
            failed: None,
            questions: 0,
            actions: VecDeque::new(),
        }
    }

    /// Takes the gateway, whenever it changes. What another one opened does not help here.
    pub fn handle_gateway(&mut self, gateway: Option<Gateway>) {
        let gateway = gateway.filter(|gateway| is_inside(gateway.local));
        if gateway != self.gateway {
            self.forget();
            self.gateway = gateway;
        }
    }

    /// A mapping is wanted: gets one where there is none, looks after the one that is there.
    pub fn handle_wanted(&mut self, now: Instant) {
        let Some(gateway) = self.gateway.filter(|_| self.attempt.is_none()) else { return };
        let Some(held) = &mut self.held else {
            if self.failed.is_none_or(|failed| now >= failed + REST) {
                self.begin(Protocol::Pcp, now);
            }
            return;
        };
        if now < held.looked_after + CHECK_EVERY {
            return;
        }
        held.looked_after = now;
        match held.protocol {
            Protocol::Pcp => self.send(gateway, pcp::announce(gateway.local)),
            Protocol::NatPmp => self.send(gateway, nat_pmp::address()),
            Protocol::Upnp(_) => self.renew(now),
        }
    }

    /// Gives the mapping back: this node leaves the network.
    pub fn handle_release(&mut self) {
        if let (Some(held), Some(gateway)) = (self.held.take(), self.gateway) {
            match &held.protocol {
                Protocol::Pcp => self.send(gateway, pcp::map(&self.pcp_request(gateway, 0, 0))),
                Protocol::NatPmp => self.send(gateway, nat_pmp::map(self.port, 0, 0)),
                Protocol::Upnp(service) => {
                    let call = service.delete_port_mapping(held.external.port());
                    let place = service.control.clone();
                    self.ask(place, Some(call));
                }
            }
        }
        self.attempt = None;
        self.failed = None;
        self.report = MappingReport::default();
    }

    /// Takes what came from the network; what others than the gateway say is passed over.
    pub fn handle_input(&mut self, news: Input, now: Instant) {
        let Some(gateway) = self.gateway else { return };
        match news {
            Input::Datagram { from, payload } if *from.ip() == gateway.address => {
                self.note_epoch(&payload, from, now);
                self.step(now, |attempt, context| attempt.handle_datagram(from, &payload, context));
            }
            Input::Datagram { .. } => {}
            Input::Http { id, outcome } => {
                self.step(now, |attempt, context| attempt.handle_http(id, outcome.as_deref().ok(), context));
            }
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(held) = &self.held {
            if held.expires <= now {
                self.held = None;
                self.report.external = None;
                self.attempt = None;
                self.begin(Protocol::Pcp, now);
            } else if held.renew <= now && self.attempt.is_none() {
                self.renew(now);
            }
        }
        self.step(now, Attempt::handle_timeout);
    }

    /// When [`PortMapper::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let held = self.held.as_ref().map(|held| if self.attempt.is_some() { held.expires } else { held.renew });
        self.attempt.as_ref().map(Attempt::next_at).into_iter().chain(held).min()
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What the gateway does for us.
    pub fn report(&self) -> MappingReport {
        self.report
    }

    // ---- attempts ----

    fn begin(&mut self, protocol: Protocol, now: Instant) {
        self.attempt = Some(Attempt::new(protocol, now));
        self.step(now, Attempt::handle_timeout);
    }

    fn renew(&mut self, now: Instant) {
        if let Some(held) = &self.held {
            self.begin(held.protocol.clone(), now);
        }
    }

    /// Lets the attempt take a step, and does what comes of it.
    fn step(&mut self, now: Instant, step: impl FnOnce(&mut Attempt, &mut Context<'_>) -> Progress) {
        let (Some(mut attempt), Some(gateway)) = (self.attempt.take(), self.gateway) else { return };
        let wanted = self.held.as_ref().map_or(self.port, |held| held.external.port());
        let request = self.pcp_request(gateway, wanted, LIFETIME.as_secs() as u32);
        let mut context = Context { now, gateway, request, questions: &mut self.questions, actions: &mut self.actions };
        let outcome = step(&mut attempt, &mut context);
        match outcome {
            Progress::Pending => self.attempt = Some(attempt),
            Progress::Mapped { protocol, external, lifetime, epoch } => {
                self.note_presence(protocol.kind(), true);
                self.hold(protocol, external, lifetime, epoch, now);
            }
            Progress::Failed { answered } => self.handle_failed(attempt.kind(), answered, now),
        }
    }

    fn hold(&mut self, protocol: Protocol, external: SocketAddr, lifetime: Duration, epoch: Option<u32>, now: Instant) {
        let lifetime = lifetime.clamp(GRANTED_LEAST, GRANTED_MOST);
        self.report.external = Some(external);
        self.failed = None;
        self.held = Some(Held {
            protocol,
            external,
            renew: now + lifetime / 2,
            expires: now + lifetime,
            looked_after: now,
            granted: now,
            epoch: epoch.map(|epoch| (epoch, now)),
        });
    }

    /// The next protocol; where a renewal failed, another try after half the time that is left.
    fn handle_failed(&mut self, kind: ProtocolKind, answered: bool, now: Instant) {
        if let Some(held) = &mut self.held {
            let left = held.expires.saturating_duration_since(now);
            if !answered {
                held.renew = now + (left / 2).max(Duration::from_secs(10)).min(left);
                return;
            }
            // It says no to what it once granted: begin anew.
            self.held = None;
            self.report.external = None;
            return self.begin(Protocol::Pcp, now);
        }
        self.note_presence(kind, answered);
        match kind {
            ProtocolKind::Pcp => self.begin(Protocol::NatPmp, now),
            ProtocolKind::NatPmp => {
                self.attempt = Some(Attempt::search(now));
                self.step(now, Attempt::handle_timeout);
            }
            ProtocolKind::Upnp => self.failed = Some(now),
        }
    }

    fn note_presence(&mut self, kind: ProtocolKind, present: bool) {
        let noted = match kind {
            ProtocolKind::Pcp => &mut self.report.pcp,
            ProtocolKind::NatPmp => &mut self.report.pmp,
            ProtocolKind::Upnp => &mut self.report.upnp,
        };
        *noted = Some(present);
    }

    /// A gateway whose memory is younger than it should be has forgotten our mapping.
    fn note_epoch(&mut self, payload: &[u8], from: SocketAddrV4, now: Instant) {
        let Some(held) = self.held.as_mut().filter(|_| from.port() == PORT) else { return };
        let (epoch, address) = match (&held.protocol, pcp::read(payload), nat_pmp::read(payload)) {
            (Protocol::Pcp, Ok(response), _) => (response.epoch, None),
            (Protocol::NatPmp, _, Ok(nat_pmp::Response::Address { epoch, address })) => (epoch, Some(address)),
            (Protocol::NatPmp, _, Ok(nat_pmp::Response::Map { epoch, .. })) => (epoch, None),
            _ => return,
        };
        let lost = held.epoch.is_some_and(|(before, at)| {
            let passed = now.duration_since(at).as_secs();
            u64::from(epoch) + EPOCH_SLACK < u64::from(before) + passed * 7 / 8
        });
        held.epoch = Some((epoch, now));
        let moved = address.is_some_and(|address| IpAddr::V4(address) != held.external.ip());
        if (lost || moved) && self.attempt.is_none() && now >= held.granted + LEAST_PAUSE {
            self.renew(now);
        }
    }

    fn forget(&mut self) {
        self.attempt = None;
        self.held = None;
        self.failed = None;
        self.report = MappingReport::default();
    }

    // ---- questions ----

    fn pcp_request(&self, gateway: Gateway, external: u16, lifetime: u32) -> pcp::MapRequest {
        pcp::MapRequest { client: gateway.local, nonce: self.nonce, internal: self.port, external, lifetime }
    }

    fn send(&mut self, gateway: Gateway, payload: Vec<u8>) {
        let to = SocketAddrV4::new(gateway.address, PORT);
        self.actions.push_back(Action::Send { from: gateway.local, to, payload });
    }

    fn ask(&mut self, place: Location, call: Option<(String, String)>) {
        self.questions += 1;
        self.actions.push_back(Action::Http { id: self.questions, to: place.to, path: place.path, call });
    }
}

/// What an attempt needs of the whole.
struct Context<'a> {
    now: Instant,
    gateway: Gateway,
    /// What is wanted; the other protocols say the same in their words.
    request: pcp::MapRequest,
    questions: &'a mut u64,
    actions: &'a mut VecDeque<Action>,
}

impl Context<'_> {
    fn send(&mut self, to: SocketAddrV4, payload: Vec<u8>) {
        self.actions.push_back(Action::Send { from: self.gateway.local, to, payload });
    }

    /// Asks a place on the gateway; the number of the question.
    fn ask(&mut self, place: &Location, call: Option<(String, String)>) -> u64 {
        *self.questions += 1;
        let id = *self.questions;
        self.actions.push_back(Action::Http { id, to: place.to, path: place.path.clone(), call });
        id
    }
}

/// Whether a gateway may stand between this address and the world.
fn is_inside(address: Ipv4Addr) -> bool {
    address.is_private() || OVERLAY_V4.contains(&address)
}

#[cfg(test)]
mod tests;
