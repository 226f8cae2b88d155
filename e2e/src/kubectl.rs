//! kubectl as the tests use it. `cargo xtask test e2e` puts it on PATH and sets KUBECONFIG.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

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
