//! The session with one coordinator.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::backoff::Backoff;
use super::message::limit;
use super::{Answer, AuthKey, Event, Failure, Login, Received, RequestId, ServerUrl, Setup, Transmit};
use crate::types::{CapabilityVersion, DiscoPublic, NodePublic};
use crate::wire::control::{
    EndpointType, Hostinfo, MapRequest, MapResponse, PingRequest, RegisterAuth, RegisterRequest, RegisterResponse,
};
use crate::wire::map_stream::{MapStreamDecoder, Packing};

/// How long a registration may take.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long we wait for a person before asking again: longer than any coordinator or proxy between holds the
/// request, short enough that a connection lost without a sign is noticed.
const APPROVAL_TIMEOUT: Duration = Duration::from_secs(600);
/// How long to wait before asking about an approval again.
const APPROVAL_PAUSE: Duration = Duration::from_secs(1);
/// How long an update may take.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a log-out waits for the coordinator before it is done here alone.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream silent for so long is dead: coordinators send a sign of life every minute.
const WATCHDOG: Duration = Duration::from_secs(120);
/// A stream that lived so long did not fail for the reason the one before it did.
const STABLE: Duration = Duration::from_secs(30);
/// How long to wait after the coordinator refused us: only a person can change its mind.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// The client's half of the control protocol.
pub struct Session {
    server: ServerUrl,
    facts: Facts,
    credentials: Credentials,
    phase: Phase,
    update: Update,
    backoff: Backoff,
    /// Whether all is in order, as the owner was last told.
    online: bool,
    /// The URL of the last ping answered: coordinators repeat themselves.
    last_ping: String,
    last_id: u64,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

/// What we tell the coordinator of ourselves.
struct Facts {
    hostinfo: Hostinfo,
    disco_key: DiscoPublic,
    endpoints: Vec<(SocketAddr, EndpointType)>,
}

/// What we log in with.
struct Credentials {
    node_key: NodePublic,
    /// The key before, until the coordinator has taken the new one.
    old_node_key: NodePublic,
    /// Kept until we are in.
    auth_key: Option<AuthKey>,
    ephemeral: bool,
    /// Where a person approves us, while that is awaited.
    auth_url: Option<String>,
    /// Whether the node key was changed in this log-in already: once is enough.
    renewed: bool,
}

enum Phase {
    Stopped,
    /// Waits for the owner's new node key.
    NewKey,
    Registering {
        id: RequestId,
        since: Instant,
        deadline: Instant,
    },
    /// Logged in; the stream opens once the coordinator has our facts.
    Ready,
    Streaming(Stream),
    Waiting {
        until: Instant,
        then: Next,
    },
    LoggingOut {
        id: RequestId,
        deadline: Instant,
    },
}

/// What a wait ends with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Register,
    Stream,
}

/// The stream of the map.
struct Stream {
    id: RequestId,
    decoder: MapStreamDecoder,
    has_map: bool,
    opened: Instant,
    deadline: Instant,
}

/// Whether the coordinator knows our facts.
enum Update {
    Known,
    Due,
    /// `stale` where they changed meanwhile.
    Sent {
        id: RequestId,
        stale: bool,
        deadline: Instant,
    },
    /// The last one failed.
    Waiting {
        until: Instant,
    },
}

