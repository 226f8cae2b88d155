//! A scrape of a metrics port as Prometheus does it, held to the text format line by line.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use curve_wire::pki::{CA_FILE, CERT_FILE, KEY_FILE, Role};

use crate::playground::run;

const CONTENT_TYPE: &str = "application/openmetrics-text";
/// A server that answers no scrape within this time counts as down.
const SECONDS_MAX: &str = "15";

/// Scrapes the process at `address`, which must prove `role`, with the certificate in `tls_dir`.
pub fn scrape(address: SocketAddr, role: Role, tls_dir: &Path) -> Result<Exposition> {
    // Certificates name roles, not addresses: the role's name is looked up here, at the address.
    let host = role.server_name();
    let url = format!("https://{host}:{}/metrics", address.port());
    let resolve = format!("{host}:{}:{}", address.port(), address.ip());
    let [ca, certificate, key] =
        [CA_FILE, CERT_FILE, KEY_FILE].map(|name| tls_dir.join(name).display().to_string());
    let mut args = vec!["-sS", "--max-time", SECONDS_MAX, "--noproxy", "*", "--resolve", &resolve];
    args.extend(["--cacert", &ca, "--cert", &certificate, "--key", &key]);
    args.extend(["--write-out", "\n%{http_code} %{content_type}", &url]);
    let answer = run("curl", &args)?;
    let (text, status) = answer.rsplit_once('\n').context("curl printed no status")?;
    let wanted = format!("200 {CONTENT_TYPE}");
    ensure!(status.starts_with(&wanted), "{address} answered {status:?}, not {wanted:?}: {text}");
    Exposition::parse(text).with_context(|| format!("{address} served\n{text}"))
}

/// What a scrape brought.
pub struct Exposition {
    /// Value by series, written as it was served: `name{labels}`.
    series: BTreeMap<String, f64>,
}

/// A metric whose samples follow.
struct Family<'a> {
    name: &'a str,
    /// Empty until its TYPE was read.
    kind: &'a str,
}

impl Exposition {
    /// Refuses what is not in the text format: every sample must be `name{labels} number` and
    /// follow the HELP and the TYPE of its metric.
    pub fn parse(text: &str) -> Result<Self> {
        let body = text.strip_suffix("# EOF\n").context("it does not end with # EOF")?;
        let mut series = BTreeMap::new();
        let mut declared = BTreeSet::new();
        let mut family = None;
        for line in body.lines() {
            let taken = match line.strip_prefix("# ") {
                Some(comment) => take_comment(&mut family, &mut declared, comment),
                None => take_sample(&mut series, family.as_ref(), line),
            };
            taken.with_context(|| format!("line {line:?}"))?;
        }
        ensure_typed(family.as_ref())?;
        Ok(Self { series })
    }

    /// Sum of the series of `name` with that text in their labels; `None` if there is none.
    pub fn sum(&self, name: &str, label: &str) -> Option<f64> {
        let of_name = self.series.iter().filter_map(|(series, value)| {
            let labels = series.strip_prefix(name)?;
            let whole = labels.is_empty() || labels.starts_with('{');
            (whole && labels.contains(label)).then_some(*value)
        });
        of_name.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }
}

fn take_comment<'a>(
    family: &mut Option<Family<'a>>,
    declared: &mut BTreeSet<&'a str>,
    comment: &'a str,
) -> Result<()> {
    let (word, rest) = comment.split_once(' ').context("a comment of one word")?;
    let (name, rest) = rest.split_once(' ').context("nothing follows the name")?;
    ensure!(!rest.is_empty(), "nothing follows the name");
    if word == "HELP" {
        ensure_typed(family.as_ref())?;
        ensure!(is_name(name), "{name:?} is no name");
        ensure!(declared.insert(name), "{name} was declared before");
        *family = Some(Family { name, kind: "" });
        return Ok(());
    }
    let family = family.as_mut().filter(|family| family.name == name);
    let family = family.with_context(|| format!("no HELP of {name} before it"))?;
    match word {
        "TYPE" => {
            ensure!(family.kind.is_empty(), "a second type");
            ensure!(["counter", "gauge", "histogram"].contains(&rest), "an unknown type");
            family.kind = rest;
        }
        "UNIT" => ensure!(name.ends_with(&format!("_{rest}")), "the name does not end with it"),
        _ => bail!("neither HELP, TYPE nor UNIT"),
    }
    Ok(())
}

fn ensure_typed(family: Option<&Family<'_>>) -> Result<()> {
    match family {
        Some(family) if family.kind.is_empty() => bail!("{} has no TYPE", family.name),
        _ => Ok(()),
    }
}

fn take_sample(
    series: &mut BTreeMap<String, f64>,
    family: Option<&Family<'_>>,
    line: &str,
) -> Result<()> {
    // A value has no space, while one in a label has.
    let (name_and_labels, value) = line.rsplit_once(' ').context("no value")?;
    let value = value.parse::<f64>().context("the value is no number")?;
    let end = name_and_labels.find('{').unwrap_or(name_and_labels.len());
    let (name, labels) = name_and_labels.split_at(end);
    ensure!(is_name(name), "{name:?} is no name");
    ensure!(labels.is_empty() || are_labels(labels), "{labels:?} are no labels");
    let family = family.context("no HELP and TYPE before it")?;
    let suffixes: &[&str] = match family.kind {
        "counter" => &["_total"],
        "gauge" => &[""],
        "histogram" => &["_bucket", "_sum", "_count"],
        _ => bail!("no TYPE before it"),
    };
    let suffix = name.strip_prefix(family.name).unwrap_or("another metric's");
    ensure!(suffixes.contains(&suffix), "no sample of the {} {}", family.kind, family.name);
    ensure!(series.insert(name_and_labels.to_owned(), value).is_none(), "a second value");
    Ok(())
}

fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.starts_with(|c: char| inner(c) && !c.is_ascii_digit()) && text.chars().all(inner)
}

/// `{name="value",…}`, in values a backslash before `"`, `\` and `n`.
fn are_labels(text: &str) -> bool {
    let mut rest = text.strip_prefix('{');
    while let Some(label) = rest {
        let Some((name, value)) = label.split_once("=\"") else { return false };
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match chars.next() {
                    Some((_, '"' | '\\' | 'n')) => {}
                    _ => return false,
                },
                Some(_) => {}
                None => return false,
            }
        };
        if !is_name(name) {
            return false;
        }
        match &value[end + 1..] {
            "}" => return true,
            after => rest = after.strip_prefix(','),
        }
    }
    false
}
