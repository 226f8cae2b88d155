//! `cargo xtask up`: from a bare machine to a pod writing on a replicated volume.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cluster::record::ClusterLock;
use crate::cluster::{Cluster, snapshots, verify};
use crate::command;
use crate::deploy::{self, Api};
use crate::image::catalog;
use crate::packages;
use crate::paths::Paths;
use crate::progress::{Progress, human};
use crate::tools::{CLUSTER_MODULES, Tools};

#[derive(Debug)]
pub struct UpOptions {
    pub nodes: u8,
    pub release: bool,
    /// A cluster of the user's own, instead of ours.
    pub kubeconfig: Option<PathBuf>,
    /// What that cluster pulls, when the image was pushed somewhere.
    pub image: Option<String>,
}

pub fn up(options: &UpOptions) -> Result<()> {
    match &options.kubeconfig {
        Some(kubeconfig) => up_elsewhere(options, kubeconfig),
        None => up_here(options),
    }
}

fn up_here(options: &UpOptions) -> Result<()> {
    let _lock = ClusterLock::take()?;
    let paths = Paths::from_env()?;
    let mut progress = Progress::new(8);
    let cluster = start_cluster(&paths, options.nodes, &mut progress)?;
    deploy_all(&cluster, options.release, &mut progress)?;
    print_next_steps(&progress, "eval \"$(cargo xtask cluster env)\"");
    Ok(())
}

/// Three stages: packages, tools, nodes.
pub fn start_cluster(paths: &Paths, nodes: u8, progress: &mut Progress) -> Result<Cluster> {
    progress.stage("Debian packages", packages::ensure)?;
    // All of them now: what is deployed later needs the rest, and they build in one go.
    let tools = progress.stage("tools", |step| Tools::ensure(paths, step, &[]))?;
    let cluster = Cluster::new(paths.clone(), tools)?;
    progress.stage("cluster", |step| cluster.ensure(nodes, step))?;
    Ok(cluster)
}

/// Five stages, and what the example's pod said at the end of the last one.
pub fn deploy_all(cluster: &Cluster, release: bool, progress: &mut Progress) -> Result<()> {
    let paths = &cluster.paths;
    let tools = Tools::ensure(paths, &mut crate::progress::Step::quiet(), &[])?;
    let api = Api::of(cluster, &tools);
    let binaries =
        progress.stage("Curve from source", |step| deploy::build(paths, release, step))?;
    let image =
        progress.stage("image", |step| deploy::load_images(cluster, &tools, &binaries, step))?;
    let overrides = deploy::local_overrides();
    progress.stage("chart", |step| {
        snapshots::install(cluster, step)?;
        deploy::install_chart(paths, &api, &image.name, &overrides, step)
    })?;
    progress.stage("CurveCluster", |step| deploy::create_cluster(paths, &api, step))?;
    let said = progress.stage("a pod that writes and reads back", |step| {
        deploy::write_from_a_pod(paths, &api, deploy::EXAMPLE_IMAGE, step)
    })?;
    print!("{}", said.lines().map(|line| format!("        {line}\n")).collect::<String>());
    Ok(())
}

/// The Kubernetes cluster without Curve.
pub fn cluster_only(nodes: u8) -> Result<()> {
    let _lock = ClusterLock::take()?;
    let paths = Paths::from_env()?;
    let mut progress = Progress::new(4);
    progress.stage("Debian packages", packages::ensure)?;
    let tools = progress.stage("tools", |step| Tools::ensure(&paths, step, CLUSTER_MODULES))?;
    let cluster = Cluster::new(paths, tools)?;
    progress.stage("cluster", |step| cluster.ensure(nodes, step))?;
    progress.stage("plain pods", |step| verify::plain_pods(&cluster, step))?;
    println!("\nReady after {}. To use it from this shell:\n", human(progress.elapsed()));
    println!("  eval \"$(cargo xtask cluster env)\"\n  kubectl get nodes");
    Ok(())
}

/// A cluster that we may not touch below its API: it pulls images, or was given them by hand.
fn up_elsewhere(options: &UpOptions, kubeconfig: &Path) -> Result<()> {
    let paths = Paths::from_env()?;
    let kubeconfig = kubeconfig
        .canonicalize()
        .with_context(|| format!("find the kubeconfig {}", kubeconfig.display()))?;
    let (kubectl, helm) = (command::find_program("kubectl"), command::find_program("helm"));
    let mut progress = Progress::new(if options.image.is_some() { 4 } else { 6 });
    let api = match (kubectl, helm) {
        (Some(kubectl), Some(helm)) => {
            progress.stage("tools", |step| {
                step.say("kubectl and helm from PATH");
                Ok(())
            })?;
            Api { kubectl, helm, kubeconfig }
        }
        _ => {
            let tools = progress
                .stage("tools", |step| Tools::ensure(&paths, step, &["kubernetes", "sidecars"]))?;
            Api { kubectl: tools.kubectl(), helm: tools.helm(), kubeconfig }
        }
    };
    api.kubectl(&["get", "--raw=/readyz", "--request-timeout=10s"])
        .context("reach the cluster of that kubeconfig")?;
    let image = match &options.image {
        Some(image) => image.clone(),
        None => {
            let built = progress
                .stage("Curve from source", |step| deploy::build(&paths, options.release, step))?;
            let image =
                progress.stage("image", |step| catalog::curve_image(&paths, &built, step))?;
            println!(
                "      every node of that cluster needs this image; load it, if it is not there:\n        \
                 ctr -n k8s.io images import {}\n      \
                 or push it and pass --image REPOSITORY:TAG",
                image.archive.display()
            );
            image.name
        }
    };
    ensure!(image.contains(':'), "--image {image} has no tag: write REPOSITORY:TAG");
    let overrides = deploy::overrides_of(&api)?;
    progress
        .stage("chart", |step| deploy::install_chart(&paths, &api, &image, &overrides, step))?;
    progress.stage("CurveCluster", |step| deploy::create_cluster(&paths, &api, step))?;
    progress.stage("a pod that writes and reads back", |step| {
        // The only image of which that cluster is known to have a copy.
        deploy::write_from_a_pod(&paths, &api, &image, step)
    })?;
    print_next_steps(&progress, &format!("export KUBECONFIG={}", api.kubeconfig.display()));
    Ok(())
}

fn print_next_steps(progress: &Progress, environment: &str) {
    println!(
        "
A pod wrote to a volume with three replicas and read it back, after {}.

Try next:
  {environment}
  kubectl get curveclusters -A
  kubectl get pods -A -o wide
  kubectl -n curve exec demo-mds-0 -- curve status
  kubectl -n curve delete pod demo-default-0     # a replica goes, the volume stays

`cargo xtask down` removes it all; add --purge to remove the data too.",
        human(progress.elapsed())
    );
}
