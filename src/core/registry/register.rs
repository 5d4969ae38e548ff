//! Joining, re-joining and leaving.
//!
//! A *machine* proves who it is by its machine key, in the handshake. What it may do here follows from
//! what it brings: a node key that we know and that is still good; a pre-authentication key; or nothing,
//! so that a person must approve it. A machine has one node for each user, and keeps it, with its
//! addresses, whenever it logs in again for that user, whatever its node key is by then. What else it keeps
//! is in the table of `rights`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::cleanup::gone;
use super::commands::{Command, Commands, Decision};
use super::config::limit;
use super::names;
use super::presence::add;
use super::record::{Attributes, Change, KeyId, KeyRecord, NodeRecord, NodeStatus, Pending, Tag, UserRecord};
use super::refusal::Refusal;
use super::state::State;
use super::{broadcast, rights, secret};
use crate::types::{MachinePublic, NodePublic, PendingCode, StableNodeId, Ticket, Timestamp, UserId, UserStatus};
use crate::wire::control::{RegisterRequest, RegisterResponse};

/// How long a machine waits for approval: time to find an administrator.
const PENDING_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// How long a machine that was turned away is refused: time for its user to read why, and not to be asked about at once.
const REJECTION: Duration = Duration::from_secs(10 * 60);
/// When to try again while too many machines wait.
const BUSY: Duration = Duration::from_secs(60);

/// What to do with a registration.
#[derive(Clone, Debug)]
pub enum Registered {
    /// Answer this, whether it is good news or not.
    Answer(RegisterResponse),
    /// Hold the request until this code is settled, then ask again; when holding takes too long, answer
    /// `meanwhile`, and the client will come back.
    Wait {
        code: PendingCode,
        /// The answer for the time being.
        meanwhile: RegisterResponse,
    },
    /// Too many machines wait: answer 429 with this delay.
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
}

/// A machine that may join: who, as what, by whose leave.
pub(super) struct Admission<'a> {
    pub(super) machine: MachinePublic,
    pub(super) node_key: NodePublic,
    pub(super) user: UserId,
    pub(super) tags: &'a [Tag],
    pub(super) ephemeral: bool,
    pub(super) admitted_by: Option<KeyId>,
    pub(super) status: NodeStatus,
}

