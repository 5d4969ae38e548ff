//! Beside the rule sets of Docker, firewalld and ufw: they stay as they are, and those that would drop our packets are
//! told with the command that lets them pass.

use std::sync::Arc;

use warren_core::plan::{Firewall, FirewallStep, Step};
use warren_linux::LinuxKernel;

use crate::common::*;

/// What firewalld writes for one interface in its public zone, shortened to the chains that a packet meets.
const FIREWALLD: &str = r#"
table inet firewalld {
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES {
    iifname "eth0" goto filter_IN_public
    goto filter_IN_public
  }
  chain filter_IN_public {
    jump filter_IN_public_allow
    meta l4proto { 1, 58 } accept
  }
  chain filter_IN_public_allow {
    tcp dport 22 ct state { new, untracked } accept
    ip6 daddr fe80::/64 udp dport 546 ct state { new, untracked } accept
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname "lo" accept
    reject with icmpx admin-prohibited
  }
  chain filter_OUTPUT {
    type filter hook output priority filter + 10; policy accept;
    ct state { established, related } accept
    oifname "lo" accept
  }
}"#;

/// What Docker writes through iptables, in nftables' words.
const DOCKER: &str = r#"
table ip nat {
  chain DOCKER { tcp dport 8080 iifname != "docker0" counter dnat to 172.17.0.2:80; }
  chain PREROUTING { type nat hook prerouting priority dstnat; policy accept; fib daddr type local counter jump DOCKER; }
  chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; oifname != "docker0" ip saddr 172.17.0.0/16 counter masquerade; }
}
table ip filter {
  chain DOCKER { iifname != "docker0" oifname "docker0" ip daddr 172.17.0.2 tcp dport 80 counter accept; }
  chain DOCKER-USER { counter return; }
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    counter jump DOCKER-USER
    oifname "docker0" ct state related,established counter accept
    oifname "docker0" counter jump DOCKER
    iifname "docker0" oifname != "docker0" counter accept
  }
}"#;

/// What ufw writes through iptables, in nftables' words.
const UFW: &str = r#"
table ip filter {
  chain ufw-user-input { tcp dport 22 counter accept; }
  chain ufw-before-input { iifname "lo" counter accept; ct state related,established counter accept; counter jump ufw-user-input; }
  chain INPUT { type filter hook input priority filter; policy drop; counter jump ufw-before-input; }
}"#;

/// What firewalld 1.3 and Docker 20.10 of Debian 12 left in the kernel (protocols by number: the
/// guest has no list of their names), and what was there once the commands that we tell
/// had been typed.
const REAL_FIREWALLD: [&str; 2] = [include_str!("data/firewalld.nft"), include_str!("data/firewalld-mended.nft")];
const REAL_DOCKER: [&str; 2] = [include_str!("data/docker.nft"), include_str!("data/docker-mended.nft")];

/// A host's own, that knows of us.
const FRIENDLY: &str = r#"
table inet filter {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }
    iifname { "lo", "warren0" } accept
    udp dport { 53, 41741 } accept
  }
  chain forward { type filter hook forward priority filter; policy drop; iifname "warren*" accept; oifname "warren0" accept; }
}"#;

