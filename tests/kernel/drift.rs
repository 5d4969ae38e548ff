//! Word of changes that others make.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use warren_core::plan::{Kernel, own};
use warren_linux::{LinuxKernel, LocalAddress, LocalNetwork};

use crate::common::*;

/// Longer than the watch on WireGuard rests.
const QUIET: Duration = Duration::from_millis(1_500);

/// Waits until our own changes have been told of.
async fn settle(kernel: &mut LinuxKernel) {
    while tokio::time::timeout(QUIET, kernel.changed()).await.is_ok() {}
}

#[test]
fn whatever_goes_missing_is_noticed_and_put_back() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = sharing();
        let wish = wish();
        converge(&mut kernel, &wish).await;
        let table = own::ROUTE_TABLE;
        let peer = public(1).base64();
        for change in [
            format!("wg set warren0 peer {peer} remove"),
            format!("wg set warren0 peer {peer} allowed-ips 100.64.0.2/32"),
            format!("wg set warren0 peer {peer} persistent-keepalive 7"),
            "wg set warren0 listen-port 7".to_owned(),
            "wg set warren0 fwmark 7".to_owned(),
            "wg set warren0 peer $(wg genkey | wg pubkey) allowed-ips 10.66.0.0/16".to_owned(),
            "ip addr del 100.64.0.1/32 dev warren0".to_owned(),
            "ip -6 addr del fd7a:115c:a1e0::1/128 dev warren0".to_owned(),
            "ip link set warren0 mtu 1400".to_owned(),
            "ip link set warren0 down".to_owned(),
            format!("ip route del 10.2.0.0/16 table {table}"),
            format!("ip -6 route del unreachable fd7a:115c:a1e0::/48 table {table} metric 10000"),
            format!("ip route flush table {table}"),
            "ip rule del pref 5310".to_owned(),
            "ip -6 rule del pref 5310".to_owned(),
            "ip rule add pref 5305 table 100".to_owned(),
            "nft delete element inet warren hosts4 '{ 100.64.0.2 }'".to_owned(),
            "nft insert rule inet warren overlay accept".to_owned(),
            "nft flush ruleset".to_owned(),
            "ip link set warren0 down && ip link set warren0 name other".to_owned(),
            "ip link del warren0".to_owned(),
        ] {
            settle(&mut kernel).await;
            sh(&change);
            let begun = Instant::now();
            tokio::time::timeout(PATIENCE, kernel.changed()).await.expect(&change).unwrap();
            println!("noticed after {:.1?}: {change}", begun.elapsed());

            let steps = converge(&mut kernel, &wish).await;
            assert!(!steps.is_empty(), "{change}");
            assert!(
                !run("ip link show other").status.success(),
                "nothing of ours is left under another name: {change}"
            );
        }
    });
}

#[test]
fn what_others_do_among_themselves_wakes_nobody() {
    in_namespace(Needs::WireGuard, || async {
        let mut kernel = LinuxKernel::new().unwrap();
        converge(&mut kernel, &wish()).await;
        settle(&mut kernel).await;

        for change in [
            "ip link add lan type dummy && ip addr add 192.0.2.1/24 dev lan && ip link set lan up",
            "ip route add 10.1.0.0/16 via 192.0.2.2 && ip route add 10.1.0.0/16 via 192.0.2.2 table 52",
            "ip rule add pref 5400 table 52 && ip -6 rule add pref 5400 table 52",
            "nft add table inet other && nft add chain inet other c && nft flush chain inet other c",
            "ip link add wg9 type wireguard && wg set wg9 listen-port 7",
        ] {
            sh(change);
        }

        assert!(tokio::time::timeout(QUIET, kernel.changed()).await.is_err());
    });
}

