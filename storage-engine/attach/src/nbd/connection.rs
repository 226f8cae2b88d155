//! One NBD client: handshake, then commands read ahead, executed side by side, answered in the
//! order in which they finish. What it may hold in memory is bounded by constants.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use curve_client::{BlockDevice, BlockError};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::negotiation::{Export, Negotiation, Step};
use super::protocol::{
    self, Action, CMD_DISC, OPTION_LEN, OptionHeader, Outcome, PAYLOAD_LEN_MAX, ProtocolError,
    REP_ERR_TOO_BIG, REQUEST_LEN, Refusal, RequestHeader, put_option_reply, put_reply,
};
use crate::errno;

/// Commands of one connection that are not answered yet. fio and qemu queue up to 128; more would
/// only wait elsewhere.
const REQUESTS_IN_FLIGHT_MAX: usize = 256;
/// Payload bytes that one connection may hold: two of the longest requests.
const MEMORY_MAX: usize = 2 * PAYLOAD_LEN_MAX as usize;
/// Unit in which memory is counted: semaphores count in u32.
const MEMORY_UNIT: usize = 4096;
/// Longest option that is read: a name, and more information requests than exist.
const OPTION_LEN_MAX: u32 = 8192;
/// The whole handshake must be over by then; programs need milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// What one system call reads at most beyond a large payload: dozens of 4 KiB writes.
const READ_BUFFER: usize = 256 << 10;
/// Payloads above this are read into a buffer of their own, so that they are not moved.
const LARGE_PAYLOAD: usize = 64 << 10;
/// Replies that go out in one system call: two slices each stay below the kernel's 1024.
const REPLIES_PER_WRITE: usize = 64;
/// Encoded reply heads are cut from blocks of this size.
const HEADS_BLOCK: usize = 16 << 10;

/// Why a connection ended other than by the client's wish.
#[derive(Debug, Error)]
pub enum ConnectionError {
    #[error("the handshake took longer than {HANDSHAKE_TIMEOUT:?}")]
    HandshakeTimeout,
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
    #[error("read from the client")]
    Read(#[source] io::Error),
    #[error("write to the client")]
    Write(#[source] io::Error),
}

/// Serves one client until it leaves, breaks the protocol or `stop` fires; commands that were
/// accepted are finished and answered even then.
pub async fn serve(
    mut stream: UnixStream,
    device: Arc<dyn BlockDevice>,
    export: Export,
    stop: CancellationToken,
) -> Result<(), ConnectionError> {
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake_hands(&mut stream, &export));
    let agreed = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        agreed = handshake => agreed.map_err(|_| ConnectionError::HandshakeTimeout)??,
    };
    let Some(structured) = agreed else { return Ok(()) };
    let (read_half, write_half) = stream.into_split();
    let (replies, outbox) = mpsc::channel(REQUESTS_IN_FLIGHT_MAX);
    let writer = tokio::spawn(write_replies(write_half, outbox, structured));
    let intake = Intake {
        source: Source { half: read_half, buffer: BytesMut::with_capacity(READ_BUFFER) },
        device,
        read_only: export.read_only,
        slots: Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX)),
        memory: Arc::new(Semaphore::new(MEMORY_MAX / MEMORY_UNIT)),
        replies,
    };
    let read = intake.run(stop).await;
    let written =
        writer.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    read.and(written)
}

