//! The CRDs in the repository are the ones that this source generates.

use std::fs;
use std::path::Path;

use curve_operator::crd;

#[test]
fn generated_files_are_current_in_both_places() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    for (name, definition) in crd::definitions() {
        let yaml = serde_yaml::to_string(&definition).expect("YAML");
        for directory in ["crds", "charts/curve/crds"] {
            let path = root.join(directory).join(name);
            let there = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                there.ends_with(&yaml),
                "{}: run `cargo run -p curve-operator --bin crdgen`",
                path.display()
            );
        }
    }
}

#[test]
fn the_examples_are_valid_objects() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let mut clusters = 0;
    for name in ["cluster.yaml", "pool.yaml"] {
        let text = fs::read_to_string(root.join("examples").join(name)).expect("an example");
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value: serde_json::Value = serde::Deserialize::deserialize(document).expect("YAML");
            match value["kind"].as_str() {
                Some("CurveCluster") => {
                    let cluster = serde_json::from_value(value).expect("a CurveCluster");
                    let valid = curve_operator::cluster::validate::validate(&cluster, "image:tag");
                    assert!(valid.is_ok(), "{valid:?}");
                    clusters += 1;
                }
                Some("CurvePool") => {
                    serde_json::from_value::<crd::CurvePool>(value).expect("a CurvePool");
                }
                _ => {}
            }
        }
    }
    assert_eq!(clusters, 1);
}
