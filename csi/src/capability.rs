//! How a volume is to be used: the raw capability in, a validated `Access` out.

use csi_proto::csi::v1::VolumeCapability;
use csi_proto::csi::v1::volume_capability::AccessType;
use csi_proto::csi::v1::volume_capability::access_mode::Mode;

use crate::error::CsiError;

const FIELD: &str = "volume_capability";

/// File systems that the node plugin makes and mounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsType {
    Ext4,
    Xfs,
}

impl FsType {
    /// Made on a blank volume when the StorageClass names none.
    pub const DEFAULT: Self = Self::Ext4;

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Xfs].into_iter().find(|fs| fs.as_str() == name)
    }
}

/// What the workload sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Form {
    Block,
    /// `fs_type` is `None` where the request leaves it open.
    Mount {
        fs_type: Option<FsType>,
        flags: Vec<String>,
    },
}

/// Who else may use the volume at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sharing {
    pub read_only: bool,
    /// Several nodes may write at the same time.
    pub shared: bool,
}

/// A capability that this driver can provide.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Access {
    pub form: Form,
    pub sharing: Sharing,
    /// The volume may be published to one target on the node only.
    pub single_target: bool,
}

impl Access {
    /// Fails where the capability is absent, incomplete, unknown or impossible, and says which.
    pub fn parse(capability: Option<&VolumeCapability>) -> Result<Self, CsiError> {
        let capability = capability.ok_or_else(|| CsiError::invalid(FIELD, "is missing"))?;
        let form = parse_form(capability.access_type.as_ref())?;
        let mode = capability.access_mode.map_or(Mode::Unknown, |mode| mode.mode());
        let sharing = match mode {
            Mode::Unknown => {
                return Err(CsiError::invalid(FIELD, "access_mode is missing or unknown"));
            }
            Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter => {
                Sharing::default()
            }
            Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly => {
                Sharing { read_only: true, shared: false }
            }
            Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
                Sharing { read_only: false, shared: true }
            }
        };
        let several_nodes = matches!(
            mode,
            Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter
        );
        if several_nodes && form != Form::Block {
            let reason = format!(
                "access mode {} with a mounted file system: ext4 and xfs can be mounted by one \
                 node at a time; use volumeMode Block, or an access mode of a single node",
                mode.as_str_name()
            );
            return Err(CsiError::invalid(FIELD, reason));
        }
        Ok(Self { form, sharing, single_target: mode == Mode::SingleNodeSingleWriter })
    }

    /// As `parse` for every element; at least one is needed.
    pub fn parse_all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>, CsiError> {
        if capabilities.is_empty() {
            return Err(CsiError::invalid("volume_capabilities", "are missing"));
        }
        capabilities.iter().map(|capability| Self::parse(Some(capability))).collect()
    }

    /// The file system named by the request, if any.
    pub fn fs_type(&self) -> Option<FsType> {
        match &self.form {
            Form::Block => None,
            Form::Mount { fs_type, .. } => *fs_type,
        }
    }
}

fn parse_form(access_type: Option<&AccessType>) -> Result<Form, CsiError> {
    match access_type {
        None => Err(CsiError::invalid(FIELD, "access_type is missing: block or mount")),
        Some(AccessType::Block(_)) => Ok(Form::Block),
        Some(AccessType::Mount(mount)) => {
            if !mount.volume_mount_group.is_empty() {
                let reason = "volume_mount_group is not supported: kubelet applies fsGroup itself";
                return Err(CsiError::invalid(FIELD, reason));
            }
            let fs_type = match mount.fs_type.as_str() {
                "" => None,
                name => Some(FsType::from_name(name).ok_or_else(|| {
                    let reason = format!("fs_type {name:?} is not supported: use ext4 or xfs");
                    CsiError::invalid(FIELD, reason)
                })?),
            };
            Ok(Form::Mount { fs_type, flags: mount.mount_flags.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use csi_proto::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn capability(access_type: AccessType, mode: Mode) -> VolumeCapability {
        let access_mode = Some(AccessMode { mode: mode.into() });
        VolumeCapability { access_type: Some(access_type), access_mode }
    }

    fn mount(fs_type: &str) -> AccessType {
        AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..Default::default() })
    }

    #[test]
    fn block_may_be_shared_between_nodes_and_a_file_system_may_not() {
        let block = AccessType::Block(BlockVolume {});
        let access = Access::parse(Some(&capability(block, Mode::MultiNodeMultiWriter)));
        assert!(access.expect("block").sharing.shared);
        for mode in
            [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter]
        {
            let error = Access::parse(Some(&capability(mount("ext4"), mode))).expect_err("refused");
            assert!(error.to_string().contains("volumeMode Block"), "{error}");
        }
    }

    #[test]
    fn reader_modes_are_read_only() {
        let access = Access::parse(Some(&capability(mount(""), Mode::SingleNodeReaderOnly)));
        assert_eq!(access.expect("valid").sharing, Sharing { read_only: true, shared: false });
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let block = || AccessType::Block(BlockVolume {});
        let cases = [
            (None, "is missing"),
            (Some(VolumeCapability::default()), "access_type"),
            (Some(capability(block(), Mode::Unknown)), "access_mode"),
            (Some(capability(mount("btrfs"), Mode::SingleNodeWriter)), "btrfs"),
        ];
        for (given, word) in cases {
            let error = Access::parse(given.as_ref()).expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
