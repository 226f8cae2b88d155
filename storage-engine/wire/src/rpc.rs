//! Requests and replies over one authenticated data-plane connection: many in flight, answers in
//! any order, requests handed to the server in the order they were sent.
//!
//! A connection never retries. When it breaks, every request in flight fails with `Closed` at
//! once, which is how the loss of a peer is noticed long before any timeout.

mod client;
mod server;
mod transport;

pub use client::Connection;
pub use server::{Replier, Request, Service, serve};

use thiserror::Error;

use crate::auth::HandshakeError;

/// Requests in flight on one connection, each way. Deep enough for a client at queue depth 128
/// whose requests are split over chunks; a caller beyond it waits.
pub const IN_FLIGHT_MAX: usize = 512;

/// Why a request got no answer. It may or may not have been carried out.
#[derive(Debug, Error)]
pub enum RpcError {
    #[error("connect to {address}")]
    Connect { address: String, source: std::io::Error },
    #[error("authenticate with {address}")]
    Handshake { address: String, source: HandshakeError },
    #[error("the connection closed")]
    Closed,
    #[error("request body of {0} bytes is longer than a frame may be")]
    TooLong(usize),
}
