//! What `squeue` says, in the forms of several versions of Slurm.
//!
//! The JSON form changed its shapes: a state was a word and became a list of words, numbers became
//! objects that may be unset or infinite. The text form is older than all of them, and smaller.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use crate::pool::provider::{OrderName, Sighted, Sighting};

/// Columns of the text form. Names of jobs may hold the separator, hence they come last.
pub(crate) const COLUMNS: &str = "%i|%T|%r|%N|%j";
const HEADER: &str = "JOBID|STATE|REASON|NODELIST|NAME";
/// More tasks than any cluster allows in one array.
const TASKS_MAX: u32 = 4_000_000;
/// Entries that a list may have after its arrays were unfolded.
const JOBS_MAX: usize = 1_000_000;
/// Numbers from here on say that there is none, or infinitely many.
const NONE_FROM: u64 = 0xFFFF_FFFE;

/// Why an answer is no list.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("the answer is no JSON of squeue: {0}")]
    Json(String),
    #[error("squeue says: {0}")]
    Said(String),
    #[error("line {line} of the answer of squeue is not understood: {text:?}")]
    Line { line: usize, text: String },
    #[error("the answer of squeue is empty")]
    Empty,
    #[error("the tasks of the array {0:?} are not told in full")]
    Folded(String),
    #[error("squeue tells of more than {JOBS_MAX} jobs of this pool")]
    TooMany,
}

/// Whose jobs are looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whose<'a> {
    pub(crate) home: &'a str,
    pub(crate) pool: &'a str,
    /// The user that submits; of the same name there may be jobs of others.
    pub(crate) user: u32,
}

impl Whose<'_> {
    fn name(&self, text: &str) -> Option<OrderName> {
        let name = OrderName::parse(text)?;
        (*name.home == *self.home && *name.pool == *self.pool).then_some(name)
    }
}

#[derive(Deserialize)]
struct Listing {
    jobs: Vec<Job>,
    #[serde(default)]
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Deserialize)]
struct Job {
    #[serde(default)]
    job_id: Number,
    #[serde(default)]
    array_job_id: Number,
    #[serde(default)]
    array_task_id: Number,
    #[serde(default)]
    array_task_string: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    job_state: Words,
    #[serde(default)]
    state_reason: Option<String>,
    #[serde(default)]
    nodes: Option<String>,
    #[serde(default)]
    batch_host: Option<String>,
    #[serde(default)]
    user_id: Number,
    #[serde(default)]
    exit_code: Option<ExitCode>,
}

/// A number, in each shape there was.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Number {
    Plain(u64),
    Object {
        #[serde(default)]
        set: bool,
        #[serde(default)]
        infinite: bool,
        #[serde(default)]
        number: u64,
    },
    #[default]
    Absent,
    Other(serde::de::IgnoredAny),
}

impl Number {
    fn get(&self) -> Option<u64> {
        match self {
            Self::Plain(number) => Some(*number),
            Self::Object {
                set: true,
                infinite: false,
                number,
            } => Some(*number),
            Self::Object { .. } | Self::Absent | Self::Other(_) => None,
        }
        .filter(|number| *number < NONE_FROM)
    }
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
    #[default]
    None,
    Other(serde::de::IgnoredAny),
}

impl Words {
    fn list(&self) -> Vec<&str> {
        match self {
            Self::One(word) => word
                .split([',', '+', ' '])
                .filter(|w| !w.is_empty())
                .collect(),
            Self::Many(words) => words.iter().map(String::as_str).collect(),
            Self::None | Self::Other(_) => Vec::new(),
        }
    }
}

