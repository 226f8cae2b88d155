//! The cluster's certificate authority, and the identities it issues.
//!
//! A certificate's organization is the role, its common name the process or node; its DNS name is
//! `ROLE.curve.internal`, which clients verify instead of an address, since pods change theirs.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use thiserror::Error;

/// File names inside a TLS directory, those of a Kubernetes TLS Secret.
pub const CA_FILE: &str = "ca.crt";
pub const CERT_FILE: &str = "tls.crt";
pub const KEY_FILE: &str = "tls.key";
/// Beside them, for an MDS only: 64 hexadecimal digits.
pub const CLUSTER_KEY_FILE: &str = "cluster.key";

/// What a process is, and thereby what it may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    Mds,
    Chunkserver,
    Agent,
    Csi,
    Operator,
    /// A person with the command line.
    Admin,
    /// May read metrics, nothing else.
    Metrics,
}

impl Role {
    const ALL: [Self; 7] = [
        Self::Mds,
        Self::Chunkserver,
        Self::Agent,
        Self::Csi,
        Self::Operator,
        Self::Admin,
        Self::Metrics,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mds => "mds",
            Self::Chunkserver => "chunkserver",
            Self::Agent => "agent",
            Self::Csi => "csi",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }

    /// The DNS name in the certificates of this role.
    pub fn server_name(self) -> String {
        format!("{}.curve.internal", self.as_str())
    }
}

impl FromStr for Role {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| PkiError::UnknownRole(text.to_owned()))
    }
}

/// Why certificates could not be made, read or understood.
#[derive(Debug, Error)]
pub enum PkiError {
    #[error("make a certificate")]
    Generate(#[from] rcgen::Error),
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the peer's certificate cannot be parsed")]
    Parse,
    #[error("role {0:?} is none of mds, chunkserver, agent, csi, operator, admin, metrics")]
    UnknownRole(String),
}

/// A certificate authority. Its key never leaves the process or Secret that holds it.
pub struct Authority {
    cert_pem: String,
    key_pem: String,
}

/// What one process shows and trusts: PEM texts.
#[derive(Clone)]
pub struct Identity {
    pub ca_pem: String,
    pub cert_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

impl Authority {
    /// A new authority for the cluster of that name.
    pub fn generate(cluster: &str) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "curve");
        params.distinguished_name.push(DnType::CommonName, cluster);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let cert = params.self_signed(&key)?;
        Ok(Self { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// One that was made before.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Self {
        Self { cert_pem: cert_pem.to_owned(), key_pem: key_pem.to_owned() }
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// A certificate for `name` in `role`, valid for servers and clients.
    pub fn issue(&self, role: Role, name: &str) -> Result<Identity, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, KeyPair::from_pem(&self.key_pem)?)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![role.server_name()])?;
        params.distinguished_name.push(DnType::OrganizationName, role.as_str());
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &issuer)?;
        Ok(Identity {
            ca_pem: self.cert_pem.clone(),
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

impl Identity {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a directory.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|source| PkiError::Read { path, source })
        };
        Ok(Self { ca_pem: read(CA_FILE)?, cert_pem: read(CERT_FILE)?, key_pem: read(KEY_FILE)? })
    }

    /// Writes what `load` reads; the directory is made if needed, the key readable by its owner.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| PkiError::Write { path, source }
        };
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        write_private(&dir.join(CA_FILE), &self.ca_pem)?;
        write_private(&dir.join(CERT_FILE), &self.cert_pem)?;
        write_private(&dir.join(KEY_FILE), &self.key_pem)
    }
}

/// Writes a file that only its owner may read: the whole text or, after a crash, what was there.
pub fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let new = path.with_extension("new");
    options
        .open(&new)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

/// A new root of the data-plane keys, as `cluster.key` holds it.
pub fn generate_cluster_key() -> String {
    crate::auth::Key::random().to_hex()
}

/// Who a verified client certificate (DER) belongs to.
pub fn peer_identity(der: &[u8]) -> Result<(Role, String), PkiError> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| PkiError::Parse)?;
    let subject = cert.subject();
    let mut organizations = subject.iter_organization();
    let mut names = subject.iter_common_name();
    let organization = organizations.next().and_then(|attribute| attribute.as_str().ok());
    let name = names.next().and_then(|attribute| attribute.as_str().ok());
    let (Some(organization), Some(name)) = (organization, name) else {
        return Err(PkiError::Parse);
    };
    Ok((organization.parse()?, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    #[test]
    fn an_issued_certificate_names_role_and_node() {
        let authority = Authority::generate("demo").expect("authority");
        let again = Authority::from_pem(authority.cert_pem(), authority.key_pem());
        let identity = again.issue(Role::Agent, "node-1").expect("issue");
        let der = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).expect("pem");
        let (role, name) = peer_identity(&der).expect("identity");
        assert_eq!((role, name.as_str()), (Role::Agent, "node-1"));
    }

    #[test]
    fn roles_read_back_from_their_names() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse::<Role>().expect("role"), role);
        }
        assert!("root".parse::<Role>().is_err());
    }
}
