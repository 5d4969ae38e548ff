//! A right that is taken away ends what runs by it, and nothing beside it; `warren why` names the line.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::{Lab, PATIENCE, say, within};
use crate::programs::{Agent, Coordinator, Joined};
use crate::train::{Train, now};

/// The port whose right is taken away, and one beside it.
const REVOKED: u16 = 5001;
const ALLOWED: u16 = 5002;
/// A transfer sends one of its numbers and the next in this time.
const PACE: Duration = Duration::from_millis(10);
/// A transfer whose right has gone is cut within this time.
const CUT: Duration = Duration::from_secs(1);
/// A reader to whom nothing was said for this long says something.
const STILL: Duration = Duration::from_secs(2);

#[test]
fn a_revoked_transfer_is_cut_and_an_allowed_one_beside_it_loses_nothing_and_the_line_is_named() {
    revoke();
}

#[test]
#[ignore = "its limit is in seconds of a quiet machine: `make matrix` runs it"]
fn a_revoked_transfer_is_cut_within_a_second() {
    let Some(took) = revoke() else { return };
    assert!(took <= CUT, "{took:?}");
}

/// Takes away the right of one of two transfers; how long after the administrator's command had ended something of it
/// still came.
fn revoke() -> Option<Duration> {
    let Joined { alice, bob, coordinator, lab } = Joined::new()?;
    set_policy(&lab, &coordinator, &bob, &[ALLOWED, REVOKED]);
    let [revoked, allowed] = [REVOKED, ALLOWED].map(|port| Transfer::start(&alice, &bob, port));
    let train = Train::start(&alice.host, &bob.ip(4), PATIENCE);
    for transfer in [&revoked, &allowed] {
        transfer.run_on(50);
    }
    let question = format!("why alice self tcp/{REVOKED}");
    let why = bob.warren(&question);
    assert!(why.contains("line 3 of the policy"), "{why}");

    set_policy(&lab, &coordinator, &bob, &[ALLOWED]);
    let set = now();
    let (last, told) = revoked.end();

    let cut = last.saturating_duration_since(set);
    say(&format!(
        "revocation: from the answer of `policy set` to the last byte: {cut:.1?}; the reader was told: {told}"
    ));
    assert_eq!(told, ErrorKind::ConnectionReset);
    allowed.run_on(50);
    train.run_on(3, PATIENCE);
    let account = train.finish();
    assert!(account.lost.is_empty(), "{account}");
    let why = bob.try_warren(&question);
    let why = (why.status.success(), String::from_utf8(why.stdout).unwrap());
    assert!(!why.0 && why.1.contains("line 3 of the policy") && why.1.contains("let it in until"), "{}", why.1);
    assert!(why.1.contains("kernel: drops it"), "{}", why.1);
    Some(cut)
}

/// Lets everybody open these ports of a node, each by a line of its own, from the second on.
fn set_policy(lab: &Lab, coordinator: &Coordinator, node: &Agent, ports: &[u16]) {
    let (file, ip) = (lab.dir.path().join("policy.hujson"), node.ip(4));
    let line = |port: &u16| format!("{{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"{ip}:{port}\"]}},\n");
    fs::write(&file, format!("{{\"acls\": [\n{}]}}", ports.iter().map(line).collect::<String>())).unwrap();
    coordinator.run(&format!("policy set {}", file.display()));
}

/// Numbers that one node sends and the other receives, over one connection, without end.
struct Transfer {
    /// How many came, and when the last did.
    state: Arc<Mutex<(u32, Instant)>>,
    /// The receiver; how its connection ended.
    reader: JoinHandle<ErrorKind>,
}

impl Transfer {
    /// The reader opens it.
    fn start(reader: &Agent, sender: &Agent, port: u16) -> Self {
        let address: SocketAddr = format!("{}:{port}", sender.ip(4)).parse().unwrap();
        let listener = sender.host.namespace.inside(move || TcpListener::bind(address).unwrap());
        std::thread::spawn(move || send(listener.accept().unwrap().0));
        let state = Arc::new(Mutex::new((0, now())));
        let noted = Arc::clone(&state);
        let reader = reader.host.namespace.spawn_inside(move || receive(address, &noted));
        Self { state, reader }
    }

    /// Waits for so many more numbers.
    fn run_on(&self, more: u32) {
        let count = || self.state.lock().unwrap().0;
        let goal = count() + more;
        within(PATIENCE, "the transfer to go on", || (count() >= goal).then_some(()));
    }

    /// Waits until it is cut; when the last number came, and how the reader learned of the end.
    fn end(self) -> (Instant, ErrorKind) {
        let how = self.reader.join().unwrap();
        (self.state.lock().unwrap().1, how)
    }
}

/// Until the connection breaks.
fn send(mut stream: TcpStream) {
    for number in 0..u32::MAX {
        if stream.write_all(&number.to_be_bytes()).is_err() {
            return;
        }
        std::thread::park_timeout(PACE);
    }
}

/// Until the connection breaks, and how it does. A reader to whom nothing is said asks once in a while: one that has
/// nothing to acknowledge is not told that its connection has ended.
fn receive(from: SocketAddr, state: &Mutex<(u32, Instant)>) -> ErrorKind {
    let mut stream = TcpStream::connect_timeout(&from, PATIENCE).unwrap();
    stream.set_read_timeout(Some(STILL)).unwrap();
    let (mut bytes, mut expected) = (Vec::<u8>::new(), 0_u32);
    loop {
        let mut more = [0; 1024];
        match stream.read(&mut more) {
            Ok(0) => return ErrorKind::UnexpectedEof,
            Ok(count) => bytes.extend(&more[..count]),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return error.kind(),
            Err(_) if state.lock().unwrap().1.elapsed() > PATIENCE => return ErrorKind::TimedOut,
            Err(_) => {
                let _ = stream.write_all(b"?");
            }
        }
        let whole = bytes.len() - bytes.len() % 4;
        for number in bytes.drain(..whole).collect::<Vec<_>>().chunks(4) {
            assert_eq!(number, expected.to_be_bytes());
            expected += 1;
            *state.lock().unwrap() = (expected, now());
        }
    }
}
