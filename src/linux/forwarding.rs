//! The kernel's switches that let packets pass, and the record of what they were before we changed them.
//!
//! The record is on disk before a switch is changed, and a line of it goes when that switch is given back. It is of one
//! network namespace of one start of the machine: in another, the switches are as they were by themselves. A link is
//! written down by its number, which it keeps under another name and which no other link gets.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{AfSpecInet, AfSpecUnspec, LinkAttribute, LinkMessage};
use nix::libc;
use nix::net::if_::{if_nameindex, if_nametoindex};

use warren_core::plan::{Before, ForwardingStep, ObservedForwarding, Switch};

use super::netlink::RouteSocket;

/// Where the switches are, by family.
const ROOT: &str = "/proc/sys/net";
/// The kernel's names for all links and for new ones.
const NO_LINKS: [&str; 2] = ["all", "default"];
/// As much of a record as is read: a line a switch, of some ten thousand links.
const MOST: u64 = 1 << 20;
/// `IFLA_INET_CONF`, of which the kernel takes nested numbers, and `IPV4_DEVCONF_FORWARDING`.
const INET_CONF: u16 = 1 | 1 << 15;
const DEVCONF_FORWARDING: u16 = 1;
/// `SO_NETNS_COOKIE`.
const NETNS_COOKIE: libc::c_int = 71;

/// The switches, and where the record of them is kept.
#[derive(Default)]
pub(super) struct Switches {
    record: Option<PathBuf>,
}

/// A link's number, which is 0 where the name is that of no link.
type Place = (u32, Switch);
type Record = BTreeMap<Place, Before>;

impl Switches {
    pub(super) fn keep_record(&mut self, file: PathBuf) {
        self.record = Some(file);
    }

    /// All switches as they are, and what ours were.
    pub(super) fn observe(&self) -> io::Result<ObservedForwarding> {
        let mut found = ObservedForwarding::default();
        for link in links("ipv4") {
            add(&mut found, Switch::Ipv4(link));
        }
        for link in links("ipv6") {
            for kind in [Switch::Ipv6Forced, Switch::Ipv6, Switch::AcceptRa] {
                add(&mut found, kind(link.clone()));
            }
        }
        let all = Switch::Ipv6(NO_LINKS[0].to_owned());
        // Whether it can be opened says whether it can be written; nothing is.
        found.is_closed = found.values.contains_key(&all) && OpenOptions::new().write(true).open(path(&all)).is_err();
        // Without it nothing is changed either, which says so.
        let record = self.read().unwrap_or_else(|error| {
            tracing::warn!("read what the switches of forwarding were: {error}");
            Record::new()
        });
        if !record.is_empty() {
            let names = names()?;
            let named = record.into_iter().filter_map(|((index, switch), before)| {
                Some((if index == 0 { switch } else { of_link(&switch, names.get(&index)?) }, before))
            });
            found.before = named.collect();
        }
        Ok(found)
    }

    /// Carries out a step.
    pub(super) async fn apply(&self, step: &ForwardingStep, socket: &RouteSocket) -> io::Result<()> {
        match step {
            ForwardingStep::Set(switch) => self.set(switch, socket).await,
            ForwardingStep::GiveBack(switch, before) => {
                write(switch, *before, socket).await?;
                self.forget(switch)
            }
            ForwardingStep::Forget(switch) => self.forget(switch),
        }
    }

    async fn set(&self, switch: &Switch, socket: &RouteSocket) -> io::Result<()> {
        let (value, all) = (read(switch)?, read(&switch.of_all()).unwrap_or_default());
        let (place, mut record) = (place(switch)?, self.read()?);
        take(&mut record, &place);
        record.insert(place, Before { value, all });
        self.save(&record)?;
        if value == switch.ours() { Ok(()) } else { write(switch, switch.ours(), socket).await }
    }

    fn forget(&self, switch: &Switch) -> io::Result<()> {
        let mut record = self.read()?;
        take(&mut record, &place(switch)?);
        self.save(&record)
    }

