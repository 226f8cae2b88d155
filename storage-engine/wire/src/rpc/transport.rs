//! Moves frames between a socket and memory. Knows nothing of who asks what.

use bytes::{Buf, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use crate::frame::{Direction, Frame, HEADER_LEN, Header, crc32c};

/// Frames waiting to be written per connection. The in-flight limit bounds their number well below
/// this; it exists so that a writer that stalls cannot make memory grow.
pub(super) const WRITE_QUEUE: usize = 2 * super::IN_FLIGHT_MAX;
/// Small frames are gathered up to this many bytes per system call.
const GATHER_BYTES: usize = 128 << 10;
/// Bodies at least this long are written without being copied into the gather buffer.
const COPY_MAX: usize = 16 << 10;
const READ_BUFFER: usize = 64 << 10;
/// Of memory that is written to disks as it is.
const ALIGN: usize = 4096;
/// Shorter bodies are not worth a page of room.
const ALIGNED_FROM: usize = 32 << 10;

/// A frame to be sent: its body in two parts, so that payloads are not copied.
pub(super) struct Outgoing {
    pub direction: Direction,
    pub kind: u16,
    pub request_id: u64,
    pub group: u32,
    pub head: Bytes,
    pub payload: Bytes,
}

impl Outgoing {
    fn header(&self) -> [u8; HEADER_LEN] {
        Header {
            direction: self.direction,
            kind: self.kind,
            body_len: (self.head.len() + self.payload.len()) as u32,
            body_crc: crc32c(&[&self.head, &self.payload]),
            request_id: self.request_id,
            group: self.group,
            tenant: 0,
            deadline_ms: 0,
            trace_id: 0,
        }
        .encode()
    }
}

/// Writes what the queue gives until it closes or the socket fails.
pub(super) async fn write_frames<W>(mut socket: W, mut queue: mpsc::Receiver<Outgoing>)
where
    W: AsyncWrite + Unpin,
{
    let mut gather = BytesMut::with_capacity(GATHER_BYTES);
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some(frame) = next {
            gather.extend_from_slice(&frame.header());
            gather.extend_from_slice(&frame.head);
            if frame.payload.len() > COPY_MAX {
                if write_all(&mut socket, &mut gather).await.is_err()
                    || socket.write_all(&frame.payload).await.is_err()
                {
                    return;
                }
            } else {
                gather.extend_from_slice(&frame.payload);
            }
            next = if gather.len() < GATHER_BYTES { queue.try_recv().ok() } else { None };
        }
        if write_all(&mut socket, &mut gather).await.is_err() {
            return;
        }
    }
}

async fn write_all<W: AsyncWrite + Unpin>(socket: &mut W, gather: &mut BytesMut) -> io::Result<()> {
    let result = socket.write_all(gather).await;
    gather.clear();
    result
}

/// Room for so many bytes, of which the last one lies before a multiple of 4096 if there are many:
/// a payload is the end of its body, and one of whole blocks can go to the disk from there.
fn body_buffer(len: usize) -> BytesMut {
    if len < ALIGNED_FROM {
        return BytesMut::with_capacity(len);
    }
    let mut body = BytesMut::with_capacity(len + ALIGN);
    let end = body.as_ptr().addr() + len;
    let unused = end.next_multiple_of(ALIGN) - end;
    body.resize(unused, 0);
    body.advance(unused);
    body
}

/// Reads verified frames one after the other.
pub(super) struct FrameReader<R> {
    socket: BufReader<R>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(socket: R) -> Self {
        Self { socket: BufReader::with_capacity(READ_BUFFER, socket) }
    }

    /// The next frame; `Ok(None)` at a clean end. A damaged frame is an `InvalidData` error.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut raw = [0; HEADER_LEN];
        match self.socket.read_exact(&mut raw).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let header = Header::decode(&raw).map_err(invalid)?;
        // The body gets an allocation of its own: it may live on in a log cache, and must not pin
        // a shared read buffer there.
        let len = header.body_len as usize;
        let mut body = body_buffer(len);
        while body.len() < len {
            let missing = (len - body.len()) as u64;
            if (&mut self.socket).take(missing).read_buf(&mut body).await? == 0 {
                return Ok(None);
            }
        }
        header.verify_body(&body).map_err(invalid)?;
        Ok(Some(Frame { header, body: body.freeze() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_body_ends_where_a_page_does() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (queue, frames) = mpsc::channel(1);
        let writer = tokio::spawn(write_frames(near, frames));
        let mut reader = FrameReader::new(far);
        for len in [1, 100, ALIGNED_FROM - 7, ALIGNED_FROM - 6, (1 << 20) + 1] {
            let (head, payload) = (Bytes::from_static(b"header"), Bytes::from(vec![7; len]));
            let (direction, kind, request_id, group) = (Direction::Request, 1, 2, 3);
            let frame = Outgoing { direction, kind, request_id, group, head, payload };
            assert!(queue.send(frame).await.is_ok());
            let body = reader.next().await.expect("a frame").expect("no end").body;
            assert_eq!((body.len(), &body[..6]), (len + 6, b"header".as_slice()));
            assert!(body[6..].iter().all(|byte| *byte == 7));
            let end = body.as_ptr().addr() + body.len();
            assert!(body.len() < ALIGNED_FROM || end.is_multiple_of(ALIGN));
        }
        drop(queue);
        writer.await.expect("no panic");
    }
}
