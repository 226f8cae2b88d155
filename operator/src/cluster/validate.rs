//! Turns the raw spec into a `ValidatedCluster`, or says which field is wrong. Pure.
//!
//! The API server has already enforced schema and CEL rules; what it let through and cannot be
//! carried out is refused here, and nothing after this file reads the raw spec.

use std::time::Duration;

use curve_types::ByteSize;
use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use std::collections::BTreeMap;
use thiserror::Error;

use super::names::data_volume_of;
use crate::crd::{
    CLUSTER_NAME_MAX, CurveCluster, DeletionPolicy, Image, NodeSet, Placement, Scrub, Storage,
};

/// Metadata of one MDS where the spec names no storage: ample for the first million volumes, and
/// small enough for any node.
const MDS_SIZE_DEFAULT: ByteSize = ByteSize(1 << 30);
/// Smallest device; below this a WAL ring, two checkpoints and data do not fit.
const DEVICE_SIZE_MIN: ByteSize = ByteSize(512 << 20);
/// A log is at least this part of its device, up to so much: a chunkserver refuses less.
const LOG_PART: u64 = 256;
const LOG_LEAST_MAX: u64 = 1 << 30;
/// A claim's file system keeps some of its bytes for itself (ext4 about 7 % with its reserve).
const CLAIM_USABLE_PERCENT: u64 = 90;
/// Devices are whole chunks.
const DEVICE_SIZE_STEP: u64 = curve_types::CHUNK_SIZE;

/// A spec that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    pub field: String,
    pub problem: String,
}

/// A cluster as the rest of the pipeline sees it: defaults filled in, everything checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub image: String,
    pub pull_policy: Option<String>,
    pub mds: ValidatedSet,
    pub node_sets: Vec<ValidatedSet>,
    pub out_after: Duration,
    pub scrub: Option<ScrubWindows>,
}

/// When scrubs run. The cron expression is for the metadata service to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubWindows {
    pub schedule: String,
    pub window: Duration,
}

/// One StatefulSet to be.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedSet {
    pub role: SetRole,
    pub count: u32,
    pub storage: ValidatedStorage,
    /// Where they keep their logs, if not there. Of the same kind.
    pub log: Option<ValidatedStorage>,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    pub resources: Option<ResourceRequirements>,
}

/// What the pods of a set do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetRole {
    Mds,
    Chunkserver { node_set: String, device_class: Option<String> },
}

/// What a pod keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Data,
    Log,
}

impl ValidatedSet {
    /// What each pod keeps, and where.
    pub fn stores(&self) -> impl DoubleEndedIterator<Item = (Kept, &ValidatedStorage)> {
        std::iter::once((Kept::Data, &self.storage))
            .chain(self.log.iter().map(|log| (Kept::Log, log)))
    }
}

/// Where the pods of a set keep their data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValidatedStorage {
    HostPath { path: String, size: ByteSize },
    Claim { class: Option<String>, size: ByteSize },
}

impl ValidatedStorage {
    /// Bytes of the volume.
    pub fn size(&self) -> ByteSize {
        match self {
            Self::HostPath { size, .. } | Self::Claim { size, .. } => *size,
        }
    }

    /// Bytes of the device file that fits into the volume.
    pub fn device_size(&self) -> ByteSize {
        let usable = match self {
            Self::HostPath { size, .. } => size.0,
            Self::Claim { size, .. } => size.0 / 100 * CLAIM_USABLE_PERCENT,
        };
        ByteSize(usable / DEVICE_SIZE_STEP * DEVICE_SIZE_STEP)
    }
}

impl SetRole {
    /// Last part of the StatefulSet's name.
    pub fn suffix(&self) -> &str {
        match self {
            Self::Mds => "mds",
            Self::Chunkserver { node_set, .. } => node_set,
        }
    }

    /// Value of the component label.
    pub fn component(&self) -> &'static str {
        match self {
            Self::Mds => "mds",
            Self::Chunkserver { .. } => "chunkserver",
        }
    }
}

impl ValidatedCluster {
    /// All StatefulSets, in the order in which they are updated.
    pub fn sets(&self) -> impl Iterator<Item = &ValidatedSet> {
        std::iter::once(&self.mds).chain(&self.node_sets)
    }

    /// Chunkservers wanted in all.
    pub fn chunkservers(&self) -> u32 {
        self.node_sets.iter().map(|set| set.count).sum()
    }
}

