//! The connection to one region's relay, for as long as somebody wants it.
//!
//! One task: it dials, introduces itself, and reads, writes and watches the clock side by side until the connection
//! ends; then it dials again, later each time, or ends when it is not wanted any more. The home region always is,
//! another while packets pass.

use std::cell::{Cell, RefCell};
use std::net::UdpSocket;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};

use super::hub::Hub;
use crate::clock;
use crate::derp_io::{Connection, Stream};
use warren_core::derp::{Client, ClientEvent};
use warren_core::node::{PumpNews, RegionState};
use warren_core::types::{NodePublic, RegionId};
use warren_core::wire::control::{DerpNode, DerpRegion};

/// What is known of a relay that lets nobody in, or ends.
const CLOSED: &str = "the relay closed the connection; where it admits this machine no more, its log says why";
/// A region that is not our home is left when no packet passed for this long.
const IDLE: Duration = Duration::from_secs(60);
/// How long the first wait after a failure is, before chance.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest, before chance.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest wait that a relay which restarts may ask for.
const LONGEST_RESTART: Duration = Duration::from_secs(30);
/// How long packets wait for the next connection: a relay that starts anew is back by then, and older ones are worth
/// nothing to a tunnel.
const HOLD: Duration = Duration::from_secs(5);
/// A connection that held this long was a good one: the next waits begin anew.
const LASTING: Duration = Duration::from_secs(10);
/// A relay that takes nothing for this long is gone.
const WRITE: Duration = Duration::from_secs(10);
/// What is read at once.
const READ: usize = 128 << 10;
/// The longest frame that a relay may send, with its header.
const LONGEST_FRAME: usize = (1 << 20) + 5;

/// One region's connection, or the wish for it.
pub(super) struct Link {
    region: RegionId,
    /// The protocol's state while the connection is being made or up.
    client: RefCell<Option<Client>>,
    /// Something may be to be written.
    write: Notify,
    /// Whether a packet was queued since the writer was last woken.
    is_dirty: Cell<bool>,
    /// Something else than a packet is to be looked at: an order, or an earlier time-out.
    look: Notify,
    order: Cell<Order>,
    /// When the watch looks again by itself.
    looks_at: Cell<Option<Instant>>,
    used: Cell<Instant>,
    /// What the relay said of when to come back.
    restart: Cell<Option<Duration>>,
    /// The node that is connected, and our address towards it.
    node: RefCell<Option<DerpNode>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    None,
    /// Do not wait any longer before dialling again.
    Hurry,
    /// Dial anew, whatever there is.
    Redial,
}

/// Why a connection ended.
enum End {
    /// It was told to.
    Redial,
    /// Nobody uses it.
    Idle,
    /// It broke.
    Broken(String),
}

impl Link {
    pub(super) fn new(region: RegionId, now: Instant) -> Self {
        Self {
            region,
            client: RefCell::new(None),
            write: Notify::new(),
            is_dirty: Cell::new(false),
            look: Notify::new(),
            order: Cell::default(),
            looks_at: Cell::new(None),
            used: Cell::new(now),
            restart: Cell::new(None),
            node: RefCell::new(None),
        }
    }

    pub(super) const fn region(&self) -> RegionId {
        self.region
    }

    /// Shows the protocol's state, where there is any.
    pub(super) fn with_client(&self, look: impl FnOnce(&Client)) {
        if let Some(client) = self.client.borrow().as_ref() {
            look(client);
        }
    }

    /// Takes packets from here on, which wait for the connection.
    pub(super) fn prepare(&self, hub: &Hub) {
        let mut client = self.client.borrow_mut();
        if client.is_none() {
            *client =
                hub.key().map(|key| Client::new(key, rand::random(), hub.is_home(self.region), clock::now().tick));
        }
    }

    /// Whether packets flow.
    pub(super) fn is_ready(&self) -> bool {
        self.client.borrow().as_ref().is_some_and(Client::is_ready)
    }

    /// Queues a packet; [`Link::wake`] sets it going. False where there is no connection, nor one being made.
    pub(super) fn send(&self, to: &NodePublic, packet: &[u8], now: Instant) -> bool {
        self.used.set(now);
        let mut client = self.client.borrow_mut();
        let Some(client) = client.as_mut() else { return false };
        client.send(to, packet, now);
        self.is_dirty.set(true);
        true
    }

    /// Sets going what was queued.
    pub(super) fn wake(&self) {
        if self.is_dirty.replace(false) {
            self.write.notify_one();
        }
    }

    /// Says whether this region is our home.
    pub(super) fn set_home(&self, is_home: bool, now: Instant) {
        self.used.set(now);
        if let Some(client) = self.client.borrow_mut().as_mut() {
            client.set_home(is_home);
        }
        self.write.notify_one();
        self.give(Order::Hurry);
    }

