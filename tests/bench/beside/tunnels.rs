//! The agent's tunnel beside tailscaled's and one made by hand, all in one boot: on a machine that emulates, only the
//! ratio of two figures of one boot means something.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::foreign::find;
use crate::lab::{Host, Lab, eventually, try_within};
use crate::programs::{Agent, Coordinator, Joined, Process};
use crate::table::{median, versus};
use crate::throughput::megabits;
use crate::train::Train;

/// Rounds of the throughput. The three of a round are compared with each other.
const ROUNDS: usize = 5;
/// How long a killed program stays away, as its service manager may need.
const AWAY: Duration = Duration::from_secs(2);
/// How long packets may take to pass again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Answers before a kill and after the return.
const ANSWERS: usize = 10;
const BY_HAND: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

const THROUGHPUT: &str = "tunnel: throughput, beside one made by hand";
const ROWS: [(&str, &str); 3] = [
    ("tunnel: throughput, beside tailscaled", "Mbit/s"),
    ("tunnel: memory of the agent, beside tailscaled", "MiB"),
    ("tunnel: pings lost by `kill -9` for two seconds", ""),
];

/// Prints the rows that need no other program than those of every run, and those of tailscaled where it is there.
pub(crate) fn compare() {
    let Some(Joined { mut alice, bob, coordinator, mut lab }) = Joined::new() else { return };
    lab.tunnel_by_hand((&alice.host, BY_HAND[0]), (&bob.host, BY_HAND[1]));
    let theirs = Programs::find().map(|programs| {
        let [carol, dave] = ["carol", "dave"].map(|name| Official::start(&programs, &mut lab, &coordinator, name));
        carol.wait_until_direct(&dave.ip);
        (carol, dave)
    });
    let bobs = bob.ip(4);
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        rates[0].push(megabits(&alice.host, &bob.host, &bobs));
        rates[1].push(megabits(&alice.host, &bob.host, BY_HAND[1]));
        if let Ok((carol, dave)) = &theirs {
            rates[2].push(megabits(&carol.host, &dave.host, &dave.ip));
        }
    }
    let ours = median(rates[0].clone());
    versus(THROUGHPUT, "Mbit/s", Ok(ours), Ok(median(rates[1].clone())));
    let (mut carol, dave) = match theirs {
        Ok(both) => both,
        Err(missing) => return print(&Err(missing)),
    };
    let memory = [alice.memory("VmRSS"), carol.memory()].map(|kib| kib as f64 / 1024.0);
    let lost = [lost_by_ours(&mut alice, &bobs), carol.lost_by_kill(&dave.ip)];
    print(&Ok([[ours, median(rates[2].clone())], memory, lost]));
}

/// Prints that the rows of a run without tailscaled are missing, and why.
pub(crate) fn say_what_is_missing() {
    if let Err(missing) = Programs::find() {
        let elsewhere = Err("see `make bench NAME=kernel`");
        versus(THROUGHPUT, "Mbit/s", elsewhere, elsewhere);
        print(&Err(missing));
    }
}

fn print(figures: &Result<[[f64; 2]; ROWS.len()], &str>) {
    for (place, (what, unit)) in ROWS.into_iter().enumerate() {
        let [ours, theirs] = match figures {
            Ok(figures) => figures[place].map(Ok),
            Err(missing) => [Err(*missing); 2],
        };
        versus(what, unit, ours, theirs);
    }
}

fn lost_by_ours(alice: &mut Agent, to: &str) -> f64 {
    let train = Train::start(&alice.host, to, PATIENCE);
    train.run_on(ANSWERS, PATIENCE);
    alice.kill();
    while_away();
    alice.start_again();
    train.run_on(ANSWERS, PATIENCE);
    train.finish().lost.len() as f64
}

/// Packets are sent meanwhile, answered or not.
fn while_away() {
    try_within(AWAY, || None::<()>);
}

/// The official agent and command line.
struct Programs {
    agent: PathBuf,
    client: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, &'static str> {
        let agent = find("tailscaled").ok_or("no tailscaled in WARREN_INTEROP_BIN or on PATH")?;
        let client = find("tailscale").ok_or("no tailscale in WARREN_INTEROP_BIN or on PATH")?;
        Ok(Self { agent, client })
    }
}

/// An official agent with a TUN device of its own, which has joined our coordinator.
struct Official {
    process: Option<Process>,
    host: Host,
    ip: String,
    agent: PathBuf,
    client: PathBuf,
    dir: PathBuf,
}

impl Official {
    fn start(programs: &Programs, lab: &mut Lab, coordinator: &Coordinator, name: &str) -> Self {
        let (host, dir) = (lab.host(name), lab.dir.path().join(name));
        fs::create_dir(&dir).unwrap();
        let Programs { agent, client } = programs;
        let (agent, client) = (agent.clone(), client.clone());
        let mut official = Self { process: None, host, ip: String::new(), agent, client, dir };
        official.start_again();
        let (url, key) = (&coordinator.url, coordinator.key(""));
        let up = format!("up --login-server {url} --auth-key {key} --hostname {name} --accept-dns=false --timeout 20s");
        eventually("the official agent to join", || official.ask(&up));
        official.ip = official.ask("ip -4").unwrap().trim().to_owned();
        official
    }

    fn start_again(&mut self) {
        let mut command = self.host.command([&self.agent]);
        command.arg("--statedir").arg(&self.dir).arg("--socket").arg(self.socket()).arg("--no-logs-no-support");
        command.env("TS_DEBUG_FIREWALL_MODE", "nftables").env("HOME", &self.dir);
        self.process = Some(Process::start(command, &self.dir.join("log")));
    }

    fn wait_until_direct(&self, to: &str) {
        let ping = format!("ping --c 3 --timeout 5s --until-direct=true {to}");
        eventually("a direct path between official agents", || self.ask(&ping));
        self.host.ping(to);
    }

    fn lost_by_kill(&mut self, to: &str) -> f64 {
        let train = Train::start(&self.host, to, PATIENCE);
        train.run_on(ANSWERS, PATIENCE);
        self.process = None;
        while_away();
        self.start_again();
        train.run_on(ANSWERS, PATIENCE);
        train.finish().lost.len() as f64
    }

    /// In KiB.
    fn memory(&self) -> u64 {
        self.process.as_ref().expect("it runs").memory("VmRSS")
    }

    fn ask(&self, line: &str) -> Option<String> {
        let socket: &Path = &self.socket();
        let output =
            self.host.command([&self.client]).arg("--socket").arg(socket).args(line.split(' ')).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }
}
