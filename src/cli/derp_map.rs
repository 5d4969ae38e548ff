//! `warren derp-map`: the relays that the coordinator names.

use std::io::Write;

use super::{Client, Error, Exit, print_json, render};
use crate::wire::control::{DerpMap, DerpNode};

/// Prints them, a line each.
pub(super) async fn derp_map(client: &Client, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let map: DerpMap = client.derp_map().await?;
    if json {
        return print_json(out, &map);
    }
    print(&map, out)
}

fn print(map: &DerpMap, out: &mut impl Write) -> Result<Exit, Error> {
    let regions = map.regions.iter().filter_map(|(id, region)| Some((id, region.as_ref()?)));
    let rows: Vec<[String; 5]> = regions
        .flat_map(|(id, region)| {
            region.nodes.iter().map(move |node| {
                let at = |port: String| format!("{}:{port}", node.host_name);
                let derp = if node.stun_only { "-".to_owned() } else { at(derp_port(node).to_string()) };
                let stun = stun_port(node).map_or_else(|| "-".to_owned(), |port| at(port.to_string()));
                [id.to_string(), region.region_code.clone(), region.region_name.clone(), derp, format!("stun {stun}")]
            })
        })
        .collect();
    if rows.is_empty() {
        writeln!(out, "The coordinator names no relays: only peers that reach each other directly can talk.")?;
        return Ok(Exit::Ok);
    }
    render::table(out, &rows)?;
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
    use crate::types::RegionId;
    use crate::wire::control::DerpRegion;

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

        print(&map, &mut out).unwrap();

        assert_eq!(
            String::from_utf8(out).unwrap(),
            "900  warren  Embedded  a.example.net:443   stun a.example.net:3478\n\
             900  warren  Embedded  b.example.net:8443  stun -\n"
        );
    }
}