/// Checks `cluster` and fills in defaults; `own_image` is the operator's own.
pub fn validate(cluster: &CurveCluster, own_image: &str) -> Result<ValidatedCluster, Invalid> {
    let spec = &cluster.spec;
    let meta = &cluster.metadata;
    let name = meta.name.clone().unwrap_or_default();
    if name.is_empty() || name.len() > CLUSTER_NAME_MAX {
        return invalid(
            "metadata.name",
            format!("{name:?} has not 1 to {CLUSTER_NAME_MAX} letters"),
        );
    }
    if spec.deletion_policy == DeletionPolicy::Destroy
        && spec.destroy_confirmation.as_deref() != Some(&name)
    {
        return invalid("spec.destroyConfirmation", format!("must be {name:?} for Destroy"));
    }
    let (image, pull_policy) = validate_image(spec.image.as_ref(), own_image)?;
    let mut node_sets = Vec::new();
    for (index, set) in spec.node_sets.iter().enumerate() {
        let field = format!("spec.nodeSets[{index}]");
        if spec.node_sets[..index].iter().any(|earlier| earlier.name == set.name) {
            return invalid(&format!("{field}.name"), format!("{:?} is there twice", set.name));
        }
        node_sets.push(validate_node_set(set, &field)?);
    }
    let Some(first) = node_sets.first() else {
        return invalid("spec.nodeSets", "needs at least one entry".into());
    };
    Ok(ValidatedCluster {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name,
        uid: meta.uid.clone().unwrap_or_default(),
        image,
        pull_policy,
        mds: validate_mds(cluster, &first.storage)?,
        node_sets,
        out_after: validate_duration("spec.recovery.outAfter", &spec.recovery.out_after)?,
        scrub: spec.scrub.as_ref().map(validate_scrub).transpose()?,
    })
}

/// Checks a valid cluster against the local volumes that an earlier cluster of the same name left
/// behind: it must take them all back, since data may have replicas on any of them.
pub fn validate_inheritance(
    cluster: &ValidatedCluster,
    volumes: &BTreeMap<String, Option<String>>,
) -> Result<(), Invalid> {
    let mut wanted = BTreeMap::new();
    for set in cluster.sets() {
        for (kept, storage) in set.stores() {
            let ValidatedStorage::HostPath { path, .. } = storage else { continue };
            for ordinal in 0..set.count {
                let name = cluster.volume_name(set, kept, ordinal);
                wanted.insert(name, cluster.host_path(set, ordinal, path));
            }
        }
    }
    let field = "spec.nodeSets";
    for (name, path) in volumes {
        match (wanted.get(name), path) {
            (None, _) if data_volume_of(name).is_some() => {
                let problem = format!(
                    "PersistentVolume {name} holds a log of this cluster and no node set takes it: \
                     write the logDevice that it was made with"
                );
                return invalid(field, problem);
            }
            (None, _) => {
                let problem = format!(
                    "PersistentVolume {name} holds data of this cluster and no node set takes it: \
                     raise count to what it was, or delete the volume if the data may go"
                );
                return invalid(field, problem);
            }
            (Some(wanted), Some(path)) if wanted != path => {
                let problem = format!(
                    "the data of this cluster is at {path} (PersistentVolume {name}), not at \
                     {wanted}: write the hostPath that it was made with"
                );
                return invalid(field, problem);
            }
            (Some(_), _) => {}
        }
    }
    // Logs are made first, so data without one has it on its own device.
    let logless = wanted.keys().find(|name| {
        let data = data_volume_of(name);
        data.is_some_and(|data| volumes.contains_key(data)) && !volumes.contains_key(*name)
    });
    match logless {
        None => Ok(()),
        Some(name) => invalid(
            field,
            format!(
                "there is data of this cluster, but no log (PersistentVolume {name}): it was made \
                 without logDevice"
            ),
        ),
    }
}

fn validate_mds(
    cluster: &CurveCluster,
    first_device: &ValidatedStorage,
) -> Result<ValidatedSet, Invalid> {
    let mds = &cluster.spec.mds;
    if mds.replicas != 1 && mds.replicas != 3 {
        return invalid("spec.mds.replicas", format!("{} is neither 1 nor 3", mds.replicas));
    }
    let storage = match (&mds.storage, first_device) {
        (Some(storage), _) => validate_storage(storage, "spec.mds.storage")?,
        (None, ValidatedStorage::HostPath { path, .. }) => {
            ValidatedStorage::HostPath { path: path.clone(), size: MDS_SIZE_DEFAULT }
        }
        (None, ValidatedStorage::Claim { class, .. }) => {
            ValidatedStorage::Claim { class: class.clone(), size: MDS_SIZE_DEFAULT }
        }
    };
    let Placement { node_selector, tolerations } = mds.placement.clone().unwrap_or_default();
    Ok(ValidatedSet {
        role: SetRole::Mds,
        count: mds.replicas.unsigned_abs(),
        storage,
        log: None,
        node_selector,
        tolerations,
        resources: mds.resources.clone(),
    })
}

fn validate_node_set(set: &NodeSet, field: &str) -> Result<ValidatedSet, Invalid> {
    let name_ok = set.name.starts_with(|c: char| c.is_ascii_lowercase())
        && set.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        && set.name.len() <= 20
        && set.name != "mds";
    if !name_ok {
        let problem = format!(
            "{:?} must be up to 20 lower-case letters and digits, a letter first, and not \"mds\"",
            set.name
        );
        return invalid(&format!("{field}.name"), problem);
    }
    if set.count < 1 {
        return invalid(&format!("{field}.count"), format!("{} is less than 1", set.count));
    }
    let storage = validate_storage(&set.device, &format!("{field}.device"))?;
    let log_field = format!("{field}.logDevice");
    let log = set.log_device.as_ref().map(|log| validate_log(log, &storage, &log_field));
    let log = log.transpose()?;
    let Placement { node_selector, tolerations } = set.placement.clone().unwrap_or_default();
    Ok(ValidatedSet {
        role: SetRole::Chunkserver {
            node_set: set.name.clone(),
            device_class: set.device_class.clone(),
        },
        count: set.count.unsigned_abs(),
        storage,
        log,
        node_selector,
        tolerations,
        resources: set.resources.clone(),
    })
}

