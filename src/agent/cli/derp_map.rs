//! `warren derp-map`: the relays that the coordinator names.

use std::io::Write;

use super::{Client, Error, Exit, args, print_json};
use warren_core::types::text::LINE_BYTES;
use warren_core::wire::control::{DerpMap, DerpNode};
use warren_core::wire::local::{RelayCounters, RelaysReply};
use warren_shell::table;

/// Prints them, a line each, or what passed through them.
pub(super) async fn derp_map(
    client: &Client,
    wanted: &args::DerpMap,
    json: bool,
    out: &mut (impl Write + Send),
) -> Result<Exit, Error> {
    if wanted.counters {
        let relays: RelaysReply = client.own("relays").await?;
        return if json { print_json(out, &relays) } else { print_counters(&relays.counters, out) };
    }
    let map = client.derp_map().await?;
    if json {
        return print_json(out, &map);
    }
    print(&map, &client.own("relays").await?, out)
}

fn print_counters(counters: &RelayCounters, out: &mut impl Write) -> Result<Exit, Error> {
    writeln!(out, "sent      {} packets, {} bytes", counters.sent, counters.sent_bytes)?;
    writeln!(out, "received  {} packets, {} bytes", counters.received, counters.received_bytes)?;
    for (reason, count) in counters.drops().into_iter().filter(|(_, count)| *count > 0) {
        writeln!(out, "dropped   {count} packets: {reason}")?;
    }
    Ok(Exit::Ok)
}

fn print(map: &DerpMap, relays: &RelaysReply, out: &mut impl Write) -> Result<Exit, Error> {
    let regions = map.regions.iter().filter_map(|(id, region)| Some((id, region.as_ref()?)));
    let rows: Vec<[String; 6]> = regions
        .flat_map(|(id, region)| {
            region.nodes.iter().map(move |node| {
                let at = |port: String| format!("{}:{port}", node.host_name);
                let derp = if node.stun_only { "-".to_owned() } else { at(derp_port(node).to_string()) };
                let stun = stun_port(node).map_or_else(|| "-".to_owned(), |port| at(port.to_string()));
                let name = |text: &String| if text.is_empty() { "-".to_owned() } else { text.clone() };
                let state = relays.regions.get(id).cloned().unwrap_or_default();
                let home = if relays.home == *id { "home " } else { "" };
                let codes = [id.to_string(), name(&region.region_code), name(&region.region_name)];
                let [id, code, name] = codes;
                [id, code, name, derp, format!("stun {stun}"), format!("{home}{state}")]
            })
        })
        .collect();
    if rows.is_empty() {
        writeln!(out, "The coordinator names no relays: only peers that reach each other directly can talk.")?;
        return Ok(Exit::Ok);
    }
    out.write_all(table(rows, LINE_BYTES).as_bytes())?;
    Ok(Exit::Ok)
}

/// 0 stands for the usual port.
fn derp_port(node: &DerpNode) -> i32 {
    if node.derp_port == 0 { 443 } else { node.derp_port }
}

/// 0 stands for the usual port, -1 for none.
fn stun_port(node: &DerpNode) -> Option<i32> {
    match node.stun_port {
        0 => Some(3_478),
        ..0 => None,
        port => Some(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::types::RegionId;
    use warren_core::wire::control::DerpRegion;

    #[test]
    fn each_relay_is_a_line_with_its_ports() {
        let node = |name: &str, stun_port, derp_port| DerpNode {
            host_name: format!("{name}.example.net"),
            stun_port,
            derp_port,
            ..DerpNode::default()
        };
        let region = DerpRegion {
            region_code: "warren".to_owned(),
            region_name: "Embedded".to_owned(),
            nodes: vec![node("a", 0, 0), node("b", -1, 8_443)],
            ..DerpRegion::default()
        };
        let map = DerpMap { regions: [(RegionId(900), Some(region))].into(), ..DerpMap::default() };
        let mut out = Vec::new();

        let relays = RelaysReply {
            home: RegionId(900),
            regions: [(RegionId(900), "connected".to_owned())].into(),
            ..RelaysReply::default()
        };
        print(&map, &relays, &mut out).unwrap();

        assert_eq!(
            String::from_utf8(out).unwrap(),
            "900  warren  Embedded  a.example.net:443   stun a.example.net:3478  home connected\n\
             900  warren  Embedded  b.example.net:8443  stun -                   home connected\n"
        );
    }

    #[test]
    fn counters_name_only_the_reasons_for_which_something_was_lost() {
        let counters = RelayCounters { sent: 3, sent_bytes: 400, dropped_rate: 2, ..RelayCounters::default() };
        let mut out = Vec::new();
        print_counters(&counters, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "sent      3 packets, 400 bytes\nreceived  0 packets, 0 bytes\n\
             dropped   2 packets: the relay's terms allow no more\n"
        );
    }
}
