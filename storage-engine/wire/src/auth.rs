//! The handshake that opens every data-plane connection: both sides prove that they know the key
//! of the principal the caller claims to be, and the server says which device it is.
//!
//! | step | bytes |
//! |---|---|
//! | hello, caller to server | magic `CRVH`, version u8, claim (65 bytes), nonce (32 bytes) |
//! | welcome, server to caller | magic `CRVW`, version u8, device id (16), nonce (32), proof (32) |
//! | confirm, caller to server | proof (32) |
//! | accept, server to caller | one byte, 1 |
//!
//! A proof is HMAC-SHA256 under the claim's key over a label ("server" or "client"), the hello and
//! the welcome up to its proof. Keys form a tree under the cluster key: peers use the peer key, a
//! session uses HMAC(peer key, its claim), so that a chunkserver knows every session key without
//! asking anybody and a session can claim nothing that it was not given.

use std::time::Duration;

use curve_types::{DeviceId, Epoch, SessionId, VolumeId};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A stranger may hold a connection no longer than this before it is authenticated.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HELLO_MAGIC: &[u8; 4] = b"CRVH";
const WELCOME_MAGIC: &[u8; 4] = b"CRVW";
const VERSION: u8 = 1;
const CLAIM_LEN: usize = 65;
const HELLO_LEN: usize = 4 + 1 + CLAIM_LEN + 32;
const WELCOME_SIGNED_LEN: usize = 4 + 1 + 16 + 32;
const WELCOME_LEN: usize = WELCOME_SIGNED_LEN + 32;

/// A 32-byte secret. Prints nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// Reads the 64 hexadecimal digits of a `cluster.key` file; surrounding white space is ignored.
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// A fresh random key.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The form that `from_hex` reads.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Key of MDS processes among themselves.
    pub fn mds_peer_key(&self) -> Self {
        self.derive(&[b"mds peers"])
    }

    /// Key of chunkservers, and of the MDS towards them. Given out at registration.
    pub fn chunkserver_peer_key(&self) -> Self {
        self.derive(&[b"chunkserver peers"])
    }

    fn derive(&self, parts: &[&[u8]]) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any key length is valid");
        for part in parts {
            mac.update(part);
        }
        Self(mac.finalize().into_bytes().into())
    }

    fn verify(&self, parts: &[&[u8]], proof: &[u8]) -> bool {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any key length is valid");
        for part in parts {
            mac.update(part);
        }
        mac.verify_slice(proof).is_ok()
    }
}

/// Who a caller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Principal {
    /// A process of the same kind: an MDS to an MDS, a chunkserver to a chunkserver.
    Peer { device: DeviceId },
    /// The MDS, to a chunkserver: may fence and delete.
    Mds { device: DeviceId },
    /// One attachment of one volume. `epoch` has the MDS's half only; an agent may raise the lower
    /// half on its own.
    Session { session: SessionId, volume: VolumeId, epoch: Epoch, read_only: bool },
}

impl Principal {
    fn encode(&self) -> [u8; CLAIM_LEN] {
        let mut out = [0; CLAIM_LEN];
        match self {
            Self::Peer { device } => {
                out[0] = 1;
                out[1..17].copy_from_slice(&device.to_bytes());
            }
            Self::Mds { device } => {
                out[0] = 2;
                out[1..17].copy_from_slice(&device.to_bytes());
            }
            Self::Session { session, volume, epoch, read_only } => {
                out[0] = 3;
                out[1..17].copy_from_slice(&volume.to_bytes());
                out[17..25].copy_from_slice(&session.0.to_le_bytes());
                out[25..33].copy_from_slice(&epoch.0.to_le_bytes());
                out[33] = u8::from(*read_only);
            }
        }
        out
    }

    fn decode(raw: &[u8; CLAIM_LEN]) -> Option<Self> {
        let id: [u8; 16] = raw[1..17].try_into().expect("16 bytes");
        let u64_at = |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().expect("8 bytes"));
        match raw[0] {
            1 => Some(Self::Peer { device: DeviceId::from_bytes(id) }),
            2 => Some(Self::Mds { device: DeviceId::from_bytes(id) }),
            3 => Some(Self::Session {
                session: SessionId(u64_at(17)),
                volume: VolumeId::from_bytes(id),
                epoch: Epoch(u64_at(25)),
                read_only: raw[33] != 0,
            }),
            _ => None,
        }
    }
}

