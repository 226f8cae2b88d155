//! Settings of an MDS process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use curve_types::ByteSize;
use thiserror::Error;

/// Default size of the device file: some hundred thousand volumes' metadata, twice, and a log.
pub const DEVICE_SIZE_DEFAULT: ByteSize = ByteSize(256 << 20);
/// Default silence after which a chunkserver's replicas are re-created elsewhere.
pub const OUT_AFTER_DEFAULT: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
pub struct MdsOptions {
    /// Of this process; one of `peers`.
    pub name: String,
    /// Holds `mds.device`.
    pub data_dir: PathBuf,
    pub device_size: ByteSize,
    /// All members, this one included.
    pub peers: Vec<Peer>,
    pub listen_grpc: SocketAddr,
    pub listen_raft: SocketAddr,
    pub listen_metrics: SocketAddr,
    pub tls_dir: PathBuf,
    pub cluster_name: String,
    pub out_after: Duration,
}

/// `NAME,GRPC_HOST:PORT,RAFT_HOST:PORT`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    pub name: String,
    pub grpc: String,
    pub raft: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("peer is {text:?}: expected NAME,GRPC_HOST:PORT,RAFT_HOST:PORT")]
pub struct ParsePeerError {
    text: String,
}

impl FromStr for Peer {
    type Err = ParsePeerError;

    fn from_str(text: &str) -> Result<Self, ParsePeerError> {
        let error = || ParsePeerError { text: text.to_owned() };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let [name, grpc, raft] = parts[..] else { return Err(error()) };
        let address = |text: &str| {
            let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
            let port: u16 = port.parse().map_err(|_| error())?;
            (!host.is_empty() && port != 0).then(|| text.to_owned()).ok_or_else(error)
        };
        if name.is_empty() {
            return Err(error());
        }
        Ok(Self { name: name.to_owned(), grpc: address(grpc)?, raft: address(raft)? })
    }
}

/// Why the settings make no sense together.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum OptionsError {
    #[error("name is {name:?}, which is none of the peers: {peers}")]
    NotAPeer { name: String, peers: String },
    #[error("peer {0:?} is listed twice")]
    DuplicatePeer(String),
    #[error("there are {0} peers: expected 1, 3 or 5")]
    PeerCount(usize),
    #[error("{0}")]
    Name(String),
}

impl MdsOptions {
    pub fn validate(&self) -> Result<(), OptionsError> {
        use crate::state::validate_name;
        validate_name("cluster name", &self.cluster_name)
            .and_then(|()| self.peers.iter().try_for_each(|p| validate_name("peer name", &p.name)))
            .map_err(|refusal| OptionsError::Name(refusal.message))?;
        let mut names: Vec<&str> = self.peers.iter().map(|peer| peer.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(OptionsError::DuplicatePeer(twice[0].to_owned()));
        }
        if !matches!(names.len(), 1 | 3 | 5) {
            return Err(OptionsError::PeerCount(names.len()));
        }
        if !names.contains(&self.name.as_str()) {
            let (name, peers) = (self.name.clone(), names.join(", "));
            return Err(OptionsError::NotAPeer { name, peers });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_reads_as_name_and_two_addresses() {
        let peer: Peer = "mds-0,mds-0.demo.svc:7100,[::1]:7101".parse().expect("peer");
        let expected = ("mds-0", "mds-0.demo.svc:7100", "[::1]:7101");
        assert_eq!((&*peer.name, &*peer.grpc, &*peer.raft), expected);
        for text in
            ["", "a", "a,b:1", "a,b:1,c", "a,b:1,c:0", ",b:1,c:2", "a,b:1,c:2,d", "a,:1,c:2"]
        {
            let error = text.parse::<Peer>().expect_err(text);
            assert!(error.to_string().contains("NAME,GRPC_HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn members_must_be_an_odd_set_with_this_one_in_it() {
        let options = |name: &str, peers: &[&str]| MdsOptions {
            name: name.to_owned(),
            data_dir: PathBuf::new(),
            device_size: DEVICE_SIZE_DEFAULT,
            peers: peers.iter().map(|n| format!("{n},h:1,h:2").parse().expect("peer")).collect(),
            listen_grpc: ([127, 0, 0, 1], 0).into(),
            listen_raft: ([127, 0, 0, 1], 0).into(),
            listen_metrics: ([127, 0, 0, 1], 0).into(),
            tls_dir: PathBuf::new(),
            cluster_name: "demo".to_owned(),
            out_after: OUT_AFTER_DEFAULT,
        };
        assert_eq!(options("a", &["a"]).validate(), Ok(()));
        assert_eq!(options("c", &["a", "b", "c"]).validate(), Ok(()));
        let error = |name, peers| options(name, peers).validate().expect_err("refused").to_string();
        assert!(error("d", &["a", "b", "c"]).contains("none of the peers: a, b, c"));
        assert!(error("a", &["a", "b"]).contains("2 peers"));
        assert!(error("a", &["a", "b", "b"]).contains("\"b\" is listed twice"));
        assert!(error("a", &["a", "b b", "c"]).contains("peer name is \"b b\""));
    }
}
