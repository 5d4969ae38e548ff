//! What the answer of another server says, for whoever looks a name up for itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};

/// Other names that a name leads to, one after the other. Resolvers follow about as many.
const ALIASES: usize = 16;

/// The addresses of the name that was asked for, by way of its other names; nothing where the server cannot say.
pub fn addresses(answer: &[u8]) -> Option<Vec<IpAddr>> {
    let message = Message::from_vec(answer).ok()?;
    let [query] = &message.queries[..] else { return None };
    if !matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return None;
    }
    let mut names: BTreeSet<Name> = BTreeSet::from([query.name.to_lowercase()]);
    let alias = |names: &BTreeSet<Name>, record: &Record| {
        let RData::CNAME(target) = &record.data else { return None };
        names.contains(&record.name.to_lowercase()).then(|| target.0.to_lowercase())
    };
    for _ in 0..ALIASES {
        let next = message.answers.iter().filter_map(|record| alias(&names, record)).find(|name| !names.contains(name));
        let Some(next) = next else { break };
        names.insert(next);
    }
    let address = |record: &Record| {
        if let RData::A(address) = &record.data {
            return Some(IpAddr::V4(address.0));
        }
        if let RData::AAAA(address) = &record.data { Some(IpAddr::V6(address.0)) } else { None }
    };
    let of_name = message.answers.iter().filter(|record| names.contains(&record.name.to_lowercase()));
    Some(of_name.filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode, Query};
    use hickory_proto::rr::RecordType;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn answer(code: ResponseCode, records: &[(&str, RData)]) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.add_query(Query::query(name("Hub.test."), RecordType::A));
        message.add_answers(records.iter().map(|(of, data)| Record::from_rdata(name(of), 5, data.clone())));
        message.to_vec().unwrap()
    }

    #[test]
    fn addresses_are_those_of_the_name_and_of_what_it_leads_to() {
        let [one, two] = [[192, 0, 2, 1], [192, 0, 2, 2]];
        let address = |octets: [u8; 4]| RData::A(A(octets.into()));
        let alias = |to: &str| RData::CNAME(CNAME(name(to)));
        let found = |records: &[(&str, RData)]| addresses(&answer(ResponseCode::NoError, records));
        assert_eq!(found(&[("hub.test.", address(one)), ("other.test.", address(two))]), Some(vec![one.into()]));
        let chain = [("b.test.", address(two)), ("a.test.", alias("B.test.")), ("hub.test.", alias("a.test."))];
        assert_eq!(found(&chain), Some(vec![two.into()]));
        assert_eq!(found(&[("hub.test.", alias("a.test.")), ("a.test.", alias("hub.test."))]), Some(vec![]));
        assert_eq!(addresses(&answer(ResponseCode::NXDomain, &[])), Some(vec![]));
        assert_eq!(addresses(&answer(ResponseCode::ServFail, &[("hub.test.", address(one))])), None);
        assert_eq!(addresses(b"no message"), None);
    }
}
