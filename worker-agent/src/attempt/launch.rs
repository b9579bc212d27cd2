//! One program under a supervisor: its deadline, its limits, its output.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_proto::v1;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::allowance::Allowance;
use super::dialogue::Dialogue;
use super::meter::Metering;
use super::scribe::Scribe;
use super::talk::{Heard, Means, Spoken, Standing, Talk};
use super::{Orders, Stop};
use crate::clock::{self, Boottime};
use crate::failure;
use crate::spool::{OUTPUT_BYTES_MAX, Taken};
use crate::supervisor::{
    CgroupUse, Content, End, Error, Event, ExitReport, Input, Launch, Leftover, LostTree, Mark,
    OutputReader, Stream, SupervisedProcess, hide_input, leftover,
};

/// Longest wait before limits are looked at again: tokio's timers stand still while the host
/// sleeps, limits do not.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long a program that is gone waits, once it is to stop, for a disk that does not take the
/// rest of its output.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a conversation's output that are kept until it was understood: without the rest it could
/// not go on, so this is far more than what is told of it.
const CONVERSATION_BYTES_MAX: u64 = 1 << 30;
/// How long an agent may take to end once its conversation is over.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// How long an interrupted agent may take to say so.
const CANCEL_PATIENCE: Duration = Duration::from_secs(3);

/// What to launch.
pub(crate) struct Program {
    pub(crate) argv: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) env: BTreeMap<String, String>,
    /// Which launch of its lease it is, and the folder of that.
    pub(crate) number: u32,
    pub(crate) folder: PathBuf,
    pub(crate) term_grace: Duration,
    /// When its time is up.
    pub(crate) ends_at: Boottime,
    /// Longest silence.
    pub(crate) idle: Option<Duration>,
    /// What it may take on disk.
    pub(crate) disk: Allowance,
    /// Variables whose values are hidden in its output.
    pub(crate) masked: BTreeSet<String>,
    /// The conversation with it, if it is not only started and judged.
    pub(crate) dialogue: Option<(Dialogue, Means)>,
    /// What it consumes of models, read off its output, if there is no conversation.
    pub(crate) meter: Option<Metering>,
    /// Values that are hidden likewise although it does not get them.
    pub(crate) unseen: Vec<String>,
}

/// Why a program is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// It ended by itself, or could not be started.
    Ended,
    /// Its time was up.
    TimedOut,
    /// It was silent for too long.
    Stalled,
    /// It took more on disk than it may: this many bytes, as far as anybody looked.
    OverDisk(u64),
    /// The lease was to stop.
    Stopped(Stop),
}

/// A program that is no more.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) ran: Ran,
    pub(crate) report: ExitReport,
    /// The end of its output; of one with which there was a conversation, of what it complained.
    pub(crate) tail: Vec<u8>,
    /// What the conversation came to.
    pub(crate) spoken: Option<Spoken>,
    /// What was read off its output that it consumed.
    pub(crate) metered: v1::Usage,
}

