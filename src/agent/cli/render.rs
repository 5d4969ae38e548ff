//! What people read.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;

use super::args::Ip;
use super::{Error, Exit, print_json};
use warren_core::types::text::{LINE_BYTES, Line, clean};
use warren_core::types::{Timestamp, UserId};
use warren_core::wire::control::UserProfile;
use warren_core::wire::local::{BackendState, PeerStatus, PlanReply, Status};
use warren_shell::table;

/// Bytes of the name of a peer's system in the list, so that no peer makes it wider than a screen.
const SYSTEM_BYTES: usize = 24;

/// `warren status`: this machine, its peers, and what is wrong. Fails where the machine is not in.
pub(super) fn status(out: &mut impl Write, status: &Status) -> Result<Exit, Error> {
    let is_in = matches!(status.backend_state, BackendState::Running | BackendState::Starting);
    if is_in {
        let mut peers: Vec<&PeerStatus> = status.peer.values().collect();
        peers.sort_by_key(|peer| (&peer.dns_name, &peer.host_name, peer.public_key));
        let now = Timestamp::now();
        let mut rows = vec![row(&status.this, status, now, true)];
        rows.extend(peers.into_iter().map(|peer| row(peer, status, now, false)));
        out.write_all(table(rows, LINE_BYTES).as_bytes())?;
    } else {
        writeln!(out, "{}", what_to_do(status))?;
    }
    let mut remarks: Vec<String> = status.health.clone();
    if let (true, Some(age)) = (is_in && !status.warren.coordinator_connected, status.warren.map_age_seconds) {
        remarks.push(format!("no connection to the coordinator; the map in use is {} old", ago(age)));
    }
    if !remarks.is_empty() {
        writeln!(out, "\n# Health:")?;
        for remark in remarks {
            writeln!(out, "#     - {}", Line(remark))?;
        }
    }
    if let Some(exit) = status.peer.values().find(|peer| peer.exit_node) {
        let name = Line(exit.dns_name.trim_end_matches('.'));
        writeln!(out, "\n# All that leaves goes by {name}; answers to what comes in another way go back that way")?;
    }
    if let Some(key) = &status.warren.coordinator_key {
        writeln!(out, "\n# Coordinator {}, key {key}", status.warren.coordinator)?;
    }
    Ok(if is_in { Exit::Ok } else { Exit::Failed })
}

/// `warren ip`.
pub(super) fn ip(out: &mut impl Write, status: &Status, wanted: &Ip, json: bool) -> Result<Exit, Error> {
    let addresses = match &wanted.peer {
        None => &status.tailscale_ips,
        Some(name) => {
            &find(status, name).ok_or_else(|| Error::Failed(format!("no peer is called {name}")))?.tailscale_ips
        }
    };
    let mut addresses: Vec<IpAddr> = addresses.clone();
    addresses.retain(|ip| (!wanted.v4 || ip.is_ipv4()) && (!wanted.v6 || ip.is_ipv6()));
    if wanted.one {
        addresses.truncate(1);
    }
    if addresses.is_empty() {
        let whose = wanted.peer.as_deref().unwrap_or("this machine");
        return Err(Error::Failed(format!("{whose} has no such address ({})", status.backend_state)));
    }
    if json {
        return print_json(out, &addresses);
    }
    for address in addresses {
        writeln!(out, "{address}")?;
    }
    Ok(Exit::Ok)
}

/// `warren plan`.
pub(super) fn plan(out: &mut impl Write, plan: &PlanReply) -> Result<Exit, Error> {
    if plan.steps.is_empty() {
        writeln!(out, "nothing to do: the kernel is as it should be")?;
    }
    for step in &plan.steps {
        writeln!(out, "{step}")?;
    }
    Ok(Exit::Ok)
}

/// The peer (or this machine) of a name, a first label or an address.
pub(super) fn find<'a>(status: &'a Status, name: &str) -> Option<&'a PeerStatus> {
    let name = name.trim_end_matches('.');
    let address: Option<IpAddr> = name.parse().ok();
    std::iter::once(&status.this).chain(status.peer.values()).find(|peer| {
        let full = peer.dns_name.trim_end_matches('.');
        full == name
            || full.split('.').next() == Some(name)
            || address.is_some_and(|address| peer.tailscale_ips.contains(&address))
    })
}

