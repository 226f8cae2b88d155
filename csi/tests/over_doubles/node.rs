//! What happens to devices and mounts on a node, on real loop devices. Needs root.

use std::path::Path;
use std::process::Command;

use csi_proto::csi::v1::volume_capability::access_mode::Mode;
use csi_proto::csi::v1::volume_content_source::{Type, VolumeSource};
use csi_proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, NodeExpandVolumeRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability, VolumeContentSource,
};
use tonic::{Code, Status};

use crate::doubles::{CLUSTER, Driver, MIB, block, create_request, mount, require_root};

/// A published volume on its way over the node.
struct OnNode {
    driver: Driver,
    id: String,
    capability: VolumeCapability,
    staging: String,
    target: String,
}

impl OnNode {
    async fn published(size: u64, capability: VolumeCapability) -> Self {
        let mut driver = Driver::start();
        let id = driver.create(create_request("pvc-1", size, capability.clone())).await;
        driver.publish(&id, &capability).await;
        let (staging, target) = (driver.path("staging"), driver.path("pod/target"));
        std::fs::create_dir(&staging).expect("mkdir");
        Self { driver, id, capability, staging, target }
    }

    async fn stage(&mut self) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.staging.clone(),
            volume_capability: Some(self.capability.clone()),
            volume_context: [("cluster".to_owned(), CLUSTER.to_owned())].into(),
            ..Default::default()
        };
        self.driver.node.node_stage_volume(request).await.map(|_| ())
    }

    async fn publish(&mut self, target: &str, readonly: bool) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.staging.clone(),
            target_path: target.to_owned(),
            volume_capability: Some(self.capability.clone()),
            readonly,
            ..Default::default()
        };
        self.driver.node.node_publish_volume(request).await.map(|_| ())
    }

    async fn unpublish(&mut self, target: &str) {
        let request = NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: target.to_owned(),
        };
        self.driver.node.node_unpublish_volume(request).await.expect("unpublished");
    }

    async fn unstage(&mut self) {
        let request = NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.staging.clone(),
        };
        self.driver.node.node_unstage_volume(request).await.expect("unstaged");
    }

    async fn expand(&mut self, bytes: u64) {
        let range = CapacityRange { required_bytes: bytes as i64, limit_bytes: 0 };
        let request = ControllerExpandVolumeRequest {
            volume_id: self.id.clone(),
            capacity_range: Some(range),
            ..Default::default()
        };
        self.driver.controller.controller_expand_volume(request).await.expect("expanded");
    }

    /// Runs a command on the attached device.
    fn on_device(&self, tool: &str, args: &[&str]) {
        let device = self.driver.agent.device().expect("attached");
        let status = Command::new(tool).args(args).arg(device).status().expect(tool);
        assert!(status.success(), "{tool}");
    }

    async fn total_bytes(&mut self, path: &str) -> u64 {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        let answer = self.driver.node.node_get_volume_stats(request).await.expect("stats");
        answer.into_inner().usage[0].total as u64
    }
}

#[tokio::test]
async fn what_a_pod_wrote_is_there_after_the_volume_was_staged_again() {
    require_root();
    for fs_type in ["ext4", "xfs"] {
        let capability = mount(fs_type, Mode::SingleNodeWriter);
        let mut volume = OnNode::published(320 * MIB, capability).await;
        let target = volume.target.clone();
        for round in 0..2 {
            // Every call twice: kubelet repeats what it did not see the end of.
            for _ in 0..2 {
                volume.stage().await.expect("staged");
            }
            for _ in 0..2 {
                volume.publish(&target, false).await.expect("published");
            }
            let file = Path::new(&target).join("file");
            if round == 0 {
                std::fs::write(&file, "precious").expect("write");
            }
            assert_eq!(std::fs::read_to_string(&file).expect("read"), "precious", "{fs_type}");
            for _ in 0..2 {
                volume.unpublish(&target).await;
            }
            assert!(!Path::new(&target).exists());
            for _ in 0..2 {
                volume.unstage().await;
            }
            assert!(volume.driver.agent.device().is_none(), "still attached");
        }
    }
}

