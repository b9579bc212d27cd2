//! What an attempt's agent did, in short: for the next attempt, whose agent does not remember it.
//!
//! It is made of the transcript by code, so that it says what was seen and invents nothing. What it
//! quotes came from an agent and from the programs that it ran, with secrets hidden by their worker as
//! everywhere in transcripts. Whoever passes it on says that it is data.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use coordinator_core::limits;
use muster_proto::v1::activity::Kind;
use muster_proto::v1::{AgentEvent, PastCommand, PastFile, TodoItem, agent_event};

use super::{Error, Place, file};

/// What a transcript says of an attempt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Digest {
    /// What the agent said last.
    pub said: String,
    /// Its plan, as it was last.
    pub todo: Vec<TodoItem>,
    /// The last commands that it ran, in order.
    pub commands: Vec<PastCommand>,
    /// Commands before these.
    pub commands_before: u32,
    /// Files that it said it changed, by path.
    pub files: Vec<PastFile>,
    /// Files besides these.
    pub files_besides: u32,
}

impl Digest {
    /// Tells whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Makes one of the end of a transcript; of one that does not exist it is empty. Meant for blocking
    /// threads: it reads up to [`limits::EARLIER_READ_BYTES`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(root: &Path, place: &Place) -> Result<Self, Error> {
        let path = place.path(root);
        let mut position = file::near_end(&path, limits::EARLIER_READ_BYTES as u64)?;
        let mut making = Making::default();
        loop {
            let events = file::read_on(&path, &mut position, file::CHUNK)?;
            if events.is_empty() {
                return Ok(making.finish());
            }
            for event in &events {
                making.take(event);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Making {
    digest: Digest,
    /// Item that the last words belong to; `None` if the next ones begin anew.
    saying: Option<String>,
    /// Commands with the items that they are.
    commands: VecDeque<(String, PastCommand)>,
    files: BTreeMap<String, String>,
}

impl Making {
    fn take(&mut self, event: &AgentEvent) {
        let Some(agent_event::Kind::Activity(activity)) = &event.kind else {
            return;
        };
        match &activity.kind {
            Some(Kind::Message(delta)) => self.said(&delta.item, &delta.text),
            Some(Kind::TurnEnded(turn)) if !turn.message.trim().is_empty() => {
                self.saying = None;
                self.said("", &turn.message);
                self.saying = None;
            }
            Some(Kind::TurnBegan(_)) => self.saying = None,
            Some(Kind::TodoList(list)) => {
                let items = list.items.iter().take(limits::EARLIER_TODO);
                let items = items.map(|item| TodoItem {
                    text: line(&item.text),
                    status: line(&item.status),
                });
                self.digest.todo = items.collect();
            }
            Some(Kind::CommandStarted(started)) => {
                self.saying = None;
                if self.commands.len() == limits::EARLIER_COMMANDS {
                    self.commands.pop_front();
                    self.digest.commands_before += 1;
                }
                let command = PastCommand {
                    command: line(&started.command),
                    ..PastCommand::default()
                };
                self.commands.push_back((started.item.clone(), command));
            }
            Some(Kind::CommandEnded(ended)) => {
                let mut commands = self.commands.iter_mut().rev();
                if let Some((_, command)) = commands.find(|(item, _)| *item == ended.item) {
                    command.exit_code = ended.exit_code;
                    command.declined = ended.declined;
                }
            }
            Some(Kind::FileChange(change)) if !change.declined => {
                self.saying = None;
                let path = line(&change.path);
                if self.files.len() < limits::EARLIER_FILES || self.files.contains_key(&path) {
                    self.files.insert(path, line(&change.change));
                } else {
                    self.digest.files_besides = self.digest.files_besides.saturating_add(1);
                }
            }
            Some(Kind::ToolCall(_)) => self.saying = None,
            _ => {}
        }
    }

    fn said(&mut self, item: &str, text: &str) {
        if self.saying.as_deref() != Some(item) {
            if text.trim().is_empty() {
                return;
            }
            self.digest.said.clear();
            self.saying = Some(item.to_owned());
        }
        let said = &mut self.digest.said;
        let room = limits::EARLIER_SAID_BYTES.saturating_sub(said.len());
        said.push_str(
            text.get(..text.floor_char_boundary(room))
                .unwrap_or_default(),
        );
    }

    fn finish(self) -> Digest {
        Digest {
            commands: self
                .commands
                .into_iter()
                .map(|(_, command)| command)
                .collect(),
            files: self
                .files
                .into_iter()
                .map(|(path, change)| PastFile { path, change })
                .collect(),
            ..self.digest
        }
    }
}

/// Cuts a text at a character.
fn line(text: &str) -> String {
    let end = text.floor_char_boundary(limits::EARLIER_LINE_BYTES);
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coordinator_core::event::Work;
    use coordinator_core::{AttemptNo, LeaseId, TaskIx};
    use muster_proto::v1::{
        Activity, CommandEnded, CommandStarted, FileChange, TextDelta, TodoList, TurnEnded,
    };

    use super::*;
    use crate::transcript::Transcripts;

    fn place() -> Place {
        Place {
            run: Arc::from("r"),
            task: Arc::from("t"),
            work: Work::Attempt {
                task: TaskIx(0),
                attempt: AttemptNo(1),
            },
            lease: LeaseId(7),
        }
    }

    fn events(kinds: Vec<Kind>) -> Vec<AgentEvent> {
        let numbered = (1..).zip(kinds);
        let events = numbered.map(|(number, kind)| AgentEvent {
            number,
            at_ms: 0,
            kind: Some(agent_event::Kind::Activity(Activity {
                turn: 1,
                kind: Some(kind),
            })),
        });
        events.collect()
    }

    async fn digest(kinds: Vec<Kind>) -> Digest {
        let root = tempfile::tempdir().unwrap();
        let transcripts = Transcripts::start(root.path().to_owned()).unwrap();
        transcripts
            .append(place(), "w", events(kinds))
            .await
            .unwrap();
        Digest::read(root.path(), &place()).unwrap()
    }

    fn said(item: &str, text: &str) -> Kind {
        let (item, text) = (item.to_owned(), text.to_owned());
        Kind::Message(TextDelta { item, text })
    }

    fn started(item: &str, command: &str) -> Kind {
        Kind::CommandStarted(CommandStarted {
            item: item.to_owned(),
            command: command.to_owned(),
            folder: String::new(),
        })
    }

    fn ended(item: &str, exit_code: Option<i32>) -> Kind {
        Kind::CommandEnded(CommandEnded {
            item: item.to_owned(),
            exit_code,
            declined: false,
        })
    }

    fn changed(path: &str, change: &str) -> Kind {
        Kind::FileChange(FileChange {
            path: path.to_owned(),
            change: change.to_owned(),
            ..FileChange::default()
        })
    }

    #[tokio::test]
    async fn a_digest_has_the_last_words_the_plan_the_commands_and_the_files() {
        let todo = |status: &str| {
            Kind::TodoList(TodoList {
                items: vec![TodoItem {
                    text: "test it".to_owned(),
                    status: status.to_owned(),
                }],
            })
        };
        let digest = digest(vec![
            todo("pending"),
            said("1", "I begin."),
            started("2", "make"),
            started("3", "sleep 9"),
            ended("2", Some(2)),
            changed("a.rs", "add"),
            changed("a.rs", "modify"),
            todo("in_progress"),
            said("4", "It does "),
            said("4", "not build."),
            said("5", " "),
        ])
        .await;
        assert_eq!(digest.said, "It does not build.");
        assert_eq!(digest.todo[0].status, "in_progress");
        let ends: Vec<_> = digest
            .commands
            .iter()
            .map(|c| (&*c.command, c.exit_code))
            .collect();
        assert_eq!(ends, [("make", Some(2)), ("sleep 9", None)]);
        assert_eq!(digest.files.len(), 1);
        assert_eq!(digest.files[0].change, "modify");
    }

    #[tokio::test]
    async fn a_digest_is_bounded_whatever_an_agent_does() {
        let long = "ä".repeat(10_000);
        let mut kinds = vec![];
        for number in 0..1_000 {
            kinds.push(started(&number.to_string(), &format!("{number} {long}")));
            kinds.push(changed(&format!("{number}-{long}"), &long));
            kinds.push(said("1", &long));
        }
        kinds.push(Kind::TodoList(TodoList {
            items: vec![
                TodoItem {
                    text: long.clone(),
                    status: long.clone(),
                };
                40
            ],
        }));
        kinds.push(Kind::TurnEnded(TurnEnded {
            end: 0,
            message: long.clone(),
        }));
        let digest = digest(kinds).await;
        assert_eq!(digest.said.len(), limits::EARLIER_SAID_BYTES);
        assert_eq!(digest.commands.len(), limits::EARLIER_COMMANDS);
        assert!(digest.commands.last().unwrap().command.starts_with("999 "));
        // Only the end of so long a transcript was read.
        assert!(
            digest.commands_before > 50 && digest.commands_before < 980,
            "{digest:?}"
        );
        assert_eq!(digest.files.len(), limits::EARLIER_FILES);
        assert!(digest.files_besides > 0);
        assert_eq!(digest.todo.len(), limits::EARLIER_TODO);
        let lines = digest.commands.iter().map(|command| &command.command);
        let lines = lines.chain(digest.files.iter().map(|file| &file.path));
        let lines = lines.chain(digest.todo.iter().map(|item| &item.text));
        assert!(
            lines
                .map(String::len)
                .all(|bytes| bytes <= limits::EARLIER_LINE_BYTES)
        );
    }

    #[test]
    fn nothing_is_known_of_an_attempt_without_a_transcript() {
        let root = tempfile::tempdir().unwrap();
        assert!(Digest::read(root.path(), &place()).unwrap().is_empty());
    }
}
