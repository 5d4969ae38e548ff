//! Telling the coordinator our facts, and following the map.

use std::time::Instant;

use super::{Next, Phase, REQUEST_TIMEOUT, Session, Stream, Update, WATCHDOG};
use crate::control::{Failure, RequestId, ServerUrl, SessionEvent, Transmit};
use crate::types::CapabilityVersion;
use crate::wire::control::{MapRequest, MapResponse, PingRequest};
use crate::wire::map_stream::{MapStreamDecoder, Packing};

impl Session {
    /// Sends what is due, opens the stream once the coordinator has our facts, and says when all is in order.
    pub(super) fn proceed(&mut self, now: Instant) {
        let has_map = match &self.phase {
            Phase::Ready => false,
            Phase::Streaming(stream) => stream.has_map,
            Phase::Stopped
            | Phase::NewKey
            | Phase::Registering { .. }
            | Phase::Waiting { .. }
            | Phase::LoggingOut { .. } => return,
        };
        match self.update {
            Update::Due => {
                let id = self.next_id();
                let request = Box::new(MapRequest { omit_peers: true, ..self.map_request() });
                self.transmits.push_back(Transmit::Update { id, request });
                self.update = Update::Sent { id, stale: false, deadline: now + REQUEST_TIMEOUT };
            }
            Update::Known if matches!(self.phase, Phase::Ready) => self.open_stream(now),
            Update::Known if has_map && !self.online => {
                self.online = true;
                self.events.push_back(SessionEvent::Online);
            }
            Update::Known | Update::Sent { .. } | Update::Waiting { .. } => {}
        }
    }

    fn open_stream(&mut self, now: Instant) {
        let id = self.next_id();
        let request = MapRequest { stream: true, keep_alive: true, ..self.map_request() };
        self.transmits.push_back(Transmit::Stream { id, request: Box::new(request) });
        let decoder = MapStreamDecoder::new(Packing::Zstd);
        self.phase = Phase::Streaming(Stream { id, decoder, has_map: false, opened: now, deadline: now + WATCHDOG });
    }

    fn map_request(&self) -> MapRequest {
        let (endpoints, endpoint_types) = self.facts.endpoints.iter().copied().unzip();
        MapRequest {
            version: CapabilityVersion::CURRENT,
            compress: "zstd".to_owned(),
            node_key: self.credentials.node_key,
            disco_key: self.facts.disco_key,
            hostinfo: Some(self.facts.hostinfo.clone()),
            endpoints,
            endpoint_types,
            ..MapRequest::default()
        }
    }

    pub(super) fn handle_new_facts(&mut self, now: Instant) {
        match &mut self.update {
            Update::Sent { stale, .. } => *stale = true,
            Update::Waiting { .. } => {}
            update @ (Update::Known | Update::Due) => *update = Update::Due,
        }
        self.proceed(now);
    }

    pub(super) fn handle_bytes(&mut self, id: RequestId, mut bytes: &[u8], now: Instant) {
        loop {
            let Some(stream) = self.stream(id) else { return };
            let message = match stream.decoder.next(&mut bytes) {
                Ok(None) => return,
                Ok(Some(json)) => {
                    stream.deadline = now + WATCHDOG;
                    MapResponse::read(&json)
                }
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = message.and_then(|message| self.handle_message(message)) {
                self.transmits.push_back(Transmit::Cancel(id));
                self.stream_failed(Failure::NotUnderstood(reason), Next::Stream, now);
            }
        }
    }

    fn handle_message(&mut self, mut message: MapResponse) -> Result<(), String> {
        if let Some(ping) = message.ping_request.take() {
            self.handle_ping(ping);
        }
        if message.keep_alive {
            return Ok(());
        }
        let Phase::Streaming(stream) = &mut self.phase else { return Ok(()) };
        if !stream.has_map && message.node.is_none() {
            return Err("the first map does not say who we are".to_owned());
        }
        let expired = message.node.as_ref().is_some_and(|node| node.expired);
        let message = Box::new(message);
        let first = !std::mem::replace(&mut stream.has_map, true);
        self.events.push_back(if first { SessionEvent::FullMap(message) } else { SessionEvent::Delta(message) });
        if expired {
            self.events.push_back(SessionEvent::KeyExpired);
        }
        Ok(())
    }

    /// Answers the plain kind. The others ask us to run things, which the coordinator has no business with.
    fn handle_ping(&mut self, ping: PingRequest) {
        // Inside the channel every address is the coordinator's: only the path counts there.
        let is_its = ping.url_is_noise && ServerUrl::is_plain(&ping.url) || self.server.is_own(&ping.url);
        if ping.types.is_empty() && ping.url != self.last_ping && is_its {
            self.last_ping.clone_from(&ping.url);
            self.transmits.push_back(Transmit::Ping { url: ping.url, over_noise: ping.url_is_noise });
        }
    }

    pub(super) fn stream(&mut self, id: RequestId) -> Option<&mut Stream> {
        if let Phase::Streaming(stream) = &mut self.phase {
            Some(stream).filter(|stream| stream.id == id)
        } else {
            None
        }
    }
}
