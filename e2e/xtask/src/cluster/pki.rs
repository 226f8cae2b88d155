//! The cluster's certificates and kubeconfigs: one CA, a certificate per component and node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::Cluster;
use super::network::{CONTROL_PLANE_IP, node_ip};
use super::node;

/// A certificate to make: file name, subject and the names it is valid for.
struct Leaf {
    file: String,
    organization: Option<&'static str>,
    common_name: String,
    names: Vec<String>,
}

impl Leaf {
    fn client(file: &str, organization: Option<&'static str>, common_name: &str) -> Leaf {
        Leaf { file: file.into(), organization, common_name: common_name.into(), names: Vec::new() }
    }
}

pub fn dir(cluster: &Cluster) -> PathBuf {
    cluster.paths.state.join("pki")
}

/// Makes what is missing for a cluster of `nodes` nodes; existing keys stay.
pub fn ensure(cluster: &Cluster, nodes: u8) -> Result<()> {
    let dir = dir(cluster);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).context("close the key store")?;
    if !dir.join("ca.key").exists() {
        make_ca(&dir).context("make the cluster's CA")?;
    }
    if !dir.join("sa.key").exists() {
        let key = KeyPair::generate().context("make the service account key")?;
        write(&dir.join("sa.pub"), &key.public_key_pem())?;
        write(&dir.join("sa.key"), &key.serialize_pem())?;
    }
    let ca_key = KeyPair::from_pem(&read(&dir.join("ca.key"))?).context("parse the CA key")?;
    let issuer = Issuer::from_ca_cert_pem(&read(&dir.join("ca.crt"))?, ca_key)
        .context("parse the CA certificate")?;
    for leaf in leaves(nodes) {
        if !dir.join(format!("{}.crt", leaf.file)).exists() {
            make_leaf(&dir, &leaf, &issuer).with_context(|| format!("certify {}", leaf.file))?;
        }
    }
    for component in ["controller-manager", "scheduler"] {
        write(&dir.join(format!("{component}.kubeconfig")), &kubeconfig(&dir, component))?;
    }
    write(&cluster.paths.admin_kubeconfig(), &kubeconfig(&dir, "admin"))
}

fn leaves(nodes: u8) -> Vec<Leaf> {
    let apiserver_names = [
        CONTROL_PLANE_IP,
        "127.0.0.1",
        "10.96.0.1",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let mut leaves = vec![
        Leaf {
            file: "apiserver".into(),
            organization: None,
            common_name: "kube-apiserver".into(),
            names: apiserver_names.map(String::from).to_vec(),
        },
        Leaf::client("admin", Some("system:masters"), "admin"),
        Leaf::client("kubelet-client", Some("system:masters"), "kube-apiserver-kubelet-client"),
        Leaf::client("controller-manager", None, "system:kube-controller-manager"),
        Leaf::client("scheduler", None, "system:kube-scheduler"),
        Leaf::client("kube-proxy", None, "system:kube-proxy"),
        Leaf::client("front-proxy", None, "front-proxy-client"),
    ];
    leaves.extend((1..=nodes).map(|index| {
        let name = node::name(index);
        Leaf {
            file: name.clone(),
            organization: Some("system:nodes"),
            common_name: format!("system:node:{name}"),
            names: vec![name, node_ip(index)],
        }
    }));
    leaves
}

fn make_ca(dir: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "curve-e2e");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?;
    write(&dir.join("ca.crt"), &certificate.pem())?;
    // The key is written last: its presence says that the pair is complete.
    write(&dir.join("ca.key"), &key.serialize_pem())
}

fn make_leaf(dir: &Path, leaf: &Leaf, issuer: &Issuer<'_, KeyPair>) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(leaf.names.clone())?;
    params.distinguished_name.push(DnType::CommonName, leaf.common_name.as_str());
    if let Some(organization) = leaf.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, issuer)?;
    write(&dir.join(format!("{}.key", leaf.file)), &key.serialize_pem())?;
    write(&dir.join(format!("{}.crt", leaf.file)), &certificate.pem())
}

/// A kubeconfig that points to the files `NAME.crt` and `NAME.key` in `dir`.
pub fn kubeconfig(dir: &Path, name: &str) -> String {
    let dir = dir.display();
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: curve-e2e
  cluster:
    server: https://{CONTROL_PLANE_IP}:6443
    certificate-authority: {dir}/ca.crt
users:
- name: {name}
  user:
    client-certificate: {dir}/{name}.crt
    client-key: {dir}/{name}.key
contexts:
- name: curve-e2e
  context:
    cluster: curve-e2e
    user: {name}
current-context: curve-e2e
"
    )
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("close {}", path.display()))
}
