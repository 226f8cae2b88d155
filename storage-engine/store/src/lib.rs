//! curve-store
