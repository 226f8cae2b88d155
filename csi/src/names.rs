//! CSI's names as names of the engine. CSI allows any Unicode, the engine letters, digits, `-`, `_`
//! and `.`. Kubernetes' own (`pvc-UUID`, `snapshot-UUID`) pass as they are, others are hashed: each
//! still means the same thing every time.

use sha2::{Digest, Sha256};

use crate::error::CsiError;

/// Longest name that is passed on, and that the engine takes; longer ones would not fit a
/// Kubernetes object either.
const NAME_MAX: usize = 128;
/// Longest name of a group as part of its handle, which CSI limits to 128 bytes: the rest of that
/// has 45. A hash has 68.
const GROUP_MAX: usize = 80;
/// Begins the name of every snapshot that is part of a group; no other snapshot gets such a name.
const GROUP_PREFIX: &str = "csi-group-";
/// Begins the name of a snapshot that lives only while a volume is made from another.
const CLONE_PREFIX: &str = "csi-clone-";

/// The name that a request must carry.
pub fn check(name: &str) -> Result<(), CsiError> {
    if name.is_empty() {
        return Err(CsiError::invalid("name", "is missing"));
    }
    if name.len() > NAME_MAX || name.chars().any(char::is_control) {
        let reason = format!("{name:?}: up to {NAME_MAX} bytes without control characters");
        return Err(CsiError::invalid("name", reason));
    }
    Ok(())
}

/// Of a volume.
pub fn volume(name: &str) -> String {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    let allowed = |c: char| alphanumeric(c) || matches!(c, '-' | '_' | '.');
    if name.chars().all(allowed) && name.starts_with(alphanumeric) && name.ends_with(alphanumeric) {
        return name.to_owned();
    }
    hashed(name)
}

/// Of a snapshot that was asked for by itself.
pub fn snapshot(name: &str) -> String {
    let reserved = [GROUP_PREFIX, CLONE_PREFIX].iter().any(|prefix| name.starts_with(prefix));
    if reserved { hashed(name) } else { volume(name) }
}

/// Of a group, as its handle has it.
pub fn group(name: &str) -> String {
    let own = volume(name);
    if own.len() > GROUP_MAX { hashed(name) } else { own }
}

/// Of each snapshot of a group.
pub fn member(group: &str) -> String {
    format!("{GROUP_PREFIX}{group}")
}

/// The group that a snapshot of this name is part of.
pub fn group_of(snapshot: &str) -> Option<&str> {
    snapshot.strip_prefix(GROUP_PREFIX)
}

/// Of the snapshot through which the volume of that name gets another volume's data.
pub fn clone(volume: &str) -> String {
    let plain = format!("{CLONE_PREFIX}{volume}");
    if plain.len() > NAME_MAX { format!("{CLONE_PREFIX}{}", hashed(volume)) } else { plain }
}

fn hashed(name: &str) -> String {
    let digest = Sha256::digest(name);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_the_engines_alphabet_are_hashed() {
        let ordinary = "pvc-5f0c1f7e-3f0c-4b2a-9c6e-0a1b2c3d4e5f";
        assert_eq!(volume(ordinary), ordinary);
        for name in ["limit-vol+1", "größe", "-edge", "edge."] {
            let hashed = volume(name);
            assert_eq!(hashed.len(), "csi-".len() + 64, "{name}");
            assert_eq!(volume(&hashed), hashed, "{name}");
        }
        assert_ne!(volume("limit-vol+1"), volume("limit-vol+2"));
    }

    #[test]
    fn no_snapshot_that_is_asked_for_by_itself_is_taken_for_one_of_the_drivers_own() {
        for name in [member(&group("a")), clone("a")] {
            let own = snapshot(&name);
            assert_ne!(own, name);
            assert_eq!(group_of(&own), None);
        }
        assert_eq!(snapshot("snapshot-1"), "snapshot-1");
        assert_eq!(group_of(&member(&group("größe"))), Some(group("größe").as_str()));
    }

    #[test]
    fn no_name_grows_longer_than_the_engine_takes() {
        let longest = "a".repeat(NAME_MAX);
        for name in
            [volume(&longest), snapshot(&longest), member(&group(&longest)), clone(&longest)]
        {
            assert!(name.len() <= NAME_MAX, "{name}");
        }
        assert!(group(&longest).len() <= GROUP_MAX);
        assert_ne!(clone(&longest), clone(&longest.replacen('a', "b", 1)));
    }
}
