//! The names under which volumes, snapshots and clusters travel through Kubernetes.

use std::fmt;
use std::str::FromStr;

use curve_types::{ClusterId, VolumeId};
use thiserror::Error;

/// Leading field of a handle; another value means a format that this driver does not know.
const HANDLE_VERSION: &str = "1";

/// CSI `volume_id`: `1/CLUSTER_UUID/VOLUME_UUID`, immutable for the volume's life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VolumeHandle {
    pub cluster: ClusterId,
    pub volume: VolumeId,
}

/// CSI `snapshot_id`: `1/CLUSTER_UUID/snapshot/SNAPSHOT_UUID`. The extra field keeps it and a
/// volume's from being taken for each other, since the engine has one space of ids for both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SnapshotHandle {
    pub cluster: ClusterId,
    pub snapshot: VolumeId,
}

/// CSI `group_snapshot_id`: `1/CLUSTER_UUID/group/NAME`. A group is nothing but the snapshots that
/// have its name, see `names::group`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GroupHandle {
    pub cluster: ClusterId,
    pub name: String,
}

/// Why a text is not a handle.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{text:?} is not a {kind} handle of this driver: expected {form}")]
pub struct ParseHandleError {
    text: String,
    kind: &'static str,
    form: &'static str,
}

const SNAPSHOT_KIND: &str = "snapshot";
const GROUP_KIND: &str = "group";

impl fmt::Display for VolumeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HANDLE_VERSION}/{}/{}", self.cluster, self.volume)
    }
}

impl fmt::Display for SnapshotHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HANDLE_VERSION}/{}/{SNAPSHOT_KIND}/{}", self.cluster, self.snapshot)
    }
}

impl fmt::Display for GroupHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HANDLE_VERSION}/{}/{GROUP_KIND}/{}", self.cluster, self.name)
    }
}

impl FromStr for VolumeHandle {
    type Err = ParseHandleError;

    fn from_str(text: &str) -> Result<Self, ParseHandleError> {
        let fields: Vec<&str> = text.split('/').collect();
        let handle = match fields[..] {
            [HANDLE_VERSION, cluster, volume] => cluster.parse().ok().zip(volume.parse().ok()),
            _ => None,
        };
        let handle = handle.map(|(cluster, volume)| Self { cluster, volume });
        only_as_written(handle, text, "volume", "1/CLUSTER_UUID/VOLUME_UUID")
    }
}

impl FromStr for SnapshotHandle {
    type Err = ParseHandleError;

    fn from_str(text: &str) -> Result<Self, ParseHandleError> {
        let fields: Vec<&str> = text.split('/').collect();
        let handle = match fields[..] {
            [HANDLE_VERSION, cluster, SNAPSHOT_KIND, id] => {
                cluster.parse().ok().zip(id.parse().ok())
            }
            _ => None,
        };
        let handle = handle.map(|(cluster, snapshot)| Self { cluster, snapshot });
        only_as_written(handle, text, SNAPSHOT_KIND, "1/CLUSTER_UUID/snapshot/SNAPSHOT_UUID")
    }
}

impl FromStr for GroupHandle {
    type Err = ParseHandleError;

    fn from_str(text: &str) -> Result<Self, ParseHandleError> {
        let fields: Vec<&str> = text.split('/').collect();
        let handle = match fields[..] {
            [HANDLE_VERSION, cluster, GROUP_KIND, name] if !name.is_empty() => {
                cluster.parse().ok().map(|cluster| Self { cluster, name: name.to_owned() })
            }
            _ => None,
        };
        only_as_written(handle, text, "group snapshot", "1/CLUSTER_UUID/group/NAME")
    }
}

/// Other spellings of the same UUID would be other keys for the same thing.
fn only_as_written<T: fmt::Display>(
    handle: Option<T>,
    text: &str,
    kind: &'static str,
    form: &'static str,
) -> Result<T, ParseHandleError> {
    let error = || ParseHandleError { text: text.to_owned(), kind, form };
    handle.filter(|handle| handle.to_string() == text).ok_or_else(error)
}

/// A CurveCluster, as the StorageClass parameter `cluster` names it: `NAMESPACE/NAME`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClusterName {
    pub namespace: String,
    pub name: String,
}

/// Why a text does not name a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{text:?} does not name a CurveCluster: expected NAMESPACE/NAME, for example curve/demo")]
pub struct ParseClusterNameError {
    text: String,
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ClusterName {
    type Err = ParseClusterNameError;

    fn from_str(text: &str) -> Result<Self, ParseClusterNameError> {
        let error = || ParseClusterNameError { text: text.to_owned() };
        let (namespace, name) = text.split_once('/').ok_or_else(error)?;
        if !is_label(namespace) || !is_label(name) {
            return Err(error());
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// A DNS label, as Kubernetes wants it; it is then also safe as a part of a path.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_reads_back() {
        let handle = VolumeHandle { cluster: ClusterId::random(), volume: VolumeId::random() };
        assert_eq!(handle.to_string().parse(), Ok(handle));
        let (cluster, snapshot) = (ClusterId::random(), VolumeId::random());
        let handle = SnapshotHandle { cluster, snapshot };
        assert_eq!(handle.to_string().parse(), Ok(handle));
        let handle = GroupHandle { cluster, name: "groupsnapshot-1".to_owned() };
        assert_eq!(handle.to_string().parse(), Ok(handle));
    }

    #[test]
    fn a_handle_of_one_kind_is_none_of_another() {
        let (cluster, id) = (ClusterId::random(), VolumeId::random());
        let volume = VolumeHandle { cluster, volume: id }.to_string();
        let snapshot = SnapshotHandle { cluster, snapshot: id }.to_string();
        let group = GroupHandle { cluster, name: id.to_string() }.to_string();
        for text in [&snapshot, &group] {
            assert!(text.parse::<VolumeHandle>().is_err(), "{text}");
        }
        for text in [&volume, &group, &snapshot.to_uppercase()] {
            assert!(text.parse::<SnapshotHandle>().is_err(), "{text}");
        }
        for text in [&volume, &snapshot, &format!("1/{cluster}/group/")] {
            assert!(text.parse::<GroupHandle>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_handle_is_refused_by_name() {
        let id = VolumeId::random();
        let upper = format!("1/{id}/{id}").to_uppercase();
        let cases =
            ["", "pvc-1", "1/a/b", &format!("2/{id}/{id}"), &format!("1/{id}/{id}/"), &upper];
        for text in cases {
            let error = text.parse::<VolumeHandle>().expect_err(text);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn a_cluster_name_is_two_dns_labels() {
        assert_eq!("curve/demo".parse::<ClusterName>().expect("valid").name, "demo");
        for text in ["", "demo", "a/b/c", "/demo", "../demo", "curve/De", "curve/-x", "curve/x-"] {
            assert!(text.parse::<ClusterName>().is_err(), "{text}");
        }
    }
}
