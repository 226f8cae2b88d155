//! `cargo xtask bench`: what Curve does per second, beside what the bare disk does in the same run.

pub mod block;
mod cpu;
mod fio;
mod neighbours;
mod report;
