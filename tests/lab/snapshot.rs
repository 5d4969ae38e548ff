//! What the kernel of a host holds, and what happens to it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::lab::Host;

/// Everything that an agent could have changed, as the kernel's own tools print it; two are equal when nothing
/// differs, object handles and interface numbers included.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(Vec<String>);

impl Snapshot {
    /// Asks `ip`, `wg` and `nft`.
    pub(crate) fn of(host: &Host) -> Self {
        let listings = [
            "ip -j link show",
            "ip -j address show",
            "ip -j -4 route show table all",
            "ip -j -6 route show table all",
            "ip -j -4 rule show",
            "ip -j -6 rule show",
            "wg show all private-key",
            "wg show all fwmark",
            "wg show all allowed-ips",
            "nft -j -a -s list ruleset",
        ];
        Self(listings.iter().map(|line| format!("{line}: {}", host.run(line))).collect())
    }

    /// What differs, for a person to read; empty where nothing does.
    pub(crate) fn changes_since(&self, before: &Self) -> String {
        let pairs = before.0.iter().zip(&self.0).filter(|(before, after)| before != after);
        pairs.map(|(before, after)| format!("before: {before}after: {after}")).collect()
    }
}

/// A program whose output is looked at while it runs.
pub(crate) struct Watch {
    child: Child,
    output: BufReader<ChildStdout>,
    seen: String,
}

impl Watch {
    /// Starts it.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output, seen: String::new() }
    }

    /// Blocks until it has printed so many more lines with these words.
    pub(crate) fn wait_for_lines(&mut self, mut count: u32, words: &str) {
        while count > 0 {
            let start = self.seen.len();
            assert!(self.output.read_line(&mut self.seen).unwrap() > 0, "it ended:\n{}", self.seen);
            if self.seen[start..].contains(words) {
                count -= 1;
            }
        }
    }

    /// Blocks until the program ends by itself; all that it printed.
    pub(crate) fn finish(mut self) -> String {
        self.output.read_to_string(&mut self.seen).unwrap();
        self.child.wait().unwrap();
        self.seen
    }

    /// Ends the program; all that it printed.
    pub(crate) fn stop(mut self) -> String {
        self.child.kill().unwrap();
        self.finish()
    }
}
