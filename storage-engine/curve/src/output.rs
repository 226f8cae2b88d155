//! What people and programs see: tables, JSON, errors.

use anyhow::{Context, Result};
use serde_json::Value;

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// The choice of a format, for commands that print.
#[derive(clap::Args, Debug)]
pub struct OutputArgs {
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Format,
}

/// Columns as wide as their widest cell; the last one is not padded.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// Prints one or the other. A reader that has gone away is not an error.
pub fn print(
    format: Format,
    json: impl FnOnce() -> Value,
    text: impl FnOnce() -> String,
) -> Result<()> {
    use std::io::Write;
    let text = match format {
        Format::Json => serde_json::to_string_pretty(&json()).context("encode JSON")? + "\n",
        Format::Table => text(),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to stdout")
        }
        _ => Ok(()),
    }
}

/// `error: what failed: why`.
pub fn print_error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// Bytes of an id as people know it.
pub fn id_text(bytes: &[u8]) -> String {
    match uuid::Uuid::from_slice(bytes) {
        Ok(id) if !id.is_nil() => id.to_string(),
        _ => String::new(),
    }
}

/// `2026-01-31T12:34:56Z`
pub fn time_text(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "10 GiB".into()], vec!["longer".into(), String::new()]];
        assert_eq!(table(&["NAME", "SIZE"], &rows), "NAME    SIZE\na       10 GiB\nlonger\n");
    }

    #[test]
    fn times_read_as_dates() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(1_769_862_896_789), "2026-01-31T12:34:56Z");
        assert_eq!(time_text(u64::MAX), "");
    }
}