/// The key that the claim must prove to know, under the peer key of the server's kind.
fn claim_key(peer_key: &Key, claim: &[u8; CLAIM_LEN]) -> Key {
    match claim[0] {
        3 => peer_key.derive(&[b"session", claim]),
        _ => peer_key.derive(&[b"peer", claim]),
    }
}

/// The key that the MDS hands to the holder of a session.
pub fn session_key(peer_key: &Key, principal: &Principal) -> Key {
    claim_key(peer_key, &principal.encode())
}

/// What a caller shows.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub principal: Principal,
    key: Key,
}

impl Credentials {
    /// Of a process that knows the peer key itself.
    pub fn peer(principal: Principal, peer_key: &Key) -> Self {
        Self { principal, key: claim_key(peer_key, &principal.encode()) }
    }

    /// Of a session, with the key that the MDS returned for it.
    pub fn session(principal: Principal, key: Key) -> Self {
        Self { principal, key }
    }
}

/// Why a connection was not established.
#[derive(Debug, Error)]
pub enum HandshakeError {
    #[error("handshake took longer than {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
    #[error("handshake i/o")]
    Io(#[from] std::io::Error),
    #[error("the peer does not speak the Curve handshake, version {VERSION}")]
    Protocol,
    #[error("the peer claims an unknown kind of principal")]
    UnknownPrincipal,
    #[error("the peer could not prove that it knows the key of {claim}")]
    BadProof { claim: &'static str },
    #[error("device {found} answered where {expected} was expected")]
    WrongDevice { found: DeviceId, expected: DeviceId },
}

/// Caller's side. `expected` is the device that must answer.
pub async fn connect<S>(
    stream: &mut S,
    credentials: &Credentials,
    expected: DeviceId,
) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let steps = connect_steps(stream, credentials, expected);
    tokio::time::timeout(HANDSHAKE_TIMEOUT, steps).await.map_err(|_| HandshakeError::Timeout)?
}

async fn connect_steps<S>(
    stream: &mut S,
    credentials: &Credentials,
    expected: DeviceId,
) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut hello = [0; HELLO_LEN];
    hello[..4].copy_from_slice(HELLO_MAGIC);
    hello[4] = VERSION;
    hello[5..5 + CLAIM_LEN].copy_from_slice(&credentials.principal.encode());
    hello[5 + CLAIM_LEN..].copy_from_slice(&rand::random::<[u8; 32]>());
    stream.write_all(&hello).await?;

    let mut welcome = [0; WELCOME_LEN];
    stream.read_exact(&mut welcome).await?;
    if &welcome[..4] != WELCOME_MAGIC || welcome[4] != VERSION {
        return Err(HandshakeError::Protocol);
    }
    let (signed, proof) = welcome.split_at(WELCOME_SIGNED_LEN);
    if !credentials.key.verify(&[b"server", &hello, signed], proof) {
        return Err(HandshakeError::BadProof { claim: "the server" });
    }
    let found = DeviceId::from_bytes(signed[5..21].try_into().expect("16 bytes"));
    if found != expected {
        return Err(HandshakeError::WrongDevice { found, expected });
    }
    stream.write_all(&credentials.key.derive(&[b"client", &hello, signed]).0).await?;
    let mut accepted = [0; 1];
    stream.read_exact(&mut accepted).await?;
    if accepted != [1] {
        return Err(HandshakeError::Protocol);
    }
    Ok(())
}

/// Server's side: returns who called.
pub async fn accept<S>(
    stream: &mut S,
    device: DeviceId,
    peer_key: &Key,
) -> Result<Principal, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let steps = accept_steps(stream, device, peer_key);
    tokio::time::timeout(HANDSHAKE_TIMEOUT, steps).await.map_err(|_| HandshakeError::Timeout)?
}

