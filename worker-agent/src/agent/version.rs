//! Which version a program is, in its own words.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a program may take to say its version.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);
const BYTES_MAX: u64 = 256;

/// A program as it was when it was asked: one that was replaced is asked again.
type Asked = (String, u64, i64);

/// Versions by program: each is asked once, since the answer may take long. Empty for one that does
/// not say.
static KNOWN: Mutex<BTreeMap<Asked, String>> = Mutex::new(BTreeMap::new());

/// Gives the version of a program if it was asked before.
pub(super) fn known(program: &str) -> Option<String> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.get(&as_it_is(program)?).cloned()
}

/// Gives the version that the program names; empty if it does not within its time.
///
/// The program is started with `--version`, so it has to be one that the operator of this host chose.
pub(super) fn ask(program: &str) -> String {
    if let Some(known) = known(program) {
        return known;
    }
    let version = answer(program).unwrap_or_default();
    if let Some(asked) = as_it_is(program) {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(asked, version.clone());
    }
    version
}

fn as_it_is(program: &str) -> Option<Asked> {
    let file = std::fs::metadata(program).ok()?;
    Some((program.to_owned(), file.ino(), file.mtime()))
}

/// Starts a program; one that is just being written is waited for, with pauses.
fn start(program: &str, mut pause: impl FnMut()) -> Option<Child> {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let begun = Instant::now();
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == ErrorKind::ExecutableFileBusy && begun.elapsed() < LIMIT =>
            {
                pause();
            }
            started => return started.ok(),
        }
    }
}

fn answer(program: &str) -> Option<String> {
    let mut child = start(program, || std::thread::sleep(PAUSE))?;
    let ended = ends_in_time(&mut child);
    if !ended {
        // Fails only if it has ended meanwhile.
        let _ = child.kill();
        let _ = child.wait();
        return None;
    }
    // What it started may hold the pipe: read what is there without waiting for more.
    let out = child.stdout.take()?;
    rustix::io::ioctl_fionbio(&out, true).ok()?;
    let mut bytes = Vec::new();
    // Ends with an error if the pipe is held; what came before stays.
    let _ = out.take(BYTES_MAX).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let mut words = text.lines().next()?.split_whitespace();
    let version = words.find(|word| {
        let word = word.strip_prefix('v').unwrap_or(word);
        word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.')
    })?;
    Some(version.strip_prefix('v').unwrap_or(version).to_owned())
}

fn ends_in_time(child: &mut Child) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(PAUSE),
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    fn executable(path: &Path, script: &str) -> String {
        let fresh = path.with_extension("new");
        fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&fresh, path).unwrap();
        path.to_string_lossy().into_owned()
    }

    #[test]
    fn a_version_is_the_first_word_that_looks_like_one_if_the_program_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        for (name, script, expected) in [
            ("codex", "echo codex-cli 0.169.0", "0.169.0"),
            ("claude", "echo '2.1.329 (Claude Code)'", "2.1.329"),
            ("v", "echo tool v1.2", "1.2"),
            ("fails", "echo codex-cli 0.169.0; exit 2", ""),
            ("silent", "", ""),
            ("other", "echo usage: 2 others", ""),
            ("held", "sleep 30 & echo codex-cli 1.2", "1.2"),
        ] {
            let path = executable(&folder.path().join(name), script);
            assert_eq!(ask(&path), expected, "{name}");
            assert_eq!(known(&path).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(ask("/no/such/program"), "");
        assert_eq!(known("/no/such/program"), None);
    }

    #[test]
    fn a_program_that_is_just_being_written_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = executable(&folder.path().join("tool"), "echo tool 1.0");
        let mut writing = Some(fs::OpenOptions::new().append(true).open(&path).unwrap());
        let mut pauses = 0;
        let started = start(&path, || {
            pauses += 1;
            drop(writing.take());
        });
        // Others of this process may have it open for a moment too.
        assert!(pauses > 0);
        assert!(started.unwrap().wait().unwrap().success());
    }

    #[test]
    fn a_program_that_was_replaced_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tool");
        // Both files are there at once, so they are not the same one.
        let old = executable(&path, "echo tool 1.0");
        let kept = fs::hard_link(&path, folder.path().join("kept"));
        assert!(kept.is_ok());
        assert_eq!(ask(&old), "1.0");
        let new = executable(&path, "echo tool 2.0");
        assert_eq!(ask(&new), "2.0");
    }
}
