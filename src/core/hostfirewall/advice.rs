//! What would let a packet of ours pass.

use crate::plan::own;

use super::ChainName;
use super::sample::Sample;

/// The command that lets the sample pass, in the words of whoever keeps the chain, which shows in the chains beside it.
pub(super) fn advice(chain: &ChainName, sample: &Sample, beside: &[&str]) -> String {
    let ChainName { family, table, name } = chain;
    let (link, port) = (own::LINK, sample.port);
    let is_udp = sample.protocol == "udp";
    if table == "firewalld" {
        return match is_udp {
            true => format!("firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload"),
            false => format!("firewall-cmd --permanent --zone=trusted --add-interface={link} && firewall-cmd --reload"),
        };
    }
    if beside.iter().any(|name| name.starts_with("ufw")) {
        return match (is_udp, sample.hook) {
            (true, _) => format!("ufw allow {port}/udp"),
            (false, "forward") => format!("ufw route allow in on {link}"),
            (false, "output") => format!("ufw allow out on {link}"),
            (false, _) => format!("ufw allow in on {link}"),
        };
    }
    let is_iptables = table == "filter" && ["INPUT", "FORWARD", "OUTPUT"].contains(&name.as_str());
    if is_iptables && (family == "ip" || family == "ip6") {
        let program = if family == "ip" { "iptables" } else { "ip6tables" };
        let has_docker = sample.hook == "forward" && beside.contains(&"DOCKER-USER");
        let chain = if has_docker { "DOCKER-USER" } else { name };
        return match (is_udp, sample.hook) {
            (true, _) => format!("{program} -I {chain} -p udp --dport {port} -j ACCEPT"),
            (false, "output") => format!("{program} -I {chain} -o {link} -j ACCEPT"),
            (false, "forward") => format!(
                "{program} -I {chain} -i {link} -j ACCEPT && {program} -I {chain} -o {link} -m conntrack --ctstate \
                 ESTABLISHED,RELATED -j ACCEPT"
            ),
            (false, _) => format!("{program} -I {chain} -i {link} -j ACCEPT"),
        };
    }
    let matches = match (is_udp, sample.hook) {
        (true, _) => format!("udp dport {port}"),
        (false, "output") => format!("oifname \"{link}\""),
        (false, _) => format!("iifname \"{link}\""),
    };
    format!("nft insert rule {family} {table} {name} {matches} accept")
}
