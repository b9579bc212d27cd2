//! Writes the files while a run is followed.

use std::collections::BTreeMap;

use muster_proto::v1;
use muster_proto::v1::watch_run_response::Item;

use super::layout::{Folder, Meta, Status};
use super::stream::Tally;
use crate::cli::error::{CliError, Result};
use crate::cli::show;
use crate::plan::TaskEntry;

/// A task's state file is written anew after so many of its events, as codex-par does.
const EVENTS_UNWRITTEN_MAX: u64 = 20;
const PREVIEW_CHARS: usize = 150;

/// Follows a run and keeps its files.
pub(crate) struct Recorder {
    folder: Folder,
    tasks: BTreeMap<String, Task>,
    /// Why nothing more is written. The run goes on meanwhile: its agents cost more than files.
    failed: Option<CliError>,
}

#[derive(Default)]
struct Task {
    meta: Meta,
    tally: Tally,
    /// The attempt whose output the files have; 0 before the first.
    attempt: u32,
    /// Events that the written state has.
    written: u64,
}

impl Recorder {
    /// Begins anew: what earlier runs left of these tasks is replaced. `entries` are the plan's
    /// tasks, if it is at hand.
    pub(crate) fn start(folder: Folder, run: &v1::Run, entries: &[TaskEntry]) -> Result<Self> {
        folder.make()?;
        let waves = waves(&run.tasks);
        let entries: BTreeMap<&str, &TaskEntry> = entries
            .iter()
            .map(|entry| (entry.name.as_str(), entry))
            .collect();
        let mut tasks = BTreeMap::new();
        for task in &run.tasks {
            let name = task.name.as_str();
            let meta = match entries.get(name) {
                Some(entry) => described(entry),
                // Without the plan, its last run may have said what is not to be had otherwise.
                None => folder.read_meta(name).ok().flatten().map_or_else(
                    || labelled(name, name, name),
                    |old| Meta {
                        cwd: old.cwd,
                        prompt_preview: old.prompt_preview,
                        ..labelled(name, &old.agent_id, &old.thread_id)
                    },
                ),
            };
            let meta = Meta {
                run_id: run.run.clone(),
                wave: waves.get(name).copied().unwrap_or(0),
                ..meta
            };
            folder.write_meta(&meta)?;
            let task = Task {
                meta,
                ..Task::default()
            };
            tasks.insert(name.to_owned(), task);
        }
        Ok(Self {
            folder,
            tasks,
            failed: None,
        })
    }

    /// Takes the next of what happened.
    pub(crate) fn take(&mut self, item: &Item) {
        if self.failed.is_none() {
            self.failed = self.record(item).err();
        }
    }

    fn record(&mut self, item: &Item) -> Result<()> {
        let Item::Agent(of) = item else {
            return Ok(());
        };
        let Some(v1::work::Kind::Attempt(work)) =
            of.work.as_ref().and_then(|work| work.kind.as_ref())
        else {
            return Ok(());
        };
        let Some(task) = self.tasks.get_mut(&of.task) else {
            return Ok(());
        };
        if work.attempt > task.attempt {
            task.begin(&self.folder, work.attempt)?;
        }
        let Some(event) = of.event.as_ref().filter(|_| work.attempt == task.attempt) else {
            return Ok(());
        };
        task.event(&self.folder, event)
    }

    /// Compares with the run as it is, and writes what has changed.
    pub(crate) fn settle(&mut self, run: &v1::Run) {
        for now in &run.tasks {
            if self.failed.is_some() {
                return;
            }
            if let Some(task) = self.tasks.get_mut(&now.name) {
                self.failed = task.settle(&self.folder, now).err();
            }
        }
    }

    /// Ends; an error says why files are missing.
    pub(crate) fn finish(self) -> Result<()> {
        match self.failed {
            Some(error) => Err(error.hint(
                "the run was not touched by this; `run --resume RUN --dir DIR` writes its files anew",
            )),
            None => Ok(()),
        }
    }
}

impl Task {
    fn begin(&mut self, folder: &Folder, attempt: u32) -> Result<()> {
        self.attempt = attempt;
        self.tally = Tally::default();
        self.written = 0;
        Folder::truncate(&folder.log(&self.meta.name))?;
        Folder::truncate(&folder.errors(&self.meta.name))?;
        self.meta.status = Status::Running;
        self.write(folder)
    }

    fn event(&mut self, folder: &Folder, event: &v1::AgentEvent) -> Result<()> {
        use v1::agent_event::Kind;
        match &event.kind {
            Some(Kind::Output(output)) if output.stream() == v1::Stream::Stderr => {
                Folder::append(&folder.errors(&self.meta.name), &output.data)
            }
            Some(Kind::Output(output)) => {
                Folder::append(&folder.log(&self.meta.name), &output.data)?;
                self.tally.take(&output.data);
                if self.tally.events >= self.written + EVENTS_UNWRITTEN_MAX {
                    self.write(folder)?;
                }
                Ok(())
            }
            Some(Kind::OutputTruncated(cut)) => {
                let lost = format!("[{}]\n", crate::cli::watch::lost(cut.bytes));
                Folder::append(&folder.errors(&self.meta.name), lost.as_bytes())
            }
            _ => Ok(()),
        }
    }

