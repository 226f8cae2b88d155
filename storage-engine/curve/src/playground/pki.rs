//! Certificates of a playground, made once: `DIR/tls/NAME/` per process, `DIR/tls/admin/` for the
//! command line and the playground itself, the authority's key beside them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use curve_wire::pki::{
    Authority, CLUSTER_KEY_FILE, KEY_FILE, Role, generate_cluster_key, write_private,
};

use super::plan::Plan;

/// Name of the command line's certificate, and of the playground's own.
pub const ADMIN: &str = "admin";

pub fn tls_dir(dir: &Path, name: &str) -> PathBuf {
    dir.join("tls").join(name)
}

/// Makes what is missing and leaves what is there.
pub fn make_certificates(dir: &Path, plan: &Plan) -> Result<()> {
    let authority = authority(dir)?;
    let cluster_key = read_or_make(&dir.join("tls").join(CLUSTER_KEY_FILE), generate_cluster_key)?;
    let issue = |role, name: &str| -> Result<PathBuf> {
        let tls_dir = tls_dir(dir, name);
        // The key is written last.
        if !tls_dir.join(KEY_FILE).exists() {
            authority.issue(role, name)?.save(&tls_dir)?;
        }
        Ok(tls_dir)
    };
    for mds in &plan.mds {
        let tls_dir = issue(Role::Mds, &mds.name)?;
        write_private(&tls_dir.join(CLUSTER_KEY_FILE), &cluster_key)?;
    }
    for server in &plan.chunkservers {
        issue(Role::Chunkserver, &server.name)?;
    }
    issue(Role::Admin, ADMIN)?;
    Ok(())
}

fn authority(dir: &Path) -> Result<Authority> {
    let (cert, key) = (dir.join("tls/ca.crt"), dir.join("tls/ca.key"));
    if !key.exists() {
        std::fs::create_dir_all(dir.join("tls"))
            .context("create the directory for certificates")?;
        let authority = Authority::generate("playground")?;
        write_private(&cert, authority.cert_pem())?;
        write_private(&key, authority.key_pem())?;
    }
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    };
    Ok(Authority::from_pem(&read(&cert)?, &read(&key)?))
}

fn read_or_make(path: &Path, make: impl FnOnce() -> String) -> Result<String> {
    if !path.exists() {
        write_private(path, &make())?;
    }
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
