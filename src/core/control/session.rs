//! The session with one coordinator.

mod follow;
mod login;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::message::limit;
use super::{AuthKey, Failure, Login, Received, Reply, RequestId, ServerUrl, SessionEvent, Setup, Transmit};
use crate::types::{DiscoPublic, Fingerprint, Gather, IpNet, NodePublic};
use crate::wire::control::{EndpointType, Hostinfo, RegisterRequest};
use crate::wire::map_stream::MapStreamDecoder;

/// How long a request may take: it may have to wait for a connection, whose name and proxy have time of their own. One
/// that is dead is noticed sooner by whoever holds it.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a log-out waits for the coordinator before it is done here alone: longer than a name takes.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(20);
/// A stream silent for so long is dead: coordinators send a sign of life every minute.
const WATCHDOG: Duration = Duration::from_secs(120);
/// A stream that lived so long did not fail for the reason the one before it did.
const STABLE: Duration = Duration::from_secs(30);
/// After the network changed: how long the changes of a moment are gathered, and how often the connection is made anew
/// at most, from where the changes are few to where they never end.
const NETWORK_MOMENT: Duration = Duration::from_millis(300);
const NETWORK_PACE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// How long to wait after the coordinator refused us, or another answered in its place: only a person can change that.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// The client's half of the control protocol.
pub struct Session {
    server: ServerUrl,
    facts: Facts,
    credentials: Credentials,
    phase: Phase,
    update: Update,
    backoff: Backoff,
    /// Where the connection comes from.
    local: Option<IpAddr>,
    /// Changes of the network after which the connection is to be made anew.
    moved: Gather,
    /// Whether all is in order, as the owner was last told.
    online: bool,
    /// The URL of the last ping answered: coordinators repeat themselves.
    last_ping: String,
    last_id: u64,
    transmits: VecDeque<Transmit>,
    events: VecDeque<SessionEvent>,
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
    /// The new key is to take the old one's place, without a sign-in.
    rotates: bool,
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
                rotates: false,
            },
            phase: Phase::Stopped,
            update: Update::Due,
            backoff: Backoff::new(seed),
            local: None,
            moved: Gather::new(NETWORK_MOMENT, NETWORK_PACE.0, NETWORK_PACE.1),
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
        let request = RegisterRequest { expiry: Some(login::long_past()), ..self.register_request() };
        self.transmits.push_back(Transmit::Register { id, request: Box::new(request) });
        self.phase = Phase::LoggingOut { id, deadline: now + LOGOUT_TIMEOUT };
    }

    /// Answers [`SessionEvent::NodeKeyWanted`].
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

    /// This key is to take the place of the one that we are in with. Where the coordinator refuses, whoever gave it takes
    /// it back by [`Session::handle_key_kept`]; where it does not answer, it is asked again.
    pub fn handle_rotation(&mut self, key: NodePublic, now: Instant) {
        self.abandon();
        self.credentials.old_node_key = self.credentials.node_key;
        self.credentials.node_key = key;
        self.credentials.auth_key = None;
        self.credentials.auth_url = None;
        self.credentials.rotates = true;
        self.register(now);
    }

    /// The key that was to be the next one is given up: this one stays.
    pub fn handle_key_kept(&mut self, key: NodePublic) {
        self.credentials.node_key = key;
        self.credentials.old_node_key = NodePublic::default();
        self.credentials.rotates = false;
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

    /// The host's network changed, and these addresses of ours are gone. What failed may work now; a connection stays,
    /// unless it came from one of them.
    pub fn handle_network_change(&mut self, lost: &[IpNet], now: Instant) {
        let is_affected = match &self.phase {
            Phase::Stopped | Phase::NewKey | Phase::LoggingOut { .. } => false,
            Phase::Waiting { .. } => true,
            Phase::Registering { .. } | Phase::Ready | Phase::Streaming(_) => {
                self.local.is_none_or(|local| lost.iter().any(|net| net.addr() == local))
            }
        };
        if is_affected {
            self.moved.want(now);
        }
    }

    /// Makes the connection anew, or stops waiting to.
    fn reconnect(&mut self, now: Instant) {
        let then = match &self.phase {
            Phase::Ready | Phase::Streaming(_) => Next::Stream,
            Phase::Registering { .. } => Next::Register,
            Phase::Waiting { then, .. } => *then,
            Phase::Stopped | Phase::NewKey | Phase::LoggingOut { .. } => return,
        };
        self.backoff.reset();
        self.disconnect();
        self.phase = Phase::Waiting { until: now, then };
    }

    /// Something came back for a request.
    pub fn handle_received(&mut self, received: Received, now: Instant) {
        match received {
            Received::Connected(local) => self.local = Some(local),
            Received::Reply(id, answer) => self.handle_answer(id, &answer, now),
            Received::Opened(id) => {
                if let Some(stream) = self.stream(id) {
                    stream.deadline = now + WATCHDOG;
                }
            }
            Received::Bytes(id, bytes) => self.handle_bytes(id, &bytes, now),
            Received::Closed(id, reason) => self.handle_closed(id, Failure::Unreachable(cut(&reason)), now),
            Received::Stranger(id, key) => self.handle_closed(id, Failure::Stranger(Fingerprint::of(&key)), now),
            // Whom we talk to is the owner's to know.
            Received::ServerKey(_) => {}
        }
        self.proceed(now);
    }

    /// The time given by [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.moved.take(now) {
            self.reconnect(now);
        }
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
            Phase::LoggingOut { deadline, .. } if *deadline <= now => {
                self.logged_out(Some(Failure::Silent(LOGOUT_TIMEOUT)));
            }
            Phase::Stopped
            | Phase::NewKey
            | Phase::Registering { .. }
            | Phase::Ready
            | Phase::Streaming(_)
            | Phase::Waiting { .. }
            | Phase::LoggingOut { .. } => {}
        }
        match self.update {
            Update::Waiting { until } if until <= now => self.update = Update::Due,
            Update::Sent { deadline, .. } if deadline <= now => {
                self.connection_failed(Failure::Silent(REQUEST_TIMEOUT), Next::Stream, now);
            }
            Update::Known | Update::Due | Update::Sent { .. } | Update::Waiting { .. } => {}
        }
        self.proceed(now);
    }

    /// What the shell is to do next.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What the owner should know.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
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
        phase.into_iter().chain(update).chain(self.moved.poll_timeout()).min()
    }

    // ---- answers and failures ----

    fn handle_answer(&mut self, id: RequestId, answer: &Reply, now: Instant) {
        match self.purpose(id) {
            Some(Purpose::Register) => self.handle_registered(answer, now),
            Some(Purpose::LogOut) => self.logged_out(failure_of(answer)),
            Some(Purpose::Update) => match (failure_of(answer), &self.update) {
                (Some(failure), _) => {
                    // A stream that still stands speaks against any other client error.
                    let streams = matches!(self.phase, Phase::Streaming(_)) && !is_unknown(answer.status);
                    let then = if streams { Next::Stream } else { next_after(answer.status) };
                    self.update_failed(failure, then, now);
                }
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

    fn handle_closed(&mut self, id: RequestId, failure: Failure, now: Instant) {
        match self.purpose(id) {
            Some(Purpose::Register) => self.register_failed(failure, now),
            Some(Purpose::LogOut) => self.logged_out(Some(failure)),
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
            Phase::Stopped
            | Phase::NewKey
            | Phase::Registering { .. }
            | Phase::Ready
            | Phase::Streaming(_)
            | Phase::Waiting { .. }
            | Phase::LoggingOut { .. } => match self.update {
                Update::Sent { id: current, .. } if current == id => Some(Purpose::Update),
                Update::Known | Update::Due | Update::Sent { .. } | Update::Waiting { .. } => None,
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

    /// Without the update there is no stream; with a stream, only the update is tried again, unless the coordinator says
    /// that it does not know us.
    fn update_failed(&mut self, failure: Failure, then: Next, now: Instant) {
        match &self.phase {
            Phase::Streaming(_) if then == Next::Stream => {
                self.update = Update::Waiting { until: now + self.fail(failure) };
                return;
            }
            Phase::Streaming(stream) => self.transmits.push_back(Transmit::Cancel(stream.id)),
            Phase::Stopped
            | Phase::NewKey
            | Phase::Registering { .. }
            | Phase::Ready
            | Phase::Waiting { .. }
            | Phase::LoggingOut { .. } => {}
        }
        self.update = Update::Due;
        self.wait(failure, then, now);
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
            Failure::Refused(_) | Failure::Stranger(_) => self.backoff.spread(REFUSED_PAUSE),
            Failure::Unreachable(_) | Failure::Silent(_) | Failure::Status { .. } | Failure::NotUnderstood(_) => {
                self.backoff.next()
            }
        };
        self.online = false;
        self.events.push_back(SessionEvent::Failed(failure));
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
        self.local = None;
        self.moved.forget();
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

/// Whether a coordinator that answers so does not know the node.
const fn is_unknown(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 410)
}

fn failure_of(answer: &Reply) -> Option<Failure> {
    match answer.status {
        200 => None,
        429 => Some(Failure::Busy(answer.retry_after.unwrap_or_default())),
        status => Some(Failure::Status { status, text: cut(&String::from_utf8_lossy(&answer.body)) }),
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

#[cfg(test)]
mod tests;