    /// The region's nodes may be others. A connection to one that is still there stays.
    pub(super) fn handle_region(&self, region: &DerpRegion) {
        let stays = self.node.borrow().as_ref().is_none_or(|node| region.nodes.contains(node));
        self.give(if stays { Order::Hurry } else { Order::Redial });
    }

    /// Makes the connection anew.
    pub(super) fn redial(&self) {
        self.give(Order::Redial);
    }

    /// Addresses or routes changed: asks the relay whether it is still there.
    pub(super) fn handle_network_changed(&self, now: Instant) {
        if let Some(client) = self.client.borrow_mut().as_mut() {
            client.handle_network_changed(now);
        }
        self.write.notify_one();
        self.give(Order::Hurry);
    }

    fn give(&self, order: Order) {
        if self.order.get() != Order::Redial {
            self.order.set(order);
        }
        self.look.notify_one();
    }

    /// The task. It ends when the region is not wanted any more.
    pub(super) async fn run(self: Rc<Self>, hub: Rc<Hub>) {
        let mut failures = 0;
        // Until when packets wait, while there is no connection.
        let mut held_until = None;
        loop {
            self.order.set(Order::None);
            let begun = clock::now().tick;
            let end = self.connect_and_serve(&hub).await;
            let was_ready = self.is_ready();
            *self.node.borrow_mut() = None;
            let reason = match end {
                End::Broken(reason) => reason,
                End::Redial | End::Idle => {
                    self.let_go(&hub);
                    if matches!(end, End::Redial) && self.is_wanted(&hub) {
                        continue;
                    }
                    break;
                }
            };
            tracing::info!(region = %self.region, reason, "the connection to a relay ended");
            hub.tell(PumpNews::Region { region: self.region, state: RegionState::Failed(reason) });
            let now = clock::now().tick;
            if begun + LASTING <= now {
                failures = 0;
            }
            let wait = self.restart.take().unwrap_or_else(|| wait_after(failures));
            let wait = wait.mul_f64(0.5 + rand::random::<f64>());
            failures += 1;
            if was_ready || held_until.is_none() {
                held_until = Some(now + HOLD);
            }
            if held_until.is_some_and(|until| now + wait < until) {
                self.hold(&hub, now);
            } else {
                self.let_go(&hub);
            }
            self.pause(wait).await;
            // Who we are to a relay may have changed.
            if self.order.get() == Order::Redial {
                self.let_go(&hub);
            }
            if !self.is_wanted(&hub) {
                self.let_go(&hub);
                break;
            }
        }
        hub.tell(PumpNews::Region { region: self.region, state: RegionState::Closed });
        hub.remove_link(self.region, &self);
    }

    /// Packets wait for the next connection.
    fn hold(&self, hub: &Hub, now: Instant) {
        let mut client = self.client.borrow_mut();
        if let Some(ended) = client.as_mut() {
            let next = ended.again(rand::random(), now);
            hub.retire(ended);
            *client = Some(next);
        }
    }

    /// Nothing waits any more.
    fn let_go(&self, hub: &Hub) {
        if let Some(client) = self.client.borrow_mut().take() {
            hub.retire(&client);
        }
    }

    fn is_wanted(&self, hub: &Hub) -> bool {
        hub.key().is_some()
            && hub.region(self.region).is_some()
            && (hub.is_home(self.region) || clock::now().tick < self.used.get() + IDLE)
    }

    /// Waits, unless somebody is in a hurry.
    async fn pause(&self, wait: Duration) {
        let until = clock::now().tick + wait;
        while self.order.get() == Order::None {
            tokio::select! {
                () = sleep_until(until.into()) => return,
                () = self.look.notified() => {}
            }
        }
    }

    async fn connect_and_serve(&self, hub: &Hub) -> End {
        self.prepare(hub);
        let Some(region) = hub.region(self.region) else { return End::Redial };
        hub.tell(PumpNews::Region { region: self.region, state: RegionState::Trying });
        let connection = tokio::select! {
            dialled = hub.dialler.connect(&region) => match dialled {
                Ok(connection) => connection,
                Err(reason) => return End::Broken(reason),
            },
            end = self.ordered() => return end,
        };
        let Connection { stream, begun, node, local } = connection;
        *self.node.borrow_mut() = Some(node);
        if let Some(client) = self.client.borrow_mut().as_mut() {
            client.handle_connected(clock::now().tick);
        }
        let (reader, writer) = tokio::io::split(stream);
        tokio::select! {
            end = self.read(reader, &begun, hub) => end,
            end = self.write(writer) => end,
            end = self.watch(hub, local) => end,
        }
    }

    /// Ends when the connection that is being made is to be made anew.
    async fn ordered(&self) -> End {
        loop {
            self.look.notified().await;
            if self.order.get() == Order::Redial {
                return End::Redial;
            }
        }
    }

