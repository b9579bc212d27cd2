//! The home itself: who may read its secrets, what was left half written, whether there is room.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use muster_connect::AddressFile;

use super::finding::{Code, Finding, Place, Repair};
use super::report::Report;
use crate::backup;
use crate::causes::chain;
use crate::home::room_needed;
use crate::store::sqlite::inspect::{self, Beside};

/// Folder of what repairs have moved away.
pub(super) const REPAIRED: &str = "repaired";
/// Files that hold secrets, or what secrets open.
const SECRETS: [&str; 6] = [
    "secret.key",
    "admin.token",
    "local-worker.token",
    "tokens.db",
    "tls/ca.key",
    "journal.db",
];
/// Without these a coordinator cannot go on as the one it was.
const NEEDED: [&str; 4] = ["secret.key", "tokens.db", "tls/ca.key", "tls/ca.pem"];

/// Checks a home.
pub(super) fn check(home: &Path, beside: Beside, report: &mut Report) {
    private(home, 0o700, report);
    private(&home.join("tls"), 0o700, report);
    for name in SECRETS {
        private(&home.join(name), 0o600, report);
    }
    for name in NEEDED {
        if !home.join(name).exists() {
            let what = "it is missing; a coordinator would make a new one, and every token, worker and credential of before would be void";
            report.find(Finding::new(
                Code::SecretsDamaged,
                Place::file(&home.join(name)),
                what,
            ));
        }
    }
    tokens(&home.join("tokens.db"), beside, report);
    unfinished(home, report);
    if beside == Beside::Nobody {
        address(home, report);
    }
    for path in entries(&home.join(REPAIRED)) {
        let what = "an earlier repair has moved it here";
        report.find(Finding::new(Code::Repaired, Place::file(&path), what));
    }
    if let Ok(found) = rustix::fs::statvfs(home) {
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let all = found.f_blocks.saturating_mul(found.f_frsize);
        room(home, free, all)
            .into_iter()
            .for_each(|finding| report.find(finding));
    }
}

fn room(home: &Path, free: u64, all: u64) -> Option<Finding> {
    let what = format!("{} MiB are free", free >> 20);
    (free < room_needed(all)).then(|| Finding::new(Code::DiskFull, Place::file(home), what))
}

fn private(path: &Path, mode: u32, report: &mut Report) {
    let Ok(found) = std::fs::metadata(path) else {
        return;
    };
    report.counts.files += 1;
    let found = found.permissions().mode() & 0o777;
    if found & 0o077 != 0 {
        let what = format!("its mode is {found:03o}, so others can read it; {mode:03o} is right");
        let finding = Finding::new(Code::ModeOpen, Place::file(path), what);
        let path = path.to_owned();
        report.find(finding.mended_by(Repair::Chmod { path, mode }));
    }
}

/// Lets SQLite check the store of tokens.
fn tokens(path: &Path, beside: Beside, report: &mut Report) {
    if !path.exists() {
        return;
    }
    let what = match inspect::complaint(path, beside) {
        Ok(None) => return,
        Ok(Some(said)) => said,
        Err(error) => chain(&error),
    };
    report.find(Finding::new(Code::SecretsDamaged, Place::file(path), what));
}

/// Finds files that were being written when their process was killed, and halves of backups and
/// restored homes beside the home.
fn unfinished(home: &Path, report: &mut Report) {
    for path in backup::leftovers(home) {
        let what = "the backup or restore that was making it was killed; it holds secrets";
        let finding = Finding::new(Code::BackupUnfinished, Place::file(&path), what);
        report.find(finding.mended_by(Repair::RemoveUnfinished { path }));
    }
    for folder in [home.to_owned(), home.join("tls"), home.join("git-hooks")] {
        for path in entries(&folder) {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            let half = name.starts_with(".muster-")
                || name.starts_with(".tmp")
                || name.starts_with("journal.db-new");
            if half {
                let what = "its process was killed while it was written";
                let finding = Finding::new(Code::FileUnfinished, Place::file(&path), what);
                report.find(finding.mended_by(Repair::SetAside { path }));
            }
        }
    }
}

fn address(home: &Path, report: &mut Report) {
    let path = AddressFile::path(home);
    if !path.exists() {
        return;
    }
    let what = match AddressFile::read(home) {
        Ok(found) => format!(
            "it names {}, and no coordinator runs on the home",
            found.address
        ),
        Err(error) => format!("it cannot be read: {error}"),
    };
    let finding = Finding::new(Code::AddressStale, Place::file(&path), what);
    report.find(finding.mended_by(Repair::SetAside { path }));
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_for_the_journal_is_found() {
        let found = |free: u64, all: u64| room(Path::new("/h"), free << 20, all << 20);
        assert_eq!(found(255, 100_000).unwrap().code, Code::DiskFull);
        assert_eq!(found(256, 100_000), None);
        // A small disk is not always full.
        assert_eq!(found(7, 64), None);
        assert_eq!(found(6, 64).unwrap().code, Code::DiskFull);
    }
}
