//! curve-csi