#[test]
fn local_addresses_are_those_that_others_may_use_and_their_changes_are_told() {
    in_namespace(Needs::WireGuard, || async {
        let mut network = LocalNetwork::new().unwrap();
        assert_eq!(network.addresses().await.unwrap(), []);
        sh("ip link add warren0 type dummy && ip addr add 100.64.0.1/32 dev warren0 && ip link set warren0 up");
        sh("ip link add idle type dummy && ip addr add 203.0.113.1/24 dev idle");
        sh("ip link add lan type dummy && ip addr add 192.0.2.7/24 dev lan && ip link set lan up");
        sh("ip addr add 2001:db8::7/64 dev lan nodad && ip addr add 169.254.1.1/16 dev lan");
        sh("ip addr add 2001:db8::8/64 dev lan nodad preferred_lft 0");

        let found = network.addresses().await.unwrap();

        let found: Vec<_> = found.iter().map(|local| (local.address.to_string(), local.interface.as_str())).collect();
        let expected = [("192.0.2.7/24".to_owned(), "lan"), ("2001:db8::7/64".to_owned(), "lan")];
        assert_eq!(found, expected);

        sh("ip link add wire type veth peer name far");
        sh("ip link set wire addrgenmode none && ip link set far addrgenmode none");
        sh("ip addr add 198.51.100.7/24 dev wire && ip link set wire up");
        for (far, is_plugged) in [("down", false), ("up", true), ("down", false)] {
            sh(&format!("ip link set far {far}"));
            let plugged = async {
                let is_wire = |local: &&LocalAddress| local.interface == "wire";
                while network.addresses().await.unwrap().iter().find(is_wire).unwrap().has_carrier != is_plugged {
                    network.changed().await.unwrap();
                }
            };
            tokio::time::timeout(PATIENCE, plugged).await.expect(far);
        }

        while tokio::time::timeout(QUIET, network.changed()).await.is_ok() {}
        sh("ip link set warren0 mtu 1300");
        assert!(tokio::time::timeout(QUIET, network.changed()).await.is_err(), "our own link is not news");
        sh("ip addr del 192.0.2.7/24 dev lan");
        tokio::time::timeout(PATIENCE, network.changed()).await.unwrap().unwrap();
    });
}

#[test]
fn the_hosts_own_routes_are_those_of_the_main_table_that_lead_to_others() {
    in_namespace(Needs::Namespace, || async {
        let mut network = LocalNetwork::new().unwrap();
        assert_eq!(network.routes().await.unwrap().networks, nets(&[]));
        sh("ip link add lan type veth peer name far");
        sh("ip link set lan addrgenmode none && ip link set far addrgenmode none");
        sh("ip addr add 192.0.2.7/24 dev lan && ip link set lan up");
        sh("ip link set far up && ip addr add 2001:db8::7/64 dev lan nodad");
        while tokio::time::timeout(QUIET, network.changed()).await.is_ok() {}
        sh("ip route add default via 192.0.2.1");
        tokio::time::timeout(PATIENCE, network.changed()).await.unwrap().unwrap();
        let all = network.routes().await.unwrap().links[&net("0.0.0.0/0")].clone();
        assert_eq!(all, BTreeSet::from(["lan".to_owned()]), "by which link all else is reached");
        sh("ip route add 10.9.0.0/16 via 192.0.2.1 table 77");
        sh("ip route add 198.51.100.0/24 via 192.0.2.1 && ip route add 10.8.0.0/16 via 192.0.2.1 proto 87");
        assert!(tokio::time::timeout(QUIET, network.changed()).await.is_err(), "a router of the internet wakes nobody");

        sh("ip route add 100.100.100.200/32 via 192.0.2.1 && ip route add blackhole 10.244.1.0/26");
        sh("ip -6 route add fd44::/64 via 2001:db8::1 && ip -6 route add default via 2001:db8::1");

        tokio::time::timeout(PATIENCE, network.changed()).await.unwrap().unwrap();
        let found = network.routes().await.unwrap().networks;
        let own =
            ["192.0.2.0/24", "198.51.100.0/24", "100.100.100.200/32", "10.244.1.0/26", "fd44::/64", "2001:db8::/64"];
        assert_eq!(found, nets(&own));
    });
}
