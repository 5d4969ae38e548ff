//! One try to open a port by one protocol.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::upnp::Talk;
use super::{Context, LIFETIME};
use crate::wire::portmap::{PORT, igd, nat_pmp, pcp};

/// When a question is asked again, and when it is given up: routers on one's own link answer within milliseconds, and
/// three protocols have to be through within a few seconds.
const RETRIES: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(500)];
const PATIENCE: Duration = Duration::from_millis(1_000);

/// By which protocol a port is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Pcp,
    NatPmp,
    Upnp(Box<igd::Service>),
}

/// The protocols without what is known of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProtocolKind {
    Pcp,
    NatPmp,
    Upnp,
}

impl Protocol {
    pub(super) fn kind(&self) -> ProtocolKind {
        match self {
            Self::Pcp => ProtocolKind::Pcp,
            Self::NatPmp => ProtocolKind::NatPmp,
            Self::Upnp(_) => ProtocolKind::Upnp,
        }
    }
}

/// A try under way.
#[derive(Debug)]
pub(super) struct Attempt {
    state: State,
    sent: usize,
    next: Instant,
}

#[derive(Debug)]
enum State {
    Pcp,
    /// The two answers that make a mapping.
    NatPmp {
        address: Option<Ipv4Addr>,
        mapped: Option<(u16, Duration, u32)>,
    },
    Upnp(Talk),
}

/// What came of a step.
#[derive(Debug)]
pub(super) enum Progress {
    Pending,
    Mapped {
        protocol: Protocol,
        external: SocketAddr,
        lifetime: Duration,
        epoch: Option<u32>,
    },
    /// It does not work this way; whether anybody answered.
    Failed {
        answered: bool,
    },
}

impl Attempt {
    pub(super) fn new(protocol: Protocol, now: Instant) -> Self {
        let state = match protocol {
            Protocol::Pcp => State::Pcp,
            Protocol::NatPmp => State::NatPmp { address: None, mapped: None },
            Protocol::Upnp(service) => State::Upnp(Talk::with(*service)),
        };
        Self { state, sent: 0, next: now }
    }

    /// Looks for a UPnP gateway first.
    pub(super) fn search(now: Instant) -> Self {
        Self { state: State::Upnp(Talk::search()), sent: 0, next: now }
    }

    pub(super) fn kind(&self) -> ProtocolKind {
        match &self.state {
            State::Pcp => ProtocolKind::Pcp,
            State::NatPmp { .. } => ProtocolKind::NatPmp,
            State::Upnp(_) => ProtocolKind::Upnp,
        }
    }

    pub(super) fn next_at(&self) -> Instant {
        self.next
    }

    /// Asks, asks again, or gives up.
    pub(super) fn handle_timeout(&mut self, context: &mut Context<'_>) -> Progress {
        if context.now < self.next {
            return Progress::Pending;
        }
        if let State::Upnp(talk) = &mut self.state {
            return talk.handle_timeout(&mut self.next, context);
        }
        if self.sent > RETRIES.len() {
            return Progress::Failed { answered: false };
        }
        let gateway = SocketAddrV4::new(context.gateway.address, PORT);
        let request = context.request;
        match &self.state {
            State::Pcp => context.send(gateway, pcp::map(&request)),
            State::NatPmp { address, mapped } => {
                if mapped.is_none() {
                    context.send(gateway, nat_pmp::map(request.internal, request.external, request.lifetime));
                }
                if address.is_none() {
                    context.send(gateway, nat_pmp::address());
                }
            }
            State::Upnp(_) => {}
        }
        self.next = context.now + RETRIES.get(self.sent).copied().unwrap_or(PATIENCE);
        self.sent += 1;
        Progress::Pending
    }

    /// Takes a datagram of the gateway.
    pub(super) fn handle_datagram(
        &mut self,
        from: SocketAddrV4,
        payload: &[u8],
        context: &mut Context<'_>,
    ) -> Progress {
        match &mut self.state {
            State::Upnp(talk) => return talk.handle_datagram(payload, &mut self.next, context),
            _ if from.port() != PORT => return Progress::Pending,
            State::Pcp => {}
            State::NatPmp { address, mapped } => {
                match nat_pmp::read(payload) {
                    Ok(nat_pmp::Response::Address { address: found, .. }) => *address = Some(found),
                    Ok(nat_pmp::Response::Map { epoch, internal, external, lifetime })
                        if internal == context.request.internal =>
                    {
                        *mapped = Some((external, Duration::from_secs(lifetime.into()), epoch));
                    }
                    Ok(nat_pmp::Response::Refused { .. }) => return Progress::Failed { answered: true },
                    _ => return Progress::Pending,
                }
                return match (*address, *mapped) {
                    (Some(address), Some((port, lifetime, epoch))) => {
                        mapped_at(Protocol::NatPmp, SocketAddr::new(address.into(), port), lifetime, Some(epoch))
                    }
                    _ => Progress::Pending,
                };
            }
        }
        self.handle_pcp(payload, context)
    }

    /// Takes the answer to a question over HTTP; nothing where none came.
    pub(super) fn handle_http(&mut self, id: u64, body: Option<&[u8]>, context: &mut Context<'_>) -> Progress {
        match &mut self.state {
            State::Upnp(talk) => talk.handle_http(id, body, &mut self.next, context),
            State::Pcp | State::NatPmp { .. } => Progress::Pending,
        }
    }

    fn handle_pcp(&self, payload: &[u8], context: &Context<'_>) -> Progress {
        // A gateway that knows only NAT-PMP says so in its own format (RFC 6886 §3.5).
        if payload.len() >= 4 && payload[0] == nat_pmp::VERSION {
            return Progress::Failed { answered: false };
        }
        let Ok(response) = pcp::read(payload) else { return Progress::Pending };
        if response.result == pcp::UNSUPPORTED_VERSION {
            return Progress::Failed { answered: false };
        }
        let request = &context.request;
        let ours = |map: &pcp::Mapping| map.nonce == request.nonce && map.internal == request.internal;
        match (response.result, response.map) {
            (pcp::SUCCESS, Some(map)) if ours(&map) => {
                let lifetime = Duration::from_secs(response.lifetime.into());
                mapped_at(Protocol::Pcp, map.external, lifetime, Some(response.epoch))
            }
            (pcp::SUCCESS, _) => Progress::Pending,
            (_, Some(map)) if !ours(&map) => Progress::Pending,
            _ => Progress::Failed { answered: true },
        }
    }
}

/// A mapping, where it leads somewhere and lasts.
pub(super) fn mapped_at(protocol: Protocol, external: SocketAddr, lifetime: Duration, epoch: Option<u32>) -> Progress {
    let ip = external.ip();
    let nowhere = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || external.port() == 0;
    if nowhere || lifetime.is_zero() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        return Progress::Failed { answered: true };
    }
    Progress::Mapped { protocol, external, lifetime: lifetime.min(LIFETIME * 12), epoch }
}