/// `None` if the client left or was sent away; else whether replies are structured.
async fn shake_hands(
    stream: &mut UnixStream,
    export: &Export,
) -> Result<Option<bool>, ConnectionError> {
    stream.write_all(&Negotiation::greeting()).await.map_err(ConnectionError::Write)?;
    let mut flags = [0; 4];
    if !read_or_eof(stream, &mut flags).await? {
        return Ok(None);
    }
    let mut negotiation = Negotiation::new(u32::from_be_bytes(flags))?;
    loop {
        let mut head = [0; OPTION_LEN];
        if !read_or_eof(stream, &mut head).await? {
            return Ok(None);
        }
        let OptionHeader { option, len } = OptionHeader::parse(&head)?;
        let mut out = Vec::new();
        let step = if len > OPTION_LEN_MAX {
            put_option_reply(&mut out, option, REP_ERR_TOO_BIG, b"option is too long");
            Step::Close
        } else {
            let mut data = vec![0; len as usize];
            if !read_or_eof(stream, &mut data).await? {
                return Ok(None);
            }
            negotiation.on_option(export, option, &data, &mut out)
        };
        stream.write_all(&out).await.map_err(ConnectionError::Write)?;
        match step {
            Step::Continue => {}
            Step::Transmit => return Ok(Some(negotiation.structured_replies())),
            Step::Close => return Ok(None),
        }
    }
}

async fn read_or_eof(stream: &mut UnixStream, out: &mut [u8]) -> Result<bool, ConnectionError> {
    match stream.read_exact(out).await {
        Ok(_) => Ok(true),
        Err(error) if is_disconnect(&error) => Ok(false),
        Err(error) => Err(ConnectionError::Read(error)),
    }
}

fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// Bytes from the client, read ahead.
struct Source {
    half: OwnedReadHalf,
    buffer: BytesMut,
}

impl Source {
    /// Fills the buffer up to `len` bytes; false at the end of the stream.
    async fn fill(&mut self, len: usize) -> Result<bool, ConnectionError> {
        while self.buffer.len() < len {
            if self.buffer.capacity() < len || self.buffer.capacity() == self.buffer.len() {
                self.buffer.reserve(READ_BUFFER.max(len - self.buffer.len()));
            }
            match self.half.read_buf(&mut self.buffer).await {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if is_disconnect(&error) => return Ok(false),
                Err(error) => return Err(ConnectionError::Read(error)),
            }
        }
        Ok(true)
    }

    async fn header(&mut self) -> Result<Option<RequestHeader>, ConnectionError> {
        if !self.fill(REQUEST_LEN).await? {
            return Ok(None);
        }
        let raw = self.buffer.split_to(REQUEST_LEN);
        let raw: &[u8; REQUEST_LEN] = raw[..].try_into().expect("split to that length");
        Ok(Some(RequestHeader::parse(raw)?))
    }

    async fn payload(&mut self, len: usize) -> Result<Option<Bytes>, ConnectionError> {
        if len <= LARGE_PAYLOAD || len <= self.buffer.len() {
            let complete = self.fill(len).await?;
            return Ok(complete.then(|| self.buffer.split_to(len).freeze()));
        }
        let mut whole = BytesMut::with_capacity(len);
        whole.put(self.buffer.split());
        while whole.len() < len {
            let missing = len - whole.len();
            let mut window = (&mut whole).limit(missing);
            match self.half.read_buf(&mut window).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if is_disconnect(&error) => return Ok(None),
                Err(error) => return Err(ConnectionError::Read(error)),
            }
        }
        Ok(Some(whole.freeze()))
    }
}