impl Commands<'_> {
    /// Decides a registration. `entropy` is drawn by the caller for this call.
    ///
    /// Where the actor is known to come from a site (an IPv4 address or an IPv6 /64), of those that wait for approval there
    /// may be few; from loopback, behind a proxy, anybody may come.
    pub fn register(
        &self,
        machine: MachinePublic,
        request: &RegisterRequest,
        entropy: [u8; 32],
    ) -> Decision<Registered> {
        self.try_register(machine, request, entropy).unwrap_or_else(|refusal| {
            let error = refusal.to_string();
            self.answer(Registered::Answer(RegisterResponse { error, ..RegisterResponse::default() }))
        })
    }

    fn answer(&self, registered: Registered) -> Decision<Registered> {
        self.unchanged(Command::Register, registered)
    }

    /// Where the machine is, as far as anybody knows.
    fn site(&self) -> IpAddr {
        self.actor().from.unwrap_or(IpAddr::V6(Ipv6Addr::LOCALHOST))
    }

    /// Lets a waiting machine in, as a node of `user` or of `tags`.
    pub fn approve(
        &self,
        code: &PendingCode,
        user: UserId,
        tags: &[Tag],
        entropy: [u8; 32],
    ) -> Result<Decision<Arc<NodeRecord>>, Refusal> {
        self.may(Command::Approve)?;
        let pending = self.waiting(code)?;
        self.user(user)?;
        let admission = Admission {
            machine: pending.machine,
            node_key: pending.key,
            user,
            tags,
            ephemeral: false,
            admitted_by: None,
            status: pending.status.clone(),
        };
        let (record, mut changes) = self.admit(admission, entropy)?;
        changes.push(Change::PendingGone(code.clone()));
        Ok(self.decided(Command::Approve, record, changes))
    }

    /// Turns a waiting machine away. It is told, and refused for some minutes if it asks again without a key.
    pub fn reject(&self, code: &PendingCode) -> Result<Decision<Pending>, Refusal> {
        self.may(Command::Reject)?;
        let pending = self.waiting(code)?.clone();
        let rejected = Change::Rejected(code.clone(), add(self.now, REJECTION));
        Ok(self.decided(Command::Reject, pending, vec![rejected]))
    }

    fn waiting(&self, code: &PendingCode) -> Result<&Pending, Refusal> {
        self.pending(code)
            .ok_or_else(|| Refusal::not_found(format!("no machine waits under the code `{code}`; codes last an hour")))
    }

    fn try_register(
        &self,
        machine: MachinePublic,
        request: &RegisterRequest,
        entropy: [u8; 32],
    ) -> Result<Decision<Registered>, Refusal> {
        State::check_version(request.version)?;
        if request.node_key.is_zero() {
            return Err(Refusal::invalid("the request names no node key"));
        }
        let known = self.node_by_key(&request.node_key).map(|node| node.record);
        if known.is_some_and(|record| record.machine != machine || record.is_device()) {
            return Err(Refusal::conflict("this node key belongs to another machine"));
        }
        if let Some(expiry) = request.expiry {
            return self.set_expiry(known, expiry);
        }
        if request.rotation && known.is_none() {
            return self.rotate(machine, request);
        }
        match (&request.auth, known) {
            // A client that restarts shows the key it joined with, which may be used up by then.
            (_, Some(record)) if !self.has_ended(record, self.now) => Ok(self.answer(self.welcome(record))),
            (Some(auth), _) if !auth.auth_key.is_empty() => {
                self.register_with_key(machine, request, &auth.auth_key, entropy)
            }
            // The client makes a new node key, and asks again with that.
            (_, Some(record)) => Ok(self.answer(self.welcome(record))),
            (_, None) if self.directory.waiting().rejected().contains_key(&machine) => Err(Refusal::conflict(
                "an administrator of this network refused to let this machine in; ask them before you try again",
            )),
            (_, None) => Ok(self.wait(machine, request, entropy)),
        }
    }

    /// Log-out, or an owner who wants the key to end sooner.
    fn set_expiry(&self, known: Option<&Arc<NodeRecord>>, expiry: Timestamp) -> Result<Decision<Registered>, Refusal> {
        let now = self.now;
        let Some(record) = known else {
            let answer = RegisterResponse { node_key_expired: true, ..RegisterResponse::default() };
            return Ok(self.answer(Registered::Answer(answer)));
        };
        let is_logout = expiry <= now;
        let mut next = record.as_ref().clone();
        if is_logout {
            // Whose key somebody else ended does not make that its own wish by saying so afterwards.
            next.logged_out |= !record.is_expired(now);
            // An earlier end stays: logging out twice is logging out once.
            next.key_expiry = Some(record.key_expiry.map_or(now, |old| old.min(now)));
        } else if record.key_expiry.is_some_and(|old| old < expiry) {
            return Err(Refusal::invalid("a node cannot extend the life of its own key"));
        } else {
            next.key_expiry = Some(expiry);
        }
        let reply = self.welcome(&next);
        let changes = match is_logout && record.ephemeral {
            true => gone(record, now).to_vec(),
            false if next == **record => Vec::new(),
            false => vec![Change::of_node(record, &next)],
        };
        Ok(self.decided(Command::LogOut, reply, changes))
    }

    /// A machine that is in changes its key. Who it is and until when stays as it was: how long somebody who signed in
    /// is trusted is not the machine's to say.
    fn rotate(&self, machine: MachinePublic, request: &RegisterRequest) -> Result<Decision<Registered>, Refusal> {
        let known = self.node_by_key(&request.old_node_key).map(|node| node.record);
        let record = known
            .filter(|record| record.machine == machine)
            .ok_or_else(|| Refusal::not_found("this machine has no node with the key that it wants to change"))?;
        if self.has_ended(record, self.now) {
            return Err(Refusal::forbidden("the node's key has ended: it takes a new sign-in to have another one"));
        }
        let next = NodeRecord { key: request.node_key, ..record.as_ref().clone() };
        let change = Change::of_node(record, &next);
        Ok(self.decided(Command::RotateNodeKey, self.welcome(&next), vec![change]))
    }

    fn register_with_key(
        &self,
        machine: MachinePublic,
        request: &RegisterRequest,
        text: &str,
        entropy: [u8; 32],
    ) -> Result<Decision<Registered>, Refusal> {
        let key = self.valid_key(text)?;
        let info = request.hostinfo.as_ref();
        let tags = self.tags_of(key, info.map(|info| info.request_tags.as_slice()).unwrap_or_default())?;
        if let Some(record) = self.node_of(machine, key.user, &tags) {
            rights::readmits(key, record, self.now)?;
        }
        let admission = Admission {
            machine,
            node_key: request.node_key,
            user: key.user,
            tags: &tags,
            ephemeral: key.ephemeral,
            admitted_by: Some(key.id),
            status: NodeStatus::at_registration(request.version, info),
        };
        let (record, mut changes) = self.admit(admission, entropy)?;
        changes.push(Change::KeyUsed(key.id, self.now));
        // It need not wait any more, if it did.
        let waiting = self.pending_list().filter(|pending| pending.machine == machine);
        changes.extend(waiting.map(|pending| Change::PendingGone(pending.code.clone())));
        Ok(self.decided(Command::Register, self.welcome(&record), changes))
    }

    /// The tags of a node that a key admits: the key's, and those it asks for that it may have.
    fn tags_of(&self, key: &KeyRecord, requested: &[String]) -> Result<Vec<Tag>, Refusal> {
        let mut tags = key.tags.clone();
        let given: Vec<String> = key.tags.iter().map(|tag| tag.as_str().to_owned()).collect();
        for tag in requested {
            let tag: Tag = tag.parse()?;
            if tags.contains(&tag) {
                continue;
            }
            let Some(policy) = self.compiled() else {
                return Err(Refusal::invalid(format!("this pre-authentication key does not give the tag `{tag}`")));
            };
            if !policy.may_tag(key.user, &given, tag.as_str()) {
                let owner = match (key.tags.as_slice(), self.directory.user(key.user)) {
                    ([], Some(user)) => format!("the user `{}` is", user.name),
                    _ => "the tags of this pre-authentication key are".to_owned(),
                };
                return Err(Refusal::invalid(format!(
                    "this node may not have the tag `{tag}`: {owner} not among its owners in the policy's `tagOwners`"
                )));
            }
            tags.push(tag);
        }
        limit::TAGS.check(tags.len())?;
        tags.sort();
        tags.dedup();
        Ok(tags)
    }

    /// The key that a text is, if it may admit a node. A wrong secret and a wrong number look the same.
    fn valid_key(&self, text: &str) -> Result<&KeyRecord, Refusal> {
        let unknown = || Refusal::not_found("this pre-authentication key is not known here");
        let (id, hash) = secret::parse(text).ok_or_else(unknown)?;
        let key = self.directory.key(id).filter(|key| secret::matches(&hash, &key.secret_hash)).ok_or_else(unknown)?;
        if key.revoked.is_some() {
            return Err(Refusal::conflict("this pre-authentication key was revoked"));
        }
        self.active_user(key.user)?;
        if key.expires.is_some_and(|expires| expires <= self.now) {
            return Err(Refusal::conflict("this pre-authentication key has expired"));
        }
        if key.used.is_some() && !key.reusable {
            return Err(Refusal::conflict("this pre-authentication key admits one node, and was used already"));
        }
        Ok(key)
    }

    /// Makes the machine's node for this user, or renews it.
    pub(super) fn admit(
        &self,
        admission: Admission<'_>,
        entropy: [u8; 32],
    ) -> Result<(Arc<NodeRecord>, Vec<Change>), Refusal> {
        self.active_user(admission.user)?;
        let key_expiry = self.usual_expiry(Some(admission.user), admission.tags);
        if let Some(other) = self.node_by_key(&admission.node_key).map(|node| node.record)
            && (other.machine != admission.machine
                || other.is_device()
                || other.user.is_some_and(|user| user != admission.user))
        {
            return Err(Refusal::conflict("this node key belongs to a node of another user; log out first"));
        }
        if let Some(record) = self.node_of(admission.machine, admission.user, admission.tags) {
            let mut next = record.as_ref().clone();
            (next.key, next.user) = (admission.node_key, Some(admission.user));
            (next.key_expiry, next.logged_out) = (key_expiry, false);
            if rights::changes_hands(&record.tags, admission.tags) {
                next.approved_routes.clear();
            }
            next.tags = admission.tags.to_vec();
            next.ephemeral = admission.ephemeral;
            next.admitted_by = admission.admitted_by;
            let change = Change::of_node(record, &next);
            next.version += 1;
            return Ok((Arc::new(next), vec![change]));
        }
        self.make_node(admission, key_expiry, entropy)
    }

    fn make_node(
        &self,
        admission: Admission<'_>,
        key_expiry: Option<Timestamp>,
        entropy: [u8; 32],
    ) -> Result<(Arc<NodeRecord>, Vec<Change>), Refusal> {
        limit::NODES.check(self.nodes().len() + 1)?;
        let mut counters = self.directory.counters();
        let (host, ipv4, ipv6) =
            self.directory.next_address().ok_or_else(|| Refusal::full("the overlay has no address left"))?;
        counters.host = host;
        counters.node += 1;
        let hostname = hostname_of(&admission.status);
        let wanted = names::wanted(&hostname).ok_or_else(|| Refusal::invalid("the machine has no name"))?;
        let stable = data_encoding::BASE32_NOPAD.encode(&entropy[..10]);
        let record = Arc::new(NodeRecord {
            id: crate::types::NodeId(counters.node),
            stable_id: StableNodeId(format!("n{stable}")),
            user: Some(admission.user),
            machine: admission.machine,
            key: admission.node_key,
            key_expiry,
            expiry_disabled: false,
            logged_out: false,
            ipv4,
            ipv6,
            label: names::unique(&wanted, |label| self.directory.node_named(label).is_some()),
            label_fixed: false,
            tags: admission.tags.to_vec(),
            ephemeral: admission.ephemeral,
            created: self.now,
            last_seen: None,
            admitted_by: admission.admitted_by,
            approved: true,
            attributes: Attributes::new(),
            approved_routes: Vec::new(),
            gateway: None,
            version: 0,
            status: admission.status,
        });
        let changes = vec![Change::Counters(counters), Change::Node(Arc::clone(&record))];
        Ok((record, changes))
    }

    /// Puts a machine among those that wait, or finds it there.
    fn wait(&self, machine: MachinePublic, request: &RegisterRequest, entropy: [u8; 32]) -> Decision<Registered> {
        let site = self.site();
        let earlier = self.pending_list().find(|pending| pending.machine == machine);
        if let Some(pending) = earlier.filter(|pending| pending.key == request.node_key) {
            let (code, meanwhile) = (pending.code.clone(), self.send_to_approval(&pending.ticket));
            return self.answer(match request.followup.is_empty() {
                true => Registered::Answer(meanwhile),
                false => Registered::Wait { code, meanwhile },
            });
        }
        let tickets = entropy.chunks_exact(16).filter_map(|bytes| bytes.try_into().ok()).map(Ticket::from_random);
        let mut free = tickets.filter(|ticket| self.pending(&ticket.code()).is_none());
        let of_site = self.pending_list().filter(|pending| pending.site == site).count();
        let has_share = site.is_loopback() || earlier.is_some() || limit::PENDING_OF_SITE.check(of_site + 1).is_ok();
        let (true, Some(ticket)) = (has_share, free.next()) else {
            return self.answer(Registered::Busy { retry_after: BUSY });
        };
        let is_full = earlier.is_none() && limit::PENDING.check(self.pending_list().len() + 1).is_err();
        let displaced = is_full.then(|| self.longest_waiting_where_most_wait()).flatten();
        let status = NodeStatus::at_registration(request.version, request.hostinfo.as_ref());
        let info = request.hostinfo.clone().unwrap_or_default();
        let reply = Registered::Answer(self.send_to_approval(&ticket));
        let pending = Pending {
            code: ticket.code(),
            ticket,
            machine,
            key: request.node_key,
            hostname: shorten(info.hostname),
            os: shorten(info.os),
            requested_tags: info.request_tags.into_iter().take(limit::TAGS.most).map(shorten).collect(),
            status,
            since: self.now,
            expires: add(self.now, PENDING_LIFETIME),
            site,
        };
        // One place for each machine, so that a client that keeps making keys does not fill the list.
        let gone = [earlier, displaced].into_iter().flatten();
        let gone = gone.map(|gone| Change::PendingGone(gone.code.clone()));
        self.decided(Command::Register, reply, gone.chain([Change::Pending(Box::new(pending))]).collect())
    }

    /// Whoever has waited longest at the site where most wait: strangers who fill the list push out their own.
    fn longest_waiting_where_most_wait(&self) -> Option<&Pending> {
        let mut sites: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for pending in self.pending_list() {
            *sites.entry(pending.site).or_default() += 1;
        }
        let most = sites.values().copied().max()?;
        let crowded = self.pending_list().filter(|pending| sites.get(&pending.site) == Some(&most));
        crowded.min_by_key(|pending| pending.expires)
    }

    fn send_to_approval(&self, ticket: &Ticket) -> RegisterResponse {
        let auth_url = format!("{}{}", self.config.server_url, ticket.path());
        RegisterResponse { auth_url, ..RegisterResponse::default() }
    }

    fn welcome(&self, record: &NodeRecord) -> Registered {
        let (user, login) = broadcast::login(record.owner(), record.user.and_then(|user| self.directory.user(user)));
        Registered::Answer(RegisterResponse {
            user,
            login,
            node_key_expired: self.has_ended(record, self.now),
            machine_authorized: true,
            ..RegisterResponse::default()
        })
    }

    /// The machine's node of a user; or, for a node with tags, the one that was left when its user went.
    fn node_of(&self, machine: MachinePublic, user: UserId, tags: &[Tag]) -> Option<&Arc<NodeRecord>> {
        let left = || self.nodes_of_machine(machine).find(|record| record.user.is_none() && !tags.is_empty());
        self.nodes_of_machine(machine).find(|record| record.user == Some(user)).or_else(left)
    }
}

