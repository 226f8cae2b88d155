//! Fuzzes opening a device by the records of its log.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| curve_store::fuzzing::open_log(data));
