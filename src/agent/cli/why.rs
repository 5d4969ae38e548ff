//! `warren acl` and `warren why`.

use std::io::Write;

use clap::Args as Arguments;

use super::{Client, Error, Exit, print_json};
use warren_core::types::Traffic;
use warren_core::wire::local::{AclReply, AclRule, WhyReply};

/// The arguments of `why`.
#[derive(Clone, Debug, Default, Arguments)]
pub struct Why {
    /// Who sends: a node's name, an address, or `self`
    pub src: String,
    /// To whom: the same
    pub dst: String,
    /// What: `tcp/22`, `udp/53`, `icmp`, a protocol number; `22` alone is `tcp/22`; without it, a ping
    #[arg(value_name = "PROTO[/PORT]")]
    pub what: Option<Traffic>,
}

/// Lists the rules with their counters.
pub(super) async fn acl(client: &Client, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let reply: AclReply = client.own("acl").await?;
    if json {
        return print_json(out, &reply);
    }
    if reply.rules.is_empty() {
        writeln!(out, "no rule lets anybody open anything here")?;
    }
    for rule in &reply.rules {
        write_rule(out, rule, "")?;
        writeln!(
            out,
            "    {} sources, {} packets, {} bytes (rule_{})",
            rule.sources, rule.packets, rule.bytes, rule.id
        )?;
    }
    writeln!(out, "\ndropped:")?;
    for denied in &reply.denied {
        let reason = denied.reason.trim_start_matches("denied_").replace('_', " ");
        writeln!(out, "    {:>8} packets  {reason}", denied.packets)?;
    }
    if !reply.kernel.is_empty() {
        writeln!(out, "\n{}", reply.kernel)?;
    }
    Ok(Exit::Ok)
}

/// Tells whether a packet passes, and why.
pub(super) async fn why(client: &Client, why: &Why, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let Traffic { protocol, port } = why.what.clone().unwrap_or_default();
    let (protocol, port) = (protocol.unwrap_or_default(), port.unwrap_or_default());
    let call = format!("why?src={}&dst={}&proto={protocol}&port={port}", escaped(&why.src), escaped(&why.dst));
    let reply: WhyReply = client.own(&call).await?;
    let exit = if reply.allowed && reply.kernel_agrees { Exit::Ok } else { Exit::Failed };
    if json {
        print_json(out, &reply)?;
        return Ok(exit);
    }
    writeln!(out, "{}: {}", reply.packet, if reply.allowed { "allowed" } else { "denied" })?;
    writeln!(out, "  {}", reply.because)?;
    if let Some(rule) = &reply.rule {
        write_rule(out, rule, "  ")?;
        if reply.allowed {
            writeln!(out, "      {} packets opened something by it (rule_{})", rule.packets, rule.id)?;
        }
    }
    if !reply.near.is_empty() {
        writeln!(out, "  the rules that name the source:")?;
        reply.near.iter().try_for_each(|rule| write_rule(out, rule, "    "))?;
    }
    if !reply.kernel.is_empty() {
        writeln!(out, "  kernel: {}{}", reply.kernel, if reply.kernel_agrees { "" } else { "  <-- differs" })?;
    }
    Ok(exit)
}

fn write_rule(out: &mut impl Write, rule: &AclRule, indent: &str) -> Result<(), Error> {
    let place: Vec<String> =
        rule.origins.iter().map(|origin| format!("line {} ({})", origin.line, origin.reference)).collect();
    let place = if place.is_empty() { "of the coordinator's filter".to_owned() } else { place.join(", ") };
    writeln!(out, "{indent}rule {place}")?;
    // ICMP goes along with every right, so it is told only where it stands alone.
    let is_said = |right: &&String| rule.rights.len() <= 2 || !right.starts_with("icmp");
    for right in rule.rights.iter().filter(is_said) {
        writeln!(out, "{indent}    {right}")?;
    }
    Ok(())
}

/// As part of a query: names have no other characters, and whatever has is no name.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_typed_stays_one_value_of_the_query() {
        assert_eq!(escaped("fd7a::1"), "fd7a::1");
        assert_eq!(escaped("a&dst=b c"), "a%26dst%3Db%20c");
    }
}
