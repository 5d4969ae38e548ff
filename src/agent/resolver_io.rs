//! The sockets of the resolver, on a thread of their own: an answer never waits for a plan.
//!
//! They are bound to addresses that this host has while the tunnel stands; who asks when it does not, asks nobody. The
//! questions passed on to others carry no mark: they go where the host's own would, and through the tunnel where the
//! server lies behind a peer.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::exit_names::ExitNames;
use super::name_server::{self, DATAGRAM, framed, read_message};
use super::relay_tls::RelayTls;
use super::{clock, doh};
use warren_core::dns::{AskId, Effect, Outcome, QUESTION_LEN, QueryId, Server, Transport, Upstream};
use warren_core::node::Askers;
use warren_core::types::RESOLVER_ADDRESSES;
use warren_shell::{Dialler, Watch, locked};

/// Connections at one time. A host's programs use a few; more wait to be taken.
const CONNECTIONS: usize = 128;
/// How long a connection may be silent (RFC 7766 §6.2.3 leaves it to the server).
const IDLE: Duration = Duration::from_secs(45);
/// Answers that wait for one connection to take them. One that takes none loses more.
const ANSWERS: usize = 64;
/// How long to wait after a socket failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Ports that are tried where the wished one is taken, before the fault is told.
const TRIES: usize = 8;

/// The resolver. It ends with this.
pub struct Resolver {
    shared: Arc<Shared>,
    port: u16,
    runtime: tokio::runtime::Handle,
    /// For those who leave by this host.
    others: Mutex<ExitNames>,
    _stop: oneshot::Sender<()>,
}

impl Resolver {
    /// Opens the sockets, at this port or another, and begins. Nobody else may know the seed.
    /// Servers that speak HTTP are dialled.
    pub fn open(port: u16, seed: [u8; 32], dialler: Dialler) -> io::Result<Self> {
        Self::open_at(&RESOLVER_ADDRESSES, port, seed, dialler)
    }

    fn open_at(addresses: &[IpAddr], port: u16, seed: [u8; 32], dialler: Dialler) -> io::Result<Self> {
        let sockets = Sockets::bind(addresses, port)?;
        let port = sockets.port;
        let state = State { server: Server::new(seed), next: 0, waiting: BTreeMap::new(), asks: BTreeMap::new() };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), dialler, tls: RelayTls::default(), changed: Notify::new() });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        let (of_thread, handle) = (Arc::clone(&shared), runtime.handle().clone());
        std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            let watch = Watch::thread("resolver");
            runtime.block_on(async {
                tokio::select! {
                    () = of_thread.serve(sockets) => {}
                    _ = stopped => watch.release(),
                }
            });
        })?;
        let asked = Arc::clone(&shared);
        let ask = move |question: Vec<u8>| {
            let (answer, answered) = oneshot::channel();
            asked.ask_for_others(&question, Client::Within(answer));
            answered
        };
        let others = Mutex::new(ExitNames::new(Arc::new(ask)));
        Ok(Self { shared, port, runtime: handle, others, _stop: stop })
    }

    /// Where it answers.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Asks it a question as a program would. Nothing comes where it makes no sense, or nobody answers in time.
    pub fn question(&self, message: &[u8]) -> oneshot::Receiver<Vec<u8>> {
        let (answer, answered) = oneshot::channel();
        let (shared, message) = (Arc::clone(&self.shared), message.to_vec());
        // Whoever is asked is asked on its thread.
        self.runtime.spawn(async move { shared.ask(Transport::Tcp, &message, Client::Within(answer)) });
        answered
    }

    /// Answers these for whom this host is the way out, and no others.
    pub(super) fn answer_others(&self, askers: Option<Askers>) {
        locked("names for others", &self.others).update(askers, &self.runtime);
    }

    /// Changes what is answered.
    pub fn update(&self, change: impl FnOnce(&mut Server)) {
        change(&mut locked("resolver", &self.shared.state).server);
    }
}

/// The sockets of one port, UDP and TCP, at each address of a family that this host has.
struct Sockets {
    port: u16,
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
}

impl Sockets {
    fn bind(addresses: &[IpAddr], wished: u16) -> io::Result<Self> {
        let ports = std::iter::once(wished).chain(std::iter::repeat_n(0, TRIES));
        let mut tried = ports.map(|port| Self::bind_at(addresses, port));
        let mut last = tried.next().unwrap_or_else(|| Err(io::ErrorKind::AddrInUse.into()));
        while let Err(error) = &last
            && error.kind() == io::ErrorKind::AddrInUse
            && let Some(next) = tried.next()
        {
            last = next;
        }
        last
    }

