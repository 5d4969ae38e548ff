//! The handshake: two messages, after which both ends hold the same two keys.

use std::fmt;
use std::sync::Mutex;

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{
    HEADER_LEN, INITIATION, INITIATION_LEN, KEY_LEN, NoiseError, REFUSAL, RESPONSE, RESPONSE_LEN, Transport, header,
    take,
};
use crate::types::{CapabilityVersion, MachinePrivate, MachinePublic};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &str = "Tailscale Control Protocol v";
/// How much of a refusal is read. It is a sentence for a person, from nobody we know.
const MAX_REFUSAL: usize = 1024;

/// The secret that makes one handshake fresh: 32 random bytes, drawn by the caller, used once.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Ephemeral([u8; KEY_LEN]);

impl Ephemeral {
    /// Takes 32 bytes from a cryptographic random generator.
    pub const fn from_random(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Ephemeral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The client's end, between its own message and the coordinator's answer.
pub struct ClientHandshake {
    state: Box<snow::HandshakeState>,
    /// The beginning of the answer.
    answer: Vec<u8>,
}

impl ClientHandshake {
    /// Begins, and gives the message to send.
    pub fn start(
        machine: &MachinePrivate,
        coordinator: &MachinePublic,
        version: CapabilityVersion,
        ephemeral: Ephemeral,
    ) -> Result<(Self, [u8; INITIATION_LEN]), NoiseError> {
        let version16 = u16::try_from(version.0).map_err(|_| NoiseError::Version(version.0))?;
        let prologue = prologue(version16);
        // Our identity in this handshake.
        let private = machine.expose_bytes();
        let mut state = builder(ephemeral)?
            .prologue(prologue.as_bytes())
            .and_then(|builder| builder.local_private_key(private))
            .and_then(|builder| builder.remote_public_key(coordinator.as_bytes()))
            .and_then(snow::Builder::build_initiator)
            .map_err(|_| NoiseError::Handshake)?;

        let mut message = [0; INITIATION_LEN];
        message[..2].copy_from_slice(&version16.to_be_bytes());
        message[2..INITIATION_HEADER].copy_from_slice(&header(INITIATION, INITIATION_LEN - INITIATION_HEADER));
        write_exactly(&mut state, &mut message[INITIATION_HEADER..])?;
        Ok((Self { state: Box::new(state), answer: Vec::new() }, message))
    }

    /// Takes what the coordinator answers off the front of `input`, in any pieces, until the channel stands.
    ///
    /// What is left of `input` then is the first records.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Transport>, NoiseError> {
        while !input.is_empty() {
            let wanted = answer_length(&self.answer)?;
            self.answer.extend_from_slice(take(input, wanted - self.answer.len()));
            if self.answer.len() < HEADER_LEN || answer_length(&self.answer)? > self.answer.len() {
                continue;
            }
            if self.answer[0] == REFUSAL {
                return Err(NoiseError::Refused(String::from_utf8_lossy(&self.answer[HEADER_LEN..]).into_owned()));
            }
            self.state.read_message(&self.answer[HEADER_LEN..], &mut []).map_err(|_| NoiseError::Handshake)?;
            let (send, receive) = split(&mut self.state);
            return Ok(Some(Transport::new(&send, &receive)));
        }
        Ok(None)
    }
}

/// The coordinator's end, once it has read the client's message.
pub struct ServerHandshake {
    state: snow::HandshakeState,
    version: CapabilityVersion,
    machine: MachinePublic,
}

impl ServerHandshake {
    /// Reads the client's message.
    pub fn read(coordinator: &MachinePrivate, initiation: &[u8], ephemeral: Ephemeral) -> Result<Self, NoiseError> {
        let initiation: &[u8; INITIATION_LEN] =
            initiation.try_into().map_err(|_| NoiseError::NotAHandshake("wrong length"))?;
        let version = u16::from_be_bytes([initiation[0], initiation[1]]);
        if initiation[2..INITIATION_HEADER] != header(INITIATION, INITIATION_LEN - INITIATION_HEADER) {
            return Err(NoiseError::NotAHandshake("wrong type or length field"));
        }
        let prologue = prologue(version);
        // Our identity in this handshake.
        let private = coordinator.expose_bytes();
        let mut state = builder(ephemeral)?
            .prologue(prologue.as_bytes())
            .and_then(|builder| builder.local_private_key(private))
            .and_then(snow::Builder::build_responder)
            .map_err(|_| NoiseError::Handshake)?;
        state.read_message(&initiation[INITIATION_HEADER..], &mut []).map_err(|_| NoiseError::Handshake)?;

        let machine = state.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(NoiseError::Handshake)?;
        // With a point of low order anyone can compute the shared secret: it proves no identity.
        if !StaticSecret::from(*private).diffie_hellman(&PublicKey::from(machine)).was_contributory() {
            return Err(NoiseError::Handshake);
        }
        let version = CapabilityVersion(version.into());
        Ok(Self { state, version, machine: MachinePublic::from_bytes(machine) })
    }