#[test]
fn chains_that_would_drop_our_packets_are_told_with_what_to_do() {
    let advice = |rules| told(rules).into_iter().map(|(_, advice)| advice).collect::<Vec<_>>();
    assert_eq!(
        advice(FIREWALLD),
        [
            "firewall-cmd --permanent --add-port=41741/udp && firewall-cmd --reload",
            "firewall-cmd --permanent --zone=trusted --add-interface=warren0 && firewall-cmd --reload",
            "firewall-cmd --permanent --zone=trusted --add-interface=warren0 && firewall-cmd --reload",
        ]
    );
    assert_eq!(
        advice(DOCKER),
        ["iptables -I DOCKER-USER -i warren0 -j ACCEPT && iptables -I DOCKER-USER -o warren0 -m conntrack --ctstate \
          ESTABLISHED,RELATED -j ACCEPT"]
    );
    assert_eq!(advice(UFW), ["ufw allow 41741/udp", "ufw allow in on warren0"]);
    assert_eq!(advice(FRIENDLY), Vec::<String>::new());
    assert_eq!(advice(REAL_FIREWALLD[0]), advice(FIREWALLD));
    assert_eq!(advice(REAL_DOCKER[0]), advice(DOCKER));
    assert_eq!([REAL_FIREWALLD[1], REAL_DOCKER[1]].map(advice), [Vec::<String>::new(), Vec::new()]);
    assert_eq!(
        advice(
            "table inet f { chain in { type filter hook input priority 0; policy drop; udp dport 41741 accept\n}\n}"
        ),
        ["nft insert rule inet f in iifname \"warren0\" accept"]
    );
}

#[test]
fn a_host_that_carries_no_network_is_told_nothing_of_forwarding() {
    in_namespace(Needs::Namespace, || async {
        load(DOCKER);
        let mut kernel = LinuxKernel::new().unwrap();
        let alone = Firewall { served: nets(&["100.64.0.1/32"]), ..Firewall::default() };
        apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(Arc::new(alone)))]).await;
        assert_eq!(observe(&mut kernel).await.obstacles, []);
    });
}

#[test]
fn other_peoples_rules_are_the_same_before_during_and_after() {
    in_namespace(Needs::Namespace, || async {
        for rules in [FIREWALLD, DOCKER, UFW, FRIENDLY, REAL_FIREWALLD[0], REAL_DOCKER[0]] {
            sh("nft flush ruleset");
            load(rules);
            let before = sh("nft list ruleset");
            let mut kernel = LinuxKernel::new().unwrap();
            let firewall = wish().firewall.unwrap();
            apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(firewall))]).await;
            let during = sh("nft list ruleset");
            observe(&mut kernel).await;
            apply(&mut kernel, [Step::Firewall(FirewallStep::Delete)]).await;

            assert!(during.starts_with(&before), "{during}");
            assert_eq!(sh("nft list ruleset"), before);
        }
    });
}

#[test]
#[ignore = "by hand, in a namespace that holds another program's rules: WARREN_KERNEL_STAY=1"]
fn the_rules_that_stand_here_stay_and_are_told() {
    in_namespace(Needs::Namespace, || async {
        let before = sh("nft list ruleset");
        let mut kernel = LinuxKernel::new().unwrap();
        let carrying = Firewall { served: nets(&["100.64.0.1/32", "10.7.0.0/24"]), ..Firewall::default() };
        apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(Arc::new(carrying)))]).await;
        for obstacle in observe(&mut kernel).await.obstacles {
            println!("{}: {}: {}", obstacle.chain, obstacle.what, obstacle.advice);
        }
        apply(&mut kernel, [Step::Firewall(FirewallStep::Delete)]).await;
        assert_eq!(sh("nft list ruleset"), before);
    });
}

/// What is told beside these rules, sorted by what to do.
fn told(rules: &'static str) -> Vec<(String, String)> {
    let (out, found) = std::sync::mpsc::channel();
    in_namespace(Needs::Namespace, move || async move {
        load(rules);
        let mut kernel = LinuxKernel::new().unwrap();
        let carrying = Firewall { served: nets(&["100.64.0.1/32", "10.7.0.0/24"]), ..Firewall::default() };
        apply(&mut kernel, [Step::Firewall(FirewallStep::Replace(Arc::new(carrying)))]).await;
        let mut told: Vec<_> = observe(&mut kernel).await.obstacles.into_iter().map(|o| (o.chain, o.advice)).collect();
        told.sort_by(|a, b| a.1.cmp(&b.1));
        out.send(told).unwrap();
    });
    found.recv().unwrap()
}

fn load(rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    sh(&format!("nft -f {}", file.path().display()));
}