impl State {
    /// The nodes of a machine: one for each user. Devices that speak nothing but WireGuard are no machine's.
    pub fn nodes_of_machine(&self, machine: MachinePublic) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.directory.nodes_of_machine(machine).filter(|record| !record.is_device())
    }

    /// A user who is not suspended, and whom somebody approved.
    pub(super) fn active_user(&self, id: UserId) -> Result<&UserRecord, Refusal> {
        let user = self.user(id)?;
        match user.status {
            UserStatus::Active => Ok(user),
            UserStatus::Suspended => Err(Refusal::forbidden(format!(
                "the user `{}` is suspended in this network; ask its administrator",
                user.name
            ))),
            UserStatus::NeedsApproval => {
                Err(Refusal::forbidden(format!("the user `{}` waits for somebody's approval", user.name)))
            }
        }
    }

    pub(super) fn user(&self, id: UserId) -> Result<&UserRecord, Refusal> {
        self.directory.user(id).ok_or_else(|| Refusal::not_found(format!("there is no user {id}")))
    }
}

fn hostname_of(status: &NodeStatus) -> String {
    serde_json::from_str(&status.hostinfo).map(|info: crate::wire::control::Hostinfo| info.hostname).unwrap_or_default()
}

/// What a stranger says of itself, cut to what a list can show.
fn shorten(text: String) -> String {
    const SHOWN: usize = 255;
    if text.len() <= SHOWN { text } else { text.chars().take(SHOWN).collect() }
}
