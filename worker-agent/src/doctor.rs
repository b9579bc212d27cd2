//! Whether a machine can do a worker's work, found out before the first lease.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
#[cfg(feature = "ec2")]
use muster_connect::CaCertificate;
use muster_connect::{
    AddressFile, AddressFileError, Bearer, BootstrapError, Endpoint, EndpointError, Token,
    bootstrap_ca,
};
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use muster_proto::v1::{CheckInRequest, ProtocolVersion};
use serde_json::json;
use tonic::{Code, Status};

use crate::agent;
use crate::checks::{self, Check, Verdict};
use crate::disk::{self, FREE_BYTES_MIN};
use crate::failure::chain;
use crate::identity::{self, StateDir};
use crate::options::{Coordinator, Options};
use crate::session::SOFTWARE;

/// Longest wait for the coordinator's authority, and for its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Clocks that differ by more, in seconds, make logs of two machines hard to read together; nothing of
/// Muster's own compares them.
const CLOCKS_DIFFER_WARN: u64 = 60;
const SPACE: &str = "free space";
const TOKEN: &str = "token";
const COORDINATOR: &str = "coordinator";
/// The agent of tasks with `run`.
const COMMAND: &str = "command";

/// What a worker would join with.
#[derive(Clone, Debug)]
pub(crate) enum WayIn {
    /// A token, or why it cannot be read.
    Token(Result<Token, String>),
    /// The proof that it is an instance of EC2, to the coordinator of this authority, or why that
    /// cannot be read.
    #[cfg(feature = "ec2")]
    Instance(Result<CaCertificate, String>),
}

/// Looks at everything that a worker of these options needs; leases nothing, and changes nothing.
pub(crate) async fn all(options: &Options<WayIn>) -> Vec<Check> {
    let mut found = vec![checks::git().await];
    found.extend(folder(options));
    found.extend([
        checks::open_files(),
        checks::cgroup(),
        checks::sandbox(),
        agents(options).await,
    ]);
    let (joining, clock) = joining(options).await;
    found.push(clock);
    found.extend(joining);
    found
}

/// Looks at what takes no time and keeps a worker from its work, apart from its folder, which it is
/// about to take.
pub(crate) async fn at_start<T>(options: &Options<T>) -> Vec<Check> {
    vec![
        checks::git().await,
        space(&checks::existing(folder_of(options)), options),
        checks::open_files(),
        checks::clock(Timestamp::now()),
    ]
}

/// Tells whether what fails may be otherwise in a moment, so that a worker waits for it.
pub(crate) fn may_pass(check: &Check) -> bool {
    // A clock is set once a network is there, a disk is tidied.
    [SPACE, "clock"].contains(&check.name)
}

/// Tells whether nothing fails.
pub(crate) fn is_ready(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.verdict != Verdict::Fail)
}

/// Writes a table, and below it what to do.
pub(crate) fn text(checks: &[Check]) -> String {
    let width = |cell: fn(&Check) -> usize| checks.iter().map(cell).max().unwrap_or_default();
    let name = width(|check| check.name.len()).max("CHECK".len());
    let mut text = format!("{:name$}        FOUND\n", "CHECK");
    for check in checks {
        let found = check.found.replace(char::is_control, " ");
        text.push_str(&format!(
            "{:name$}  {:4}  {found}\n",
            check.name,
            check.verdict.as_str()
        ));
    }
    for check in checks.iter().filter(|check| !check.advice.is_empty()) {
        text.push_str(&format!("\n{}: {}\n", check.name, check.advice));
    }
    text
}

/// Gives the checks for programs, in one line.
pub(crate) fn json(checks: &[Check]) -> String {
    let listed: Vec<_> = checks.iter().map(Check::to_json).collect();
    json!({ "checks": listed }).to_string()
}

fn folder_of<T>(options: &Options<T>) -> &Path {
    let (StateDir::At(folder) | StateDir::Within(folder) | StateDir::Scratch(folder)) =
        &options.state;
    folder
}

