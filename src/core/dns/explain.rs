//! A question as a person asks it, and why it is answered as it is.

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Record, RecordType};

use super::domain::Domain;
use super::zones::{Finding, Zones};

/// Why a name is answered as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// In words.
    pub rule: String,
    /// Who is asked; nobody where the answer is ours.
    pub servers: Vec<String>,
}

/// What a message answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// `NOERROR`, `NXDOMAIN`, …
    pub code: String,
    /// A line for each record of the answer.
    pub records: Vec<String>,
}

/// The number of a type of records, by its name; nothing for those that nobody asks for.
pub fn record_type(name: &str) -> Option<u16> {
    let known = ["A", "AAAA", "ANY", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "TXT"];
    let name = name.to_ascii_uppercase();
    let parsed: RecordType = known.contains(&name.as_str()).then(|| name.parse().ok()).flatten()?;
    Some(parsed.into())
}

/// The message that asks for a name; nothing where it is none. An address asks for its name.
pub fn question(name: &str, kind: u16, number: u16) -> Option<Vec<u8>> {
    let domain: Domain = name.parse().ok()?;
    let mut message = Message::new(number, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(domain.to_name()?, RecordType::from(kind)));
    message.to_vec().ok()
}

/// What an answer says; nothing where it is none.
pub fn describe(answer: &[u8]) -> Option<Described> {
    let message = Message::from_vec(answer).ok()?;
    let record = |record: &Record| format!("{} {} {}", record.name, record.record_type(), record.data);
    let code = message.metadata.response_code.to_string();
    Some(Described { code, records: message.answers.iter().map(record).collect() })
}

impl Zones {
    /// Why a name is answered as it is.
    pub fn explain(&self, name: &str, kind: u16) -> Explained {
        let Ok(domain) = name.parse::<Domain>() else { return Explained::default() };
        let (rule, servers) = match self.find(&domain, RecordType::from(kind)) {
            Finding::Addresses(_) | Finding::Pointer(_) | Finding::NoData(_) => {
                ("this machine knows the name: a node's, or a record of the coordinator".to_owned(), Vec::new())
            }
            Finding::NoSuchName(zone) => (format!("nobody else is asked for names within {zone}"), Vec::new()),
            Finding::Ask(servers) => {
                let route = self.routes().filter(|(suffix, _)| domain.is_within(suffix));
                let rule = match route.max_by_key(|(suffix, _)| suffix.as_str().len()) {
                    Some((suffix, _)) => format!("the coordinator names servers for {suffix}"),
                    None if self.takes_everything() => "the coordinator names servers for all other names".to_owned(),
                    None => "this host's own name servers are asked for all other names".to_owned(),
                };
                (rule, servers.iter().map(ToString::to_string).collect())
            }
            Finding::Nobody => ("nobody is known who could be asked".to_owned(), Vec::new()),
        };
        Explained { rule, servers }
    }
}
