//! What a storage server counts about itself.

/// The process as the kernel sees it.
pub mod process {
    use std::fs;

    /// The kernel counts CPU time for user space in hundredths of a second (USER_HZ, see `man 7 time`).
    const MS_PER_TICK: u64 = 10;

    /// Memory and CPU time of this process; zeros where the kernel does not tell.
    #[derive(Debug, Clone, Copy, Default)]
    pub struct Usage {
        /// Resident set, bytes.
        pub memory_bytes: u64,
        /// The largest resident set since the start, bytes.
        pub peak_memory_bytes: u64,
        /// User and system time of all threads, milliseconds.
        pub cpu_ms: u64,
    }

    /// Reads `/proc/self`.
    pub fn usage() -> Usage {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.split_whitespace().next().and_then(|value| value.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The command's name may hold spaces and is in parentheses; utime and stime are fields 14 and 15.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Usage { memory_bytes: kib("VmRSS:"), peak_memory_bytes: kib("VmHWM:"), cpu_ms: ticks * MS_PER_TICK }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        #[cfg(target_os = "linux")]
        fn a_running_process_has_memory() {
            let usage = super::usage();
            assert!(usage.memory_bytes > 0 && usage.peak_memory_bytes >= usage.memory_bytes);
        }
    }
}
