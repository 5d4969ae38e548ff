//! `warren netcheck`: what this machine's network allows.

use std::io::Write;
use std::time::Duration;

use super::{Client, Error, Exit, print_json};
use warren_core::types::RegionId;
use warren_core::wire::local::NetcheckReport;

/// Asks the agent for a whole look, and prints what it found.
pub(super) async fn netcheck(client: &Client, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let report: NetcheckReport = client.own("netcheck").await?;
    if json { print_json(out, &report) } else { render(out, &report) }
}

fn render(out: &mut impl Write, report: &NetcheckReport) -> Result<Exit, Error> {
    for (what, found) in [
        ("UDP", udp(report)),
        ("IPv4", address(&report.global_v4, report.ipv4, true)),
        ("IPv6", address(&report.global_v6, report.ipv6, report.os_has_ipv6)),
        ("NAT mapping", mapping(report)),
        ("Port mapping", port_mapping(report)),
        ("Captive portal", captive(report.captive_portal)),
        ("Home relay", home(report)),
    ] {
        writeln!(out, "{:<16}{found}", format!("{what}:"))?;
    }
    if report.regions.is_empty() {
        writeln!(out, "Relays:         none; the coordinator names none, or this machine is not in a network")?;
        return Ok(Exit::Ok);
    }
    writeln!(out, "Relays:")?;
    let mut regions: Vec<RegionId> = report.regions.keys().copied().collect();
    regions.sort_by_key(|id| (report.region_latency.get(id).copied().unwrap_or(i64::MAX), *id));
    for id in regions {
        let region = &report.regions[&id];
        let latency = report.region_latency.get(&id).map_or_else(|| "no answer".to_owned(), |ns| milliseconds(*ns));
        let home = if id == report.preferred_derp { " (home)" } else { "" };
        writeln!(out, "  {:<8} {latency:>10}  {}{home}", label(id, &region.code), region.name)?;
    }
    Ok(Exit::Ok)
}

fn udp(report: &NetcheckReport) -> String {
    match (report.udp, report.region_latency.is_empty()) {
        (true, _) => "works",
        (false, false) => "blocked: relays answer over HTTPS alone, so peers are reached through relays",
        (false, true) => "no answer from any relay",
    }
    .to_owned()
}

fn address(seen: &str, works: bool, possible: bool) -> String {
    match (seen, works, possible) {
        ("", true, _) => "works, own address not known".to_owned(),
        ("", false, true) => "no answer".to_owned(),
        ("", false, false) => "not available on this system".to_owned(),
        (seen, ..) => format!("works, seen as {seen}"),
    }
}

fn mapping(report: &NetcheckReport) -> String {
    match report.mapping_varies_by_dest_ip {
        Some(false) => "the same for every destination, or no NAT: direct paths are likely",
        Some(true) => "another for each destination: direct paths need a peer with an easier network, or a mapped port",
        None => "not known; it takes two relays that answer over IPv4",
    }
    .to_owned()
}

fn port_mapping(report: &NetcheckReport) -> String {
    let protocols = [("PCP", report.pcp), ("NAT-PMP", report.pmp), ("UPnP", report.upnp)];
    let spoken: Vec<&str> = protocols.iter().filter(|(_, found)| *found == Some(true)).map(|(name, _)| *name).collect();
    let spoken = spoken.join(", ");
    match (report.port_mapped.as_str(), spoken.as_str()) {
        ("", "") if protocols.iter().all(|(_, found)| found.is_none()) => "not tried".to_owned(),
        ("", "") => "none; the gateway speaks none of PCP, NAT-PMP and UPnP".to_owned(),
        ("", spoken) => format!("none; the gateway speaks {spoken} and opened no port"),
        (external, spoken) => format!("{external} by {spoken}"),
    }
}

fn captive(found: Option<bool>) -> String {
    match found {
        Some(true) => "yes: something answers in the relays' name; sign in to this network first",
        Some(false) => "no",
        None => "not known",
    }
    .to_owned()
}

fn home(report: &NetcheckReport) -> String {
    let id = report.preferred_derp;
    match report.regions.get(&id) {
        _ if id == RegionId::default() => "none".to_owned(),
        Some(region) if !region.name.is_empty() => format!("{} ({})", region.name, label(id, &region.code)),
        region => label(id, region.map_or("", |region| &region.code)),
    }
}

fn label(id: RegionId, code: &str) -> String {
    if code.is_empty() { id.to_string() } else { code.to_owned() }
}

fn milliseconds(nanoseconds: i64) -> String {
    let duration = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default());
    format!("{:.1} ms", duration.as_secs_f64() * 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::wire::local::NetcheckRegion;

    fn text(report: &NetcheckReport) -> String {
        let mut out = Vec::new();
        render(&mut out, report).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_report_is_a_few_lines_for_people() {
        let region = |code: &str, name: &str| NetcheckRegion { code: code.into(), name: name.into() };
        let report = NetcheckReport {
            udp: true,
            ipv4: true,
            os_has_ipv6: true,
            mapping_varies_by_dest_ip: Some(false),
            pcp: Some(true),
            captive_portal: Some(false),
            preferred_derp: RegionId(900),
            region_latency: [(RegionId(900), 12_340_000)].into(),
            global_v4: "203.0.113.7:50000".into(),
            port_mapped: "203.0.113.9:41741".into(),
            regions: [(RegionId(900), region("fra", "Frankfurt")), (RegionId(901), region("", "Elsewhere"))].into(),
            ..NetcheckReport::default()
        };
        let expected = "\
UDP:            works
IPv4:           works, seen as 203.0.113.7:50000
IPv6:           no answer
NAT mapping:    the same for every destination, or no NAT: direct paths are likely
Port mapping:   203.0.113.9:41741 by PCP
Captive portal: no
Home relay:     Frankfurt (fra)
Relays:
  fra         12.3 ms  Frankfurt (home)
  901       no answer  Elsewhere
";
        assert_eq!(text(&report), expected);
    }

    #[test]
    fn a_machine_in_no_network_says_so() {
        let text = text(&NetcheckReport::default());
        assert!(text.contains("UDP:            no answer from any relay\n"), "{text}");
        assert!(text.contains("Port mapping:   not tried\n"), "{text}");
        assert!(text.contains("Home relay:     none\n"), "{text}");
        assert!(text.ends_with("or this machine is not in a network\n"), "{text}");
    }

    #[test]
    fn the_json_has_the_names_of_the_official_command_line() {
        let json = serde_json::to_value(NetcheckReport::default()).unwrap();
        for name in [
            "Now",
            "UDP",
            "IPv6",
            "IPv4",
            "IPv6CanSend",
            "IPv4CanSend",
            "OSHasIPv6",
            "MappingVariesByDestIP",
            "UPnP",
            "PMP",
            "PCP",
            "PreferredDERP",
            "RegionLatency",
            "RegionV4Latency",
            "RegionV6Latency",
            "GlobalV4",
            "GlobalV6",
            "CaptivePortal",
        ] {
            assert!(json.get(name).is_some(), "{name}");
        }
    }
}
