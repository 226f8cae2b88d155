//! Compares our declarations with the official ones, descriptor by descriptor. The official files
//! come from Go modules pinned under e2e/tools and are never copied into this repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost_types::field_descriptor_proto::Type;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

/// What two peers must agree on, one line per fact: path -> number, type, label, flags.
type Facts = BTreeMap<String, String>;

#[test]
fn every_number_name_and_type_is_that_of_csi_1_12() {
    let dir = official("csi-spec", "github.com/container-storage-interface/spec");
    let ours = facts(
        &compile(
            &["csi/v1/identity.proto", "csi/v1/controller.proto", "csi/v1/node.proto"],
            ours(),
        ),
        "csi.v1",
    );
    let theirs = facts(&compile(&["csi.proto"], dir), "csi.v1");
    assert!(theirs.len() > 400, "the official file has only {} facts", theirs.len());
    assert_same(&ours, &theirs);
}

#[test]
fn every_number_name_and_type_is_that_of_plugin_registration_1() {
    let dir = official("kubernetes", "k8s.io/kubelet");
    let package = "pluginregistration";
    let ours = facts(&compile(&["pluginregistration/v1/registration.proto"], ours()), package);
    let dir = dir.join("pkg/apis/pluginregistration/v1");
    assert_same(&ours, &facts(&compile(&["api.proto"], dir), package));
}

#[test]
fn a_changed_number_does_not_go_unnoticed() {
    let set = compile(&["csi/v1/node.proto"], ours());
    let before = facts(&set, "csi.v1");
    let mut changed = set.clone();
    let message = changed
        .file
        .iter_mut()
        .flat_map(|file| &mut file.message_type)
        .find(|message| message.name() == "NodeStageVolumeRequest")
        .expect("declared");
    message.field[0].number = Some(99);
    let after = facts(&changed, "csi.v1");
    assert_eq!(differences(&before, &after).len(), 1);
}

fn assert_same(ours: &Facts, theirs: &Facts) {
    let differences = differences(ours, theirs);
    assert!(differences.is_empty(), "not the official contract:\n{}", differences.join("\n"));
}

fn differences(ours: &Facts, theirs: &Facts) -> Vec<String> {
    let mut found = Vec::new();
    for (path, their) in theirs {
        match ours.get(path) {
            None => found.push(format!("missing here: {path} = {their}")),
            Some(our) if our != their => found.push(format!("{path}: ours {our}, theirs {their}")),
            Some(_) => {}
        }
    }
    found.extend(
        ours.keys().filter(|p| !theirs.contains_key(*p)).map(|p| format!("only here: {p}")),
    );
    found
}

fn facts(set: &FileDescriptorSet, package: &str) -> Facts {
    let mut facts = Facts::new();
    for file in set.file.iter().filter(|file| file.package() == package) {
        for message in &file.message_type {
            message_facts(package, message, &mut facts);
        }
        for declared in &file.enum_type {
            enum_facts(package, declared, &mut facts);
        }
        for service in &file.service {
            service_facts(package, service, &mut facts);
        }
    }
    facts
}

fn message_facts(parent: &str, message: &DescriptorProto, facts: &mut Facts) {
    let path = format!("{parent}.{}", message.name());
    let map_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
    facts.insert(path.clone(), format!("message map_entry={map_entry}"));
    for field in &message.field {
        facts.insert(format!("{path}.{}", field.name()), field_fact(message, field));
    }
    for nested in &message.nested_type {
        message_facts(&path, nested, facts);
    }
    for declared in &message.enum_type {
        enum_facts(&path, declared, facts);
    }
}

fn field_fact(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let oneof = field.oneof_index.map(|index| message.oneof_decl[index as usize].name());
    let type_name = match field.r#type() {
        Type::Message | Type::Enum => field.type_name(),
        _ => "",
    };
    format!(
        "{} {:?} {:?} {type_name} oneof={oneof:?} optional={} json={}",
        field.number(),
        field.label(),
        field.r#type(),
        field.proto3_optional(),
        field.json_name(),
    )
}

fn enum_facts(parent: &str, declared: &EnumDescriptorProto, facts: &mut Facts) {
    let path = format!("{parent}.{}", declared.name());
    facts.insert(path.clone(), "enum".to_owned());
    for value in &declared.value {
        facts.insert(format!("{path}.{}", value.name()), value.number().to_string());
    }
}

fn service_facts(parent: &str, service: &ServiceDescriptorProto, facts: &mut Facts) {
    let path = format!("{parent}.{}", service.name());
    facts.insert(path.clone(), "service".to_owned());
    for method in &service.method {
        let streams = (method.client_streaming(), method.server_streaming());
        let fact =
            format!("{} -> {} streams={streams:?}", method.input_type(), method.output_type());
        facts.insert(format!("{path}.{}", method.name()), fact);
    }
}

fn ours() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto")
}

fn compile(files: &[&str], root: PathBuf) -> FileDescriptorSet {
    protox::compile(files, [root]).expect("the declaration compiles")
}

/// What to do where the official files cannot be had: a comparison that did not take place must
/// not look like one that found no difference.
const REMEDY: &str = "this test needs Go (README.md) and, once, the network; with both, run\n    \
    PATH=$PATH:/usr/local/go/bin cargo test -p csi-proto --test contract";

/// Directory of a pinned Go module, which Go fetches if its cache lacks it.
fn official(pinned_by: &str, module: &str) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/tools").join(pinned_by);
    // Asked for as `module@version`, so that one module is fetched and not all that it requires.
    let version = go(&tools, &["list", "-m", "-f", "{{.Path}}@{{.Version}}", module]);
    let answer = go(&tools, &["mod", "download", "-json", version.trim()]);
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("go prints JSON");
    PathBuf::from(answer["Dir"].as_str().expect("go names the directory"))
}

fn go(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("go").args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("run go: {error}: {REMEDY}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "go {args:?}: {errors}: {REMEDY}");
    String::from_utf8(output.stdout).expect("go prints text")
}
