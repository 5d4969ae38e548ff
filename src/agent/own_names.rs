//! The names that the agent itself needs: its coordinator, relays, STUN, servers that speak DNS over HTTP.
//!
//! The system would ask for them as for any program's, and with an exit node the question would go through the tunnel
//! that needs the answer. So the host's own name servers are asked here, by sockets with our mark, after `/etc/hosts`
//! and before the system, which alone knows of names without a dot, private servers and caches. What was found is kept
//! in the state directory for a start while nobody answers.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::name_server::{self, DATAGRAM};
use super::state::StateDir;
use super::{clock, resolvers};
use warren_core::dns::{self, AskId, Effect, Outcome, QueryId, Server, Transport, Upstream};
use warren_core::netmap::Netmap;
use warren_core::types::RESOLVER_ADDRESSES;
use warren_shell::{Dialler, Found, LookUp, System, locked};

/// How long name servers may take. The system, which is asked next, has as much left of the time that a name may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the other family is waited for once there are addresses of one.
const OTHER_FAMILY: Duration = Duration::from_millis(500);
/// As much of `/etc/hosts` as is read: lists of hosts that are to be kept away have some megabytes.
const HOSTS: u64 = 16 << 20;
/// Where answers are kept.
const FILE: &str = "names.json";
/// Names that are kept: the coordinator and the relays of a large network.
const KEPT: usize = 128;
/// Addresses of a name that are kept.
const ADDRESSES: usize = 16;
/// The most bytes that [`KEPT`] names take.
const FILE_LEN: u64 = 256 << 10;
/// How often the file is written at most: answers may turn.
const PACE: Duration = Duration::from_secs(60);

/// A dialler with this mark that finds names in this way, and keeps them in a directory.
pub(super) fn dialler(mark: u32, dir: &StateDir) -> Dialler {
    let dialler = Dialler::new(Some(mark));
    let kept = Kept::load(dir);
    let known = kept.names.iter().map(|kept| (kept.name.clone(), kept.addresses.clone())).collect();
    let (kept, changed) = (Arc::new(Mutex::new(kept)), Arc::new(Notify::new()));
    tokio::spawn(keep(dir.clone(), Arc::clone(&kept), Arc::clone(&changed)));
    let names = OwnNames { mark: dialler.mark(), root: PathBuf::from("/"), port: 53, kept, changed };
    dialler.with_names(names).remembering(known)
}

/// See the module.
#[derive(Clone)]
struct OwnNames {
    mark: Option<u32>,
    /// Where files are; another one in tests.
    root: PathBuf,
    port: u16,
    kept: Arc<Mutex<Kept>>,
    changed: Arc<Notify>,
}

impl LookUp for OwnNames {
    fn look_up(&self, name: String) -> Found {
        let names = self.clone();
        Box::pin(async move {
            let found = match names.find(&name).await {
                found if !found.is_empty() => Ok(found),
                _ => System.look_up(name.clone()).await,
            };
            if let Ok(found) = &found
                && locked("names", &names.kept).note(&name, found)
            {
                names.changed.notify_one();
            }
            found
        })
    }
}

impl OwnNames {
    /// Nothing where the system may know more.
    async fn find(&self, name: &str) -> Vec<IpAddr> {
        let (root, wanted) = (self.root.clone(), name.to_owned());
        let files = move || (in_hosts(&root, &wanted), resolvers::all(&root));
        let (listed, servers) = tokio::task::spawn_blocking(files).await.unwrap_or_default();
        // Whom a name without a dot belongs to, its search domains say, of which some are ours.
        if !listed.is_empty() || !name.trim_end_matches('.').contains('.') {
            return listed;
        }
        // A server on this host asks others without our mark, and a link-local one needs to have its link said.
        let is_usable = |server: &IpAddr| {
            let is_link_local = matches!(server, IpAddr::V6(server) if server.is_unicast_link_local());
            self.port != 53 || !(server.is_loopback() || RESOLVER_ADDRESSES.contains(server) || is_link_local)
        };
        let servers = servers.into_iter().filter(is_usable).map(|server| Upstream::Plain((server, self.port).into()));
        ask(name, &servers.collect::<Vec<_>>(), self.mark).await
    }
}

/// Asks name servers for the addresses of a name, as our resolver would.
async fn ask(name: &str, servers: &[Upstream], mark: Option<u32>) -> Vec<IpAddr> {
    let mut asking = Asking::new(servers, mark);
    for (query, kind) in [(QueryId(0), "AAAA"), (QueryId(1), "A")] {
        asking.begin(query, name, kind);
    }
    let mut end = Instant::from_std(clock::now().tick) + PATIENCE;
    while asking.open > 0 {
        let next = asking.server.poll_timeout().map_or(end, |at| end.min(at.into()));
        match timeout_at(next, asking.news.recv()).await {
            Ok(Some((ask, Ok(answer)))) => asking.server.handle_reply(clock::now().tick, ask, &answer),
            Ok(Some((ask, Err(error)))) => {
                tracing::debug!(name, %error, "ask a name server");
                asking.server.handle_failure(clock::now().tick, ask);
            }
            Ok(None) => break,
            Err(_) if clock::now().tick >= end.into_std() => break,
            Err(_) => asking.server.handle_timeout(clock::now().tick),
        }
        if asking.carry_out() {
            end = end.min(Instant::from_std(clock::now().tick) + OTHER_FAMILY);
        }
    }
    asking.found
}