    /// The version that the client speaks.
    pub const fn version(&self) -> CapabilityVersion {
        self.version
    }

    /// Who the client is. It has proven this only once a record of its opens: the first message may be a replay.
    pub const fn machine(&self) -> MachinePublic {
        self.machine
    }

    /// Accepts: gives the message to send, and the channel.
    pub fn accept(mut self) -> Result<([u8; RESPONSE_LEN], Transport), NoiseError> {
        let mut message = [0; RESPONSE_LEN];
        message[..HEADER_LEN].copy_from_slice(&header(RESPONSE, RESPONSE_LEN - HEADER_LEN));
        write_exactly(&mut self.state, &mut message[HEADER_LEN..])?;
        let (receive, send) = split(&mut self.state);
        Ok((message, Transport::new(&send, &receive)))
    }
}

/// The message that tells a client, in the clear, why there will be no channel. Never echo its own bytes to it.
pub fn refusal(reason: &str) -> Vec<u8> {
    let reason = &reason.as_bytes()[..reason.len().min(MAX_REFUSAL)];
    [&header(REFUSAL, reason.len())[..], reason].concat()
}

const INITIATION_HEADER: usize = 2 + HEADER_LEN;

/// How many bytes of the answer to read, given its beginning.
fn answer_length(answer: &[u8]) -> Result<usize, NoiseError> {
    let Some(&[kind, high, low]) = answer.first_chunk::<HEADER_LEN>() else {
        return Ok(HEADER_LEN);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    match kind {
        RESPONSE if length == RESPONSE_LEN - HEADER_LEN => Ok(RESPONSE_LEN),
        RESPONSE => Err(NoiseError::NotAHandshake("wrong length field")),
        REFUSAL => Ok(HEADER_LEN + length.min(MAX_REFUSAL)),
        _ => Err(NoiseError::NotAHandshake("wrong type")),
    }
}

/// Both ends must agree on the version; hashing it into the handshake makes them.
fn prologue(version: u16) -> String {
    format!("{PROLOGUE}{version}")
}

fn builder(ephemeral: Ephemeral) -> Result<snow::Builder<'static>, NoiseError> {
    let params = PATTERN.parse().map_err(|_| NoiseError::Handshake)?;
    Ok(snow::Builder::with_resolver(params, Box::new(GivenRandomness(Mutex::new(Some(ephemeral))))))
}

fn write_exactly(state: &mut snow::HandshakeState, message: &mut [u8]) -> Result<(), NoiseError> {
    match state.write_message(&[], message) {
        Ok(written) if written == message.len() => Ok(()),
        _ => Err(NoiseError::Handshake),
    }
}

/// The keys of both directions, the client's first.
fn split(state: &mut snow::HandshakeState) -> (Zeroizing<[u8; KEY_LEN]>, Zeroizing<[u8; KEY_LEN]>) {
    let (client, coordinator) = state.dangerously_get_raw_split();
    (Zeroizing::new(client), Zeroizing::new(coordinator))
}

/// Snow's own primitives, except that randomness is what the caller gave: once, and no more.
struct GivenRandomness(Mutex<Option<Ephemeral>>);

impl CryptoResolver for GivenRandomness {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(self.0.lock().ok()?.take())))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Once(Option<Ephemeral>);

