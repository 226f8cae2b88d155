//! Fuzzes the NBD server by what one client sends, in the handshake or after it. The device
//! behind it checks what it is asked.
#![no_main]

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use curve_client::{BlockDevice, BlockError};

/// Refuses nothing: every request that comes through must be within it.
struct Zeroes;

const SIZE: u64 = 1 << 20;

/// The client's flags, and the old way in, which asks for no answer.
const HANDSHAKE: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let handshake = if first % 2 == 0 { HANDSHAKE } else { &[] };
    let sent = [handshake, rest].concat();
    curve_attach::nbd::fuzzing::session(Arc::new(Zeroes), first & 2 != 0, &sent);
});

fn check(offset: u64, len: u64) -> Result<(), BlockError> {
    assert!(offset.checked_add(len).is_some_and(|end| end <= SIZE), "{offset}+{len}");
    Ok(())
}

#[async_trait]
impl BlockDevice for Zeroes {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, BlockError> {
        check(offset, len.into())?;
        Ok(vec![0; len as usize].into())
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), BlockError> {
        check(offset, data.len() as u64)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        check(offset, len)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        check(offset, len)
    }
}
