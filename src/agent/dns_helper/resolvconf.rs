//! resolvconf and openresolv, which make `/etc/resolv.conf` of what several programs tell them: ours is one of these
//! records, and taking it back leaves the file as they make it of the others.
//!
//! What was told is read back from where they keep it, so that nothing needs to be remembered.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::facts::{RESOLVCONF, resolvconf, text};
use crate::resolvers::records;
use warren_core::dns::host::{Gatherer, HostNames, ResolvConf, Resolvconf, record};
use warren_core::types::RESOLVER_ADDRESSES;

/// How long they may take: they wait ten seconds for each other, and then run what hangs on them.
const TIME: Duration = Duration::from_secs(15);
/// What our record is called: Debian's asks those called `tun-…` first, openresolv goes by what it is told.
const DEBIAN: &str = "tun-warren.inet";
const OPENRESOLV: &str = "warren0";

/// See the module.
pub(super) struct Records {
    root: PathBuf,
}

impl Records {
    pub(super) const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Whom the records of others name.
    pub(super) fn upstreams(&self) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for server in self.others().into_iter().flat_map(|other| other.servers) {
            if !found.contains(&server) {
                found.push(server);
            }
        }
        found
    }

    fn others(&self) -> Vec<ResolvConf> {
        let files = records(&self.root).into_iter().filter(|file| !is_ours(file));
        files.map(|file| ResolvConf::read(&text(&file))).collect()
    }

    /// Whether there is a record of ours.
    pub(super) fn is_told(&self) -> bool {
        records(&self.root).iter().any(|file| is_ours(file))
    }

    /// Has the file made with us first. Said again, it changes nothing.
    pub(super) async fn tell(&self, gatherer: Gatherer, names: &HostNames) -> Result<(), String> {
        let (arguments, left_out): (&[&str], _) = match gatherer {
            // The others' records are for us to ask.
            Gatherer::Openresolv => (&["-m", "0", "-x", "-a", OPENRESOLV], self.others()),
            Gatherer::Debian => (&["-a", DEBIAN], Vec::new()),
        };
        let record = record(names, &left_out);
        let is_so = records(&self.root).iter().any(|file| is_ours(file) && same(&text(file), &record));
        if !is_so || !self.is_first() {
            self.run(arguments, &record).await?;
        }
        match self.is_first() {
            true => Ok(()),
            false => Err("resolvconf was told, and /etc/resolv.conf names others first all the same: look at \
                          /etc/resolvconf.conf, /etc/resolvconf and `resolvconf --enable-updates`"
                .to_owned()),
        }
    }

    /// Takes the record back, where there is one.
    pub(super) async fn take_back(&self) -> Result<(), String> {
        for file in records(&self.root).into_iter().filter(|file| is_ours(file)) {
            match file.ends_with(DEBIAN) {
                true => self.run(&["-d", DEBIAN], "").await?,
                false => self.run(&["-f", "-d", OPENRESOLV], "").await?,
            }
        }
        if self.is_told() {
            return Err("resolvconf keeps our record".to_owned());
        }
        // A power failure takes the records, and may leave the file.
        match self.is_first() && self.file().is_by("resolvconf") && self.program().is_some() {
            true => self.run(&["-u"], "").await,
            false => Ok(()),
        }
    }

    fn is_first(&self) -> bool {
        self.file().servers.first().is_some_and(|server| RESOLVER_ADDRESSES.contains(server))
    }

    fn file(&self) -> ResolvConf {
        ResolvConf::read(&text(&self.root.join("etc/resolv.conf")))
    }

    fn program(&self) -> Option<PathBuf> {
        let mut programs = RESOLVCONF.iter().map(|path| self.root.join(path));
        programs.find(|path| matches!(resolvconf(path), Resolvconf::Gathers(_)))
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<(), String> {
        let Some(program) = self.program() else { return Err("resolvconf is gone".to_owned()) };
        let what = format!("resolvconf {}", arguments.join(" "));
        // Every program reads what it writes, whatever our own umask.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask 022; exec \"$@\"", "sh"]).arg(program).args(arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let done = async {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that does not read says why it failed.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = match timeout(TIME, done).await {
            Ok(output) => output.map_err(|error| format!("{what}: {error}"))?,
            Err(_) => return Err(format!("{what}: not done within {} s", TIME.as_secs())),
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{what}: {}", said.lines().next().unwrap_or("it failed")))
    }
}

fn is_ours(file: &Path) -> bool {
    file.ends_with(DEBIAN) || file.ends_with(OPENRESOLV)
}

/// They tidy what they are told.
fn same(told: &str, record: &str) -> bool {
    told.split_whitespace().eq(record.split_whitespace())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::clock;
    use crate::dns_helper::{Bus, Host};
    use warren_core::dns::host::HostReport;

    /// What each of them makes of its records, in short: openresolv asks the one that is exclusive alone, Debian's those
    /// called `tun-…` first.
    const FAKES: [(Gatherer, &str); 2] = [
        (
            Gatherer::Openresolv,
            r##"#!/bin/sh
# as openresolv
root=$(dirname "$(dirname "$0")"); records=$root/run/resolvconf/interfaces
case "$*" in
  "-m 0 -x -a warren0") cat > $records/warren0 ;;
  "-f -d warren0") rm -f $records/warren0 ;;
  -u) ;;
  *) echo "not known: $*" >&2; exit 1 ;;
