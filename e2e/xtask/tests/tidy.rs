//! The rules of the tree that no compiler checks: who may depend on whom, how files open and
//! how long they get. Cheap enough to run with every test run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// ARCHITECTURE's import table: crate, its directory, the crates of ours it may use. A crate
/// that is not here may not exist; one that uses another crate of ours breaks the layering.
const IMPORTS: &[(&str, &str, &[&str])] = &[
    ("curve-types", "storage-engine/types", &[]),
    ("curve-wire", "storage-engine/wire", &["curve-types"]),
    ("curve-store", "storage-engine/store", &["curve-types"]),
    ("curve-raft", "storage-engine/raft", &["curve-types", "curve-wire", "curve-store"]),
    ("curve-mds", "storage-engine/mds", &["curve-types", "curve-wire", "curve-raft"]),
    (
        "curve-chunkserver",
        "storage-engine/chunkserver",
        &["curve-types", "curve-wire", "curve-store", "curve-raft", "curve-client"],
    ),
    ("curve-client", "storage-engine/client", &["curve-types", "curve-wire"]),
    ("curve-attach", "storage-engine/attach", &["curve-types", "curve-wire", "curve-client"]),
    (
        "curve",
        "storage-engine/curve",
        &[
            "curve-types",
            "curve-wire",
            "curve-mds",
            "curve-chunkserver",
            "curve-client",
            "curve-attach",
        ],
    ),
    (
        "curve-fuzz",
        "storage-engine/fuzz",
        &["curve-wire", "curve-store", "curve-raft", "curve-client", "curve-attach"],
    ),
    (
        "curve-sim",
        "storage-engine/sim",
        &[
            "curve-types",
            "curve-wire",
            "curve-store",
            "curve-raft",
            "curve-mds",
            "curve-chunkserver",
            "curve-client",
        ],
    ),
    ("csi-proto", "csi/proto", &[]),
    ("curve-csi", "csi", &["csi-proto", "curve-types", "curve-wire", "curve-client"]),
    ("curve-operator", "operator", &["curve-types", "curve-wire", "curve-client"]),
    ("curve-e2e", "e2e", &["xtask", "curve-types", "curve-wire", "curve-client", "csi-proto"]),
    ("xtask", "e2e/xtask", &[]),
];

/// Foreign crates that belong behind one of our boundaries, and who may name them.
const BEHIND_A_BOUNDARY: &[(&str, &[&str])] =
    &[("openraft", &["curve-raft"]), ("kube", &["curve-operator", "curve-csi", "curve"])];

const PRODUCTION_LINES_MAX: usize = 650;
/// Names that say nothing about what lives in the file.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "manager", "misc"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("checkout").to_path_buf()
}

fn manifest(path: &Path) -> toml::Table {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    text.parse().unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// Names under the given tables of a Cargo.toml.
fn dependencies(manifest: &toml::Table, tables: &[&str]) -> Vec<String> {
    tables
        .iter()
        .filter_map(|table| manifest.get(*table)?.as_table())
        .flat_map(|table| table.keys().cloned())
        .collect()
}

#[test]
fn every_crate_imports_only_what_the_architecture_allows() {
    let root = root();
    let mut wrong = Vec::new();
    let ours: Vec<&str> = IMPORTS.iter().map(|(name, ..)| *name).collect();
    for (name, dir, allowed) in IMPORTS {
        let path = root.join(dir).join("Cargo.toml");
        if !path.exists() {
            continue;
        }
        let manifest = manifest(&path);
        assert_eq!(manifest["package"]["name"].as_str(), Some(*name), "{dir}");
        // Tests may look at more than the code they test: only what ships is layered.
        for dependency in dependencies(&manifest, &["dependencies", "build-dependencies"]) {
            if ours.contains(&dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} may not use {dependency}"));
            }
            let boundary = BEHIND_A_BOUNDARY.iter().find(|(foreign, _)| *foreign == dependency);
            if boundary.is_some_and(|(_, users)| !users.contains(name)) {
                wrong.push(format!("{name} may not use {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_workspace_member_is_in_the_import_table() {
    let root = root();
    let workspace = manifest(&root.join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().expect("members");
    let known: BTreeMap<&str, &str> = IMPORTS.iter().map(|(name, dir, _)| (*dir, *name)).collect();
    for member in members {
        let dir = member.as_str().expect("a path");
        assert!(known.contains_key(dir), "{dir} is not in the import table of tidy.rs");
    }
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                rust_files(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    rust_files(&root(), &mut found);
    assert!(found.len() > 20, "found only {} Rust files: looking in the wrong place", found.len());
    found
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches")
        || path.file_name().is_some_and(|name| name == "tests.rs")
}

#[test]
fn every_file_says_first_what_lives_in_it() {
    let silent: Vec<PathBuf> = all_rust_files()
        .into_iter()
        // `foo/tests.rs` holds the tests of `foo`: its place says it.
        .filter(|path| path.file_name().is_some_and(|name| name != "tests.rs"))
        .filter(|path| !fs::read_to_string(path).expect("read").starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "no //! at the top of {silent:#?}");
}

#[test]
fn production_files_stay_short() {
    let long: Vec<String> = all_rust_files()
        .into_iter()
        .filter(|path| !is_test(path))
        .filter_map(|path| {
            let lines = fs::read_to_string(&path).expect("read").lines().count();
            (lines > PRODUCTION_LINES_MAX).then(|| format!("{}: {lines}", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "more than {PRODUCTION_LINES_MAX} lines:\n{}", long.join("\n"));
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    let empty: Vec<PathBuf> = all_rust_files()
        .into_iter()
        .filter(|path| {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            EMPTY_NAMES.contains(&stem)
        })
        .collect();
    assert!(empty.is_empty(), "{empty:?}");
}

#[test]
fn the_chart_runs_the_sidecars_that_are_pinned() {
    let root = root();
    let values = root.join("charts/curve/values.yaml");
    let values = fs::read_to_string(values).expect("the chart's values");
    let go_mod = fs::read_to_string(root.join("e2e/tools/sidecars/go.mod")).expect("go.mod");
    for (sidecar, module) in [
        ("csi-provisioner", "external-provisioner/v6"),
        ("csi-attacher", "external-attacher/v4"),
        ("csi-resizer", "external-resizer/v2"),
        ("csi-snapshotter", "external-snapshotter/v8"),
    ] {
        let line = format!("github.com/kubernetes-csi/{module} ");
        let (_, rest) = go_mod.split_once(&line).expect(module);
        let version = rest.split_whitespace().next().expect("a version");
        let wanted = format!("{sidecar}:{version}");
        assert!(values.contains(&wanted), "charts/curve/values.yaml should name {wanted}");
    }
}
