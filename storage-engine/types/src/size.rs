//! Byte sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes. Reads `4096`, `512Ki`, `10Gi`, `10GiB`, `10G`, `10GB`; prints with a binary
/// unit. As in Kubernetes quantities, `Gi` is 1024-based and `G` 1000-based.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// Why a text is not a size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("size {text:?} is not a number of bytes: write for example 4096, 512Mi, 10Gi or 1T")]
pub struct ParseSizeError {
    text: String,
}

const UNITS: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let error = || ParseSizeError { text: text.to_owned() };
        let bare = text.strip_suffix('B').unwrap_or(text);
        let (digits, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((bare.strip_suffix(unit)?, *factor)))
            .unwrap_or((bare, 1));
        let number: u64 = digits.parse().map_err(|_| error())?;
        number.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS[..5].iter().rev().find(|(_, factor)| self.0 >= *factor);
        match unit {
            None => write!(f, "{} B", self.0),
            Some((name, factor)) if self.0.is_multiple_of(*factor) => {
                write!(f, "{} {name}B", self.0 / factor)
            }
            Some((name, factor)) => write!(f, "{:.1} {name}B", self.0 as f64 / *factor as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_kubernetes_writes_them() {
        let cases =
            [("4096", 4096), ("10Gi", 10 << 30), ("10GiB", 10 << 30), ("2G", 2_000_000_000)];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_by_name() {
        for text in ["", "Gi", "-1", "1.5Gi", "10 Gi", "99999999999Ti", "1Zi"] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn sizes_print_with_a_binary_unit() {
        assert_eq!(ByteSize(10 << 30).to_string(), "10 GiB");
        assert_eq!(ByteSize((1 << 30) + (1 << 29)).to_string(), "1.5 GiB");
        assert_eq!(ByteSize(512).to_string(), "512 B");
    }
}
