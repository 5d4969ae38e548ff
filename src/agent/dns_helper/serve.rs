//! The helper's socket, and its loop.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::AcceptConn;
use nix::unistd::User;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Host;
use super::bus::Bus;
use crate::clock;
use warren_core::dns::host::{HostNames, HostReport, Lease, MESSAGE_LEN};
use warren_shell::tell_manager;

/// The user that the agent is.
const AGENT: &str = "warren";
/// Where what the host was is kept.
const STATE: &str = "/var/lib/warren-dns";
/// Connections at one time: an agent and the next one.
const CONNECTIONS: u64 = 4;
/// How often is looked whether somebody else wrote the file.
const GLANCE: Duration = Duration::from_millis(500);
/// How often everything is looked at: another program on the bus, another link of our name.
const LOOK: Duration = Duration::from_secs(5);
/// How long it waits for the next one while nothing is held. It is started again by whoever connects.
const IDLE: Duration = Duration::from_secs(10);

/// Runs on the socket that the service manager gives as standard input, until nobody needs it; where it gives none, on
/// one of its own at this path, for good.
pub fn serve_dns_helper(path: &Path) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start: {error}"))?;
    runtime.block_on(async {
        let agent = User::from_name(AGENT).ok().flatten();
        let (listener, is_given) = match given()? {
            Some(listener) => (listener, true),
            None => (bind(path, agent.as_ref()).map_err(|error| format!("{}: {error}", path.display()))?, false),
        };
        let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        let listener = listener.map_err(|error| format!("listen: {error}"))?;
        let agent = agent.map(|user| user.uid.as_raw());
        let state = state();
        // A service manager has made it.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&state);
        made.map_err(|error| format!("{}: {error}", state.display()))?;
        let host = Host::new("/".into(), state, Bus::of_system());
        let users = [0].into_iter().chain(agent).collect();
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| format!("SIGTERM: {error}"))?;
        let mut helper = Helper::new(host, users, Passing);
        helper.stays = !is_given;
        tokio::select! {
            () = helper.run(listener) => {}
            _ = terminate.recv() => tracing::info!("ending"),
        }
        helper.end().await;
        Ok(())
    })
}

/// The socket that is standard input, where it is one that listens.
fn given() -> Result<Option<std::os::unix::net::UnixListener>, String> {
    let input = std::io::stdin();
    if !getsockopt(&input, AcceptConn).unwrap_or(false) {
        return Ok(None);
    }
    let owned = input.as_fd().try_clone_to_owned().map_err(|error| format!("standard input: {error}"))?;
    Ok(Some(owned.into()))
}

/// A socket for root and the agent. What an earlier one left is in the way.
fn bind(path: &Path, agent: Option<&User>) -> std::io::Result<std::os::unix::net::UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    // Whoever connects is asked who they are besides.
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    if let Some(agent) = agent {
        chown(path, None, Some(agent.gid.as_raw()))?;
    }
    Ok(listener)
}

fn state() -> PathBuf {
    std::env::var_os("STATE_DIRECTORY").map_or_else(|| Path::new(STATE).to_owned(), PathBuf::from)
}

/// The time that a lease is measured by.
pub(super) trait Time: Send + Sync {
    fn now(&self) -> Instant;
    /// Comes back then.
    fn sleep_until(&self, at: Instant) -> impl Future<Output = ()> + Send;
}

/// As it passes.
struct Passing;

impl Time for Passing {
    fn now(&self) -> Instant {
        clock::now().tick
    }