    fn bind_at(addresses: &[IpAddr], port: u16) -> io::Result<Self> {
        let mut sockets = Self { port, udp: Vec::new(), tcp: Vec::new() };
        for address in addresses {
            let udp = match socket(*address, sockets.port, Type::DGRAM, Protocol::UDP) {
                // A host without IPv6 has names all the same.
                Err(error) if address.is_ipv6() && error.kind() != io::ErrorKind::AddrInUse => {
                    tracing::info!(%error, "names are not answered over IPv6");
                    continue;
                }
                other => std::net::UdpSocket::from(other?),
            };
            sockets.port = udp.local_addr()?.port();
            let tcp = socket(*address, sockets.port, Type::STREAM, Protocol::TCP)?;
            tcp.listen(128)?;
            sockets.udp.push(udp);
            sockets.tcp.push(tcp.into());
        }
        Ok(sockets)
    }
}

/// A socket at an address that may come later (ip(7), `IP_FREEBIND`).
fn socket(address: IpAddr, port: u16, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let to = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
    match address {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&to.into())?;
    Ok(socket)
}

struct Shared {
    state: Mutex<State>,
    /// For servers that speak HTTP.
    dialler: Dialler,
    tls: RelayTls,
    /// Whatever there is to wait for may be another than before.
    changed: Notify,
}

struct State {
    server: Server,
    next: u64,
    /// Who waits for an answer that was put off.
    waiting: BTreeMap<QueryId, Client>,
    /// The tasks that ask others.
    asks: BTreeMap<AskId, AbortHandle>,
}

/// Where an answer goes.
enum Client {
    Udp(Arc<UdpSocket>, SocketAddr),
    Tcp(mpsc::Sender<Vec<u8>>),
    /// Somebody in this program.
    Within(oneshot::Sender<Vec<u8>>),
}

