//! Wrong input of every kind: what is said, the exit code, and that nothing is left behind.
//!
//! Each family is one readable snapshot. Read it as the person who made the mistake.

mod configuration;
mod coordinators;
mod flags;
mod homes;
mod plans;
mod workers;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that takes longer has not refused its input.
const REFUSED_WITHIN: Duration = Duration::from_secs(60);

/// A folder in which mistakes are made, and what was said to them.
struct Scene {
    folder: tempfile::TempDir,
    told: String,
    /// What stands for the folder, processes and ports in `told`.
    stand_ins: Vec<(String, String)>,
}

impl Scene {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            told: String::new(),
            stand_ins: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        // A token that others can read is warned of, which is not what is looked at here.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
        command
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    /// Runs the program, tells what it said, and makes sure that it left nothing behind.
    fn wrong(&mut self, title: &str, arguments: &[&str]) {
        self.wrong_with(title, arguments, |_| {});
    }

    fn wrong_with(&mut self, title: &str, arguments: &[&str], with: impl FnOnce(&mut Command)) {
        let mut command = self.command(arguments);
        with(&mut command);
        let before = self.files();
        let output = ended(
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let left: Vec<String> = self.files().difference(&before).cloned().collect();
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        let code = output.status.code().unwrap_or(-1);
        let _ = writeln!(
            self.told,
            "=== {title}\n$ coordinator {}\n{}[exit code {code}]\n",
            self.same_everywhere(&shown(arguments)),
            self.same_everywhere(&said)
        );
        assert_ne!(code, 0, "{title}: {said}");
        assert!(!said.contains("panicked"), "{title}: {said}");
        assert_eq!(left, [""; 0], "{title} left something behind: {said}");
    }

    /// Every file and folder below the scene's.
    fn files(&self) -> BTreeSet<String> {
        fn add(folder: &Path, files: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                files.insert(entry.path().display().to_string());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    add(&entry.path(), files);
                }
            }
        }
        let mut files = BTreeSet::new();
        add(self.folder.path(), &mut files);
        files
    }

    fn same_everywhere(&self, text: &str) -> String {
        let mut text = text.replace(env!("CARGO_BIN_EXE_coordinator"), "coordinator");
        for (found, stand_in) in &self.stand_ins {
            text = text.replace(found, stand_in);
        }
        let canonical = std::fs::canonicalize(self.folder.path()).unwrap();
        for folder in [self.folder.path(), &canonical] {
            text = text.replace(&folder.display().to_string(), "/ann");
        }
        // Root is refused in other words.
        text.replace(
            "Operation not permitted (os error 1)",
            "Permission denied (os error 13)",
        )
    }

    /// Starts a coordinator on a home of the scene and waits until it listens.
    fn serve(&mut self, home: &str) -> Serving {
        let home = self.path(home);
        let mut child = self
            .command(&["serve", "--listen", "127.0.0.1:0", "--home"])
            .arg(home)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some(rest) = line.strip_prefix("listening at ") {
                break rest.split(' ').next().unwrap().to_owned();
            }
        };
        // What it says further on must not fill its pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let process = format!("process {}", child.id());
        self.stand_ins.push((process, "process PID".to_owned()));
        self.stand_ins
            .push((address.clone(), "127.0.0.1:PORT".to_owned()));
        Serving { child, address }
    }
}

/// A coordinator that serves; killed when dropped.
struct Serving {
    child: Child,
    address: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn ended(mut child: Child) -> std::process::Output {
    let begun = Instant::now();
    // Both pipes are small enough for what a refusal says.
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > REFUSED_WITHIN {
            drop(child.kill());
            panic!("{:?} did not end", child.wait_with_output());
        }
        std::thread::yield_now();
    }
    child.wait_with_output().unwrap()
}

fn shown(arguments: &[&str]) -> String {
    let quoted = arguments.iter().map(|argument| {
        if argument.is_empty() || argument.contains(' ') {
            format!("'{argument}'")
        } else {
            (*argument).to_owned()
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}
