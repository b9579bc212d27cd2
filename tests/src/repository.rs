//! Repositories of users, made for a test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process::Program;

/// A repository with a work tree, as a user has one.
#[derive(Clone, Debug)]
pub struct Repository {
    path: PathBuf,
    logs: PathBuf,
}

impl Repository {
    /// Takes a repository that is there.
    #[must_use]
    pub fn at(path: &Path, logs: &Path) -> Self {
        Self {
            path: path.to_owned(),
            logs: logs.to_owned(),
        }
    }

    /// Makes one with `commits` commits on `main` over some hundred files, two side branches, a tag,
    /// a merge, a stash, staged and unstaged changes and an untracked file: what a user's repository
    /// looks like in the middle of a day.
    ///
    /// # Errors
    /// Git fails.
    pub fn foreign(path: &Path, logs: &Path, commits: usize) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let it = Self::at(path, logs);
        it.git(["init", "-q", "-b", "main"])?;
        it.git(["config", "user.name", "Somebody Else"])?;
        it.git(["config", "user.email", "somebody@example.org"])?;
        it.write(".gitattributes", "*.txt text\n*.bin binary\n")?;
        it.write(".gitignore", "target/\n*.tmp\n")?;
        // One stream instead of a process a commit.
        let mut stream = String::new();
        for commit in 1..=commits {
            let folder = commit % 17;
            let text = format!("line one of {commit}\nline two\nünïcödé {commit}\n");
            let message = format!("Change number {commit}");
            stream.push_str(&format!(
                "commit refs/heads/main\ncommitter A B <a@example.org> {} +0100\ndata {}\n{message}\n",
                1_600_000_000 + commit * 60,
                message.len(),
            ));
            let name = format!("src/part{folder}/file {}.txt", commit % 211);
            stream.push_str(&format!(
                "M 100644 inline \"{name}\"\ndata {}\n{text}\n",
                text.len()
            ));
            if commit == 1 {
                let script = "#!/bin/sh\necho tool\n";
                stream.push_str(&format!(
                    "M 100755 inline bin/tool\ndata {}\n{script}\n",
                    script.len()
                ));
                stream.push_str("M 120000 inline bin/alias\ndata 4\ntool\n");
            }
        }
        let file = it.logs.join("history");
        std::fs::write(&file, stream)?;
        it.shell(&format!("git fast-import --quiet < {}", file.display()))?;
        it.git(["reset", "-q", "--hard", "main"])?;
        it.git(["add", "-A"])?;
        it.git(["commit", "-q", "--allow-empty", "-m", "Attributes"])?;
        it.git(["branch", "side", "HEAD~20"])?;
        it.git(["tag", "-a", "v1", "-m", "version one", "HEAD~5"])?;
        it.git(["checkout", "-q", "side"])?;
        it.write("side.txt", "aside\n")?;
        it.git(["add", "side.txt"])?;
        it.git(["commit", "-q", "-m", "Aside"])?;
        it.git(["checkout", "-q", "main"])?;
        it.git(["merge", "-q", "--no-ff", "-m", "Merge side", "side"])?;
        it.write("stashed.txt", "later\n")?;
        it.git(["add", "stashed.txt"])?;
        it.git(["stash", "-q"])?;
        Ok(it)
    }

    /// Adds what a user has not committed yet: a staged change, one that is not, and a new file.
    ///
    /// # Errors
    /// Git fails.
    pub fn leave_edits(&self) -> Result<()> {
        self.write("staged.txt", "staged\n")?;
        self.git(["add", "staged.txt"])?;
        self.write("side.txt", "changed, not staged\n")?;
        self.write("untracked.txt", "mine\n")
    }

    /// Gives the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the work tree.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Runs git in it and gives what it printed.
    ///
    /// # Errors
    /// Git fails.
    pub fn git<const N: usize>(&self, arguments: [&str; N]) -> Result<String> {
        self.program("git")
            .args(arguments)
            .run(&self.logs, Duration::from_secs(60))?
            .success()
            .map(|output| output.out.trim_end().to_owned())
    }

    /// Runs a line of shell in it and gives what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn shell(&self, line: &str) -> Result<String> {
        let program = self.program("/bin/sh").args(["-c", line]);
        program
            .run(&self.logs, Duration::from_secs(60))?
            .success()
            .map(|output| output.out)
    }

    fn program(&self, name: &str) -> Program {
        Program::new(Path::new(name), &self.path)
            .var("HOME", &self.logs)
            .var("GIT_CONFIG_NOSYSTEM", "1")
    }

    /// Takes every byte of the work tree and of the repository's own files, so that two moments can
    /// be compared: refs, index, configuration, objects, stash and all.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn fingerprint(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                let kind = std::fs::symlink_metadata(&path)?.file_type();
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_symlink() {
                    let target = std::fs::read_link(&path)?;
                    files.insert(path, target.into_os_string().into_encoded_bytes());
                } else {
                    let bytes = std::fs::read(&path)?;
                    files.insert(path, bytes);
                }
            }
        }
        Ok(files)
    }
}
