//! Where the files are, and the one that says how a task is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cli::error::{CliError, Kind, Result};

/// What a task's state file may have; ours have some hundred bytes.
const META_BYTES_MAX: u64 = 1024 * 1024;
const META_ENDING: &str = ".meta.json";

/// State of a task, in codex-par's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    #[default]
    Pending,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl Status {
    /// Tells whether nothing more will happen.
    pub(crate) const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// `logs/NAME.meta.json`: how a task is. Times are RFC 3339, in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Meta {
    pub(crate) name: String,
    /// Length of the longest chain of dependencies before it. Muster starts a task as soon as these
    /// have succeeded; nothing waits for a whole wave.
    pub(crate) wave: usize,
    pub(crate) agent_id: String,
    /// Name of the run.
    pub(crate) run_id: String,
    pub(crate) thread_id: String,
    /// Codex's own id of the conversation.
    pub(crate) session_id: Option<String>,
    pub(crate) dispatched_at: Option<String>,
    pub(crate) cwd: String,
    /// The first 150 characters of the prompt.
    pub(crate) prompt_preview: String,
    pub(crate) status: Status,
    /// Always absent: the process may be on any host.
    pub(crate) pid: Option<u32>,
    pub(crate) start_time: Option<String>,
    pub(crate) end_time: Option<String>,
    pub(crate) events_count: u64,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) files_read: u64,
    pub(crate) commands_run: u64,
    pub(crate) last_action: Option<String>,
    /// 0 for a task that is done; else unknown, `error` tells more.
    pub(crate) exit_code: Option<i32>,
    pub(crate) error: Option<String>,
}

/// The folder that holds `outputs` and `logs`.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn outputs(&self) -> PathBuf {
        self.path.join("outputs")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// What the agent said last.
    pub(crate) fn output(&self, task: &str) -> PathBuf {
        self.outputs().join(format!("{task}.md"))
    }

    /// Its standard output, as it is.
    pub(crate) fn log(&self, task: &str) -> PathBuf {
        self.logs().join(format!("{task}.jsonl"))
    }

    /// Its standard error.
    pub(crate) fn errors(&self, task: &str) -> PathBuf {
        self.logs().join(format!("{task}.stderr.log"))
    }

    fn meta(&self, task: &str) -> PathBuf {
        self.logs().join(format!("{task}{META_ENDING}"))
    }

    /// Makes both folders.
    pub(crate) fn make(&self) -> Result<()> {
        for folder in [self.outputs(), self.logs()] {
            fs::create_dir_all(&folder).map_err(|error| {
                failed(error, "make", &folder).hint("`--dir PATH` names another folder")
            })?;
        }
        Ok(())
    }

    /// Empties a file, or makes it.
    pub(crate) fn truncate(path: &Path) -> Result<()> {
        File::create(path)
            .map(drop)
            .map_err(|error| failed(error, "write", path))
    }

    pub(crate) fn append(path: &Path, bytes: &[u8]) -> Result<()> {
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| failed(error, "write", path))
    }

    /// Writes a file whole: a reader sees the old one or the new one.
    pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(".tmp");
        let unfinished = PathBuf::from(name);
        fs::write(&unfinished, bytes)
            .and_then(|()| fs::rename(&unfinished, path))
            .map_err(|error| failed(error, "write", path))
    }

    pub(crate) fn write_meta(&self, meta: &Meta) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(meta).map_err(CliError::internal)?;
        bytes.push(b'\n');
        Self::replace(&self.meta(&meta.name), &bytes)
    }

    /// Reads how a task is; `None` if nothing was written of it.
    pub(crate) fn read_meta(&self, task: &str) -> Result<Option<Meta>> {
        let path = self.meta(task);
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|file| file.take(META_BYTES_MAX).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error, "read", &path)),
            Ok(_) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                CliError::new(Kind::User, error)
                    .while_doing(format!("read {}", path.display()))
                    .hint("it is written anew by `run --resume RUN --dir DIR`")
            }),
        }
    }

    /// Reads how all tasks are, by wave and name.
    pub(crate) fn read_all(&self) -> Result<Vec<Meta>> {
        let logs = self.logs();
        let listed = match fs::read_dir(&logs) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error, "read", &logs)),
        };
        let mut found = Vec::new();
        for entry in listed {
            let entry = entry.map_err(|error| failed(error, "read", &logs))?;
            let name = entry.file_name();
            let task = name
                .to_str()
                .and_then(|name| name.strip_suffix(META_ENDING));
            if let Some(meta) = task.map(|task| self.read_meta(task)).transpose()?.flatten() {
                found.push(meta);
            }
        }
        found.sort_by(|a, b| (a.wave, &a.name).cmp(&(b.wave, &b.name)));
        Ok(found)
    }
}

fn failed(error: io::Error, what: &str, path: &Path) -> CliError {
    CliError::new(Kind::User, error).while_doing(format!("{what} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_listed_by_wave_and_name_and_other_files_are_left_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path());
        assert_eq!(folder.read_all().unwrap(), []);
        folder.make().unwrap();
        for (name, wave) in [("z", 0), ("a.meta", 1), ("b", 0)] {
            let meta = Meta {
                name: name.into(),
                wave,
                ..Meta::default()
            };
            folder.write_meta(&meta).unwrap();
        }
        Folder::append(&folder.log("z"), b"{}\n").unwrap();
        let names: Vec<_> = folder
            .read_all()
            .unwrap()
            .into_iter()
            .map(|meta| meta.name)
            .collect();
        assert_eq!(names, ["b", "z", "a.meta"]);
    }

    #[test]
    fn a_damaged_state_names_its_file_and_the_way_out() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path());
        folder.make().unwrap();
        Folder::append(&folder.meta("t"), b"{\"name\": 1}").unwrap();
        let text = format!("{:?}", folder.read_all().unwrap_err());
        assert!(text.contains("t.meta.json"), "{text}");
    }
}