impl Random for Once {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let given = self.0.take().filter(|given| given.0.len() == dest.len()).ok_or(snow::Error::Rng)?;
        dest.copy_from_slice(&given.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    const VERSION: CapabilityVersion = CapabilityVersion(145);

    fn machine() -> MachinePrivate {
        MachinePrivate::from_random([0x11; 32])
    }

    fn coordinator() -> MachinePrivate {
        MachinePrivate::from_random([0x22; 32])
    }

    fn start() -> (ClientHandshake, [u8; INITIATION_LEN]) {
        let ephemeral = Ephemeral::from_random([0x33; 32]);
        ClientHandshake::start(&machine(), &coordinator().public(), VERSION, ephemeral).unwrap()
    }

    fn read(initiation: &[u8]) -> Result<ServerHandshake, NoiseError> {
        ServerHandshake::read(&coordinator(), initiation, Ephemeral::from_random([0x44; 32]))
    }

    fn error<T>(result: Result<T, NoiseError>) -> NoiseError {
        result.err().unwrap()
    }

    #[test]
    fn both_ends_agree_and_the_coordinator_learns_who_and_which_version() {
        let (mut client, initiation) = start();
        let server = read(&initiation).unwrap();
        assert_eq!((server.machine(), server.version()), (machine().public(), VERSION));

        let (response, mut there) = server.accept().unwrap();
        let mut wire = response.to_vec();
        there.sealer.seal(b"first words", &mut wire).unwrap();
        let mut input = &wire[..];
        let mut here = client.read(&mut input).unwrap().unwrap();
        let mut said = Vec::new();
        assert!(here.opener.open(&mut input, &mut said).unwrap());
        assert_eq!(said, b"first words");

        let (mut wire, mut said) = (Vec::new(), Vec::new());
        here.sealer.seal(b"answer", &mut wire).unwrap();
        assert!(there.opener.open(&mut &wire[..], &mut said).unwrap());
        assert_eq!(said, b"answer");
    }

    #[test]
    fn the_answer_may_come_byte_by_byte() {
        let (mut client, initiation) = start();
        let (response, _) = read(&initiation).unwrap().accept().unwrap();
        for byte in &response[..RESPONSE_LEN - 1] {
            assert!(client.read(&mut &[*byte][..]).unwrap().is_none());
        }
        assert!(client.read(&mut &response[RESPONSE_LEN - 1..]).unwrap().is_some());
    }

    #[test]
    fn a_refusal_is_reported_in_its_own_words_and_cut_where_it_is_long() {
        let (mut client, _) = start();
        let reason = error(client.read(&mut &refusal("come back with 1.80")[..]));
        assert_eq!(reason, NoiseError::Refused("come back with 1.80".to_owned()));

        let (mut client, _) = start();
        let long = [&[3, 0xff, 0xff][..], &[b'x'; 70_000]].concat();
        assert_eq!(error(client.read(&mut &long[..])), NoiseError::Refused("x".repeat(MAX_REFUSAL)));
    }

    #[test]
    fn a_client_that_knows_another_coordinator_key_is_refused() {
        let ephemeral = Ephemeral::from_random([0x33; 32]);
        let (_, initiation) = ClientHandshake::start(&machine(), &machine().public(), VERSION, ephemeral).unwrap();
        assert_eq!(error(read(&initiation)), NoiseError::Handshake);
    }

    #[test]
    fn a_version_changed_on_the_way_fails_the_handshake() {
        let (_, mut initiation) = start();
        initiation[1] = 113;
        assert_eq!(error(read(&initiation)), NoiseError::Handshake);
    }

    #[test]
    fn a_machine_key_that_anyone_could_hold_is_no_identity() {
        let params: snow::params::NoiseParams = PATTERN.parse().unwrap();
        struct ZeroKey;
        impl CryptoResolver for ZeroKey {
            fn resolve_rng(&self) -> Option<Box<dyn Random>> {
                DefaultResolver.resolve_rng()
            }
            fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
                Some(Box::new(LowOrder(DefaultResolver.resolve_dh(&DHChoice::Curve25519)?)))
            }
            fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
                DefaultResolver.resolve_hash(choice)
            }
            fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
                DefaultResolver.resolve_cipher(choice)
            }
        }
        struct LowOrder(Box<dyn Dh>);
        impl Dh for LowOrder {
            fn name(&self) -> &'static str {
                self.0.name()
            }
            fn pub_len(&self) -> usize {
                32
            }
            fn priv_len(&self) -> usize {
                32
            }
            fn set(&mut self, key: &[u8]) {
                self.0.set(key);
            }
            fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
                self.0.generate(rng)
            }
            fn pubkey(&self) -> &[u8] {
                &[0; 32]
            }
            fn privkey(&self) -> &[u8] {
                self.0.privkey()
            }
            fn dh(&self, _: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
                out[..32].fill(0);
                Ok(())
            }
        }

        let public = coordinator().public();
        let mut state = snow::Builder::with_resolver(params, Box::new(ZeroKey))
            .prologue(prologue(145).as_bytes())
            .and_then(|b| b.local_private_key(&[1; 32]))
            .and_then(|b| b.remote_public_key(public.as_bytes()))
            .and_then(snow::Builder::build_initiator)
            .unwrap();
        let mut initiation = [0; INITIATION_LEN];
        initiation[..5].copy_from_slice(&[0, 145, 1, 0, 96]);
        state.write_message(&[], &mut initiation[5..]).unwrap();
        assert_eq!(error(read(&initiation)), NoiseError::Handshake);
    }

    #[test]
    fn the_messages_are_these_bytes() {
        let (_, initiation) = start();
        let expected = [
            "0091",                                                             // version 145
            "01",                                                               // initiation
            "0060",                                                             // 96 bytes follow
            "7b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14", // client's ephemeral key
            "61d2949213e755bc180b5d5dbbd8c50a2a1beb69f8940d24cab4606a34cd5d41", // machine key, sealed
            "eebe5d833461d4b6b4658416ef6fdc3a",                                 // its tag
            "92f6a14fa59d716285af13dddfd36d8f",                                 // tag of the empty payload
        ];
        assert_eq!(HEXLOWER.encode(&initiation), expected.concat());

        let (response, mut transport) = read(&initiation).unwrap().accept().unwrap();
        let expected = [
            "02",                                                               // response
            "0030",                                                             // 48 bytes follow
            "ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6b", // coordinator's ephemeral key
            "ab841131869e7156986c93b16af8a123",                                 // tag of the empty payload
        ];
        assert_eq!(HEXLOWER.encode(&response), expected.concat());

        let mut records = Vec::new();
        transport.sealer.seal(b"a", &mut records).unwrap();
        transport.sealer.seal(b"b", &mut records).unwrap();
        let expected = [
            "04",                               // record
            "0011",                             // 17 bytes follow
            "05",                               // "a", sealed with nonce 0
            "77f67d11030d8af70325a01b32fbe418", // tag
            "04",
            "0011",
            "7d", // "b", sealed with nonce 1, big-endian
            "4856e990b1fab0e99243fb3b450a1c8e",
        ];
        assert_eq!(HEXLOWER.encode(&records), expected.concat());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_as_a_first_message(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            framed in any::<bool>(),
        ) {
            if framed {
                bytes.resize(INITIATION_LEN, 7);
                bytes[2..5].copy_from_slice(&[1, 0, 96]);
            }
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_refused_as_an_answer_and_none_are_kept_beyond_the_limit(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
            kind in prop::option::of(0_u8..6),
        ) {
            let (mut client, _) = start();
            let mut bytes = chunks.concat();
            if let (Some(kind), Some(first)) = (kind, bytes.first_mut()) {
                *first = kind;
            }
            for chunk in bytes.chunks(50) {
                let answer = client.read(&mut &chunk[..]);
                prop_assert!(!matches!(answer, Ok(Some(_))));
                prop_assert!(client.answer.len() <= HEADER_LEN + MAX_REFUSAL);
                if answer.is_err() {
                    break;
                }
            }
        }
    }
}
