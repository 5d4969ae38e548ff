//! Warren: a mesh VPN for Linux that runs on the kernel's own WireGuard. This is the map of its tree.
//!
//! Every hard thing is a value, a pure function and a thin hand. What should be true of this host is
//! one value, `plan::Desired`, a function of what is known; what is true is another, `plan::Observed`,
//! read back from the kernel; the difference is a `plan::Plan`, an ordered list of printable steps. A
//! thin hand applies steps and looks again.
//!
//! ```text
//! coordinator ──> agent ──bytes──> control::Session ──Delta──> Netmap ──┐
//! warren (CLI) ──> agent::local_api ─────────────────────────Prefs──────┤
//! network ──> agent ──> path (which way to reach each peer) ──Paths─────┤
//!                                                                       v
//! linux::observe() = Observed ──────────────────────┐        plan::desired() = Desired
//!                                                   v                   v
//!              linux::apply(step) <── plan::Reconciler <── plan::diff(desired, observed) = Plan
//! ```
//!
//! `core::node` holds all of these for one node, as one value that is simulated as it is; `agent::run` is its hand.
//!
//! | member | what | programs |
//! | --- | --- | --- |
//! | `src/core` | decides: no clock, no randomness, no sockets, no files, no `async`; time and chance come in as arguments | |
//! | `src/linux` | the only way to the kernel, and the only `unsafe` | |
//! | `src/shell` | what more than one program acts with: sockets, TLS, connections, secret files, the log | |
//! | `src/relay` | sockets and tasks around the relay protocol and STUN; also embedded in the coordinator | `warren-relay` |
//! | `src/agent` | a node: run loop, pipes, local API, command line | `warrend`, `warren` |
//! | `src/coordinator` | HTTP, Noise and map streams, the store, administration | `warren-coordinator` |
//!
//! The manifests say which member may name which, so that purity and layers are the compiler's business; between the
//! modules of `core` it is `tests/tidy.rs`'s. A member declares the tests that drive it alone, and cargo builds its
//! programs for them; this package declares those that join several. All of them lie in `tests`.
//!
//! # From a `MapResponse` to a netlink message
//!
//! The coordinator lets a peer in. This is where that news goes in each agent, file by file, each of them once;
//! `tests/tidy.rs` holds that files and functions are there. Whoever is called returns, so the next file may be called
//! from one further up. The loop proceeds three times on the way: the wish is made; the time to look has come
//! (`Engine::handle_timeout`), so `KernelAction::Observe` goes out by the rows from `node/kernel.rs` on and comes back
//! as `Engine::handle_observed`; then the steps go out by the same rows.
//!
//! | file | what becomes of it there |
//! | --- | --- |
//! | `src/agent/control_io/mod.rs` | `follow`: bytes of the long answer to `/machine/map` become `Received::Bytes` |
//! | `src/agent/run.rs` | `run`: the loop takes them in, says what time it is, and on its next turn calls `Engine::proceed` |
//! | `src/core/node/mod.rs` | `Engine::handle_received`: given to the session with the coordinator |
//! | `src/core/control/session.rs` | `Session::handle_received`, `poll_event`: by the kind of news; events wait here |
//! | `src/core/control/session/follow.rs` | `handle_bytes`, `handle_message`: what the next two files read becomes a `SessionEvent`, `FullMap` or `Delta` |
//! | `src/core/wire/map_stream.rs` | `MapStreamDecoder::next`: the frame, unpacked |
//! | `src/core/wire/control/map.rs` | `MapResponse::read`: the JSON, with limits |
//! | `src/core/node/proceed.rs` | `Engine::proceed`: called by `run`; events, peers, wish, kernel, in this order |
//! | `src/core/node/login.rs` | `handle_session_event`, `handle_map`: the message goes into the map |
//! | `src/core/netmap/mod.rs` | `Netmap::apply`, `replace`: a delta merged, a full map taken; judged anew where it was touched |
//! | `src/core/netmap/merged.rs` | `MergedMap::apply`: as it was told, right or wrong |
//! | `src/core/netmap/peers.rs` | `Peers::update`: which peer has which key and prefix |
//! | `src/core/netmap/claims.rs` | `SelfNode::judge`: what one node may ask for at all |
//! | `src/core/node/paths.rs` | `renew_peers`, `paths`: book and pump hear of the peer first; its endpoint for the wish |
//! | `src/core/node/wish.rs` | `renew_wish`, `wish_for`: map, preferences, paths and host become the wish, for the reconciler |
//! | `src/core/plan/planner.rs` | `Planner::desired`: anew, or only what changed |
//! | `src/core/plan/from_map.rs` | `accepted_peers`, `wireguard_peer`, `routes`: what of the map this host takes |
//! | `src/core/plan/desired.rs` | `Desired`: all that should be in the kernel, the peer's keys and prefixes with it |
//! | `src/core/plan/reconciler.rs` | `handle_desired`, `handle_observed`, `poll_action`: kept until the kernel was looked at, compared, given out in runs |
//! | `src/core/plan/diff.rs` | `diff`: the `Plan`, safe at every prefix |
//! | `src/core/plan/step.rs` | `Plan`: one step of it is `Step::Peer(key, PeerStep::Add(peer))` |
//! | `src/core/node/kernel.rs` | `send_kernel_actions`: `KernelAction::Apply` becomes an `Effect` |
//! | `src/agent/outward.rs` | `carry_out`: the effect goes into the kernel's pipe |
//! | `src/agent/pipes.rs` | `kernel`: taken out by the task that waits for the kernel |
//! | `src/core/plan/kernel.rs` | `apply_run`: all that the pipe knows of a kernel |
//! | `src/linux/lib.rs` | `apply_run`, `apply`: which socket a step is for; several peers go as one |
//! | `src/linux/wireguard/peers.rs` | `add`, `messages`: the peer in WireGuard's attributes |
//! | `src/linux/wireguard/mod.rs` | `apply_all`, `send`: that as a `NetlinkMessage`, sent, and acknowledged |
//!
//! What the step came to goes back by the pipe to `Engine::handle_steps`, and the kernel is looked at again.
//! What the peer may open goes the same way as `Step::Firewall`, by `plan/classes.rs` and `linux/nftables`.
//!
//! # Words
//!
//! A word that WireGuard, nftables, Tailscale's protocol or RFCs have is used as they use it (peer, allowed IPs, endpoint,
//! home relay, DERP, disco, verdict). Where there is none:
//!
//! | word | meaning |
//! | --- | --- |
//! | *node* | a machine in the network; its *machine key* names it to the coordinator, its *node key* is its WireGuard key |
//! | *map* | what the coordinator tells a node of itself, of its *peers*, of the packet filter, names and relays |
//! | *overlay* | the network that the addresses of 100.64.0.0/10 and fd7a:115c:a1e0::/48 make |
//! | *wish* | the whole of what should be in the kernel, as one value: `plan::Desired` |
//! | *look* | reading back all of ours from the kernel (`plan::Observed`), or asking all relays about our network (netcheck) |
//! | *ours*, *strange* | what carries our name, number or mark; what carries it and is nothing that we would make |
//! | *settled* | the last look found everything as wished |
//! | *book* | the paths to all peers, and the probes that find them: `path::Book` |
//! | *candidate*, *selected* | an endpoint that may lead to a peer; the path that its packets take now |
//! | *narrow* | of a path: small probes pass and packets of full size do not |
//! | *begin* | to open a WireGuard handshake from this side, because the peer's own come to nothing |
//! | *pump* | the tasks that carry relayed packets between the kernel and the relays, past the engine |
//! | *engine*, *effect* | all that one agent decides, as one value; one thing that it wants done outside |
//! | *serve*, *carry* | the same thing: to route prefixes for others, be it this host or another node |
//! | *class* | of a firewall: sources with the same rights; of a broadcast: viewers who see the same peers; of a path: on a link of ours, global, private |
//! | *status* | what a node reports of itself while it runs, saved late; not what an administrator decided |
//! | *presence* | who follows its map now, and what is due when |
//! | *clones* | two machines that use one node key |
//! | *journal* | every decision in the coordinator, numbered without gaps, with who made it by which door |
//! | *face*, *door* | code by which others see the coordinator (`face/`); by which way whoever decided came in, as the journal names it |
//! | *site* | those who count as one asker: an IPv4 address, or an IPv6 /64 |

#![forbid(unsafe_code)]
