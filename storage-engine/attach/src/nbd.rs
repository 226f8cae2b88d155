//! NBD server on a Unix socket over any `BlockDevice`: for qemu, nbdcopy, fio and the kernel's
//! client. The protocol is in `protocol` and `negotiation` (pure), sockets are in `connection` and
//! `server`.

mod connection;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod negotiation;
mod protocol;
mod server;

pub use protocol::NbdErrno;
pub use server::NbdServer;

#[cfg(test)]
mod tests;
