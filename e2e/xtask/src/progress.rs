//! What the person at the terminal sees: numbered stages, elapsed time, how far a long step is.
//!
//! On a terminal the current line is redrawn; in a log a line appears only now and then.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

/// A log that gets a line this often shows life without drowning what matters.
const LOG_INTERVAL: Duration = Duration::from_secs(20);
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Numbers the stages of one command: `[2/7] tools`.
#[derive(Debug)]
pub struct Progress {
    total: usize,
    done: usize,
    started: Instant,
}

impl Progress {
    pub fn new(total: usize) -> Progress {
        Progress { total, done: 0, started: Instant::now() }
    }

    /// Runs one stage; what it returns beside its value is shown when it ends.
    pub fn stage<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Step) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.done += 1;
        let mut step = Step::new(format!("[{}/{}] {name}", self.done, self.total));
        let result = work(&mut step);
        step.finish(result.is_ok());
        result
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// One line of progress that is redrawn while something long runs.
#[derive(Debug)]
pub struct Step {
    title: String,
    started: Instant,
    shown: Option<Instant>,
    note: String,
    terminal: bool,
    quiet: bool,
}

impl Step {
    pub fn new(title: String) -> Step {
        let mut step = Step {
            title,
            started: Instant::now(),
            shown: None,
            note: String::new(),
            terminal: stdout().is_terminal(),
            quiet: false,
        };
        step.draw();
        step
    }

    /// For callers that report in their own way, such as tests.
    pub fn quiet() -> Step {
        Step {
            title: String::new(),
            started: Instant::now(),
            shown: None,
            note: String::new(),
            terminal: false,
            quiet: true,
        }
    }

    /// Says what is going on now, e.g. `kubernetes, 812 of 1930 packages`.
    pub fn say(&mut self, note: impl Into<String>) {
        self.note = note.into();
        let interval = if self.terminal { REDRAW_INTERVAL } else { LOG_INTERVAL };
        if self.shown.is_none_or(|at| at.elapsed() >= interval) {
            self.draw();
        }
    }

    /// A line that stays, whatever is redrawn after it.
    pub fn line(&mut self, text: &str) {
        if self.quiet {
            return;
        }
        if self.terminal {
            print!("\r\x1b[K");
        }
        println!("      {text}");
        self.note.clear();
        if self.terminal {
            self.draw();
        }
    }

    fn draw(&mut self) {
        if self.quiet {
            return;
        }
        let elapsed = human(self.started.elapsed());
        if self.terminal {
            print!("\r\x1b[K{} … {} {elapsed}", self.title, self.note);
        } else if self.shown.is_none() && self.note.is_empty() {
            println!("{}", self.title);
        } else if !self.note.is_empty() {
            println!("      {} ({elapsed})", self.note);
        }
        let _ = stdout().flush();
        self.shown = Some(Instant::now());
    }

    pub fn finish(&mut self, ok: bool) {
        let elapsed = human(self.started.elapsed());
        let word = if ok { "done" } else { "failed" };
        let note = if self.note.is_empty() { String::new() } else { format!(": {}", self.note) };
        if self.terminal {
            print!("\r\x1b[K");
            println!("{} {word} in {elapsed}{note}", self.title);
        } else {
            println!("      {word} in {elapsed}{note}");
        }
    }
}

pub fn human(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", elapsed.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_like_a_person_says_them() {
        assert_eq!(human(Duration::from_millis(1520)), "1.5 s");
        assert_eq!(human(Duration::from_secs(42)), "42 s");
        assert_eq!(human(Duration::from_secs(125)), "2 min 05 s");
    }
}