esac
all=$records/eth0.dhcp; [ -e $records/warren0 ] && all=$records/warren0
{ echo "# Generated by resolvconf"; cat $all; } > $root/etc/resolv.conf
"##,
        ),
        (
            Gatherer::Debian,
            r##"#!/bin/sh
root=$(dirname "$(dirname "$0")"); records=$root/run/resolvconf/interface
case "$*" in
  "-a tun-warren.inet") cat > $records/tun-warren.inet ;;
  "-d tun-warren.inet") rm -f $records/tun-warren.inet ;;
  -u) ;;
  *) echo "not known: $*" >&2; exit 1 ;;
esac
all=$records/eth0.dhcp; [ -e $records/tun-warren.inet ] && all="$records/tun-warren.inet $all"
{ echo "# generated by resolvconf(8)"; cat $all; } > $root/run/resolvconf/resolv.conf
"##,
        ),
    ];

    struct World {
        root: tempfile::TempDir,
        records: PathBuf,
    }

    impl World {
        fn new((gatherer, script): (Gatherer, &str)) -> Self {
            let root = tempfile::tempdir().unwrap();
            let at = |path: &str| root.path().join(path);
            let records = match gatherer {
                Gatherer::Openresolv => at("run/resolvconf/interfaces"),
                Gatherer::Debian => at("run/resolvconf/interface"),
            };
            for folder in [&at("etc"), &at("sbin"), &at("state"), &records] {
                fs::create_dir_all(folder).unwrap();
            }
            fs::write(at("sbin/resolvconf"), script).unwrap();
            fs::set_permissions(at("sbin/resolvconf"), fs::Permissions::from_mode(0o755)).unwrap();
            if gatherer == Gatherer::Debian {
                std::os::unix::fs::symlink("../run/resolvconf/resolv.conf", at("etc/resolv.conf")).unwrap();
            }
            fs::write(records.join("eth0.dhcp"), "nameserver 192.0.2.1\nsearch lan\n").unwrap();
            assert!(std::process::Command::new(at("sbin/resolvconf")).arg("-u").status().unwrap().success());
            Self { root, records }
        }

        /// A helper that begins, as after every end of the one before it.
        async fn settle(&self, names: &HostNames) -> HostReport {
            let mut host = Host::new(self.root.path().to_owned(), self.root.path().join("state"), Bus::none());
            host.settle(names, clock::now().tick).await
        }

        fn file(&self) -> String {
            fs::read_to_string(self.root.path().join("etc/resolv.conf")).unwrap()
        }
    }

    fn names() -> HostNames {
        let domain: Vec<_> = ["corp.example".parse().unwrap()].into();
        HostNames { routes: domain.clone(), search: domain, port: 5353, has_port_53: true, ..HostNames::default() }
    }

    #[tokio::test]
    async fn it_is_told_of_us_and_whoever_comes_next_takes_that_back() {
        for fake in FAKES {
            let world = World::new(fake);
            let original = world.file();
            // Whoever is killed leaves one of these two, and each of them goes on from it.
            for _ in 0..2 {
                let report = world.settle(&names()).await;
                assert_eq!((report.told_by.as_str(), report.trouble.as_str()), ("resolvconf", ""));
                assert_eq!(report.upstreams, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
                let file = ResolvConf::read(&world.file());
                assert_eq!(file.servers[0], RESOLVER_ADDRESSES[0]);
                assert!(
                    world.file().contains("search corp.example") && world.file().contains("lan"),
                    "{}",
                    world.file()
                );
            }
            for _ in 0..2 {
                assert_eq!(world.settle(&HostNames::default()).await, HostReport::default());
                assert_eq!(world.file(), original);
            }
            let left: Vec<_> = fs::read_dir(&world.records).unwrap().map(|it| it.unwrap().file_name()).collect();
            assert_eq!(left, ["eth0.dhcp"]);
        }
    }

    #[tokio::test]
    async fn what_dhcp_says_meanwhile_is_what_we_ask() {
        for fake in FAKES {
            let world = World::new(fake);
            world.settle(&names()).await;
            fs::write(world.records.join("eth0.dhcp"), "nameserver 192.0.2.9\n").unwrap();
            assert_eq!(world.settle(&names()).await.upstreams, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
            world.settle(&HostNames::default()).await;
            assert!(world.file().ends_with("nameserver 192.0.2.9\n"), "{}", world.file());
        }
    }

    #[tokio::test]
    async fn after_a_power_failure_the_file_is_made_anew_without_us() {
        for fake in FAKES {
            let world = World::new(fake);
            let original = world.file();
            world.settle(&names()).await;
            for ours in [DEBIAN, OPENRESOLV] {
                let _ = fs::remove_file(world.records.join(ours));
            }
            assert_eq!(world.settle(&HostNames::default()).await, HostReport::default());
            assert_eq!(world.file(), original);
        }
    }

    #[tokio::test]
    async fn one_that_names_others_first_or_fails_is_told_of() {
        let world = World::new(FAKES[1]);
        let script = world.root.path().join("sbin/resolvconf");
        let postponed = "#!/bin/sh\ncat > $(dirname $0)/../run/resolvconf/interface/tun-warren.inet\n";
        fs::write(&script, postponed).unwrap();
        let report = world.settle(&names()).await;
        assert!(report.told_by.is_empty() && report.trouble.contains("--enable-updates"), "{report:?}");
        fs::write(&script, "#!/bin/sh\necho 'Run lock held' >&2\nexit 1\n").unwrap();
        let report = world.settle(&names()).await;
        assert!(report.trouble.contains("resolvconf -a tun-warren.inet: Run lock held"), "{report:?}");
    }
}