fn what_to_do(status: &Status) -> String {
    match status.backend_state {
        BackendState::NeedsLogin if status.auth_url.is_empty() => "Logged out; `warren up` signs in.".to_owned(),
        BackendState::NeedsLogin => format!("Logged out. Log in at: {}", status.auth_url),
        BackendState::NeedsMachineAuth => "The coordinator's admin has yet to approve this machine.".to_owned(),
        BackendState::Stopped => "Stopped; `warren up` comes back.".to_owned(),
        state @ (BackendState::NoState | BackendState::Starting | BackendState::Running) => state.to_string(),
    }
}

fn row(peer: &PeerStatus, status: &Status, now: Timestamp, is_self: bool) -> [String; 5] {
    let address = peer.tailscale_ips.first().map_or_else(|| "-".to_owned(), ToString::to_string);
    let how = if is_self { own_state(status) } else { reachability(peer, now) };
    [
        address,
        name(peer, &status.magic_dns_suffix),
        owner(peer, &status.user),
        dash(&clean(&peer.os, SYSTEM_BYTES)),
        how,
    ]
}

fn own_state(status: &Status) -> String {
    let state = status.backend_state;
    if state == BackendState::Running { "-".to_owned() } else { state.to_string().to_lowercase() }
}

/// How the peer is reached, and how much went through.
fn reachability(peer: &PeerStatus, now: Timestamp) -> String {
    let mut words = Vec::new();
    if peer.active {
        words.push("active".to_owned());
        if !peer.cur_addr.is_empty() {
            words.push(format!("direct {}", peer.cur_addr));
        } else if !peer.relay.is_empty() {
            words.push(format!("relay {}", peer.relay));
        }
    } else {
        if peer.rx_bytes + peer.tx_bytes > 0 {
            words.push("idle".to_owned());
        }
        // One that no relay serves: this is the only way to it that is known.
        if !peer.cur_addr.is_empty() {
            words.push(format!("at {}", peer.cur_addr));
        }
    }
    if peer.expired {
        words.push("expired".to_owned());
    }
    if !peer.online {
        let seen = peer.last_seen.map(|seen| format!(", last seen {} ago", ago(seconds_between(seen, now))));
        words.push(format!("offline{}", seen.unwrap_or_default()));
    }
    let mut text = words.join("; ");
    if peer.rx_bytes + peer.tx_bytes > 0 {
        text.push_str(&format!(", tx {} rx {}", peer.tx_bytes, peer.rx_bytes));
    }
    if let Some(handshake) = peer.last_handshake {
        text.push_str(&format!(", handshake {} ago", ago(seconds_between(handshake, now))));
    }
    if text.is_empty() { "-".to_owned() } else { text }
}

/// The name within our network, or the whole name, or what the machine calls itself.
fn name(peer: &PeerStatus, suffix: &str) -> String {
    let full = peer.dns_name.trim_end_matches('.');
    if full.is_empty() {
        return format!("({})", peer.host_name);
    }
    let short = full.strip_suffix(suffix).and_then(|name| name.strip_suffix('.'));
    short.filter(|name| !name.is_empty()).unwrap_or(full).to_owned()
}