    /// What is written down of this namespace.
    fn read(&self) -> io::Result<Record> {
        let Some(file) = &self.record else { return Ok(Record::new()) };
        let mut text = String::new();
        match File::open(file) {
            Ok(file) => drop(file.take(MOST).read_to_string(&mut text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut lines = text.lines();
        Ok(match lines.next() == Some(&*namespace()?) {
            true => lines.filter_map(read_line).collect(),
            false => Record::new(),
        })
    }

    /// Puts a whole record in the place of the other; none where there is nothing to write down.
    fn save(&self, record: &Record) -> io::Result<()> {
        let Some(file) = &self.record else {
            return Err(io::Error::other("there is no place to write down what it was"));
        };
        let folder = file.parent().ok_or(io::ErrorKind::NotFound)?;
        if record.is_empty() {
            return match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => File::open(folder)?.sync_all(),
            };
        }
        let new = file.with_extension("new");
        let mut written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let lines = record.iter().map(line);
        let text: String = [namespace()?].into_iter().chain(lines).map(|line| format!("{line}\n")).collect();
        written.write_all(text.as_bytes())?;
        written.sync_all()?;
        fs::rename(&new, file)?;
        File::open(folder)?.sync_all()
    }
}

fn line(((index, switch), before): (&Place, &Before)) -> String {
    let (family, name) = switch.names();
    format!("{family} {name} {index} {} {} {}", switch.link(), before.value, before.all)
}

fn read_line(line: &str) -> Option<(Place, Before)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [family, name, index, link, value, all] = words.as_slice() else { return None };
    let link = (*link).to_owned();
    let kinds = [Switch::Ipv4, Switch::Ipv6Forced, Switch::Ipv6, Switch::AcceptRa];
    let switch = kinds.into_iter().map(|kind| kind(link.clone())).find(|switch| switch.names() == (*family, *name))?;
    let index: u32 = index.parse().ok()?;
    // A name that is no link's is one of two: it leads to a file.
    let is_whole = index != 0 || NO_LINKS.contains(&switch.link());
    is_whole.then_some(((index, switch), Before { value: value.parse().ok()?, all: all.parse().ok()? }))
}

/// Under which number and name a switch is written down. The name of a link is there for people.
fn place(switch: &Switch) -> io::Result<Place> {
    let index = match NO_LINKS.contains(&switch.link()) {
        true => 0,
        false => if_nametoindex(switch.link())?,
    };
    Ok((index, switch.clone()))
}

/// Takes the line of a switch out, whatever its link was called when that was written.
fn take(record: &mut Record, (index, switch): &Place) {
    let is_it = |place: &Place| match index {
        0 => place.1 == *switch,
        index => place.0 == *index && place.1.names() == switch.names(),
    };
    record.retain(|place, _| !is_it(place));
}

/// The links that are there, by their numbers.
fn names() -> io::Result<BTreeMap<u32, String>> {
    let links = if_nameindex()?;
    Ok(links.iter().map(|link| (link.index(), link.name().to_string_lossy().into_owned())).collect())
}

fn of_link(switch: &Switch, link: &str) -> Switch {
    let link = link.to_owned();
    match switch {
        Switch::Ipv4(_) => Switch::Ipv4(link),
        Switch::Ipv6Forced(_) => Switch::Ipv6Forced(link),
        Switch::Ipv6(_) => Switch::Ipv6(link),
        Switch::AcceptRa(_) => Switch::AcceptRa(link),
    }
}

/// The links that have switches of a family, and the names that stand for all and for new ones.
fn links(family: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(Path::new(ROOT).join(family).join("conf")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// A link may go while it is looked at.
fn add(found: &mut ObservedForwarding, switch: Switch) {
    if let Ok(value) = read(&switch) {
        found.values.insert(switch, value);
    }
}

fn path(switch: &Switch) -> PathBuf {
    let (family, name) = switch.names();
    Path::new(ROOT).join(family).join("conf").join(switch.link()).join(name)
}

fn read(switch: &Switch) -> io::Result<u32> {
    let text = fs::read_to_string(path(switch))?;
    text.trim().parse::<i32>().map(i32::cast_unsigned).map_err(io::Error::other)
}

/// By its file, whose writer the kernel spares what a link cannot do that passes packets on (LRO); where that is closed,
/// IPv4 has a way beside it.
async fn write(switch: &Switch, value: u32, socket: &RouteSocket) -> io::Result<()> {
    let written = OpenOptions::new().write(true).open(path(switch));
    let written = written.and_then(|mut file| file.write_all(value.cast_signed().to_string().as_bytes()));
    match (written, switch) {
        (Err(_), Switch::Ipv4(link)) if !NO_LINKS.contains(&link.as_str()) => {
            set_ipv4(if_nametoindex(link.as_str())?, value, socket).await
        }
        (written, _) => written,
    }
}

async fn set_ipv4(index: u32, value: u32, socket: &RouteSocket) -> io::Result<()> {
    let mut number = Vec::new();
    number.extend(8_u16.to_ne_bytes());
    number.extend(DEVCONF_FORWARDING.to_ne_bytes());
    number.extend(value.to_ne_bytes());
    let mut message = LinkMessage::default();
    message.header.index = index;
    let conf = AfSpecInet::Other(DefaultNla::new(INET_CONF, number));
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![conf])]));
    socket.ask(RouteNetlinkMessage::SetLink(message), 0).await
}

/// The network namespace of this thread and the start of the machine, in words.
fn namespace() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let inode = fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(format!("{} {inode} {}", boot.trim(), netns_cookie()))
}

/// A number that no other namespace has until the machine is started again. Kernels before 5.14 have none.
#[allow(unsafe_code, reason = "no library has this socket option")]
fn netns_cookie() -> u64 {
    let Ok(socket) = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)) else { return 0 };
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes, which is how many `cookie` has, and both outlive the call.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length)
    };
    if done == 0 { cookie } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_one_of_another_namespace_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut switches = Switches::default();
        switches.keep_record(folder.path().join("forwarding"));
        let record = Record::from([
            ((2, Switch::Ipv4("eth0.7".to_owned())), Before { value: 0, all: 0 }),
            ((0, Switch::Ipv6("all".to_owned())), Before { value: 0, all: 0 }),
            ((0, Switch::AcceptRa("default".to_owned())), Before { value: 1, all: 1 }),
            ((9, Switch::Ipv6Forced("lan".to_owned())), Before { value: 0, all: 1 }),
        ]);
        switches.save(&record).unwrap();
        assert_eq!(switches.read().unwrap(), record);

        let file = folder.path().join("forwarding");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("another {text}")).unwrap();
        assert_eq!(switches.read().unwrap(), Record::new());

        // A name leads to a file only where it is a link's.
        fs::write(&file, format!("{}\nipv6 forwarding 0 ../../../x 0 0\nipv4 x\n\n", namespace().unwrap())).unwrap();
        assert_eq!(switches.read().unwrap(), Record::new());
        switches.save(&Record::new()).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn without_a_place_for_the_record_nothing_is_changed() {
        let error = Switches::default().save(&Record::new()).unwrap_err();
        assert!(error.to_string().contains("no place"), "{error}");
    }
}
