//! One program under a supervisor: its deadline, its limits, its output.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_proto::v1;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::allowance::Allowance;
use super::scribe::Scribe;
use super::{Orders, Stop};
use crate::clock::{self, Boottime};
use crate::failure;
use crate::spool::{OUTPUT_BYTES_MAX, Taken};
use crate::supervisor::{
    CgroupUse, Content, End, Error, Event, ExitReport, Launch, Leftover, LostTree, Mark,
    OutputReader, Stream, SupervisedProcess, leftover,
};

/// Longest wait before limits are looked at again: tokio's timers stand still while the host
/// sleeps, limits do not.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long a program that is gone waits, once it is to stop, for a disk that does not take the
/// rest of its output.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// What to launch.
#[derive(Debug)]
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
    /// The end of its output.
    pub(crate) tail: Vec<u8>,
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
    let mut current = *orders.borrow_and_update();
    let launch = Launch {
        argv: program.argv,
        cwd: program.cwd,
        env: program.env,
        deadline: current.deadline,
        term_grace_ms: u64::try_from(program.term_grace.as_millis()).unwrap_or(u64::MAX),
        output_bytes_max: OUTPUT_BYTES_MAX,
        cgroup: CgroupUse::IfPossible,
        mark: Mark::random(),
        masked: program.masked,
        unseen: program.unseen,
    };
    let folder = program.folder;
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
    ));
    let mut ran = Ran::Ended;
    let mut last_sign = clock::now();
    let over_disk = program.disk.exceeded();
    tokio::pin!(over_disk);
    loop {
        if ran == Ran::Ended {
            let now = clock::now();
            let idle_until = program.idle.map(|idle| last_sign.after(idle));
            if let Some(stop) = current.stop {
                ran = Ran::Stopped(stop);
            } else if now >= program.ends_at {
                ran = Ran::TimedOut;
            } else if idle_until.is_some_and(|until| now >= until) {
                ran = Ran::Stalled;
            }
            if ran != Ran::Ended {
                process.stop();
            }
        }
        let next = program.idle.map_or(program.ends_at, |idle| {
            program.ends_at.min(last_sign.after(idle))
        });
        let wait = next.since(clock::now()).min(LOOK_AGAIN);
        tokio::select! {
            event = process.next_event() => match event {
                None | Some(Event::Gone) => break,
                Some(Event::Output { .. }) => {
                    last_sign = clock::now();
                    more.notify_one();
                }
                Some(Event::Started { .. }) => last_sign = clock::now(),
                // What it left behind is being ended; no limit applies to that.
                Some(Event::Exited(_)) => if ran == Ran::Ended { break },
            },
            changed = orders.changed(), if changeable(orders) => {
                if changed.is_ok() {
                    let new = *orders.borrow_and_update();
                    if new.deadline != current.deadline {
                        process.renew(new.deadline);
                    }
                    current = new;
                }
            }
            () = tokio::time::sleep(wait), if ran == Ran::Ended => {}
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
    let tail = tokio::select! {
        tail = &mut pump => tail.unwrap_or_default(),
        stop = patience => {
            pump.abort();
            if ran == Ran::Ended {
                ran = Ran::Stopped(stop);
            }
            Vec::new()
        }
    };
    Ok(Launched { ran, report, tail })
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

/// Moves output from the supervisor's file to the lease's spool; returns its end.
pub(crate) async fn pump(
    folder: PathBuf,
    mut taken: Taken,
    more: Arc<Notify>,
    gone: CancellationToken,
    scribe: Scribe,
) -> Vec<u8> {
    let mut tail = Tail::default();
    let mut dropped = 0;
    loop {
        // Before reading: what was written before the end is read after it was seen.
        let is_last = gone.is_cancelled();
        match drain(&folder, &mut taken, &scribe, &mut tail, &mut dropped).await {
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
    tail.into_bytes()
}

async fn drain(
    folder: &Path,
    taken: &mut Taken,
    scribe: &Scribe,
    tail: &mut Tail,
    dropped: &mut u64,
) -> Result<(), Error> {
    let mut reader = OutputReader::open(folder, taken.position)?;
    while let Some(record) = reader.next_record()? {
        taken.position = reader.offset();
        match record.content {
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
