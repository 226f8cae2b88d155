use super::*;
use crate::fixtures::nodes;

fn key() -> ClusterKey {
    ClusterKey { namespace: "curve".into(), name: "demo".into() }
}

fn stored(identity: &Identity) -> Secret {
    Secret { data: Some(tls_data(identity)), ..Secret::default() }
}

#[test]
fn what_exists_is_kept_and_what_is_missing_is_made() {
    let authority = Authority::generate("demo").expect("an authority");
    let mut observed = Observed { nodes: nodes(2), ..Observed::default() };
    let first = gather_credentials(&key(), &authority, &observed).expect("credentials");
    let mut mds = stored(&first.mds);
    mds.data.as_mut().expect("data").insert(CLUSTER_KEY.into(), bytes(&first.cluster_key));
    observed.secrets.insert("demo-mds-tls".into(), mds);
    observed
        .connections
        .insert("curve-curve-demo-node-node1".into(), stored(&first.agents["node1"]));
    let second = gather_credentials(&key(), &authority, &observed).expect("credentials");
    assert_eq!(second.cluster_key, first.cluster_key);
    assert_eq!(second.mds.cert_pem, first.mds.cert_pem);
    assert_eq!(second.agents["node1"].cert_pem, first.agents["node1"].cert_pem);
    assert_ne!(second.agents["node2"].cert_pem, first.agents["node2"].cert_pem);
}

#[test]
fn a_new_authority_makes_every_certificate_anew_but_keeps_the_cluster_key() {
    let before = Authority::generate("demo").expect("an authority");
    let mut observed = Observed::default();
    let first = gather_credentials(&key(), &before, &observed).expect("credentials");
    let mut mds = stored(&first.mds);
    mds.data.as_mut().expect("data").insert(CLUSTER_KEY.into(), bytes(&first.cluster_key));
    observed.secrets.insert("demo-mds-tls".into(), mds);
    let after = Authority::generate("demo").expect("an authority");
    let second = gather_credentials(&key(), &after, &observed).expect("credentials");
    assert_eq!(second.mds.ca_pem, after.cert_pem());
    assert_eq!(second.cluster_key, first.cluster_key);
    assert_ne!(second.authority, first.authority);
}

#[test]
fn an_authority_that_cannot_be_read_is_not_replaced() {
    let error = read_authority("demo-ca", &Secret::default()).err().expect("damaged");
    assert!(error.to_string().contains("demo-ca has no readable tls.crt"), "{error}");
}
