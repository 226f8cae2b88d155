//! Compiles our declaration of the CSI and kubelet registration contracts without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "csi/v1/identity.proto",
        "csi/v1/controller.proto",
        "csi/v1/node.proto",
        "pluginregistration/v1/registration.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