/// Restores what was there when the volume was cloned, beside the volume itself.
#[tokio::test]
async fn a_larger_clone_is_staged_beside_its_origin_and_fills_its_size() {
    require_root();
    for fs_type in ["ext4", "xfs"] {
        let capability = mount(fs_type, Mode::SingleNodeWriter);
        let mut volume = OnNode::published(320 * MIB, capability.clone()).await;
        let (origin, staging) = (volume.id.clone(), volume.staging.clone());
        volume.stage().await.expect("staged");
        let file = Path::new(&staging).join("file");
        std::fs::write(&file, "before").expect("write");
        let sync = Command::new("sync").args(["--file-system", &staging]).status();
        assert!(sync.expect("sync").success());
        // Taken under the mounted file system: its log is not clean.
        let mut request = create_request("pvc-2", 512 * MIB, capability.clone());
        let of = Type::Volume(VolumeSource { volume_id: origin.clone() });
        request.volume_content_source = Some(VolumeContentSource { r#type: Some(of) });
        let clone = volume.driver.create(request).await;
        std::fs::write(&file, "after").expect("write");
        volume.driver.publish(&clone, &capability).await;

        let clone_staging = volume.driver.path("clone");
        std::fs::create_dir(&clone_staging).expect("mkdir");
        (volume.id, volume.staging) = (clone.clone(), clone_staging.clone());
        for _ in 0..2 {
            volume.stage().await.expect("staged beside its origin");
        }
        let found = std::fs::read_to_string(Path::new(&clone_staging).join("file"));
        assert_eq!(found.expect("read"), "before", "{fs_type}");
        let grown = volume.total_bytes(&clone_staging).await;
        assert!(grown > 400 * MIB, "{fs_type} has {grown}");
        // The origin comes back while the clone is mounted.
        (volume.id, volume.staging) = (origin, staging.clone());
        volume.unstage().await;
        volume.stage().await.expect("staged beside its clone");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "after", "{fs_type}");
        volume.unstage().await;
        (volume.id, volume.staging) = (clone, clone_staging);
        volume.unstage().await;
        assert!(volume.driver.agent.device().is_none(), "still attached");
    }
}

#[tokio::test]
async fn a_device_with_any_signature_is_never_formatted() {
    require_root();
    let mut volume = OnNode::published(64 * MIB, block(Mode::SingleNodeWriter)).await;
    volume.stage().await.expect("attached raw");
    volume.on_device("mkswap", &[]);
    volume.capability = mount("ext4", Mode::SingleNodeWriter);
    let error = volume.stage().await.expect_err("holds swap");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("swap"), "{}", error.message());
    volume.on_device("mkfs.ext4", &["-q", "-F"]);
    volume.capability = mount("xfs", Mode::SingleNodeWriter);
    let error = volume.stage().await.expect_err("holds ext4");
    assert!(error.message().contains("holds ext4, while xfs"), "{}", error.message());
    volume.unstage().await;
}

#[tokio::test]
async fn a_file_system_grows_under_its_user_and_at_the_next_staging() {
    require_root();
    for fs_type in ["ext4", "xfs"] {
        let capability = mount(fs_type, Mode::SingleNodeWriter);
        let mut volume = OnNode::published(320 * MIB, capability).await;
        let (staging, target) = (volume.staging.clone(), volume.target.clone());
        volume.stage().await.expect("staged");
        volume.publish(&target, false).await.expect("published");
        volume.expand(512 * MIB).await;
        // Without CAP_SYS_RESOURCE the kernel grows no mounted ext4; the next staging does.
        let grows_mounted = fs_type == "xfs" || has_cap_sys_resource();
        for _ in 0..2 {
            let request = NodeExpandVolumeRequest {
                volume_id: volume.id.clone(),
                volume_path: target.clone(),
                capacity_range: Some(CapacityRange { required_bytes: 512 << 20, limit_bytes: 0 }),
                ..Default::default()
            };
            let answer = volume.driver.node.node_expand_volume(request).await;
            assert_eq!(answer.is_ok(), grows_mounted, "{fs_type}: {answer:?}");
        }
        let grown = volume.total_bytes(&target).await;
        assert!(grown > 400 * MIB || !grows_mounted, "{fs_type} has {grown}");
        volume.unpublish(&target).await;
        volume.unstage().await;
        volume.expand(1024 * MIB).await;
        volume.stage().await.expect("staged");
        let grown = volume.total_bytes(&staging).await;
        assert!(grown > 800 * MIB, "{fs_type} has {grown}");
        volume.unstage().await;
    }
}

