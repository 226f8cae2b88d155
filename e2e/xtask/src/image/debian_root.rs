//! Debian root file systems for images, made once per package list by mmdebstrap.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::archive::Layer;
use crate::command;
use crate::paths::{Paths, write_atomically};
use crate::progress::Step;
use crate::tools::hex;

const SUITE: &str = "bookworm";

/// Documentation and translations: nothing in a container reads them.
const LEFT_OUT: &[&str] = &[
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/i18n/*",
    "--dpkgopt=path-exclude=/usr/share/bash-completion/*",
    "--dpkgopt=path-exclude=/usr/lib/*/gconv/*",
    "--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/* \"$1\"/var/log/*",
];

/// A layer with a minimal Debian and these packages.
pub fn layer(paths: &Paths, name: &str, packages: &[&str], step: &mut Step) -> Result<Layer> {
    let include = packages.join(",");
    let mut hash = Sha256::new();
    hash.update(format!("{SUITE} {include} {LEFT_OUT:?}"));
    let key = &hex(&hash.finalize())[..16];
    let dir = paths.cache.join("roots");
    let target = dir.join(format!("{name}-{key}.tar"));
    // Written last and by rename: where it is, the tar beside it is complete.
    let record = dir.join(format!("{name}-{key}.json"));
    if let Ok(bytes) = fs::read(&record) {
        return serde_json::from_slice(&bytes).context("parse the root's record");
    }
    if !target.is_file() {
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let temporary = dir.join(format!("{name}-{key}.tmp{}.tar", std::process::id()));
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap
            .args(["--variant=essential", "--format=tar"])
            .arg(format!("--include={include}"))
            .args(LEFT_OUT)
            .arg(SUITE)
            .arg(&temporary)
            // The layer's digest must not change with the clock.
            .env("SOURCE_DATE_EPOCH", "0");
        let log = dir.join(format!("{name}.log"));
        let text = format!("Debian root with {include}");
        let result = command::logged(&mut mmdebstrap, &log, || step.say(text.as_str()));
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result?;
        rename(&temporary, &target)?;
    }
    let layer = Layer::from_file(&target)?;
    let text = serde_json::to_vec(&layer).context("encode the root's record")?;
    write_atomically(&record, &text)?;
    Ok(layer)
}

fn rename(from: &PathBuf, to: &PathBuf) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("move to {}", to.display()))
}
