//! Faults that tests and benchmarks inject into a server while it runs: a crash at a [`crash_point`], a slow disk, a wrong clock.
//!
//! `DRSDB_FAULTS_FILE` names a file that is read again whenever it changes; no file is no fault. Each line is one of:
//!
//! ```text
//! crash_at row.commit.synced 2    ends the process when it comes to the point for the second time from now on
//! slow_sync_ms 150                every fsync takes so much longer
//! clock_offset_ms -3600000        the wall clock is an hour behind
//! ```
//!
//! What has been taken in is written to a file beside it, with the extension `seen`: a test knows then that it counts.
//!
//! Nobody else sets the variable, and without it nothing is watched and nothing costs anything. Certificates
//! are checked by the machine's clock all the same, and elections and leases by the monotonic one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use drsdb_proto::ids;

use crate::{Error, ErrorCode, Result, crash_point};

/// The variable.
pub const VARIABLE: &str = "DRSDB_FAULTS_FILE";

/// How often it is looked whether the file changed.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// What happens at crash points.
    pub plan: crash_point::Plan,
    /// How far the wall clock is ahead; negative: behind.
    pub clock_offset_ms: i64,
}

impl Faults {
    /// From the text of a file.
    pub fn parse(text: &str) -> Result<Self> {
        let mut faults = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let understood = match words[..] {
                [] => Some(()),
                ["crash_at", point, times] => times.parse().ok().map(|times| {
                    faults.plan.crash = Some((point.to_owned(), times));
                }),
                ["slow_sync_ms", ms] => ms.parse().ok().map(|ms| faults.plan.slow_sync = Duration::from_millis(ms)),
                ["clock_offset_ms", ms] => ms.parse().ok().map(|ms| faults.clock_offset_ms = ms),
                _ => None,
            };
            understood.ok_or_else(|| Error::new(ErrorCode::InvalidArgument, format!("{VARIABLE} has {line:?}")))?;
        }
        Ok(faults)
    }

    /// As a file has them.
    pub fn to_text(&self) -> String {
        let mut lines = Vec::new();
        if let Some((point, times)) = &self.plan.crash {
            lines.push(format!("crash_at {point} {times}"));
        }
        if !self.plan.slow_sync.is_zero() {
            lines.push(format!("slow_sync_ms {}", self.plan.slow_sync.as_millis()));
        }
        if self.clock_offset_ms != 0 {
            lines.push(format!("clock_offset_ms {}", self.clock_offset_ms));
        }
        lines.join("\n")
    }

    fn inject(self) {
        ids::set_clock_offset_ms(self.clock_offset_ms);
        crash_point::set_plan(self.plan);
    }
}

/// Injects what the file says, if the variable names one, and from then on what it comes to say.
pub fn watch() -> Result<()> {
    let Some(file) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return Ok(()) };
    tracing::warn!(file = %file.display(), "faults are injected into this server: it is for tests alone");
    let seen = file.with_extension("seen");
    let mut text = read(&file)?;
    Faults::parse(&text)?.inject();
    let say = move |text: &str| {
        if let Err(error) = fs::write(&seen, text) {
            tracing::error!(%error, "cannot say which faults are injected");
        }
    };
    say(&text);
    let watching = move || {
        loop {
            std::thread::sleep(LOOK_EVERY);
            let now = match read(&file) {
                Ok(now) if now == text => continue,
                Ok(now) => now,
                Err(error) => {
                    tracing::error!(%error, "cannot read which faults to inject");
                    continue;
                }
            };
            match Faults::parse(&now) {
                Ok(faults) => {
                    faults.inject();
                    say(&now);
                }
                Err(error) => tracing::error!(%error, "cannot inject faults"),
            }
            text = now;
        }
    };
    let started = std::thread::Builder::new().name("faults".to_owned()).spawn(watching);
    started.map(drop).map_err(|error| Error::io("cannot start the thread that injects faults", error))
}

fn read(file: &Path) -> Result<String> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::io(format!("reading {}", file.display()), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_they_are_written() {
        let crash = Some(("stage.done".to_owned(), 3));
        let plan = crash_point::Plan { crash, slow_sync: Duration::from_millis(70) };
        for faults in [Faults::default(), Faults { plan, clock_offset_ms: -5000 }] {
            assert_eq!(Faults::parse(&faults.to_text()).unwrap(), faults);
        }
    }

    #[test]
    fn what_is_not_understood_is_no_fault_that_went_unnoticed() {
        for text in ["crash_at stage.done", "crash_at stage.done often", "slow_sync_ms -1", "clock_offset 5"] {
            assert!(Faults::parse(text).unwrap_err().to_string().contains(text), "{text}");
        }
    }
}