fn validate_log(
    log: &Storage,
    device: &ValidatedStorage,
    field: &str,
) -> Result<ValidatedStorage, Invalid> {
    let log = validate_storage(log, field)?;
    let least = ByteSize((device.device_size().0 / LOG_PART).min(LOG_LEAST_MAX));
    if log.device_size() < least {
        let problem = format!("{} is less than the {least} that such a device needs", log.size());
        return invalid(field, problem);
    }
    match (&log, device) {
        (ValidatedStorage::Claim { .. }, ValidatedStorage::Claim { .. }) => Ok(log),
        (
            ValidatedStorage::HostPath { path, .. },
            ValidatedStorage::HostPath { path: of_device, .. },
        ) => match path == of_device {
            false => Ok(log),
            true => invalid(&format!("{field}.hostPath"), format!("{path} is that of device")),
        },
        _ => invalid(field, "must be of the same kind as device".into()),
    }
}

fn validate_storage(storage: &Storage, field: &str) -> Result<ValidatedStorage, Invalid> {
    let validated = match (&storage.host_path, &storage.size, &storage.volume_claim_template) {
        (Some(path), Some(size), None) => {
            validate_host_path(path, &format!("{field}.hostPath"))?;
            let size = validate_size(&format!("{field}.size"), size)?;
            ValidatedStorage::HostPath { path: path.clone(), size }
        }
        (None, None, Some(template)) => ValidatedStorage::Claim {
            class: template.storage_class_name.clone(),
            size: validate_size(&format!("{field}.volumeClaimTemplate.size"), &template.size)?,
        },
        _ => return invalid(field, "needs hostPath with size, or volumeClaimTemplate".into()),
    };
    if validated.device_size() < DEVICE_SIZE_MIN {
        let problem = format!("{} leaves less than {DEVICE_SIZE_MIN}", validated.size());
        return invalid(field, problem);
    }
    Ok(validated)
}

/// The directory below which data is erased on `Destroy`, so nothing may lead out of it.
fn validate_host_path(path: &str, field: &str) -> Result<(), Invalid> {
    let mut parts = path.split('/');
    let absolute = parts.next() == Some("");
    let plain = parts.clone().count() > 0
        && parts.all(|part| !part.is_empty() && part != "." && part != "..");
    if absolute && plain {
        return Ok(());
    }
    invalid(field, format!("{path:?} is not an absolute path without \".\", \"..\" and \"//\""))
}

fn validate_size(field: &str, text: &str) -> Result<ByteSize, Invalid> {
    text.parse().map_err(|error: curve_types::ParseSizeError| Invalid {
        field: field.into(),
        problem: error.to_string(),
    })
}

fn validate_duration(field: &str, text: &str) -> Result<Duration, Invalid> {
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        _ => 0,
    };
    let number = text.get(..text.len().saturating_sub(1)).and_then(|n| n.parse::<u32>().ok());
    match number {
        Some(number) if unit > 0 && number > 0 => Ok(Duration::from_secs(u64::from(number) * unit)),
        _ => invalid(field, format!("{text:?} is not a duration such as 30s, 10m or 1h")),
    }
}

fn validate_scrub(scrub: &Scrub) -> Result<ScrubWindows, Invalid> {
    let window = validate_duration("spec.scrub.window", &scrub.window)?;
    Ok(ScrubWindows { schedule: scrub.schedule.clone(), window })
}

/// The image reference and pull policy; parts that the spec leaves out are the operator's own.
fn validate_image(image: Option<&Image>, own: &str) -> Result<(String, Option<String>), Invalid> {
    let Some(image) = image else { return Ok((own.into(), None)) };
    let (own_repository, own_tag) = split_image(own);
    let repository = image.repository.as_deref().unwrap_or(own_repository);
    let reference = match (&image.tag, &image.repository, own_tag) {
        (Some(tag), ..) => format!("{repository}:{tag}"),
        (None, None, _) => own.to_owned(),
        (None, Some(_), Some(tag)) => format!("{repository}:{tag}"),
        (None, Some(_), None) => {
            return invalid(
                "spec.image.tag",
                "is needed: the operator's own image has none".into(),
            );
        }
    };
    Ok((reference, image.pull_policy.clone()))
}

/// Repository and tag; an image by digest has no tag. A colon before the last slash is a port.
fn split_image(image: &str) -> (&str, Option<&str>) {
    if let Some((repository, _digest)) = image.split_once('@') {
        return (split_image(repository).0, None);
    }
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (image, None),
    }
}

fn invalid<T>(field: &str, problem: String) -> Result<T, Invalid> {
    Err(Invalid { field: field.into(), problem })
}

#[cfg(test)]
mod tests;
