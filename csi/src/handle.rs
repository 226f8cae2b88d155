//! The names under which volumes and clusters travel through Kubernetes.

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

/// Why a text is not a handle.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{text:?} is not a volume handle of this driver: expected 1/CLUSTER_UUID/VOLUME_UUID")]
pub struct ParseHandleError {
    text: String,
}

impl fmt::Display for VolumeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HANDLE_VERSION}/{}/{}", self.cluster, self.volume)
    }
}

impl FromStr for VolumeHandle {
    type Err = ParseHandleError;

    fn from_str(text: &str) -> Result<Self, ParseHandleError> {
        let error = || ParseHandleError { text: text.to_owned() };
        let mut fields = text.split('/');
        let (version, cluster, volume) = (fields.next(), fields.next(), fields.next());
        let (Some(HANDLE_VERSION), Some(cluster), Some(volume), None) =
            (version, cluster, volume, fields.next())
        else {
            return Err(error());
        };
        let handle = Self {
            cluster: cluster.parse().map_err(|_| error())?,
            volume: volume.parse().map_err(|_| error())?,
        };
        // Other spellings of the same UUID would be other keys for the same volume.
        if handle.to_string() == text { Ok(handle) } else { Err(error()) }
    }
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
