//! What is on a device, and the tools that make, check, mount and grow file systems on it.
//!
//! A device is formatted only if nothing at all is recognized on it and its ends can be read:
//! `blkid` reports an unreadable device and an empty one alike.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use thiserror::Error;
use tokio::process::Command;

use crate::capability::FsType;

/// Read at either end of a device before it may count as empty. File systems, partition tables
/// and volume managers all keep their signatures there.
const ENDS: u64 = 1 << 20;
/// Of a tool's output, this much goes into an error.
const OUTPUT_MAX: usize = 600;
/// e2fsck: corrected everything, the last also asks for a reboot if it was the root file system.
const FSCK_CLEAN: [i32; 4] = [0, 1, 2, 3];

/// Why a file system cannot be used.
#[derive(Debug, Error)]
pub enum FilesystemError {
    #[error("read {device}")]
    Read { device: PathBuf, source: std::io::Error },
    #[error("{device} holds {found} and is left as it is")]
    Foreign { device: PathBuf, found: String },
    #[error("{device} holds {found}, while {wanted} is asked for; it is left as it is")]
    OtherType { device: PathBuf, found: &'static str, wanted: &'static str },
    #[error("{device} is empty and read-only, so no file system can be made on it")]
    BlankReadOnly { device: PathBuf },
    #[error("start {tool}")]
    Start { tool: &'static str, source: std::io::Error },
    #[error("{tool} on {device} failed ({status}): {output}")]
    Tool { tool: &'static str, device: PathBuf, status: String, output: String },
}

/// What is on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// No signature. `zeroed` if both ends hold nothing but zeros, as a new volume does.
    Blank {
        zeroed: bool,
    },
    Filesystem(FsType),
    /// Anything else, as the tools name it.
    Foreign(String),
}

/// What to do before the device can be mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preparation {
    Format {
        fs_type: FsType,
        zeroed: bool,
    },
    Check(FsType),
    /// Mount as it is.
    Nothing(FsType),
}

/// Decides, given what was found and what is wanted (`None`: any).
pub fn plan(
    device: &Path,
    content: &Content,
    wanted: Option<FsType>,
    read_only: bool,
) -> Result<Preparation, FilesystemError> {
    let device = || device.to_owned();
    match content {
        Content::Blank { .. } if read_only => {
            Err(FilesystemError::BlankReadOnly { device: device() })
        }
        Content::Blank { zeroed } => {
            let fs_type = wanted.unwrap_or(FsType::DEFAULT);
            Ok(Preparation::Format { fs_type, zeroed: *zeroed })
        }
        Content::Foreign(found) => {
            Err(FilesystemError::Foreign { device: device(), found: found.clone() })
        }
        Content::Filesystem(found) => match wanted {
            Some(wanted) if wanted != *found => Err(FilesystemError::OtherType {
                device: device(),
                found: found.as_str(),
                wanted: wanted.as_str(),
            }),
            // A check repairs, which needs writing. XFS repairs itself at mount from its log, and
            // its checker must not run before that.
            _ if read_only || *found == FsType::Xfs => Ok(Preparation::Nothing(*found)),
            _ => Ok(Preparation::Check(*found)),
        },
    }
}

/// Looks at a device.
pub async fn probe(device: &Path) -> Result<Content, FilesystemError> {
    let zeroed = ends_are_zero(device).await?;
    let blkid = ["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export"];
    let output = run("blkid", &blkid, device).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    };
    match (output.status.code(), value("TYPE"), value("PTTYPE")) {
        (Some(0), Some(found), _) => Ok(match FsType::from_name(&found) {
            Some(fs_type) => Content::Filesystem(fs_type),
            None => Content::Foreign(found),
        }),
        (Some(0), None, Some(table)) => Ok(Content::Foreign(format!("a {table} partition table"))),
        // 2: nothing found, or nothing that blkid's low-level probe is sure of.
        (Some(2), ..) => signatures(device, zeroed).await,
        (Some(8), ..) => Ok(Content::Foreign("several signatures".to_owned())),
        _ => Err(failed("blkid", device, &output)),
    }
}

