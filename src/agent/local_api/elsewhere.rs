//! Calls of the official clients that this agent does not serve, and why.
//!
//! A client shows the reason to a person, so each says what to do instead where there is anything.

use warren_core::node::Refusal;

/// The call, or its beginning where it ends with a slash; and the reason.
const REASONS: &[(&str, &str)] = &[
    ("alpha-set-device-attrs", "the coordinator keeps no attributes that nodes set"),
    ("appc-route-info", "this agent is no app connector"),
    ("cert/", "the coordinator issues no certificates; use an ACME client of your own"),
    ("check-ip-forwarding", "not checked: for a subnet router, forwarding has to be switched on by `sysctl`"),
    ("check-reverse-path-filtering", "not checked: `warren status` says what of this host is in the way"),
    ("component-debug-logging", "logs are set for all of the agent: warrend --log, or WARREN_LOG"),
    ("debug-bus-events", "there is no event bus in this agent"),
    ("debug-bus-graph", "there is no event bus in this agent"),
    ("debug-bus-queues", "there is no event bus in this agent"),
    ("debug-capture", "packets pass in the kernel: capture them there, with `tcpdump -i warren0`"),
    ("debug-derp-region", "ask with `warren netcheck`"),
    ("debug-dial-types", "there is one way to dial: the kernel's"),
    ("debug-log", "clients cannot write into this agent's log"),
    ("debug-packet-filter-matches", "ask with `warren acl`"),
    ("debug-packet-filter-rules", "ask with `warren acl`"),
    ("debug-peer-endpoint-changes", "ask with `warren status` and `warren ping`"),
    ("debug-peer-relay-sessions", "this agent relays for no peer"),
    ("debug-portmap", "ask with `warren netcheck`"),
    ("debug-rotate-disco-key", "the key of probes comes of the machine's key and stays"),
    ("dev-set-state-store", "the state lies in files: warrend --state-dir"),
    ("disconnect-control", "use `warren down`"),
    ("drive/", "this agent shares no files"),
    ("file-put/", "this agent sends and takes no files"),
    ("file-targets", "this agent sends and takes no files"),
    ("files/", "this agent sends and takes no files"),
    ("goroutines", "this agent is no Go program"),
    ("handle-push-message", "this agent takes no push messages"),
    ("id-token", "the coordinator issues no tokens"),
    ("logtap", "read the log with `journalctl -u warrend -f`"),
    ("policy/", "this agent knows no policies of a device management"),
    ("pprof", "this agent is no Go program; profile it with `perf`"),
    ("profiles/", "this agent has one profile; leave it with `warren logout`"),
    ("query-feature", "the coordinator switches no features on"),
    ("reload-config", "the agent has no configuration file; its settings are changed by `warren set`"),
    ("reset-auth", "use `warren logout`"),
    ("routecheck", "ask with `warren why`"),
    ("services", "the coordinator knows no services"),
    ("set-dns", "the coordinator sets no DNS records for nodes"),
    ("set-expiry-sooner", "the coordinator's administrator decides: `warren-coordinator node expire`"),
    ("set-gui-visible", "there is no graphical program to this agent"),
    ("set-push-device-token", "this agent takes no push messages"),
    ("set-udp-gro-forwarding", "packets pass in the kernel, which needs no help with it"),
    ("set-use-exit-node-enabled", "this agent uses no exit nodes yet"),
    ("shutdown", "use `systemctl stop warrend`"),
    ("suggest-exit-node", "this agent uses no exit nodes yet"),
    ("tka/", "networks here have no lock"),
    ("update/", "this agent is updated by this system's package manager"),
    ("upload-client-metrics", "this agent keeps no counters for its clients"),
];

/// Why a call is not served, where it is one that official clients know.
pub(super) fn refusal(call: &str) -> Option<Refusal> {
    let known = |(name, _): &&(&str, &str)| *name == call || (name.ends_with('/') && call.starts_with(name));
    let (_, reason) = REASONS.iter().find(known)?;
    Some(Refusal::new(501, format!("this agent does not serve `{call}`: {reason}")))
}