impl Client {
    /// What the client does not take at once is lost, as on the way: it asks again.
    fn send(self, answer: Vec<u8>) {
        match self {
            Self::Udp(socket, to) => drop(socket.try_send_to(&answer, to)),
            Self::Tcp(stream) => drop(stream.try_send(answer)),
            Self::Within(asker) => drop(asker.send(answer)),
        }
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, sockets: Sockets) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        let mut tasks = tokio::task::JoinSet::new();
        for socket in sockets.udp.into_iter().map(UdpSocket::from_std) {
            match socket {
                Ok(socket) => drop(tasks.spawn(Arc::clone(&self).answer_datagrams(Arc::new(socket)))),
                Err(error) => tracing::error!(%error, "a socket for names"),
            }
        }
        for socket in sockets.tcp.into_iter().map(TcpListener::from_std) {
            match socket {
                Ok(socket) => drop(tasks.spawn(Arc::clone(&self).accept(socket, Arc::clone(&connections)))),
                Err(error) => tracing::error!(%error, "a socket for names"),
            }
        }
        tasks.spawn(Arc::clone(&self).keep_time());
        // None of them ends by itself.
        tasks.join_next().await;
    }

    async fn answer_datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; QUESTION_LEN + 1];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((length, from)) => {
                    self.ask(Transport::Udp, &buffer[..length], Client::Udp(Arc::clone(&socket), from));
                }
                Err(error) => {
                    tracing::warn!(%error, "receive questions for names");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, connections: Arc<Semaphore>) {
        loop {
            let Ok(place) = Arc::clone(&connections).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let shared = Arc::clone(&self);
                    tokio::spawn(async move {
                        shared.answer_stream(stream).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept questions for names");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Answers as they come, while questions come; each may overtake those before it (RFC 7766 §6.2.1.1).
    async fn answer_stream(self: Arc<Self>, stream: TcpStream) {
        let (mut reader, mut writer) = stream.into_split();
        let (answers_in, mut answers) = mpsc::channel::<Vec<u8>>(ANSWERS);
        let read = async {
            while let Ok(Some(question)) = timeout(IDLE, read_message(&mut reader, QUESTION_LEN)).await {
                self.ask(Transport::Tcp, &question, Client::Tcp(answers_in.clone()));
            }
            // Those that were put off are still sent.
            drop(answers_in);
        };
        let write = async {
            while let Some(answer) = answers.recv().await {
                let Some(message) = framed(&answer) else { continue };
                if !matches!(timeout(IDLE, writer.write_all(&message)).await, Ok(Ok(()))) {
                    return;
                }
            }
        };
        tokio::pin!(read, write);
        tokio::select! {
            () = &mut write => {}
            () = &mut read => write.await,
        }
    }

    async fn keep_time(self: Arc<Self>) {
        loop {
            let next = locked("resolver", &self.state).server.poll_timeout();
            let changed = self.changed.notified();
            match next {
                Some(at) => drop(tokio::time::timeout_at(at.into(), changed).await),
                None => changed.await,
            }
            self.act(|server, now| server.handle_timeout(now));
        }
    }

    fn ask(self: &Arc<Self>, transport: Transport, question: &[u8], client: Client) {
        self.take(client, |server, query, now| server.handle_query(now, query, transport, question));
    }

    fn ask_for_others(self: &Arc<Self>, question: &[u8], client: Client) {
        self.take(client, |server, query, now| server.handle_query_of_others(now, query, question));
    }

    fn take(self: &Arc<Self>, client: Client, handle: impl FnOnce(&mut Server, QueryId, Instant) -> Outcome) {
        let mut state = locked("resolver", &self.state);
        state.next += 1;
        let query = QueryId(state.next);
        match handle(&mut state.server, query, clock::now().tick) {
            Outcome::Answer(answer) => client.send(answer),
            Outcome::Later => {
                state.waiting.insert(query, client);
                self.carry_out(&mut state);
                self.changed.notify_one();
            }
            Outcome::Silence => {}
        }
    }

    fn act(self: &Arc<Self>, act: impl FnOnce(&mut Server, Instant)) {
        let mut state = locked("resolver", &self.state);
        act(&mut state.server, clock::now().tick);
        self.carry_out(&mut state);
    }

    fn carry_out(self: &Arc<Self>, state: &mut State) {
        while let Some(effect) = state.server.poll_effect() {
            match effect {
                Effect::Answer { query, bytes } => {
                    if let Some(client) = state.waiting.remove(&query) {
                        client.send(bytes);
                    }
                }
                Effect::Ask { ask, upstream, transport, bytes } => {
                    let task = tokio::spawn(Arc::clone(self).pass_on(ask, upstream, transport, bytes));
                    state.asks.insert(ask, task.abort_handle());
                }
                Effect::Forget(ask) => {
                    if let Some(task) = state.asks.remove(&ask) {
                        task.abort();
                    }
                }
            }
        }
    }

    /// Asks another server. What comes back is judged by the core, which ends this task.
    async fn pass_on(self: Arc<Self>, ask: AskId, upstream: Upstream, transport: Transport, question: Vec<u8>) {
        let asked = match (&upstream, transport) {
            (Upstream::Plain(server), Transport::Udp) => self.ask_by_datagram(ask, *server, &question).await,
            (Upstream::Plain(server), Transport::Tcp) => self.ask_by_stream(ask, *server, &question).await,
            (Upstream::Http { url, addresses }, _) => {
                match doh::ask(&self.dialler, &self.tls, url, addresses, question).await {
                    Ok(answer) => {
                        self.act(|server, now| server.handle_reply(now, ask, &answer));
                        Ok(())
                    }
                    Err(error) => Err(io::Error::other(error)),
                }
            }
        };
        if let Err(error) = asked {
            tracing::debug!(?upstream, ?transport, %error, "ask a name server");
            self.act(|server, now| server.handle_failure(now, ask));
            self.changed.notify_one();
        }
    }

    /// Hears until it is ended: anybody may send something.
    async fn ask_by_datagram(self: &Arc<Self>, ask: AskId, server: SocketAddr, question: &[u8]) -> io::Result<()> {
        let socket = name_server::send(server, None, question).await?;
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let length = socket.recv(&mut buffer).await?;
            self.act(|server, now| server.handle_reply(now, ask, &buffer[..length]));
            self.changed.notify_one();
        }
    }

    async fn ask_by_stream(self: &Arc<Self>, ask: AskId, server: SocketAddr, question: &[u8]) -> io::Result<()> {
        let answer = name_server::ask_by_stream(server, None, question).await?;
        self.act(|server, now| server.handle_reply(now, ask, &answer));
        self.changed.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Ipv4Addr;

    use warren_core::dns::Upstream;
    use warren_core::netmap::Netmap;
    use warren_core::types::Timestamp;
    use warren_core::wire::control::MapResponse;

    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    /// A question for an address, under a number.
    fn question(number: u16, name: &str) -> Vec<u8> {
        let mut bytes = [number, 0x0100, 1, 0, 0, 0].map(u16::to_be_bytes).concat();
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label.bytes());
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    fn resolver(upstream: &[SocketAddr]) -> Resolver {
        let resolver = Resolver::open_at(&[Ipv4Addr::LOCALHOST.into()], 0, [7; 32], Dialler::new(None)).unwrap();
        let node = serde_json::json!({"ID": 1, "Name": "us.corp.example.", "Addresses": ["100.64.0.1/32"]});
        let dns = serde_json::json!({"Proxied": true});
        let message: MapResponse = serde_json::from_value(serde_json::json!({"Node": node, "DNSConfig": dns})).unwrap();
        let mut map = Netmap::default();
        map.replace(message, Timestamp::UNIX_EPOCH);
        let upstream: Vec<Upstream> = upstream.iter().copied().map(Upstream::Plain).collect();
        resolver.update(|server| server.update(&map, &upstream));
        resolver
    }

    fn client(resolver: &Resolver) -> std::net::UdpSocket {
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(TIME)).unwrap();
        client.connect(("127.0.0.1", resolver.port())).unwrap();
        client
    }

    fn ask(client: &std::net::UdpSocket, question: &[u8]) -> Vec<u8> {
        client.send(question).unwrap();
        let mut answer = vec![0; 4096];
        let length = client.recv(&mut answer).unwrap();
        answer.truncate(length);
        answer
    }

    /// A name server that answers as `answer` says, over both transports, to the end of the test.
    fn server(answer: fn(Transport, &[u8]) -> Vec<u8>) -> SocketAddr {
        // A port that is free for one may be taken for the other.
        let (address, udp, tcp) = std::iter::repeat_with(|| {
            let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = udp.local_addr().unwrap();
            std::net::TcpListener::bind(address).ok().map(|tcp| (address, udp, tcp))
        })
        .flatten()
        .next()
        .unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&answer(Transport::Udp, &buffer[..length]), from);
            }
        });
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut question).unwrap();
                stream.write_all(&framed(&answer(Transport::Tcp, &question)).unwrap()).unwrap();
            }
        });
        address
    }

    /// The same message as an answer, with these flags, and without any record.
    fn reply(question: &[u8], flags: u16) -> Vec<u8> {
        [&question[..2], &flags.to_be_bytes(), &question[4..]].concat()
    }

    fn code(answer: &[u8]) -> u8 {
        answer[3] & 15
    }

    #[test]
    fn names_are_answered_over_udp_and_over_tcp_as_they_come() {
        let resolver = resolver(&[]);
        let answer = ask(&client(&resolver), &question(7, "us.corp.example"));
        assert!(answer.starts_with(&[0, 7]) && answer.ends_with(&[100, 64, 0, 1]), "{answer:?}");

        let mut stream = std::net::TcpStream::connect(("127.0.0.1", resolver.port())).unwrap();
        stream.set_read_timeout(Some(TIME)).unwrap();
        let questions: Vec<u8> =
            (0..100).flat_map(|number| framed(&question(number, "us.corp.example")).unwrap()).collect();
        stream.write_all(&questions[..5]).unwrap();
        stream.write_all(&questions[5..]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).unwrap();
        // More than wait for one connection are lost only where it does not take them.
        assert!(answers.len() >= ANSWERS * (answer.len() + 2) && answers.len().is_multiple_of(answer.len() + 2));
    }

    #[test]
    fn what_others_know_is_passed_on_and_had_over_tcp_where_it_is_cut() {
        let upstream = server(|transport, question| match transport {
            Transport::Udp => reply(question, 0x8380),
            Transport::Tcp => reply(question, 0x8180 | 3),
        });
        let resolver = resolver(&[upstream]);
        let answer = ask(&client(&resolver), &question(9, "other.test"));
        assert_eq!((&answer[..2], code(&answer)), (&[0, 9][..], 3));
    }

    #[test]
    fn a_server_that_is_not_there_is_told_of_at_once() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let answer = ask(&client(&resolver(&[closed])), &question(9, "other.test"));
        assert_eq!(code(&answer), 2);
    }

    #[test]
    fn another_port_is_taken_where_somebody_has_the_wished_one() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let resolver = Resolver::open_at(&[Ipv4Addr::LOCALHOST.into()], port, [7; 32], Dialler::new(None)).unwrap();
        assert_ne!(resolver.port(), port);
    }

    #[test]
    fn the_sockets_open_before_the_addresses_are_there() {
        let resolver = Resolver::open(0, [7; 32], Dialler::new(None)).unwrap();
        assert_ne!(resolver.port(), 0);
    }
}
