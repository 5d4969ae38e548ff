//! The body of a map stream: messages as they come, and a sign of life when none does.
//!
//! HTTP/2 asks for more only when the node has read what it got, so a slow node fills its queue in the hub,
//! not memory here. Parts that many nodes receive alike are compressed once and sent from where they lie;
//! what is the node's own is compressed with a context that belongs to the thread, not to the connection.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Instant, Sleep};

use super::ending::Ending;
use super::hub::Subscription;
use super::limits;
use super::noise::UnderWay;
use crate::registry::{Chunk, MapMessage, Part};
use crate::wire::map_stream::{self, Packing};

/// Level 3 is zstd's own default: more costs time and gains a few percent on JSON.
const LEVEL: i32 = 3;
/// Up to here copying a piece costs less than sending it by itself.
const SMALL: usize = 1024;
const KEEP_ALIVE: &[u8] = br#"{"KeepAlive":true}"#;

/// The stream.
pub(crate) struct MapBody {
    subscription: Subscription,
    packing: Packing,
    /// Pieces of the message that is on its way.
    pieces: VecDeque<Bytes>,
    /// When to give a sign of life; `None` where the node does not want any.
    silence: Option<Pin<Box<Sleep>>>,
    _under_way: UnderWay,
}

impl MapBody {
    pub(crate) fn new(subscription: Subscription, packing: Packing, keep_alive: bool, under_way: UnderWay) -> Self {
        let silence = keep_alive.then(|| Box::pin(tokio::time::sleep_until(next_sign_of_life())));
        Self { subscription, packing, pieces: VecDeque::new(), silence, _under_way: under_way }
    }

    /// Takes the next message apart; `false` at the end of the stream.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Poll::Ready(message) = self.subscription.poll_next(cx) {
            let Some(message) = message else { return Poll::Ready(Ok(false)) };
            self.pieces = pieces(&message, self.packing)?;
        } else {
            let Some(silence) = &mut self.silence else { return Poll::Pending };
            if silence.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.pieces = keep_alive(self.packing)?.into();
        }
        if let Some(silence) = &mut self.silence {
            silence.as_mut().reset(next_sign_of_life());
        }
        Poll::Ready(Ok(true))
    }
}

impl Stream for MapBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            match std::task::ready!(self.poll_message(cx)) {
                Ok(true) => {}
                Ok(false) => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(error))),
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
    message: &MapMessage,
    packing: Packing,
    mut ending: Ending,
    under_way: UnderWay,
) -> io::Result<Response> {
    let pieces = pieces(message, packing)?;
    let held = async move {
        let _under_way = under_way;
        tokio::select! {
            () = tokio::time::sleep(limits::GOODBYE_TIME) => {}
            () = ending.wait() => {}
        }
        None
    };
    let stream = stream::iter(pieces.into_iter().map(Ok::<_, io::Error>))
        .chain(stream::once(held).filter_map(std::future::ready));
    Ok(Response::new(Body::from_stream(stream)))
}

/// A part that others receive too, sent from where it lies.
struct Shared(Arc<Chunk>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.zstd()
    }
}

fn pieces(message: &MapMessage, packing: Packing) -> io::Result<VecDeque<Bytes>> {
    let payload = match packing {
        Packing::Plain => vec![message.plain().into()],
        Packing::Zstd => message.parts().iter().map(frame).collect::<io::Result<Vec<Bytes>>>()?,
    };
    let length = payload.iter().map(Bytes::len).sum();
    let header = map_stream::header(length).map_err(io::Error::other)?;
    Ok(joined(std::iter::once(Bytes::copy_from_slice(&header)).chain(payload)))
}

fn frame(part: &Part) -> io::Result<Bytes> {
    match part {
        Part::Private(plain) => compress(plain),
        Part::Shared(chunk) => Ok(Bytes::from_owner(Shared(Arc::clone(chunk)))),
    }
}

/// Copies small neighbours together, so that each does not become an HTTP/2 frame and a Noise record of its own.
fn joined(pieces: impl Iterator<Item = Bytes>) -> VecDeque<Bytes> {
    let mut joined = VecDeque::new();
    let mut small = Vec::new();
    for piece in pieces {
        if piece.len() <= SMALL {
            small.extend_from_slice(&piece);
        } else {
            if !small.is_empty() {
                joined.push_back(std::mem::take(&mut small).into());
            }
            joined.push_back(piece);
        }
    }
    if !small.is_empty() {
        joined.push_back(small.into());
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
    use crate::wire::map_stream::MapStreamDecoder;

    #[test]
    fn a_sign_of_life_is_a_message_in_either_packing() {
        for packing in [Packing::Plain, Packing::Zstd] {
            let [bytes] = keep_alive(packing).unwrap();
            let message = MapStreamDecoder::new(packing).next(&mut &bytes[..]).unwrap();
            assert_eq!(message.as_deref(), Some(KEEP_ALIVE));
        }
    }

    #[test]
    fn small_pieces_travel_together_and_large_ones_are_not_copied() {
        let large = Bytes::from(vec![1; SMALL + 1]);
        let small = Bytes::from_static(b"ab");
        let all = joined([small.clone(), small.clone(), large.clone(), small.clone()].into_iter());
        assert_eq!(all, [Bytes::from_static(b"abab"), large.clone(), small]);
        assert_eq!(all[1].as_ptr(), large.as_ptr());
    }
}
