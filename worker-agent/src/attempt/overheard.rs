//! What a conversation's agent said after its worker was killed, and what it consumed.
//!
//! The supervisor wrote everything down until it had ended the agent. The conversation is a machine of
//! lines, so a new one that reads all of them again finds each usage in the same order, and those that
//! were told before are skipped by their count.

use std::path::Path;

use muster_proto::v1::{self, Activity, Direction, Grant, activity};

use super::capture::Recorder;
use super::scribe::Scribe;
use crate::agent::agent_of;
use crate::agent::conversation::{Conversation, Opening, Step};
use crate::agent::lines::{Line, Lines};
use crate::document::TaskDocument;
use crate::failure::chain;
use crate::spool::Taken;
use crate::supervisor::{Content, Error, OutputReader, Stream};

/// Tells the rest of a launch with whose agent there was a conversation; false if there was none.
/// `usages` were told before.
pub(super) async fn settle(
    grant: &Grant,
    folder: &Path,
    from: Taken,
    usages: u64,
    scribe: &Scribe,
) -> bool {
    let Ok(task) = TaskDocument::parse(&grant.document) else {
        return false;
    };
    let conversation = agent_of(&task)
        .ok()
        .and_then(|agent| agent.conversation(&task));
    let Some(mut conversation) = conversation else {
        return false;
    };
    // A machine expects to be opened; what it would say goes nowhere.
    let session = grant.resume.as_ref().map(|resume| resume.session.clone());
    conversation.open(&Opening {
        resume: session.filter(|session| !session.is_empty()),
        output_schema: task.output_schema.clone(),
        ..Opening::default()
    });
    if let Err(error) = read(conversation, folder, from, usages, scribe).await {
        let error = chain(&error);
        scribe
            .note(format!("some of what the agent said is lost: {error}"))
            .await;
    }
    true
}

async fn read(
    mut conversation: Box<dyn Conversation>,
    folder: &Path,
    from: Taken,
    usages: u64,
    scribe: &Scribe,
) -> Result<(), Error> {
    let mut reader = OutputReader::open(folder, 0)?;
    let mut lines = Lines::default();
    let mut recorder = Recorder::new(from);
    let (mut seen, mut turn) = (0, 1);
    while let Some(record) = reader.next_record()? {
        let taken = Taken {
            launch: from.launch,
            position: reader.offset(),
        };
        let is_new = taken.position > from.position;
        match record.content {
            Content::Output {
                stream: Stream::Stdout,
                bytes,
            } => {
                for step in lines.push(&bytes).iter().flat_map(|line| match line {
                    Line::Whole(line) => conversation.line(line),
                    Line::Overlong(beginning) => conversation.overlong(beginning),
                }) {
                    match step {
                        Step::Tell(kind @ activity::Kind::Usage(_)) => {
                            seen += 1;
                            if seen > usages {
                                let kind = Some(kind);
                                scribe.activity(Activity { turn, kind }).await;
                            }
                        }
                        Step::TurnEnded(_) => turn += 1,
                        _ => {}
                    }
                }
                if is_new {
                    recorder.push(Direction::FromAgent, &bytes, taken);
                }
                if recorder.is_full() {
                    flush(&mut recorder, scribe).await;
                }
            }
            Content::Output {
                stream: Stream::Stderr,
                bytes,
            } if is_new => {
                let output = v1::Output {
                    stream: v1::Stream::Stderr.into(),
                    data: bytes,
                };
                scribe.output(output, taken).await;
            }
            Content::Truncated { dropped } => scribe.end_of_output(dropped).await,
            Content::Output { .. } => {}
        }
    }
    flush(&mut recorder, scribe).await;
    Ok(())
}

async fn flush(recorder: &mut Recorder, scribe: &Scribe) {
    for (capture, taken) in recorder.take() {
        scribe.capture(capture, taken).await;
    }
}