/// Runs a program to its end, whatever that is; returns once no process of it is left.
///
/// # Errors
/// Nothing is known about its processes then, or none was started.
pub(crate) async fn run(
    executable: &Path,
    program: Program,
    orders: &mut watch::Receiver<Orders>,
    scribe: &Scribe,
) -> Result<Launched, Error> {
    let mut current = orders.borrow_and_update().clone();
    let launch = Launch {
        argv: program.argv,
        cwd: program.cwd,
        env: program.env,
        deadline: current.deadline,
        term_grace_ms: u64::try_from(program.term_grace.as_millis()).unwrap_or(u64::MAX),
        output_bytes_max: match program.dialogue {
            Some(_) => CONVERSATION_BYTES_MAX,
            None => OUTPUT_BYTES_MAX,
        },
        cgroup: CgroupUse::IfPossible,
        mark: Mark::random(),
        masked: program.masked,
        input: match program.dialogue {
            Some(_) => Input::Pipe,
            None => Input::Nothing,
        },
        unseen: program.unseen,
    };
    let folder = program.folder;
    let talk = program
        .dialogue
        .map(|(dialogue, means)| Talk::begin(&folder, program.number, dialogue, means))
        .transpose()?;
    let mut standing = talk.as_ref().map(Talk::standing);
    let mut process = SupervisedProcess::spawn(executable, launch, &folder).await?;
    let more = Arc::new(Notify::new());
    let gone = CancellationToken::new();
    let _gone_with_this = gone.clone().drop_guard();
    let mut pump = tokio::spawn(pump(
        folder.clone(),
        Taken {
            launch: program.number,
            position: 0,
        },
        Arc::clone(&more),
        gone.clone(),
        scribe.clone(),
        Readers {
            heard: talk.as_ref().map(|talk| talk.heard.clone()),
            meter: program.meter,
        },
    ));
    let mut ran = Ran::Ended;
    let mut ends_at = program.ends_at;
    let mut last_sign = clock::now();
    // When a program is ended that should have ended by itself.
    let mut ended_at = None;
    let mut looked_at = last_sign;
    let over_disk = program.disk.exceeded();
    tokio::pin!(over_disk);
    loop {
        let stands = standing
            .as_mut()
            .map(|standing| *standing.borrow_and_update())
            .unwrap_or_default();
        let now = clock::now();
        if stands.waits {
            // Nobody's time runs while a person is asked.
            ends_at = ends_at.after(now.since(looked_at));
            last_sign = now;
        }
        looked_at = now;
        if ran == Ran::Ended {
            let idle_until = program.idle.map(|idle| last_sign.after(idle));
            if let Some(stop) = current.stop {
                ran = Ran::Stopped(stop);
                match &talk {
                    // What the turn has consumed is told when it is interrupted. The supervisor ends
                    // it at the lease's deadline whatever comes of this.
                    Some(talk) if !stands.over => {
                        talk.cancel();
                        ended_at = Some(now.after(CANCEL_PATIENCE));
                    }
                    _ => process.stop(),
                }
            } else if stands.over {
                ended_at.get_or_insert(now.after(CLOSE_PATIENCE));
            } else if now >= ends_at {
                ran = Ran::TimedOut;
            } else if idle_until.is_some_and(|until| now >= until) {
                ran = Ran::Stalled;
            }
            if matches!(ran, Ran::TimedOut | Ran::Stalled) {
                match &talk {
                    Some(talk) => {
                        talk.cancel();
                        ended_at = Some(now.after(CANCEL_PATIENCE));
                    }
                    None => process.stop(),
                }
            }
        }
        if ended_at.is_some_and(|at| now >= at || (stands.over && ran != Ran::Ended)) {
            ended_at = None;
            process.stop();
        }
        let mut next = ends_at;
        if let Some(idle) = program.idle {
            next = next.min(last_sign.after(idle));
        }
        if let Some(at) = ended_at {
            next = next.min(at);
        }
        let wait = next.since(now).min(LOOK_AGAIN);
        let waits_for_time = ran == Ran::Ended || ended_at.is_some();
        tokio::select! {
            event = process.next_event() => match event {
                None | Some(Event::Gone) => break,
                Some(Event::Output { .. }) => {
                    last_sign = clock::now();
                    more.notify_one();
                }
                Some(Event::Started { .. }) => {
                    last_sign = clock::now();
                    if talk.is_some() && let Err(error) = hide_input(&folder) {
                        tracing::warn!(%error, "cannot hide an agent's pipe; ending it");
                        process.stop();
                    }
                }
                // What it left behind is being ended; no limit applies to that.
                Some(Event::Exited(_)) => if ran == Ran::Ended { break },
            },
            changed = orders.changed(), if changeable(orders) => {
                if changed.is_ok() {
                    let new = orders.borrow_and_update().clone();
                    if new.deadline != current.deadline {
                        process.renew(new.deadline);
                    }
                    current = new;
                }
            }
            () = tokio::time::sleep(wait), if waits_for_time => {}
            () = stands_otherwise(&mut standing) => {}
            bytes = &mut over_disk, if ran == Ran::Ended => {
                ran = Ran::OverDisk(bytes);
                process.stop();
            }
        }
    }
    let control = process.control();
    let report = renewing(process.wait(), orders, |deadline| control.renew(deadline)).await?;
    let report = confirmed(&folder, report).await?;
    gone.cancel();
    let patience = async {
        let stop = stop_ordered(orders).await;
        tokio::time::sleep(DISK_PATIENCE).await;
        stop
    };
    let (mut tail, metered) = tokio::select! {
        tail = &mut pump => tail.unwrap_or_default(),
        stop = patience => {
            pump.abort();
            if ran == Ran::Ended {
                ran = Ran::Stopped(stop);
            }
            Default::default()
        }
    };
    let mut spoken = None;
    if let Some(talk) = talk {
        spoken = talk
            .ended(report.end.clone(), std::mem::take(&mut tail))
            .await;
    }
    Ok(Launched {
        ran,
        report,
        tail,
        spoken,
        metered,
    })
}

/// Waits until a conversation stands otherwise; for ever where there is none.
async fn stands_otherwise(standing: &mut Option<watch::Receiver<Standing>>) {
    let changed = match standing {
        Some(standing) => standing.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        *standing = None;
        std::future::pending::<()>().await;
    }
}

/// Waits for the order to stop.
pub(super) async fn stop_ordered(orders: &mut watch::Receiver<Orders>) -> Stop {
    match orders.wait_for(|orders| orders.stop.is_some()).await {
        Ok(orders) => orders.stop.unwrap_or(Stop::Leave),
        // A worker that gives no orders any more is ending.
        Err(_) => Stop::Leave,
    }
}

