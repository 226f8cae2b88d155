//! curve-e2e