fn owner(peer: &PeerStatus, users: &BTreeMap<UserId, UserProfile>) -> String {
    if !peer.tags.is_empty() {
        return "tagged-devices".to_owned();
    }
    users.get(&peer.user_id).map_or_else(|| peer.user_id.to_string(), |user| user.login_name.clone())
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn seconds_between(then: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(then).as_secs().max(0)
}

/// A length of time in its largest unit.
fn ago(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::types::NodePublic;

    fn peer(n: u8, name: &str) -> PeerStatus {
        PeerStatus {
            public_key: NodePublic::from_bytes([n; 32]),
            dns_name: format!("{name}.example.net."),
            os: "linux".into(),
            user_id: UserId(1),
            tailscale_ips: vec![
                format!("100.64.0.{n}").parse().unwrap(),
                format!("fd7a:115c:a1e0::{n}").parse().unwrap(),
            ],
            online: true,
            ..PeerStatus::default()
        }
    }

    fn network() -> Status {
        let ada = UserProfile { id: UserId(1), login_name: "ada".into(), ..UserProfile::default() };
        let web = PeerStatus {
            active: true,
            cur_addr: "10.0.0.2:41741".into(),
            rx_bytes: 92,
            tx_bytes: 148,
            ..peer(2, "web")
        };
        let relayed = PeerStatus { active: true, relay: "warren".into(), ..peer(4, "behind") };
        let away = PeerStatus { online: false, ..peer(3, "a-rather-long-name") };
        let this = peer(1, "here");
        Status {
            backend_state: BackendState::Running,
            tailscale_ips: this.tailscale_ips.clone(),
            this,
            magic_dns_suffix: "example.net".into(),
            peer: [web, away, relayed].into_iter().map(|p| (p.public_key, p)).collect(),
            user: [(UserId(1), ada)].into(),
            warren: warren_core::wire::local::AgentStatus { coordinator_connected: true, ..Default::default() },
            ..Status::default()
        }
    }

    fn printed(status: &Status) -> (String, Exit) {
        let mut out = Vec::new();
        let exit = super::status(&mut out, status).unwrap();
        (String::from_utf8(out).unwrap(), exit)
    }

    fn ips(wanted: &Ip) -> Result<String, Error> {
        let mut out = Vec::new();
        ip(&mut out, &network(), wanted, false).map(|_| String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_status_lists_this_machine_then_its_peers_by_name() {
        let (text, exit) = printed(&network());
        assert_eq!(exit, Exit::Ok);
        assert_eq!(
            text,
            "\
100.64.0.1  here                ada  linux  -
100.64.0.3  a-rather-long-name  ada  linux  offline
100.64.0.4  behind              ada  linux  active; relay warren
100.64.0.2  web                 ada  linux  active; direct 10.0.0.2:41741, tx 148 rx 92
"
        );
    }

    /// A peer says what its system is called, its user what it is called, a coordinator what is wrong.
    #[test]
    fn no_text_of_others_forges_a_row_or_tells_the_terminal_what_to_do() {
        let mut network = network();
        let web = network.peer.get_mut(&NodePublic::from_bytes([2; 32])).unwrap();
        web.os = "linux  -\n100.64.0.9  db  ada  linux  active; direct 10.0.0.9:41741\u{1b}[1A\u{1b}[2K".into();
        network.user.get_mut(&UserId(1)).unwrap().login_name = "\u{202e}ada\u{200b}\t".into();
        network.health = vec!["fine\n#     - the disk is full\u{9b}2J".into()];

        let (text, _) = printed(&network);

        assert_eq!(
            text,
            "\
100.64.0.1  here                \u{fffd}ada\u{fffd}\u{fffd}  linux                 -
100.64.0.3  a-rather-long-name  \u{fffd}ada\u{fffd}\u{fffd}  linux                 offline
100.64.0.4  behind              \u{fffd}ada\u{fffd}\u{fffd}  linux                 active; relay warren
100.64.0.2  web                 \u{fffd}ada\u{fffd}\u{fffd}  linux -\u{fffd}100.64.0.9 …  active; direct 10.0.0.2:41741, tx 148 rx 92

# Health:
#     - fine\u{fffd}# - the disk is full\u{fffd}2J
"
        );
    }

    #[test]
    fn what_is_wrong_follows_and_an_old_map_is_named() {
        let mut network = network();
        network.health = vec!["the disk is full".into()];
        network.warren.coordinator_connected = false;
        network.warren.map_age_seconds = Some(7_300);

        let (text, _) = printed(&network);

        assert!(text.ends_with(
            "\n# Health:\n#     - the disk is full\n#     - no connection to the coordinator; the map in use is 2h old\n"
        ));
    }

    #[test]
    fn a_machine_that_is_not_in_says_what_to_do_and_fails() {
        let out =
            |state, url: &str| printed(&Status { backend_state: state, auth_url: url.into(), ..Status::default() });
        assert_eq!(out(BackendState::Stopped, ""), ("Stopped; `warren up` comes back.\n".to_owned(), Exit::Failed));
        assert_eq!(out(BackendState::NeedsLogin, "http://c/x").0, "Logged out. Log in at: http://c/x\n");
    }

    #[test]
    fn addresses_are_chosen_by_family_and_by_peer() {
        assert_eq!(ips(&Ip::default()).unwrap(), "100.64.0.1\nfd7a:115c:a1e0::1\n");
        assert_eq!(ips(&Ip { v4: true, ..Ip::default() }).unwrap(), "100.64.0.1\n");
        assert_eq!(ips(&Ip { v6: true, peer: Some("web".into()), ..Ip::default() }).unwrap(), "fd7a:115c:a1e0::2\n");
        assert_eq!(ips(&Ip { one: true, peer: Some("100.64.0.3".into()), ..Ip::default() }).unwrap(), "100.64.0.3\n");
        assert_eq!(
            ips(&Ip { peer: Some("mail".into()), ..Ip::default() }).unwrap_err().to_string(),
            "no peer is called mail"
        );
    }

    #[test]
    fn a_length_of_time_is_told_in_its_largest_unit() {
        assert_eq!([5, 65, 7_300, 200_000].map(ago), ["5s", "1m", "2h", "2d"]);
    }
}
