//! Moves frames between a socket and memory. Knows nothing of who asks what.

use bytes::{Bytes, BytesMut};
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
        let mut body = BytesMut::with_capacity(len);
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
