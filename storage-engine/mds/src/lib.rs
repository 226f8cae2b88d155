//! curve-mds
