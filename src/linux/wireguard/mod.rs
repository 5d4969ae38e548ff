//! The WireGuard side of our link.
//!
//! The link is made and deleted by [`super::link`], by number once it is there. [`peers`] says what may become of a
//! peer: change only what exists, take single allowed IPs away, and split what is too long for one message.

mod digest;
mod peers;

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use genetlink::{GenetlinkError, GenetlinkHandle};
use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage, WireguardPeer};
use nix::errno::Errno;
use tokio::task::JoinSet;

use warren_core::plan::{DeviceStep, ObservedDevice, PeerStep, own};
use warren_core::types::{IpNet, NodePublic};

use super::netlink::{Conversation, DUMP_ATTEMPTS, cut_off, is_errno};

pub(super) use digest::Digest;

/// A generic netlink socket in the network namespace of the thread that uses it.
pub(super) struct WireguardSocket {
    conversation: Conversation<GenetlinkHandle>,
    /// Whether this kernel takes single allowed IPs away (6.16 and later), until it refuses.
    removes_single_ips: AtomicBool,
}

impl WireguardSocket {
    pub(super) fn open() -> io::Result<Self> {
        let conversation = Conversation::begin(|| {
            let (mut connection, handle, _) = genetlink::new_connection()?;
            // A dump's error travels in its last message.
            connection.set_forward_done(true);
            let mut task = JoinSet::new();
            task.spawn(connection);
            Ok((task, handle))
        });
        Ok(Self { conversation: conversation?, removes_single_ips: AtomicBool::new(true) })
    }

    /// The device and all its peers; nothing where there is no WireGuard link of our name.
    pub(super) async fn observe(&self) -> io::Result<Option<ObservedDevice>> {
        self.dump(own::LINK, ObservedDevice::default, peers::read).await
    }

    /// The mark of another WireGuard device.
    pub(super) async fn mark_of(&self, link: &str) -> io::Result<Option<u32>> {
        let device = self.dump(link, ObservedDevice::default, peers::read).await?;
        Ok(device.map(|device| device.fwmark))
    }

    /// A short digest of everything but what the kernel moves by itself: it changes when somebody changes
    /// the device.
    pub(super) async fn digest(&self) -> io::Result<Option<Digest>> {
        self.dump(own::LINK, Digest::default, |digest: &mut Digest, part: Digest| digest.append(part)).await
    }

    /// Sets our key, port or mark on the device that is there.
    pub(super) async fn configure(&self, step: &DeviceStep) -> io::Result<()> {
        let attribute = match step {
            // The kernel needs the secret itself.
            DeviceStep::SetPrivateKey(key) => WireguardAttribute::PrivateKey(*key.expose_bytes()),
            DeviceStep::SetListenPort(port) => WireguardAttribute::ListenPort(*port),
            DeviceStep::SetFwmark(mark) => WireguardAttribute::Fwmark(*mark),
        };
        self.send([change(attribute)]).await
    }

    /// Carries out a step about a peer.
    pub(super) async fn apply(&self, key: &NodePublic, step: &PeerStep) -> io::Result<()> {
        if let PeerStep::RemoveAllowedIps { allowed_ips, .. } = step {
            return self.remove_allowed_ips(key, allowed_ips).await;
        }
        self.send(peers::messages(parts(key, step))).await
    }

    /// Carries out steps about peers in few messages. Where that fails, the first ones were carried out, and nobody
    /// says how many.
    pub(super) async fn apply_all(&self, steps: &[(&NodePublic, &PeerStep)]) -> io::Result<()> {
        self.send(peers::messages(steps.iter().flat_map(|(key, step)| parts(key, step)))).await
    }

