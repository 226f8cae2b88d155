//! The keys and certificates of a cluster: what exists is kept, what is missing is made.
//!
//! Certificates carry no expiry that would need a rotation; a new authority (its Secret was
//! deleted) makes every certificate anew, and pods follow because the build step stamps them with
//! the authority.

use std::collections::BTreeMap;

use curve_wire::pki::{Authority, Identity, PkiError, Role, generate_cluster_key};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use thiserror::Error;

use super::dereference::Observed;
use super::names::{ClusterKey, Foreign};

/// Keys of the Secrets.
const CA_CERT: &str = "ca.crt";
const TLS_CERT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
pub const CLUSTER_KEY: &str = "cluster.key";

/// Everything secret that the build step puts into Secrets.
#[derive(Debug)]
pub struct Credentials {
    /// Hash of the authority's certificate; changes when the authority does.
    pub authority: String,
    pub cluster_key: String,
    pub mds: Identity,
    pub chunkserver: Identity,
    pub admin: Identity,
    pub csi: Identity,
    /// By node.
    pub agents: BTreeMap<String, Identity>,
    /// The operator's own; lives in memory only.
    pub operator: Identity,
}

/// Keys could not be read, made or stored.
#[derive(Debug, Error)]
pub enum CredentialsError {
    #[error("issue a certificate for {0}")]
    Issue(String, #[source] PkiError),
    #[error("store the authority in Secret {name}")]
    StoreAuthority { name: String, source: kube::Error },
    #[error(transparent)]
    Foreign(#[from] Foreign),
    #[error("Secret {name} has no readable {key}: restore it, or delete the Secret for a new one")]
    Damaged { name: String, key: &'static str },
}

/// Gives the authority kept in Secret `name`, made first if there is none. Two operators that
/// race end up with the same one: it is created, never overwritten.
pub async fn ensure_authority(
    client: &Client,
    namespace: &str,
    name: &str,
    existing: Option<&Secret>,
    labels: BTreeMap<String, String>,
) -> Result<Authority, CredentialsError> {
    if let Some(secret) = existing {
        return read_authority(name, secret);
    }
    let store = |source| CredentialsError::StoreAuthority { name: name.into(), source };
    let authority = Authority::generate(name)
        .map_err(|source| CredentialsError::Issue(format!("authority {name}"), source))?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(BTreeMap::from([
            (TLS_CERT.into(), bytes(authority.cert_pem())),
            (TLS_KEY.into(), bytes(authority.key_pem())),
        ])),
        ..Secret::default()
    };
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(authority),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let there = api.get(name).await.map_err(store)?;
            Foreign::refuse(&there, &labels)?;
            read_authority(name, &there)
        }
        Err(source) => Err(store(source)),
    }
}

/// The authority that `secret` holds.
pub fn read_authority(name: &str, secret: &Secret) -> Result<Authority, CredentialsError> {
    let damaged = |key| CredentialsError::Damaged { name: name.into(), key };
    let cert = text(secret, TLS_CERT).ok_or_else(|| damaged(TLS_CERT))?;
    let key = text(secret, TLS_KEY).ok_or_else(|| damaged(TLS_KEY))?;
    Ok(Authority::from_pem(&cert, &key))
}

/// Collects all credentials of the cluster: kept where `observed` has them under this authority.
pub fn gather_credentials(
    key: &ClusterKey,
    authority: &Authority,
    observed: &Observed,
) -> Result<Credentials, CredentialsError> {
    let own = |name: String| observed.secrets.get(&name);
    let remote = |name: String| observed.connections.get(&name);
    let mds_secret = own(key.mds_secret());
    let mut agents = BTreeMap::new();
    for node in &observed.nodes {
        let node = node.name_any();
        let identity =
            keep_or_issue(authority, remote(key.node_secret(&node)), Role::Agent, &node)?;
        agents.insert(node, identity);
    }
    Ok(Credentials {
        authority: super::names::short_hash(authority.cert_pem()),
        cluster_key: mds_secret
            .and_then(|secret| text(secret, CLUSTER_KEY))
            .unwrap_or_else(generate_cluster_key),
        mds: keep_or_issue(authority, mds_secret, Role::Mds, "*")?,
        chunkserver: keep_or_issue(
            authority,
            own(key.chunkserver_secret()),
            Role::Chunkserver,
            "*",
        )?,
        admin: keep_or_issue(authority, own(key.admin_secret()), Role::Admin, "admin")?,
        csi: keep_or_issue(authority, remote(key.csi_secret()), Role::Csi, "curve-csi")?,
        agents,
        operator: issue(authority, Role::Operator, "curve-operator")?,
    })
}

/// The identity in `secret` if this authority issued it, else a new one.
pub fn keep_or_issue(
    authority: &Authority,
    secret: Option<&Secret>,
    role: Role,
    name: &str,
) -> Result<Identity, CredentialsError> {
    let kept = secret.and_then(|secret| {
        Some(Identity {
            ca_pem: text(secret, CA_CERT)?,
            cert_pem: text(secret, TLS_CERT)?,
            key_pem: text(secret, TLS_KEY)?,
        })
    });
    match kept {
        Some(identity) if identity.ca_pem == authority.cert_pem() => Ok(identity),
        _ => issue(authority, role, name),
    }
}

fn issue(authority: &Authority, role: Role, name: &str) -> Result<Identity, CredentialsError> {
    authority
        .issue(role, name)
        .map_err(|source| CredentialsError::Issue(format!("{} {name}", role.as_str()), source))
}

/// The files of a TLS directory.
pub fn tls_data(identity: &Identity) -> BTreeMap<String, ByteString> {
    BTreeMap::from([
        (CA_CERT.into(), bytes(&identity.ca_pem)),
        (TLS_CERT.into(), bytes(&identity.cert_pem)),
        (TLS_KEY.into(), bytes(&identity.key_pem)),
    ])
}

/// Text as a Secret holds it.
pub fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let value = secret.data.as_ref()?.get(key)?;
    String::from_utf8(value.0.clone()).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