    fn settle(&mut self, folder: &Folder, now: &v1::Task) -> Result<()> {
        let before = self.meta.clone();
        let last = now.attempts.last();
        let first = now.attempts.first();
        let meta = &mut self.meta;
        meta.status = match now.state.as_str() {
            "succeeded" => Status::Done,
            "failed" => Status::Failed,
            "cancelled" | "aborted" | "skipped" => Status::Cancelled,
            _ if last.is_some() => Status::Running,
            _ => Status::Pending,
        };
        meta.dispatched_at =
            first.and_then(|attempt| show::machine_time(attempt.granted_at.as_ref()));
        meta.start_time = last.and_then(|attempt| show::machine_time(attempt.started_at.as_ref()));
        meta.end_time = last.and_then(|attempt| show::machine_time(attempt.ended_at.as_ref()));
        meta.exit_code = match (meta.status, &now.failure) {
            (Status::Done, _) => Some(0),
            (Status::Failed, Some(failure)) => told_exit_code(&failure.message),
            _ => None,
        };
        let failure = now
            .failure
            .as_ref()
            .map(|failure| format!("{} ({})", failure.message, failure.class));
        meta.error = failure.or_else(|| {
            (meta.status == Status::Cancelled && !now.reason.is_empty()).then(|| now.reason.clone())
        });
        let ended = meta.status.is_final();
        if ended && !before.status.is_final() {
            let summary = last.map(|attempt| attempt.summary.as_str());
            let said = self.tally.last_message.as_deref().or(summary);
            if let Some(said) = said.filter(|_| last.is_some()) {
                Folder::replace(&folder.output(&self.meta.name), said.as_bytes())?;
            }
            // A task that never began has its files too.
            if self.attempt == 0 && last.is_some() {
                Folder::truncate(&folder.log(&self.meta.name))?;
            }
        }
        if self.meta != before || ended && self.tally.events != self.written {
            self.write(folder)?;
        }
        Ok(())
    }

    fn write(&mut self, folder: &Folder) -> Result<()> {
        let (meta, tally) = (&mut self.meta, &self.tally);
        meta.session_id.clone_from(&tally.session);
        meta.events_count = tally.events;
        meta.input_tokens = tally.input_tokens;
        meta.output_tokens = tally.output_tokens;
        meta.files_read = tally.files_read;
        meta.commands_run = tally.commands_run;
        meta.last_action.clone_from(&tally.last_action);
        self.written = tally.events;
        folder.write_meta(meta)
    }
}

/// Finds the exit code in what a worker says of a program that ended with one.
fn told_exit_code(message: &str) -> Option<i32> {
    message.rsplit_once("ended with exit code ")?.1.parse().ok()
}

fn labelled(name: &str, agent: &str, thread: &str) -> Meta {
    Meta {
        name: name.to_owned(),
        agent_id: agent.to_owned(),
        thread_id: thread.to_owned(),
        ..Meta::default()
    }
}

fn described(entry: &TaskEntry) -> Meta {
    let prompt = entry.prompt.as_deref().unwrap_or_default();
    let options = entry.codex.as_ref().map(|codex| &codex.options);
    let label = |key: &str| {
        let value = options.and_then(|options| options.get(key)?.as_str());
        value.unwrap_or(&entry.name).to_owned()
    };
    let cwd = entry.codex.as_ref().map(|codex| codex.cwd.as_str());
    Meta {
        cwd: cwd.unwrap_or(".").to_owned(),
        prompt_preview: prompt.chars().take(PREVIEW_CHARS).collect(),
        ..labelled(&entry.name, &label("agent_id"), &label("thread_id"))
    }
}