/// How a job's script ended: as `wait` tells it, or taken apart.
#[derive(Deserialize)]
#[serde(untagged)]
enum ExitCode {
    Raw(u64),
    Parts {
        #[serde(default)]
        return_code: Number,
        #[serde(default)]
        signal: Option<EndSignal>,
    },
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct EndSignal {
    #[serde(default, alias = "signal_id")]
    id: Number,
}

impl ExitCode {
    fn text(&self) -> Option<String> {
        let (code, signal) = match self {
            Self::Raw(raw) => (raw >> 8 & 0xFF, raw & 0x7F),
            Self::Parts {
                return_code,
                signal,
            } => (
                return_code.get().unwrap_or(0),
                signal.as_ref().and_then(|s| s.id.get()).unwrap_or(0),
            ),
            Self::Other(_) => return None,
        };
        match (code, signal) {
            (0, 0) => None,
            (code, 0) => Some(format!("exit code {code}")),
            (_, signal) => Some(format!("signal {signal}")),
        }
    }
}

/// Reads the JSON form.
pub(crate) fn json(answer: &[u8], whose: Whose<'_>) -> Result<Vec<Sighting>, Error> {
    if answer.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::Empty);
    }
    // Names of jobs are bytes, and older versions tell of everybody's.
    let listing: Listing = serde_json::from_str(&String::from_utf8_lossy(answer))
        .map_err(|error| Error::Json(super::login::plain(&error.to_string())))?;
    // A controller that does not answer gives no jobs, these words, and exit code 0.
    if let Some(complaint) = listing.errors.first() {
        let parts = [&complaint.description, &complaint.error];
        let said: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        return Err(Error::Said(super::login::plain(&said.join(": "))));
    }
    let mut sightings = Vec::new();
    for job in &listing.jobs {
        let Some(name) = job.name.as_deref().and_then(|name| whose.name(name)) else {
            continue;
        };
        let user = job.user_id.get();
        if user.is_some_and(|user| user != u64::from(whose.user)) {
            continue;
        }
        let Some(id) = job.job_id.get().filter(|id| *id > 0) else {
            return Err(Error::Json(format!("job {name} has no id")));
        };
        let host = [&job.nodes, &job.batch_host].into_iter().flatten();
        let host = host.map(String::as_str).find(|host| !host.is_empty());
        let reason = job.state_reason.as_deref().unwrap_or_default();
        let exit = job.exit_code.as_ref().and_then(ExitCode::text);
        let state = state(
            &job.job_state.list(),
            host.unwrap_or_default(),
            reason,
            exit,
        );
        let array = job.array_job_id.get().filter(|id| *id > 0);
        let folded = job.array_task_string.as_deref().filter(|s| !s.is_empty());
        let tasks = match (array, job.array_task_id.get(), folded) {
            (None, _, _) => None,
            (Some(array), Some(task), _) => {
                let task = u32::try_from(task).ok().filter(|task| *task < TASKS_MAX);
                let task =
                    task.ok_or_else(|| Error::Json(format!("job {name} has a wild task")))?;
                Some((array, vec![task]))
            }
            (Some(array), None, Some(folded)) => Some((array, unfold(folded)?)),
            (Some(_), None, None) => return Err(Error::Folded(name.to_string())),
        };
        match tasks {
            None => sightings.push(sighting(id.to_string(), name, 0, state)),
            Some((array, tasks)) => {
                for task in tasks {
                    let external = format!("{array}_{task}");
                    sightings.push(sighting(external, name.clone(), task, state.clone()));
                }
            }
        }
        if sightings.len() > JOBS_MAX {
            return Err(Error::TooMany);
        }
    }
    Ok(sightings)
}

/// Reads the text form, with its header: without one an empty list could not be told from nothing.
/// The list was asked for one user's jobs, of which others may have any name: a line that cannot be of
/// this home's is nobody's business, unless the answer breaks off there.
pub(crate) fn text(answer: &str, whose: Whose<'_>) -> Result<Vec<Sighting>, Error> {
    let mut lines = answer.lines().enumerate();
    let line = |(index, text): (usize, &str)| Error::Line {
        line: index + 1,
        text: super::login::plain(text),
    };
    match lines.next() {
        None => return Err(Error::Empty),
        Some((_, HEADER)) => {}
        Some(other) => return Err(line(other)),
    }
    if let Some(last) = lines.clone().last().filter(|_| !answer.ends_with('\n')) {
        return Err(line(last));
    }
    let marker = format!("muster-{}-", whose.home);
    let mut sightings = Vec::new();
    for (index, text) in lines {
        let Some((job, task, word, reason, host, name)) = columns(text) else {
            if text.contains(&marker) {
                return Err(line((index, text)));
            }
            continue;
        };
        let Some(name) = whose.name(name) else {
            continue;
        };
        let state = state(&[word], host, reason, None);
        let Some(task) = task else {
            sightings.push(sighting(job.to_string(), name, 0, state));
            continue;
        };
        let folded = task
            .strip_prefix('[')
            .and_then(|task| task.strip_suffix(']'));
        for task in unfold(folded.unwrap_or(task))? {
            let external = format!("{job}_{task}");
            sightings.push(sighting(external, name.clone(), task, state.clone()));
        }
        if sightings.len() > JOBS_MAX {
            return Err(Error::TooMany);
        }
    }
    Ok(sightings)
}

