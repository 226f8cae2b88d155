//! Container images without a container tool: tar archives that `ctr images import` reads.
//!
//! An image is a list of layers (tar files) and a configuration; its name carries the digest
//! of both where a rebuilt image must replace the old one.

pub mod archive;
pub mod catalog;
mod debian_root;
