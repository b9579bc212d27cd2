//! Sums earlier attempts at a task up, for the next one.

use std::path::Path;
use std::sync::Arc;

use coordinator_core::event::Work;
use coordinator_core::limits;
use muster_proto::v1;
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::warn;

use super::convert;
use super::limits::TRANSCRIPT_READS;
use crate::engine::grant::{EarlierAttempt, GrantFacts};
use crate::transcript::{Digest, Place, Transcripts};

/// Makes summaries of transcripts.
#[derive(Clone)]
pub(super) struct Summaries {
    root: Arc<Path>,
    reads: Arc<Semaphore>,
}

impl Summaries {
    pub(super) fn new(transcripts: &Transcripts) -> Self {
        Self {
            root: transcripts.root().into(),
            reads: Arc::new(Semaphore::new(TRANSCRIPT_READS)),
        }
    }

    /// Sums up the last attempts before that of a grant, the newest first. One that never came to
    /// anything is left out. A transcript that cannot be read keeps no attempt back: then it is told how
    /// the attempt ended, and no more.
    pub(super) async fn of(&self, facts: &GrantFacts) -> Vec<v1::EarlierAttempt> {
        let (Work::Attempt { task: ix, .. }, Some((_, name))) = (facts.work, &facts.task) else {
            return Vec::new();
        };
        let cut_off = facts.resume.as_ref().map(|resume| resume.attempt);
        let mut summed_up = Vec::new();
        for earlier in facts.earlier.iter().rev() {
            if summed_up.len() == limits::EARLIER_ATTEMPTS {
                break;
            }
            let place = Place {
                run: facts.run.clone(),
                task: name.clone(),
                work: Work::Attempt {
                    task: ix,
                    attempt: earlier.attempt,
                },
                lease: earlier.lease,
            };
            let digest = self.digest(place).await;
            let failed = earlier.failure.as_ref();
            let counted = failed.is_some_and(|failure| failure.class.counts());
            if counted || cut_off == Some(earlier.attempt) || !digest.is_empty() {
                summed_up.push(summed(earlier, digest));
            }
        }
        summed_up
    }

    async fn digest(&self, place: Place) -> Digest {
        let _room = self.reads.acquire().await;
        let root = Arc::clone(&self.root);
        let (run, lease) = (place.run.clone(), place.lease);
        let read = tokio::task::spawn_blocking(move || Digest::read(&root, &place));
        match read.await {
            Ok(Ok(digest)) => digest,
            Ok(Err(error)) => {
                warn!(%run, %lease, error = %crate::causes::chain(&error), "cannot sum an attempt up");
                Digest::default()
            }
            // Fails only if it panicked.
            Err(_) => Digest::default(),
        }
    }
}

fn summed(earlier: &EarlierAttempt, digest: Digest) -> v1::EarlierAttempt {
    let (name, commit) = match &earlier.published {
        Some((name, commit)) => (name.clone(), commit.to_string()),
        None => Default::default(),
    };
    v1::EarlierAttempt {
        attempt: earlier.attempt.0,
        failure: earlier.failure.as_ref().map(convert::failure),
        r#ref: name,
        commit,
        said: digest.said,
        todo: digest.todo,
        commands: digest.commands,
        commands_before: digest.commands_before,
        files: digest.files,
        files_besides: digest.files_besides,
    }
}

/// The same for `MUSTER_CONTEXT_FILE`.
#[derive(Serialize)]
pub(super) struct Did<'a> {
    said: &'a str,
    todo: Vec<DidTodo<'a>>,
    commands: Vec<DidCommand<'a>>,
    commands_before: u32,
    files: Vec<DidFile<'a>>,
    files_besides: u32,
}

#[derive(Serialize)]
struct DidTodo<'a> {
    text: &'a str,
    status: &'a str,
}

#[derive(Serialize)]
struct DidCommand<'a> {
    command: &'a str,
    exit_code: Option<i32>,
    declined: bool,
}

#[derive(Serialize)]
struct DidFile<'a> {
    path: &'a str,
    change: &'a str,
}

impl<'a> From<&'a v1::EarlierAttempt> for Did<'a> {
    fn from(earlier: &'a v1::EarlierAttempt) -> Self {
        let todo = earlier.todo.iter().map(|item| DidTodo {
            text: &item.text,
            status: &item.status,
        });
        let commands = earlier.commands.iter().map(|command| DidCommand {
            command: &command.command,
            exit_code: command.exit_code,
            declined: command.declined,
        });
        let files = earlier.files.iter().map(|file| DidFile {
            path: &file.path,
            change: &file.change,
        });
        Self {
            said: &earlier.said,
            todo: todo.collect(),
            commands: commands.collect(),
            commands_before: earlier.commands_before,
            files: files.collect(),
            files_besides: earlier.files_besides,
        }
    }
}