/// Looks at the disk of the state.
fn folder<T>(options: &Options<T>) -> Vec<Check> {
    const NAME: &str = "state";
    const ADVICE: &str = "name a folder that you may write with --state-dir";
    let folder = folder_of(options);
    let there = checks::existing(folder);
    let state = match identity::look(&options.state) {
        Ok(()) => checks::writable(NAME, folder, &there, ADVICE),
        Err(error) => Check::fail(NAME, chain(&error), error.way_out().unwrap_or(ADVICE)),
    };
    let mut found = vec![state, space(&there, options)];
    found.extend(cache(&there, &options.state));
    found
}

/// Looks at the cache's disk, if that is another one.
fn cache(state: &Path, options: &StateDir) -> Option<Check> {
    const NAME: &str = "cache";
    let cache = identity::cache_of(options, &identity::host_name());
    let device = |folder: &Path| std::fs::metadata(folder).map(|found| found.dev()).ok();
    let own = device(&cache).filter(|own| Some(*own) != device(state));
    own?;
    let shown = |room: &disk::Room| format!("{} at {}", Gib(room.bytes), cache.display());
    Some(match disk::room(&cache) {
        Ok(room) if room.bytes < FREE_BYTES_MIN => Check::fail(
            NAME,
            shown(&room),
            "make room there: what nobody borrows from may be deleted at any time, and a worker takes \
             nothing until there is some",
        ),
        Ok(room) => Check::ok(NAME, shown(&room)),
        Err(error) => Check::warn(NAME, error, "see whether there is space with `df`"),
    })
}

/// Compares what is free with what attempts and cache may take.
fn space<T>(there: &Path, options: &Options<T>) -> Check {
    let room = match disk::room(there) {
        Ok(room) => room,
        Err(error) => {
            return Check::warn(SPACE, error, "see whether there is space with `df`");
        }
    };
    let wanted = u64::from(options.slots).saturating_mul(options.disk_bytes_max);
    let wanted = wanted.saturating_add(options.cache_bytes_max);
    let files = room.files.map(|files| format!(", {files} files"));
    let shown = format!("{}{}", Gib(room.bytes), files.unwrap_or_default());
    let least = FREE_BYTES_MIN.saturating_add(options.disk_reserve_bytes);
    let mut check = if room.bytes < least || room.files == Some(0) {
        Check::fail(
            SPACE,
            shown,
            "make room, or name a folder on another disk with --state-dir: a worker takes nothing \
             until there is some",
        )
    } else if room.bytes < wanted {
        Check::warn(
            SPACE,
            format!(
                "{shown}; attempts ({}, of {} each) and {} of cache may take more",
                options.slots,
                Gib(options.disk_bytes_max),
                Gib(options.cache_bytes_max)
            ),
            "lower --slots, --disk-limit or --cache-limit, or make room",
        )
    } else if room.files.is_some_and(|files| files < checks::INODES_WARN) {
        Check::warn(SPACE, shown, "few files can be made: make room")
    } else {
        Check::ok(SPACE, shown)
    };
    check.bytes = [("free", room.bytes), ("wanted", wanted)].into();
    check
}

/// Bytes as people read them.
struct Gib(u64);

impl fmt::Display for Gib {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 30 {
            0 => write!(out, "{} MiB", self.0 >> 20),
            whole => write!(out, "{whole}.{} GiB", ((self.0 >> 20) % 1024) * 10 / 1024),
        }
    }
}

/// Looks for agents and asks them for their versions.
async fn agents<T>(options: &Options<T>) -> Check {
    const NAME: &str = "agents";
    const ADVICE: &str =
        "put it onto the PATH of the worker, or name it: --agent codex=/opt/codex/bin/codex";
    let overrides = options.agents.clone();
    let looking = tokio::task::spawn_blocking(move || {
        let own = |name: &str| std::env::var(name).ok();
        let missing: Vec<String> = overrides
            .iter()
            .filter(|(_, command)| {
                let word = command.first();
                word.is_none_or(|word| !agent::is_there(word, &own))
            })
            .map(|(name, command)| format!("{name} ({})", command.join(" ")))
            .collect();
        let found = agent::offers(&own, &overrides, agent::Asking::Versions);
        (missing, found)
    });
    let Ok((missing, found)) = looking.await else {
        return Check::warn(NAME, "looking for them has failed", ADVICE);
    };
    let listed: Vec<String> = found
        .iter()
        // Tasks with `run` need none.
        .filter(|offer| !offer.program.is_empty() && offer.name != COMMAND)
        .map(|offer| format!("{} {} at {}", offer.name, offer.version, offer.program))
        .collect();
    if !missing.is_empty() {
        return Check::fail(NAME, format!("not there: {}", missing.join(", ")), ADVICE);
    }
    if listed.is_empty() {
        return Check::ok(NAME, "none: only tasks with `run` can be done");
    }
    Check::ok(NAME, listed.join(", "))
}

