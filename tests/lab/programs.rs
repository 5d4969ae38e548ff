//! The programs under test, started and asked as a user would.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use warren_core::wire::local::{BackendState, Status};

use crate::lab::{Host, Lab, PATIENCE, eventually, try_within};
use crate::program::program_path;

/// The ordinary user that agents run as; its name in the guest is `warren`.
const AGENT_USER: u32 = 990;

/// How `warren` ends when nothing answers at the socket.
const NO_AGENT: i32 = 3;

/// A coordinator and two agents that have joined it, each on a host of its own.
pub(crate) struct Joined {
    pub(crate) alice: Agent,
    pub(crate) bob: Agent,
    pub(crate) coordinator: Coordinator,
    pub(crate) lab: Lab,
}

impl Joined {
    /// Everything up, and a first packet through the tunnel both ways.
    pub(crate) fn new() -> Option<Self> {
        let mut lab = Lab::new()?;
        let coordinator = Coordinator::start(&mut lab);
        let alice = Agent::start(&mut lab, "alice");
        let bob = Agent::start(&mut lab, "bob");
        alice.join(&coordinator, &coordinator.key(""));
        bob.join(&coordinator, &coordinator.key(""));
        alice.host.ping(&bob.ip(4));
        bob.host.ping(&alice.ip(6));
        Some(Self { alice, bob, coordinator, lab })
    }
}

/// `warren-coordinator serve` on a host of its own, with the user `lab`.
pub(crate) struct Coordinator {
    process: Option<Process>,
    pub(crate) host: Host,
    pub(crate) url: String,
    /// Beside those that every one gets.
    arguments: Vec<String>,
    dir: PathBuf,
}

impl Coordinator {
    /// Starts one that has no state, and waits until it answers.
    pub(crate) fn start(lab: &mut Lab) -> Self {
        let host = lab.host("coordinator");
        let arguments = vec!["--server-url".to_owned(), format!("http://{}:8080", host.v4)];
        Self::start_on(host, lab.dir.path().join("coordinator"), arguments)
    }

    /// The same on a host that is there, with this folder for its files.
    pub(crate) fn start_on(host: Host, dir: PathBuf, arguments: Vec<String>) -> Self {
        fs::create_dir(&dir).unwrap();
        let url = format!("http://{}:8080", host.v4);
        let mut coordinator = Self { process: None, host, url, arguments, dir };
        coordinator.start_again();
        coordinator.run("user create lab");
        coordinator
    }

    /// Starts it on the state that it left.
    pub(crate) fn start_again(&mut self) {
        let program = program_path("warren-coordinator");
        let mut command = self.host.command([program, "serve", "--listen", "[::]:8080"]);
        command.args(&self.arguments).args(["--offline-grace", "3", "--ephemeral-grace", "3"]);
        command.arg("--state-dir").arg(&self.dir).arg("--socket").arg(self.socket());
        self.process = Some(Process::start(command, &self.dir.join("log")));
        eventually("the coordinator to answer", || self.try_run("user list").status.success().then_some(()));
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Runs an administrator's command; what it printed.
    pub(crate) fn run(&self, line: &str) -> String {
        text(line, self.try_run(line))
    }

    /// A new key for the user `lab`, made with these flags.
    pub(crate) fn key(&self, flags: &str) -> String {
        self.run(format!("key create --user lab {flags}").trim_end()).trim().to_owned()
    }

    /// The last lines of its log.
    pub(crate) fn end_of_log(&self, lines: usize) -> String {
        end_of(&self.dir.join("log"), lines)
    }

    fn try_run(&self, line: &str) -> Output {
        let program = program_path("warren-coordinator");
        Command::new(program).arg("--socket").arg(self.socket()).args(line.split(' ')).output().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }
}

/// What agents log: each step in the kernel and each path chosen too, since that is how a lost packet is explained.
const LOG: &str = "info,warren_core::node=debug";

/// `warrend` on a host of its own, as an ordinary user with the two capabilities and nothing else.
pub(crate) struct Agent {
    process: Option<Process>,
    pub(crate) host: Host,
    pub(crate) name: String,
    /// What its user owns: the state directory, the socket, the log.
    pub(crate) dir: PathBuf,
    /// Who tells the host's own resolver, where anybody does.
    pub(crate) dns_socket: Option<PathBuf>,
}

impl Agent {
    /// Starts one that has no state, and waits until its socket answers.
    pub(crate) fn start(lab: &mut Lab, name: &str) -> Self {
        let mut agent = Self::not_started(lab, name);
        agent.start_again();
        agent
    }

    /// A host and a state directory for an agent.
    pub(crate) fn not_started(lab: &mut Lab, name: &str) -> Self {
        let host = lab.host(name);
        Self::not_started_on(host, name, lab.dir.path().join(name))
    }

