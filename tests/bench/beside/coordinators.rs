//! Our coordinator beside Headscale: nodes that join, and a change that all of them are told.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;
use warren_core::control::{AuthKey, ServerUrl};

use crate::foreign::{configuration, find};
use crate::free_port;
use crate::lab::eventually;
use crate::load::{Nodes, now};
use crate::own::OwnCoordinator;
use crate::programs::Process;
use crate::table::{median, versus};
use crate::usage::Usage;

/// Sizes of a network.
const NODES: [usize; 3] = [100, 300, 1_000];
/// Changes that are told.
const ROUNDS: u16 = 5;

/// One server with a network of one size, as far as it came within its time.
struct Figures {
    join: Result<Join, String>,
    change: Result<Change, String>,
}

struct Join {
    /// Until the last node was in, in seconds.
    last_in: f64,
    /// Attempts to join that failed on the way.
    failures: f64,
    /// Until all nodes were in and knew each other, in seconds.
    all: f64,
    /// Processor time of the server for that, in seconds.
    busy: f64,
    /// Memory of the server after it, in MiB.
    memory: f64,
}

struct Change {
    /// From a node's new endpoint until all others knew, in milliseconds.
    all: f64,
    /// Processor time of the server for one such change, in milliseconds.
    busy: f64,
}

/// What a row says, its unit, and which figure it is.
type Row<T> = (&'static str, &'static str, fn(&T) -> f64);

const OF_JOIN: [Row<Join>; 5] = [
    ("join", "s", |join| join.last_in),
    ("attempts that failed", "", |join| join.failures),
    ("join and all know each other", "s", |join| join.all),
    ("processor time of that", "s", |join| join.busy),
    ("memory of the coordinator then", "MiB", |join| join.memory),
];
const OF_CHANGE: [Row<Change>; 2] = [
    ("a change reaches all others, median", "ms", |change| change.all),
    ("processor time of that", "ms", |change| change.busy),
];

/// Prints the rows of all sizes.
pub(crate) async fn compare() {
    let program = find("headscale").ok_or("no headscale in WARREN_INTEROP_BIN or on PATH");
    for count in NODES {
        let (ours, theirs) = match &program {
            Ok(program) => both(program, count).await,
            Err(missing) => (Figures::none(missing), Figures::none(missing)),
        };
        print(count, &OF_JOIN, &ours.join, &theirs.join);
        print(count, &OF_CHANGE, &ours.change, &theirs.change);
    }
}

fn print<T>(count: usize, rows: &[Row<T>], ours: &Result<T, String>, theirs: &Result<T, String>) {
    for (what, unit, figure) in rows {
        let [ours, theirs] = [ours, theirs].map(|of| of.as_ref().map(figure).map_err(String::as_str));
        versus(&format!("{count} nodes: {what}"), unit, ours, theirs);
    }
}

impl Figures {
    fn none(reason: &str) -> Self {
        Self { join: Err(reason.to_owned()), change: Err(reason.to_owned()) }
    }
}

async fn both(program: &Path, count: usize) -> (Figures, Figures) {
    let own = OwnCoordinator::start();
    let ours = measure(&own.server, &own.key, own.usage(), count).await;
    drop(own);
    let headscale = Headscale::start(program);
    (ours, measure(&headscale.server, &headscale.key, headscale.usage(), count).await)
}

async fn measure(server: &ServerUrl, key: &AuthKey, usage: Usage, count: usize) -> Figures {
    let (begun, busy) = (now(), usage.busy());
    let mut nodes = Nodes::start(server, key, count);
    let joined = match nodes.join().await {
        Ok(joined) => joined,
        Err(reason) => return Figures::none(&reason),
    };
    let join = Join {
        last_in: joined.last.as_secs_f64(),
        failures: joined.failures.into(),
        all: begun.elapsed().as_secs_f64(),
        busy: (usage.busy() - busy).as_secs_f64(),
        memory: usage.memory_kib() as f64 / 1024.0,
    };
    Figures { join: Ok(join), change: changes(&mut nodes, usage).await }
}

async fn changes(nodes: &mut Nodes, usage: Usage) -> Result<Change, String> {
    let (busy, mut changes) = (usage.busy(), Vec::new());
    for round in 0..ROUNDS {
        let times = nodes.spread(usize::from(round), 2 + round).await?;
        changes.push(millis(*times.last().expect("there is another node")));
    }
    Ok(Change { all: median(changes), busy: millis(usage.busy() - busy) / f64::from(ROUNDS) })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A Headscale on loopback; gone with the value.
struct Headscale {
    process: Process,
    server: ServerUrl,
    key: AuthKey,
    _dir: TempDir,
}

impl Headscale {
    fn start(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, config) = (free_port(), dir.path().join("config.yaml"));
        let text = configuration("127.0.0.1", &dir.path().display().to_string())
            .replace("0.0.0.0:8080", &format!("127.0.0.1:{port}"))
            .replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"))
            .replace("127.0.0.1:50443", &format!("127.0.0.1:{}", free_port()))
            .replace("0.0.0.0:3478", &format!("127.0.0.1:{}", free_port()));
        fs::write(&config, text).unwrap();
        let ask = |line: &str| -> Output {
            Command::new(program).arg("--config").arg(&config).args(line.split(' ')).output().unwrap()
        };
        let mut serve = Command::new(program);
        serve.arg("--config").arg(&config).arg("serve");
        let process = Process::start(serve, &dir.path().join("log"));
        eventually("headscale to answer", || ask("users create load").status.success().then_some(()));
        let key = ask("preauthkeys create --user 1 --reusable --ephemeral");
        assert!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
        let key = AuthKey::new(String::from_utf8_lossy(&key.stdout).trim());
        let server = format!("http://127.0.0.1:{port}").parse().expect("an address makes a URL");
        Self { process, server, key, _dir: dir }
    }

    fn usage(&self) -> Usage {
        Usage(self.process.id())
    }
}
