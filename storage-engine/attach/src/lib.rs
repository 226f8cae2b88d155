//! Front ends that turn a `BlockDevice` into something that programs open: an NBD socket, a FUSE
//! file with a loop device over it, and the agent that owns the attachments of a node.
//!
//! How blocks are replicated is the client's business; nothing here knows copysets or Raft.

pub mod agent;
mod errno;
pub mod fuse_loop;
pub mod nbd;
pub mod private_socket;

#[cfg(test)]
mod memory;