/// Asks the coordinator whether it would let this worker in, and compares the clocks.
async fn joining(options: &Options<WayIn>) -> (Vec<Check>, Check) {
    let own = checks::clock(Timestamp::now());
    let token = match &options.token {
        WayIn::Token(Ok(token)) => token,
        WayIn::Token(Err(error)) => {
            let advice = "put the token there with `install -m 0600 /dev/stdin`, as the user that the \
                          worker runs as, or name its file with --token-file";
            let asked = "not asked, since that needs a token";
            let found = vec![
                Check::fail(TOKEN, error, advice),
                Check::warn(COORDINATOR, asked, "mend the token first"),
            ];
            return (found, own);
        }
        #[cfg(feature = "ec2")]
        WayIn::Instance(ca) => return (instance(options, ca).await, own),
    };
    let connected = connect(options, token).await;
    let (address, mut client) = match connected {
        Ok(connected) => connected,
        Err(error) => return (vec![unreachable(&error)], own),
    };
    let asked = Timestamp::now();
    let request = CheckInRequest {
        version: Some(ProtocolVersion::current(SOFTWARE)),
        pool: options.pool.clone(),
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, client.check_in(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::unavailable("no answer in time")));
    let answer = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => return (refused(&address, &status), own),
    };
    let software = answer.version.map(|version| version.software);
    let software = software.unwrap_or_default();
    let found = vec![
        Check::ok(COORDINATOR, format!("{software} at {address}")),
        Check::ok(TOKEN, format!("taken, for pool {:?}", answer.pool)),
    ];
    let theirs = answer
        .now
        .and_then(|now| Timestamp::new(now.seconds, now.nanos).ok());
    let clock = match theirs {
        Some(theirs) if own.verdict == Verdict::Ok => compared(asked, theirs, Timestamp::now()),
        _ => own,
    };
    (found, clock)
}

/// Compares the coordinator's clock with this one's before the question and after the answer.
fn compared(asked: Timestamp, theirs: Timestamp, answered: Timestamp) -> Check {
    let off = match (theirs < asked, theirs > answered) {
        (true, _) => asked.duration_since(theirs),
        (_, true) => theirs.duration_since(answered),
        _ => jiff::SignedDuration::ZERO,
    };
    let seconds = off.unsigned_abs().as_secs();
    let way = if theirs < asked { "ahead of" } else { "behind" };
    match seconds {
        0 => Check::ok("clock", format!("{answered}, as the coordinator's")),
        1..=CLOCKS_DIFFER_WARN => Check::ok(
            "clock",
            format!("{answered}, {seconds} s {way} the coordinator's"),
        ),
        _ => Check::warn(
            "clock",
            format!("{answered}, {seconds} s {way} the coordinator's"),
            "set the wrong one: far enough off, a certificate is not valid",
        ),
    }
}

/// Looks whether an instance can prove what it is, and reach the coordinator that it would prove it to.
/// The token is not claimed: that is the beginning of its allocation's life.
#[cfg(feature = "ec2")]
async fn instance(options: &Options<WayIn>, ca: &Result<CaCertificate, String>) -> Vec<Check> {
    let ca = match ca {
        Ok(ca) => ca.clone(),
        Err(error) => {
            let advice = "copy `ca.pem` from the coordinator's home, and name it with --ca-file";
            return vec![Check::fail(COORDINATOR, error, advice)];
        }
    };
    let proven = crate::ec2::prove(&crate::ec2::Metadata::new(), ca.fingerprint()).await;
    let token = match proven {
        Ok(instance) => Check::ok(
            TOKEN,
            format!("not claimed; as {instance} it asks for one when it starts"),
        ),
        Err(error) => Check::fail(
            TOKEN,
            chain(&error),
            "give the instance a profile and its metadata service, version 2: without them it cannot \
             prove what it is",
        ),
    };
    let Coordinator::Address(address) = &options.coordinator else {
        return vec![token];
    };
    let reached = async {
        Endpoint::new(address, ca)?.channel().await?;
        Ok::<_, Unreachable>(())
    };
    let coordinator = match reached.await {
        Ok(()) => Check::ok(COORDINATOR, format!("at {address}")),
        Err(error) => unreachable(&error),
    };
    vec![token, coordinator]
}

