//! Blank, foreign, truncated and wrong devices each get an error that says so.

mod common;

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use common::{durable, entry, options, sim};
use curve_store::{DeviceState, Disk, FileDisk, FormatOptions, SimDisk, Store, format, inspect};
use curve_types::{ClusterId, CopysetId, DeviceId};

fn format_options(size: u64) -> FormatOptions {
    let (cluster, device) = (ClusterId::random(), DeviceId::random());
    FormatOptions { cluster, device, name: "cs-0".into(), size }
}

fn open_error(disk: Arc<dyn Disk>) -> String {
    Store::open(disk, options()).err().expect("refused").to_string()
}

#[test]
fn a_blank_device_is_formatted_once() {
    let disk = Arc::new(SimDisk::new(100 << 20));
    assert_eq!(inspect(&*disk).expect("inspect"), DeviceState::Blank);
    assert!(open_error(disk.clone()).contains("blank"));
    let options = format_options(100 << 20);
    let made = format(&*disk, &options).expect("format");
    assert_eq!(
        (made.device, made.cluster, &made.name),
        (options.device, options.cluster, &options.name)
    );
    assert_eq!(inspect(&*disk).expect("inspect"), DeviceState::Formatted(made));
    let again = format(&*disk, &format_options(100 << 20)).expect_err("refused").to_string();
    assert!(again.contains(&options.device.to_string()) && again.contains("cs-0"), "{again}");
}

#[test]
fn an_interrupted_format_leaves_a_device_that_is_blank_or_whole() {
    let whole = Arc::new(SimDisk::new(64 << 20));
    let options = format_options(64 << 20);
    format(&*whole, &options).expect("format");
    for before_end in 0..12 {
        for survives in [false, true] {
            let disk = SimDisk::new(64 << 20);
            disk.crash_at(whole.operations() - 1 - before_end);
            assert!(format(&disk, &options).is_err());
            let left = Arc::new(disk.after_crash(|| survives));
            match inspect(&*left).expect("inspect") {
                DeviceState::Blank => drop(format(&*left, &options).expect("format")),
                DeviceState::Formatted(_) => {}
                other => panic!("{other:?}"),
            }
            Store::open(left, common::options()).expect("open");
        }
    }
}

#[test]
fn one_damaged_superblock_is_repaired_and_two_are_reported() {
    let disk = sim(64 << 20, 1 << 20);
    disk.flip_bit(40, 0);
    drop(Store::open(disk.clone(), options()).expect("the other copy holds"));
    disk.flip_bit(4096 + 40, 0);
    drop(Store::open(disk.clone(), options()).expect("the first copy was repaired"));
    disk.flip_bit(40, 0);
    disk.flip_bit(4096 + 50, 0);
    let error = open_error(disk.clone());
    assert!(error.contains("superblocks") && error.contains("checksum"), "{error}");
    assert!(format(&*disk, &format_options(64 << 20)).is_err());
}

#[test]
fn a_truncated_device_says_how_long_it_should_be() {
    let disk = sim(64 << 20, 1 << 20);
    let cut = Arc::new(disk.with_len(32 << 20));
    let error = open_error(cut);
    assert!(error.contains("64 MiB") && error.contains("32 MiB"), "{error}");
    assert!(open_error(Arc::new(disk.with_len(4096))).contains("4 KiB long"));
    assert!(open_error(Arc::new(disk.with_len(0))).contains("empty"));
}

#[test]
fn foreign_data_is_named_and_never_overwritten() {
    let cases: [(u64, &[u8], &str); 6] = [
        (0x438, b"\x53\xef", "ext2/3/4"),
        (0, b"XFSB", "xfs"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512, b"EFI PART", "GPT"),
        ((64 << 10) + 0x40, b"_BHRfS_M", "btrfs"),
        (100, b"hello", "unknown data"),
    ];
    for (at, magic, name) in cases {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(64 << 20).expect("size");
        file.as_file().write_all_at(magic, at).expect("write");
        let disk = Arc::new(FileDisk::open(file.path()).expect("open"));
        let error = open_error(disk.clone());
        assert!(error.contains(name), "{error}");
        assert!(
            format(&*disk, &format_options(64 << 20))
                .expect_err("refused")
                .to_string()
                .contains(name)
        );
    }
}

#[test]
fn sizes_out_of_range_are_refused_with_the_range() {
    let disk = SimDisk::new(64 << 20);
    for (size, words) in
        [(1 << 20, "64 MiB"), (65 << 20, "65 MiB are to be formatted"), (1 << 60, "16 TiB")]
    {
        let error = format(&disk, &format_options(size)).expect_err("refused").to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn random_garbage_over_a_device_never_panics() {
    use rand::{Rng, SeedableRng};
    let disk = sim(64 << 20, 1 << 20);
    let (store, _) = common::open(&disk);
    let group = durable(|done| store.create_group(CopysetId(1), done)).expect("create");
    for index in 0..30 {
        durable(|done| group.append(vec![entry(1, index, 3000)], done)).expect("append");
    }
    common::checkpoint(&store).expect("checkpoint");
    drop((group, store));
    let mut rng = rand::rngs::SmallRng::seed_from_u64(5);
    for _ in 0..150 {
        let damaged = Arc::new(disk.after_crash(|| true));
        for _ in 0..rng.random_range(1..40) {
            // Superblocks, roots and the used part of the WAL.
            let at = rng.random_range(0..300 << 10);
            damaged.flip_bit(at, rng.random_range(0..8));
        }
        if let Ok((store, found)) = Store::open(damaged, options()) {
            let _ = found.first().map(|f| f.group.entries(0..99, 1 << 20));
            drop(store);
        }
    }
}

#[test]
fn a_file_works_like_the_simulated_disk_and_has_one_opener() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("device");
    let disk = Arc::new(FileDisk::open_or_create(&path, 64 << 20).expect("create"));
    let busy = FileDisk::open(&path).err().expect("locked").to_string();
    assert!(busy.contains("in use"), "{busy}");
    format(&*disk, &format_options(64 << 20)).expect("format");
    let (store, _) = Store::open(disk.clone(), options()).expect("open");
    let group = durable(|done| store.create_group(CopysetId(1), done)).expect("create");
    durable(|done| group.append(vec![entry(1, 0, 9000)], done)).expect("append");
    drop((group, store, disk));
    let disk = Arc::new(FileDisk::open_or_create(&path, 1 << 30).expect("reopen"));
    assert_eq!(disk.len(), 64 << 20, "an existing device keeps its size");
    let (_store, found) = Store::open(disk, options()).expect("open");
    assert_eq!(found[0].group.entries(0..9, 1 << 20).expect("read"), [entry(1, 0, 9000)]);
}
