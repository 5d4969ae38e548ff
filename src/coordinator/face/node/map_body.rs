//! The body of a map stream: messages as they come, and a sign of life when none does.
//!
//! HTTP/2 asks for more only when the node has read what it got, so a slow node fills its queue in the hub,
//! not memory here; what waits for it is one piece, made when it is asked for. Parts that many nodes receive alike are compressed once and sent from where they lie;
//! what is the node's own is compressed with a context that belongs to the thread, not to the connection.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Instant, Sleep};

use super::noise::UnderWay;
use crate::ending::Ending;
use crate::limits;
use crate::service::Subscription;
use warren_core::registry::{Chunk, MapMessage, Part};
use warren_core::wire::map_stream::{self, Packing};

/// Level 3 is zstd's own default: more costs time and gains a few percent on JSON.
const LEVEL: i32 = 3;
/// Up to here copying a piece costs less than sending it by itself.
const SMALL: usize = 1024;
const KEEP_ALIVE: &[u8] = br#"{"KeepAlive":true}"#;

/// The stream.
pub(crate) struct MapBody {
    subscription: Subscription,
    packing: Packing,
    outgoing: Arc<Outgoing>,
    /// When to give a sign of life; `None` where the node does not want any.
    silence: Option<Pin<Box<Sleep>>>,
    _under_way: UnderWay,
}

/// What is on its way to a node. Its memory can be taken back while the node does not read.
pub(crate) struct Outgoing(Mutex<Pieces>);

struct Pieces {
    /// What is left of the message that is on its way.
    left: VecDeque<Piece>,
    is_cut: bool,
    /// When the node's connection last had room for more.
    asked: Instant,
    /// Whether there was nothing for it then.
    waits: bool,
}

/// A piece of a message.
enum Piece {
    Bytes(Bytes),
    /// The text of a part that others receive too, from one of its own pieces on.
    Text(Arc<Chunk>, usize),
}

impl MapBody {
    pub(crate) fn new(subscription: Subscription, packing: Packing, keep_alive: bool, under_way: UnderWay) -> Self {
        let silence = keep_alive.then(|| Box::pin(tokio::time::sleep_until(next_sign_of_life())));
        let pieces = Pieces { left: VecDeque::new(), is_cut: false, asked: Instant::now(), waits: false };
        let outgoing = Arc::new(Outgoing(Mutex::new(pieces)));
        under_way.is_map(&outgoing);
        Self { subscription, packing, outgoing, silence, _under_way: under_way }
    }

    pub(crate) const fn outgoing(&self) -> &Arc<Outgoing> {
        &self.outgoing
    }

    /// The next message, taken apart; nothing at the end of the stream.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<VecDeque<Piece>>>> {
        let left = if let Poll::Ready(message) = self.subscription.poll_next(cx) {
            let Some(message) = message else { return Poll::Ready(Ok(None)) };
            pieces(&message, self.packing)?
        } else {
            let Some(silence) = &mut self.silence else { return Poll::Pending };
            if silence.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            keep_alive(self.packing)?.map(Piece::Bytes).into()
        };
        if let Some(silence) = &mut self.silence {
            silence.as_mut().reset(next_sign_of_life());
        }
        Poll::Ready(Ok(Some(left)))
    }
}

