//! What the coordinator does for whoever asks, whatever face they came by.
//!
//! [`Service::administer`] takes an actor and a request and gives the answer; what changes is journalled under the actor's
//! name by the registry, which also looks at their rights. The rest is for machines and relays. A face knows this module
//! and nothing behind it.

mod devices;
mod network;
mod policy;
mod refused;
mod relay_map;
mod server_key;
mod sign_in;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::hub::Hub;
use crate::store::StoreError;
use crate::{clock, hub};
use warren_core::registry::{Actor, Area, Command, MapRefusal, PingId};
use warren_core::types::{MachinePublic, NodePublic};
use warren_core::wire::admin::{
    FormerKeyView, JournalQuery, NetworkRequest, Reply, Request, ServerKeyRequest, ServerKeyView, StatusView,
};
use warren_core::wire::control::{MapRequest, RegisterRequest};
use warren_core::wire::noise::{INITIATION_LEN, NoiseError, ServerHandshake};

pub(crate) use hub::{Busy, Health, Registration, Subscription};
pub(crate) use refused::{Refused, RefusedKind, ServiceResult};
pub(crate) use relay_map::{EmbeddedRelay, RelayMap};
pub(crate) use server_key::{FORMER_KEYS, KeyUse, ServerKeys};
pub(crate) use sign_in::{
    Answer, Begun, CALLBACK, Described, Finished, Kind, SignIn, SignInError, Visit, Visitor, WaitingMachine,
};

/// The service; clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Service {
    hub: Hub,
    /// Who we are to the nodes.
    keys: Arc<ServerKeys>,
    /// Where the relays are.
    relays: Arc<RelayMap>,
    /// By whom people sign in.
    sign_in: Arc<SignIn>,
}

impl Service {
    pub(crate) const fn new(hub: Hub, keys: Arc<ServerKeys>, relays: Arc<RelayMap>, sign_in: Arc<SignIn>) -> Self {
        Self { hub, keys, relays, sign_in }
    }

    /// Carries out a request on somebody's behalf.
    pub(crate) async fn administer(&self, actor: &Actor, request: Request) -> ServiceResult {
        match request {
            Request::Status => self.status(actor).await,
            Request::ServerKey(request) => self.change_key(actor, request).await,
            Request::Audit(query) => self.audit(actor, query).await,
            Request::Network(request) => self.of_network(actor, request).await,
        }
    }

    async fn of_network(&self, actor: &Actor, request: NetworkRequest) -> ServiceResult {
        let mut reply = network::execute(&self.hub, actor, request).await?;
        if let Reply::NewKey(new) = &mut reply {
            new.coordinator_key = Some(self.keys.fingerprint());
        }
        reply.notes().iter().for_each(|note| tracing::info!("{note}"));
        Ok(reply)
    }

    async fn status(&self, actor: &Actor) -> ServiceResult {
        may(actor.rights.may_look(Area::Server), "look at the server")?;
        let Health { nodes, fault, mut warnings, held_back: _ } = self.hub.health().await?;
        warnings.extend(self.sign_in.faults());
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let server_key = self.server_key(&self.machines().await?);
        Ok(Reply::Status(StatusView { version, nodes, fault, warnings, server_key }))
    }

    async fn audit(&self, actor: &Actor, query: JournalQuery) -> ServiceResult {
        may(actor.rights.may_look(Area::Journal), "look at the journal")?;
        let read = self.hub.journal(query).await?;
        Ok(Reply::Audit(read.map_err(|error| Refused::failed(error.to_string()))?))
    }

    async fn change_key(&self, actor: &Actor, request: ServerKeyRequest) -> ServiceResult {
        may(actor.rights.may_change(Area::Server), "change the server's key")?;
        let machines = self.machines().await?;
        let (command, changed) = match request {
            ServerKeyRequest::Rotate => (Command::RotateServerKey, self.keys.rotate()),
            ServerKeyRequest::Retire { key, force } => {
                (Command::RetireServerKey, self.keys.retire(key, &machines, force))
            }
        };
        let (before, after) = changed.map_err(Refused::conflict)?;
        tracing::info!(by = %actor.who, "the server's keys were changed");
        let noted =
            self.hub.command(actor.clone(), move |commands| commands.change_server_keys(command, &before, &after));
        noted.await.map_err(|error| {
            Refused::failed(format!("the server's keys were changed, but that is not in the journal: {error}"))
        })?;
        Ok(Reply::ServerKey(self.server_key(&machines)))
    }

    /// The names of the nodes, by machine.
    async fn machines(&self) -> Result<BTreeMap<MachinePublic, String>, Busy> {
        let nodes = self.hub.look(|state| {
            let nodes = state.nodes().map(|node| node.record);
            nodes.map(|record| (record.machine, record.label.to_string())).collect()
        });
        nodes.await
    }

    /// The server's keys, and how many of these nodes, by machine, need the former ones.
    fn server_key(&self, machines: &BTreeMap<MachinePublic, String>) -> ServerKeyView {
        let view = |former: server_key::FormerKey| FormerKeyView {
            key: former.key,
            used: former.used,
            connected: former.connected,
            away: former.away,
        };
        let former = self.keys.former(machines).into_iter().map(view).collect();
        ServerKeyView { key: self.keys.fingerprint(), public_key: self.keys.public(), former }
    }

    /// How all is.
    pub(crate) async fn health(&self) -> Result<Health, Busy> {
        self.hub.health().await
    }

    /// Copies the database into this new file.
    pub(crate) async fn copy(&self, to: PathBuf) -> Result<Result<(), StoreError>, Busy> {
        self.hub.copy(to).await
    }

    // ---- machines ----

    /// The key that this server goes by.
    pub(crate) fn public_key(&self) -> MachinePublic {
        self.keys.public()
    }

    /// Reads a machine's first message.
    pub(crate) fn handshake(&self, initiation: &[u8; INITIATION_LEN]) -> Result<(ServerHandshake, KeyUse), NoiseError> {
        self.keys.handshake(initiation, clock::now())
    }

    /// A machine wants to join, renew or leave.
    pub(crate) async fn register(
        &self,
        machine: MachinePublic,
        site: IpAddr,
        request: RegisterRequest,
    ) -> Result<Registration, Busy> {
        self.hub.register(machine, site, request).await
    }

    /// A node says what it is and where it is.
    pub(crate) async fn update(
        &self,
        machine: MachinePublic,
        request: MapRequest,
    ) -> Result<Result<(), MapRefusal>, Busy> {
        self.hub.update(machine, request).await
    }

    /// A node that reaches us by this URL wants its map and every change of it.
    pub(crate) async fn open(
        &self,
        machine: MachinePublic,
        request: MapRequest,
        url: &str,
    ) -> Result<Result<Subscription, MapRefusal>, Busy> {
        self.hub.open(machine, request, self.relays.seen_from(url)).await
    }

    /// A machine answered that it is there.
    pub(crate) fn pong(&self, machine: MachinePublic, ping: PingId) {
        self.hub.pong(machine, ping);
    }

    // ---- relays ----

    /// Whether a key belongs to a node that may use the network.
    pub(crate) async fn knows(&self, key: NodePublic) -> Result<bool, Busy> {
        self.hub.knows(key).await
    }
}

fn may(may: bool, what: &str) -> Result<(), Refused> {
    let refused = || Refused { kind: RefusedKind::Forbidden, message: format!("you may not {what}") };
    may.then_some(()).ok_or_else(refused)
}
