//! curve-types