type Client = WorkerServiceClient<muster_connect::AuthorizedChannel>;

/// Finds the coordinator by the token alone; what an earlier start stored is not asked.
async fn connect(options: &Options<WayIn>, token: &Token) -> Result<(String, Client), Unreachable> {
    let address = match &options.coordinator {
        Coordinator::Address(address) => address.clone(),
        Coordinator::Home(home) => AddressFile::read(home)?.address,
    };
    let ca = bootstrap_ca(&address, token.ca, ANSWER_LIMIT).await?;
    let endpoint = Endpoint::new(&address, ca)?;
    let channel = endpoint.authorized(Bearer::token(token)?).await?;
    Ok((address, WorkerServiceClient::new(channel)))
}

/// Why the coordinator cannot be asked.
#[derive(Debug, thiserror::Error)]
enum Unreachable {
    #[error(transparent)]
    AddressFile(#[from] AddressFileError),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

fn unreachable(error: &Unreachable) -> Check {
    let advice = match error {
        Unreachable::Bootstrap(BootstrapError::WrongCoordinator { .. }) => {
            "the token is one of another coordinator, or of one whose home was made anew: make \
             another with `coordinator token create --role worker`"
        }
        Unreachable::Bootstrap(
            BootstrapError::NotValidYet { .. } | BootstrapError::Expired { .. },
        ) => "set the wrong clock",
        _ => {
            "see whether `coordinator serve` runs, whether it listens at an address that others \
             reach (--listen), and whether a firewall lets this machine through"
        }
    };
    Check::fail(COORDINATOR, chain(error), advice)
}

/// Says what an answer means that is not the wanted one.
fn refused(address: &str, status: &Status) -> Vec<Check> {
    let reached = Check::ok(COORDINATOR, format!("at {address}"));
    let said = status.message();
    match status.code() {
        // It is older, and there all the same.
        Code::Unimplemented => vec![
            reached,
            Check::warn(
                TOKEN,
                "the coordinator is too old to say whether it takes it",
                "update the coordinator first, then its workers; the two work together meanwhile",
            ),
        ],
        Code::Unauthenticated | Code::PermissionDenied => vec![
            reached,
            Check::fail(
                TOKEN,
                said,
                "make a new one with `coordinator token create --role worker`, and name its pool",
            ),
        ],
        Code::FailedPrecondition => vec![Check::fail(
            COORDINATOR,
            format!("at {address}: {said}"),
            "update the older of the two",
        )],
        code => vec![Check::fail(
            COORDINATOR,
            format!("at {address}: {said} ({code:?})"),
            "try again; its log says more",
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_compared_with_the_time_that_the_question_took() {
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
        let within = compared(at(0), at(3), at(5));
        assert_eq!(within.verdict, Verdict::Ok);
        assert!(within.found.ends_with("as the coordinator's"));
        let ahead = compared(at(100), at(0), at(101));
        assert_eq!(ahead.verdict, Verdict::Warn);
        assert!(ahead.found.contains("100 s ahead of"), "{}", ahead.found);
        let behind = compared(at(0), at(31), at(1));
        assert_eq!(behind.verdict, Verdict::Ok);
        assert!(behind.found.contains("30 s behind"), "{}", behind.found);
    }

    #[test]
    fn an_older_coordinator_is_no_fault_and_a_refused_token_is() {
        let old = refused("head:7733", &Status::unimplemented("no such method"));
        assert!(is_ready(&old));
        for status in [Status::unauthenticated("x"), Status::permission_denied("x")] {
            let found = refused("head:7733", &status);
            assert!(!is_ready(&found));
            assert!(
                text(&found).contains("token        fail  x"),
                "{}",
                text(&found)
            );
        }
        let other = refused("head:7733", &Status::failed_precondition("protocol"));
        assert!(!is_ready(&other) && !may_pass(&other[0]));
    }
}
