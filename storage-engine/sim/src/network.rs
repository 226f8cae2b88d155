//! Connections over turmoil's simulated network.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use curve_wire::net::{Accept, Listener, Network, Stream};
use turmoil::net::{TcpListener, TcpStream};

/// Of whichever host is running.
pub struct Simulated;

fn stream(stream: TcpStream) -> Stream {
    let (read, write) = stream.into_split();
    Stream::new(Box::new(read), Box::new(write))
}

#[async_trait]
impl Network for Simulated {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        Ok(stream(TcpStream::connect(address.to_owned()).await?))
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
        Ok((stream(accepted), address))
    }
}
