//! `--exit-node`: from what people call it to what the agent keeps.

use std::net::IpAddr;

use super::client::Client;
use super::{Error, render};
use warren_core::wire::local::{MaskedPrefs, Status};

/// Adds to the change what the flag asks for. A peer is kept by its identifier, so that it stays the same under another
/// name or address; one that is not known yet by its address.
pub(super) async fn choose(client: &Client, wanted: Option<&str>, change: &mut MaskedPrefs) -> Result<(), Error> {
    let Some(wanted) = wanted else { return Ok(()) };
    let status = if wanted.is_empty() { Status::default() } else { client.status(true).await? };
    let (id, address) = chosen(&status, wanted)?;
    change.set("ExitNodeID", id);
    change.set("ExitNodeIP", address);
    Ok(())
}

/// The identifier of the exit node or its address, and nothing of either where none is wanted.
fn chosen(status: &Status, wanted: &str) -> Result<(String, String), Error> {
    if wanted.is_empty() {
        return Ok((String::new(), String::new()));
    }
    let Some(peer) = render::find(status, wanted) else {
        return match wanted.parse::<IpAddr>() {
            Ok(address) => Ok((String::new(), address.to_string())),
            Err(_) => Err(Error::Failed(format!(
                "--exit-node: no peer is called `{wanted}`; `warren status` lists them, and before this machine has \
                 joined one is named by its address"
            ))),
        };
    };
    if peer.public_key == status.this.public_key {
        return Err(Error::Usage("--exit-node: that is this machine; name another".to_owned()));
    }
    if !peer.exit_node_option {
        return Err(Error::Failed(format!(
            "--exit-node: {wanted} is no exit node: it offers to be one by `warren set \
             --advertise-routes=0.0.0.0/0,::/0` there, which whoever runs the coordinator approves"
        )));
    }
    Ok((peer.id.to_string(), String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::types::{NodePublic, StableNodeId};
    use warren_core::wire::local::PeerStatus;

    fn status() -> Status {
        let peer = |number: u8, name: &str, exit_node_option| PeerStatus {
            id: StableNodeId(format!("n{number}")),
            public_key: NodePublic::from_bytes([number; 32]),
            dns_name: format!("{name}.warren.internal."),
            tailscale_ips: vec![format!("100.64.0.{number}").parse().unwrap()],
            exit_node_option,
            ..PeerStatus::default()
        };
        let peers = [peer(2, "gate", true), peer(3, "web", false)];
        Status {
            this: peer(1, "here", true),
            peer: peers.into_iter().map(|peer| (peer.public_key, peer)).collect(),
            ..Status::default()
        }
    }

    #[test]
    fn an_exit_node_is_named_by_name_or_address() {
        let id = |wanted| chosen(&status(), wanted).unwrap();
        for wanted in ["gate", "gate.warren.internal", "100.64.0.2"] {
            assert_eq!(id(wanted), ("n2".to_owned(), String::new()), "{wanted}");
        }
        assert_eq!(id("100.64.0.9"), (String::new(), "100.64.0.9".to_owned()), "it is not known yet");
        assert_eq!(id(""), (String::new(), String::new()));
    }

    #[test]
    fn who_is_no_exit_node_is_refused_with_what_to_do() {
        let refused = |wanted| chosen(&status(), wanted).unwrap_err().to_string();
        assert!(refused("web").contains("web is no exit node"), "{}", refused("web"));
        assert!(refused("here").contains("this machine"), "{}", refused("here"));
        assert!(refused("nobody").contains("no peer is called `nobody`"), "{}", refused("nobody"));
    }
}
