//! `warren ping`: whether a peer answers, how fast, and which way.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use super::args::Ping;
use super::{Client, Error, Exit, print_json, render};
use warren_core::wire::local::{PingKind, PingReply};

/// Between two pings.
const PACE: Duration = Duration::from_secs(1);

/// Pings until enough answers came, or the direct path is there. Fails where nothing ever answered, or where a direct
/// path was waited for in vain.
pub(super) async fn ping(
    client: &Client,
    wanted: &Ping,
    json: bool,
    out: &mut (impl Write + Send),
) -> Result<Exit, Error> {
    let (name, address) = target(client, &wanted.node).await?;
    let mut answered = false;
    let mut astray = false;
    let mut sent: u32 = 0;
    loop {
        sent = sent.saturating_add(1);
        let asked = client.ping(address, wanted.kind);
        match tokio::time::timeout(wanted.timeout, asked).await {
            Err(_) => writeln!(out, "ping {name} ({address}): no answer within {} s", wanted.timeout.as_secs_f64())?,
            Ok(reply) => {
                let reply = reply?;
                if reply.is_local_ip {
                    return Err(Error::Failed(format!("{address} is this machine")));
                }
                answered |= reply.err.is_empty();
                astray |= !reply.astray.is_empty();
                if json {
                    print_json(out, &reply).map(drop)?
                } else {
                    writeln!(out, "{}", line(&reply, wanted.kind))?;
                    if !reply.astray.is_empty() {
                        writeln!(out, "  but {}", reply.astray)?;
                    }
                }
                if !astray && wanted.kind == PingKind::Disco && wanted.until_direct && !reply.endpoint.is_empty() {
                    return Ok(Exit::Ok);
                }
            }
        }
        out.flush()?;
        if sent == wanted.count {
            break;
        }
        tokio::time::sleep(PACE).await;
    }
    if !answered {
        return Err(Error::Failed("no answer".to_owned()));
    }
    if astray {
        let text = "the peer answers, but what programs send to it does not go into the tunnel";
        return Err(Error::Failed(text.to_owned()));
    }
    if wanted.kind == PingKind::Disco && wanted.until_direct {
        let text = "no direct path was found; `warren netcheck` shows what this machine's network allows";
        return Err(Error::Failed(text.to_owned()));
    }
    Ok(Exit::Ok)
}

/// The peer's name and an address of it. An address needs no peer of that name: it may be of a subnet behind one.
async fn target(client: &Client, node: &str) -> Result<(String, IpAddr), Error> {
    if let Ok(address) = node.parse() {
        return Ok((node.to_owned(), address));
    }
    let status = client.status(true).await?;
    let peer = render::find(&status, node).ok_or_else(|| Error::Failed(format!("no peer is called {node}")))?;
    let address = peer.tailscale_ips.first().ok_or_else(|| Error::Failed(format!("{node} has no address")))?;
    Ok((node.to_owned(), *address))
}

fn line(reply: &PingReply, kind: PingKind) -> String {
    if !reply.err.is_empty() {
        return format!("ping {}: {}", reply.ip, reply.err);
    }
    let via = match (kind, reply.endpoint.as_str(), reply.derp_region_code.as_str()) {
        (PingKind::Icmp, ..) => "the tunnel".to_owned(),
        (_, "", region) => format!("relay {region}"),
        (_, endpoint, _) => endpoint.to_owned(),
    };
    let milliseconds = reply.latency_seconds * 1_000.0;
    // Within a machine room, whole milliseconds would all read 0.
    let digits = usize::from(milliseconds < 10.0);
    format!("pong from {} ({}) via {via} in {milliseconds:.digits$} ms", reply.node_name, reply.node_ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> PingReply {
        PingReply {
            ip: "100.64.0.2".to_owned(),
            node_ip: "100.64.0.2".to_owned(),
            node_name: "bob".to_owned(),
            latency_seconds: 0.012_3,
            ..PingReply::default()
        }
    }

    #[test]
    fn a_line_names_the_path() {
        let relayed = PingReply { derp_region_code: "warren".to_owned(), ..reply() };
        assert_eq!(line(&relayed, PingKind::Disco), "pong from bob (100.64.0.2) via relay warren in 12 ms");
        let direct = PingReply { endpoint: "203.0.113.5:41741".to_owned(), latency_seconds: 0.003_14, ..reply() };
        assert_eq!(line(&direct, PingKind::Disco), "pong from bob (100.64.0.2) via 203.0.113.5:41741 in 3.1 ms");
        assert_eq!(line(&reply(), PingKind::Icmp), "pong from bob (100.64.0.2) via the tunnel in 12 ms");
    }

    #[test]
    fn an_answer_that_is_none_says_why() {
        let failed = PingReply::failed("100.64.0.9".parse().unwrap(), "no peer has this address");
        assert_eq!(line(&failed, PingKind::Disco), "ping 100.64.0.9: no peer has this address");
    }
}