type News = (AskId, io::Result<Vec<u8>>);

/// Two questions under way.
struct Asking {
    server: Server,
    mark: Option<u32>,
    open: usize,
    found: Vec<IpAddr>,
    out: mpsc::Sender<News>,
    news: mpsc::Receiver<News>,
    tasks: JoinSet<()>,
}

impl Asking {
    fn new(servers: &[Upstream], mark: Option<u32>) -> Self {
        let mut server = Server::new(clock::key_bytes());
        server.update(&Netmap::default(), servers);
        let (out, news) = mpsc::channel(8);
        Self { server, mark, open: 0, found: Vec::new(), out, news, tasks: JoinSet::new() }
    }

    fn begin(&mut self, query: QueryId, name: &str, kind: &str) {
        let Some(question) = dns::record_type(kind).and_then(|kind| dns::question(name, kind, 0)) else { return };
        if self.server.handle_query(clock::now().tick, query, Transport::Tcp, &question) == Outcome::Later {
            self.open += 1;
            self.carry_out();
        }
    }

    /// Whether addresses were found.
    fn carry_out(&mut self) -> bool {
        let before = self.found.len();
        while let Some(effect) = self.server.poll_effect() {
            match effect {
                Effect::Answer { bytes, .. } => {
                    self.open = self.open.saturating_sub(1);
                    self.found.extend(dns::addresses(&bytes).unwrap_or_default());
                }
                Effect::Ask { ask, upstream: Upstream::Plain(server), transport, bytes } => {
                    let (out, mark) = (self.out.clone(), self.mark);
                    self.tasks.spawn(async move {
                        let failed = match transport {
                            Transport::Udp => hear(ask, server, mark, &bytes, &out).await,
                            Transport::Tcp => match name_server::ask_by_stream(server, mark, &bytes).await {
                                Ok(answer) => return drop(out.send((ask, Ok(answer))).await),
                                Err(error) => error,
                            },
                        };
                        let _ = out.send((ask, Err(failed))).await;
                    });
                }
                // There are none among a host's own, and whatever still comes is dropped.
                Effect::Ask { upstream: Upstream::Http { .. }, .. } | Effect::Forget(_) => {}
            }
        }
        self.found.len() > before
    }
}

/// Asks by a datagram, and passes on whatever comes: the core judges it.
async fn hear(
    ask: AskId,
    server: std::net::SocketAddr,
    mark: Option<u32>,
    question: &[u8],
    out: &mpsc::Sender<News>,
) -> io::Error {
    let socket = match name_server::send(server, mark, question).await {
        Ok(socket) => socket,
        Err(error) => return error,
    };
    let mut buffer = vec![0; DATAGRAM];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) if out.send((ask, Ok(buffer[..length].to_vec()))).await.is_ok() => {}
            Ok(_) => return io::ErrorKind::BrokenPipe.into(),
            Err(error) => return error,
        }
    }
}

/// The addresses that `/etc/hosts` has for a name (hosts(5)).
fn in_hosts(root: &Path, name: &str) -> Vec<IpAddr> {
    let Ok(file) = File::open(root.join("etc/hosts")) else { return Vec::new() };
    let name = name.trim_end_matches('.');
    let mut found = Vec::new();
    for line in BufReader::new(file.take(HOSTS)).lines().map_while(Result::ok) {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address = words.next().and_then(|address| address.parse().ok());
        if let Some(address) = address
            && found.len() < ADDRESSES
            && words.any(|word| word.eq_ignore_ascii_case(name))
        {
            found.push(address);
        }
    }
    found
}

/// What was found last, the newest last.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Kept {
    names: Vec<KeptName>,
}

#[derive(Debug, Deserialize, Serialize)]
struct KeptName {
    name: String,
    addresses: Vec<IpAddr>,
}

impl Kept {
    /// What cannot be read is as good as nothing: it is found anew.
    fn load(dir: &StateDir) -> Self {
        let content = dir.load_named(FILE, FILE_LEN).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        });
        let read = content.and_then(|content| serde_json::from_slice::<Self>(content.expose_bytes()).ok());
        let mut kept = read.unwrap_or_default();
        kept.names.truncate(KEPT);
        kept.names.iter_mut().for_each(|name| name.addresses.truncate(ADDRESSES));
        kept
    }

    /// Whether it is news.
    fn note(&mut self, name: &str, found: &[IpAddr]) -> bool {
        let mut addresses: Vec<IpAddr> = found.to_vec();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(ADDRESSES);
        let known = self.names.iter().position(|kept| kept.name == name);
        let before = known.map(|at| self.names.remove(at));
        let is_news = before.is_none_or(|before| before.addresses != addresses);
        if self.names.len() >= KEPT {
            self.names.remove(0);
        }
        self.names.push(KeptName { name: name.to_owned(), addresses });
        is_news
    }
}