/// One finished command on its way back. Its permits are held until the bytes are written.
struct Reply {
    cookie: u64,
    outcome: Outcome,
    data: Bytes,
    _held: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// Reads commands and starts them.
struct Intake {
    source: Source,
    device: Arc<dyn BlockDevice>,
    read_only: bool,
    slots: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    replies: mpsc::Sender<Reply>,
}

impl Intake {
    async fn run(mut self, stop: CancellationToken) -> Result<(), ConnectionError> {
        let replies = self.replies.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                // Without a client that reads replies no command can be answered.
                () = replies.closed() => return Ok(()),
                () = stop.cancelled() => return Ok(()),
                accepted = self.accept() => accepted?,
            };
            if !accepted {
                return Ok(());
            }
        }
    }

    /// Takes one command; false when the client is done.
    async fn accept(&mut self) -> Result<bool, ConnectionError> {
        let Some(header) = self.source.header().await? else { return Ok(false) };
        if header.command == CMD_DISC {
            return Ok(false);
        }
        let slot = self.slots.clone().acquire_owned().await.expect("never closed");
        let units = header.memory().div_ceil(MEMORY_UNIT) as u32;
        let memory = self.memory.clone().acquire_many_owned(units).await.expect("never closed");
        let Some(payload) = self.source.payload(header.payload_len()).await? else {
            return Ok(false);
        };
        let action = protocol::validate(&header, self.device.size(), self.read_only);
        let (device, replies) = (self.device.clone(), self.replies.clone());
        tokio::spawn(async move {
            let (outcome, data) = match action {
                Ok(action) => execute(&*device, action, payload).await,
                Err(refusal) => (Outcome::Failed(refusal), Bytes::new()),
            };
            let reply = Reply { cookie: header.cookie, outcome, data, _held: (slot, memory) };
            // Fails only if the client is gone, and then nobody waits for it.
            let _ = replies.send(reply).await;
        });
        Ok(true)
    }
}

async fn execute(device: &dyn BlockDevice, action: Action, payload: Bytes) -> (Outcome, Bytes) {
    let result = match action {
        Action::Read { offset, len } => match device.read(offset, len).await {
            Ok(data) => return (Outcome::Data { offset, len: data.len() as u32 }, data),
            Err(error) => Err(error),
        },
        Action::Flush => device.flush().await,
        Action::Write { offset, fua } => {
            let done = device.write(offset, payload).await;
            then_flush(device, done, fua).await
        }
        Action::Discard { offset, len, fua } => {
            let done = device.discard(offset, u64::from(len)).await;
            then_flush(device, done, fua).await
        }
        Action::WriteZeroes { offset, len, fua } => {
            let done = device.write_zeroes(offset, u64::from(len)).await;
            then_flush(device, done, fua).await
        }
    };
    let outcome = match result {
        Ok(()) => Outcome::Done,
        Err(error) => {
            tracing::warn!(?action, %error, "a command failed");
            Outcome::Failed(Refusal { errno: errno::to_nbd(&error), message: "the volume failed" })
        }
    };
    (outcome, Bytes::new())
}

/// A replicated volume has nothing to flush after an acknowledged write, but the contract of
/// `BlockDevice` does not promise that.
async fn then_flush(
    device: &dyn BlockDevice,
    done: Result<(), BlockError>,
    fua: bool,
) -> Result<(), BlockError> {
    done?;
    if fua { device.flush().await } else { Ok(()) }
}

/// Writes replies, as many per system call as are ready, until all senders are gone.
async fn write_replies(
    mut half: OwnedWriteHalf,
    mut outbox: mpsc::Receiver<Reply>,
    structured: bool,
) -> Result<(), ConnectionError> {
    let mut heads = BytesMut::new();
    let mut batch = Vec::with_capacity(REPLIES_PER_WRITE);
    while outbox.recv_many(&mut batch, REPLIES_PER_WRITE).await > 0 {
        let mut parts: Vec<Bytes> = Vec::with_capacity(2 * batch.len());
        for reply in &batch {
            if heads.capacity() < 256 {
                heads.reserve(HEADS_BLOCK);
            }
            put_reply(&mut heads, structured, reply.cookie, reply.outcome);
            parts.push(heads.split().freeze());
            if !reply.data.is_empty() {
                parts.push(reply.data.clone());
            }
        }
        match write_all_vectored(&mut half, &parts).await {
            Ok(()) => batch.clear(),
            Err(error) if is_disconnect(&error) => return Ok(()),
            Err(error) => return Err(ConnectionError::Write(error)),
        }
    }
    Ok(())
}

async fn write_all_vectored(half: &mut OwnedWriteHalf, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let written = half.write_vectored(rest).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}
