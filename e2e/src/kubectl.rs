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

/// What the tests look at in a pod.
#[derive(Debug)]
pub struct Pod {
    pub name: String,
    /// Of the label `app.kubernetes.io/component`; empty without it.
    pub component: String,
    /// The node's for a pod on the node's network; none until it has one.
    pub ip: Option<IpAddr>,
    /// It is being deleted.
    pub ending: bool,
    /// Then every port that it declares is open.
    pub ready: bool,
    /// Declared by its containers, by name.
    pub ports: BTreeMap<String, u16>,
}

impl Pod {
    pub fn declares(&self, port: u16) -> bool {
        self.ports.values().any(|declared| *declared == port)
    }
}

/// The pods of a namespace that kubectl's options `selection` select; all of them without any.
pub fn pods(namespace: &str, selection: &[&str]) -> Result<Vec<Pod>> {
    let args = ["-n", namespace, "get", "pods", "-o", "json"];
    let list = run(&[&args[..], selection].concat())?;
    let list: Value = serde_json::from_str(&list).context("parse the pods")?;
    let pods = list["items"].as_array().context("pods without items")?.iter();
    pods.map(pod).collect()
}

fn pod(object: &Value) -> Result<Pod> {
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
    Ok(Pod {
        name: metadata["name"].as_str().context("a pod without a name")?.to_owned(),
        component: component.unwrap_or_default().to_owned(),
        ip: status["podIP"].as_str().and_then(|ip| ip.parse().ok()),
        ending: !metadata["deletionTimestamp"].is_null(),
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