type Columns<'a> = (u64, Option<&'a str>, &'a str, &'a str, &'a str, &'a str);

/// Takes a line apart: job, task of its array, state, reason, nodes and name.
fn columns(line: &str) -> Option<Columns<'_>> {
    let mut columns = line.splitn(5, '|');
    let id = columns.next()?;
    let (word, reason, host) = (columns.next()?, columns.next()?, columns.next()?);
    let name = columns.next()?;
    let (job, task) = match id.split_once('_') {
        Some((job, task)) => (job, Some(task)),
        None => (id, None),
    };
    Some((job.parse().ok()?, task, word, reason, host, name))
}

fn sighting(external: String, name: OrderName, index: u32, state: Sighted) -> Sighting {
    Sighting {
        external: external.into(),
        name,
        index,
        state,
    }
}

/// Says what a job's states mean for an allocation. Slurm gives one base state and some flags.
fn state(words: &[&str], host: &str, reason: &str, exit: Option<String>) -> Sighted {
    let words: Vec<String> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
    let has = |names: &[&str]| words.iter().any(|word| names.contains(&word.as_str()));
    if has(&["COMPLETING", "STAGE_OUT"]) {
        return Sighted::Ending;
    }
    if has(&[
        "PENDING",
        "CONFIGURING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "SPECIAL_EXIT",
    ]) {
        if is_held(reason) {
            let reason = super::login::plain(reason).into();
            return Sighted::Held { reason };
        }
        return Sighted::Queued;
    }
    // One that is suspended holds its node and comes back.
    if has(&["RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"]) {
        return Sighted::Running { host: host.into() };
    }
    const ENDED: [&str; 10] = [
        "COMPLETED",
        "FAILED",
        "TIMEOUT",
        "CANCELLED",
        "NODE_FAIL",
        "PREEMPTED",
        "OUT_OF_MEMORY",
        "BOOT_FAIL",
        "DEADLINE",
        "LAUNCH_FAILED",
    ];
    // With a word that nobody knows, nothing is sure.
    let known = words.iter().all(|word| ENDED.contains(&word.as_str()));
    if words.is_empty() || !known {
        return Sighted::Unknown;
    }
    let reason = Some(reason).filter(|reason| !matches!(*reason, "" | "None"));
    let more: Vec<String> = reason
        .map(super::login::plain)
        .into_iter()
        .chain(exit)
        .collect();
    let detail = match more.is_empty() {
        true => words.join(" "),
        false => format!("{} ({})", words.join(" "), more.join(", ")),
    };
    Sighted::Ended {
        detail: detail.into(),
    }
}

/// Tells whether a job that waits for this reason waits until somebody does something about it. Of
/// reasons that nobody knows it is taken that they pass.
fn is_held(reason: &str) -> bool {
    // One form of the list writes `_` where the other has spaces.
    let reason = reason.replace('_', " ").to_ascii_lowercase();
    const HELD: [&str; 8] = [
        "jobheldadmin",
        "jobhelduser",
        "badconstraints",
        "dependencyneversatisfied",
        "invalidaccount",
        "invalidqos",
        "partitiontimelimit",
        "partitionnodelimit",
    ];
    // `launch failed requeued held`, `job requeued in held state`, and more of the kind.
    HELD.contains(&&*reason) || reason.contains("requeued held") || reason.contains("held state")
}

