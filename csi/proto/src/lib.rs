//! The wire contracts between Curve and an orchestrator: CSI 1.12 and kubelet's plugin
//! registration v1. Declarations only, in our own words; what Curve answers lives in `curve-csi`.
//! `tests/contract.rs` compares every number and name with the official descriptors.

/// Container Storage Interface.
pub mod csi {
    /// Package `csi.v1`.
    #[expect(
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code is not ours to style"
    )]
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// kubelet's plugin registration.
#[expect(clippy::allow_attributes_without_reason, reason = "generated code is not ours to style")]
pub mod pluginregistration {
    tonic::include_proto!("pluginregistration");
}
