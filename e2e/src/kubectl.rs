//! kubectl as the tests use it. `cargo xtask test e2e` puts it on PATH and sets KUBECONFIG.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::wait;

/// Runs kubectl and returns its stdout; a failure carries its stderr.
pub fn run(args: &[&str]) -> Result<String> {
    run_with_input(args, None)
}

fn run_with_input(args: &[&str], input: Option<&str>) -> Result<String> {
    let mut child = Command::new("kubectl")
        .args(args)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run kubectl: is it on PATH? `cargo xtask test e2e` puts it there")?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).context("write to kubectl")?;
    }
    let output = child.wait_with_output().context("wait for kubectl")?;
    if !output.status.success() {
        bail!("kubectl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `kubectl apply -f -`.
pub fn apply(yaml: &str) -> Result<String> {
    run_with_input(&["apply", "-f", "-"], Some(yaml))
}

/// Whether the service account `NAMESPACE:NAME` may do `verb` to the Secret of that name in
/// `namespace`; to all of them for an empty name.
pub fn may(account: &str, verb: &str, namespace: &str, secret: &str) -> Result<bool> {
    let review = format!(
        "apiVersion: authorization.k8s.io/v1
kind: SubjectAccessReview
spec:
  user: system:serviceaccount:{account}
  resourceAttributes:
    {{verb: {verb}, namespace: {namespace}, resource: secrets, name: '{secret}'}}
"
    );
    let args = ["create", "-f", "-", "-o", "jsonpath={.status.allowed}"];
    let answer = run_with_input(&args, Some(&review))?;
    answer.parse().with_context(|| format!("kubectl answered {answer:?}"))
}

/// A jsonpath of one object; empty if the field is absent.
pub fn field(namespace: &str, object: &str, jsonpath: &str) -> Result<String> {
    run(&["-n", namespace, "get", object, "-o", &format!("jsonpath={jsonpath}")])
}

/// Waits until a jsonpath has the wanted value.
pub fn wait_field(
    namespace: &str,
    object: &str,
    jsonpath: &str,
    wanted: &str,
    timeout: Duration,
) -> Result<()> {
    wait::until(&format!("{object} {jsonpath} = {wanted}"), timeout, || {
        match field(namespace, object, jsonpath) {
            Ok(found) if found == wanted => Ok(()),
            Ok(found) => Err(found),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// A pod that has an address.
#[derive(Debug)]
pub struct Pod {
    pub name: String,
    /// Of the label `app.kubernetes.io/component`; empty without it.
    pub component: String,
    /// The node's for a pod on the node's network.
    pub ip: IpAddr,
    /// Then every port that it declares is open.
    pub ready: bool,
    /// Declared by its containers, by name.
    pub ports: BTreeMap<String, u16>,
}

/// The running pods of Curve in a namespace that are not being deleted.
pub fn pods(namespace: &str) -> Result<Vec<Pod>> {
    let (label, running) = ("app.kubernetes.io/name=curve", "status.phase=Running");
    let args = ["-n", namespace, "get", "pods", "-l", label, "--field-selector", running];
    let list = run(&[&args[..], &["-o", "json"]].concat())?;
    let list: Value = serde_json::from_str(&list).context("parse the pods")?;
    let pods = list["items"].as_array().context("pods without items")?.iter();
    let lasting = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(lasting.filter_map(pod).collect())
}

fn pod(object: &Value) -> Option<Pod> {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    let list = |of: &Value, field: &str| of[field].as_array().cloned().unwrap_or_default();
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    let containers = list(spec, "containers").into_iter().chain(list(spec, "initContainers"));
    let ports = containers.flat_map(|container| list(&container, "ports"));
    let port = |port: Value| {
        let number = port["containerPort"].as_u64()?;
        let name = port["name"].as_str().map_or_else(|| number.to_string(), str::to_owned);
        Some((name, u16::try_from(number).ok()?))
    };
    let component = metadata["labels"]["app.kubernetes.io/component"].as_str();
    Some(Pod {
        name: metadata["name"].as_str()?.to_owned(),
        component: component.unwrap_or_default().to_owned(),
        ip: status["podIP"].as_str()?.parse().ok()?,
        ready: list(status, "conditions").iter().any(ready),
        ports: ports.filter_map(port).collect(),
    })
}

/// Runs a shell command in a pod.
pub fn exec(namespace: &str, pod: &str, script: &str) -> Result<String> {
    run(&["-n", namespace, "exec", pod, "--", "sh", "-c", script])
}

/// A namespace that lives as long as the value. `CURVE_E2E_KEEP=1` keeps it for inspection.
pub struct Namespace(pub String);

impl Namespace {
    /// Makes `PREFIX-PID`.
    pub fn create(prefix: &str) -> Result<Self> {
        let name = format!("{prefix}-{}", std::process::id());
        run(&["create", "namespace", &name])?;
        Ok(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::env::var_os("CURVE_E2E_KEEP").is_none() {
            let _ = run(&["delete", "namespace", &self.0, "--wait=false"]);
        }
    }
}