impl Stream for MapBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            let Some(piece) = self.outgoing.next(Instant::now()) else { return Poll::Ready(None) };
            if let Some(piece) = piece {
                return Poll::Ready(Some(Ok(piece)));
            }
            match std::task::ready!(self.poll_message(cx)) {
                Ok(Some(left)) => self.outgoing.begin(left),
                Ok(None) => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl Outgoing {
    /// The node gets no more by this stream: what is left is given back.
    pub(crate) fn cut(&self) {
        let mut pieces = self.lock();
        pieces.is_cut = true;
        pieces.left = VecDeque::new();
    }

    /// Whether the node has long had no room for what is there.
    pub(crate) fn is_stalled(&self, now: Instant) -> bool {
        let pieces = self.lock();
        !pieces.waits && now.saturating_duration_since(pieces.asked) >= limits::STALL_TIME
    }

    fn begin(&self, left: VecDeque<Piece>) {
        self.lock().left = left;
    }

    /// The next piece, if there is one; nothing at all where the stream was cut.
    fn next(&self, now: Instant) -> Option<Option<Bytes>> {
        let mut pieces = self.lock();
        pieces.asked = now;
        let next = pieces.left.front_mut().map(Piece::next);
        pieces.waits = next.is_none();
        let next = next.map(|(bytes, is_last)| {
            if is_last {
                pieces.left.pop_front();
            }
            bytes
        });
        (!pieces.is_cut).then_some(next)
    }

    /// Each visit leaves whole pieces.
    fn lock(&self) -> MutexGuard<'_, Pieces> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Piece {
    /// Takes some of it, and says whether that was all.
    fn next(&mut self) -> (Bytes, bool) {
        match self {
            Self::Bytes(bytes) => (bytes.split_to(bytes.len().min(limits::PIECE_BYTES)), bytes.is_empty()),
            Self::Text(chunk, from) => {
                let mut text = Vec::new();
                let next = chunk.write_some(*from, limits::PIECE_BYTES, &mut text);
                *from = next.unwrap_or(*from);
                (text.into(), next.is_none())
            }
        }
    }
}

fn next_sign_of_life() -> Instant {
    Instant::now() + limits::KEEP_ALIVE + limits::KEEP_ALIVE_JITTER.mul_f64(rand::random())
}

/// A stream of one message, for a node that is gone. It stays open for a while: a client that finds it ended asks again at
/// once.
pub(crate) fn farewell(
    message: MapMessage,
    packing: Packing,
    mut ending: Ending,
    under_way: UnderWay,
) -> io::Result<Response> {
    let mut pieces = pieces(&Arc::new(message), packing)?;
    let held = async move {
        let _under_way = under_way;
        tokio::select! {
            () = tokio::time::sleep(limits::GOODBYE_TIME) => {}
            () = ending.wait() => {}
        }
        None
    };
    let whole = std::iter::from_fn(move || {
        let (bytes, is_last) = pieces.front_mut()?.next();
        if is_last {
            pieces.pop_front();
        }
        Some(bytes)
    });
    let stream = stream::iter(whole.map(Ok::<_, io::Error>)).chain(stream::once(held).filter_map(std::future::ready));
    Ok(Response::new(Body::from_stream(stream)))
}

/// A part that others receive too, sent from where it lies.
struct Shared(Arc<Chunk>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.zstd()
    }
}

/// A part that is this node's own, sent from where it lies.
struct Private(Arc<MapMessage>, usize);

impl AsRef<[u8]> for Private {
    fn as_ref(&self) -> &[u8] {
        match self.0.parts().get(self.1) {
            Some(Part::Private(plain)) => plain,
            Some(Part::Shared(_)) | None => &[],
        }
    }
}

fn pieces(message: &Arc<MapMessage>, packing: Packing) -> io::Result<VecDeque<Piece>> {
    let parts = message.parts();
    let (length, payload): (usize, Vec<Piece>) = match packing {
        Packing::Plain => {
            let text = |(index, part): (usize, &Part)| match part {
                Part::Private(_) => Piece::Bytes(Bytes::from_owner(Private(Arc::clone(message), index))),
                Part::Shared(chunk) => Piece::Text(Arc::clone(chunk), 0),
            };
            (parts.iter().map(Part::len).sum(), parts.iter().enumerate().map(text).collect())
        }
        Packing::Zstd => {
            let frames = parts.iter().map(frame).collect::<io::Result<Vec<Bytes>>>()?;
            (frames.iter().map(Bytes::len).sum(), frames.into_iter().map(Piece::Bytes).collect())
        }
    };
    let header = map_stream::header(length).map_err(io::Error::other)?;
    Ok(joined(std::iter::once(Piece::Bytes(Bytes::copy_from_slice(&header))).chain(payload)))
}

fn frame(part: &Part) -> io::Result<Bytes> {
    match part {
        Part::Private(plain) => compress(plain),
        Part::Shared(chunk) => Ok(Bytes::from_owner(Shared(Arc::clone(chunk)))),
    }
}

