//! A ping train, and the kernel's endpoint of a peer, both followed while things happen.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use warren_core::types::IpNet;

use crate::lab::{Host, try_within, within};

/// One ping and the next.
pub(crate) const INTERVAL: Duration = Duration::from_millis(200);

/// The identifier of all packets of a train: one ICMP flow.
const FLOW: &str = "5741";

/// `ping`, running.
pub(crate) struct Train {
    ping: Child,
    reader: Option<JoinHandle<()>>,
    started: Instant,
    /// How long the packet before all others took, if it was answered.
    first: Option<Duration>,
    replies: Replies,
}

/// When the first answer to each sequence number came.
type Replies = Arc<Mutex<BTreeMap<u32, Instant>>>;

/// The endpoints of a peer, oldest first, each with the time when it was first seen.
pub(crate) type History = Vec<(Instant, Option<SocketAddr>)>;

/// What became of a train.
pub(crate) struct Account {
    /// How long the answer to the first packet took; none where it was not answered.
    pub(crate) first: Option<Duration>,
    /// Packets up to the last one that was answered, that one not counted.
    pub(crate) sent: u32,
    /// Which of them were not answered; the first one is 0.
    pub(crate) lost: Vec<u32>,
    /// The longest time without an answer, the end of the train included.
    pub(crate) gap: Duration,
}

impl Train {
    /// Starts it. The first packet goes alone, and is waited for no longer than `limit`: a burst that begins a flow is
    /// not ours to judge. What waited for a handshake arrives as one batch, up to eight packets, and WireGuard hands it to
    /// the stack as one list: each packet of a new flow passes connection tracking before the first is entered, the first
    /// is, and the others find its entry in their place. For UDP that is resolved, for ICMP the packet is dropped: seen
    /// with a tunnel made by hand and one `ct` rule, 20 pings at once, 7 lost, and `conntrack -S` counting 7 under both
    /// `insert_failed` and `drop`. Leaving echo requests untracked loses none, but then the replies are untracked too, and a
    /// host whose own firewall lets out only what answers a known flow would answer no ping at all; so our table does not.
    pub(crate) fn start(from: &Host, to: &str, limit: Duration) -> Self {
        let started = now();
        let wait = limit.as_secs().to_string();
        let alone =
            from.command(["ping", "-n", "-e", FLOW, "-q", "-c", "1", "-W", &wait, to]).stdout(Stdio::null()).status();
        let first = alone.unwrap().success().then(|| started.elapsed());
        let interval = INTERVAL.as_secs_f32().to_string();
        let mut command = from.command(["ping", "-n", "-e", FLOW, "-i", &interval, to]);
        let mut ping = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (replies, output) = (Replies::default(), ping.stdout.take().unwrap());
        let noted = Arc::clone(&replies);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(number) = sequence_number(&line) {
                    noted.lock().unwrap().entry(number).or_insert_with(now);
                }
            }
        });
        Self { ping, reader: Some(reader), started: now(), first, replies }
    }

    /// How many packets have been answered.
    pub(crate) fn answered(&self) -> usize {
        self.replies.lock().unwrap().len()
    }

    /// Waits for so many more answers.
    pub(crate) fn run_on(&self, more: usize, limit: Duration) {
        let goal = self.answered() + more;
        within(limit, &format!("{more} more answers to ping"), || (self.answered() >= goal).then_some(()));
    }

    /// The same, where it may not come to that.
    pub(crate) fn try_run_on(&self, more: usize, limit: Duration) -> bool {
        let goal = self.answered() + more;
        try_within(limit, || (self.answered() >= goal).then_some(())).is_some()
    }

    /// Ends it.
    pub(crate) fn finish(mut self) -> Account {
        self.end();
        let replies = self.replies.lock().unwrap();
        let sent = replies.last_key_value().map_or(0, |(last, _)| *last);
        let missing = (1..=sent).filter(|number| !replies.contains_key(number));
        let lost = self.first.is_none().then_some(0).into_iter().chain(missing).collect();
        let times: Vec<Instant> =
            std::iter::once(self.started).chain(replies.values().copied()).chain([now()]).collect();
        let gap = times.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0])).max().unwrap_or_default();
        Account { first: self.first, sent, lost, gap }
    }

    fn end(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        let _ = self.ping.kill();
        let _ = self.ping.wait();
        let _ = reader.join();
    }
}