impl Session {
    /// A session that does nothing yet. The seed spreads its waits.
    pub fn new(setup: Setup, seed: u64) -> Self {
        let Setup { server, node_key, hostinfo, disco_key, endpoints, ephemeral } = setup;
        Self {
            server,
            facts: Facts { hostinfo, disco_key, endpoints },
            credentials: Credentials {
                node_key,
                old_node_key: NodePublic::default(),
                auth_key: None,
                ephemeral,
                auth_url: None,
                renewed: false,
            },
            phase: Phase::Stopped,
            update: Update::Due,
            backoff: Backoff::new(seed),
            online: false,
            last_ping: String::new(),
            last_id: 0,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Logs in, or logs in again, and then follows the map.
    pub fn handle_start(&mut self, login: Login, now: Instant) {
        self.abandon();
        self.backoff.reset();
        self.credentials.auth_key = login.auth_key;
        self.credentials.auth_url = None;
        self.credentials.renewed = false;
        if login.renew { self.want_new_key() } else { self.register(now) }
    }

    /// Stops asking. The coordinator will see us go offline.
    pub fn handle_stop(&mut self) {
        self.disconnect();
        self.online = false;
    }

    /// Tells the coordinator to forget the node key, and stops.
    pub fn handle_logout(&mut self, now: Instant) {
        self.abandon();
        self.credentials.auth_key = None;
        self.credentials.auth_url = None;
        let id = self.next_id();
        let request = RegisterRequest { expiry: Some(long_past()), ..self.register_request() };
        self.transmits.push_back(Transmit::Register { id, request: Box::new(request) });
        self.phase = Phase::LoggingOut { id, deadline: now + LOGOUT_TIMEOUT };
    }

    /// Answers [`Event::NodeKeyWanted`].
    pub fn handle_node_key(&mut self, key: NodePublic, now: Instant) {
        if key != self.credentials.node_key {
            self.credentials.old_node_key = self.credentials.node_key;
            self.credentials.node_key = key;
        }
        if matches!(self.phase, Phase::NewKey) {
            self.credentials.renewed = true;
            self.register(now);
        }
    }

    /// What we say of this host has changed.
    pub fn handle_hostinfo(&mut self, hostinfo: Hostinfo, now: Instant) {
        if self.facts.hostinfo != hostinfo {
            self.facts.hostinfo = hostinfo;
            self.handle_new_facts(now);
        }
    }

    /// Where we can be reached has changed.
    pub fn handle_endpoints(&mut self, endpoints: Vec<(SocketAddr, EndpointType)>, now: Instant) {
        if self.facts.endpoints != endpoints {
            self.facts.endpoints = endpoints;
            self.handle_new_facts(now);
        }
    }

    /// The key of our path probes has changed.
    pub fn handle_disco_key(&mut self, key: DiscoPublic, now: Instant) {
        if self.facts.disco_key != key {
            self.facts.disco_key = key;
            self.handle_new_facts(now);
        }
    }

    /// The host's network changed: a connection made before may be dead, and what failed may work.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.backoff.reset();
        let then = match &self.phase {
            Phase::Ready | Phase::Streaming(_) => Next::Stream,
            Phase::Registering { .. } => Next::Register,
            Phase::Waiting { then, .. } => *then,
            Phase::Stopped | Phase::NewKey | Phase::LoggingOut { .. } => return,
        };
        self.disconnect();
        self.phase = Phase::Waiting { until: now, then };
        self.handle_timeout(now);
    }

    /// Something came back for a request.
    pub fn handle_received(&mut self, received: Received, now: Instant) {
        match received {
            Received::Answer(id, answer) => self.handle_answer(id, &answer, now),
            Received::Opened(id) => {
                if let Some(stream) = self.stream(id) {
                    stream.deadline = now + WATCHDOG;
                }
            }
            Received::Bytes(id, bytes) => self.handle_bytes(id, &bytes, now),
            Received::Closed(id, reason) => self.handle_closed(id, reason, now),
        }
        self.proceed(now);
    }

    /// The time given by [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &self.phase {
            Phase::Waiting { until, then } if *until <= now => match then {
                Next::Register => self.register(now),
                Next::Stream => self.phase = Phase::Ready,
            },
            Phase::Registering { since, deadline, .. } if *deadline <= now => {
                let silence = deadline.saturating_duration_since(*since);
                self.connection_failed(Failure::Silent(silence), Next::Register, now);
            }
            Phase::Streaming(stream) if stream.deadline <= now => {
                self.connection_failed(Failure::Silent(WATCHDOG), Next::Stream, now);
            }
            Phase::LoggingOut { deadline, .. } if *deadline <= now => self.logged_out(false),
            _ => {}
        }
        match self.update {
            Update::Waiting { until } if until <= now => self.update = Update::Due,
            Update::Sent { deadline, .. } if deadline <= now => {
                self.connection_failed(Failure::Silent(UPDATE_TIMEOUT), Next::Stream, now);
            }
            _ => {}
        }
        self.proceed(now);
    }

    /// What the shell is to do next.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What the owner should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Registering { deadline, .. } | Phase::LoggingOut { deadline, .. } => Some(*deadline),
            Phase::Streaming(stream) => Some(stream.deadline),
            Phase::Waiting { until, .. } => Some(*until),
            Phase::Stopped | Phase::NewKey | Phase::Ready => None,
        };
        let update = match self.update {
            Update::Sent { deadline, .. } => Some(deadline),
            Update::Waiting { until } => Some(until),
            Update::Known | Update::Due => None,
        };
        phase.into_iter().chain(update).min()
    }

    // ---- log-in ----

    fn register(&mut self, now: Instant) {
        let id = self.next_id();
        let timeout = if self.credentials.auth_url.is_some() { APPROVAL_TIMEOUT } else { REGISTER_TIMEOUT };
        let request = Box::new(self.register_request());
        self.transmits.push_back(Transmit::Register { id, request });
        self.phase = Phase::Registering { id, since: now, deadline: now + timeout };
    }

    fn register_request(&self) -> RegisterRequest {
        let credentials = &self.credentials;
        RegisterRequest {
            version: CapabilityVersion::CURRENT,
            node_key: credentials.node_key,
            old_node_key: credentials.old_node_key,
            // The coordinator checks it.
            auth: credentials.auth_key.as_ref().map(|key| RegisterAuth { auth_key: key.expose_text().to_owned() }),
            followup: credentials.auth_url.clone().unwrap_or_default(),
            hostinfo: Some(self.facts.hostinfo.clone()),
            ephemeral: credentials.ephemeral,
            ..RegisterRequest::default()
        }
    }

    fn handle_registered(&mut self, answer: &Answer, now: Instant) {
        let response = match read_registered(answer) {
            Ok(response) => response,
            Err(failure) => return self.register_failed(failure, now),
        };
        if !response.error.is_empty() {
            // A page that leads nowhere must not be waited for again.
            self.credentials.auth_url = None;
            return self.wait(Failure::Refused(cut(&response.error)), Next::Register, now);
        }
        if response.node_key_expired {
            if self.credentials.renewed {
                let failure = Failure::Refused("it calls a node key expired that was made just now".to_owned());
                return self.wait(failure, Next::Register, now);
            }
            self.credentials.auth_url = None;
            return self.want_new_key();
        }
        if !response.auth_url.is_empty() {
            return self.await_approval(response.auth_url, now);
        }
        self.credentials.auth_key = None;
        self.credentials.auth_url = None;
        self.credentials.old_node_key = NodePublic::default();
        self.events.push_back(Event::LoggedIn { user: response.user, login: response.login });
        self.update = Update::Due;
        self.phase = Phase::Ready;
    }

    fn want_new_key(&mut self) {
        self.phase = Phase::NewKey;
        self.events.push_back(Event::NodeKeyWanted);
    }

    /// Shows the page, once, and asks again: the coordinator answers when the page was used.
    fn await_approval(&mut self, url: String, now: Instant) {
        let asked_before = self.credentials.auth_url.replace(url.clone());
        if asked_before.as_ref() != Some(&url) {
            self.events.push_back(Event::AuthUrl(url));
        }
        if asked_before.is_none() {
            return self.register(now);
        }
        // It answered without an approval, so it may do so again at once.
        self.phase = Phase::Waiting { until: now + self.backoff.spread(APPROVAL_PAUSE), then: Next::Register };
    }

    fn logged_out(&mut self, told: bool) {
        self.disconnect();
        self.online = false;
        self.events.push_back(Event::LoggedOut { told });
    }

    // ---- the map ----

    /// Sends what is due, opens the stream once the coordinator has our facts, and says when all is in order.
    fn proceed(&mut self, now: Instant) {
        let has_map = match &self.phase {
            Phase::Ready => false,
            Phase::Streaming(stream) => stream.has_map,
            _ => return,
        };
        match self.update {
            Update::Due => {
                let id = self.next_id();
                let request = Box::new(MapRequest { omit_peers: true, ..self.map_request() });
                self.transmits.push_back(Transmit::Update { id, request });
                self.update = Update::Sent { id, stale: false, deadline: now + UPDATE_TIMEOUT };
            }
            Update::Known if matches!(self.phase, Phase::Ready) => self.open_stream(now),
            Update::Known if has_map && !self.online => {
                self.online = true;
                self.events.push_back(Event::Online);
            }
            _ => {}
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

    fn handle_new_facts(&mut self, now: Instant) {
        match &mut self.update {
            Update::Sent { stale, .. } => *stale = true,
            Update::Waiting { .. } => {}
            update => *update = Update::Due,
        }
        self.proceed(now);
    }

    fn handle_bytes(&mut self, id: RequestId, mut bytes: &[u8], now: Instant) {
        loop {
            let Some(stream) = self.stream(id) else { return };
            let message = match stream.decoder.next(&mut bytes) {
                Ok(None) => return,
                Ok(Some(json)) => {
                    stream.deadline = now + WATCHDOG;
                    serde_json::from_slice(&json).map_err(|error| error.to_string())
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
        self.events.push_back(if first { Event::FullMap(message) } else { Event::Delta(message) });
        if expired {
            self.events.push_back(Event::KeyExpired);
        }
        Ok(())
    }

    /// Answers the plain kind. The others ask us to run things, which the coordinator has no business with.
    fn handle_ping(&mut self, ping: PingRequest) {
        if ping.types.is_empty() && ping.url != self.last_ping && self.server.is_own(&ping.url) {
            self.last_ping.clone_from(&ping.url);
            self.transmits.push_back(Transmit::Ping { url: ping.url, over_noise: ping.url_is_noise });
        }
    }

    fn stream(&mut self, id: RequestId) -> Option<&mut Stream> {
        match &mut self.phase {
            Phase::Streaming(stream) if stream.id == id => Some(stream),
            _ => None,
        }
    }

    // ---- answers and failures ----

    fn handle_answer(&mut self, id: RequestId, answer: &Answer, now: Instant) {
        match self.purpose(id) {
            Some(Purpose::Register) => self.handle_registered(answer, now),
            Some(Purpose::LogOut) => self.logged_out(answer.status == 200),
            Some(Purpose::Update) => match (failure_of(answer), &self.update) {
                (Some(failure), _) => self.update_failed(failure, next_after(answer.status), now),
                (None, Update::Sent { stale: true, .. }) => self.update = Update::Due,
                (None, _) => self.update = Update::Known,
            },
            Some(Purpose::Stream) => {
                let failure = failure_of(answer).unwrap_or_else(|| Failure::Unreachable("the stream ended".to_owned()));
                self.stream_failed(failure, next_after(answer.status), now);
            }
            None => {}
        }
    }

    fn handle_closed(&mut self, id: RequestId, reason: String, now: Instant) {
        let failure = Failure::Unreachable(cut(&reason));
        match self.purpose(id) {
            Some(Purpose::Register) => self.register_failed(failure, now),
            Some(Purpose::LogOut) => self.logged_out(false),
            Some(Purpose::Update) => self.update_failed(failure, Next::Stream, now),
            Some(Purpose::Stream) => self.stream_failed(failure, Next::Stream, now),
            None => {}
        }
    }

    /// Which of the requests under way this is.
    fn purpose(&self, id: RequestId) -> Option<Purpose> {
        match &self.phase {
            Phase::Registering { id: current, .. } if *current == id => Some(Purpose::Register),
            Phase::LoggingOut { id: current, .. } if *current == id => Some(Purpose::LogOut),
            Phase::Streaming(stream) if stream.id == id => Some(Purpose::Stream),
            _ => match self.update {
                Update::Sent { id: current, .. } if current == id => Some(Purpose::Update),
                _ => None,
            },
        }
    }

    fn register_failed(&mut self, failure: Failure, now: Instant) {
        if let Phase::Registering { since, .. } = self.phase
            && now.saturating_duration_since(since) >= STABLE
        {
            self.backoff.reset();
        }
        self.wait(failure, Next::Register, now);
    }

    fn stream_failed(&mut self, failure: Failure, then: Next, now: Instant) {
        if let Phase::Streaming(stream) = &self.phase
            && now.saturating_duration_since(stream.opened) >= STABLE
        {
            self.backoff.reset();
        }
        self.abandon_update();
        self.wait(failure, then, now);
    }

    /// Without the update there is no stream; with a stream, only the update is tried again.
    fn update_failed(&mut self, failure: Failure, then: Next, now: Instant) {
        if matches!(self.phase, Phase::Streaming(_)) {
            self.update = Update::Waiting { until: now + self.fail(failure) };
        } else {
            self.update = Update::Due;
            self.wait(failure, then, now);
        }
    }

    fn wait(&mut self, failure: Failure, then: Next, now: Instant) {
        self.phase = Phase::Waiting { until: now + self.fail(failure), then };
    }

    /// Tells the owner, and gives the wait before the next try.
    fn fail(&mut self, mut failure: Failure) -> Duration {
        let pause = match &mut failure {
            Failure::Busy(wait) => {
                *wait = self.backoff.imposed(Some(*wait));
                *wait
            }
            Failure::Refused(_) => self.backoff.spread(REFUSED_PAUSE),
            _ => self.backoff.next(),
        };
        self.online = false;
        self.events.push_back(Event::Failed(failure));
        pause
    }

    /// The connection may be dead: ends it, and everything on it. What lasted until a deadline is no quick failure.
    fn connection_failed(&mut self, failure: Failure, then: Next, now: Instant) {
        self.backoff.reset();
        self.disconnect();
        self.wait(failure, then, now);
    }

    /// Ends the connection, and everything on it.
    fn disconnect(&mut self) {
        self.abandon();
        self.transmits.push_back(Transmit::Disconnect);
    }

    /// Ends every request.
    fn abandon(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Registering { id, .. } | Phase::LoggingOut { id, .. } => {
                self.transmits.push_back(Transmit::Cancel(id));
            }
            Phase::Streaming(stream) => self.transmits.push_back(Transmit::Cancel(stream.id)),
            Phase::Stopped | Phase::NewKey | Phase::Ready | Phase::Waiting { .. } => {}
        }
        self.abandon_update();
    }

    fn abandon_update(&mut self) {
        if let Update::Sent { id, .. } = std::mem::replace(&mut self.update, Update::Due) {
            self.transmits.push_back(Transmit::Cancel(id));
        }
    }

    fn next_id(&mut self) -> RequestId {
        self.last_id += 1;
        RequestId(self.last_id)
    }
}

/// What a request under way is for.
#[derive(Clone, Copy)]
enum Purpose {
    Register,
    LogOut,
    Update,
    Stream,
}

/// A coordinator that no longer knows the node key says so with some client error; then only a log-in helps.
const fn next_after(status: u16) -> Next {
    if matches!(status, 400..=499) && status != 429 { Next::Register } else { Next::Stream }
}

fn failure_of(answer: &Answer) -> Option<Failure> {
    match answer.status {
        200 => None,
        429 => Some(Failure::Busy(answer.retry_after.unwrap_or_default())),
        status => Some(Failure::Status { status, text: cut(&String::from_utf8_lossy(&answer.body)) }),
    }
}

fn read_registered(answer: &Answer) -> Result<RegisterResponse, Failure> {
    match failure_of(answer) {
        Some(Failure::Status { status: 401 | 403, text }) => Err(Failure::Refused(text)),
        Some(failure) => Err(failure),
        None => serde_json::from_slice(&answer.body).map_err(|error| Failure::NotUnderstood(error.to_string())),
    }
}

/// The beginning of a text from outside, on one line.
fn cut(text: &str) -> String {
    let line = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    line.scan(0, |length, c| {
        *length += c.len_utf8();
        (*length <= limit::REASON.most).then_some(c)
    })
    .collect()
}

/// The moment that the official clients name to log out.
fn long_past() -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(123)
}

#[cfg(test)]
mod tests;