/// Copies small neighbours together, so that each does not become an HTTP/2 frame and a Noise record of its own.
fn joined(pieces: impl Iterator<Item = Piece>) -> VecDeque<Piece> {
    let mut joined = VecDeque::new();
    let mut small = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) if bytes.len() <= SMALL => small.extend_from_slice(&bytes),
            large @ (Piece::Bytes(_) | Piece::Text(..)) => {
                if !small.is_empty() {
                    joined.push_back(Piece::Bytes(std::mem::take(&mut small).into()));
                }
                joined.push_back(large);
            }
        }
    }
    if !small.is_empty() {
        joined.push_back(Piece::Bytes(small.into()));
    }
    joined
}

fn keep_alive(packing: Packing) -> io::Result<[Bytes; 1]> {
    let payload = match packing {
        Packing::Plain => Bytes::from_static(KEEP_ALIVE),
        Packing::Zstd => compress(KEEP_ALIVE)?,
    };
    Ok([map_stream::encode(&[&payload]).map_err(io::Error::other)?.into()])
}

thread_local! {
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

fn compress(plain: &[u8]) -> io::Result<Bytes> {
    COMPRESSOR
        .with_borrow_mut(|compressor| {
            let compressor = match compressor {
                Some(compressor) => compressor,
                None => compressor.insert(zstd::bulk::Compressor::new(LEVEL)?),
            };
            compressor.compress(plain).map(Bytes::from)
        })
        // Nobody knows what one that failed is good for.
        .inspect_err(|_| COMPRESSOR.set(None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_core::wire::map_stream::MapStreamDecoder;

    #[test]
    fn a_sign_of_life_is_a_message_in_either_packing() {
        for packing in [Packing::Plain, Packing::Zstd] {
            let [bytes] = keep_alive(packing).unwrap();
            let message = MapStreamDecoder::new(packing).next(&mut &bytes[..]).unwrap();
            assert_eq!(message.as_deref(), Some(KEEP_ALIVE));
        }
    }

    /// All that is left of some pieces, one handed over after the other.
    fn taken(pieces: VecDeque<Piece>) -> Vec<Bytes> {
        let outgoing = Outgoing::of(pieces);
        std::iter::from_fn(|| outgoing.next(Instant::now()).unwrap()).collect()
    }

    impl Outgoing {
        fn of(left: VecDeque<Piece>) -> Self {
            Self(Mutex::new(Pieces { left, is_cut: false, asked: Instant::now(), waits: false }))
        }
    }

    #[test]
    fn small_pieces_travel_together_and_large_ones_are_not_copied() {
        let large = Bytes::from(vec![1; SMALL + 1]);
        let small = Bytes::from_static(b"ab");
        let all = [small.clone(), small.clone(), large.clone(), small.clone()].map(Piece::Bytes);
        let all = taken(joined(all.into_iter()));
        assert_eq!(all, [Bytes::from_static(b"abab"), large.clone(), small]);
        assert_eq!(all[1].as_ptr(), large.as_ptr());
    }

    #[test]
    fn a_node_that_does_not_read_holds_one_piece_and_what_is_cut_holds_none() {
        let large = Bytes::from(vec![1; 10 * limits::PIECE_BYTES + 1]);
        let all = taken([Piece::Bytes(large.clone())].into());
        assert_eq!(all.len(), 11);
        assert!(all.iter().all(|piece| piece.len() <= limits::PIECE_BYTES));

        let held = Arc::new(());
        struct Owner(Bytes, #[allow(dead_code, reason = "counted")] Arc<()>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let piece = Bytes::from_owner(Owner(large, Arc::clone(&held)));
        let outgoing = Outgoing::of([Piece::Bytes(piece)].into());
        assert_eq!(Arc::strong_count(&held), 2);
        outgoing.cut();
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(outgoing.next(Instant::now()).is_none());
    }

    #[test]
    fn only_a_node_that_leaves_what_it_asked_for_is_stalled() {
        let outgoing = Outgoing::of([Piece::Bytes(Bytes::from(vec![1; limits::PIECE_BYTES + 1]))].into());
        let now = Instant::now();
        outgoing.next(now).unwrap().unwrap();
        let later = now + limits::STALL_TIME;
        assert!(outgoing.is_stalled(later));
        outgoing.next(later).unwrap().unwrap();
        assert!(!outgoing.is_stalled(later), "it reads on");
        assert!(outgoing.next(later).unwrap().is_none());
        assert!(!outgoing.is_stalled(later + limits::STALL_TIME * 10), "it waits for news");
    }
}
