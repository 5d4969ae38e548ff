//! The link, its addresses and its peers.

use std::sync::Arc;

use warren_core::plan::{DesiredEndpoint, DeviceStep, Kernel, LinkStep, PeerConfig, PeerStep, Step};
use warren_linux::LinuxKernel;

use crate::common::*;

#[test]
fn a_device_is_made_as_asked_and_read_back_as_made() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        assert_eq!(observe(&mut kernel).await, Default::default());

        apply(
            &mut kernel,
            [
                Step::Link(LinkStep::Create),
                Step::Link(LinkStep::Create),
                Step::Device(DeviceStep::SetPrivateKey(private(1))),
                Step::Device(DeviceStep::SetListenPort(41999)),
                Step::Device(DeviceStep::SetFwmark(0x0500_0000)),
                Step::Link(LinkStep::SetMtu(1280)),
                Step::Link(LinkStep::AddAddress(net("100.64.0.1/32"))),
                Step::Link(LinkStep::AddAddress(net("fd7a:115c:a1e0::1/128"))),
                Step::Link(LinkStep::AddAddress(net("100.64.0.9/32"))),
                Step::Link(LinkStep::SetUp),
                Step::Link(LinkStep::RemoveAddress(net("100.64.0.9/32"))),
            ],
        )
        .await;

        let seen = observe(&mut kernel).await;
        let link = seen.link.unwrap();
        assert!(link.is_wireguard && link.up);
        assert_eq!((link.mtu, link.addresses), (1280, nets(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128"])));
        let device = seen.device.unwrap();
        assert_eq!(device.private_key, Some(private(1)));
        assert_eq!((device.listen_port, device.fwmark), (41999, 0x0500_0000));

        assert_eq!(sh("wg show warren0 listen-port").trim(), "41999");
        assert_eq!(sh("wg show warren0 fwmark").trim(), "0x5000000");
        assert_eq!(sh("wg show warren0 public-key").trim(), private(1).public().base64());
        assert_eq!(json("ip -j link show dev warren0")[0]["mtu"], 1280);
        let addresses = json("ip -j -d addr show dev warren0");
        assert_eq!(addresses[0]["ifindex"], link.index);
        // An address brings no route of its own into the host's tables.
        assert_eq!(json("ip -j route show table main dev warren0"), serde_json::json!([]));
        assert_eq!(sh("ip -6 route show table main dev warren0 | grep -v fe80 || true"), "");

        apply(&mut kernel, [Step::Link(LinkStep::Delete)]).await;
        assert_eq!(observe(&mut kernel).await, Default::default());
    });
}

#[test]
fn a_link_of_our_name_and_another_kind_is_reported_and_not_touched() {
    in_namespace(Needs::WireGuard, || async {
        sh("ip link add warren0 type dummy && ip link set warren0 up");
        let before = sh("ip -j -d addr show dev warren0");
        let mut kernel = LinuxKernel::new().unwrap();

        let seen = observe(&mut kernel).await;

        assert!(!seen.link.as_ref().unwrap().is_wireguard);
        assert_eq!(seen.device, None);
        for step in [
            Step::Link(LinkStep::Create),
            Step::Link(LinkStep::Delete),
            Step::Link(LinkStep::SetMtu(1280)),
            Step::Link(LinkStep::SetUp),
            Step::Link(LinkStep::AddAddress(net("100.64.0.1/32"))),
            Step::Device(DeviceStep::SetPrivateKey(private(1))),
            Step::Device(DeviceStep::SetListenPort(7)),
        ] {
            let error = kernel.apply(&step).await.expect_err(&format!("{step:?}"));
            assert!(error.to_string().contains("warren0"), "{error}");
        }
        assert_eq!(sh("ip -j -d addr show dev warren0"), before);
    });
}

#[test]
fn a_change_to_a_deleted_device_does_not_bring_it_back() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = kernel_with_link().await;
        sh("ip link del warren0");

        for step in [
            Step::Device(DeviceStep::SetPrivateKey(private(2))),
            Step::Device(DeviceStep::SetListenPort(7)),
            Step::Device(DeviceStep::SetFwmark(7)),
            Step::Link(LinkStep::SetMtu(1300)),
        ] {
            assert!(kernel.apply(&step).await.is_err(), "{step:?}");
        }

        assert_eq!(json("ip -j link show type wireguard"), serde_json::json!([]));
    });
}

