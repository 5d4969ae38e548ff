//! Clients over in-memory pipes, speaking the real protocol.

use tokio::io::DuplexStream;

use super::*;
use warren_core::types::NodePublic;
use warren_core::wire::derp::{
    CLIENT_FRAME, ClientInfo, Frame, HEADER_LEN, VERSION, header, open_server_info, seal_client_info,
};

fn relay(admission: Admission) -> Arc<Relay> {
    let key = NodePrivate::from_random([1; 32]);
    Arc::new(Relay::new(RelayConfig { key, mesh: None, limits: Limits::default(), admission }))
}

const HOUR: Duration = Duration::from_secs(3600);

struct Client {
    key: NodePrivate,
    io: DuplexStream,
    unread: Vec<u8>,
}

impl Client {
    /// Connects up to the point where the relay answers or closes.
    async fn connect(relay: &Arc<Relay>, n: u8) -> Self {
        let (io, theirs) = tokio::io::duplex(1 << 16);
        let relay = Arc::clone(relay);
        tokio::spawn(async move { relay.serve(theirs, None, || ()).await });
        let mut client = Self { key: NodePrivate::from_random([n; 32]), io, unread: Vec::new() };
        let (_, body) = client.frame().await.unwrap();
        let Frame::ServerKey(server) = Frame::decode(warren_core::wire::derp::FrameType::SERVER_KEY, &body).unwrap()
        else {
            panic!("the relay's first frame is its key")
        };
        let info = ClientInfo { version: VERSION, ..ClientInfo::default() };
        let sealed = seal_client_info(&client.key, &server, [n; 24], &info).unwrap();
        client.say(Frame::ClientInfo { client: client.key.public(), sealed: &sealed }).await;
        client
    }

    async fn joined(relay: &Arc<Relay>, n: u8) -> Self {
        let mut client = Self::connect(relay, n).await;
        let (_, terms) = client.frame().await.unwrap();
        let server = NodePrivate::from_random([1; 32]).public();
        assert_eq!(open_server_info(&client.key, &server, &terms).unwrap().version, VERSION);
        client
    }

    fn public(&self) -> NodePublic {
        self.key.public()
    }

    async fn say(&mut self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.io.write_all(&bytes).await.unwrap();
    }

    /// The next frame; `None` when the relay closed.
    async fn frame(&mut self) -> Option<(warren_core::wire::derp::FrameType, Vec<u8>)> {
        loop {
            if let Some((kind, length)) = header(&self.unread, CLIENT_FRAME).unwrap()
                && self.unread.len() >= HEADER_LEN + length
            {
                let rest = self.unread.split_off(HEADER_LEN + length);
                let frame = std::mem::replace(&mut self.unread, rest);
                return Some((kind, frame[HEADER_LEN..].to_vec()));
            }
            if self.io.read_buf(&mut self.unread).await.unwrap() == 0 {
                return None;
            }
        }
    }
}

#[tokio::test]
async fn two_clients_exchange_packets_of_every_size() {
    let relay = relay(Admission::Everyone);
    let (mut one, mut two) = (Client::joined(&relay, 2).await, Client::joined(&relay, 3).await);
    for size in [0, 1, 1400, 60_000] {
        let packet = vec![size as u8; size];
        one.say(Frame::SendPacket { to: two.public(), packet: &packet }).await;
        let (kind, body) = two.frame().await.unwrap();
        let expected = Frame::RecvPacket { from: one.public(), packet: &packet };
        assert_eq!(Frame::decode(kind, &body), Ok(expected));
    }
    assert_eq!(relay.connected(), (2, 0));
    assert_eq!(relay.counters().packets_out, 4);
}

#[tokio::test]
async fn whom_the_coordinator_does_not_know_is_closed_without_a_word() {
    let known = NodePrivate::from_random([2; 32]).public();
    let relay = relay(Admission::ask(move |applicant: Applicant| async move { applicant.node == known }, HOUR));
    let _known = Client::joined(&relay, 2).await;
    let mut stranger = Client::connect(&relay, 3).await;
    assert_eq!(stranger.frame().await, None);
    assert_eq!(relay.connected(), (1, 0));
}

#[tokio::test]
async fn a_client_that_is_admitted_no_longer_is_closed_at_the_next_question_or_by_a_word() {
    let welcome = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = Arc::clone(&welcome);
    let judge = move |_| {
        let answer = asked.load(Ordering::Relaxed);
        async move { answer }
    };
    let relay = relay(Admission::ask(judge, Duration::from_millis(1)));
    let (mut one, mut two) = (Client::joined(&relay, 2).await, Client::joined(&relay, 3).await);
    relay.withdraw(&one.public());
    assert_eq!(one.frame().await, None);
    two.say(Frame::Ping(*b"12345678")).await;
    assert!(two.frame().await.is_some(), "whoever is still admitted stays, however often that is asked");
    welcome.store(false, Ordering::Relaxed);
    assert_eq!(two.frame().await, None);
    assert_eq!(relay.connected(), (0, 0));
}

#[tokio::test]
async fn a_giant_frame_ends_its_sender_and_nobody_else() {
    let relay = relay(Admission::Everyone);
    let (mut bad, mut good) = (Client::joined(&relay, 2).await, Client::joined(&relay, 3).await);
    bad.io.write_all(b"\x04\xff\xff\xff\xff").await.unwrap();
    assert_eq!(bad.frame().await, None);
    good.say(Frame::Ping(*b"12345678")).await;
    let (kind, body) = good.frame().await.unwrap();
    assert_eq!(Frame::decode(kind, &body), Ok(Frame::Pong(*b"12345678")));
}

#[tokio::test]
async fn a_client_that_leaves_is_forgotten() {
    let relay = relay(Admission::Everyone);
    let (mut one, two) = (Client::joined(&relay, 2).await, Client::joined(&relay, 3).await);
    let gone = two.public();
    drop(two);
    // Its own task notices; a probe to it then is answered with "not here".
    loop {
        one.say(Frame::SendPacket { to: gone, packet: b"TS\xf0\x9f\x92\xac" }).await;
        one.say(Frame::Ping(*b"12345678")).await;
        let (kind, body) = one.frame().await.unwrap();
        if let Frame::PeerGone { peer, .. } = Frame::decode(kind, &body).unwrap() {
            assert_eq!(peer, gone);
            break;
        }
    }
    assert_eq!(relay.connected(), (1, 0));
}
