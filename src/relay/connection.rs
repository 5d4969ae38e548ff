//! One client's connection: introduced, admitted, then read and written until either side ends.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::RngExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::timeout;

use warren_core::derp::{ConnectionId, Counters, Greeting, Handshake, Limits, MeshKey, Server, presentation};
use warren_core::types::{NodePrivate, NodePublic};
use warren_shell::locked;

use super::admission::{Admission, Applicant};
use super::clock;
use super::error::RelayError;
use super::reading::Reading;
use super::tally::Tally;

/// A client introduces itself within this or is closed.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// A client that takes nothing for this long is closed; what waits for it is stale by then.
const WRITE: Duration = Duration::from_secs(2);
/// The same for a sibling, whose loss costs every client behind it.
const WRITE_SIBLING: Duration = Duration::from_secs(30);
/// Bytes of one read while a client introduces itself, which takes some 300.
const READ: usize = 2 << 10;
/// How often due keep-alives are looked for.
const TICK: Duration = Duration::from_secs(1);
/// Keep-alives are spread over this much.
const JITTER_MS: u64 = 5_000;

/// What a relay is told.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The relay's own key, which clients seal their introduction to.
    pub key: NodePrivate,
    /// The secret of the region's relays, if there are several.
    pub mesh: Option<MeshKey>,
    /// What it takes on.
    pub limits: Limits,
    /// Who may use it.
    pub admission: Admission,
}

/// One relay; share it among tasks.
pub struct Relay {
    config: RelayConfig,
    next: AtomicU64,
    shared: Mutex<Shared>,
    tally: Tally,
}

struct Shared {
    server: Server,
    wakers: BTreeMap<ConnectionId, Arc<Notify>>,
    has_ended: bool,
}

impl Relay {
    /// A relay without clients.
    pub fn new(config: RelayConfig) -> Self {
        let mut server = Server::new(config.limits);
        server.handle_opened(clock::now());
        let shared = Mutex::new(Shared { server, wakers: BTreeMap::new(), has_ended: false });
        Self { config, next: AtomicU64::new(1), shared, tally: Tally::default() }
    }

    /// Who the relay is.
    pub fn public(&self) -> NodePublic {
        self.config.key.public()
    }

