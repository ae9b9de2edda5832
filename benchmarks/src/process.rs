//! What processes cost, read from `/proc`: CPU time, peak memory, bytes over the loopback interface.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use serde::Serialize;

/// Clock ticks per second in `/proc/PID/stat`: `USER_HZ`, which Linux fixes at 100 for user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that is measured.
#[derive(Debug, Clone, Serialize)]
pub struct Process {
    /// What it does: `index`, `storage 1`, `client`.
    pub role: String,
    /// Its id.
    pub pid: u32,
}

/// What a process has used since it started.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// Which process.
    #[serde(flatten)]
    pub process: Process,
    /// CPU seconds, user and system.
    pub cpu_seconds: f64,
    /// The most memory it ever had resident, in bytes.
    pub peak_memory_bytes: u64,
    /// The memory it has resident now, in bytes.
    pub memory_bytes: u64,
}

impl Process {
    /// This process.
    pub fn this(role: &str) -> Self {
        Self { role: role.to_owned(), pid: std::process::id() }
    }

    /// Reads what the process has used; fails if it is gone.
    pub fn usage(&self) -> Result<Usage> {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/{}/{name}", self.pid))
                .with_context(|| format!("the {} process (pid {}) is gone", self.role, self.pid))
        };
        let cpu_seconds = cpu_seconds(&read("stat")?).context("/proc/PID/stat has an unknown form")?;
        let status = read("status")?;
        Ok(Usage {
            process: self.clone(),
            cpu_seconds,
            peak_memory_bytes: kilobytes(&status, "VmHWM:").unwrap_or(0) * 1024,
            memory_bytes: kilobytes(&status, "VmRSS:").unwrap_or(0) * 1024,
        })
    }
}

/// CPU seconds of all `processes` together.
pub fn total_cpu_seconds(processes: &[Process]) -> Result<f64> {
    processes.iter().map(|process| Ok(process.usage()?.cpu_seconds)).sum()
}

/// What all `processes` have used.
pub fn usages(processes: &[Process]) -> Result<Vec<Usage>> {
    processes.iter().map(Process::usage).collect()
}

/// The name in parentheses may hold anything, blanks and parentheses too: fields count from the last one.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn kilobytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Bytes that the loopback interface has carried, of every process on the machine: what servers exchange is in it, framing
/// and TLS too. `None` where `/proc/net/dev` has no such interface.
pub fn loopback_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/dev").ok()?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("lo:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The machine that a report is of.
pub fn machine() -> BTreeMap<&'static str, String> {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    BTreeMap::from([
        ("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string()),
        ("processor", first("/proc/cpuinfo", "model name")),
        ("memory", first("/proc/meminfo", "MemTotal")),
        ("kernel", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        // Enough work for at least one tick.
        let work = (0..200_000_000u64).fold(1u64, |hash, value| std::hint::black_box(hash.rotate_left(5) ^ value));
        assert_ne!(work, 0);
        let usage = Process::this("test").usage().unwrap();
        assert!(usage.cpu_seconds > 0.0);
        assert!(usage.peak_memory_bytes >= usage.memory_bytes && usage.memory_bytes > 1 << 20);
    }

    #[test]
    fn odd_process_names_do_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 1 0 100 0 0";
        assert_eq!(cpu_seconds(stat), Some(4.0));
    }

    #[test]
    fn a_process_that_is_gone_is_named() {
        let error = Process { role: "storage 2".to_owned(), pid: u32::MAX }.usage().unwrap_err();
        assert!(error.to_string().contains("storage 2"), "{error}");
    }
}
