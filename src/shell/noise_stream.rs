//! A byte stream inside the secure channel of the control protocol.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use warren_core::wire::noise::{
    ClientHandshake, EarlyDecoder, MAX_FRAME, MAX_PLAINTEXT, NoiseError, ServerHandshake, Transport,
};

/// How much is read from the socket at a time, and so how much plaintext waits to be taken at most (and one record).
const READ: usize = 2 * MAX_FRAME;
/// How much plaintext one write takes: a full HTTP/2 frame and its header fit, and this bounds what waits sealed.
const WRITE: usize = 5 * MAX_PLAINTEXT;

/// An established secure channel over `S`, as a byte stream.
///
/// Holds no buffer while idle: a coordinator has thousands of these.
pub struct NoiseStream<S> {
    inner: S,
    transport: Transport,
    /// The client's end looks for the early payload first.
    early: Option<EarlyDecoder>,
    /// Opened, and not yet taken by the reader.
    plain: Waiting,
    /// Sealed, and not yet taken by the socket.
    sealed: Waiting,
}

impl<S: AsyncRead + AsyncWrite + Unpin> NoiseStream<S> {
    /// The client's end: waits for the answer to the message that the upgrade request carried.
    ///
    /// Where the coordinator sends an early payload, the stream begins behind it: nothing of ours needs its challenge.
    pub async fn connect(mut inner: S, mut handshake: ClientHandshake) -> io::Result<Self> {
        let mut buffer = [0; 512];
        loop {
            let count = inner.read(&mut buffer).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut input = &buffer[..count];
            if let Some(transport) = handshake.read(&mut input).map_err(invalid)? {
                let mut stream = Self::new(inner, transport, Some(EarlyDecoder::default()));
                stream.open(input)?;
                return Ok(stream);
            }
        }
    }

    /// The coordinator's end: answers the client's message.
    pub async fn accept(mut inner: S, handshake: ServerHandshake) -> io::Result<Self> {
        let (answer, transport) = handshake.accept().map_err(invalid)?;
        inner.write_all(&answer).await?;
        inner.flush().await?;
        Ok(Self::new(inner, transport, None))
    }

    const fn new(inner: S, transport: Transport, early: Option<EarlyDecoder>) -> Self {
        Self { inner, transport, early, plain: Waiting::new(), sealed: Waiting::new() }
    }

    /// Makes sure that some plaintext waits; `false` at the end of the stream.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.plain.is_empty() {
            let mut buffer = [0; READ];
            let mut read = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut self.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // Without this, whoever cuts the connection could make a shortened text look whole.
                let cut_off = self.transport.opener.is_mid_record();
                return Poll::Ready(if cut_off { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(false) });
            }
            self.open(read.filled())?;
        }
        Poll::Ready(Ok(true))
    }

    fn open(&mut self, mut input: &[u8]) -> io::Result<()> {
        while self.transport.opener.open(&mut input, &mut self.plain.bytes).map_err(invalid)? {}
        let Some(decoder) = &mut self.early else { return Ok(()) };
        let opened = std::mem::take(&mut self.plain);
        if let Some(early) = decoder.read(opened.rest()).map_err(invalid)? {
            self.early = None;
            self.plain.bytes = early.rest;
        }
        Ok(())
    }

    /// Hands what is sealed to the socket.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, self.sealed.rest()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.take(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if ready!(self.poll_fill(context))? {
            let count = self.plain.rest().len().min(out.remaining());
            out.put_slice(&self.plain.rest()[..count]);
            self.plain.take(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(context))?;
        let taken = &bytes[..bytes.len().min(WRITE)];
        let this = &mut *self;
        this.transport.sealer.seal(taken, &mut this.sealed.bytes).map_err(invalid)?;
        // The bytes are taken either way; a socket that has no room now gets them at the next call.
        match this.poll_drain(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Bytes of which the first were taken.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    taken: usize,
}

