//! curve-chunkserver
