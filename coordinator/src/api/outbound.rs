//! What is said to one worker: bounded in messages and bytes, and in the time that it may wait.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use muster_proto::v1::CoordinatorMessage;
use muster_proto::v1::coordinator_message::Kind;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::limits::{
    HELLOS_BURST, HELLOS_PER_SECOND, JOINS_LOGGED_BURST, JOINS_LOGGED_PER_SECOND, MESSAGES_BURST,
    MESSAGES_PER_SECOND, SESSION_BYTES,
};

/// Messages that wait for one worker's connection.
const MESSAGES: usize = 64;

type Waiting = (
    Result<CoordinatorMessage, Status>,
    Option<OwnedSemaphorePermit>,
);

/// The way to one worker; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Outbound {
    messages: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
    stall_max: Duration,
}

impl Outbound {
    /// Opens a way, and gives what is to be streamed to the worker, which may take nothing for
    /// `stall_max` at the most.
    pub(super) fn open(
        stall_max: Duration,
    ) -> (
        Self,
        impl Stream<Item = Result<CoordinatorMessage, Status>> + Send,
    ) {
        let (messages, waiting) = mpsc::channel(MESSAGES);
        let bytes = Arc::new(Semaphore::new(SESSION_BYTES));
        let stream = ReceiverStream::new(waiting).map(|(message, _room): Waiting| message);
        let out = Self {
            messages,
            bytes,
            stall_max,
        };
        (out, stream)
    }

    /// Says something, waiting for room.
    ///
    /// # Errors
    /// The worker has gone, or takes nothing.
    pub(super) async fn say(&self, kind: Kind) -> Result<(), Status> {
        let message = CoordinatorMessage { kind: Some(kind) };
        let bytes = u32::try_from(message.encoded_len().min(SESSION_BYTES)).unwrap_or(u32::MAX);
        let said = async {
            let room = Arc::clone(&self.bytes).acquire_many_owned(bytes).await;
            self.messages.send((Ok(message), room.ok())).await
        };
        match timeout(self.stall_max, said).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the worker has gone")),
            Err(_) => Err(self.stalled()),
        }
    }

    /// Ends the stream with a reason; false if the worker does not take even that.
    pub(super) async fn end(&self, status: Status) -> bool {
        // A worker that has gone needs no reason.
        timeout(
            Duration::from_secs(1),
            self.messages.send((Err(status), None)),
        )
        .await
        .is_ok()
    }

    fn stalled(&self) -> Status {
        Status::resource_exhausted(format!(
            "session: the worker took nothing of what it was told for {} seconds",
            self.stall_max.as_secs()
        ))
    }
}

/// So many at once, and so many a second in the long run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    per_second: u32,
    burst: u32,
    left: f64,
    at: Instant,
}

impl Pace {
    fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            per_second,
            burst,
            left: burst.into(),
            at: now,
        }
    }

    /// The pace of one session's messages.
    pub(super) fn of_messages() -> Self {
        Self::new(MESSAGES_PER_SECOND, MESSAGES_BURST, Instant::now())
    }

    /// The pace of the hellos of one join token.
    pub(super) fn of_hellos() -> Self {
        Self::new(HELLOS_PER_SECOND, HELLOS_BURST, Instant::now())
    }

    fn fill(&mut self, now: Instant) {
        let gone = now.duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + gone * f64::from(self.per_second)).min(self.burst.into());
    }

    /// Takes one; false if it comes too early.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }

    /// Takes one as soon as it is due.
    pub(super) async fn wait(&mut self) {
        while !self.take(Instant::now()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What is logged at a pace, and how much was not.
#[derive(Debug)]
pub(super) struct Told {
    pace: Pace,
    untold: u64,
}

impl Told {
    /// The comings and goings of workers: whoever reconnects without end must not fill the disk.
    pub(super) fn joins() -> Self {
        Self {
            pace: Pace::new(JOINS_LOGGED_PER_SECOND, JOINS_LOGGED_BURST, Instant::now()),
            untold: 0,
        }
    }

    /// Tells whether this one is logged, and how many before it were not.
    pub(super) fn tell(&mut self, now: Instant) -> Option<u64> {
        if self.pace.take(now) {
            return Some(std::mem::take(&mut self.untold));
        }
        self.untold += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_takes_nothing_is_given_up_by_name() {
        let (out, _stream) = Outbound::open(Duration::from_millis(20));
        let refused = loop {
            let said = out
                .say(Kind::Drain(muster_proto::v1::Drain { leave: false }))
                .await;
            if let Err(refused) = said {
                break refused;
            }
        };
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("took nothing"), "{refused}");
    }

    #[tokio::test]
    async fn bytes_that_wait_are_bounded() {
        let (out, stream) = Outbound::open(Duration::from_millis(20));
        let large = || {
            let grant = muster_proto::v1::Grant {
                document: vec![0; SESSION_BYTES / 2],
                ..muster_proto::v1::Grant::default()
            };
            Kind::Grants(muster_proto::v1::GrantBatch {
                grants: vec![grant],
            })
        };
        out.say(large()).await.unwrap();
        assert!(
            out.say(large()).await.is_err(),
            "two are more than may wait"
        );
        let mut stream = std::pin::pin!(stream);
        assert!(stream.next().await.is_some());
        out.say(large()).await.unwrap();
    }

    #[test]
    fn a_flood_is_slowed_down_to_its_pace() {
        let begun = Instant::now();
        let mut pace = Pace::new(100, 10, begun);
        let mut taken = 0;
        for ms in 0..1_000 {
            let now = begun + Duration::from_millis(ms);
            taken += (0..5).filter(|_| pace.take(now)).count();
        }
        assert!((108..=110).contains(&taken), "{taken}");
    }

    #[test]
    fn of_a_flood_few_are_logged_and_the_others_counted() {
        let mut told = Told::joins();
        let begun = Instant::now();
        let said = (0..100_000).filter(|_| told.tell(begun).is_some()).count();
        assert_eq!(said, JOINS_LOGGED_BURST as usize);
        let later = begun + Duration::from_secs(1);
        assert_eq!(told.tell(later), Some(100_000 - said as u64));
        assert_eq!(told.tell(later), Some(0));
    }
}
