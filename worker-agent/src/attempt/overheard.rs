//! What a conversation's agent said after its worker was killed, and what it consumed.
//!
//! The supervisor wrote everything down until it had ended the agent. The conversation is a machine of
//! lines, so a new one that reads all of them again finds each usage in the same order, and those that
//! were told before are skipped by their count.

use std::path::Path;

use muster_proto::v1::{self, Direction, Grant, activity};

use super::capture::Recorder;
use super::meter::Count;
use super::records;
use super::scribe::Scribe;
use crate::agent::agent_of;
use crate::agent::conversation::{Conversation, Opening, Step};
use crate::agent::lines::{Line, Lines};
use crate::document::TaskDocument;
use crate::failure::chain;
use crate::spool::Taken;
use crate::supervisor::{Content, Error, OutputReader, Stream};

/// What was told before of a launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// What its agent complained, up to there.
    pub(super) output: u64,
    /// Its raw lines, up to there.
    pub(super) captured: u64,
    /// So many events of usage.
    pub(super) usages: u64,
}

/// Tells the rest of a launch with whose agent there was a conversation; false if there was none.
pub(super) async fn settle(
    grant: &Grant,
    folder: &Path,
    launch: u32,
    told: Told,
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
    if let Err(error) = read(conversation, folder, launch, told, scribe).await {
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
    launch: u32,
    told: Told,
    scribe: &Scribe,
) -> Result<(), Error> {
    let mut reader = OutputReader::open(folder, 0)?;
    let mut lines = Lines::default();
    let mut recorder = Recorder::new(Taken {
        launch,
        position: told.captured,
    });
    let (mut count, mut turn) = (Count::new(told.usages), 1);
    while let Some(record) = reader.next_record()? {
        let taken = Taken {
            launch,
            position: reader.offset(),
        };
        match record.content {
            Content::Output {
                stream: Stream::Stdout,
                bytes,
            } => {
                for step in lines.push(&bytes).iter().flat_map(|line| match line {
                    Line::Whole(line) => conversation.line(line),
                    Line::Overlong(beginning) => conversation.overlong(beginning),
                }) {
                    take(step, &mut turn, &mut count, scribe).await;
                }
                if taken.position > told.captured {
                    recorder.push(Direction::FromAgent, &bytes, taken);
                }
                if recorder.is_full() {
                    flush(&mut recorder, scribe).await;
                }
            }
            Content::Output {
                stream: Stream::Stderr,
                bytes,
            } if taken.position > told.output => {
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
    for found in records::read(conversation.records()).await {
        for step in conversation.recorded(&found) {
            take(step, &mut turn, &mut count, scribe).await;
        }
    }
    Ok(())
}

/// Takes what a conversation says; only what it consumed is told.
async fn take(step: Step, turn: &mut u32, count: &mut Count, scribe: &Scribe) {
    match step {
        Step::Tell(activity::Kind::Usage(usage)) => count.take(*turn, usage, scribe).await,
        Step::TurnEnded(_) => *turn += 1,
        _ => {}
    }
}

async fn flush(recorder: &mut Recorder, scribe: &Scribe) {
    for (capture, taken) in recorder.take() {
        scribe.capture(capture, taken).await;
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::agent_event;
    use tokio::sync::mpsc;

    use super::*;
    use crate::disk::Disk;
    use crate::mask::Hidden;
    use crate::spool::{OUTPUT_BYTES_MAX, Spool, SpoolReader};
    use crate::supervisor::SpoolWriter;

    /// What is told of a launch of which some was told before: complaints, bytes of raw lines, tokens.
    async fn told_after(folder: &Path, told: Told) -> (Vec<String>, u64, Vec<u64>) {
        let events = folder.join("events");
        let _ = std::fs::remove_file(&events);
        let spool = Spool::open(&events, OUTPUT_BYTES_MAX).unwrap();
        let (news, mut heard) = mpsc::channel(64);
        let (scribe, writing) = Scribe::start(
            7,
            spool,
            news,
            Disk::new(folder.to_owned(), folder.to_owned()),
            Hidden::default(),
        );
        let document = br#"{"agent": {"kind": "scripted"}, "run": "true"}"#.to_vec();
        let grant = Grant {
            document,
            ..Grant::default()
        };
        assert!(settle(&grant, folder, 1, told, &scribe).await);
        drop(scribe);
        writing.await.unwrap();
        while heard.try_recv().is_ok() {}
        let (mut complaints, mut raw, mut tokens) = (Vec::new(), 0, Vec::new());
        let mut reader = SpoolReader::new(&events);
        for event in reader.read(0, u64::MAX, usize::MAX).unwrap() {
            match event.kind {
                Some(agent_event::Kind::Output(output)) => {
                    complaints.push(String::from_utf8(output.data).unwrap());
                }
                Some(agent_event::Kind::Capture(capture)) => raw += capture.bytes,
                Some(agent_event::Kind::Activity(v1::Activity {
                    kind: Some(activity::Kind::Usage(usage)),
                    ..
                })) => tokens.push(usage.input_tokens),
                other => panic!("{other:?}"),
            }
        }
        (complaints, raw, tokens)
    }

    #[tokio::test]
    async fn raw_lines_that_were_behind_complaints_come_once_and_complaints_do_not_come_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut writer = SpoolWriter::create(folder, u64::MAX).unwrap();
        let lines = ["usage m 1 0 1 0\n", "usage m 2 0 1 0\n"];
        writer.append(Stream::Stdout, lines[0].as_bytes());
        writer.append(Stream::Stderr, b"first");
        writer.append(Stream::Stdout, lines[1].as_bytes());
        writer.append(Stream::Stderr, b"second");
        let mut reader = OutputReader::open(folder, 0).unwrap();
        let mut ends = Vec::new();
        while reader.next_record().unwrap().is_some() {
            ends.push(reader.offset());
        }
        let told = |output, captured, usages| Told {
            output,
            captured,
            usages,
        };
        let of =
            |count: usize| -> u64 { lines[..count].iter().map(|line| line.len() as u64).sum() };
        for (before, expected) in [
            (told(0, 0, 0), (vec!["first", "second"], of(2), vec![1, 2])),
            // Its worker had understood both lines, and written neither down as it was.
            (told(ends[3], 0, 2), (vec![], of(2), vec![])),
            (told(ends[1], ends[0], 1), (vec!["second"], of(1), vec![2])),
            (told(ends[3], ends[2], 2), (vec![], 0, vec![])),
            (
                told(0, ends[2], 0),
                (vec!["first", "second"], 0, vec![1, 2]),
            ),
        ] {
            let (complaints, raw, tokens) = told_after(folder, before).await;
            assert_eq!(complaints, expected.0, "{before:?}");
            assert_eq!((raw, tokens), (expected.1, expected.2), "{before:?}");
        }
    }
}
