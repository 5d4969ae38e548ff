//! One rtnetlink conversation: requests that are acknowledged, and whole dumps.
//!
//! The kernel checks our requests strictly, so that a filter it does not know is an error and not the
//! whole table. A dump that something changed while it ran says so, and is taken again.

use std::io;
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use tokio::task::JoinSet;

/// How often a dump is begun again before its reader is told that the kernel does not hold still. Each
/// round takes milliseconds; a host that changes in every one of them deserves an error, not a hot loop.
pub(super) const DUMP_ATTEMPTS: usize = 8;

/// What the first attribute of a kind holds: `first!(message.attributes, RouteAttribute::Oif)`.
macro_rules! first {
    ($attributes:expr, $kind:path) => {
        $attributes.iter().find_map(|attribute| if let $kind(value) = attribute { Some(value) } else { None })
    };
}
pub(super) use first;

/// An rtnetlink socket in the network namespace of the thread that uses it.
pub(super) struct RouteSocket {
    conversation: Conversation<rtnetlink::Handle>,
}

/// A socket's task, and the handle by which it is asked. The libraries' tasks end for good at the first error in
/// reading, as when the kernel has no room for an answer, and then refuse every request: a new one is begun.
pub(super) struct Conversation<H> {
    open: fn() -> io::Result<(JoinSet<()>, H)>,
    current: Mutex<(JoinSet<()>, H)>,
}

impl<H: Clone> Conversation<H> {
    pub(super) fn begin(open: fn() -> io::Result<(JoinSet<()>, H)>) -> io::Result<Self> {
        Ok(Self { open, current: Mutex::new(open()?) })
    }

    /// The handle of a task that runs.
    pub(super) fn handle(&self) -> io::Result<H> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0.try_join_next().is_some() || current.0.is_empty() {
            tracing::warn!("a netlink socket failed and is opened anew");
            *current = (self.open)()?;
        }
        Ok(current.1.clone())
    }

    #[cfg(test)]
    pub(super) async fn fail(&self) {
        let mut tasks = std::mem::take(&mut self.current.lock().unwrap().0);
        tasks.shutdown().await;
    }
}

impl RouteSocket {
    pub(super) fn open() -> io::Result<Self> {
        let conversation = Conversation::begin(|| {
            let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
            // A dump's error travels in its last message.
            connection.set_forward_done(true);
            let mut task = JoinSet::new();
            task.spawn(connection);
            Ok((task, handle))
        });
        Ok(Self { conversation: conversation? })
    }

    /// Sends a request and waits for the kernel's word on it.
    pub(super) async fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, NLM_F_ACK | flags).await.map(drop)
    }

    /// Sends a request that is answered by the object itself.
    pub(super) async fn get(&self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.request(message, 0).await?.0.pop())
    }

    /// Everything that matches.
    pub(super) async fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            let (found, interrupted) = self.request(message.clone(), NLM_F_DUMP).await?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(io::Error::other("the kernel's tables kept changing while they were read"))
    }

    /// Hands over each thing that matches as it comes, so that however many there are, they need no room. Those that a
    /// change moved meanwhile may come twice, or not at all.
    pub(super) async fn each(
        &self,
        message: RouteNetlinkMessage,
        take: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.exchange(message, NLM_F_DUMP, take).await.map(drop)
    }

    async fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut found = Vec::new();
        let interrupted = self.exchange(message, flags, |message| found.push(message)).await?;
        Ok((found, interrupted))
    }

    /// Says whether something changed meanwhile.
    #[expect(clippy::wildcard_enum_match_arm, reason = "what else netlink may put around a message says nothing here")]
    async fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<bool> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.conversation.handle()?.request(request).map_err(io::Error::other)?;

        let mut interrupted = false;
        // A dump without its last message was cut off, as where the socket failed: it is not all that there is. The two
        // bits of a dump mean other things in a change.
        let mut is_whole = flags & NLM_F_DUMP != NLM_F_DUMP;
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => take(message),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(done) if done.code < 0 => return Err(io::Error::from_raw_os_error(-done.code)),
                NetlinkPayload::Done(_) => is_whole = true,
                NetlinkPayload::Overrun(_) => interrupted = true,
                _ => {}
            }
        }
        if is_whole { Ok(interrupted) } else { Err(cut_off()) }
    }
}

/// The error of a dump whose end did not come.
pub(super) fn cut_off() -> io::Error {
    io::Error::other("the kernel's answer was cut off")
}

/// Whether the kernel answered with this error number.
pub(super) fn is_errno(error: &io::Error, errno: nix::errno::Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// Takes "it is so already" for success.
pub(super) fn tolerate(result: io::Result<()>, errnos: &[nix::errno::Errno]) -> io::Result<()> {
    match result {
        Err(error) if errnos.iter().any(|errno| is_errno(&error, *errno)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_failed_is_opened_anew() {
        let socket = RouteSocket::open().unwrap();
        for _ in 0..2 {
            let links = socket.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await.unwrap();
            assert!(!links.is_empty());
            socket.conversation.fail().await;
        }
    }
}
