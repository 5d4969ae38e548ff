//! When a certificate begins and ceases to be valid, read from its DER (RFC 5280 §4.1).

use jiff::Timestamp;
use jiff::civil::DateTime;
use rustls::pki_types::CertificateDer;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Beginning and end; `None` where this is no certificate.
pub fn of(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let (SEQUENCE, whole, _) = element(certificate)? else { return None };
    let (SEQUENCE, mut fields, _) = element(whole)? else { return None };
    if let (VERSION, _, rest) = element(fields)? {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    let (SEQUENCE, validity, _) = element(fields)? else { return None };
    let (kind, begins, rest) = element(validity)?;
    let (other, ends, _) = element(rest)?;
    Some((time(kind, begins)?, time(other, ends)?))
}

/// Tag, content and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, first, rest @ ..] = bytes else { return None };
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // Certificates are far below 64 KiB.
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

fn time(kind: u8, text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let text = match kind {
        // Two digits of the year, from 1950 to 2049.
        UTC_TIME => format!("{}{text}", if text.get(..2)? < "50" { "20" } else { "19" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let civil = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    jiff::tz::Offset::UTC.to_timestamp(civil).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn both_spellings_of_a_year_are_read() {
        for (from, until) in [(2026, 2027), (1999, 2049), (2026, 2055)] {
            let mut params = CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 2), date_time_ymd(until, 3, 4));
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let (begins, ends) = of(certificate.der()).unwrap();
            assert_eq!(begins.to_string(), format!("{from}-01-02T00:00:00Z"));
            assert_eq!(ends.to_string(), format!("{until}-03-04T00:00:00Z"));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = of(&CertificateDer::from(bytes));
        }
    }
}
