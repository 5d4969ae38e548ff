//! Reads connections into memory that those of a thread share.
//!
//! A relay has thousands of connections of which few have anything to say at a time. What is read is routed before the
//! next read, so the same buffer serves all: it is large, which saves system calls, and it stays in the processor's
//! cache. A connection keeps the beginning of a frame whose rest has not arrived, and nothing while it is idle.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::error::RelayError;

/// Bytes of one read: frames enough to share its cost, and fewer than may wait for one client.
const READ: usize = 64 << 10;
/// After so many without a pause others have their turn, or a fast sender would fill a queue that nobody empties.
const TURN: usize = 32 << 10;
/// What a connection keeps of the memory for the beginning of a frame: one of the usual size.
const KEPT: usize = 2 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The reading half of a connection.
pub(super) struct Reading<R> {
    reader: R,
    /// The beginning of a frame.
    unread: Vec<u8>,
    /// Bytes that came one after another since there was nothing to read.
    in_a_row: usize,
}

impl<R: AsyncRead + Unpin> Reading<R> {
    /// `unread` has been read before.
    pub(super) const fn new(reader: R, unread: Vec<u8>) -> Self {
        Self { reader, unread, in_a_row: 0 }
    }

    /// Reads once and hands over all that is unread, which is more than before; `take` says how many bytes of it were
    /// whole frames. `None` at the end of the stream.
    pub(super) async fn next<T>(
        &mut self,
        take: &mut impl FnMut(&[u8]) -> Result<(usize, T), RelayError>,
    ) -> Result<Option<T>, RelayError> {
        if self.in_a_row >= TURN {
            self.in_a_row = 0;
            give_way().await;
        }
        poll_fn(|context| self.poll_next(context, take)).await
    }

    /// Hands over what is unread without reading more.
    pub(super) fn again<T>(
        &mut self,
        take: &mut impl FnMut(&[u8]) -> Result<(usize, T), RelayError>,
    ) -> Result<T, RelayError> {
        let (taken, result) = take(&self.unread)?;
        self.unread.drain(..taken);
        Ok(result)
    }

    fn poll_next<T>(
        &mut self,
        context: &mut Context<'_>,
        take: &mut impl FnMut(&[u8]) -> Result<(usize, T), RelayError>,
    ) -> Poll<Result<Option<T>, RelayError>> {
        BUFFER.with_borrow_mut(|buffer| {
            let before = self.unread.len();
            if buffer.len() < before + READ {
                buffer.resize(before + READ, 0);
            }
            let count = ready!(self.poll_read(context, &mut buffer[before..before + READ]))?;
            if count == 0 {
                return Poll::Ready(Ok(None));
            }
            buffer[..before].copy_from_slice(&self.unread);
            let unread = &buffer[..before + count];
            let (taken, result) = take(unread)?;
            self.keep(&unread[taken..]);
            Poll::Ready(Ok(Some(result)))
        })
    }

    fn poll_read(&mut self, context: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut room = ReadBuf::new(room);
        let Poll::Ready(read) = Pin::new(&mut self.reader).poll_read(context, &mut room) else {
            self.in_a_row = 0;
            return Poll::Pending;
        };
        self.in_a_row += room.filled().len();
        Poll::Ready(read.map(|()| room.filled().len()))
    }

    fn keep(&mut self, unread: &[u8]) {
        self.unread.clear();
        if unread.len() <= KEPT {
            self.unread.shrink_to(KEPT);
        }
        self.unread.extend_from_slice(unread);
    }
}

/// Lets all tasks run that are ready. (`yield_now` would also ask the kernel for news, at the price of a system call.)
async fn give_way() {
    let mut has_waited = false;
    poll_fn(|context| {
        if has_waited {
            return Poll::Ready(());
        }
        has_waited = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Frames of ten bytes.
    fn tens(bytes: &[u8]) -> Result<(usize, Vec<u8>), RelayError> {
        let whole = bytes.len() - bytes.len() % 10;
        Ok((whole, bytes[..whole].to_vec()))
    }

    #[tokio::test]
    async fn what_is_cut_in_two_is_handed_over_whole_and_an_idle_connection_keeps_nothing() {
        let (mut writer, reader) = tokio::io::duplex(1 << 20);
        let mut reading = Reading::new(reader, b"01234".to_vec());
        assert_eq!(reading.again(&mut tens).unwrap(), b"");
        writer.write_all(b"56789ab").await.unwrap();
        assert_eq!(reading.next(&mut tens).await.unwrap(), Some(b"0123456789".to_vec()));
        let long = [7; 100_000];
        writer.write_all(&long[..99_998]).await.unwrap();
        let mut got = 0;
        while got < 100_000 {
            got += reading.next(&mut tens).await.unwrap().unwrap().len();
        }
        assert!(reading.unread.is_empty() && reading.unread.capacity() <= KEPT);
        drop(writer);
        assert_eq!(reading.next(&mut tens).await.unwrap(), None);
    }
}
