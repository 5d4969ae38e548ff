//! How much the coordinator takes from strangers, each bound with its reason.

use std::time::Duration;

/// Bytes of one HTTP/1 request head. The longest honest one carries a 136-character handshake.
pub(crate) const HEAD_BYTES: usize = 8 * 1024;
/// Headers in one HTTP/1 request.
pub(crate) const HEADERS: usize = 64;
/// How long a request head may take, idle time between two requests included: bounds half-open connections.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(15);
/// How long to wait after an accept that failed, as for want of file descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a TLS handshake may take.
pub(crate) const TLS_TIME: Duration = Duration::from_secs(10);
/// How long both ends may take over the WebSocket and Noise handshakes.
pub(crate) const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Body of a request outside Noise: `/verify` carries two keys and an address.
pub(crate) const PLAIN_BODY_BYTES: usize = 4 * 1024;
/// Body of a register or map request. Hostinfo with every list at its limit stays below.
pub(crate) const MACHINE_BODY_BYTES: usize = 1024 * 1024;
/// Bodies up to here are read from anyone; honest ones are a few KiB.
pub(crate) const SMALL_BODY_BYTES: usize = 16 * 1024;
/// Larger bodies that are read at once, whoever sends them, so that strangers together cannot fill memory.
pub(crate) const LARGE_BODIES: usize = 64;
/// How long a body may take to arrive.
pub(crate) const BODY_TIME: Duration = Duration::from_secs(20);
/// Body of an administration request: the largest policy, all of it escaped in JSON.
pub(crate) const ADMIN_BODY_BYTES: usize = 32 * 1024 * 1024;

/// Requests at once on one Noise connection: a map stream, an update, a follow-up and some to spare.
pub(crate) const STREAMS: u32 = 8;
/// HTTP/2 receive window per request and per connection; small, because requests are small and nodes many.
pub(crate) const RECEIVE_WINDOW: u32 = 64 * 1024;
/// HTTP/2 send buffer per request: a map is handed over piece by piece as the node reads it.
pub(crate) const SEND_BUFFER: usize = 16 * 1024;
/// HTTP/2 request headers of one request.
pub(crate) const H2_HEADER_BYTES: u32 = 8 * 1024;
/// A Noise connection without a request for this long is closed.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(120);

/// How long a connection may take to end once it was told to.
pub(crate) const FAREWELL_TIME: Duration = Duration::from_secs(2);

/// A silent map stream says that it is alive after this long, plus up to [`KEEP_ALIVE_JITTER`] so that nodes that
/// came together do not stay in step. Clients give up after 120 s, proxies in front of us after 60 s as they come (nginx).
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(40);
/// See [`KEEP_ALIVE`].
pub(crate) const KEEP_ALIVE_JITTER: Duration = Duration::from_secs(9);

/// How long a stream stays open whose node is gone and was told so, which is how often its client asks again.
pub(crate) const GOODBYE_TIME: Duration = Duration::from_secs(60);

/// Messages that wait for one node. A node that reads slower than this is cut off and asks for a full map.
pub(crate) const STREAM_QUEUE: usize = 32;
/// Commands that wait for the registry. Past it nodes are told to come again later.
pub(crate) const HUB_QUEUE: usize = 4096;
/// How long a command may wait for its place in the queue before its sender is told to come again.
pub(crate) const HUB_PATIENCE: Duration = Duration::from_secs(5);
/// What a node that was told to come again later should wait.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How long one follow-up request waits for approval before the node asks again.
pub(crate) const FOLLOWUP_TIME: Duration = Duration::from_secs(10 * 60);