    /// The same on a host that is there, with this folder for its files.
    pub(crate) fn not_started_on(host: Host, name: &str, dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("state")).unwrap();
        for directory in [dir.clone(), dir.join("state")] {
            chown(&directory, Some(AGENT_USER), Some(AGENT_USER)).unwrap();
        }
        Self { process: None, host, name: name.to_owned(), dir, dns_socket: None }
    }

    /// Starts it on the state that it left.
    pub(crate) fn start_again(&mut self) {
        let mut command = self.agent_command();
        command.arg("--state-dir").arg(self.state_dir()).arg("--socket").arg(self.socket());
        command.args(["--log", LOG]).arg("--dns-socket").arg(self.dns_socket.as_deref().unwrap_or(Path::new("")));
        self.process = Some(Process::start(command, &self.dir.join("log")));
        // A status that is not "running" is a failure too; the agent is there when the command says anything but that.
        eventually("the agent to answer", || (self.try_warren("status").status.code() != Some(NO_AGENT)).then_some(()));
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Ends it as its service manager does; it writes what is pending.
    pub(crate) fn stop(&mut self) {
        let process = self.process.take().expect("a running agent");
        process.stop();
    }

    /// A line of the kernel's account of it, such as `VmRSS`, in KiB.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        self.process.as_ref().expect("a running agent").memory(line)
    }

    /// Joins with a key, by the command a user would type, and waits until packets may flow.
    pub(crate) fn join(&self, coordinator: &Coordinator, key: &str) {
        self.join_at(&coordinator.url, key);
    }

    /// The same by an address of the coordinator that this host can reach.
    pub(crate) fn join_at(&self, url: &str, key: &str) {
        self.warren(&format!("up --coordinator {url} --auth-key {key} --hostname {}", self.name));
        self.wait_for(BackendState::Running);
    }

    /// The last lines of its log.
    pub(crate) fn end_of_log(&self, lines: usize) -> String {
        end_of(&self.dir.join("log"), lines)
    }

    /// Waits until the agent says that it has come this far.
    pub(crate) fn wait_for(&self, state: BackendState) -> Status {
        eventually(&format!("{} to be {state}", self.name), || {
            Some(self.status()).filter(|status| status.backend_state == state)
        })
    }

    /// Waits for a health entry that holds all of these words.
    pub(crate) fn wait_for_health(&self, words: &[&str]) {
        let found = try_within(PATIENCE, || {
            self.status().health.iter().find(|entry| words.iter().all(|word| entry.contains(word))).map(|_| ())
        });
        assert!(found.is_some(), "no health entry of {} has {words:?}: {:?}", self.name, self.status().health);
    }

    /// What `warren status` says.
    pub(crate) fn status(&self) -> Status {
        serde_json::from_slice(&self.try_warren("status --json").stdout).unwrap()
    }

    /// Its own overlay address of this family, 4 or 6.
    pub(crate) fn ip(&self, family: u8) -> String {
        self.warren(&format!("ip -{family}")).trim().to_owned()
    }

    /// Runs the command line client as root; what it printed.
    pub(crate) fn warren(&self, line: &str) -> String {
        text(line, self.try_warren(line))
    }

    /// The same, where it may fail.
    pub(crate) fn try_warren(&self, line: &str) -> Output {
        let program = program_path("warren");
        self.host.command([program]).arg("--socket").arg(self.socket()).args(line.split(' ')).output().unwrap()
    }

    /// Runs `warrend --cleanup`, which needs no running agent.
    pub(crate) fn cleanup(&self) {
        text(
            "warrend --cleanup",
            self.agent_command().arg("--cleanup").arg("--state-dir").arg(self.state_dir()).output().unwrap(),
        );
    }

    /// The socket of the local API.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("warrend.sock")
    }

    /// Where it keeps its state.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn agent_command(&self) -> Command {
        let user = AGENT_USER.to_string();
        self.host.command([
            "setpriv",
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups",
            "--no-new-privs",
            "--inh-caps=-all,+net_admin,+net_raw",
            "--ambient-caps=-all,+net_admin,+net_raw",
            "--bounding-set=-all,+net_admin,+net_raw",
            program_path("warrend"),
        ])
    }
}

/// A running program; it is killed with the value, and its log shown where a test failed.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it with its output appended to a file.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        command.stdin(Stdio::null());
        Self::start_with_input(command, log)
    }

    /// The same with the command's own standard input.
    pub(crate) fn start_with_input(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A line of the kernel's account of it, such as `VmRSS`, in KiB.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let account = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let figure = account.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
        figure.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Asks it to end, and waits until it has.
    fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success(), "it did not end in order");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let ended = self.child.wait();
        let crashed = ended.is_ok_and(|status| status.signal() != Some(9) && !status.success());
        if std::thread::panicking() || crashed {
            println!("---- end of {}\n{}", self.log.display(), end_of(&self.log, 40));
        }
    }
}

fn end_of(log: &Path, count: usize) -> String {
    let log = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn text(line: &str, output: Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}
