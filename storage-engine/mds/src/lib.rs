//! The metadata service: what the cluster consists of, where copysets lie, which volumes there are
//! and who may use them. One Raft group; the leader answers.
//!
//! `state` is what the group agrees on (pure `apply`), `view` what its leader hears, `plan` the
//! schedulers (pure), `lead` the loop that carries plans out, `service` the gRPC edge,
//! `membership` how the group itself is formed. Never on the data path.

mod capacity;
mod chunkservers;
mod fill;
mod health;
mod lead;
mod log;
mod machine;
mod membership;
mod metrics;
mod node;
mod options;
mod pace;
mod peers;
mod plan;
mod run;
mod scrubs;
mod service;
mod snapshots;
mod state;
#[cfg(test)]
mod testing;
mod view;

pub use options::{
    DEVICE_SIZE_DEFAULT, MdsOptions, OUT_AFTER_DEFAULT, OptionsError, ParsePeerError, Peer,
};
pub use run::{Listeners, RunError, run, serve};
