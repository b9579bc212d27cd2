//! Carries an agent's conversation out: its pipe, its raw lines, its events, the questions it asks.
//!
//! It has a task of its own, so that a slow disk or an agent that does not read holds nothing up that
//! keeps a lease within its time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use muster_proto::v1::{Answer, Direction, Failure, Usage, report};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::capture::Recorder;
use super::dialogue::{Act, Dialogue, Said};
use super::records;
use super::scribe::Scribe;
use super::{FromLease, Orders};
use crate::mask::Hidden;
use crate::spool::Taken;
use crate::supervisor::{End, Error, open_input};

/// Reads of the agent's output that wait for the conversation.
const HEARD_MAX: usize = 8;
/// Bytes that the agent has not read. One that does not read while this much waits is not spoken to.
const OUTGOING_BYTES_MAX: usize = 64 << 20;
/// How long raw lines are gathered before they are written down.
const GATHER: Duration = Duration::from_secs(1);

/// What a run needs to know of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The agent waits for a person: no clock of the attempt runs.
    pub(crate) waits: bool,
    /// The conversation is over; the program should end by itself.
    pub(crate) over: bool,
}

/// What a conversation came to.
#[derive(Debug)]
pub(crate) struct Spoken {
    pub(crate) result: Result<Said, Failure>,
    pub(crate) usage: Usage,
}

/// Output of the agent, and up to where that takes its file.
pub(crate) type Heard = (Vec<u8>, Taken);

enum Word {
    Cancel,
    Exited(End, Vec<u8>),
}

/// A conversation that goes on.
#[derive(Debug)]
pub(crate) struct Talk {
    words: mpsc::Sender<Word>,
    standing: watch::Receiver<Standing>,
    /// For what reads the agent's output.
    pub(crate) heard: mpsc::Sender<Heard>,
    task: JoinHandle<Spoken>,
}

/// What a conversation is carried out with.
pub(crate) struct Means {
    pub(crate) lease: u64,
    pub(crate) told: mpsc::Sender<FromLease>,
    pub(crate) scribe: Scribe,
    pub(crate) hidden: Hidden,
    pub(crate) orders: watch::Receiver<Orders>,
}

impl Talk {
    /// Makes the agent's pipe in the folder of its launch and begins.
    ///
    /// # Errors
    /// The pipe cannot be made; nothing was begun.
    pub(crate) fn begin(
        folder: &Path,
        launch: u32,
        dialogue: Dialogue,
        means: Means,
    ) -> Result<Self, Error> {
        let pipe = open_input(folder)?;
        let (words, words_seen) = mpsc::channel(4);
        let (heard, hearing) = mpsc::channel(HEARD_MAX);
        let (standing_told, standing) = watch::channel(Standing::default());
        let taken = Taken {
            launch,
            position: 0,
        };
        let speaker = Speaker {
            dialogue,
            means,
            pipe: Some(pipe),
            outgoing: Vec::new(),
            close_after: false,
            over: false,
            standing: standing_told,
            recorder: Recorder::new(taken),
        };
        Ok(Self {
            words,
            standing,
            heard,
            task: tokio::spawn(speaker.run(words_seen, hearing)),
        })
    }

    /// How it stands; changes can be awaited.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Interrupts the agent's turn.
    pub(crate) fn cancel(&self) {
        // A conversation that has so much to do is not interrupted in good manners.
        let _ = self.words.try_send(Word::Cancel);
    }

    /// Ends it: nothing of the program is left, and all that it wrote was passed on. `stderr` is the end
    /// of what it complained.
    pub(crate) async fn ended(self, end: End, stderr: Vec<u8>) -> Option<Spoken> {
        let Self {
            words, heard, task, ..
        } = self;
        drop(heard);
        let _ = words.send(Word::Exited(end, stderr)).await;
        drop(words);
        // Fails only if it panicked.
        task.await.ok()
    }
}

struct Speaker {
    dialogue: Dialogue,
    means: Means,
    pipe: Option<pipe::Sender>,
    outgoing: Vec<u8>,
    /// Close the pipe once everything is written.
    close_after: bool,
    over: bool,
    standing: watch::Sender<Standing>,
    recorder: Recorder,
}

