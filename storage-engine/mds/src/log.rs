//! What the MDS writes into its Raft log, generated from `proto/log.proto`, and the conversions
//! between ids and bytes.

use bytes::Bytes;
use curve_types::{ClusterId, DeviceId, VolumeId};

tonic::include_proto!("curve.mds.v0");

/// An id as 16 bytes of a message.
pub trait WireId: Sized {
    fn to_wire(self) -> Bytes;
    /// None unless there are exactly 16 bytes that are not all zero.
    fn from_wire(raw: &[u8]) -> Option<Self>;
}

macro_rules! wire_id {
    ($($id:ty),*) => {$(
        impl WireId for $id {
            fn to_wire(self) -> Bytes {
                Bytes::copy_from_slice(&self.to_bytes())
            }

            fn from_wire(raw: &[u8]) -> Option<Self> {
                let id = Self::from_bytes(raw.try_into().ok()?);
                (!id.is_nil()).then_some(id)
            }
        }
    )*};
}

wire_id!(ClusterId, DeviceId, VolumeId);

/// All ids of a list, or None if one is malformed.
pub fn ids_from_wire<I: WireId>(raw: &[Bytes]) -> Option<Vec<I>> {
    raw.iter().map(|id| I::from_wire(id)).collect()
}

/// The list as messages carry it.
pub fn ids_to_wire<I: WireId + Copy>(ids: &[I]) -> Vec<Bytes> {
    ids.iter().map(|id| id.to_wire()).collect()
}
