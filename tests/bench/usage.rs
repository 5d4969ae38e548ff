//! What a process takes of memory and of a processor.

use std::fs;
use std::time::Duration;

/// The kernel counts processor time in hundredths of a second (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// What the process of this number takes.
#[derive(Clone, Copy)]
pub(crate) struct Usage(pub(crate) u32);

impl Usage {
    pub(crate) fn memory_kib(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says its size");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Processor time so far, in user space and in the kernel.
    pub(crate) fn busy(self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).expect("it runs");
        // The name, in brackets, may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        let ticks: u32 = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
        TICK * ticks
    }
}