    async fn sleep_until(&self, at: Instant) {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// See the module above.
pub(super) struct Helper<T> {
    host: Host,
    time: T,
    lease: Lease,
    /// Who may ask.
    users: Vec<u32>,
    clients: BTreeMap<u64, OwnedWriteHalf>,
    next: u64,
    told: HostReport,
    /// Nobody starts it again.
    stays: bool,
}

enum News {
    Names(Box<HostNames>),
    Gone,
}

impl<T: Time> Helper<T> {
    pub(super) fn new(host: Host, users: Vec<u32>, time: T) -> Self {
        let now = time.now();
        let lease = if host.is_of_another_boot() { Lease::over(now) } else { Lease::new(now) };
        Self { host, time, lease, users, clients: BTreeMap::new(), next: 0, told: HostReport::default(), stays: false }
    }

    /// Runs until nothing is held and nobody comes.
    pub(super) async fn run(&mut self, listener: UnixListener) {
        let (news_in, mut news) = mpsc::channel(CONNECTIONS as usize);
        let (mut glance, mut look) = (tokio::time::interval(GLANCE), tokio::time::interval(LOOK));
        self.lease.handle_timeout(self.time.now());
        self.settle(None).await;
        tell_manager(&[sd_notify::NotifyState::Ready]);
        loop {
            let ends = self.lease.poll_timeout();
            let is_held = self.lease.names().is_some_and(|names| !names.is_nothing());
            let is_idle = self.lease.is_over() && self.clients.is_empty() && !self.stays;
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.admit(stream, &news_in),
                    Err(error) => {
                        tracing::warn!(%error, "accept");
                        tokio::time::sleep(GLANCE).await;
                    }
                },
                Some((id, said)) = news.recv() => self.take(id, said).await,
                () = until(&self.time, ends), if ends.is_some() => {
                    self.lease.handle_timeout(self.time.now());
                    self.settle(None).await;
                }
                _ = glance.tick(), if is_held => {
                    if self.host.is_written_over() {
                        self.settle(None).await;
                    }
                }
                _ = look.tick(), if is_held => self.settle(None).await,
                () = tokio::time::sleep(IDLE), if is_idle => return,
            }
        }
    }

    /// Puts the host back.
    pub(super) async fn end(&mut self) {
        let report = self.host.settle(&HostNames::default(), self.time.now()).await;
        if !report.trouble.is_empty() {
            tracing::error!("{}", report.trouble);
        }
    }

    /// A group's members may change the agent, and are not let in here.
    fn admit(&mut self, stream: UnixStream, news: &mpsc::Sender<(u64, News)>) {
        let user = stream.peer_cred().map(|peer| peer.uid());
        if !user.as_ref().is_ok_and(|user| self.users.contains(user)) {
            tracing::warn!(?user, "refused: neither root nor the agent");
            return;
        }
        if self.clients.len() as u64 >= CONNECTIONS {
            tracing::warn!("refused: too many connections");
            return;
        }
        self.next += 1;
        let (id, news) = (self.next, news.clone());
        let (reader, writer) = stream.into_split();
        self.clients.insert(id, writer);
        tokio::spawn(async move {
            read(reader, id, &news).await;
            let _ = news.send((id, News::Gone)).await;
        });
    }

    async fn take(&mut self, id: u64, said: News) {
        match said {
            News::Names(names) => {
                self.lease.handle_names(id, *names);
                self.settle(Some(id)).await;
            }
            News::Gone => {
                self.clients.remove(&id);
                self.lease.handle_gone(id, self.time.now());
            }
        }
    }

    /// Makes it so, and says how to who asked; to all where it is another than before.
    async fn settle(&mut self, asked: Option<u64>) {
        let Some(names) = self.lease.names().cloned() else { return };
        let report = self.host.settle(&names, self.time.now()).await;
        let is_news = report != self.told;
        if is_news {
            tracing::info!(told_by = report.told_by, trouble = report.trouble, "how this host resolves names");
        }
        let Ok(mut line) = serde_json::to_vec(&report) else { return };
        line.push(b'\n');
        self.told = report;
        for (id, writer) in &mut self.clients {
            if is_news || asked == Some(*id) {
                // One that does not read hears the next.
                let _ = tokio::time::timeout(GLANCE, writer.write_all(&line)).await;
            }
        }
    }
}

/// Passes on what somebody says, until it makes no sense.
async fn read(reader: OwnedReadHalf, id: u64, news: &mpsc::Sender<(u64, News)>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(MESSAGE_LEN as u64).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(length) if length > 0) || line.last() != Some(&b'\n') {
            return;
        }
        match serde_json::from_slice(&line) {
            Ok(names) => {
                if news.send((id, News::Names(Box::new(names)))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a request that makes no sense");
                return;
            }
        }
    }
}

