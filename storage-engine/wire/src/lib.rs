//! What Curve processes say to each other, and how they prove who they are.
//!
//! Control plane: protobuf over tonic with mutual TLS (`proto`, `tls`, `pki`). Data plane: frames
//! over TCP (`frame`, `chunk`) on connections authenticated by a key handshake (`auth`, `rpc`).
//! Both run over `net`. `telemetry` serves metrics and sets up logs, the same for every process. No
//! storage, no placement, no retry policy lives here.

pub mod auth;
mod causes;
pub mod chunk;
pub mod frame;
mod limits;
pub mod net;
pub mod pki;
pub mod rpc;
pub mod telemetry;
pub mod tls;

pub use causes::with_causes;

/// Generated from `proto/curve/*.proto`.
pub mod proto {
    #![expect(
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code is not ours to style"
    )]
    tonic::include_proto!("curve.v1");
}
