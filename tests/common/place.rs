//! Addresses on loopback that nobody else uses.
//!
//! A port that was free a moment ago may be another's by the time it is wanted: another test binds port 0, or a child
//! that is being started still holds the listener that was closed. So each test program has an address of its own within
//! 127.0.0.0/8, and takes ports from below those that a kernel gives away, each once.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

static NEXT: AtomicU16 = AtomicU16::new(21_000);

/// An address and port that nobody listens on before it is used, and again after whoever used it has ended.
pub(crate) fn place() -> SocketAddr {
    // The kernel's limit on process numbers, PID_MAX_LIMIT of linux/threads.h, is 2^22: each has an address here.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, 64 | high & 0x3f, middle, low), NEXT.fetch_add(1, Ordering::Relaxed)).into()
}
