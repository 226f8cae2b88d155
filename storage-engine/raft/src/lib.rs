//! curve-raft
