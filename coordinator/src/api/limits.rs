//! Every bound of the port in one place, each with its reason. Those of the core are in
//! [`coordinator_core::limits`], those of hosted repositories in [`crate::git::host`].

use std::time::Duration;

/// Connections at one time, unless three quarters of the process's file descriptors are fewer: a
/// site of thousands of workers and as many viewers.
pub(super) const CONNECTIONS: usize = 16_384;
/// Connections that have shown no valid credential yet. The oldest gives way to a newcomer, so
/// strangers who say nothing cannot keep others out.
pub(super) const STRANGERS: usize = 1_024;
/// How long a client without a credential may take for downloads, as long as it takes something: 50 MB at
/// 1 Mbit/s, and some.
pub(super) const DOWNLOAD: Duration = Duration::from_secs(600);
/// Refused credentials after which a connection is closed: a client that was wrong so often is
/// guessing, and has to pay for another TLS handshake.
pub(super) const REFUSALS_PER_CONNECTION: u32 = 32;
/// Streams of one connection. A worker uses a handful, a dashboard some dozens.
pub(super) const STREAMS_PER_CONNECTION: u32 = 256;
/// Bytes of answers that one stream holds back for a client that is slow to take them.
pub(super) const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Watches at one time: each takes some KiB, and up to [`SEND_BUFFER_BYTES`] when it is not read.
pub(super) const WATCHES: usize = 20_000;
/// How long a client may take nothing of a watch or log; it resumes where it was whenever it likes.
pub(super) const STALL: Duration = Duration::from_secs(60);
/// How long a client that was given up for taking nothing has to take the reason; then its whole
/// connection is cut if its client takes nothing else either, since what waits for it would stay in
/// memory as long as it likes.
pub(super) const FAREWELL: Duration = Duration::from_secs(10);
/// Watches and logs of which nothing is taken, on one connection whose other streams are read; with one more
/// it is cut. Each holds [`SEND_BUFFER_BYTES`] at the most.
pub(super) const STALLED_PER_CONNECTION: usize = 4;
/// Bytes handed to a watcher's stream at once, besides the last item; two such batches wait at the
/// most. It is what one frame of HTTP/2 holds.
pub(super) const WATCH_BATCH_BYTES: usize = 16 * 1024;
/// Chunks of events of one run that are kept for its watchers, each of some hundred KiB.
pub(super) const CHUNKS_PER_FEED: usize = 64;
/// Chunks that are read at once.
pub(super) const CHUNKS_PER_READ: u64 = 16;
/// Events that are made ready and shared at once.
pub(super) const EVENTS_PER_CHUNK: u64 = 256;
/// Bytes of an event's JSON for watchers; of a larger one only its size is told. A plan of the largest
/// size would be 24 MB for each watcher, and whoever wants it gets the run page by page.
pub(super) const EVENT_JSON_BYTES: usize = 32 * 1024;
/// The shortest time between two looks at a run that is being watched: at thousands of watchers
/// each look wakes them all.
pub(super) const FEED_PACE: Duration = Duration::from_millis(20);
/// What [`FEED_PACE`] grows by for each watcher of the run: some 50 µs pass until one has taken what
/// is new, and half a second for ten thousand is soon enough for whoever looks on.
pub(super) const FEED_PACE_PER_WATCHER: Duration = Duration::from_micros(50);
/// Watchers whose next batch is made at the same time. The others wait in line, so that whoever asks
/// for something else finds a few watchers before it and not thousands.
pub(super) const WATCHERS_AT_WORK: usize = 4;
/// The shortest time between two looks of one client at what agents say.
pub(super) const AGENTS_PACE: Duration = Duration::from_millis(100);
/// Logs at one time that are sent or followed.
pub(super) const LOGS: usize = 2_000;
/// Transcripts that are read at once, so that readers of logs leave threads to others.
pub(super) const TRANSCRIPT_READS: usize = 8;

/// Groups of usage in one answer, and models in one group: some MiB at the most.
pub(super) const USAGE_GROUPS: usize = 5_000;
/// How old the sum may be that is told with a run: whoever looks at a run asks many times a second.
pub(super) const USAGE_FRESH: Duration = Duration::from_secs(1);
/// Runs whose sums are remembered that long.
pub(super) const USAGE_RUNS: usize = 256;

/// Bytes that wait for one worker's connection.
pub(super) const SESSION_BYTES: usize = 16 * 1024 * 1024;
/// How long a worker may take nothing of what it is told: well before its leases run out.
pub(super) const WORKER_STALL: Duration = Duration::from_secs(30);
/// Sessions at one time: every worker that may be known, while each reconnects.
pub(super) const SESSIONS: usize = 2 * coordinator_core::limits::WORKERS;
/// Leases that never were the worker's but of which it sends events, in one session. Each costs a
/// search, and an honest worker has none.
pub(super) const FOREIGN_LEASES_PER_SESSION: usize = 16;
/// Searches of runs' histories for a lease at once, so that they take one reader of the fleet's four.
pub(super) const LEASE_SEARCHES: usize = 1;
/// Reports about leases that are not the worker's, in one session: all that it can have lost, twice.
pub(super) const STALE_REPORTS_PER_SESSION: usize =
    2 * coordinator_core::limits::SLOTS_PER_WORKER as usize;
/// Messages a second that a session takes in the long run; a faster one has to wait. A worker of
/// 4,096 slots whose tasks take a second says less, since it says them together.
pub(super) const MESSAGES_PER_SECOND: u32 = 1_000;
/// Messages that a session takes at once before it is slowed down.
pub(super) const MESSAGES_BURST: u32 = 10_000;

/// Hellos a second of one join token in the long run: each new incarnation is journaled.
pub(super) const HELLOS_PER_SECOND: u32 = 100;
/// Hellos of one join token at once: all workers of a site come back together after a restart.
pub(super) const HELLOS_BURST: u32 = 20_000;

/// Comings and goings of workers that are logged a second in the long run; others are counted.
pub(super) const JOINS_LOGGED_PER_SECOND: u32 = 10;
/// Comings and goings that are logged at once: a large site's start is told in full.
pub(super) const JOINS_LOGGED_BURST: u32 = 4_000;

/// Bytes of a submission: a plan of the longest kind, and what is said besides it. A longer one is
/// refused before any of it is read.
pub(crate) const SUBMISSION_BYTES: usize = crate::plan::FILE_BYTES_MAX + REQUEST_BYTES;
/// Plans that are taken in at once, one of which is checked: of the other all bytes wait in memory,
/// twice for a moment.
pub(super) const PLANS_AT_ONCE: usize = 2;
/// Plans that wait for their turn; further ones are refused.
pub(super) const PLANS_WAITING: usize = 64;
/// From a plan's turn to its answer: 64 MiB at 10 Mbit/s, and the seconds that checking it takes.
pub(super) const PLAN_TIME: Duration = Duration::from_secs(120);
/// Bytes of an operator's request other than a plan.
pub(crate) const REQUEST_BYTES: usize = 256 * 1024;
/// Tasks that one answer describes; the next page has the others. Describing them takes the engine a
/// millisecond.
pub(super) const TASKS_PER_PAGE: usize = 2_000;
/// Looks through runs that the engine is asked for at once. It answers all that wait before it turns to
/// commands again, so a heartbeat finds these few before it, however many want to see a large run.
pub(super) const LOOKS: usize = 4;
