//! Progress of long steps: bars on a terminal; elsewhere a line when a step ends, and one every ten seconds while it runs.

use std::{
    io::IsTerminal,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a step says where it is when there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where steps are shown. Everything goes to standard error: standard output is for results.
#[derive(Debug, Clone)]
pub struct Progress {
    output: Output,
}

#[derive(Debug, Clone)]
enum Output {
    Bars(MultiProgress),
    Lines,
    Nothing,
}

impl Progress {
    /// Bars if standard error is a terminal, else lines.
    pub fn new() -> Self {
        let output = if std::io::stderr().is_terminal() { Output::Bars(MultiProgress::new()) } else { Output::Lines };
        Self { output }
    }

    /// Shows nothing.
    pub fn hidden() -> Self {
        Self { output: Output::Nothing }
    }

    /// Begins a step of about `total` units.
    pub fn step(&self, name: impl Into<String>, total: u64, unit: &'static str) -> Step {
        let name = name.into();
        let bar = match &self.output {
            Output::Bars(bars) => {
                let style =
                    ProgressStyle::with_template("{msg:24} [{bar:30}] {human_pos}/{human_len} {prefix} {elapsed}")
                        .expect("the template is a constant that parses")
                        .progress_chars("=> ");
                let bar = ProgressBar::new(total).with_style(style).with_message(name.clone()).with_prefix(unit);
                Some(bars.add(bar))
            }
            Output::Lines | Output::Nothing => None,
        };
        let started = Instant::now();
        let lines = matches!(self.output, Output::Lines).then_some(Mutex::new(started));
        Step { name, unit, total, position: AtomicU64::new(0), started, bar, lines }
    }

    /// Says something between steps.
    pub fn say(&self, text: &str) {
        match &self.output {
            // With a bar on the screen, a line of its own above it.
            Output::Bars(bars) => bars.suspend(|| eprintln!("{text}")),
            Output::Lines => eprintln!("{text}"),
            Output::Nothing => {}
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// A step under way. Dropped before [`Step::finish`], it vanishes: what went wrong is told by the error.
#[derive(Debug)]
pub struct Step {
    name: String,
    unit: &'static str,
    total: u64,
    position: AtomicU64,
    started: Instant,
    bar: Option<ProgressBar>,
    /// When the last line was written; `None` when no lines are.
    lines: Option<Mutex<Instant>>,
}

impl Step {
    /// The step is `units` further.
    pub fn advance(&self, units: u64) {
        let position = self.position.fetch_add(units, Ordering::Relaxed) + units;
        self.show(position);
    }

    /// The step is at `position` of its total.
    pub fn advance_to(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
        self.show(position);
    }

    fn show(&self, position: u64) {
        if let Some(bar) = &self.bar {
            // Totals can be estimates.
            if position > self.total {
                bar.set_length(position);
            }
            bar.set_position(position);
        }
        if let Some(last) = &self.lines
            && let Ok(mut last) = last.try_lock()
            && last.elapsed() >= LINE_EVERY
        {
            *last = Instant::now();
            eprintln!("{}: {position} of {} {}", self.name, self.total, self.unit);
        }
    }

    /// The step is done.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.lines.is_some() {
            let seconds = self.started.elapsed().as_secs_f64();
            eprintln!("{}: {} {} in {seconds:.1} s", self.name, self.position.load(Ordering::Relaxed), self.unit);
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_counts_what_it_is_told() {
        let step = Progress::hidden().step("load", 10, "rows");
        step.advance(4);
        step.advance(3);
        assert_eq!(step.position.load(Ordering::Relaxed), 7);
        step.advance_to(12);
        assert_eq!(step.position.load(Ordering::Relaxed), 12);
        step.finish();
    }
}
