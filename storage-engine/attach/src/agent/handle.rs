//! The names under which the node plugin speaks of volumes and clusters.

use std::fmt;
use std::str::FromStr;

use curve_types::{ClusterId, VolumeId};
use thiserror::Error;

/// `1/CLUSTER_UUID/VOLUME_UUID`, immutable for the volume's life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VolumeHandle {
    pub cluster: ClusterId,
    pub volume: VolumeId,
}

/// `NAMESPACE/NAME` of a CurveCluster. Both are DNS labels, and so safe as parts of file names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClusterName {
    pub namespace: String,
    pub name: String,
}

/// Why a text names nothing.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{field} is {text:?}: expected {expected}")]
pub struct ParseNameError {
    field: &'static str,
    text: String,
    expected: &'static str,
}

impl fmt::Display for VolumeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1/{}/{}", self.cluster, self.volume)
    }
}

impl FromStr for VolumeHandle {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let parse = || {
            let (cluster, volume) = text.strip_prefix("1/")?.split_once('/')?;
            let handle = Self { cluster: cluster.parse().ok()?, volume: volume.parse().ok()? };
            // Another spelling of the same ids would be another attachment of the same volume.
            (handle.to_string() == text).then_some(handle)
        };
        parse().ok_or_else(|| ParseNameError {
            field: "volume_handle",
            text: text.to_owned(),
            expected: "1/CLUSTER_UUID/VOLUME_UUID",
        })
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ClusterName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        match text.split_once('/') {
            Some((namespace, name)) if is_label(namespace) && is_label(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(ParseNameError {
                field: "cluster",
                text: text.to_owned(),
                expected: "NAMESPACE/NAME of a CurveCluster, for example curve/demo",
            }),
        }
    }
}

fn is_label(text: &str) -> bool {
    let is_inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_read_back_and_other_spellings_are_refused() {
        let handle = VolumeHandle { cluster: ClusterId::random(), volume: VolumeId::random() };
        assert_eq!(handle.to_string().parse(), Ok(handle));
        let upper = handle.to_string().to_uppercase();
        for text in ["", "1/a/b", "2/x", &format!("{handle}/"), &upper] {
            assert!(text.parse::<VolumeHandle>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_cluster_name_cannot_leave_its_directory() {
        assert_eq!("curve/demo".parse::<ClusterName>().expect("valid").name, "demo");
        for text in ["", "demo", "../demo", "a/b/c", "a/..", "A/b"] {
            assert!(text.parse::<ClusterName>().is_err(), "{text}");
        }
    }
}
