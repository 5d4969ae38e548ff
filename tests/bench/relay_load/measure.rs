//! A relay under load, and with clients that say nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Uri;

use crate::client::{Client, Pair};
use crate::usage::Usage;

/// Ciphertext of a full packet in the tunnel.
pub(crate) const PACKET: usize = 1400;

/// What each client costs that is connected and says nothing.
pub(crate) async fn idle_clients(server: &Uri, pin: Option<&str>, usage: Option<Usage>, count: u32) -> Option<f64> {
    let usage = usage?;
    // Memory that the first clients bring about is the relay's own.
    let first = connect(server, pin, 8, 1).await;
    let before = usage.memory_kib();
    let clients = connect(server, pin, count / 2, 1).await;
    let grown = usage.memory_kib().saturating_sub(before);
    drop((first, clients));
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    Some(grown as f64 / f64::from(count))
}

pub(crate) async fn connect(server: &Uri, pin: Option<&str>, pairs: u32, window: u64) -> Vec<Pair> {
    let mut connected = Vec::new();
    for _ in 0..pairs {
        let from = Client::connect(server, pin).await;
        let to = Client::connect(server, pin).await;
        connected.push(Pair { from, to, window });
    }
    connected
}

pub(crate) struct Figures {
    /// Those that arrived.
    pub(crate) packets: f64,
    pub(crate) lost: f64,
    /// Processor time of the relay.
    pub(crate) busy: Option<Duration>,
}

pub(crate) async fn load(pairs: Vec<Pair>, usage: Option<Usage>, time: Duration) -> Figures {
    let arrived = Arc::new(AtomicU64::new(0));
    let lost = Arc::new(AtomicU64::new(0));
    let ending = Arc::new(AtomicBool::new(false));
    let running: Vec<_> = pairs.into_iter().map(|pair| pair.start(PACKET, &arrived, &lost, &ending)).collect();
    // The first second is for buffers to grow.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (packets, busy) = (arrived.load(Ordering::Relaxed), usage.map(Usage::busy));
    tokio::time::sleep(time).await;
    let packets = arrived.load(Ordering::Relaxed) - packets;
    let busy = usage.map(Usage::busy).zip(busy).map(|(after, before)| after - before);
    ending.store(true, Ordering::Relaxed);
    running.into_iter().flatten().for_each(|task| task.abort());
    #[allow(clippy::cast_precision_loss, reason = "millions")]
    Figures { packets: packets as f64, lost: lost.load(Ordering::Relaxed) as f64, busy }
}
