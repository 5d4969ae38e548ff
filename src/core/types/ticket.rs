//! What a machine that waits to be let in is known by: a ticket, in the address that a person opens, and a short code.
//!
//! Whoever has the address may look at the page of that machine, so the ticket is too long to guess. The code follows from
//! it, so that the machine can show what the page repeats: who reads both knows that the page is of that machine. It is
//! also what an administrator types.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// What the code of a ticket is a digest of, before the ticket itself.
const CODE_OF: &[u8] = b"warren: the short code of a ticket\0";
/// The beginning of the path under which a ticket's page is.
const PATH: &str = "/a/";

/// The random part of the address at which a waiting machine is let in: 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ticket([u8; 16]);

/// The code of a machine that waits: eight letters and digits in two groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PendingCode(String);

/// A text that is neither a ticket nor a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TicketError {
    /// It is no ticket.
    #[error("the address of a machine that waits ends with 26 letters and digits")]
    Ticket,
    /// It is no code.
    #[error("a code is eight letters and digits, as in `MFRG-GZDF`")]
    Code,
}

impl Ticket {
    /// Makes a ticket of sixteen random bytes.
    pub const fn from_random(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The code that the machine shows and its page repeats.
    pub fn code(&self) -> PendingCode {
        let digest = Sha256::new().chain_update(CODE_OF).chain_update(self.0).finalize();
        let mut bytes = [0; 5];
        bytes.copy_from_slice(&digest[..5]);
        PendingCode::from_random(bytes)
    }

    /// The path of its page.
    pub fn path(&self) -> String {
        format!("{PATH}{self}")
    }

    /// The ticket in the address of a page, where that is an address of ours.
    pub fn in_url(url: &str) -> Option<Self> {
        url.rsplit_once(PATH)?.1.parse().ok()
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket of {}", self.code())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        if text.len() != 26 {
            return Err(TicketError::Ticket);
        }
        let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(TicketError::Ticket)
    }
}

impl PendingCode {
    /// Makes a code of five random bytes.
    pub fn from_random(bytes: [u8; 5]) -> Self {
        let text = BASE32_NOPAD.encode(&bytes);
        let (left, right) = text.split_at(4);
        Self(format!("{left}-{right}"))
    }

    /// As people type it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PendingCode {
    type Err = TicketError;

    /// Takes what a person types: any case, with or without the hyphen.
    fn from_str(text: &str) -> Result<Self, TicketError> {
        let compact: String = text.chars().filter(|c| *c != '-').take(9).collect();
        BASE32_NOPAD
            .decode(compact.to_ascii_uppercase().as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self::from_random)
            .ok_or(TicketError::Code)
    }
}

impl fmt::Display for PendingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Ticket {
    type Error = TicketError;

    fn try_from(text: String) -> Result<Self, TicketError> {
        text.parse()
    }
}

impl From<Ticket> for String {
    fn from(ticket: Ticket) -> Self {
        ticket.to_string()
    }
}

impl TryFrom<String> for PendingCode {
    type Error = TicketError;

    fn try_from(text: String) -> Result<Self, TicketError> {
        text.parse()
    }
}

impl From<PendingCode> for String {
    fn from(code: PendingCode) -> Self {
        code.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_a_person_types_it() {
        let code = PendingCode::from_random(*b"abcde");
        assert_eq!(code.as_str(), "MFRG-GZDF");
        for typed in ["MFRG-GZDF", "mfrggzdf", "mfrg-gzdf"] {
            assert_eq!(typed.parse::<PendingCode>().as_ref(), Ok(&code), "{typed}");
        }
        for bad in ["", "MFRG", "MFRG-GZDFA", "MFRG-GZD!", "日本"] {
            assert!(bad.parse::<PendingCode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ticket_is_found_in_its_address_and_both_ends_make_the_same_code_of_it() {
        let ticket = Ticket::from_random([7; 16]);
        let url = format!("https://vpn.example.org{}", ticket.path());
        assert_eq!(Ticket::in_url(&url), Some(ticket));
        assert_eq!(Ticket::in_url(&url.to_uppercase().replace("/A/", "/a/")), Some(ticket));
        assert_eq!(ticket.code(), Ticket::in_url(&url).unwrap().code());
        assert_ne!(ticket.code(), Ticket::from_random([8; 16]).code());
        for other in ["", "https://vpn.example.org/a/", "https://vpn.example.org/a/abc", "https://x/register/MFRG-GZDF"]
        {
            assert_eq!(Ticket::in_url(other), None, "{other}");
        }
    }

    #[test]
    fn a_ticket_is_not_shown_where_somebody_looks_for_faults() {
        let ticket = Ticket::from_random([7; 16]);
        assert!(!format!("{ticket:?}").contains(&ticket.to_string()));
    }
}