/// Gives the indices that a folded array stands for: `0-3,7,10-20:5%4`.
fn unfold(folded: &str) -> Result<Vec<u32>, Error> {
    let wrong = || Error::Folded(super::login::plain(folded));
    let (list, _at_once) = folded.split_once('%').unwrap_or((folded, ""));
    let mut tasks = Vec::new();
    for part in list.split(',') {
        let (range, step) = match part.split_once(':') {
            Some((range, step)) => (range, step.parse().map_err(|_| wrong())?),
            None => (part, 1_u32),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: u32 = first.parse().map_err(|_| wrong())?;
        let last: u32 = last.parse().map_err(|_| wrong())?;
        if step == 0 || last >= TASKS_MAX || first > last {
            return Err(wrong());
        }
        let step = usize::try_from(step).map_err(|_| wrong())?;
        tasks.extend((first..=last).step_by(step));
        if tasks.len() > JOBS_MAX {
            return Err(wrong());
        }
    }
    Ok(tasks)
}

/// Reads lines of a node's name and its host's, and gives the names of nodes on `hosts`.
pub(crate) fn nodes(text: &str, hosts: &[Arc<str>]) -> BTreeSet<Arc<str>> {
    let mut names = BTreeSet::new();
    let mut on_host: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(host)) = (words.next(), words.next()) {
            names.insert(name);
            on_host.entry(host).or_default().insert(name);
        }
    }
    let find = |host: &str| -> Option<Arc<str>> {
        let short = host.split('.').next().unwrap_or(host);
        for host in [host, short] {
            if let Some(name) = names.get(host) {
                return Some((*name).into());
            }
            let several = on_host.get(host).filter(|names| names.len() == 1);
            if let Some(name) = several.and_then(BTreeSet::first) {
                return Some((*name).into());
            }
        }
        None
    };
    hosts.iter().filter_map(|host| find(host)).collect()
}

#[cfg(test)]
mod tests {
    use coordinator_core::AllocationId;
    use proptest::prelude::*;

    use super::*;

