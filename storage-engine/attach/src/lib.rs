//! curve-attach
