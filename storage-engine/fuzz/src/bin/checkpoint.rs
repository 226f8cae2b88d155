//! Fuzzes opening a device by its checkpoint.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| curve_store::fuzzing::open_checkpoint(data));
