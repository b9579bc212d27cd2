//! The lines between a worker and its supervisor.
//!
//! Worker to supervisor: `renew <boottime ms>` and `stop`. Supervisor to worker: `started <pid>
//! cgroup|subreaper`, `output <bytes so far>`, `exited code|signal <n>`, `gone`. Both sides skip
//! lines they do not know, and a line longer than [`LINE_BYTES_MAX`].

use std::fmt;

use super::report::{Containment, ExitStatus};
use crate::clock::Boottime;

/// Longest line either side takes; the longest one sent has about 40 bytes.
pub(super) const LINE_BYTES_MAX: usize = 256;

/// Is what a worker tells its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Renew(Boottime),
    Stop,
}

/// Is what a supervisor tells its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    Started { pid: i32, containment: Containment },
    Output(u64),
    Exited(ExitStatus),
    Gone,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Renew(deadline) => writeln!(f, "renew {}", deadline.as_millis()),
            Self::Stop => writeln!(f, "stop"),
        }
    }
}

impl Order {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["renew", millis] => Some(Self::Renew(Boottime::from_millis(millis.parse().ok()?))),
            ["stop"] => Some(Self::Stop),
            _ => None,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started {
                pid,
                containment: Containment::Cgroup,
            } => {
                writeln!(f, "started {pid} cgroup")
            }
            Self::Started {
                pid,
                containment: Containment::Subreaper,
            } => {
                writeln!(f, "started {pid} subreaper")
            }
            Self::Output(bytes) => writeln!(f, "output {bytes}"),
            Self::Exited(ExitStatus::Code(code)) => writeln!(f, "exited code {code}"),
            Self::Exited(ExitStatus::Signal(signal)) => writeln!(f, "exited signal {signal}"),
            Self::Gone => writeln!(f, "gone"),
        }
    }
}

impl Notice {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let notice = match words[..] {
            ["started", pid, "cgroup"] => Self::Started {
                pid: pid.parse().ok()?,
                containment: Containment::Cgroup,
            },
            ["started", pid, "subreaper"] => Self::Started {
                pid: pid.parse().ok()?,
                containment: Containment::Subreaper,
            },
            ["output", bytes] => Self::Output(bytes.parse().ok()?),
            ["exited", "code", code] => Self::Exited(ExitStatus::Code(code.parse().ok()?)),
            ["exited", "signal", n] => Self::Exited(ExitStatus::Signal(n.parse().ok()?)),
            ["gone"] => Self::Gone,
            _ => return None,
        };
        Some(notice)
    }
}

/// Cuts a byte stream into lines, however its reads fall.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// The line in progress is too long and is skipped to its end.
    skipping: Skipping,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Skipping {
    #[default]
    No,
    Yes,
}

impl Lines {
    /// Takes more bytes and returns the lines they complete, without their ends; lines that are
    /// not UTF-8 or too long are left out.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8(std::mem::take(&mut self.partial));
                if let (Ok(line), Skipping::No) = (line, self.skipping) {
                    lines.push(line);
                }
                self.skipping = Skipping::No;
            } else if self.partial.len() == LINE_BYTES_MAX {
                self.skipping = Skipping::Yes;
            } else {
                self.partial.push(byte);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_the_same_to_the_other_side() {
        for order in [Order::Renew(Boottime::from_millis(u64::MAX)), Order::Stop] {
            assert_eq!(Order::parse(order.to_string().trim_end()), Some(order));
        }
        for notice in [
            Notice::Started {
                pid: 7,
                containment: Containment::Cgroup,
            },
            Notice::Started {
                pid: 7,
                containment: Containment::Subreaper,
            },
            Notice::Output(8),
            Notice::Exited(ExitStatus::Code(255)),
            Notice::Exited(ExitStatus::Signal(9)),
            Notice::Gone,
        ] {
            assert_eq!(Notice::parse(notice.to_string().trim_end()), Some(notice));
        }
    }

    #[test]
    fn nonsense_is_not_understood() {
        for line in [
            "",
            "renew",
            "renew x",
            "renew -1",
            "renew 1 2",
            "stop now",
            "STOP",
        ] {
            assert_eq!(Order::parse(line), None, "{line}");
        }
        for line in [
            "",
            "started",
            "started 1",
            "exited code",
            "exited 1",
            "gone 1",
        ] {
            assert_eq!(Notice::parse(line), None, "{line}");
        }
    }

    #[test]
    fn lines_come_out_whole_however_they_arrive() {
        let mut lines = Lines::default();
        assert!(lines.push(b"sto").is_empty());
        assert_eq!(lines.push(b"p\nrenew 1\nre"), ["stop", "renew 1"]);
        assert_eq!(lines.push(b"new 2\n"), ["renew 2"]);
    }

    #[test]
    fn a_line_without_end_or_sense_takes_no_memory_and_spoils_no_other() {
        let mut lines = Lines::default();
        assert!(lines.push(&[b'x'; 10_000]).is_empty());
        assert_eq!(lines.partial.len(), LINE_BYTES_MAX);
        assert_eq!(lines.push(b"\n\xff\xff\nstop\n"), ["stop"]);
    }
}
