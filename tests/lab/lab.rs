//! Hosts, the switch between them, and the programs that run on them; all of it ends with the values.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

/// How long a condition may take to hold, under emulation on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Things done at once, which spend their time waiting, mostly.
const AT_ONCE: usize = 4;

/// A few hosts on one switch.
pub(crate) struct Lab {
    name: String,
    switch: Namespace,
    hosts: u8,
    /// Where the programs of this lab keep their files.
    pub(crate) dir: TempDir,
}

/// A machine of its own, as far as the network goes.
pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    /// Its IPv4 address on its network; empty where it has none.
    pub(crate) v4: String,
    /// Its IPv6 address on its network; empty where it has none.
    pub(crate) v6: String,
}

impl Lab {
    /// An empty lab, or `None` with a word why where this machine cannot hold one.
    pub(crate) fn new() -> Option<Self> {
        Self::where_possible(can_make_namespaces().and_then(|()| can_make_tunnels()))
    }

    /// The same for tests that have no tunnel: network namespaces suffice.
    pub(crate) fn without_tunnels() -> Option<Self> {
        Self::where_possible(can_make_namespaces())
    }

    fn where_possible(possible: Result<(), String>) -> Option<Self> {
        if let Err(reason) = possible {
            assert!(std::env::var_os("WARREN_REQUIRE_KERNEL").is_none(), "this run must hold a lab: {reason}");
            say(&format!("skipped: {reason}"));
            return None;
        }
        static LABS: AtomicU32 = AtomicU32::new(0);
        let name = format!("lab{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let switch = Namespace::new(&format!("{name}-switch"));
        switch.run("ip link add switch type bridge");
        switch.run("ip link set switch up");
        Some(Self { name, switch, hosts: 0, dir: tempfile::tempdir().unwrap() })
    }

    /// Plugs a new host into the switch.
    pub(crate) fn host(&mut self, name: &str) -> Host {
        self.hosts += 1;
        let number = self.hosts;
        let host =
            Host { namespace: self.namespace(name), v4: format!("10.77.0.{number}"), v6: format!("fd77::{number}") };
        self.switch.run(&format!("ip link add port{number} type veth peer name eth0 netns {}", host.namespace.name));
        self.switch.run(&format!("ip link set port{number} master switch up"));
        // No link-local address: when it appears is the kernel's affair, and snapshots would differ.
        host.run("ip link set eth0 addrgenmode none");
        host.run("ip link set eth0 up");
        host.run(&format!("ip address add {}/24 dev eth0", host.v4));
        host.run(&format!("ip address add {}/64 dev eth0 nodad", host.v6));
        host
    }

    /// Pulls the cable of a host out of the switch.
    #[allow(dead_code, reason = "the interop tests leave theirs in")]
    pub(crate) fn unplug(&self, host: &Host) {
        let number = host.v4.rsplit('.').next().unwrap();
        self.switch.run(&format!("ip link set port{number} down"));
    }

    /// A network namespace with nothing in it but `lo`.
    pub(crate) fn namespace(&self, name: &str) -> Namespace {
        Namespace::new(&format!("{}-{name}", self.name))
    }

    /// A tunnel between two hosts, made with `ip` and `wg`; each end is a host and its address inside.
    pub(crate) fn tunnel_by_hand(&self, left: (&Host, &str), right: (&Host, &str)) {
        let ends = [(left, right), (right, left)];
        let keys = ends.map(|((host, inner), _)| self.tunnel_end(host, inner));
        for (((host, _), (other, inner)), key) in ends.into_iter().zip(keys.iter().rev()) {
            host.run(&format!("wg set byhand peer {key} allowed-ips {inner}/32 endpoint {}:51820", other.v4));
        }
    }

    /// Its public key.
    fn tunnel_end(&self, host: &Host, inner: &str) -> String {
        let file = self.dir.path().join(inner);
        fs::write(&file, host.run("wg genkey")).unwrap();
        host.run("ip link add byhand mtu 1280 type wireguard");
        host.run(&format!("wg set byhand listen-port 51820 private-key {}", file.display()));
        host.run(&format!("ip address add {inner}/24 dev byhand"));
        host.run("ip link set byhand up");
        host.run("wg show byhand public-key").trim().to_owned()
    }
}

impl Host {
    /// Runs a command line, words parted by spaces, on this host; what it printed. It must succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        self.namespace.run(line)
    }

    /// Runs a command line that may fail.
    pub(crate) fn try_run(&self, line: &str) -> Output {
        self.namespace.command(line.split(' ')).output().unwrap()
    }

    /// A program to be started on this host.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        self.namespace.command(words)
    }

    /// Sends one ping and waits until it is answered, trying again while it is not.
    pub(crate) fn ping(&self, address: &str) {
        eventually(&format!("ping to {address}"), || {
            self.try_run(&format!("ping -n -c 1 -W 2 {address}")).status.success().then_some(())
        });
    }
}

/// Does the same with all of these, a few at a time; the results are in the order of the items.
pub(crate) fn side_by_side<I: Send, T: Send>(items: Vec<I>, act: impl Fn(I) -> T + Sync) -> Vec<T> {
    let waiting = Mutex::new(items.into_iter().enumerate());
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((place, item)) = { waiting.lock().unwrap().next() } {
                    let result = act(item);
                    done.lock().unwrap().insert(place, result);
                }
            });
        }
    });
    done.into_inner().unwrap().into_values().collect()
}

/// Prints a line that the test runner shows also where the test passes.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Tries again until there is an answer; panics with `what` when there is none within [`PATIENCE`].
pub(crate) fn eventually<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, attempt)
}

/// Tries again until there is an answer; panics with `what` when there is none within `limit`.
pub(crate) fn within<T>(limit: Duration, what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    try_within(limit, attempt).unwrap_or_else(|| panic!("waited {limit:?} for {what}"))
}

/// Tries again until there is an answer, or `limit` has passed.
#[allow(clippy::disallowed_methods, reason = "what is awaited happens in other processes, in real time")]
pub(crate) fn try_within<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        let answer = attempt();
        if answer.is_some() || started.elapsed() > limit {
            return answer;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A network namespace; it ends with the value.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    fn new(name: &str) -> Self {
        must(Command::new("ip").args(["netns", "add", name]));
        let namespace = Self { name: name.to_owned() };
        namespace.run("ip link set lo up");
        namespace
    }

    fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words);
        command
    }

    /// Runs a command line, words parted by spaces, in here; what it printed. It must succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        must(&mut self.command(line.split(' ')))
    }

    /// Loads rules into nftables in here.
    pub(crate) fn nft(&self, rules: &str) {
        must(&mut self.command(["nft", rules]));
    }

    /// Does something on a thread that lives in here: sockets that it opens stay here.
    pub(crate) fn inside<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn_inside(act).join().unwrap()
    }

    /// The same, going on beside the caller.
    pub(crate) fn spawn_inside<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = fs::File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

fn can_make_namespaces() -> Result<(), String> {
    if !Path::new("/run/netns").exists() && std::fs::create_dir("/run/netns").is_err() {
        return Err("network namespaces need root".to_owned());
    }
    let probe = Command::new("unshare").args(["--net", "true"]).output();
    probe.ok().filter(|output| output.status.success()).map(|_| ()).ok_or("no network namespaces here".to_owned())
}

fn can_make_tunnels() -> Result<(), String> {
    let probe = Command::new("unshare").args(["--net", "ip", "link", "add", "probe", "type", "wireguard"]).output();
    match probe {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("no WireGuard here: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
