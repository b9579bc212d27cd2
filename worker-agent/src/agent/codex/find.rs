//! Where the program is, and which version.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::agent::{Own, may_run, program};

/// Names the program, as codex-par does.
const PROGRAM_VARIABLE: &str = "CODEX_BIN";
const PROGRAM: &str = "codex";
/// How long the program may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(5);
const VERSION_BYTES_MAX: u64 = 256;

/// Versions by program: each is asked once in the life of a worker.
static VERSIONS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Finds the program: the one that the worker's environment names, else the one in its path. Behind
/// the script of its npm package the native program is found, so that signals and memory are those
/// of one process.
pub(super) fn find(own: Own<'_>) -> Option<String> {
    let path = own("PATH").unwrap_or_default();
    let found = match own(PROGRAM_VARIABLE).filter(|named| !named.is_empty()) {
        Some(named) if named.contains('/') => may_run(Path::new(&named)).then_some(named),
        Some(named) => program(&named, &path),
        None => program(PROGRAM, &path),
    }?;
    Some(match native(Path::new(&found)) {
        Some(native) => native.to_string_lossy().into_owned(),
        None => found,
    })
}

/// Gives the native program of the npm package whose script this is.
fn native(script: &Path) -> Option<PathBuf> {
    let target = script.canonicalize().ok()?;
    if target.extension()? != "js" {
        return None;
    }
    let package = target.parent()?.parent()?;
    let (short, long) = match std::env::consts::ARCH {
        "x86_64" => ("x64", "x86_64"),
        "aarch64" => ("arm64", "aarch64"),
        _ => return None,
    };
    let platform = format!("codex-linux-{short}");
    let inner = format!("vendor/{long}-unknown-linux-musl/bin/{PROGRAM}");
    let folders = [
        package.join("node_modules/@openai").join(&platform),
        package.parent()?.join(&platform),
        package.to_owned(),
    ];
    folders
        .into_iter()
        .map(|folder| folder.join(&inner))
        .find(|candidate| may_run(candidate))
}

/// Gives the version that the program names; empty if it does not within its time.
pub(super) fn version(program: &str) -> String {
    let lock = || VERSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = lock().get(program) {
        return known.clone();
    }
    let version = ask_version(program).unwrap_or_default();
    lock().insert(program.to_owned(), version.clone());
    version
}

fn ask_version(program: &str) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
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
    let _ = out.take(VERSION_BYTES_MAX).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let word = text.lines().next()?.split_whitespace().last()?;
    word.starts_with(|first: char| first.is_ascii_digit())
        .then(|| word.to_owned())
}

fn ends_in_time(child: &mut Child) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < VERSION_LIMIT {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn executable(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_program_is_the_named_one_else_the_one_in_the_path() {
        let own = |set: &[(&str, &str)], name: &str| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let named = [("CODEX_BIN", "/bin/sh"), ("PATH", "/bin")];
        assert_eq!(find(&|name| own(&named, name)).as_deref(), Some("/bin/sh"));
        let by_path = [("CODEX_BIN", "sh"), ("PATH", "/bin")];
        assert_eq!(
            find(&|name| own(&by_path, name)).as_deref(),
            Some("/bin/sh")
        );
        let gone = [("CODEX_BIN", "/bin/no-such-program"), ("PATH", "/bin")];
        assert_eq!(find(&|name| own(&gone, name)), None);
    }

    #[test]
    fn behind_the_script_of_its_package_is_the_native_program() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().canonicalize().unwrap().join("node_modules");
        let script = modules.join("@openai/codex/bin/codex.js");
        executable(&script, "#!/usr/bin/env node\n");
        let link = modules.join(".bin/codex");
        fs::create_dir_all(modules.join(".bin")).unwrap();
        std::os::unix::fs::symlink(&script, &link).unwrap();
        let own = |name: &str| (name == "CODEX_BIN").then(|| link.to_string_lossy().into_owned());
        assert_eq!(find(&own).unwrap(), link.to_string_lossy());
        let short = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "x64"
        };
        let native = modules.join(format!(
            "@openai/codex-linux-{short}/vendor/{}-unknown-linux-musl/bin/codex",
            std::env::consts::ARCH
        ));
        executable(&native, "");
        assert_eq!(find(&own).unwrap(), native.to_string_lossy());
    }

    #[test]
    fn a_version_is_what_the_program_says_last_if_it_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        for (name, script, expected) in [
            ("right", "echo codex-cli 0.169.0", "0.169.0"),
            ("fails", "echo codex-cli 0.169.0; exit 2", ""),
            ("silent", "", ""),
            ("other", "echo usage: other", ""),
            ("held", "sleep 30 & echo codex-cli 1.2", "1.2"),
        ] {
            let path = folder.path().join(name);
            executable(&path, &format!("#!/bin/sh\n{script}\n"));
            assert_eq!(
                ask_version(&path.to_string_lossy()).unwrap_or_default(),
                expected,
                "{name}"
            );
        }
    }
}
