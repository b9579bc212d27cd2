//! What a supervisor is told to run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, files};
use crate::clock::Boottime;
use crate::mask::Mask;

/// Environment variable that every process of a tree inherits, so that it can be found again.
pub const MARK_VARIABLE: &str = "MUSTER_MARK";

/// How long a tree may take to end after TERM unless the launch says otherwise: agents save their
/// conversation in that time, and a lease keeps a larger margin.
pub const TERM_GRACE: Duration = Duration::from_secs(5);

/// Is the random word by which processes of one tree are recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mark(String);

impl Mark {
    /// Draws a new one; never the same twice.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// Returns the word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Mark {
    type Error = &'static str;

    // A short or empty mark could be somebody else's variable, and its processes would be killed.
    fn try_from(word: String) -> Result<Self, Self::Error> {
        if word.len() == 32 && word.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(word))
        } else {
            Err("a mark is 32 hexadecimal digits")
        }
    }
}

impl From<Mark> for String {
    fn from(mark: Mark) -> Self {
        mark.0
    }
}

/// Says whether a launch may divide the worker's cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupUse {
    /// The tree gets one where the kernel and the user's rights allow it.
    #[default]
    IfPossible,
    /// It gets none, for hosts where somebody else accounts by cgroup.
    Never,
}

/// Is one launch: what runs, where, with what, and until when.
///
/// It may hold secrets in `env`; its file is readable by the owner alone and `Debug` leaves the
/// values out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Program and arguments. A program without `/` is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// Folder in which the program starts; absolute.
    pub cwd: PathBuf,
    /// The whole environment of the program; only [`MARK_VARIABLE`] is added.
    pub env: BTreeMap<String, String>,
    /// When the tree is ended, unless renewed.
    pub deadline: Boottime,
    /// Milliseconds from TERM to KILL.
    pub term_grace_ms: u64,
    /// Bytes of output that are stored; what comes after is counted and dropped.
    pub output_bytes_max: u64,
    /// Whether the tree may get a cgroup of its own.
    pub cgroup: CgroupUse,
    /// Recognises the processes of this launch.
    pub mark: Mark,
    /// Names of variables whose values are hidden in everything that is stored of the output.
    #[serde(default)]
    pub masked: BTreeSet<String>,
    /// Values that are hidden likewise although the program does not get them.
    #[serde(default)]
    pub unseen: Vec<String>,
}

impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch")
            .field("program", &self.argv.first())
            .field("cwd", &self.cwd)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("deadline", &self.deadline)
            .field("mark", &self.mark)
            .finish_non_exhaustive()
    }
}

impl Launch {
    /// Makes the mask of this launch's output.
    pub(super) fn mask(&self) -> Mask {
        let values = self.masked.iter().filter_map(|name| self.env.get(name));
        Mask::of(values.chain(&self.unseen).map(String::as_str))
    }

    pub(super) fn term_grace(&self) -> Duration {
        Duration::from_millis(self.term_grace_ms)
    }

    /// Checks what the kernel would refuse, while there is still somebody to tell.
    pub(super) fn validate(&self) -> Result<(), Error> {
        let invalid = |why| Err(Error::InvalidLaunch(why));
        match self.argv.first() {
            None => return invalid("there is no program"),
            Some(program) if program.is_empty() => return invalid("the program's name is empty"),
            Some(_) => {}
        }
        if !self.cwd.is_absolute() {
            return invalid("the working folder is not an absolute path");
        }
        if self
            .argv
            .iter()
            .chain(self.env.values())
            .any(|word| word.contains('\0'))
        {
            return invalid("an argument or a variable contains a NUL");
        }
        if self
            .env
            .keys()
            .any(|name| name.is_empty() || name.contains(['\0', '=']))
        {
            return invalid("the name of a variable is empty or contains `=` or a NUL");
        }
        if self.env.contains_key(MARK_VARIABLE) {
            return invalid("MUSTER_MARK is set by the supervisor alone");
        }
        Ok(())
    }

    pub(super) fn store(&self, dir: &Path) -> Result<(), Error> {
        files::write_json(&dir.join(files::LAUNCH), self)
    }

    /// Reads the launch of a folder; `None` if none was written.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let launch: Option<Self> = files::read_json(&dir.join(files::LAUNCH))?;
        if let Some(launch) = &launch {
            launch.validate()?;
        }
        Ok(launch)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn launch() -> Launch {
        Launch {
            argv: vec!["true".into()],
            cwd: "/".into(),
            env: [("TOKEN".to_owned(), "secret-value".to_owned())].into(),
            deadline: Boottime::from_millis(1),
            term_grace_ms: 2,
            output_bytes_max: 3,
            cgroup: CgroupUse::IfPossible,
            mark: Mark::random(),
            masked: ["TOKEN".to_owned()].into(),
            unseen: Vec::new(),
        }
    }

    #[test]
    fn it_survives_its_file_which_only_the_owner_can_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Launch::load(dir.path()).unwrap(), None);
        let launch = launch();
        launch.store(dir.path()).unwrap();
        assert_eq!(Launch::load(dir.path()).unwrap(), Some(launch));
        let mode = dir
            .path()
            .join(files::LAUNCH)
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn debug_does_not_show_values_of_the_environment() {
        let shown = format!("{:?}", launch());
        assert!(
            shown.contains("TOKEN") && !shown.contains("secret-value"),
            "{shown}"
        );
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_before() {
        let broken: [fn(&mut Launch); 7] = [
            |l| l.argv.clear(),
            |l| l.argv = vec![String::new()],
            |l| l.argv.push("a\0b".into()),
            |l| l.cwd = "relative".into(),
            |l| drop(l.env.insert("a=b".into(), String::new())),
            |l| drop(l.env.insert(String::new(), String::new())),
            |l| drop(l.env.insert(MARK_VARIABLE.into(), String::new())),
        ];
        launch().validate().unwrap();
        for (i, broken) in broken.iter().enumerate() {
            let mut launch = launch();
            broken(&mut launch);
            assert!(launch.validate().is_err(), "case {i}");
        }
    }

    #[test]
    fn a_mark_that_others_could_have_is_refused() {
        for word in ["", "abc", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"] {
            assert!(Mark::try_from(word.to_owned()).is_err(), "{word}");
        }
        assert!(Mark::try_from(Mark::random().as_str().to_owned()).is_ok());
    }
}
