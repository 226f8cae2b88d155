//! Who calls, by their certificate, and what each role may ask for.

use curve_wire::pki::{Role, peer_identity};
use tonic::{Request, Status};

/// Name in certificates that stand for every process of a role.
const ANY_NAME: &str = "*";

pub struct Caller {
    pub role: Role,
    pub name: String,
}

impl Caller {
    /// Of a request that came over mutual TLS.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let certificates = request.peer_certs();
        let first = certificates.as_ref().and_then(|certificates| certificates.first());
        let certificate =
            first.ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
        let (role, name) = peer_identity(certificate)
            .map_err(|error| Status::unauthenticated(error.to_string()))?;
        Ok(Self { role, name })
    }

    /// Of a request that only these roles may make.
    pub fn require<T>(request: &Request<T>, roles: &[Role]) -> Result<Self, Status> {
        let caller = Self::of(request)?;
        if roles.contains(&caller.role) {
            return Ok(caller);
        }
        let allowed: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        let message = format!(
            "role {} may not do that: it is for {}",
            caller.role.as_str(),
            allowed.join(", ")
        );
        Err(Status::permission_denied(message))
    }

    /// A process may speak for itself only, a node's agent for its node.
    pub fn require_name(&self, field: &str, name: &str) -> Result<(), Status> {
        if self.name == name || self.name == ANY_NAME {
            return Ok(());
        }
        let (role, own) = (self.role.as_str(), &self.name);
        let message = format!("{field} is {name:?}, but the certificate is of {role} {own:?}");
        Err(Status::permission_denied(message))
    }
}
