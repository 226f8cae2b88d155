//! Mutual TLS for the control plane and the metrics port.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TonicIdentity, ServerTlsConfig};

use crate::pki::{Identity, Role};

/// Why certificates cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("parse {what}")]
    Pem { what: &'static str, source: rustls::pki_types::pem::Error },
    #[error("use the certificates")]
    Rustls(#[from] rustls::Error),
    #[error("trust the certificate authority")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Makes `ring` the process's crypto provider; harmless when called again.
pub fn install_crypto_provider() {
    // An error says that one is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// For tonic servers: requires a client certificate of the cluster's authority.
pub fn server_config(identity: &Identity) -> ServerTlsConfig {
    ServerTlsConfig::new()
        .identity(TonicIdentity::from_pem(&identity.cert_pem, &identity.key_pem))
        .client_ca_root(Certificate::from_pem(&identity.ca_pem))
        .client_auth_optional(false)
}

/// For tonic clients of a server in `role`, whatever address it is reached at.
pub fn client_config(identity: &Identity, role: Role) -> ClientTlsConfig {
    ClientTlsConfig::new()
        .identity(TonicIdentity::from_pem(&identity.cert_pem, &identity.key_pem))
        .ca_certificate(Certificate::from_pem(&identity.ca_pem))
        .domain_name(role.server_name())
}

/// For plain HTTPS servers: requires a client certificate of the cluster's authority.
pub fn rustls_server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    install_crypto_provider();
    let pem = |what| move |source| TlsError::Pem { what, source };
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(identity.ca_pem.as_bytes()) {
        roots.add(cert.map_err(pem("ca.crt"))?)?;
    }
    let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem("tls.crt"))?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(pem("tls.key"))?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
    let config =
        ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}
