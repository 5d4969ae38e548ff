//! A WebSocket as a stream of bytes: how clients in a browser reach the control protocol and relays.
//!
//! Binary messages carry the bytes; where one message ends and the next begins means nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use http::{HeaderMap, HeaderValue, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

/// The largest message taken; a Noise record is 4 KiB, a relayed packet 64 KiB.
const MESSAGE_BYTES: usize = 128 * 1024;
/// The largest message sent.
const CHUNK_BYTES: usize = 16 * 1024;

/// What answers the `Sec-WebSocket-Key` of a request that asks for a WebSocket of this subprotocol. The error is a sentence.
///
/// Any page may open one: what is inside is authenticated by the client's key, and no cookie is read.
pub fn websocket_accept(headers: &HeaderMap, protocol: &str) -> Result<HeaderValue, String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !text(header::SEC_WEBSOCKET_PROTOCOL).split(',').any(|offered| offered.trim() == protocol) {
        return Err(format!("the WebSocket subprotocol is {protocol}"));
    }
    let key = text(header::SEC_WEBSOCKET_KEY);
    if text(header::SEC_WEBSOCKET_VERSION) != "13" || key.is_empty() {
        return Err("this is not a WebSocket handshake of version 13".to_owned());
    }
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(|error| error.to_string())
}

/// The adapter.
pub struct WebSocketBytes<S> {
    socket: WebSocketStream<S>,
    /// What was received and not yet read.
    unread: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketBytes<S> {
    /// Takes over a connection whose HTTP upgrade is done.
    pub async fn accept(io: S) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES))
            .max_frame_size(Some(MESSAGE_BYTES))
            .max_write_buffer_size(2 * MESSAGE_BYTES)
            .write_buffer_size(0)
            .read_buffer_size(CHUNK_BYTES / 4);
        Self { socket: WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await, unread: Bytes::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketBytes<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                // The library answers pings and close frames by itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a WebSocket message of text")));
                }
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
            }
        }
        let count = buf.remaining().min(self.unread.len());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketBytes<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(into_io)?;
        let chunk = &buf[..buf.len().min(CHUNK_BYTES)];
        Pin::new(&mut self.socket).start_send(Message::binary(Bytes::copy_from_slice(chunk))).map_err(into_io)?;
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(into_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(into_io)
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library's other errors have nothing that a socket could say")]
fn into_io(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}
