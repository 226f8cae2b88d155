//! An error's message with its causes: log lines and gRPC statuses carry one text.

use std::error::Error;

/// The messages of `error` and of its sources, outermost first, joined by `": "`. One that the
/// text so far already holds is left out: errors of hyper, tonic and kube print their own causes.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Step {
        text: &'static str,
        source: Option<Box<Step>>,
    }

    fn chain(texts: &[&'static str]) -> Option<Box<Step>> {
        let (text, causes) = texts.split_first()?;
        Some(Box::new(Step { text, source: chain(causes) }))
    }

    #[test]
    fn every_cause_is_told_once() {
        let cases: [(&[&str], &str); 3] = [
            (&["open the log"], "open the log"),
            (&["open the log", "read a", "no such file"], "open the log: read a: no such file"),
            (&["dial: refused (111)", "refused (111)", "at b"], "dial: refused (111): at b"),
        ];
        for (texts, expected) in cases {
            assert_eq!(with_causes(&*chain(texts).expect("not empty")), expected);
        }
    }
}