fn has_cap_sys_resource() -> bool {
    const BIT: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("CapEff");
    u64::from_str_radix(line.trim(), 16).expect("hexadecimal") >> BIT & 1 == 1
}

#[tokio::test]
async fn a_raw_volume_is_a_device_node_that_grows() {
    require_root();
    let mut volume = OnNode::published(8 * MIB, block(Mode::SingleNodeWriter)).await;
    let target = volume.target.clone();
    volume.stage().await.expect("staged");
    for _ in 0..2 {
        volume.publish(&target, false).await.expect("published");
    }
    assert_eq!(volume.total_bytes(&target).await, 8 * MIB);
    volume.expand(16 * MIB).await;
    let request = NodeExpandVolumeRequest {
        volume_id: volume.id.clone(),
        volume_path: target.clone(),
        ..Default::default()
    };
    volume.driver.node.node_expand_volume(request).await.expect("expanded");
    assert_eq!(volume.total_bytes(&target).await, 16 * MIB);
    volume.unpublish(&target).await;
    assert!(!Path::new(&target).exists());
    volume.unstage().await;
}

#[tokio::test]
async fn a_read_only_publication_cannot_be_written() {
    require_root();
    let mut volume = OnNode::published(64 * MIB, mount("ext4", Mode::SingleNodeWriter)).await;
    let target = volume.target.clone();
    volume.stage().await.expect("staged");
    volume.publish(&target, true).await.expect("published");
    assert!(std::fs::write(Path::new(&target).join("file"), "x").is_err());
    let error = volume.publish(&target, false).await.expect_err("other mode");
    assert_eq!(error.code(), Code::AlreadyExists);
    volume.unpublish(&target).await;
    volume.unstage().await;
}

#[tokio::test]
async fn publishing_before_staging_and_foreign_paths_are_refused() {
    require_root();
    let mut volume = OnNode::published(64 * MIB, mount("ext4", Mode::SingleNodeWriter)).await;
    let target = volume.target.clone();
    let error = volume.publish(&target, false).await.expect_err("not staged");
    assert_eq!(error.code(), Code::FailedPrecondition);
    let error = volume.publish("relative/path", false).await.expect_err("relative");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(!Path::new(&target).exists());
}

#[tokio::test]
async fn a_mount_whose_attachment_is_gone_is_replaced() {
    require_root();
    let mut volume = OnNode::published(64 * MIB, mount("ext4", Mode::SingleNodeWriter)).await;
    volume.stage().await.expect("staged");
    let stale = volume.driver.agent.device().expect("attached");
    // As after the agent's state was lost: the volume gets another device.
    volume.driver.agent.forget();
    volume.stage().await.expect("staged again");
    let device = volume.driver.agent.device().expect("attached");
    assert_ne!(device, stale);
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mount table");
    let mounted: Vec<&str> = table.lines().filter(|l| l.contains(&volume.staging)).collect();
    assert_eq!(mounted.len(), 1, "{mounted:?}");
    assert!(mounted[0].contains(&*device.to_string_lossy()), "{mounted:?}");
    volume.unstage().await;
    let detached = Command::new("losetup").arg("--detach").arg(stale).status().expect("losetup");
    assert!(detached.success());
}
