//! Every bound of the core in one place, each with its reason.

use crate::time::Span;

/// Tasks of one run. A plan of this size is about 30 MB of YAML; beyond it, split the plan.
pub const TASKS_PER_RUN: usize = 200_000;
/// Dependencies of one task.
pub const DEPENDENCIES_PER_TASK: usize = 10_000;
/// Edges of one run: bounds the memory that one submission can take (4 bytes twice an edge).
pub const EDGES_PER_RUN: usize = 2_000_000;
/// Runs that are not archived yet.
pub const LIVE_RUNS: usize = 10_000;
/// Tasks of all live runs together: each takes some 300 bytes of memory and as much again beside it,
/// so whoever submits without end is refused before a machine of a few GB is full.
pub const LIVE_TASKS: usize = 1_000_000;
/// Bytes of a task's name: with the ref's other parts it stays well below git's and file systems' 255.
pub const TASK_NAME_BYTES: usize = 100;
/// Claimed paths of one task.
pub const PATHS_PER_TASK: usize = 256;
/// Workers known at once.
pub const WORKERS: usize = 20_000;
/// Declared agents that workers are asked for at once: live runs seldom name ten. Of more, those are
/// asked for that were named last.
pub const DECLARED_AGENTS: usize = 256;
/// Slots of one worker.
pub const SLOTS_PER_WORKER: u32 = 4_096;
/// Retries a task may ask for.
pub const RETRIES_MAX: u32 = 100;
/// Uncounted losses after which a task fails all the same: it may be what kills its workers.
pub const CRASH_LIMIT: u32 = 5;
/// Attempts of one task that were cut off because their machine went away, after which it fails: a
/// task that lives from snapshot to snapshot on machines that stay an hour has days.
pub const DEPARTURE_LIMIT: u32 = 100;
/// Failures of one task by its model's provider after which the task fails: with
/// [`PROVIDER_BACKOFF_MAX`] between them some six hours, longer than common limits of use last.
pub const PROVIDER_LIMIT: u32 = 40;
/// First delay after a failure of the provider. The agent itself has already tried again for a while.
pub const PROVIDER_BACKOFF_FIRST: Span = Span::from_secs(10);
/// Longest delay after a failure of the provider, if the provider itself does not ask for more.
pub const PROVIDER_BACKOFF_MAX: Span = Span::from_secs(600);
/// Longest wish of a provider that is honoured at once; one that asks for more is asked again then.
/// Bounds for how long a worker can put off a task.
pub const RETRY_AFTER_MAX: Span = Span::from_secs(24 * 3_600);
/// Lost verifies of one attempt after which the attempt fails.
pub const VERIFY_CRASH_LIMIT: u32 = 5;
/// One line about a failure.
pub const FAILURE_MESSAGE_BYTES: usize = 1_024;
/// End of a failure's output that is journaled and handed to the next attempt.
pub const FAILURE_OUTPUT_BYTES: usize = 8_192;
/// Time a lease lives without renewal: three heartbeats may be lost.
pub const LEASE_TTL: Span = Span::from_secs(60);
/// How long after the TTL the coordinator waits, so that the worker has surely stopped first.
pub const LEASE_GRACE: Span = Span::from_secs(15);
/// Interval of heartbeats.
pub const HEARTBEAT_INTERVAL: Span = Span::from_secs(10);
/// First retry delay; doubles up to [`BACKOFF_MAX`].
pub const BACKOFF_FIRST: Span = Span::from_secs(1);
/// Longest retry delay.
pub const BACKOFF_MAX: Span = Span::from_secs(300);
/// Deadline of making a base or integrating, from when it was wanted.
pub const GIT_STEP_DEADLINE: Span = Span::from_secs(3_600);
/// Default time limit of a task, from start to finish.
pub const TASK_TIMEOUT: Span = Span::from_secs(6 * 3_600);
/// Longest time limit a task may ask for.
pub const TASK_TIMEOUT_MAX: Span = Span::from_secs(30 * 24 * 3_600);
/// Default time limit of a verify.
pub const VERIFY_TIMEOUT: Span = Span::from_secs(3_600);
/// What the coordinator adds to a task's own time limit before it steps in for a silent worker.
pub const TIMEOUT_MARGIN: Span = Span::from_secs(120);
/// How long a ready task waits for a fitting worker before it fails as `not_placed`.
pub const QUEUE_DEADLINE: Span = Span::from_secs(14 * 24 * 3_600);
/// How long a question waits for its answer.
pub const QUESTION_DEADLINE: Span = Span::from_secs(7 * 24 * 3_600);
/// Leases granted in one round: bounds one batch.
pub const GRANTS_PER_ROUND: usize = 4_096;
/// Ready tasks of one class that one round looks at when path claims keep them back.
pub const PATH_SCAN: usize = 1_024;
/// Time after which a worker that is not connected and holds nothing is forgotten.
pub const WORKER_FORGET: Span = Span::from_secs(24 * 3_600);
/// How long an agent that waits for a person keeps its slot before it is parked.
/// Long enough for a person who is at lunch; then the slot is for others, and the attempt that goes
/// on gets the answer.
pub const PARK_AFTER: Span = Span::from_secs(3_600);
/// How long the clocks of one attempt stand still for people, all its questions together; the next
/// question parks it. Without it an agent that asks again and again would keep its slot for weeks. One
/// question may take it beyond that by [`PARK_AFTER`].
pub const PAUSED_MAX: Span = Span::from_secs(24 * 3_600);
/// How long a task that can go on waits for the worker or host that has its agent's conversation:
/// long enough for a worker that is started anew, and a small price beside what the conversation
/// has cost.
pub const RESUME_WAIT: Span = Span::from_secs(60);
/// Questions of one attempt that wait for people at once: agents ask one by one, or as many as they
/// call tools at once.
pub const OPEN_QUESTIONS: usize = 32;
/// Questions that one attempt may ask in all. Whoever is asked so often has not been asked a
/// question but given a job; each stays in memory as long as its run.
pub const QUESTIONS_PER_ATTEMPT: usize = 1_024;
/// Choices of one question.
pub const CHOICES_PER_QUESTION: usize = 64;
/// A question in one line, why it is asked, a choice's id or label.
pub const QUESTION_LINE_BYTES: usize = 1_024;
/// The command, diff or arguments that a question is about.
pub const QUESTION_DETAIL_BYTES: usize = 16_384;
/// What a person writes to an agent.
pub const ANSWER_BYTES: usize = 4_096;
/// Conversations one attempt may open: agents begin a new one when they put the old one in short.
pub const CONVERSATIONS_PER_ATTEMPT: u32 = 64;
/// Distinct profiles of one run: tasks name them by a 16-bit index.
pub const PROFILES_PER_RUN: usize = 65_536;
/// Bytes of a claimed path: what common systems accept.
pub const PATH_BYTES: usize = 4_096;
/// An agent's summary of an attempt.
pub const SUMMARY_BYTES: usize = 4_096;
/// Earlier attempts that the next one is told of: what went wrong before these was either mended since
/// or went wrong again. With the bounds below and [`FAILURE_OUTPUT_BYTES`] a prompt grows by less than
/// 200 KiB, some 50,000 tokens, if an agent aims at that, and seldom by more than a tenth of it.
pub const EARLIER_ATTEMPTS: usize = 3;
/// What an earlier attempt's agent said last, for the next one: as much as its summary.
pub const EARLIER_SAID_BYTES: usize = SUMMARY_BYTES;
/// A command, an item of a plan or a path of an earlier attempt: enough to know it again.
pub const EARLIER_LINE_BYTES: usize = 300;
/// The last commands of an earlier attempt: where it stood, not how it came there.
pub const EARLIER_COMMANDS: usize = 20;
/// Changed files of an earlier attempt that are named; the rest is counted.
pub const EARLIER_FILES: usize = 40;
/// Items of an earlier attempt's plan: more is no plan any more.
pub const EARLIER_TODO: usize = 20;
/// Bytes from the end of an earlier attempt's transcript that its summary is made of: a grant waits
/// for it, and its worker's other messages with it.
pub const EARLIER_READ_BYTES: usize = 8 * 1024 * 1024;
/// A question, an answer, or the reason of a cancel.
pub const TEXT_BYTES: usize = 8_192;
/// Idempotency keys kept; beyond it the smallest key of a run that is not live is forgotten.
pub const KEYS: usize = 100_000;
/// Timers one tick handles; the rest is due at once again.
pub const TIMERS_PER_TICK: usize = 1_024;
/// Consequences recorded between two looks at the worklists.
pub const CONSEQUENCES_PER_PASS: usize = 1_024;
/// Errors of a plan that are reported at once.
pub const PLAN_ERRORS: usize = 20;
/// Names compared for a suggestion: keeps the answer to a hostile plan quick.
pub const SUGGESTION_SCAN: usize = 10_000;
/// Archived runs of which the last event is remembered, to refuse an older image of them: far more
/// than end while one is read from the archive.
pub const ARCHIVED_REMEMBERED: usize = 4_096;
/// Files and tasks of a merge conflict that are kept.
pub const CONFLICT_ITEMS: usize = 256;
/// Allocations in the inventory of all pools.
pub const ALLOCATIONS: usize = 20_000;
/// What a provider calls an allocation, or where it runs.
pub const EXTERNAL_BYTES: usize = 256;
/// Work that is ready within so long may have a machine started for it: what most providers need
/// to start one.
pub const SOON: Span = Span::from_secs(60);
/// Waiting tasks of one kind that a plan of pools looks at: more than any pool has slots.
pub const DEMAND_SCAN: usize = 10_000;
/// First delay after a failed start of an allocation; doubles up to [`POOL_BACKOFF_MAX`].
pub const POOL_BACKOFF_FIRST: Span = Span::from_secs(5);
/// Longest delay between failed starts.
pub const POOL_BACKOFF_MAX: Span = Span::from_secs(600);
/// What must be left of a machine's time for work besides what the work is expected to take: for its
/// checkout and its commit.
pub const WALLTIME_MARGIN: Span = Span::from_secs(60);
/// What must be left of a machine's time for work of which nothing is known: enough to begin. What it
/// does not finish is handed over and goes on elsewhere.
pub const WALLTIME_FLOOR: Span = Span::from_secs(10);
/// An allocation whose worker vanishes sooner after it joined counts as a failed start, and one whose
/// worker stays longer as a good one: machines that are broken mostly show it within seconds.
pub const YOUNG: Span = Span::from_secs(60);
/// An attempt that fails sooner has hardly begun.
pub const QUICK_FAILURE: Span = Span::from_secs(30);
/// Tasks whose attempts failed at once on a host after which it is quarantined: one may be to blame
/// itself, and so may two.
pub const QUARANTINE_TASKS: usize = 3;
/// How long a host is quarantined.
pub const QUARANTINE: Span = Span::from_secs(3_600);
/// Hosts of one pool that are suspected at once.
pub const SUSPECTS: usize = 4_096;
/// Lists in a row in which an allocation must be missing before it is taken to be gone: a list may be
/// made of several parts, and a busy provider forgets for a moment.
pub const MISSING_LISTS: u32 = 2;
/// How long it must be missing for that.
pub const MISSING_FOR: Span = Span::from_secs(10);
/// How long a provider may hold an allocation, or not answer whether it is there, before it counts as coming
/// no more: whoever held it may just be about to release it.
pub const HELD_FOR: Span = Span::from_secs(120);
/// How long an order whose answer was lost may still arrive.
pub const ORDER_SETTLES: Span = Span::from_secs(30);
/// How long what nobody knows is left alone: it may be of an order whose answer is on its way.
pub const STRANGER_FOR: Span = Span::from_secs(60);
/// Dependencies of a task whose hosts are looked at for it: more hosts are hardly fewer than all.
pub const NEAR_SCAN: usize = 64;
/// Tasks up to which debug builds check every invariant after every step.
pub const TASKS_CHECKED: usize = 200;
