//! The tunnel's UDP port while WireGuard does not have it, and who has it instead.
//!
//! It lies among the ports that the kernel gives to any program that asks for none in particular. So while there is no
//! link that has it, a socket of ours keeps it, until the moment in which WireGuard takes it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// Ports that are tried where the wanted one is taken: those behind it, past the agent's own two.
const OTHERS: std::ops::RangeInclusive<u16> = 3..=18;

/// The port, kept until this is dropped.
#[derive(Debug)]
pub(super) struct PortGuard {
    _sockets: Vec<Socket>,
}

impl PortGuard {
    /// Takes a port of both families, as WireGuard would.
    pub(super) fn hold(port: u16) -> io::Result<Self> {
        let mut sockets = vec![bind((Ipv4Addr::UNSPECIFIED, port).into())?];
        match bind((Ipv6Addr::UNSPECIFIED, port).into()) {
            Ok(socket) => sockets.push(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // A host without IPv6.
            Err(_) => {}
        }
        Ok(Self { _sockets: sockets })
    }

    /// The wanted port, or another near it where somebody has that.
    pub(super) fn hold_near(port: u16) -> io::Result<(u16, Self)> {
        let others = OTHERS.filter_map(|step| port.checked_add(step));
        let mut first = None;
        for port in [port].into_iter().chain(others) {
            match Self::hold(port) {
                Ok(guard) => return Ok((port, guard)),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        Err(first.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Who has a UDP port, in words.
pub(super) fn who_has(port: u16) -> String {
    let tables = ["/proc/net/udp", "/proc/net/udp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    match tables.iter().find_map(|table| owner(table, port)) {
        None => "a program that cannot be seen from here".to_owned(),
        Some(Owner { inode: 0, .. }) => {
            "the kernel itself, for another WireGuard link, perhaps (`wg show all listen-port`)".to_owned()
        }
        Some(Owner { inode, user }) => {
            // Another user's open files are not ours to look at.
            let hidden = || format!("a program of user {user} (as root, `ss -ulpn 'sport = :{port}'` says which)");
            process_with(inode).unwrap_or_else(hidden)
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owner {
    inode: u64,
    user: u32,
}

/// Reads the kernel's table of UDP sockets: the second column is the local address, the eighth the user, the tenth
/// the inode.
pub(super) fn owner(table: &str, port: u16) -> Option<Owner> {
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let local = columns.get(1)?.rsplit(':').next()?;
        (u16::from_str_radix(local, 16) == Ok(port)).then_some(())?;
        Some(Owner { user: columns.get(7)?.parse().ok()?, inode: columns.get(9)?.parse().ok()? })
    })
}

/// The process that has a socket open, where its open files may be looked at.
fn process_with(inode: u64) -> Option<String> {
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let process = processes.find(|process| {
        let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target.to_str() == Some(&socket))
    })?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(format!("{} (process {process})", name.trim().escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_told_with_its_holder_and_another_is_held() {
        let taken = bind((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = taken.local_addr().unwrap().as_socket().unwrap().port();

        assert_eq!(PortGuard::hold(port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(who_has(port).contains(&format!("(process {})", std::process::id())), "{}", who_has(port));
        let (other, guard) = PortGuard::hold_near(port).unwrap();
        assert_ne!(other, port);
        assert_eq!(PortGuard::hold(other).unwrap_err().kind(), io::ErrorKind::AddrInUse, "it is kept");
        drop(guard);
    }

    #[test]
    fn the_kernels_table_names_user_and_inode() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n  \
            12: 00000000:A30D 00000000:0000 07 00000000:00000000 00:00000000 00000000   990        0 4711 2 0 0\n  \
            13: 00000000:A30E 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0 0\n";
        assert_eq!(owner(table, 41741), Some(Owner { inode: 4711, user: 990 }));
        assert_eq!(owner(table, 41742), Some(Owner { inode: 0, user: 0 }));
        assert_eq!(owner(table, 1), None);
    }
}