/// Gives each task's longest chain of dependencies.
fn waves(tasks: &[v1::Task]) -> BTreeMap<&str, usize> {
    let mut waves: BTreeMap<&str, usize> = BTreeMap::new();
    // The graph has no cycles, and a plan may list tasks in any order: a stack instead of
    // recursion, since chains may be long.
    let by_name: BTreeMap<&str, &v1::Task> = tasks
        .iter()
        .map(|task| (task.name.as_str(), task))
        .collect();
    for task in tasks {
        let mut stack = vec![task.name.as_str()];
        while let Some(name) = stack.last().copied() {
            let depends_on = by_name.get(name).map_or(&[][..], |task| &task.depends_on);
            let open = depends_on
                .iter()
                .find(|before| !waves.contains_key(before.as_str()) && stack.len() <= tasks.len());
            if let Some(open) = open {
                stack.push(open);
                continue;
            }
            let wave = depends_on
                .iter()
                .filter_map(|before| waves.get(before.as_str()))
                .max()
                .map_or(0, |wave| wave + 1);
            waves.insert(name, wave);
            stack.pop();
        }
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned;

    fn run(tasks: Vec<v1::Task>) -> v1::Run {
        v1::Run {
            run: "r".into(),
            tasks,
            ..v1::Run::default()
        }
    }

    fn said(task: &str, attempt: u32, stream: v1::Stream, text: &str) -> Item {
        Item::Agent(v1::TaskAgentEvent {
            task: task.into(),
            work: Some(v1::Work {
                kind: Some(v1::work::Kind::Attempt(v1::AttemptWork { attempt })),
            }),
            lease: 1,
            event: Some(v1::AgentEvent {
                kind: Some(v1::agent_event::Kind::Output(v1::Output {
                    stream: stream.into(),
                    data: text.as_bytes().to_vec(),
                })),
                ..v1::AgentEvent::default()
            }),
        })
    }

    fn task(name: &str, state: &str, depends_on: &[&str], summary: Option<&str>) -> v1::Task {
        v1::Task {
            depends_on: depends_on.iter().map(|name| (*name).to_owned()).collect(),
            attempts: summary
                .map(|summary| v1::Attempt {
                    summary: summary.into(),
                    ..v1::Attempt::default()
                })
                .into_iter()
                .collect(),
            ..canned::task(name, state)
        }
    }

    #[test]
    fn files_show_the_last_attempt_and_its_last_message() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path());
        let before = run(vec![task("a", "ready", &[], None)]);
        let mut recorder = Recorder::start(folder.clone(), &before, &[]).unwrap();
        let meta = |folder: &Folder| folder.read_meta("a").unwrap().unwrap();
        assert_eq!(meta(&folder).status, Status::Pending);
        let stdout = v1::Stream::Stdout;
        recorder.take(&said("a", 1, stdout, "{\"type\":\"x\"}\n"));
        assert_eq!(meta(&folder).status, Status::Running);
        let message = r#"{"type":"item.completed","item":{"type":"agent_message","text":"done"}}"#;
        let (first, second) = message.split_at(20);
        recorder.take(&said("a", 2, stdout, first));
        recorder.take(&said("a", 1, stdout, "late"));
        recorder.take(&said("a", 2, stdout, &format!("{second}\n")));
        recorder.take(&said("a", 2, v1::Stream::Stderr, "warning\n"));
        let after = run(vec![task("a", "succeeded", &[], Some("a summary"))]);
        recorder.settle(&after);
        recorder.finish().unwrap();
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(folder.log("a")), format!("{message}\n"));
        assert_eq!(read(folder.errors("a")), "warning\n");
        assert_eq!(read(folder.output("a")), "done");
        let meta = meta(&folder);
        assert_eq!((meta.status, meta.exit_code), (Status::Done, Some(0)));
        assert_eq!((meta.events_count, meta.agent_id.as_str()), (1, "a"));
    }

    #[test]
    fn a_stand_in_that_prints_no_messages_is_quoted_by_its_summary() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path());
        let ended = run(vec![
            task("a", "succeeded", &[], Some("from its file")),
            task("b", "skipped", &["a"], None),
        ]);
        let mut recorder = Recorder::start(folder.clone(), &ended, &[]).unwrap();
        recorder.settle(&ended);
        let output = std::fs::read_to_string(folder.output("a")).unwrap();
        assert_eq!(output, "from its file");
        assert!(!folder.output("b").exists());
        let mut failed = task("c", "failed", &[], Some(""));
        failed.failure = Some(v1::Failure {
            message: "codex ended with exit code 7".into(),
            ..v1::Failure::default()
        });
        let failed = run(vec![failed]);
        let mut recorder = Recorder::start(folder.clone(), &failed, &[]).unwrap();
        recorder.settle(&failed);
        let c = folder.read_meta("c").unwrap().unwrap();
        assert_eq!((c.status, c.exit_code), (Status::Failed, Some(7)));
        let b = folder.read_meta("b").unwrap().unwrap();
        assert_eq!((b.status, b.wave), (Status::Cancelled, 1));
    }

    #[test]
    fn a_task_is_described_with_the_folder_that_its_file_names() {
        let text = b"tasks: [{name: a, cwd: app/sub, prompt: x}, {name: b, cwd: app, prompt: y}]";
        let plan = crate::plan::parse("p", text, &BTreeMap::new()).unwrap();
        let entries = plan.document.tasks.iter();
        let folders: Vec<String> = entries.map(|entry| described(entry).cwd).collect();
        assert_eq!(folders, ["app/sub", "app"]);
    }

    #[test]
    fn a_wave_is_the_longest_chain_before_a_task() {
        let tasks = [
            task("d", "ready", &["c", "a"], None),
            task("c", "ready", &["b"], None),
            task("b", "ready", &["a"], None),
            task("a", "ready", &[], None),
        ];
        let waves = waves(&tasks);
        assert_eq!(
            waves.into_iter().collect::<Vec<_>>(),
            [("a", 0), ("b", 1), ("c", 2), ("d", 3)]
        );
    }
}
