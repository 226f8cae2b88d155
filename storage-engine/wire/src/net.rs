//! Connections of Curve processes to each other, so that a simulation can own the network.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::transport::{Channel, Endpoint, Uri};

/// A peer whose host acknowledges nothing for so long, or that takes nothing out of a full socket,
/// is lost: the connection fails with `TimedOut`. Without such a limit, what waits for a host that
/// lost its power waits for a quarter of an hour. A connection made anew costs a round trip or two,
/// so a false alarm is cheap.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
/// An idle connection is probed after so long, and then as often.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// What connections are made over.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Connects to `HOST:PORT`.
    async fn connect(&self, address: &str) -> io::Result<Stream>;
    async fn bind(&self, address: SocketAddr) -> io::Result<Listener>;
}

static SIMULATED: OnceLock<Box<dyn Network>> = OnceLock::new();

/// Puts `network` in the place of the machine's, for all of this process and for good. To be
/// called before any connection is made; false if there is one in place already.
pub fn simulate(network: Box<dyn Network>) -> bool {
    SIMULATED.set(network).is_ok()
}

/// Sends small messages without delay, and has the kernel notice the loss of the peer's host.
fn set_up(stream: &tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    // For what is sent and not acknowledged; the probes are for what was sent and acknowledged,
    // and is awaited.
    socket.set_tcp_user_timeout(Some(SILENCE_MAX))?;
    let probes = TcpKeepalive::new().with_time(PROBE_INTERVAL).with_interval(PROBE_INTERVAL);
    socket.set_tcp_keepalive(&probes)
}

/// Connects to `HOST:PORT`.
pub async fn connect(address: &str) -> io::Result<Stream> {
    if let Some(network) = SIMULATED.get() {
        return network.connect(address).await;
    }
    let stream = tokio::net::TcpStream::connect(address).await?;
    set_up(&stream)?;
    Ok(stream.into())
}

pub async fn bind(address: SocketAddr) -> io::Result<Listener> {
    match SIMULATED.get() {
        Some(network) => network.bind(address).await,
        None => Ok(tokio::net::TcpListener::bind(address).await?.into()),
    }
}

/// A gRPC channel that is dialled when first used.
pub fn channel(endpoint: &Endpoint) -> Channel {
    if SIMULATED.get().is_none() {
        return endpoint.connect_lazy();
    }
    let dial = |uri: Uri| async move {
        let address = uri.authority().map_or("", |authority| authority.as_str()).to_owned();
        connect(&address).await.map(TokioIo::new)
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(dial))
}

pub type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
pub type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection, in two halves that may be used at once.
pub struct Stream {
    read: ReadHalf,
    write: WriteHalf,
}

impl Stream {
    pub fn new(read: ReadHalf, write: WriteHalf) -> Self {
        Self { read, write }
    }

    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }
}

impl From<tokio::net::TcpStream> for Stream {
    fn from(stream: tokio::net::TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self::new(Box::new(read), Box::new(write))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.write.is_write_vectored()
    }
}

/// The type is the one by which tonic finds the peer's certificates; nobody asks for the addresses.
impl Connected for Stream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: None, remote_addr: None }
    }
}

/// What a listening socket does.
#[async_trait]
pub trait Accept: Send + Sync + 'static {
    async fn accept(&self) -> io::Result<(Stream, SocketAddr)>;
}

#[async_trait]
impl Accept for tokio::net::TcpListener {
    async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, address) = tokio::net::TcpListener::accept(self).await?;
        // A connection that has gone is noticed by whoever reads from it.
        let _ = set_up(&stream);
        Ok((stream.into(), address))
    }
}

/// A listening socket.
pub struct Listener(Box<dyn Accept>);

impl Listener {
    pub fn new(accept: impl Accept) -> Self {
        Self(Box::new(accept))
    }

    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        self.0.accept().await
    }

    /// What arrives, for a gRPC server.
    pub fn incoming(self) -> impl futures::Stream<Item = io::Result<Stream>> {
        futures::stream::unfold(self, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        })
    }
}

impl From<tokio::net::TcpListener> for Listener {
    fn from(listener: tokio::net::TcpListener) -> Self {
        Self::new(listener)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn set_loopback(state: &str) {
        let set = Command::new("ip").args(["link", "set", "lo", state]).status();
        assert!(set.expect("run ip").success());
    }

    /// Both ends of a connection in a network of this thread's own, which is then switched off
    /// after `sent` went from one end to the other.
    async fn silenced(sent: &[u8]) -> (Stream, Stream) {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network of its own: this test runs as root");
        set_loopback("up");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let listener = Listener::from(listener);
        let (near, far) = tokio::join!(connect(&address), listener.accept());
        let (mut near, (mut far, _)) = (near.expect("connect"), far.expect("accept"));
        near.write_all(sent).await.expect("send");
        let mut received = vec![0; sent.len()];
        far.read_exact(&mut received).await.expect("receive");
        set_loopback("down");
        (near, far)
    }

    async fn fails_in_time(stream: &mut Stream) {
        let read = tokio::time::timeout(3 * SILENCE_MAX, stream.read_u8()).await;
        let error = read.expect("noticed").expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }

    #[tokio::test]
    async fn a_peer_that_falls_silent_before_it_acknowledges_is_noticed() {
        let (mut near, _far) = silenced(b"before").await;
        near.write_all(b"after").await.expect("send");
        fails_in_time(&mut near).await;
    }

    #[tokio::test]
    async fn a_peer_that_falls_silent_before_it_answers_is_noticed_on_both_sides() {
        let (mut near, mut far) = silenced(b"a question").await;
        tokio::join!(fails_in_time(&mut near), fails_in_time(&mut far));
    }
}