impl Waiting {
    const fn new() -> Self {
        Self { bytes: Vec::new(), taken: 0 }
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    const fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    fn take(&mut self, count: usize) {
        self.taken += count;
        if self.is_empty() {
            *self = Self::new();
        }
    }
}

fn invalid(error: NoiseError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use warren_core::types::{CapabilityVersion, ChallengePublic, MachinePrivate};
    use warren_core::wire::noise::{EarlyNoise, Ephemeral, INITIATION_LEN, encode_early, refusal};

    fn start() -> (ClientHandshake, [u8; INITIATION_LEN], MachinePrivate) {
        let coordinator = MachinePrivate::from_random([2; 32]);
        let machine = MachinePrivate::from_random([1; 32]);
        let ephemeral = Ephemeral::from_random([3; 32]);
        let (handshake, initiation) =
            ClientHandshake::start(&machine, &coordinator.public(), CapabilityVersion::CURRENT, ephemeral).unwrap();
        (handshake, initiation, coordinator)
    }

    /// Two ends over a pipe that holds only so many bytes.
    async fn pair(room: usize) -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
        let (handshake, initiation, coordinator) = start();
        let server = ServerHandshake::read(&coordinator, &initiation, Ephemeral::from_random([4; 32])).unwrap();
        let (here, there) = duplex(room);
        let (here, there) = tokio::join!(NoiseStream::connect(here, handshake), NoiseStream::accept(there, server));
        (here.unwrap(), there.unwrap())
    }

    #[tokio::test]
    async fn a_long_text_passes_a_narrow_pipe_both_ways() {
        let (mut here, mut there) = pair(100).await;
        let text: Vec<u8> = (0..50_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let say = async {
            here.write_all(&text).await.unwrap();
            here.flush().await.unwrap();
            let mut answer = vec![0; text.len()];
            here.read_exact(&mut answer).await.unwrap();
            answer
        };
        let echo = async {
            let mut heard = vec![0; text.len()];
            there.read_exact(&mut heard).await.unwrap();
            there.write_all(&heard).await.unwrap();
            there.flush().await.unwrap();
        };
        let (answer, ()) = tokio::join!(say, echo);
        assert_eq!(answer, text);
    }

    #[tokio::test]
    async fn the_clients_end_begins_behind_the_early_payload_where_there_is_one() {
        let payload = EarlyNoise { node_key_challenge: ChallengePublic::from_bytes([5; 32]) };
        for early in [encode_early(&payload).unwrap(), Vec::new()] {
            let (mut here, mut there) = pair(4096).await;
            there.write_all(&[&early[..], &[0, 0, 6, 4]].concat()).await.unwrap();
            let mut next = [0; 4];
            here.read_exact(&mut next).await.unwrap();
            assert_eq!(next, [0, 0, 6, 4]);
        }
    }

    #[tokio::test]
    async fn an_end_between_records_is_an_end_and_inside_one_an_error() {
        let (mut here, there) = pair(4096).await;
        drop(there);
        assert_eq!(here.read(&mut [0; 8]).await.unwrap(), 0);

        let (mut here, mut there) = pair(4096).await;
        there.inner.write_all(&[4, 0, 20, 1]).await.unwrap();
        drop(there);
        assert_eq!(here.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_refusal_is_the_error_of_the_connection() {
        let (handshake, _, _) = start();
        let (here, mut there) = duplex(4096);
        there.write_all(&refusal("too old")).await.unwrap();
        let error = NoiseStream::connect(here, handshake).await.err().unwrap();
        assert_eq!(error.to_string(), "the coordinator refused the handshake: \"too old\"");
    }

    #[tokio::test]
    async fn an_idle_stream_holds_no_buffer() {
        let (mut here, mut there) = pair(4096).await;
        there.write_all(b"hello").await.unwrap();
        here.read_exact(&mut [0; 5]).await.unwrap();
        for waiting in [&here.plain, &here.sealed, &there.plain, &there.sealed] {
            assert_eq!(waiting.bytes.capacity(), 0);
        }
    }
}