    async fn read(&self, mut reader: ReadHalf<Box<dyn Stream>>, begun: &[u8], hub: &Hub) -> End {
        let mut bytes = vec![0; READ.max(begun.len())];
        bytes[..begun.len()].copy_from_slice(begun);
        let mut filled = begun.len();
        loop {
            match self.handle_bytes(&bytes[..filled], hub) {
                Ok(0) if filled == bytes.len() => bytes.resize((2 * filled).min(LONGEST_FRAME), 0),
                Ok(taken) => {
                    bytes.copy_within(taken..filled, 0);
                    filled -= taken;
                }
                Err(end) => return end,
            }
            match reader.read(&mut bytes[filled..]).await {
                Ok(0) => return End::Broken(CLOSED.to_owned()),
                Ok(count) => filled += count,
                // Over TLS, one that closes without a goodbye.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return End::Broken(CLOSED.to_owned());
                }
                Err(error) => return End::Broken(format!("read: {error}")),
            }
        }
    }

    /// Takes in every frame that is whole. The number is how many bytes they were.
    fn handle_bytes(&self, bytes: &[u8], hub: &Hub) -> Result<usize, End> {
        let now = clock::now().tick;
        let mut taken = 0;
        loop {
            let frame = match self.client.borrow_mut().as_mut() {
                Some(client) => client.handle_bytes(&bytes[taken..], now),
                None => return Err(End::Redial),
            };
            match frame {
                Ok(Some((length, event))) => {
                    taken += length;
                    if let Some(event) = event {
                        self.handle_event(event, hub, now);
                    }
                }
                Ok(None) => break,
                Err(error) => return Err(End::Broken(error.to_string())),
            }
        }
        hub.flush();
        // An answer to it may wait.
        self.write.notify_one();
        Ok(taken)
    }

    fn handle_event(&self, event: ClientEvent<'_>, hub: &Hub, now: Instant) {
        let region = self.region;
        match event {
            ClientEvent::Ready => {
                tracing::info!(%region, "connected to a relay");
                hub.tell(PumpNews::Region { region, state: RegionState::Connected });
            }
            ClientEvent::Packet { from, payload } => {
                self.used.set(now);
                hub.receive(region, &from, payload, now);
            }
            ClientEvent::PeerGone { peer, .. } => hub.handle_gone(region, &peer),
            ClientEvent::Health(text) => hub.tell(PumpNews::Health { region, text: text.to_owned() }),
            ClientEvent::Restarting { reconnect_in, .. } => self.restart.set(Some(reconnect_in.min(LONGEST_RESTART))),
        }
    }

    async fn write(&self, mut writer: WriteHalf<Box<dyn Stream>>) -> End {
        let mut out = Vec::new();
        loop {
            let at = self.client.borrow_mut().as_mut().map(|client| {
                client.poll_transmit(&mut out);
                client.poll_timeout()
            });
            if self.looks_at.get() > at {
                self.look.notify_one();
            }
            if out.is_empty() {
                self.write.notified().await;
                continue;
            }
            let written = timeout(WRITE, async {
                writer.write_all(&out).await?;
                writer.flush().await
            });
            match written.await {
                Ok(Ok(())) => out.clear(),
                Ok(Err(error)) => return End::Broken(format!("write: {error}")),
                Err(_) => return End::Broken(format!("the relay took nothing for {} s", WRITE.as_secs())),
            }
        }
    }

    /// Keeps an eye on the clock and on orders.
    async fn watch(&self, hub: &Hub, local: Option<std::net::IpAddr>) -> End {
        loop {
            let now = clock::now().tick;
            let checked = match self.client.borrow_mut().as_mut() {
                Some(client) => client.handle_timeout(now).map(|()| client.poll_timeout()),
                None => return End::Redial,
            };
            let mut at = match checked {
                Ok(at) => at,
                Err(error) => return End::Broken(error.to_string()),
            };
            self.write.notify_one();
            match self.order.replace(Order::None) {
                Order::Redial => return End::Redial,
                // A network that took our address away has broken the connection, whatever is heard of it.
                Order::Hurry if local.is_some_and(|local| UdpSocket::bind((local, 0)).is_err()) => {
                    return End::Redial;
                }
                Order::Hurry | Order::None => {}
            }
            if !hub.is_home(self.region) {
                let idle = self.used.get() + IDLE;
                if idle <= now {
                    return End::Idle;
                }
                at = at.min(idle);
            }
            self.looks_at.set(Some(at));
            tokio::select! {
                () = sleep_until(at.into()) => {}
                () = self.look.notified() => {}
            }
        }
    }
}

/// Doubling waits.
fn wait_after(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.min(16)).min(LONGEST_WAIT)
}