    /// Takes allowed IPs from a present peer; those that stay are never without a peer.
    async fn remove_allowed_ips(&self, key: &NodePublic, allowed_ips: &BTreeSet<IpNet>) -> io::Result<()> {
        if self.removes_single_ips.load(Ordering::Relaxed) {
            match self.send(peers::messages(peers::remove_allowed_ips(key, allowed_ips))).await {
                Err(error) if is_errno(&error, Errno::EINVAL) => {
                    self.removes_single_ips.store(false, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.send(peers::messages(peers::throw_away(allowed_ips))).await
    }

    async fn send(&self, messages: impl IntoIterator<Item = WireguardMessage>) -> io::Result<()> {
        for message in messages {
            let mut request = NetlinkMessage::from(GenlMessage::from_payload(message));
            request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
            let mut answers = self.conversation.handle()?.request(request).await.map_err(into_io)?;
            while let Some(answer) = answers.next().await {
                if let NetlinkPayload::Error(error) = answer.map_err(io::Error::other)?.payload
                    && error.code.is_some()
                {
                    return Err(error.to_io());
                }
            }
        }
        Ok(())
    }

    /// Reads the device message by message into a value that begins as `start`.
    #[expect(clippy::wildcard_enum_match_arm, reason = "of netlink's frames and the system's errors few matter here")]
    async fn dump<F, T>(&self, link: &str, start: impl Fn() -> T, read: impl Fn(&mut T, F)) -> io::Result<Option<T>>
    where
        F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + std::fmt::Debug + From<WireguardMessage>,
    {
        for _ in 0..DUMP_ATTEMPTS {
            let mut request = NetlinkMessage::from(GenlMessage::from_payload(F::from(question(link))));
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut answers = match self.conversation.handle()?.request(request).await.map_err(into_io) {
                Ok(answers) => answers,
                // The module is not loaded, so there is no such device.
                Err(error) if is_errno(&error, Errno::ENOENT) => return Ok(None),
                Err(error) => return Err(error),
            };

            let mut value = start();
            let mut interrupted = false;
            let mut is_whole = false;
            while let Some(answer) = answers.next().await {
                let answer = answer.map_err(io::Error::other)?;
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                let code = match answer.payload {
                    NetlinkPayload::InnerMessage(message) => {
                        read(&mut value, message.payload);
                        0
                    }
                    NetlinkPayload::Error(error) => error.raw_code(),
                    NetlinkPayload::Done(done) => {
                        is_whole = true;
                        done.code
                    }
                    _ => 0,
                };
                match Errno::from_raw(-code) {
                    Errno::ENODEV | Errno::EOPNOTSUPP => return Ok(None),
                    error if code < 0 => return Err(error.into()),
                    _ => {}
                }
            }
            if !is_whole {
                return Err(cut_off());
            }
            if !interrupted {
                return Ok(Some(value));
            }
        }
        Err(io::Error::other("the device kept changing while it was read"))
    }
}

/// What a step says of its peer, in the words that every kernel knows.
fn parts(key: &NodePublic, step: &PeerStep) -> Vec<WireguardPeer> {
    match step {
        PeerStep::Add(peer) => peers::add(key, peer),
        PeerStep::AddAllowedIps(allowed_ips) => peers::add_allowed_ips(key, allowed_ips),
        PeerStep::RemoveAllowedIps { allowed_ips, .. } => peers::throw_away(allowed_ips),
        PeerStep::SetEndpoint(endpoint) => peers::set_endpoint(key, *endpoint),
        PeerStep::SetKeepalive(seconds) => peers::set_keepalive(key, *seconds),
        PeerStep::Remove => peers::remove(key),
    }
}

fn question(link: &str) -> WireguardMessage {
    WireguardMessage { cmd: WireguardCmd::GetDevice, attributes: vec![WireguardAttribute::IfName(link.to_owned())] }
}

/// A change of the device that is there.
fn change(what: WireguardAttribute) -> WireguardMessage {
    let attributes = vec![WireguardAttribute::IfName(own::LINK.to_owned()), what];
    WireguardMessage { cmd: WireguardCmd::SetDevice, attributes }
}

fn into_io(error: GenetlinkError) -> io::Error {
    if let GenetlinkError::NetlinkError(error) = error { error } else { io::Error::other(error) }
}