impl Drop for Train {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, sent, lost, gap } = self;
        write!(f, "lost {} of {sent}{}, ", lost.len(), which(lost))?;
        write!(f, "first answer after {:.1?}, longest gap {gap:.1?}", first.unwrap_or_default())
    }
}

/// The endpoint of one peer in the kernel of a host, looked at some thirty times a second.
pub(crate) struct PathWatch {
    end: Arc<AtomicBool>,
    changes: Arc<Mutex<History>>,
    thread: Option<JoinHandle<()>>,
}

impl PathWatch {
    const LOOK: Duration = Duration::from_millis(30);

    /// Watches the peer that has this overlay address.
    pub(crate) fn start(host: &Host, peer: &str) -> Self {
        let (end, changes) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (ended, noted): (_, Arc<Mutex<History>>) = (Arc::clone(&end), Arc::clone(&changes));
        let peer: IpAddr = peer.parse().unwrap();
        let thread = host.namespace.spawn_inside(move || {
            while !ended.load(Ordering::Relaxed) {
                let endpoint = endpoint_of(peer);
                let mut changes = noted.lock().unwrap();
                if changes.last().is_none_or(|(_, last)| *last != endpoint) {
                    changes.push((now(), endpoint));
                }
                drop(changes);
                std::thread::park_timeout(Self::LOOK);
            }
        });
        Self { end, changes, thread: Some(thread) }
    }

    /// Where packets go at this moment, if anywhere.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.changes.lock().unwrap().last().and_then(|(_, endpoint)| *endpoint)
    }

    /// Whether they go to the other machine and not to the agent, which passes them to a relay.
    pub(crate) fn is_direct(&self) -> bool {
        self.endpoint().is_some_and(|endpoint| !is_relay(endpoint))
    }

    /// Waits until packets go this way.
    pub(crate) fn wait_until_direct(&self, limit: Duration) {
        within(limit, "a direct path", || self.is_direct().then_some(()));
    }

    /// Waits until packets go through the relay.
    pub(crate) fn wait_until_relayed(&self, limit: Duration) {
        let relayed = || self.endpoint().filter(|endpoint| is_relay(*endpoint)).map(|_| ());
        within(limit, "the path through the relay", relayed);
    }

    /// All endpoints so far.
    pub(crate) fn history(&self) -> History {
        self.changes.lock().unwrap().clone()
    }
}

impl Drop for PathWatch {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether an endpoint is the agent's own socket, which stands for a relay.
pub(crate) fn is_relay(endpoint: SocketAddr) -> bool {
    endpoint.ip().is_loopback()
}

/// The time now.
#[allow(clippy::disallowed_methods, reason = "what is timed happens in other processes, in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The numbers of lost packets, where there are any.
pub(crate) fn which(lost: &[u32]) -> String {
    if lost.is_empty() { String::new() } else { format!(" (numbers {lost:?})") }
}

/// Where the kernel sends what is for a peer, by one of its addresses (`wg show DEVICE dump`, wg(8)).
fn endpoint_of(peer: IpAddr) -> Option<SocketAddr> {
    let shown = Command::new("wg").args(["show", "warren0", "dump"]).output().ok()?;
    let holds = |allowed: &str| allowed.split(',').any(|net| net.parse::<IpNet>().is_ok_and(|net| net.addr() == peer));
    // The first line is the device's own.
    String::from_utf8_lossy(&shown.stdout).lines().skip(1).find_map(|line| {
        let [_key, _secret, endpoint, allowed, ..] = line.split('\t').collect::<Vec<_>>()[..] else { return None };
        holds(allowed).then(|| endpoint.parse().ok())?
    })
}

fn sequence_number(line: &str) -> Option<u32> {
    line.contains("bytes from").then(|| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()).flatten()
}