impl Speaker {
    async fn run(
        mut self,
        mut words: mpsc::Receiver<Word>,
        mut hearing: mpsc::Receiver<Heard>,
    ) -> Spoken {
        let acts = self.dialogue.open();
        self.carry_out(acts).await;
        let mut exited = None;
        let mut orders = self.means.orders.clone();
        let mut has_orders = true;
        let mut flush_at = Instant::now() + GATHER;
        // What the program wrote before it ended is heard before its end.
        while exited.is_none() || !hearing.is_closed() || !hearing.is_empty() {
            self.standing.send_replace(Standing {
                waits: self.dialogue.is_waiting(),
                over: self.over,
            });
            tokio::select! {
                heard = hearing.recv(), if !(hearing.is_closed() && hearing.is_empty()) => {
                    if let Some((bytes, taken)) = heard {
                        self.recorder.push(Direction::FromAgent, &bytes, taken);
                        let acts = self.dialogue.heard(&bytes);
                        self.carry_out(acts).await;
                    }
                }
                word = words.recv(), if exited.is_none() => match word {
                    Some(Word::Cancel) => {
                        let acts = self.dialogue.cancel();
                        self.carry_out(acts).await;
                    }
                    Some(Word::Exited(end, stderr)) => exited = Some((end, stderr)),
                    // Nobody waits for what comes of it.
                    None => break,
                },
                changed = orders.changed(), if has_orders => match changed {
                    Ok(()) => {
                        let answers: Arc<BTreeMap<u32, Answer>> =
                            Arc::clone(&orders.borrow_and_update().answers);
                        let acts = self.dialogue.answers(&answers);
                        self.carry_out(acts).await;
                    }
                    Err(_) => has_orders = false,
                },
                () = write(&mut self.pipe, &mut self.outgoing), if !self.outgoing.is_empty() => {}
                () = tokio::time::sleep_until(flush_at) => {
                    self.flush().await;
                    flush_at = Instant::now() + GATHER;
                }
            }
            if self.outgoing.is_empty() && self.close_after {
                self.pipe = None;
            }
            if self.recorder.is_full() {
                self.flush().await;
            }
        }
        if let Some((end, stderr)) = exited {
            for found in records::read(self.dialogue.records()).await {
                let acts = self.dialogue.recorded(&found);
                self.carry_out(acts).await;
            }
            let acts = self.dialogue.exited(&end, &stderr);
            self.carry_out(acts).await;
        }
        self.flush().await;
        let usage = self.dialogue.usage();
        let lost = || {
            let message = "the worker lost track of the agent's conversation";
            Err(crate::failure::failure(
                crate::failure::class::WORKER_LOST,
                message,
                b"",
            ))
        };
        Spoken {
            usage,
            result: self.dialogue.into_result().unwrap_or_else(lost),
        }
    }

    async fn carry_out(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Send(mut line) => {
                    line.push('\n');
                    let shown = self.means.hidden.text(&line);
                    self.recorder.push_sent(shown.as_bytes());
                    if self.outgoing.len() + line.len() <= OUTGOING_BYTES_MAX {
                        self.outgoing.extend_from_slice(line.as_bytes());
                    }
                }
                Act::CloseInput => self.close_after = true,
                Act::Tell(activity) => self.means.scribe.activity(activity).await,
                Act::Report(kind) => self.report(kind).await,
                Act::Note(text) => self.means.scribe.note(text).await,
                Act::Over => self.over = true,
            }
        }
    }

    async fn report(&mut self, kind: report::Kind) {
        let lease = self.means.lease;
        // A worker that does not listen any more is ending.
        let _ = self
            .means
            .told
            .send(FromLease::Report { lease, kind })
            .await;
    }

    async fn flush(&mut self) {
        for (capture, taken) in self.recorder.take() {
            self.means.scribe.capture(capture, taken).await;
        }
    }
}

/// Writes as much as the agent takes now; an agent that has closed its input is spoken to no more.
async fn write(pipe: &mut Option<pipe::Sender>, outgoing: &mut Vec<u8>) {
    let Some(sender) = pipe else {
        outgoing.clear();
        return;
    };
    match sender.write(outgoing).await {
        Ok(written) => {
            outgoing.drain(..written);
        }
        Err(error) => {
            tracing::debug!(%error, "the agent does not listen any more");
            *pipe = None;
            outgoing.clear();
        }
    }
}