/// The second opinion: `wipefs` lists every signature, also those that `blkid` discounts.
async fn signatures(device: &Path, zeroed: bool) -> Result<Content, FilesystemError> {
    let output = run("wipefs", &["--no-act", "--parsable", "--output", "TYPE"], device).await?;
    if !output.status.success() {
        return Err(failed("wipefs", device, &output));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<&str> =
        text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    Ok(if found.is_empty() {
        Content::Blank { zeroed }
    } else {
        Content::Foreign(format!("the signature of {}", found.join(", ")))
    })
}

async fn ends_are_zero(device: &Path) -> Result<bool, FilesystemError> {
    let path = device.to_owned();
    let read = move || {
        let mut file = File::open(&path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let mut zero = true;
        for start in [0, size.saturating_sub(ENDS)] {
            let mut end = Vec::new();
            file.seek(SeekFrom::Start(start))?;
            (&mut file).take(ENDS).read_to_end(&mut end)?;
            zero &= end.iter().all(|byte| *byte == 0);
        }
        Ok(zero)
    };
    let result = tokio::task::spawn_blocking(read).await.expect("does not panic");
    result.map_err(|source| FilesystemError::Read { device: device.to_owned(), source })
}

/// Makes a file system. Nothing is discarded first: a new volume has nothing to discard, and
/// walking a large one would take minutes.
pub async fn format(device: &Path, fs_type: FsType, zeroed: bool) -> Result<(), FilesystemError> {
    let (tool, arguments): (_, &[&str]) = match (fs_type, zeroed) {
        // What reads as zero need not be written as zero: that is all of the inode tables.
        (FsType::Ext4, true) => {
            ("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "nodiscard,assume_storage_prezeroed=1"])
        }
        (FsType::Ext4, false) => ("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "nodiscard"]),
        (FsType::Xfs, _) => ("mkfs.xfs", &["-q", "-f", "-K"]),
    };
    tracing::info!(device = %device.display(), tool, zeroed, "makes a file system");
    expect_success(tool, device, run(tool, arguments, device).await?)
}

/// Checks, and repairs what can be repaired safely, before the file system is mounted.
pub async fn check(device: &Path, fs_type: FsType) -> Result<(), FilesystemError> {
    match fs_type {
        FsType::Xfs => Ok(()),
        FsType::Ext4 => {
            let output = run("e2fsck", &["-p"], device).await?;
            match output.status.code() {
                Some(code) if FSCK_CLEAN.contains(&code) => Ok(()),
                _ => Err(failed("e2fsck", device, &output)),
            }
        }
    }
}

/// Mounts the device at a directory with the options of the volume.
pub async fn mount(
    device: &Path,
    path: &Path,
    fs_type: FsType,
    flags: &[String],
    read_only: bool,
) -> Result<(), FilesystemError> {
    let mut options: Vec<&str> = flags.iter().map(String::as_str).collect();
    if fs_type == FsType::Xfs {
        // A clone has the UUID of its origin, and either may be mounted first.
        options.push("nouuid");
    }
    if read_only {
        // The log cannot be replayed onto a read-only device.
        options.push("ro");
        options.push(match fs_type {
            FsType::Ext4 => "noload",
            FsType::Xfs => "norecovery",
        });
    }
    let mut command = Command::new("mount");
    command.args(["-t", fs_type.as_str()]);
    if !options.is_empty() {
        command.arg("-o").arg(options.join(","));
    }
    command.arg("--").arg(device).arg(path);
    let output = output("mount", command).await?;
    if output.status.success() {
        return Ok(());
    }
    let mut error = failed("mount", device, &output);
    if let (FsType::Xfs, FilesystemError::Tool { output, .. }) = (fs_type, &mut error) {
        // Reports what is wrong and changes nothing: repairing XFS may lose files, so a person
        // has to want it.
        let diagnosis = run("xfs_repair", &["-n"], device).await?;
        output.push_str("; xfs_repair -n says: ");
        output.push_str(&shorten(&diagnosis));
    }
    Err(error)
}

/// Grows the mounted file system to the size of its device. Nothing to grow is fine. The kernel
/// grants this for ext4 only with CAP_SYS_RESOURCE, which not every machine gives to its root.
pub async fn grow(device: &Path, path: &Path, fs_type: FsType) -> Result<(), FilesystemError> {
    let (tool, output) = match fs_type {
        FsType::Ext4 => ("resize2fs", run("resize2fs", &[], device).await?),
        FsType::Xfs => ("xfs_growfs", run("xfs_growfs", &["-d"], path).await?),
    };
    expect_success(tool, device, output)
}

/// As `grow`, for an ext4 that is not mounted: slower, since it must be checked whole first, but
/// without need of a privilege.
pub async fn grow_unmounted(device: &Path) -> Result<(), FilesystemError> {
    let output = run("e2fsck", &["-f", "-p"], device).await?;
    if output.status.code().is_none_or(|code| !FSCK_CLEAN.contains(&code)) {
        return Err(failed("e2fsck", device, &output));
    }
    expect_success("resize2fs", device, run("resize2fs", &[], device).await?)
}

fn expect_success(
    tool: &'static str,
    device: &Path,
    output: Output,
) -> Result<(), FilesystemError> {
    if output.status.success() { Ok(()) } else { Err(failed(tool, device, &output)) }
}

async fn run(tool: &'static str, args: &[&str], last: &Path) -> Result<Output, FilesystemError> {
    let mut command = Command::new(tool);
    command.args(args).arg(last);
    output(tool, command).await
}

async fn output(tool: &'static str, mut command: Command) -> Result<Output, FilesystemError> {
    // Messages are matched nowhere, but people read them: keep them in one language.
    command.env("LC_ALL", "C").stdin(std::process::Stdio::null());
    command.output().await.map_err(|source| FilesystemError::Start { tool, source })
}

fn failed(tool: &'static str, device: &Path, output: &Output) -> FilesystemError {
    let status = match (output.status.code(), output.status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or(0)),
    };
    FilesystemError::Tool { tool, device: device.to_owned(), status, output: shorten(output) }
}

fn shorten(output: &Output) -> String {
    let all = [&output.stderr[..], &output.stdout[..]].map(String::from_utf8_lossy).join(" ");
    let line = all.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(OUTPUT_MAX) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_blank_writable_device_is_formatted() {
        let device = Path::new("/dev/loop3");
        let blank = Content::Blank { zeroed: true };
        let made = plan(device, &blank, Some(FsType::Xfs), false).expect("blank");
        assert_eq!(made, Preparation::Format { fs_type: FsType::Xfs, zeroed: true });
        let made = plan(device, &blank, None, false).expect("blank");
        assert_eq!(made, Preparation::Format { fs_type: FsType::Ext4, zeroed: true });
        assert!(plan(device, &blank, None, true).is_err());
        for content in [
            Content::Foreign("LVM2_member".to_owned()),
            Content::Filesystem(FsType::Ext4),
            Content::Filesystem(FsType::Xfs),
        ] {
            for wanted in [None, Some(FsType::Ext4), Some(FsType::Xfs)] {
                for read_only in [false, true] {
                    let plan = plan(device, &content, wanted, read_only);
                    assert!(!matches!(plan, Ok(Preparation::Format { .. })), "{content:?}");
                }
            }
        }
    }

    #[test]
    fn another_file_system_than_asked_for_is_refused_by_name() {
        let content = Content::Filesystem(FsType::Xfs);
        let error = plan(Path::new("/dev/x"), &content, Some(FsType::Ext4), false);
        let text = error.expect_err("refused").to_string();
        assert!(text.contains("xfs") && text.contains("ext4"), "{text}");
    }

    /// A partition table with one Linux partition, on a disk of 4 MiB.
    fn mbr() -> Vec<u8> {
        let mut disk = vec![0; 4 << 20];
        disk[446 + 4] = 0x83;
        disk[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
        disk[446 + 12..446 + 16].copy_from_slice(&4096_u32.to_le_bytes());
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    }

    #[tokio::test]
    async fn content_is_recognized_on_real_bytes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let image = dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(400 << 20)).expect("create");
        assert_eq!(probe(&image).await.expect("probe"), Content::Blank { zeroed: true });
        for fs_type in [FsType::Ext4, FsType::Xfs] {
            format(&image, fs_type, true).await.expect("format");
            assert_eq!(probe(&image).await.expect("probe"), Content::Filesystem(fs_type));
        }
        std::fs::write(&image, mbr()).expect("write");
        assert!(matches!(probe(&image).await.expect("probe"), Content::Foreign(_)));
        let absent = probe(&dir.path().join("absent")).await;
        assert!(matches!(absent, Err(FilesystemError::Read { .. })));
    }

    #[tokio::test]
    async fn data_without_a_signature_is_not_taken_for_zeros() {
        let dir = tempfile::tempdir().expect("tempdir");
        let image = dir.path().join("image");
        std::fs::write(&image, vec![7; 4 << 20]).expect("write");
        assert_eq!(probe(&image).await.expect("probe"), Content::Blank { zeroed: false });
    }
}