/// Writes the file whenever there is news, to the end of the program.
async fn keep(dir: StateDir, kept: Arc<Mutex<Kept>>, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        let (dir, bytes) = (dir.clone(), serde_json::to_vec(&*locked("names", &kept)));
        let write = move || {
            bytes
                .map_err(|error| error.to_string())
                .and_then(|bytes| dir.save_named(FILE, &bytes).map_err(|error| error.to_string()))
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!("names for the next start: {error}");
        }
        tokio::time::sleep(PACE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{SocketAddr, UdpSocket};

    use super::*;

    /// A name server that knows an address of each family of every name within `test`.
    fn server() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let question = &buffer[..length];
                let is_ours = question[12..length - 5].ends_with(b"\x04test");
                let (kind, data) = match question[length - 3] {
                    1 => (1, vec![192, 0, 2, 7]),
                    _ => (28, [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[7]].concat()),
                };
                let flags = if is_ours { [0x81, 0x80] } else { [0x81, 0x83] };
                let mut answer = [&question[..2], &flags, &[0, 1, 0, u8::from(is_ours), 0, 0, 0, 0]].concat();
                answer.extend(&question[12..]);
                if is_ours {
                    answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 5, 0, u8::try_from(data.len()).unwrap()]);
                    answer.extend(data);
                }
                let _ = socket.send_to(&answer, from);
            }
        });
        address
    }

    fn own_names(root: &Path, port: u16) -> OwnNames {
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/resolv.conf"), "nameserver 127.0.0.1\nsearch test\n").unwrap();
        std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost # here\n192.0.2.99\tMine.example mine\n::9 mine\n")
            .unwrap();
        OwnNames { mark: None, root: root.to_owned(), port, kept: Arc::default(), changed: Arc::default() }
    }

    fn parsed(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn the_hosts_file_comes_first_then_the_hosts_name_servers_in_both_families() {
        let root = tempfile::tempdir().unwrap();
        let names = own_names(root.path(), server().port());
        assert_eq!(names.find("mine").await, parsed(&["192.0.2.99", "::9"]));
        assert_eq!(names.find("mine.EXAMPLE.").await, parsed(&["192.0.2.99"]));
        let mut found = names.find("hub.test").await;
        found.sort();
        assert_eq!(found, parsed(&["192.0.2.7", "2001:db8::7"]));
        assert_eq!(names.find("hub.elsewhere").await, parsed(&[]), "the system may know it");
        assert_eq!(names.find("hub").await, parsed(&[]), "whose it is the system knows");
    }

    #[tokio::test]
    async fn servers_on_this_host_and_ours_are_not_asked() {
        let root = tempfile::tempdir().unwrap();
        let names = own_names(root.path(), 53);
        let text = "nameserver 127.0.0.53\nnameserver 100.100.100.100\nnameserver fe80::1%eth0\n";
        std::fs::write(root.path().join("etc/resolv.conf"), text).unwrap();
        assert_eq!(names.find("hub.test").await, parsed(&[]));
    }

    #[tokio::test]
    async fn a_port_where_nobody_answers_is_given_up_at_once() {
        let root = tempfile::tempdir().unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(own_names(root.path(), closed).find("hub.test").await, parsed(&[]));
    }

    #[tokio::test]
    async fn what_was_found_is_there_at_the_next_start_up_to_a_limit() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&root.path().join("state")).unwrap();
        let names = own_names(root.path(), server().port());
        let task = tokio::spawn(keep(dir.clone(), Arc::clone(&names.kept), Arc::clone(&names.changed)));
        for n in 0..=KEPT {
            locked("names", &names.kept).note(&format!("{n}.test"), &parsed(&["192.0.2.1"]));
        }
        names.look_up("hub.test".to_owned()).await.unwrap();
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while dir.load_named(FILE, FILE_LEN).unwrap().is_none() {
            look.tick().await;
        }
        task.abort();
        let kept = Kept::load(&dir);
        assert_eq!(kept.names.len(), KEPT);
        let known: BTreeMap<_, _> = kept.names.into_iter().map(|kept| (kept.name, kept.addresses)).collect();
        assert_eq!(known["hub.test"], parsed(&["192.0.2.7", "2001:db8::7"]));
        assert!(!known.contains_key("0.test"));
        std::fs::write(root.path().join("state").join(FILE), "{").unwrap();
        assert!(Kept::load(&dir).names.is_empty());
    }

    #[test]
    fn an_answer_is_news_only_where_it_has_other_addresses() {
        let mut kept = Kept::default();
        assert!(kept.note("a.test", &parsed(&["192.0.2.1", "192.0.2.2"])));
        assert!(!kept.note("a.test", &parsed(&["192.0.2.2", "192.0.2.1"])));
        assert!(kept.note("a.test", &parsed(&["192.0.2.2"])));
        assert_eq!(kept.names.len(), 1);
    }
}
