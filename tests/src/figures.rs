//! What the measuring programs share: spreads of times, and what a process takes of its machine.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Gives the time below which `percent` of the times are; zero when there are none.
///
/// The times must be sorted.
#[must_use]
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(index).copied().unwrap_or_default()
}

/// Describes times by their median, 99th percentile and maximum.
pub fn spread(times: &mut [Duration]) -> String {
    times.sort();
    format!(
        "p50 {:.2?}, p99 {:.2?}, max {:.2?}",
        percentile(times, 50),
        percentile(times, 99),
        percentile(times, 100)
    )
}

/// What a process takes at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Resident memory in KiB.
    pub resident_kib: u64,
    /// The most resident memory there ever was, in KiB.
    pub resident_peak_kib: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Processor time of all its threads since it began, in hundredths of a second.
    pub processor: u64,
    /// How long its present threads could have run and found no core free, in hundredths of a
    /// second; zero where the kernel does not count it.
    pub waited: u64,
}

impl Taken {
    /// Looks at a process.
    ///
    /// # Errors
    /// It has ended, or it is another user's.
    pub fn by(process: &str) -> Result<Self> {
        let folder = std::path::Path::new("/proc").join(process);
        let status = std::fs::read_to_string(folder.join("status")).context("read its status")?;
        let number = |key: &str| -> Result<u64> {
            let line = status.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_whitespace().nth(1));
            value
                .context("no such line")?
                .parse()
                .context("read a number")
        };
        let descriptors = std::fs::read_dir(folder.join("fd"))?.count();
        let stat = std::fs::read_to_string(folder.join("stat"))?;
        // Behind the name, which may hold spaces, the twelfth and thirteenth fields are its times.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest);
        let times = fields.unwrap_or_default().split_whitespace().skip(11);
        let processor = times.take(2).map(|time| time.parse().unwrap_or(0)).sum();
        let mut waited = 0;
        for thread in std::fs::read_dir(folder.join("task"))? {
            // One that ends meanwhile waits no more.
            let counted = std::fs::read_to_string(thread?.path().join("schedstat"));
            let counted = counted.unwrap_or_default();
            let nanoseconds = counted.split_whitespace().nth(1);
            waited += nanoseconds.and_then(|time| time.parse().ok()).unwrap_or(0) / 10_000_000;
        }
        Ok(Self {
            resident_kib: number("VmRSS:")?,
            resident_peak_kib: number("VmHWM:")?,
            threads: number("Threads:")?,
            descriptors: u64::try_from(descriptors)?,
            processor,
            waited,
        })
    }
}

/// Processor time of a whole machine since it began, in hundredths of a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// All of it.
    pub all: u64,
    /// What nobody used.
    pub idle: u64,
}

impl Machine {
    /// Looks at this machine.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn now() -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat").context("read the machine's times")?;
        let line = stat.lines().next().unwrap_or_default();
        // Behind the eighth come times that are counted already.
        let times = line.split_whitespace().skip(1).take(8);
        let times: Vec<u64> = times.map(|time| time.parse().unwrap_or(0)).collect();
        Ok(Self {
            all: times.iter().sum(),
            // Of which some passed while somebody waited for a disk.
            idle: times.iter().skip(3).take(2).sum(),
        })
    }

    /// Gives the part of this machine, from 0 to 1, that others used since an earlier look, when
    /// `ours` hundredths of a second were our own.
    #[must_use]
    pub fn others_since(&self, earlier: &Self, ours: u64) -> f64 {
        let all = self.all.saturating_sub(earlier.all);
        let idle = self.idle.saturating_sub(earlier.idle);
        let others = all.saturating_sub(idle).saturating_sub(ours);
        others as f64 / all.max(1) as f64
    }
}

/// Says how busy a process was between two looks.
#[must_use]
pub fn busy(before: &Taken, after: &Taken, over: Duration) -> String {
    let share = |before: u64, after: u64| {
        after.saturating_sub(before) as f64 / 100.0 / over.as_secs_f64().max(0.01)
    };
    format!(
        "{:.2} cores, {:.2} threads waiting for one",
        share(before.processor, after.processor),
        share(before.waited, after.waited)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_look_at_itself() {
        let taken = Taken::by("self").unwrap();
        assert!(taken.resident_kib > 0 && taken.threads > 0 && taken.descriptors > 2);
    }

    #[test]
    fn what_others_used_is_neither_idle_nor_ours() {
        let (earlier, later) = (
            Machine { all: 100, idle: 50 },
            Machine {
                all: 300,
                idle: 100,
            },
        );
        assert_eq!(later.others_since(&earlier, 100), 0.25);
        assert_eq!(later.others_since(&earlier, 1_000), 0.0);
        assert_eq!(earlier.others_since(&earlier, 0), 0.0);
        let now = Machine::now().unwrap();
        assert!(now.all > now.idle && now.idle > 0);
    }

    #[test]
    fn percentiles_of_nothing_are_zero() {
        assert_eq!(percentile(&[], 99), Duration::ZERO);
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(51));
        assert_eq!(percentile(&times, 100), Duration::from_millis(100));
    }
}
