//! One question that others are asked: each of its servers in turn over UDP, and over TCP where that does not do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

use super::id::{AskId, QueryId};
use super::message::{Request, Transport, Worth, renumbered, worth};
use super::upstream::Upstream;

/// How long an answer may take in all. Clients have asked again by then.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// After which silence the next server is asked too.
pub(super) const NEXT_SERVER: Duration = Duration::from_millis(400);
/// After which silence over UDP a server is asked over TCP: its answers may be lost for their size.
pub(super) const NEXT_TRANSPORT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Flight {
    query: QueryId,
    request: Request,
    question: Vec<u8>,
    servers: Vec<Server>,
    /// When the next server is asked although the last may still answer.
    next_server: Instant,
    end: Instant,
    /// Questions of ours that came to their end since the last look.
    closed: Vec<AskId>,
    wanted: Vec<Wanted>,
    /// A refusal, for the case that nobody has anything better.
    refusal: Option<Vec<u8>>,
    answer: Option<Vec<u8>>,
}

/// A server and how far we are with it.
#[derive(Debug)]
struct Server {
    upstream: Upstream,
    udp: Ask,
    tcp: Ask,
    /// When it is asked over TCP, where it was asked over UDP.
    next_transport: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Idle,
    /// Asked under these numbers: ours, and the message's.
    Open(AskId, u16),
    Done,
}

/// A question to be asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    server: usize,
    transport: Transport,
}

impl Flight {
    /// Nobody is asked yet: [`Flight::handle_timeout`] begins.
    pub(super) fn new(
        now: Instant,
        query: QueryId,
        request: Request,
        question: Vec<u8>,
        upstreams: Arc<[Upstream]>,
    ) -> Self {
        let server = |upstream: &Upstream| {
            // HTTP is one exchange, and counts as the second way.
            let udp = if matches!(upstream, Upstream::Plain(_)) { Ask::Idle } else { Ask::Done };
            Server { upstream: upstream.clone(), udp, tcp: Ask::Idle, next_transport: None }
        };
        Self {
            query,
            request,
            question,
            servers: upstreams.iter().map(server).collect(),
            next_server: now,
            end: now + PATIENCE,
            closed: Vec::new(),
            wanted: Vec::new(),
            refusal: None,
            answer: None,
        }
    }

    pub(super) const fn query(&self) -> QueryId {
        self.query
    }

    /// When there is something to do if nobody answers.
    pub(super) fn next_step(&self) -> Instant {
        let next_server = self.servers.iter().any(Server::is_new).then_some(self.next_server);
        let next_transport = self.servers.iter().filter_map(Server::next_transport);
        next_transport.chain(next_server).fold(self.end, Instant::min)
    }

    pub(super) fn handle_reply(&mut self, now: Instant, ask: AskId, bytes: &[u8]) {
        let Some((server, transport, number)) = self.open(ask) else { return };
        match (worth(bytes, number, &self.request.query), transport) {
            // Anybody can send a datagram: the server's own may still come.
            (Worth::Foreign, Transport::Udp) => return,
            (Worth::Foreign, Transport::Tcp) => {}
            (Worth::Truncated, Transport::Udp) => self.want(server, Transport::Tcp),
            (Worth::Soft, _) => self.refusal = self.refusal.take().or_else(|| self.request.passed_on(bytes)),
            (Worth::Good, _) | (Worth::Truncated, Transport::Tcp) => self.answer = self.request.passed_on(bytes),
        }
        self.close(ask);
        self.next(now);
    }

    pub(super) fn handle_failure(&mut self, now: Instant, ask: AskId) {
        let Some((server, transport, _)) = self.open(ask) else { return };
        self.close(ask);
        // Its port may be open for TCP alone.
        if transport == Transport::Udp {
            self.want(server, Transport::Tcp);
        }
        self.next(now);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if now >= self.end {
            return self.give_up();
        }
        let silent = |(at, server): (usize, &Server)| (server.next_transport()? <= now).then_some(at);
        let silent: Vec<usize> = self.servers.iter().enumerate().filter_map(silent).collect();
        for server in silent {
            self.want(server, Transport::Tcp);
        }
        self.next(now);
    }

