//! curve-wire
