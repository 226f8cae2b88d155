//! What a blank process does, by what the others say.

use super::*;

fn id(n: u8) -> DeviceId {
    DeviceId::from_bytes([n; 16])
}

fn blank(n: u8) -> Option<PeerDescription> {
    Some(PeerDescription { device_id: id(n).to_wire(), ..Default::default() })
}

fn forming(n: u8, voters: &[u8]) -> Option<PeerDescription> {
    let voters = voters.iter().map(|n| id(*n).to_wire()).collect();
    blank(n).map(|said| PeerDescription { member: true, voters, ..said })
}

fn formed(n: u8, leader: bool) -> Option<PeerDescription> {
    let cluster_id = ClusterId::from_bytes([1; 16]).to_wire();
    forming(n, &[n]).map(|said| PeerDescription { cluster_id, leader, ..said })
}

fn initialize(voters: &[u8]) -> Step {
    Step::Initialize(voters.iter().map(|n| id(*n)).collect())
}

#[test]
fn a_group_is_formed_only_when_every_peer_is_blank() {
    let join = |names: &[&str]| Step::Join(names.iter().map(|name| (*name).to_owned()).collect());
    let cases = [
        ("a", [("b", blank(2)), ("c", blank(3))], initialize(&[1, 2, 3])),
        // The first by name begins; the others wait for it.
        ("b", [("a", blank(2)), ("c", blank(3))], Step::Wait),
        ("c", [("a", blank(2)), ("b", blank(3))], Step::Wait),
        // A silent peer may belong to a cluster.
        ("a", [("b", blank(2)), ("c", None)], Step::Wait),
        ("a", [("b", None), ("c", None)], Step::Wait),
        // Somebody began, with this process: help, with the same voters.
        ("b", [("a", forming(2, &[1, 2, 3])), ("c", None)], initialize(&[1, 2, 3])),
        // Somebody began with what this directory held before it was emptied.
        ("a", [("b", forming(2, &[9, 2, 3])), ("c", blank(3))], Step::Wait),
        // There is a cluster: join it, the leader first.
        ("a", [("b", formed(2, false)), ("c", None)], join(&["b"])),
        ("a", [("b", formed(2, false)), ("c", formed(3, true))], join(&["c", "b"])),
        ("a", [("b", blank(2)), ("c", formed(3, false))], join(&["c"])),
        // Two peers with one identity: a copied directory. Nothing can be formed of that.
        ("a", [("b", blank(2)), ("c", blank(2))], Step::Wait),
    ];
    for (own, others, expected) in cases {
        assert_eq!(next_step((own, id(1)), others.clone()), expected, "{own} {others:?}");
    }
}

#[test]
fn a_single_mds_forms_its_group_alone() {
    assert_eq!(next_step(("a", id(1)), []), initialize(&[1]));
}

#[test]
fn a_newcomer_takes_the_place_of_everyone_of_its_name() {
    let members = [("a", id(1)), ("b", id(2)), ("c", id(3))];
    let members = members.map(|(name, id)| (name.to_owned(), id)).into();
    // 13 became a voter in the place of 3 and 12 in that of 2; neither is recorded.
    let said = |voter| (voter == id(12)).then(|| "b".to_owned());
    let set = |ids: &[u8]| -> BTreeSet<_> { ids.iter().map(|n| id(*n)).collect() };
    let cases: [(&[u8], &[u8]); 3] =
        [(&[1, 2, 3], &[1, 2, 23]), (&[1, 2, 13], &[1, 2, 23]), (&[1, 12, 13], &[1, 12, 23])];
    for (present, wanted) in cases {
        let voters = voters_with(&set(present), ("c", id(23)), &members, said);
        assert_eq!(voters, set(wanted), "{present:?}");
    }
}
