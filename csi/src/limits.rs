//! Limits of a volume's IO, as StorageClasses and VolumeAttributesClasses write them: the raw map in,
//! a validated change out.

use std::collections::HashMap;

use curve_types::{LimitKind, LimitsChange};

use crate::error::CsiError;
use crate::parameters::unknown_keys;

const KEYS: [(&str, LimitKind); 7] = [
    ("iops", LimitKind::Iops),
    ("readIops", LimitKind::Iops),
    ("writeIops", LimitKind::Iops),
    ("bytesPerSecond", LimitKind::BytesPerSecond),
    ("readBytesPerSecond", LimitKind::BytesPerSecond),
    ("writeBytesPerSecond", LimitKind::BytesPerSecond),
    ("burstSeconds", LimitKind::BurstSeconds),
];

/// Whether a parameter is a limit.
pub fn is_limit(key: &str) -> bool {
    KEYS.iter().any(|(known, _)| *known == key)
}

/// The limits, for messages.
pub fn known() -> String {
    KEYS.map(|(key, _)| key).join(", ")
}

/// The limits among the parameters of `field`; other keys are somebody else's.
pub fn parse(field: &'static str, map: &HashMap<String, String>) -> Result<LimitsChange, CsiError> {
    let mut values = [None; 7];
    for (value, (key, kind)) in values.iter_mut().zip(KEYS) {
        if let Some(text) = map.get(key) {
            let parsed = kind.parse(text);
            let invalid = |error| CsiError::invalid(field, format!("{key} {error}"));
            *value = Some(parsed.map_err(invalid)?);
        }
    }
    let [
        iops,
        read_iops,
        write_iops,
        bytes_per_second,
        read_bytes_per_second,
        write_bytes_per_second,
        burst_seconds,
    ] = values;
    Ok(LimitsChange {
        iops,
        read_iops,
        write_iops,
        bytes_per_second,
        read_bytes_per_second,
        write_bytes_per_second,
        burst_seconds,
    })
}

/// The parameters of a VolumeAttributesClass, of which nothing but limits can be changed.
pub fn parse_mutable(map: &HashMap<String, String>) -> Result<LimitsChange, CsiError> {
    const FIELD: &str = "mutable_parameters";
    if let Some(unknown) = unknown_keys(map, is_limit) {
        let reason = format!("{unknown} cannot be changed; what can be is {}", known());
        return Err(CsiError::invalid(FIELD, reason));
    }
    parse(FIELD, map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_key_sets_its_limit() {
        let given = map(&[
            ("iops", "1"),
            ("readIops", "2"),
            ("writeIops", "unlimited"),
            ("bytesPerSecond", "4Mi"),
            ("readBytesPerSecond", "5000000"),
            ("writeBytesPerSecond", "6M"),
            ("burstSeconds", "7"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ]);
        let expected = LimitsChange {
            iops: Some(1),
            read_iops: Some(2),
            write_iops: Some(0),
            bytes_per_second: Some(4 << 20),
            read_bytes_per_second: Some(5_000_000),
            write_bytes_per_second: Some(6_000_000),
            burst_seconds: Some(7),
        };
        assert_eq!(parse_mutable(&given).expect("valid"), expected);
        assert!(parse("parameters", &map(&[("pool", "fast")])).expect("not ours").is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_by_key_and_value() {
        let cases = [
            (("iops", "fast"), "iops is \"fast\": expected a number per second"),
            (("bytesPerSecond", "1Ki"), "bytesPerSecond is 1024: expected 0 (unlimited)"),
            (("burstSeconds", "-1"), "burstSeconds is \"-1\""),
            (("writeIops", ""), "writeIops is \"\""),
            (("pool", "fast"), "pool cannot be changed; what can be is iops, readIops"),
        ];
        for (pair, words) in cases {
            let error = parse_mutable(&map(&[pair])).expect_err(words).to_string();
            assert!(error.starts_with("mutable_parameters: "), "{error}");
            assert!(error.contains(words), "{error} should say {words}");
        }
    }
}