    /// Sends keep-alives when they are due, for as long as the relay runs.
    pub async fn keep_alive(&self) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            self.with(|server, wake| server.handle_timeout(clock::now(), wake));
        }
    }

    /// Serves one client over a connection whose HTTP upgrade is done, until either side ends it. Calls `admitted` once
    /// the client is.
    pub async fn serve<S>(
        &self,
        io: S,
        source: Option<IpAddr>,
        admitted: impl FnOnce() + Send,
    ) -> Result<(), RelayError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let served = self.serve_client(io, source, admitted).await;
        if let Err(error) = &served {
            self.tally.ended(error);
        }
        served
    }

    async fn serve_client<S>(
        &self,
        io: S,
        source: Option<IpAddr>,
        admitted: impl FnOnce() + Send,
    ) -> Result<(), RelayError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(io);
        let introduced = timeout(INTRODUCTION, self.introduce(&mut reader, &mut writer, source)).await;
        let (greeting, unread) = introduced.map_err(|_| RelayError::Slow("introduce itself"))??;
        admitted();
        let place = self.enter();
        let jitter = Duration::from_millis(rand::rng().random_range(0..=JITTER_MS));
        self.with(|server, wake| server.handle_connected(place.id, &greeting, clock::now(), jitter, wake))?;
        // A client that is welcome can be reached: whoever it tells so must find it.
        let welcomed = timeout(WRITE, self.welcome(&mut writer, &greeting.client)).await;
        welcomed.map_err(|_| RelayError::Slow("read what is sent to it"))??;
        self.tally.admitted();
        let write_within = if greeting.is_mesh { WRITE_SIBLING } else { WRITE };
        let applicant = (!greeting.is_mesh).then_some(Applicant { node: greeting.client, source });
        tokio::select! {
            ended = self.pump(&place, reader, writer, unread, write_within) => ended,
            () = self.no_longer_admitted(applicant) => {
                self.tally.withdrawn(1);
                Ok(())
            }
        }
    }

    /// Asks again about a client now and then, for as long as it is admitted.
    async fn no_longer_admitted(&self, applicant: Option<Applicant>) {
        let (Some(applicant), Some(every)) = (applicant, self.config.admission.asks_every()) else {
            return std::future::pending().await;
        };
        loop {
            // Clients that came together are not asked about together.
            tokio::time::sleep(every.mul_f64(rand::random_range(0.75..1.25))).await;
            if !self.config.admission.admits(applicant).await {
                return;
            }
        }
    }

    /// Is the client of another relay of the region, over a connection whose HTTP upgrade is done.
    pub(super) async fn link<S>(&self, io: S) -> Result<(), RelayError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(io);
        let presented = timeout(INTRODUCTION, self.present(&mut reader, &mut writer)).await;
        let (sibling, unread) = presented.map_err(|_| RelayError::Slow("introduce itself"))??;
        let place = self.enter();
        self.with(|server, wake| server.handle_linked(place.id, sibling, clock::now(), wake));
        self.pump(&place, reader, writer, unread, WRITE_SIBLING).await
    }

    /// A connection's place in the core, until it is dropped.
    fn enter(&self) -> Registered<'_> {
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let notify = Arc::new(Notify::new());
        self.lock().wakers.insert(id, Arc::clone(&notify));
        Registered { relay: self, id, notify }
    }

    async fn pump<S>(
        &self,
        place: &Registered<'_>,
        reader: ReadHalf<S>,
        mut writer: WriteHalf<S>,
        unread: Vec<u8>,
        write_within: Duration,
    ) -> Result<(), RelayError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        tokio::select! {
            biased;
            ended = self.write(place.id, &mut writer, &place.notify, write_within) => ended,
            ended = self.read(place.id, Reading::new(reader, unread)) => ended,
        }
    }

    /// Tells every client that the relay restarts, and when to come back.
    pub fn announce_restart(&self, reconnect_in: Duration, try_for: Duration) {
        self.with(|server, wake| server.handle_shutdown(reconnect_in, try_for, wake));
    }

    /// A key is admitted no longer: what its owner has open ends.
    pub fn withdraw(&self, key: &NodePublic) {
        let ended = self.with(|server, wake| server.handle_withdrawn(key, clock::now(), wake));
        self.tally.withdrawn(ended);
    }

    /// Closes every connection, also those to come. One that just then takes nothing is closed when its time is up.
    pub fn end(&self) {
        let mut shared = self.lock();
        shared.has_ended = true;
        shared.wakers.values().for_each(|waker| waker.notify_one());
    }

    /// How many connections there are, and how many of them call this their home.
    pub fn connected(&self) -> (usize, usize) {
        self.lock().server.connected()
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.lock().server.counters()
    }

    /// How many keys are connected to other relays of the region.
    pub fn remote_keys(&self) -> usize {
        self.lock().server.remote_keys()
    }

    pub(super) const fn tally(&self) -> &Tally {
        &self.tally
    }

    async fn introduce<S: AsyncRead + AsyncWrite>(
        &self,
        reader: &mut ReadHalf<S>,
        writer: &mut WriteHalf<S>,
        source: Option<IpAddr>,
    ) -> Result<(Greeting, Vec<u8>), RelayError> {
        let handshake = Handshake::new(&self.config.key, self.config.mesh.as_ref());
        writer.write_all(&handshake.hello()).await?;
        writer.flush().await?;
        let mut bytes = Vec::new();
        let (greeting, taken) = loop {
            if let Some(read) = handshake.read(&bytes)? {
                break read;
            }
            if read_some(reader, READ, &mut bytes).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        };
        // A sibling has shown the region's secret; it is no node that the coordinator would know.
        let applicant = Applicant { node: greeting.client, source };
        if !greeting.is_mesh && !self.config.admission.admits(applicant).await {
            return Err(RelayError::NotAdmitted);
        }
        Ok((greeting, bytes.split_off(taken)))
    }

    async fn welcome<S: AsyncWrite>(&self, writer: &mut WriteHalf<S>, client: &NodePublic) -> Result<(), RelayError> {
        let Limits { bytes_per_second, burst_bytes, .. } = self.config.limits;
        let burst_bytes = if bytes_per_second == 0 { 0 } else { burst_bytes };
        let handshake = Handshake::new(&self.config.key, self.config.mesh.as_ref());
        writer.write_all(&handshake.welcome(client, rand::random(), bytes_per_second, burst_bytes)?).await?;
        writer.flush().await?;
        Ok(())
    }

    /// The other half of [`Relay::introduce`]: says to a sibling who we are.
    async fn present<S: AsyncRead + AsyncWrite>(
        &self,
        reader: &mut ReadHalf<S>,
        writer: &mut WriteHalf<S>,
    ) -> Result<(NodePublic, Vec<u8>), RelayError> {
        let mut bytes = Vec::new();
        let (sibling, taken) = loop {
            if let Some(read) = presentation::read_key(&bytes)? {
                break read;
            }
            if read_some(reader, READ, &mut bytes).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        };
        if sibling == self.public() {
            return Err(RelayError::Oneself);
        }
        let introduction =
            presentation::introduce(&self.config.key, &sibling, rand::random(), self.config.mesh.as_ref())?;
        writer.write_all(&introduction).await?;
        writer.flush().await?;
        Ok((sibling, bytes.split_off(taken)))
    }

    async fn read<S: AsyncRead>(&self, id: ConnectionId, mut reading: Reading<ReadHalf<S>>) -> Result<(), RelayError> {
        let mut route = |bytes: &[u8]| {
            let visit = |server: &mut Server, wake: &mut BTreeSet<ConnectionId>| {
                (server.handle_bytes(id, bytes, clock::now(), wake), server.contains(id))
            };
            let (routed, is_open) = self.with(visit);
            routed.map(|(taken, pause)| (taken, (pause, is_open))).map_err(RelayError::from)
        };
        let (mut pause, mut is_open) = reading.again(&mut route)?;
        while is_open {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let Some(next) = reading.next(&mut route).await? else { break };
            (pause, is_open) = next;
        }
        Ok(())
    }

    async fn write<S: AsyncWrite>(
        &self,
        id: ConnectionId,
        writer: &mut WriteHalf<S>,
        notify: &Notify,
        within: Duration,
    ) -> Result<(), RelayError> {
        let mut out = Vec::new();
        loop {
            let is_open = {
                let mut shared = self.lock();
                shared.server.handle_written(std::mem::take(&mut out));
                shared.server.poll_transmit(id, &mut out);
                shared.server.contains(id) && !shared.has_ended
            };
            if !is_open {
                return Ok(());
            }
            if out.is_empty() {
                notify.notified().await;
                continue;
            }
            let written = timeout(within, async {
                writer.write_all(&out).await?;
                writer.flush().await
            });
            written.await.map_err(|_| RelayError::Slow("read what is sent to it"))??;
        }
    }

    /// One visit to the core; whoever has something to write by it is woken after the lock is let go.
    fn with<T>(&self, visit: impl FnOnce(&mut Server, &mut BTreeSet<ConnectionId>) -> T) -> T {
        let mut wake = BTreeSet::new();
        let mut shared = self.lock();
        let result = visit(&mut shared.server, &mut wake);
        let woken: Vec<_> = wake.iter().filter_map(|id| shared.wakers.get(id).cloned()).collect();
        drop(shared);
        woken.iter().for_each(|notify| notify.notify_one());
        result
    }

    /// A panic elsewhere leaves whole frames or none, so the state behind a poisoned lock is sound.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        locked("relay", &self.shared)
    }
}

/// Appends what one read gives, at most `most` bytes of it; 0 at the end of the stream.
async fn read_some<S: AsyncRead>(reader: &mut ReadHalf<S>, most: usize, bytes: &mut Vec<u8>) -> io::Result<usize> {
    bytes.reserve(most);
    reader.take(most as u64).read_buf(bytes).await
}

/// Takes the connection out of the core however its task ends.
struct Registered<'a> {
    relay: &'a Relay,
    id: ConnectionId,
    notify: Arc<Notify>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.relay.with(|server, wake| server.handle_closed(self.id, clock::now(), wake));
        self.relay.lock().wakers.remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
