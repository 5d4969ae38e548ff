//! The talk with a UPnP gateway: find it, read its description, open a port, ask for its address.

use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::attempt::{Progress, Protocol, mapped_at};
use super::{Context, LIFETIME};
use crate::wire::portmap::{Location, PortmapError, igd, ssdp};

/// How often it is looked for, and how far apart.
const SEARCHES: u32 = 3;
const SEARCH_EVERY: Duration = Duration::from_millis(500);
/// How long the last search and each question over HTTP may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Ports that are tried where one belongs to somebody else.
const PORTS: usize = 4;

#[derive(Debug)]
pub(super) struct Talk {
    step: Step,
    waiting: Option<u64>,
    answered: bool,
    /// Ports that are taken.
    conflicts: usize,
    lease: u32,
}

#[derive(Debug)]
enum Step {
    Search { sent: u32 },
    Describe(Location),
    Open(igd::Service),
    Address(igd::Service, u16),
}

impl Talk {
    pub(super) fn search() -> Self {
        Self::at(Step::Search { sent: 0 })
    }

    /// Goes on with a gateway that is known.
    pub(super) fn with(service: igd::Service) -> Self {
        Self::at(Step::Open(service))
    }

    fn at(step: Step) -> Self {
        Self { step, waiting: None, answered: false, conflicts: 0, lease: LIFETIME.as_secs() as u32 }
    }

    pub(super) fn handle_timeout(&mut self, next: &mut Instant, context: &mut Context<'_>) -> Progress {
        match &mut self.step {
            Step::Search { sent } if *sent < SEARCHES => {
                *sent += 1;
                let last = *sent == SEARCHES;
                context.send(ssdp::GROUP, ssdp::search());
                context.send(SocketAddrV4::new(context.gateway.address, ssdp::PORT), ssdp::search());
                *next = context.now + if last { PATIENCE } else { SEARCH_EVERY };
                Progress::Pending
            }
            Step::Open(_) if self.waiting.is_none() => self.open(next, context),
            Step::Search { .. } | Step::Describe(_) | Step::Open(_) | Step::Address(..) => {
                Progress::Failed { answered: self.answered }
            }
        }
    }

    /// Takes an answer of the gateway to the search.
    pub(super) fn handle_datagram(
        &mut self,
        payload: &[u8],
        next: &mut Instant,
        context: &mut Context<'_>,
    ) -> Progress {
        let Step::Search { .. } = self.step else { return Progress::Pending };
        let Ok(place) = ssdp::read(payload) else { return Progress::Pending };
        if *place.to.ip() != context.gateway.address {
            return Progress::Pending;
        }
        self.answered = true;
        self.waiting = Some(context.ask(&place, None));
        self.step = Step::Describe(place);
        *next = context.now + PATIENCE;
        Progress::Pending
    }

    /// Takes the answer to a question over HTTP.
    pub(super) fn handle_http(
        &mut self,
        id: u64,
        body: Option<&[u8]>,
        next: &mut Instant,
        context: &mut Context<'_>,
    ) -> Progress {
        if self.waiting != Some(id) {
            return Progress::Pending;
        }
        self.waiting = None;
        let Some(body) = body else { return Progress::Failed { answered: self.answered } };
        match &self.step {
            Step::Search { .. } => Progress::Pending,
            Step::Describe(place) => match igd::Service::find(body, place) {
                Ok(service) if *service.control.to.ip() == context.gateway.address => {
                    self.step = Step::Open(service);
                    self.open(next, context)
                }
                _ => Progress::Failed { answered: true },
            },
            Step::Open(service) => self.handle_opened(&service.clone(), igd::read(body), next, context),
            Step::Address(service, port) => match igd::read(body) {
                Ok(igd::Answer::Done { address: Some(address) }) => {
                    let external = SocketAddr::new(address.into(), *port);
                    mapped_at(Protocol::Upnp(Box::new(service.clone())), external, LIFETIME, None)
                }
                _ => Progress::Failed { answered: true },
            },
        }
    }

    fn handle_opened(
        &mut self,
        service: &igd::Service,
        answer: Result<igd::Answer, PortmapError>,
        next: &mut Instant,
        context: &mut Context<'_>,
    ) -> Progress {
        match answer {
            Ok(igd::Answer::Done { .. }) => {
                let port = self.port(context);
                self.waiting = Some(context.ask(&service.control, Some(service.get_external_address())));
                self.step = Step::Address(service.clone(), port);
                *next = context.now + PATIENCE;
                Progress::Pending
            }
            Ok(igd::Answer::Fault(igd::CONFLICT)) if self.conflicts + 1 < PORTS => {
                self.conflicts += 1;
                self.open(next, context)
            }
            Ok(igd::Answer::Fault(igd::ONLY_PERMANENT)) if self.lease > 0 => {
                self.lease = 0;
                self.open(next, context)
            }
            _ => Progress::Failed { answered: true },
        }
    }

    fn open(&mut self, next: &mut Instant, context: &mut Context<'_>) -> Progress {
        let port = self.port(context);
        let Step::Open(service) = &self.step else { return Progress::Failed { answered: self.answered } };
        let call = service.add_port_mapping(port, context.request.internal, context.gateway.local, self.lease);
        self.waiting = Some(context.ask(&service.control, Some(call)));
        *next = context.now + PATIENCE;
        Progress::Pending
    }

    /// The port to open: the one that is held, our own, or one that follows from this machine's nonce, so that two
    /// machines behind one router do not ask for the same again and again.
    fn port(&self, context: &Context<'_>) -> u16 {
        let request = &context.request;
        match self.conflicts {
            0 => request.external,
            n => u16::from_be_bytes([request.nonce[2 * n], request.nonce[2 * n + 1]]) | 0x4000,
        }
    }
}
