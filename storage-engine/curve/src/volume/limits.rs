//! Limits of a volume's IO: the flags that set them, and how they are shown.

use anyhow::{Result, anyhow};
use curve_types::{ByteSize, LimitKind, LimitsChange, VolumeLimits};
use serde_json::{Map, Value, json};

/// Names of the arguments below.
pub const FLAGS: [&str; 7] = [
    "iops",
    "read_iops",
    "write_iops",
    "bytes_per_second",
    "read_bytes_per_second",
    "write_bytes_per_second",
    "burst_seconds",
];

/// `0` and `unlimited` lift a limit.
#[derive(clap::Args)]
#[command(next_help_heading = "Limits (0 or \"unlimited\": none)")]
pub struct LimitArgs {
    /// Reads and writes per second, together.
    #[arg(long, value_name = "N", value_parser = iops)]
    iops: Option<u64>,
    /// Reads per second.
    #[arg(long, value_name = "N", value_parser = iops)]
    read_iops: Option<u64>,
    /// Writes per second; a discard or a write of zeroes is one of no bytes.
    #[arg(long, value_name = "N", value_parser = iops)]
    write_iops: Option<u64>,
    /// Bytes read and written per second, together: for example 100Mi.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    bytes_per_second: Option<u64>,
    /// Bytes read per second.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    read_bytes_per_second: Option<u64>,
    /// Bytes written per second.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    write_bytes_per_second: Option<u64>,
    /// What an idle volume does not use is kept for so long; 0: for a tenth of a second.
    #[arg(long, value_name = "N", value_parser = seconds)]
    burst_seconds: Option<u64>,
}

impl LimitArgs {
    pub fn change(self) -> LimitsChange {
        LimitsChange {
            iops: self.iops,
            read_iops: self.read_iops,
            write_iops: self.write_iops,
            bytes_per_second: self.bytes_per_second,
            read_bytes_per_second: self.read_bytes_per_second,
            write_bytes_per_second: self.write_bytes_per_second,
            burst_seconds: self.burst_seconds,
        }
    }
}

fn iops(text: &str) -> Result<u64> {
    number(LimitKind::Iops, text)
}

fn bytes(text: &str) -> Result<u64> {
    number(LimitKind::BytesPerSecond, text)
}

fn seconds(text: &str) -> Result<u64> {
    number(LimitKind::BurstSeconds, text)
}

fn number(kind: LimitKind, text: &str) -> Result<u64> {
    kind.parse(text).map_err(|error| anyhow!("it {error}"))
}

/// Only those that there are.
pub fn text(limits: VolumeLimits) -> String {
    let set = limits.named().into_iter().filter(|(_, _, value)| *value != 0);
    let each = set.map(|(name, kind, value)| {
        let name = name.replace('_', "-");
        match kind {
            LimitKind::BytesPerSecond => format!("{name} {}", ByteSize(value)),
            LimitKind::Iops | LimitKind::BurstSeconds => format!("{name} {value}"),
        }
    });
    each.collect::<Vec<_>>().join(", ")
}

/// All of them, 0 where there is none.
pub fn json(limits: VolumeLimits) -> Value {
    let each = limits.named().into_iter().map(|(name, _, value)| (name.to_owned(), json!(value)));
    Value::Object(each.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitArgs,
    }

    fn parse(line: &str) -> Result<LimitsChange, clap::Error> {
        let words = std::iter::once("test").chain(line.split_whitespace());
        <Line as clap::Parser>::try_parse_from(words).map(|line| line.limits.change())
    }

    #[test]
    fn what_is_named_is_changed_and_unlimited_is_none() {
        let change = parse("--write-iops 500 --bytes-per-second 100Mi --iops unlimited");
        let expected = LimitsChange {
            iops: Some(0),
            write_iops: Some(500),
            bytes_per_second: Some(100 << 20),
            ..Default::default()
        };
        assert_eq!(change.expect("valid"), expected);
        let limits = expected.apply_to(VolumeLimits::default());
        assert_eq!(text(limits), "write-iops 500, bytes-per-second 100 MiB");
        assert_eq!(json(limits)["write_iops"], 500);
        assert_eq!(json(limits)["read_iops"], 0);
    }

    #[test]
    fn garbage_is_refused_by_flag_and_value() {
        let cases = [
            ("--iops many", ["--iops", "\"many\""]),
            ("--iops -1", ["-1", "unexpected"]),
            ("--read-bytes-per-second 100", ["--read-bytes-per-second", "262144"]),
            ("--burst-seconds 1h", ["--burst-seconds", "\"1h\""]),
        ];
        for (line, words) in cases {
            let error = parse(line).expect_err(line).to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
