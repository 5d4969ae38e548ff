//! Packets that the agent sends and receives itself: path probes on WireGuard's port, and what the relay carries.
//!
//! ```text
//! network ──> WireGuard's port ──probes (nftables)──> ProbeSocket        what others probe us with
//!             WireGuard's port <── as source ──────── UdpSender          our own probes
//! WireGuard ──127.128.0.0/9, relay port──> Loopback ──┐
//! WireGuard <──from that same address───── Loopback <─┤ relay            a peer that is relayed
//! WireGuard <──from the direct endpoint─── Injector <─┘                  one that is direct, and what came late
//! ```
//!
//! WireGuard owns its port and answers to wherever the last authenticated packet came from. So a probe leaves
//! through a raw socket that writes that port itself; and what the relay brings from a peer with a direct path is
//! given that path's source, or it would turn the peer back to the relay. Every packet made here has a real
//! checksum: the kernel mends a zero one into a wrong one where it diverts probes, and WireGuard takes none over IPv6.
//!
//! All of it needs `CAP_NET_RAW` and `CAP_NET_ADMIN`, and nothing else.

mod header;
mod loopback;
mod probe;
mod raw;

pub use loopback::{Batch, Loopback, LoopbackSocket};
pub use probe::{Datagram, ProbeSocket};
pub use raw::{Injector, UdpSender};

use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;

/// The buffers asked of the kernel: 208 KiB, the usual, held the relayed throughput of another project to a tenth.
const BUFFER_BYTES: usize = 8 << 20;
/// How often a port is asked for that both families have free.
const PORT_ATTEMPTS: usize = 8;

/// Asks for large buffers, past the system's limit where we may. Without, the socket works, and drops sooner.
fn enlarge_buffers(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        // The system caps this silently.
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    }
}

/// Binds the port, or where somebody has it any that is free.
fn bind_near<T>(port: u16, mut bind: impl FnMut(u16) -> io::Result<T>) -> io::Result<T> {
    let mut outcome = bind(port);
    for _ in 0..PORT_ATTEMPTS {
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => outcome = bind(0),
            other => return other,
        }
    }
    outcome
}
