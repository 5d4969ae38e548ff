//! `warren dns status` and `warren dns query`.

use std::io::Write;

use clap::{Args as Arguments, Subcommand};
use data_encoding::BASE64;

use super::why::escaped;
use super::{Client, Error, Exit, print_json};
use warren_core::dns::describe;
use warren_core::wire::local::{DnsReply, DnsStatusReply};

/// What is asked about names.
#[derive(Debug, Subcommand)]
pub enum Dns {
    /// Show how this machine resolves names, and what its own resolver was told
    Status,
    /// Ask this machine's resolver for a name, and tell who answered and why
    Query(Query),
}

/// The arguments of `dns query`.
#[derive(Debug, Arguments)]
pub struct Query {
    /// A node's name, or any other
    pub name: String,
    /// A, AAAA, ANY, CNAME, HTTPS, MX, NS, PTR, SOA, SRV or TXT
    #[arg(default_value = "A")]
    pub r#type: String,
}

pub(super) async fn dns(client: &Client, dns: Dns, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    match dns {
        Dns::Status => status(client, json, out).await,
        Dns::Query(asked) => query(client, &asked, json, out).await,
    }
}

async fn status(client: &Client, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let reply: DnsStatusReply = client.own("dns-status").await?;
    if json {
        return print_json(out, &reply);
    }
    write_status(out, &reply)?;
    Ok(Exit::Ok)
}

fn write_status(out: &mut impl Write, reply: &DnsStatusReply) -> Result<(), Error> {
    match (reply.answers, reply.magic_dns) {
        (true, true) => writeln!(out, "names within {} are answered at 100.100.100.100", reply.domain)?,
        (true, false) => writeln!(out, "the coordinator has names of machines not answered")?,
        (false, _) => writeln!(out, "this machine answers no names now")?,
    }
    let told = match (reply.accept_dns, reply.told_by.as_str()) {
        (false, _) => "is as it was: --accept-dns=false".to_owned(),
        (true, "") => "is as it was".to_owned(),
        (true, by) => format!("asks there too, told by {by}"),
    };
    writeln!(out, "this host's own resolver {told}")?;
    for text in reply.trouble.iter().chain(&reply.faults) {
        writeln!(out, "  {text}")?;
    }
    if !reply.search.is_empty() {
        writeln!(out, "search: {}", reply.search.join(" "))?;
    }
    writeln!(out, "who is asked for names within")?;
    // Of the reverse zones there are dozens, all of them alike.
    let (reverse, routes): (Vec<_>, Vec<_>) =
        reply.routes.iter().partition(|route| route.servers.is_empty() && route.suffix.ends_with(".arpa"));
    for route in routes {
        let servers = if route.servers.is_empty() { "this machine".to_owned() } else { route.servers.join(", ") };
        writeln!(out, "  {}: {servers}", route.suffix)?;
    }
    if !reverse.is_empty() {
        writeln!(out, "  addresses of the network: this machine")?;
    }
    let others = if reply.others.is_empty() { "nobody".to_owned() } else { reply.others.join(", ") };
    writeln!(out, "  all others: {others}")?;
    Ok(())
}

async fn query(client: &Client, asked: &Query, json: bool, out: &mut (impl Write + Send)) -> Result<Exit, Error> {
    let call = format!("dns-query?name={}&type={}", escaped(&asked.name), escaped(&asked.r#type));
    let reply: DnsReply = client.theirs(&call).await?;
    let broken = |reason: &str| Error::Broken { call: "dns-query".to_owned(), reason: reason.to_owned() };
    let bytes = BASE64.decode(reply.bytes.as_bytes()).map_err(|_| broken("no base64"))?;
    let answer = describe(&bytes).ok_or_else(|| broken("no answer"))?;
    let exit = if answer.records.is_empty() { Exit::Failed } else { Exit::Ok };
    if json {
        let servers: Vec<&str> = reply.resolvers.iter().map(|server| server.addr.as_str()).collect();
        print_json(
            out,
            &serde_json::json!({
                "code": answer.code, "records": answer.records, "rule": reply.rule, "servers": servers,
                "milliseconds": reply.milliseconds,
            }),
        )?;
        return Ok(exit);
    }
    writeln!(out, "{}, in {:.1} ms", answer.code, reply.milliseconds)?;
    for record in &answer.records {
        writeln!(out, "  {record}")?;
    }
    writeln!(out, "because {}", reply.rule)?;
    for server in &reply.resolvers {
        writeln!(out, "  asked: {}", server.addr)?;
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use warren_core::wire::local::DnsRoute;

    use super::*;

    fn text(reply: &DnsStatusReply) -> String {
        let mut out = Vec::new();
        write_status(&mut out, reply).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_status_says_who_was_told_what_and_who_is_asked_for_what() {
        let route = |suffix: &str, servers: &[&str]| DnsRoute {
            suffix: suffix.to_owned(),
            servers: servers.iter().map(|server| (*server).to_owned()).collect(),
        };
        let reply = DnsStatusReply {
            accept_dns: true,
            magic_dns: true,
            domain: "warren.internal".to_owned(),
            answers: true,
            told_by: "systemd-resolved".to_owned(),
            search: vec!["warren.internal".to_owned()],
            routes: vec![
                route("64.100.in-addr.arpa", &[]),
                route("corp.example", &["10.0.0.1", "10.0.0.2"]),
                route("warren.internal", &[]),
            ],
            others: vec!["9.9.9.9".to_owned()],
            ..DnsStatusReply::default()
        };
        assert_eq!(
            text(&reply),
            "names within warren.internal are answered at 100.100.100.100\n\
             this host's own resolver asks there too, told by systemd-resolved\n\
             search: warren.internal\n\
             who is asked for names within\n  \
               corp.example: 10.0.0.1, 10.0.0.2\n  \
               warren.internal: this machine\n  \
               addresses of the network: this machine\n  \
               all others: 9.9.9.9\n"
        );
        let left = DnsStatusReply { told_by: String::new(), trouble: vec!["why".to_owned()], ..reply.clone() };
        assert!(text(&left).contains("resolver is as it was\n  why\n"));
        let refused = DnsStatusReply { accept_dns: false, ..left };
        assert!(text(&refused).contains("--accept-dns=false"));
    }
}