    const WHOSE: Whose<'_> = Whose {
        home: "3f9a1c20",
        pool: "debug",
        user: 0,
    };

    fn shown(sightings: &[Sighting]) -> Vec<String> {
        let mut shown: Vec<String> = sightings
            .iter()
            .map(|s| format!("{} {}.{} {:?}", s.external, s.name.first, s.index, s.state))
            .collect();
        shown.sort();
        shown
    }

    fn read(text: &str) -> Vec<String> {
        shown(&json(text.as_bytes(), WHOSE).unwrap())
    }

    /// Those of one array whose task 3 was cancelled while it waited, and one job that runs.
    const FOLDED: [&str; 6] = [
        "11 A21.0 Running { host: \"n1\" }",
        "1_0 A20.0 Held { reason: \"JobHeldUser\" }",
        "1_1 A20.1 Held { reason: \"JobHeldUser\" }",
        "1_2 A20.2 Held { reason: \"JobHeldUser\" }",
        "1_4 A20.4 Held { reason: \"JobHeldUser\" }",
        "1_5 A20.5 Held { reason: \"JobHeldUser\" }",
    ];

    #[test]
    fn a_captured_queue_of_22_05_says_the_same_in_both_forms() {
        let of_json = read(include_str!("captures/squeue-22.05.json"));
        assert_eq!(of_json, FOLDED);
        let of_text = text(include_str!("captures/squeue-22.05.txt"), WHOSE).unwrap();
        assert_eq!(shown(&of_text), FOLDED);
        let odd = Whose {
            pool: r#"a b'c#d"e\f"#,
            ..WHOSE
        };
        let running = ["12 or 9_0", "9_2"].len();
        let of_json = json(include_bytes!("captures/squeue-22.05.json"), odd).unwrap();
        let of_text = text(include_str!("captures/squeue-22.05.txt"), odd).unwrap();
        assert_eq!(of_json.len(), running);
        assert_eq!(shown(&of_json), shown(&of_text));
    }

    #[test]
    fn later_shapes_are_read_as_well() {
        let common = [
            "14 A30.0 Ended { detail: \"FAILED (NonZeroExitCode, exit code 3)\" }",
            "15 A31.0 Queued",
        ];
        let array = |third| {
            [
                "9_0 A17.0 Running { host: \"n1\" }",
                "9_1 A17.1 Ending",
                third,
            ]
        };
        for (version, text) in [
            ("24.05", include_str!("captures/squeue-24.05-by-hand.json")),
            ("23.02", include_str!("captures/squeue-23.02-by-hand.json")),
        ] {
            let mut wanted: Vec<&str> = FOLDED.to_vec();
            wanted.extend(common);
            wanted.extend(array("9_2 A17.2 Queued"));
            wanted.sort_unstable();
            // The job of another user that bears a name of ours is none of ours.
            assert_eq!(read(text), wanted, "{version}");
        }
    }

    #[test]
    fn a_controller_that_does_not_answer_is_not_an_empty_queue() {
        let answer = include_bytes!("captures/squeue-22.05-no-controller.json");
        let said = Error::Said("Failed while looking for jobs: Unspecified error".to_owned());
        assert_eq!(json(answer, WHOSE), Err(said));
        assert_eq!(json(b"", WHOSE), Err(Error::Empty));
        assert!(matches!(json(b"{}", WHOSE), Err(Error::Json(_))));
        assert!(matches!(json(b"{\"jobs\": [{", WHOSE), Err(Error::Json(_))));
        assert_eq!(json(b"{\"jobs\": []}", WHOSE), Ok(vec![]));
        assert_eq!(text("", WHOSE), Err(Error::Empty));
        assert!(matches!(
            text("slurm is down", WHOSE),
            Err(Error::Line { line: 1, .. })
        ));
        assert_eq!(text(&format!("{HEADER}\n"), WHOSE), Ok(vec![]));
        let cut = format!("{HEADER}\n7|RUNNING|No");
        assert!(matches!(
            text(&cut, WHOSE),
            Err(Error::Line { line: 2, .. })
        ));
    }

    #[test]
    fn names_of_other_jobs_can_be_anything() {
        let other = |name: &[u8]| {
            let before = br#"{"jobs": [{"job_id": 4, "user_id": 7, "name": ""#;
            let after = br#"", "job_state": "RUNNING"}, {"job_id": 5, "user_id": 0,
                "name": "muster-3f9a1c20-8-debug", "job_state": "PENDING"}]}"#;
            json(&[before, name, after].concat(), WHOSE)
        };
        for name in [&b"caf\xe9"[..], b"\xff\xfe", b"a\\nb"] {
            let listed = other(name).map(|listed| shown(&listed));
            assert_eq!(listed, Ok(vec!["5 A8.0 Queued".to_owned()]), "{name:?}");
        }
        let listed = |lines: &str| text(&format!("{HEADER}\n{lines}\n"), WHOSE);
        let ours = "5|PENDING|Priority||muster-3f9a1c20-8-debug";
        let broken = listed(&format!("4|RUNNING|None|n1|a\n\nb|c\nx|1|2|3|4\n{ours}"));
        assert_eq!(broken.map(|listed| listed.len()), Ok(1));
        for wrong in ["x|", "muster-3f9a1c20-9-debug\n", "7x_1|"] {
            let wrong = listed(&format!("{ours}\n{wrong}{}", &ours[2..]));
            assert!(
                matches!(wrong, Err(Error::Line { line: 3, .. })),
                "{wrong:?}"
            );
        }
        let cut = format!("{HEADER}\n{ours}\n4|RUNNING");
        assert!(matches!(
            text(&cut, WHOSE),
            Err(Error::Line { line: 3, .. })
        ));
    }

    #[test]
    fn what_waits_for_a_person_is_held_and_what_waits_for_its_turn_is_not() {
        let meaning = |reason: &str| state(&["PENDING"], "", reason, None);
        for reason in [
            "JobHeldUser",
            "JobHeldAdmin",
            "BadConstraints",
            "DependencyNeverSatisfied",
            "launch failed requeued held",
            "launch_failed_requeued_held",
            "job requeued in held state",
            "PartitionTimeLimit",
        ] {
            let held = Sighted::Held {
                reason: reason.into(),
            };
            assert_eq!(meaning(reason), held);
        }
        for reason in [
            "",
            "None",
            "Resources",
            "Priority",
            "BeginTime",
            "Dependency",
            "?",
        ] {
            assert_eq!(meaning(reason), Sighted::Queued, "{reason}");
        }
    }

    #[test]
    fn each_state_of_slurm_has_a_meaning_and_others_have_none() {
        let meaning = |words: &[&str]| state(words, "n1", "None", None);
        for queued in [
            "PENDING",
            "CONFIGURING",
            "REQUEUED",
            "REQUEUE_HOLD",
            "SPECIAL_EXIT",
        ] {
            assert_eq!(meaning(&[queued]), Sighted::Queued, "{queued}");
        }
        for running in ["RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "running"] {
            let here = Sighted::Running { host: "n1".into() };
            assert_eq!(meaning(&[running]), here, "{running}");
        }
        for ended in [
            "COMPLETED",
            "FAILED",
            "TIMEOUT",
            "CANCELLED",
            "NODE_FAIL",
            "PREEMPTED",
            "OUT_OF_MEMORY",
            "BOOT_FAIL",
            "DEADLINE",
        ] {
            let detail = ended.into();
            assert_eq!(meaning(&[ended]), Sighted::Ended { detail }, "{ended}");
            assert_eq!(meaning(&[ended, "COMPLETING"]), Sighted::Ending, "{ended}");
            assert_eq!(meaning(&[ended, "REQUEUED"]), Sighted::Queued, "{ended}");
            assert_eq!(
                meaning(&[ended, "SINGULARITY"]),
                Sighted::Unknown,
                "{ended}"
            );
        }
        for unknown in [&["UNKNOWN"][..], &["REVOKED"], &[], &["?"]] {
            assert_eq!(meaning(unknown), Sighted::Unknown, "{unknown:?}");
        }
    }

    #[test]
    fn arrays_are_unfolded_unless_they_are_cut_short_or_wild() {
        assert_eq!(
            unfold("0-3,7,10-20:5%4"),
            Ok(vec![0, 1, 2, 3, 7, 10, 15, 20])
        );
        assert_eq!(unfold("5"), Ok(vec![5]));
        assert_eq!(unfold("0-999").map(|tasks| tasks.len()), Ok(1_000));
        for wrong in [
            "",
            "1-3,5,...",
            "3-1",
            "0-9:0",
            "0-4000000000",
            "a",
            "0xff",
            "1-",
        ] {
            assert!(matches!(unfold(wrong), Err(Error::Folded(_))), "{wrong}");
        }
    }

    #[test]
    fn jobs_are_told_apart_by_name_alone_since_ids_wrap() {
        let listed = format!(
            "{HEADER}\n67043327|RUNNING|None|n1|muster-3f9a1c20-8-debug\n\
             1|PENDING|Priority||muster-3f9a1c20-9-debug\n\
             2_0|PENDING|Priority||muster-3f9a1c20-09-debug\n\
             3|RUNNING|None|n2|muster-3f9a1c20-9-debug2\n\
             4|RUNNING|None|n2|my|odd|name\n"
        );
        let firsts = text(&listed, WHOSE).unwrap();
        let firsts: Vec<_> = firsts.iter().map(|s| s.name.first).collect();
        assert_eq!(firsts, [AllocationId(8), AllocationId(9)]);
    }

    #[test]
    fn hosts_are_named_as_slurm_names_its_nodes() {
        let text = "n1 n1\nn1 n1\nc2 node-2\nv1 vm\nv2 vm\n";
        let find = |host: &str| -> Vec<String> {
            let found = nodes(text, &[host.into()]);
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(find("n1"), ["n1"]);
        assert_eq!(find("n1.cluster.example"), ["n1"]);
        assert_eq!(find("node-2"), ["c2"]);
        assert_eq!(find("vm"), [""; 0], "several nodes");
        assert_eq!(find("laptop"), [""; 0]);
    }

    proptest! {
        #[test]
        fn no_answer_can_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300),
            line in "[0-9]{0,9}_?\\[?[0-9,%:-]{0,12}\\]?\\|[A-Z]{0,9}\\|\\PC{0,9}\\|\\|muster-3f9a1c20-1-debug") {
            let _ = json(&bytes, WHOSE);
            let _ = text(&String::from_utf8_lossy(&bytes), WHOSE);
            let _ = text(&format!("{HEADER}\n{line}\n"), WHOSE);
        }
    }
}