#[test]
fn peers_are_added_changed_and_removed_in_place() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = kernel_with_link().await;
        let endpoint = "192.0.2.1:41741".parse().unwrap();
        let peer = PeerConfig {
            allowed_ips: nets(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]),
            endpoint: DesiredEndpoint::Initial(endpoint),
            keepalive: 25,
        };
        let other = PeerConfig { allowed_ips: nets(&["100.64.0.3/32"]), ..PeerConfig::default() };
        let (one, two) = (public(1), public(2));

        apply(
            &mut kernel,
            [Step::Peer(one, PeerStep::Add(Arc::new(peer.clone()))), Step::Peer(two, PeerStep::Add(Arc::new(other)))],
        )
        .await;
        let device = observe(&mut kernel).await.device.unwrap();
        assert_eq!(device.peers[&one].allowed_ips, peer.allowed_ips);
        assert_eq!((device.peers[&one].endpoint, device.peers[&one].keepalive), (Some(endpoint), 25));
        assert_eq!(device.peers[&one].last_handshake, None);
        assert_eq!(device.peers[&two].endpoint, None);

        let moved = "[2001:db8::1]:7".parse().unwrap();
        apply(
            &mut kernel,
            [
                Step::Peer(one, PeerStep::AddAllowedIps(nets(&["10.0.0.0/8", "100.64.0.3/32"]))),
                Step::Peer(one, PeerStep::SetEndpoint(moved)),
                Step::Peer(one, PeerStep::SetKeepalive(0)),
            ],
        )
        .await;
        let device = observe(&mut kernel).await.device.unwrap();
        assert_eq!(
            device.peers[&one].allowed_ips,
            nets(&["10.0.0.0/8", "100.64.0.2/32", "100.64.0.3/32", "fd7a:115c:a1e0::2/128"])
        );
        assert_eq!((device.peers[&one].endpoint, device.peers[&one].keepalive), (Some(moved), 0));
        assert!(device.peers[&two].allowed_ips.is_empty(), "a move takes the address along");

        apply(&mut kernel, [Step::Peer(one, PeerStep::Remove), Step::Peer(one, PeerStep::Remove)]).await;
        assert_eq!(sh("wg show warren0 peers").trim(), two.base64());

        // What is gone stays gone.
        apply(
            &mut kernel,
            [
                Step::Peer(one, PeerStep::SetEndpoint(endpoint)),
                Step::Peer(one, PeerStep::SetKeepalive(25)),
                Step::Peer(one, PeerStep::AddAllowedIps(nets(&["100.64.0.2/32"]))),
            ],
        )
        .await;
        assert_eq!(sh("wg show warren0 peers").trim(), two.base64());
    });
}

#[test]
fn removing_allowed_ips_leaves_the_others_and_the_other_peers_alone() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = kernel_with_link().await;
        let (key, other) = (public(1), public(2));
        let keep = nets(&["100.64.0.2/32", "10.2.0.0/16"]);
        let doomed = nets(&["10.1.0.0/16", "fd00:1::/64"]);
        let all = [&keep, &doomed].into_iter().flatten().copied().collect();
        let bystander = PeerConfig { allowed_ips: nets(&["100.64.0.3/32"]), ..PeerConfig::default() };
        apply(
            &mut kernel,
            [
                Step::Peer(key, PeerStep::Add(Arc::new(PeerConfig { allowed_ips: all, ..PeerConfig::default() }))),
                Step::Peer(other, PeerStep::Add(Arc::new(bystander))),
            ],
        )
        .await;

        apply(&mut kernel, [Step::Peer(key, PeerStep::RemoveAllowedIps { allowed_ips: doomed, keep: keep.clone() })])
            .await;

        let device = observe(&mut kernel).await.device.unwrap();
        assert_eq!(device.peers.len(), 2, "the throw-away peer is gone");
        assert_eq!(device.peers[&key].allowed_ips, keep.into());
        assert_eq!(device.peers[&other].allowed_ips, nets(&["100.64.0.3/32"]));
    });
}

#[test]
fn a_peer_with_thousands_of_allowed_ips_is_set_and_read_whole() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = kernel_with_link().await;
        let allowed_ips: std::collections::BTreeSet<_> =
            (0..3_000u32).map(|number| net(&format!("10.{}.{}.0/24", number / 256, number % 256))).collect();
        let peer = PeerConfig { allowed_ips: allowed_ips.clone().into(), ..PeerConfig::default() };

        apply(&mut kernel, [Step::Peer(public(1), PeerStep::Add(Arc::new(peer)))]).await;

        let device = observe(&mut kernel).await.device.unwrap();
        assert_eq!(device.peers.len(), 1);
        assert_eq!(device.peers[&public(1)].allowed_ips, allowed_ips.clone().into());
        let printed = sh("wg show warren0 allowed-ips");
        assert_eq!(printed.split_whitespace().count(), 1 + allowed_ips.len());

        let doomed: std::collections::BTreeSet<_> = allowed_ips.iter().skip(1).copied().collect();
        let keep = allowed_ips.iter().take(1).copied().collect();
        apply(&mut kernel, [Step::Peer(public(1), PeerStep::RemoveAllowedIps { allowed_ips: doomed, keep })]).await;
        assert_eq!(sh("wg show warren0 allowed-ips").split_whitespace().count(), 2);
    });
}
