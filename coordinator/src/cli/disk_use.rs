//! What the parts of a home take on disk.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::app::JOURNAL;

/// A look takes no longer; a home with millions of files is told about in part.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Bytes of a block, as `stat` counts them.
const BLOCK_BYTES: u64 = 512;

/// A part of a home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// What is truth.
    Journal,
    /// Hosted repositories.
    Repositories,
    /// What agents printed.
    Transcripts,
    /// What local workers fetched.
    Caches,
    /// Checkouts of attempts.
    Workspaces,
    /// Edits of attempts that could not be published.
    Kept,
    /// Everything else.
    Other,
}

impl Part {
    /// Name for people and programs.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::Repositories => "repositories",
            Self::Transcripts => "transcripts",
            Self::Caches => "caches",
            Self::Workspaces => "workspaces",
            Self::Kept => "kept edits",
            Self::Other => "other",
        }
    }

    /// Tells to which part a path within a home belongs.
    fn of(path: &Path) -> Self {
        let mut names = path
            .components()
            .map(|part| part.as_os_str().to_string_lossy());
        let first = names.next().unwrap_or_default();
        let (second, third) = (names.next(), names.next());
        match (&*first, second.as_deref(), third.as_deref()) {
            ("repos", ..) => Self::Repositories,
            ("transcripts", ..) => Self::Transcripts,
            // `worker/<n>` is a worker's folder; `worker/cache` is shared by several.
            ("worker", Some("cache"), _) | ("worker", _, Some("cache")) => Self::Caches,
            ("worker", _, Some("leases")) => Self::Workspaces,
            ("worker", _, Some("kept")) => Self::Kept,
            ("worker", _, Some(third)) if third.starts_with("other-coordinator-") => Self::Kept,
            (first, ..) if first.starts_with(JOURNAL) => Self::Journal,
            _ => Self::Other,
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskUse {
    pub(super) parts: BTreeMap<Part, u64>,
    /// Not everything was looked at.
    pub(super) is_partial: bool,
}

impl DiskUse {
    /// Adds up the blocks of all files of a home; what cannot be looked at counts nothing.
    pub(super) fn of(home: &Path) -> Self {
        let begun = Instant::now();
        let mut found = Self::default();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            if begun.elapsed() > LOOK_MAX {
                found.is_partial = true;
                break;
            }
            let entries = std::fs::read_dir(home.join(&folder));
            for entry in entries.into_iter().flatten().flatten() {
                let path = folder.join(entry.file_name());
                // Of the entry itself: a link leads elsewhere.
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                *found.parts.entry(Part::of(&path)).or_default() += metadata.blocks() * BLOCK_BYTES;
                if metadata.is_dir() {
                    folders.push(path);
                }
            }
        }
        found
    }

    /// Prints it in one line.
    pub(super) fn text(&self) -> String {
        let parts = self
            .parts
            .iter()
            .filter(|(part, bytes)| **bytes > 0 && **part != Part::Other)
            .map(|(part, bytes)| format!("{} {}", part.name(), size(*bytes)));
        let parts = parts.collect::<Vec<_>>().join(", ");
        let all = size(self.parts.values().sum());
        let more = if self.is_partial { "more than " } else { "" };
        if parts.is_empty() {
            format!("{more}{all}")
        } else {
            format!("{more}{all}: {parts}")
        }
    }

    /// Says what to do about it; empty if nothing is to be done.
    pub(super) fn advice(&self, home: &Path) -> String {
        if self.parts.get(&Part::Kept).is_none_or(|bytes| *bytes == 0) {
            return String::new();
        }
        let worker = home.join("worker");
        format!(
            "edits that could not be published are kept in {}/*/kept; take from them what you want, \
             then delete them",
            worker.display()
        )
    }
}

/// Prints bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    for (unit, worth) in UNITS {
        if bytes >= worth {
            return format!("{}.{} {unit}", bytes / worth, bytes % worth * 10 / worth);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_home_is_counted_for_itself() {
        let home = tempfile::tempdir().unwrap();
        let write = |path: &str, blocks: usize| {
            let path = home.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; blocks * 4096]).unwrap();
        };
        write(JOURNAL, 300);
        write(&format!("{JOURNAL}-wal"), 300);
        write("repos/site.git/objects/pack/pack-1.pack", 600);
        write("worker/0/cache/site-1.git/objects/pack/pack-1.pack", 900);
        write("worker/cache/host/site-1.git/x", 900);
        write("worker/0/leases/7/workspace/work/a", 1200);
        assert_eq!(DiskUse::of(home.path()).advice(home.path()), "");
        write("worker/0/kept/r-t-1-7/work/a", 1500);
        write("config.toml", 1);
        let found = DiskUse::of(home.path());
        let megabytes: Vec<_> = found
            .parts
            .iter()
            .map(|(part, bytes)| (part.name(), bytes / 1_000_000))
            .collect();
        let expected = [
            ("journal", 2),
            ("repositories", 2),
            ("caches", 7),
            ("workspaces", 4),
            ("kept edits", 6),
            ("other", 0),
        ];
        assert_eq!(megabytes, expected);
        assert!(found.text().contains(": journal 2."), "{}", found.text());
        assert!(found.advice(home.path()).contains("/worker/*/kept"));
    }

    #[test]
    fn sizes_have_one_digit_behind_the_point() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1_250), "1.2 kB");
        assert_eq!(size(2_000_000_000), "2.0 GB");
    }
}