async fn until(time: &impl Time, at: Option<Instant>) {
    if let Some(at) = at {
        time.sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use warren_core::dns::host::PATIENCE;

    use super::*;

    const OTHERS: &str = "# mine\nnameserver 192.0.2.1\noptions ndots:2\n";

    /// Passes as the test says.
    #[derive(Clone)]
    struct TestTime {
        now: watch::Sender<Instant>,
        /// Until when somebody waits.
        waits: watch::Sender<Option<Instant>>,
    }

    impl TestTime {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary origin; only differences matter")]
        fn new() -> Self {
            Self { now: watch::Sender::new(Instant::now()), waits: watch::Sender::new(None) }
        }

        fn pass(&self, time: Duration) {
            self.now.send_modify(|now| *now += time);
        }

        /// Returns once somebody waits for this long.
        async fn wait_for(&self, time: Duration) {
            let at = self.now() + time;
            let mut waits = self.waits.subscribe();
            tokio::time::timeout(Duration::from_secs(60), waits.wait_for(|until| *until == Some(at)))
                .await
                .unwrap()
                .unwrap();
        }
    }

    impl Time for TestTime {
        fn now(&self) -> Instant {
            *self.now.borrow()
        }

        async fn sleep_until(&self, at: Instant) {
            self.waits.send_replace(Some(at));
            self.now.subscribe().wait_for(|now| *now >= at).await.unwrap();
        }
    }

    struct World {
        root: tempfile::TempDir,
        time: TestTime,
        helper: tokio::task::JoinHandle<()>,
    }

    impl World {
        /// A helper whose host has no bus.
        fn start(root: tempfile::TempDir, users: Vec<u32>) -> Self {
            let state = root.path().join("state");
            let host = Host::new(root.path().to_owned(), state, Bus::none());
            let time = TestTime::new();
            let mut helper = Helper::new(host, users, time.clone());
            let listener = UnixListener::bind(root.path().join("socket")).unwrap();
            let helper = tokio::spawn(async move { helper.run(listener).await });
            Self { root, time, helper }
        }

        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("etc")).unwrap();
            fs::create_dir_all(root.path().join("state")).unwrap();
            fs::write(root.path().join("etc/resolv.conf"), OTHERS).unwrap();
            Self::start(root, vec![nix::unistd::getuid().as_raw()])
        }

        fn file(&self) -> String {
            fs::read_to_string(self.root.path().join("etc/resolv.conf")).unwrap()
        }

        fn write(&self, text: &str) {
            let new = self.root.path().join("etc/new");
            fs::write(&new, text).unwrap();
            fs::rename(new, self.root.path().join("etc/resolv.conf")).unwrap();
        }

        async fn connect(&self) -> BufReader<UnixStream> {
            BufReader::new(UnixStream::connect(self.root.path().join("socket")).await.unwrap())
        }

        /// Whoever kills it kills it so.
        async fn kill(self) -> tempfile::TempDir {
            self.helper.abort();
            let _ = self.helper.await;
            fs::remove_file(self.root.path().join("socket")).unwrap();
            self.root
        }
    }

    fn names(search: &str) -> HostNames {
        let domain: Vec<_> = [search.parse().unwrap()].into();
        HostNames { routes: domain.clone(), search: domain, port: 5353, has_port_53: true, ..HostNames::default() }
    }

    async fn say(client: &mut BufReader<UnixStream>, names: &HostNames) -> HostReport {
        let mut line = serde_json::to_vec(names).unwrap();
        line.push(b'\n');
        client.write_all(&line).await.unwrap();
        hear(client).await
    }

    async fn hear(client: &mut BufReader<UnixStream>) -> HostReport {
        let mut line = String::new();
        client.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Waits until it is so.
    async fn until(what: impl Fn() -> bool) {
        let wait = async {
            let mut look = tokio::time::interval(Duration::from_millis(20));
            while !what() {
                look.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    }

    const MOMENT: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn a_host_is_told_while_somebody_is_there_and_is_as_it_was_five_seconds_after() {
        let world = World::new();
        let mut agent = world.connect().await;
        let report = say(&mut agent, &names("corp.example")).await;
        assert_eq!((report.told_by.as_str(), report.trouble.as_str()), ("/etc/resolv.conf", ""));
        assert_eq!(report.upstreams, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
        assert!(world.file().contains("nameserver 100.100.100.100\nsearch corp.example\noptions ndots:2\n"));
        // Killed, and started anew.
        drop(agent);
        let mut agent = world.connect().await;
        assert_eq!(say(&mut agent, &names("corp.example")).await.upstreams.len(), 1);
        assert!(world.file().contains("100.100.100.100"));
        // What it waits for from here on is no older deadline.
        world.time.pass(Duration::from_secs(1));
        drop(agent);
        world.time.wait_for(PATIENCE).await;
        world.time.pass(PATIENCE - MOMENT);
        assert!(world.file().contains("100.100.100.100"));
        world.time.pass(MOMENT);
        until(|| world.file() == OTHERS).await;
        until(|| world.helper.is_finished()).await;
    }

    #[tokio::test]
    async fn who_wants_nothing_any_more_has_the_host_back_at_once() {
        let world = World::new();
        let mut agent = world.connect().await;
        say(&mut agent, &names("corp.example")).await;
        assert_eq!(say(&mut agent, &HostNames::default()).await, HostReport::default());
        assert_eq!(world.file(), OTHERS);
        let left: Vec<_> =
            fs::read_dir(world.root.path().join("etc")).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["resolv.conf"]);
    }

    #[tokio::test]
    async fn a_helper_that_is_killed_leaves_to_the_next_one_what_the_host_was() {
        let world = World::new();
        let mut agent = world.connect().await;
        say(&mut agent, &names("corp.example")).await;
        let world = World::start(world.kill().await, vec![nix::unistd::getuid().as_raw()]);
        // The agent has the time to come back.
        world.time.wait_for(PATIENCE).await;
        world.time.pass(PATIENCE - MOMENT);
        assert!(world.file().contains("100.100.100.100"));
        world.time.pass(MOMENT);
        until(|| world.file() == OTHERS).await;
    }

    #[tokio::test]
    async fn after_a_power_failure_the_host_is_as_it_was_at_once() {
        let world = World::new();
        let boot = world.root.path().join("proc/sys/kernel/random");
        fs::create_dir_all(&boot).unwrap();
        fs::write(boot.join("boot_id"), "another\n").unwrap();
        let mut agent = world.connect().await;
        say(&mut agent, &names("corp.example")).await;
        let world = World::start(world.kill().await, vec![nix::unistd::getuid().as_raw()]);
        until(|| world.file() == OTHERS).await;
    }

    #[tokio::test]
    async fn what_others_write_is_what_the_host_goes_back_to_and_who_writes_on_has_its_way() {
        let world = World::new();
        let mut agent = world.connect().await;
        say(&mut agent, &names("corp.example")).await;
        world.write("nameserver 192.0.2.9\n");
        assert_eq!(hear(&mut agent).await.upstreams, ["192.0.2.9".parse::<std::net::IpAddr>().unwrap()]);
        assert!(world.file().contains("100.100.100.100"));
        let mut report = HostReport::default();
        for round in 0..20 {
            world.write(&format!("nameserver 192.0.2.{round}\n"));
            report = hear(&mut agent).await;
            if report.told_by.is_empty() {
                break;
            }
        }
        assert!(report.trouble.contains("again and again"), "{report:?}");
        assert!(!world.file().contains("100.100.100.100"), "{}", world.file());
    }

    #[test]
    fn a_socket_of_its_own_is_for_root_and_the_agent_and_takes_the_place_of_an_old_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/socket");
        for _ in 0..2 {
            let listener = bind(&path, None).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
            std::os::unix::net::UnixStream::connect(&path).unwrap();
            drop(listener);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        bind(&path, None).unwrap_err();
    }

    #[tokio::test]
    async fn strangers_and_nonsense_change_nothing() {
        let world = World::new();
        let mut agent = world.connect().await;
        agent.write_all(b"{\"routes\":[\"a..b\"]}\n").await.unwrap();
        let mut line = String::new();
        assert_eq!(agent.read_line(&mut line).await.unwrap(), 0, "{line}");
        let mut endless = world.connect().await;
        let _ = endless.write_all(&vec![b' '; MESSAGE_LEN + 1]).await;
        let _ = endless.read_line(&mut line).await;
        assert_eq!((world.file().as_str(), line.as_str()), (OTHERS, ""));
        let world = World::start(world.kill().await, vec![nix::unistd::getuid().as_raw() + 1]);
        let mut stranger = world.connect().await;
        let _ = stranger.write_all(&serde_json::to_vec(&names("corp.example")).unwrap()).await;
        let _ = stranger.read_line(&mut line).await;
        assert_eq!((world.file().as_str(), line.as_str()), (OTHERS, ""));
    }
}
