//! StorageClass parameters: the raw map in, a validated value out.

use std::collections::HashMap;

use curve_types::LimitsChange;

use crate::error::CsiError;
use crate::handle::ClusterName;
use crate::limits;

/// Key of the parameter, and of the volume context that remembers it.
pub const CLUSTER: &str = "cluster";
/// Key of the pool parameter.
pub const POOL: &str = "pool";
/// The pool that a cluster has when nobody made one.
const POOL_DEFAULT: &str = "default";
/// Keys that Kubernetes adds by itself.
const KUBERNETES_PREFIX: &str = "csi.storage.k8s.io/";

/// What a StorageClass says about a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parameters {
    pub cluster: ClusterName,
    pub pool: String,
    pub limits: LimitsChange,
}

impl Parameters {
    /// Refuses an unknown key, since it is most likely a misspelt known one. `None` only if the
    /// map names no cluster.
    pub fn parse(map: &HashMap<String, String>) -> Result<Option<Self>, CsiError> {
        let is_known = |key: &str| [CLUSTER, POOL].contains(&key) || limits::is_limit(key);
        if let Some(unknown) = unknown_keys(map, is_known) {
            let reason = format!(
                "unknown parameter {unknown}; known are {CLUSTER} (NAMESPACE/NAME of the \
                 CurveCluster), {POOL} (default {POOL_DEFAULT}), {} and {KUBERNETES_PREFIX}*",
                limits::known()
            );
            return Err(CsiError::invalid("parameters", reason));
        }
        let limits = limits::parse("parameters", map)?;
        let Some(cluster) = map.get(CLUSTER) else { return Ok(None) };
        let cluster = parse_cluster("parameters", cluster)?;
        let pool = map.get(POOL).map_or(POOL_DEFAULT, String::as_str);
        if pool.is_empty() {
            return Err(CsiError::invalid("parameters", "pool is empty: name one or leave it out"));
        }
        Ok(Some(Self { cluster, pool: pool.to_owned(), limits }))
    }

    /// As `parse`, where a cluster must be named.
    pub fn require(map: &HashMap<String, String>) -> Result<Self, CsiError> {
        Self::parse(map)?.ok_or_else(|| {
            CsiError::invalid("parameters", "cluster is missing: NAMESPACE/NAME of a CurveCluster")
        })
    }
}

/// Parameters of a VolumeSnapshotClass or VolumeGroupSnapshotClass: this driver has none.
pub fn check_snapshot_parameters(map: &HashMap<String, String>) -> Result<(), CsiError> {
    match unknown_keys(map, |_| false) {
        None => Ok(()),
        Some(unknown) => {
            let reason =
                format!("unknown parameter {unknown}; known are none but {KUBERNETES_PREFIX}*");
            Err(CsiError::invalid("parameters", reason))
        }
    }
}

/// The keys that are neither known nor Kubernetes' own, in order.
pub fn unknown_keys(
    map: &HashMap<String, String>,
    is_known: impl Fn(&str) -> bool,
) -> Option<String> {
    let unknown = |key: &&str| !is_known(key) && !key.starts_with(KUBERNETES_PREFIX);
    let mut unknown: Vec<&str> = map.keys().map(String::as_str).filter(unknown).collect();
    unknown.sort_unstable();
    (!unknown.is_empty()).then(|| unknown.join(", "))
}

/// Reads the cluster's name from a map that carries it.
pub fn parse_cluster(field: &'static str, text: &str) -> Result<ClusterName, CsiError> {
    text.parse().map_err(|error| CsiError::invalid(field, format!("cluster {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn known_parameters_are_read() {
        let given = map(&[("cluster", "curve/demo"), ("csi.storage.k8s.io/pvc/name", "data")]);
        let read = Parameters::require(&given).expect("known");
        assert_eq!(
            (read.cluster.to_string().as_str(), read.pool.as_str()),
            ("curve/demo", "default")
        );
        let given = map(&[("cluster", "curve/demo"), ("pool", "fast")]);
        assert_eq!(Parameters::require(&given).expect("known").pool, "fast");
    }

    #[test]
    fn an_unknown_parameter_is_refused_with_the_list_of_known_ones() {
        let given = map(&[("cluster", "curve/demo"), ("replcas", "3")]);
        let text = Parameters::require(&given).expect_err("unknown").to_string();
        for word in ["replcas", "cluster", "pool", "csi.storage.k8s.io/"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn a_snapshot_class_has_no_parameters_but_those_of_kubernetes() {
        let given = map(&[("csi.storage.k8s.io/volumesnapshot/name", "s")]);
        check_snapshot_parameters(&given).expect("Kubernetes' own");
        let error = check_snapshot_parameters(&map(&[("pool", "fast")])).expect_err("unknown");
        assert!(error.to_string().contains("unknown parameter pool"), "{error}");
    }

    #[test]
    fn a_missing_or_malformed_cluster_is_named() {
        assert!(Parameters::require(&map(&[])).expect_err("none").to_string().contains("cluster"));
        let error = Parameters::require(&map(&[("cluster", "demo")])).expect_err("malformed");
        assert!(error.to_string().contains("\"demo\""), "{error}");
    }
}
