//! One agent at a time in a network namespace: two would undo each other's work, and between the two nothing would be
//! filtered.
//!
//! Whoever listens on a certain abstract socket is the one. Such sockets belong to the network namespace, as links and
//! tables do, whatever files a program sees, and they go with their holder. Anybody may take that name, so a holder that
//! could not be an agent keeps nobody out.

use std::fs;
use std::io;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Uid, geteuid};
use socket2::{Domain, SockAddr, Socket, Type};

use warren_core::plan::{KernelError, own};

/// The bit of `CAP_NET_ADMIN` in a set of capabilities.
const NET_ADMIN: u64 = 1 << 12;

/// The place of the one agent, held until this is dropped.
#[derive(Debug)]
pub struct OnlyOne {
    /// None where somebody else sits there who is no agent.
    _socket: Option<Socket>,
}

/// Whoever has the place.
struct Holder {
    process: i32,
    user: Uid,
}

impl OnlyOne {
    /// Takes the place of the agent in the network namespace of this thread, or says who has it.
    pub fn take() -> Result<Self, KernelError> {
        Self::take_place(own::LINK)
    }

    fn take_place(place: &str) -> Result<Self, KernelError> {
        let failed = |reason: String| KernelError {
            operation: format!("take {place} and what belongs to it in this network namespace"),
            reason,
        };
        let address = SockAddr::unix(format!("\0warren/{place}")).map_err(|error| failed(error.to_string()))?;
        match listen(&address) {
            Ok(socket) => Ok(Self { _socket: Some(socket) }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match holder(&address) {
                Some(holder) if !holder.may_be_agent() => {
                    let Holder { process, user } = holder;
                    tracing::warn!(process, %user, "somebody without the rights of an agent sits in its place");
                    Ok(Self { _socket: None })
                }
                holder => {
                    let process = holder.map_or(String::new(), |holder| format!(" (process {})", holder.process));
                    Err(failed(format!("another warrend{process} has them; end that one first")))
                }
            },
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

fn listen(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(address)?;
    socket.listen(1)?;
    Ok(socket)
}

/// Who listens there, where that can be told.
fn holder(address: &SockAddr) -> Option<Holder> {
    // One that accepts nothing is not waited for.
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).ok()?;
    socket.connect(address).ok()?;
    let credentials = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
    Some(Holder { process: credentials.pid(), user: Uid::from_raw(credentials.uid()) })
}

impl Holder {
    /// Whether it has the rights that an agent has. One that is not seen from here may have them.
    fn may_be_agent(&self) -> bool {
        if self.user.is_root() || self.user == geteuid() {
            return true;
        }
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", self.process)) else { return true };
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_none_or(|set| set & NET_ADMIN != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_had_by_one_at_a_time_and_the_other_is_told_by_whom() {
        let place = format!("test-{}", std::process::id());
        let first = OnlyOne::take_place(&place).unwrap();

        let text = OnlyOne::take_place(&place).unwrap_err().to_string();

        assert!(text.contains(&format!("another warrend (process {}) has them", std::process::id())), "{text}");
        drop(first);
        drop(OnlyOne::take_place(&place).unwrap());
    }

    #[test]
    fn whoever_lacks_the_rights_of_an_agent_is_none() {
        // The first process belongs to root, whatever it may do.
        assert!(Holder { process: 1, user: Uid::from_raw(0) }.may_be_agent());
        assert!(Holder { process: 0, user: Uid::from_raw(4_000_000) }.may_be_agent(), "not seen from here");
        assert!(Holder { process: std::process::id().cast_signed(), user: geteuid() }.may_be_agent());
    }
}