async fn accept_steps<S>(
    stream: &mut S,
    device: DeviceId,
    peer_key: &Key,
) -> Result<Principal, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut hello = [0; HELLO_LEN];
    // The magic first, so that a stranger's protocol is dropped at its first bytes.
    stream.read_exact(&mut hello[..5]).await?;
    if &hello[..4] != HELLO_MAGIC || hello[4] != VERSION {
        return Err(HandshakeError::Protocol);
    }
    stream.read_exact(&mut hello[5..]).await?;
    let claim: [u8; CLAIM_LEN] = hello[5..5 + CLAIM_LEN].try_into().expect("claim length");
    let principal = Principal::decode(&claim).ok_or(HandshakeError::UnknownPrincipal)?;
    let key = claim_key(peer_key, &claim);

    let mut welcome = [0; WELCOME_LEN];
    welcome[..4].copy_from_slice(WELCOME_MAGIC);
    welcome[4] = VERSION;
    welcome[5..21].copy_from_slice(&device.to_bytes());
    welcome[21..WELCOME_SIGNED_LEN].copy_from_slice(&rand::random::<[u8; 32]>());
    let proof = key.derive(&[b"server", &hello, &welcome[..WELCOME_SIGNED_LEN]]);
    welcome[WELCOME_SIGNED_LEN..].copy_from_slice(&proof.0);
    stream.write_all(&welcome).await?;

    let mut confirm = [0; 32];
    stream.read_exact(&mut confirm).await?;
    if !key.verify(&[b"client", &hello, &welcome[..WELCOME_SIGNED_LEN]], &confirm) {
        return Err(HandshakeError::BadProof { claim: "the caller" });
    }
    stream.write_all(&[1]).await?;
    Ok(principal)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shake(
        credentials: Credentials,
        expected: DeviceId,
        device: DeviceId,
        key: &Key,
    ) -> (Result<(), HandshakeError>, Result<Principal, HandshakeError>) {
        let (mut near, mut far) = tokio::io::duplex(1024);
        let client = async move {
            let result = connect(&mut near, &credentials, expected).await;
            drop(near);
            result
        };
        let server = async move {
            let result = accept(&mut far, device, key).await;
            drop(far);
            result
        };
        tokio::join!(client, server)
    }

    fn session(epoch: u64) -> Principal {
        Principal::Session {
            session: SessionId(4),
            volume: VolumeId::from_bytes([7; 16]),
            epoch: Epoch(epoch),
            read_only: false,
        }
    }

    #[tokio::test]
    async fn both_sides_know_who_the_other_is() {
        let (key, device) = (Key::random(), DeviceId::random());
        let principal = Principal::Peer { device: DeviceId::random() };
        let credentials = Credentials::peer(principal, &key);
        let (client, server) = shake(credentials, device, device, &key).await;
        client.expect("client");
        assert_eq!(server.expect("server"), principal);
    }

    #[tokio::test]
    async fn a_session_key_opens_only_its_own_claim() {
        let (key, device) = (Key::random(), DeviceId::random());
        let granted = session_key(&key, &session(1));
        let honest = Credentials::session(session(1), granted.clone());
        assert!(shake(honest, device, device, &key).await.1.is_ok());
        let forged = Credentials::session(session(2), granted.clone());
        assert!(shake(forged, device, device, &key).await.1.is_err());
        let promoted = Principal::Mds { device: DeviceId::random() };
        let forged = Credentials::session(promoted, granted);
        assert!(shake(forged, device, device, &key).await.1.is_err());
    }

    #[tokio::test]
    async fn another_cluster_is_refused_by_both_sides() {
        let device = DeviceId::random();
        let principal = Principal::Peer { device };
        let credentials = Credentials::peer(principal, &Key::random());
        let (client, server) = shake(credentials, device, device, &Key::random()).await;
        assert!(matches!(client, Err(HandshakeError::BadProof { .. })));
        assert!(server.is_err());
    }

    #[tokio::test]
    async fn a_device_that_took_over_an_address_is_noticed() {
        let key = Key::random();
        let credentials = Credentials::peer(Principal::Peer { device: DeviceId::random() }, &key);
        let (client, _) = shake(credentials, DeviceId::random(), DeviceId::random(), &key).await;
        assert!(matches!(client, Err(HandshakeError::WrongDevice { .. })));
    }

    #[tokio::test]
    async fn a_stranger_is_refused_at_its_first_bytes() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        near.write_all(b"GET / HTTP/1.1\r\n").await.expect("write");
        let refused = accept(&mut far, DeviceId::random(), &Key::random()).await;
        assert!(matches!(refused, Err(HandshakeError::Protocol)));
    }

    #[test]
    fn keys_read_back_from_hex() {
        let key = Key::random();
        assert_eq!(Key::from_hex(&format!("{}\n", key.to_hex())), Some(key));
        assert_eq!(Key::from_hex("abc"), None);
        assert_eq!(Key::from_hex(&"zz".repeat(32)), None);
    }
}