/// Waits until processes that a lost supervisor left are gone, however long that takes: to say
/// that a lease ended while they live would let them change things in its name.
async fn confirmed(folder: &Path, report: ExitReport) -> Result<ExitReport, Error> {
    let mut report = report;
    while let End::SupervisorLost {
        tree: LostTree::Remains,
    } = report.end
    {
        tracing::warn!(folder = %folder.display(), "processes withstand KILL; waiting for them");
        tokio::time::sleep(LOOK_AGAIN).await;
        if let Leftover::Ended(ended) = leftover(folder, LOOK_AGAIN).await? {
            report = ended;
        }
    }
    Ok(report)
}

fn changeable(orders: &watch::Receiver<Orders>) -> bool {
    orders.has_changed().is_ok()
}

/// Waits for something while passing renewals on.
async fn renewing<T>(
    what: impl Future<Output = T>,
    orders: &mut watch::Receiver<Orders>,
    renew: impl Fn(Boottime),
) -> T {
    tokio::pin!(what);
    loop {
        tokio::select! {
            done = &mut what => return done,
            changed = orders.changed() => match changed {
                Ok(()) => renew(orders.borrow_and_update().deadline),
                Err(_) => return what.await,
            }
        }
    }
}

/// Who reads a program's standard output besides people.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    /// The conversation; output that it reads is not told as it is.
    pub(crate) heard: Option<mpsc::Sender<Heard>>,
    pub(crate) meter: Option<Metering>,
}

/// Moves output from the supervisor's file to the lease's spool; returns its end, and what was read off
/// it. A meter reads all of it, also what was told before.
pub(crate) async fn pump(
    folder: PathBuf,
    mut taken: Taken,
    more: Arc<Notify>,
    gone: CancellationToken,
    scribe: Scribe,
    mut readers: Readers,
) -> (Vec<u8>, v1::Usage) {
    let mut tail = Tail::default();
    let mut dropped = 0;
    let told = taken.position;
    if readers.meter.is_some() {
        taken.position = 0;
    }
    loop {
        // Before reading: what was written before the end is read after it was seen.
        let is_last = gone.is_cancelled();
        match drain(
            &folder,
            (&mut taken, told),
            (&scribe, &mut readers),
            &mut tail,
            &mut dropped,
        )
        .await
        {
            Ok(()) => {}
            // Not there before the program has started; damage was told and is the end.
            Err(Error::File { .. }) if !is_last => {}
            Err(error) => {
                let text = failure::chain(&error);
                scribe.note(format!("some output is lost: {text}")).await;
                break;
            }
        }
        if is_last {
            break;
        }
        tokio::select! {
            () = more.notified() => {}
            () = gone.cancelled() => {}
        }
    }
    scribe.end_of_output(dropped).await;
    let metered = match readers.meter {
        Some(meter) => meter.ended(&scribe).await,
        None => v1::Usage::default(),
    };
    (tail.into_bytes(), metered)
}

async fn drain(
    folder: &Path,
    (taken, told): (&mut Taken, u64),
    (scribe, readers): (&Scribe, &mut Readers),
    tail: &mut Tail,
    dropped: &mut u64,
) -> Result<(), Error> {
    let mut reader = OutputReader::open(folder, taken.position)?;
    while let Some(record) = reader.next_record()? {
        taken.position = reader.offset();
        if let (Some(meter), Content::Output { stream, bytes }) =
            (&mut readers.meter, &record.content)
            && *stream == Stream::Stdout
        {
            meter.heard(bytes, scribe).await;
        }
        if taken.position <= told {
            continue;
        }
        match record.content {
            Content::Output {
                stream: Stream::Stdout,
                bytes,
            } if let Some(heard) = &readers.heard => {
                // A conversation that is gone has no use for it.
                let _ = heard.send((bytes, *taken)).await;
            }
            Content::Output { stream, bytes } => {
                tail.push(&bytes);
                let stream = match stream {
                    Stream::Stdout => v1::Stream::Stdout,
                    Stream::Stderr => v1::Stream::Stderr,
                };
                let output = v1::Output {
                    stream: stream.into(),
                    data: bytes,
                };
                scribe.output(output, *taken).await;
            }
            Content::Truncated { dropped: bytes } => *dropped += bytes,
        }
    }
    Ok(())
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let start = bytes.len().saturating_sub(failure::OUTPUT_BYTES_MAX);
        self.bytes.extend(bytes.get(start..).unwrap_or_default());
        let excess = self.bytes.len().saturating_sub(failure::OUTPUT_BYTES_MAX);
        self.bytes.drain(..excess);
    }

    fn into_bytes(self) -> Vec<u8> {
        self.bytes.into()
    }
}
