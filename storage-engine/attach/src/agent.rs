//! The process that owns the attachments of a node: opens sessions, makes device nodes, and takes
//! them away. `attachment` is one of them, `record` what the state directory remembers of it,
//! `connection` how a cluster is reached, `service` the gRPC edge.

mod attachment;
mod connection;
mod error;
mod handle;
mod memory;
mod record;
mod registry;
mod service;

pub use connection::{Connection, ConnectionDir, ConnectionSource, SourceError};
pub use error::AgentError;
pub use handle::{ClusterName, ParseNameError, VolumeHandle};
pub use memory::serve_own_node;
pub use record::StateError;
pub use registry::{Agent, AgentOptions};
pub use service::AgentService;
