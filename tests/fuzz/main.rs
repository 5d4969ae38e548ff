//! Any bytes at all into every decoder: an answer or an error, never a panic, never without end.
//!
//! `corpus/DECODER/` holds messages: `ok-…` must be taken, `bad-…` must be refused; `.hex` files are hexadecimal, with
//! comments after `#`. Each is replayed as it is, cut off after every byte, and changed in [`CHANGES`] ways drawn from
//! a fixed seed, so a failure repeats. A new decoder is one line in [`DECODERS`] and at least one `ok-` file; an input
//! that once broke something is a file too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod decoders;

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use decoders::{DECODERS, corpus, now};
use warren_core::netcheck::Gateway;
use warren_core::netcheck::portmap;

/// Changed copies of each message in the corpus.
const CHANGES: usize = 2_000;

#[test]
fn every_decoder_takes_the_good_and_refuses_the_bad_messages_of_its_corpus() {
    for (decoder, decode) in DECODERS {
        let corpus = corpus(decoder);
        assert!(corpus.keys().any(|name| name.starts_with("ok-")), "{decoder} has no message that it takes");
        for (name, bytes) in corpus {
            assert_eq!(decode(&bytes), name.starts_with("ok-"), "{decoder}/{name}");
        }
    }
}

#[test]
fn no_decoder_falls_over_a_message_that_is_cut_off_anywhere() {
    for (decoder, decode) in DECODERS {
        for bytes in corpus(decoder).values() {
            for length in 0..bytes.len() {
                decode(&bytes[..length]);
            }
        }
    }
}

#[test]
fn no_decoder_falls_over_changed_messages() {
    let mut chance = Chance(0x5741_5252_454e_0001);
    for (decoder, decode) in DECODERS {
        for bytes in corpus(decoder).values() {
            for _ in 0..CHANGES {
                decode(&chance.change(bytes));
            }
        }
    }
}

#[test]
fn every_corpus_belongs_to_a_decoder() {
    for entry in fs::read_dir(Path::new("tests/fuzz/corpus")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(DECODERS.iter().any(|(decoder, _)| name.to_str() == Some(decoder)), "{name:?} has no decoder");
    }
}

/// A day with a gateway that says whatever comes to mind, in its own name and in reply to everything: a few questions a
/// minute at most, and no end to them.
#[test]
fn a_gateway_that_says_anything_at_all_is_asked_a_bounded_number_of_times() {
    let mut chance = Chance(0x5741_5252_454e_0002);
    let datagrams: Vec<_> =
        ["portmap_pcp", "portmap_nat_pmp", "portmap_ssdp"].iter().flat_map(|d| corpus(d).into_values()).collect();
    let bodies: Vec<_> =
        ["portmap_igd_description", "portmap_igd_answer"].iter().flat_map(|d| corpus(d).into_values()).collect();
    let gateway = Gateway { address: "192.168.1.1".parse().unwrap(), local: "192.168.1.5".parse().unwrap() };
    for _ in 0..20 {
        let begun = now();
        let mut mapper = portmap::PortMapper::new(41_741, *b"abcdefghijkl");
        mapper.handle_gateway(Some(gateway));
        let mut asked = 0;
        for minute in 0..24 * 60 {
            let now = begun + Duration::from_secs(60 * minute);
            mapper.handle_wanted(now);
            mapper.handle_timeout(now);
            for _ in 0..4 {
                let from = SocketAddrV4::new(gateway.address, [5_351, 1_900][chance.below(2)]);
                let bytes = &datagrams[chance.below(datagrams.len())];
                let payload = if chance.below(2) == 0 { bytes.clone() } else { chance.change(bytes) };
                mapper.handle_input(portmap::Input::Datagram { from, payload }, now);
                while let Some(action) = mapper.poll_action() {
                    asked += 1;
                    let portmap::Action::Http { id, to, .. } = action else { continue };
                    assert_eq!(*to.ip(), gateway.address);
                    let body = &bodies[chance.below(bodies.len())];
                    let body = chance.change(body);
                    mapper.handle_input(portmap::Input::Http { id, outcome: Ok(body) }, now);
                }
            }
        }
        assert!(asked <= 24 * 60 * 4, "{asked} questions in a day");
    }
}

/// xorshift64: the same draws on every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// A copy with one to four changes, each of a kind that decoders have been known to fall over.
    fn change(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = at + self.below(bytes.len() - at);
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = [0, 0x7f, 0x80, 0xff][self.below(4)],
                2 => drop(bytes.drain(at..end)),
                3 => bytes.extend_from_within(at..end),
                4 => drop(bytes.splice(at..at, b"99999999999999999999".iter().copied())),
                _ => drop(bytes.splice(at..end, (0..end - at).map(|_| b'['))),
            }
        }
        bytes
    }
}