    /// Answers with what there is.
    pub(super) fn give_up(&mut self) {
        let refusal = self.refusal.take();
        self.answer = Some(refusal.unwrap_or_else(|| self.request.failed(ResponseCode::ServFail)));
    }

    /// The answer, once there is one; everything else is closed then.
    pub(super) fn answer(&mut self) -> Option<Vec<u8>> {
        self.answer.take()
    }

    /// The questions of ours that nothing more is expected of.
    pub(super) fn closed(&mut self) -> Vec<AskId> {
        if self.answer.is_some() {
            let open = self.servers.iter().flat_map(|server| [server.udp, server.tcp]);
            self.closed.extend(open.filter_map(|ask| if let Ask::Open(ask, _) = ask { Some(ask) } else { None }));
        }
        std::mem::take(&mut self.closed)
    }

    /// The questions to be asked now, each by [`Flight::ask`].
    pub(super) fn wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(&mut self.wanted)
    }

    /// Notes the numbers of a question, and says what is asked.
    pub(super) fn ask(&mut self, wanted: Wanted, ask: AskId, number: u16) -> (Upstream, Transport, Vec<u8>) {
        let Wanted { server, transport } = wanted;
        let server = &mut self.servers[server];
        *server.ask(transport) = Ask::Open(ask, number);
        (server.upstream.clone(), transport, renumbered(&self.question, number))
    }

    /// Asks the next server where it is time, and ends where nobody is left.
    fn next(&mut self, now: Instant) {
        let is_waiting = self.servers.iter().any(Server::is_waiting) || !self.wanted.is_empty();
        match self.servers.iter().position(Server::is_new) {
            Some(new) if !is_waiting || now >= self.next_server => {
                let is_plain = matches!(self.servers[new].upstream, Upstream::Plain(_));
                self.next_server = now + NEXT_SERVER;
                if is_plain {
                    self.servers[new].next_transport = Some(now + NEXT_TRANSPORT);
                    self.want(new, Transport::Udp);
                } else {
                    self.want(new, Transport::Tcp);
                }
            }
            None if !is_waiting && self.answer.is_none() => self.give_up(),
            Some(_) | None => {}
        }
    }

    fn want(&mut self, server: usize, transport: Transport) {
        let ask = self.servers[server].ask(transport);
        if *ask == Ask::Idle {
            *ask = Ask::Done;
            self.wanted.push(Wanted { server, transport });
        }
    }

    /// The open question with this number: of which server, how, and under which number of the message.
    fn open(&self, ask: AskId) -> Option<(usize, Transport, u16)> {
        let is_it = |state: Ask, transport| match state {
            Ask::Open(open, number) if open == ask => Some((transport, number)),
            Ask::Open(..) | Ask::Idle | Ask::Done => None,
        };
        self.servers.iter().enumerate().find_map(|(at, server)| {
            let (transport, number) = is_it(server.udp, Transport::Udp).or(is_it(server.tcp, Transport::Tcp))?;
            Some((at, transport, number))
        })
    }

    fn close(&mut self, ask: AskId) {
        let Some((server, transport, _)) = self.open(ask) else { return };
        *self.servers[server].ask(transport) = Ask::Done;
        self.closed.push(ask);
    }
}

impl Server {
    /// Whether it was never asked.
    fn is_new(&self) -> bool {
        let first = if matches!(self.upstream, Upstream::Plain(_)) { self.udp } else { self.tcp };
        first == Ask::Idle
    }

    fn is_waiting(&self) -> bool {
        matches!(self.udp, Ask::Open(..)) || matches!(self.tcp, Ask::Open(..))
    }

    /// When it is asked over TCP too.
    fn next_transport(&self) -> Option<Instant> {
        self.next_transport.filter(|_| self.tcp == Ask::Idle && matches!(self.udp, Ask::Open(..)))
    }

    const fn ask(&mut self, transport: Transport) -> &mut Ask {
        match transport {
            Transport::Udp => &mut self.udp,
            Transport::Tcp => &mut self.tcp,
        }
    }
}
