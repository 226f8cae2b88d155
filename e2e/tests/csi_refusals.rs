//! What cannot be provisioned says why, where the user looks: in the claim's events.

use std::time::Duration;

use anyhow::Result;
use curve_e2e::{engine, kubectl, kubectl::Namespace, wait};

const READY: Duration = Duration::from_secs(120);
const REFUSED: Duration = Duration::from_secs(90);

/// A claim with a storage class of its own, both gone with the value.
struct Refused {
    namespace: Namespace,
    class: String,
}

impl Refused {
    fn create(prefix: &str, parameters: &str, size: &str) -> Result<Self> {
        let class = format!("{prefix}-{}", std::process::id());
        let namespace = Namespace::create(prefix)?;
        let ns = &namespace.0;
        kubectl::apply(&format!(
            "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {class}}}
provisioner: block.csi.curve.io
parameters: {{{parameters}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data, namespace: {ns}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: {class}
  resources: {{requests: {{storage: {size}}}}}
"
        ))?;
        Ok(Self { namespace, class })
    }

    /// Waits for an event of the claim that holds all of `words`.
    fn wait_event(&self, words: &[&str]) -> Result<()> {
        let ns = &self.namespace.0;
        wait::until(&format!("an event with {words:?}"), REFUSED, || {
            let path = "jsonpath={.items[*].message}";
            let field = "involvedObject.name=data";
            let args = ["-n", ns, "get", "events", "--field-selector", field, "-o", path];
            let events = kubectl::run(&args).map_err(|error| error.to_string())?;
            if words.iter().all(|word| events.contains(word)) { Ok(()) } else { Err(events) }
        })
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        let _ = kubectl::run(&["delete", "storageclass", &self.class, "--ignore-not-found"]);
    }
}

fn cluster() -> String {
    format!("{}/{}", engine::NAMESPACE, engine::CLUSTER)
}

#[test]
fn an_unknown_parameter_is_refused_with_the_list_of_known_ones() -> Result<()> {
    engine::wait_healthy(READY)?;
    let parameters = format!("cluster: {}, replcas: \"3\"", cluster());
    let refused = Refused::create("csi-parameter", &parameters, "256Mi")?;
    refused.wait_event(&["unknown parameter replcas", "known are cluster", "pool"])
}

#[test]
fn a_wrong_cluster_is_refused_with_the_list_of_known_ones() -> Result<()> {
    engine::wait_healthy(READY)?;
    let refused = Refused::create("csi-cluster", "cluster: curve/dmeo", "256Mi")?;
    refused.wait_event(&["cluster curve/dmeo does not exist", "known are", engine::CLUSTER])
}

#[test]
fn a_wrong_pool_is_refused_with_the_list_of_known_ones() -> Result<()> {
    engine::wait_healthy(READY)?;
    let parameters = format!("cluster: {}, pool: fast", cluster());
    let refused = Refused::create("csi-pool", &parameters, "256Mi")?;
    refused.wait_event(&["\"fast\"", "default"])
}

#[test]
fn a_full_pool_is_refused_with_its_sizes() -> Result<()> {
    engine::wait_healthy(READY)?;
    let parameters = format!("cluster: {}", cluster());
    let refused = Refused::create("csi-full", &parameters, "40Ti")?;
    refused.wait_event(&["default", "40 TiB"])
}
