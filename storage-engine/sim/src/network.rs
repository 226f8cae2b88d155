//! Connections over turmoil's simulated network, and what becomes of them when it loses messages.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use async_trait::async_trait;
use curve_wire::net::{Accept, Listener, Network, Stream};
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

/// One end of a connection.
struct End {
    /// Its own and the other's.
    hosts: [IpAddr; 2],
    /// Its host has lost power: nobody tells the other end.
    is_dead: AtomicBool,
    timed_out: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

static ENDS: Mutex<Vec<Weak<End>>> = Mutex::new(Vec::new());

/// Connections between the two hosts fail, as the kernel has them fail when nothing is acknowledged
/// for long. Turmoil sends nothing again, so that a connection of which a message was lost must not
/// go on.
pub fn time_out(one: IpAddr, other: IpAddr) {
    for end in ends() {
        if end.hosts == [one, other] || end.hosts == [other, one] {
            end.timed_out.store(true, Ordering::Relaxed);
            end.reader.wake();
            end.writer.wake();
        }
    }
}

/// The host loses power: what it has sent arrives, but no connection of it is ended.
pub fn lose_power(host: IpAddr) {
    for end in ends().filter(|end| end.hosts[0] == host) {
        end.is_dead.store(true, Ordering::Relaxed);
    }
}

fn ends() -> impl Iterator<Item = Arc<End>> {
    let mut ends = ENDS.lock().unwrap_or_else(PoisonError::into_inner);
    ends.retain(|end| end.strong_count() > 0);
    let ends: Vec<_> = ends.iter().filter_map(Weak::upgrade).collect();
    ends.into_iter()
}

/// Reads or writes until the connection has timed out.
struct Half<H> {
    /// There until it is dropped.
    half: Option<H>,
    end: Arc<End>,
}

impl<H> Half<H> {
    fn get(&mut self) -> io::Result<&mut H> {
        match self.end.timed_out.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(self.half.as_mut().expect("not dropped")),
        }
    }
}

impl<H> Drop for Half<H> {
    fn drop(&mut self) {
        if self.end.is_dead.load(Ordering::Relaxed) {
            // To drop it would tell the other end.
            std::mem::forget(self.half.take());
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Half<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.end.reader.register(cx.waker());
        Pin::new(self.get()?).poll_read(cx, buf)
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Half<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.end.writer.register(cx.waker());
        Pin::new(self.get()?).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get()?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get()?).poll_shutdown(cx)
    }
}

fn stream(stream: TcpStream) -> io::Result<Stream> {
    let hosts = [stream.local_addr()?.ip(), stream.peer_addr()?.ip()];
    let end = Arc::new(End {
        hosts,
        is_dead: AtomicBool::new(false),
        timed_out: AtomicBool::new(false),
        reader: AtomicWaker::new(),
        writer: AtomicWaker::new(),
    });
    ENDS.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&end));
    let (read, write) = stream.into_split();
    let read = Half { half: Some(read), end: end.clone() };
    Ok(Stream::new(Box::new(read), Box::new(Half { half: Some(write), end })))
}

/// Of whichever host is running.
pub struct Simulated;

#[async_trait]
impl Network for Simulated {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        stream(TcpStream::connect(address.to_owned()).await?)
    }

    async fn bind(&self, address: SocketAddr) -> io::Result<Listener> {
        Ok(Listener::new(Socket(TcpListener::bind(address).await?)))
    }
}

struct Socket(TcpListener);

#[async_trait]
impl Accept for Socket {
    async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (accepted, address) = self.0.accept().await?;
        Ok((stream(accepted)?, address))
    }
}
