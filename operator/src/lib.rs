//! curve-operator
