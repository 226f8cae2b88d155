//! curve-client
