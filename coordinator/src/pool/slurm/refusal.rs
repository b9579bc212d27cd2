//! What `sbatch` answers: an id, a no, or nothing that one can rely on.

use super::login::Answer;
use crate::pool::provider::Error;

/// Words of troubles between `sbatch` and the controller: the job may be there, or asking again may
/// be answered otherwise.
const UNCLEAR: [&str; 16] = [
    "unable to contact slurm",
    "timed out",
    "timeout",
    "connection refused",
    "connection reset",
    "connection failure",
    "connect failure",
    "not connected",
    "zero bytes were transmitted",
    "message receive failure",
    "unexpected message",
    "unspecified error",
    "standby mode",
    "authentication",
    "munge",
    "no route to host",
];

/// Words of limits on how many jobs there may be, as Slurm names them: asking again later may be answered
/// otherwise. Those of a single job's size bear other names.
const FULL: [&str; 4] = [
    "maxsubmitjob",
    "grpsubmitjob",
    "temporarily unable to accept job",
    "reached maximum number of jobs",
];

/// Exit code that shells and `timeout` give for what `KILL` ended.
const KILLED: i32 = 128 + 9;

/// Gives the id of the job that an order became.
pub(crate) fn submitted(answer: &Answer) -> Result<u64, Error> {
    let output = String::from_utf8_lossy(&answer.output);
    // A site's wrapper may greet first; an id stands alone on its line, with its cluster.
    let ids: Vec<u64> = output.lines().filter_map(id).collect();
    match (answer.code, ids.as_slice()) {
        (Some(0), [id]) => Ok(*id),
        (Some(0), _) => {
            let first = output.lines().next().unwrap_or_default();
            let first = super::login::plain(first);
            Err(Error::Unclear(format!(
                "sbatch answered no single id of a job, but {first:?}"
            )))
        }
        // A shell's word for one that was killed, as one is that takes too long.
        (Some(KILLED), []) => Err(Error::Unclear(format!(
            "sbatch did not end in time: {}",
            said(answer)
        ))),
        (Some(_), []) => Err(refused(answer)),
        (Some(_), _) | (None, _) => {
            let said = answer.said();
            Err(Error::Unclear(format!("sbatch was cut off: {said}")))
        }
    }
}

fn id(line: &str) -> Option<u64> {
    let line = line.trim();
    let (id, _cluster) = line.split_once(';').unwrap_or((line, ""));
    id.parse().ok().filter(|id| *id > 0)
}

fn refused(answer: &Answer) -> Error {
    let complaint = answer.complaint.to_ascii_lowercase();
    let said = said(answer);
    let is_sbatch = complaint.lines().any(|line| line.contains("sbatch: "));
    // Shells say so of a program that is not there or cannot be run.
    let is_missing = matches!(answer.code, Some(126 | 127));
    if is_missing {
        return Error::Refused(format!("sbatch cannot be run: {said}"));
    }
    if !is_sbatch || UNCLEAR.iter().any(|words| complaint.contains(words)) {
        return Error::Unclear(format!("sbatch failed: {said}"));
    }
    if FULL.iter().any(|words| complaint.contains(words)) {
        return Error::Unclear(format!("the cluster takes no more jobs now: {said}"));
    }
    Error::Refused(format!("sbatch refused: {said}"))
}

/// Gives the line that says most.
fn said(answer: &Answer) -> String {
    let mut lines = answer.complaint.lines();
    let errors = |line: &&str| line.contains("error:") || line.contains("fatal:");
    let limits = |line: &&str| {
        let line = line.to_ascii_lowercase();
        FULL.iter().any(|words| line.contains(words))
    };
    let limit = answer.complaint.lines().find(limits);
    let last = limit.or_else(|| lines.rfind(errors)).or_else(|| {
        let mut lines = answer.complaint.lines();
        lines.find(|line| line.contains("sbatch: "))
    });
    last.map_or_else(|| answer.said(), super::login::plain)
}

/// Tells whether all that `scancel` complains of is that jobs have ended already.
pub(crate) fn is_gone(answer: &Answer) -> bool {
    let mut lines = answer
        .complaint
        .lines()
        .filter(|line| !line.trim().is_empty());
    let gone = |line: &str| {
        let line = line.to_ascii_lowercase();
        [
            "invalid job id",
            "already completing",
            "already completed",
            "already finished",
        ]
        .iter()
        .any(|words| line.contains(words))
    };
    !answer.complaint.trim().is_empty() && lines.all(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: i32, output: &str, complaint: &str) -> Answer {
        Answer {
            code: Some(code),
            output: output.into(),
            complaint: complaint.to_owned(),
        }
    }

    #[test]
    fn an_id_is_read_with_its_cluster_and_behind_a_greeting() {
        let id = |output| submitted(&answer(0, output, "")).ok();
        assert_eq!(id("17\n"), Some(17));
        assert_eq!(id("17;north\n"), Some(17));
        assert_eq!(id("Welcome!\n17\n"), Some(17));
        for garbage in ["", "0\n", "17\n18\n", "Submitted batch job x", "-3"] {
            let unclear = submitted(&answer(0, garbage, ""));
            assert!(
                matches!(unclear, Err(Error::Unclear(_))),
                "{garbage}: {unclear:?}"
            );
        }
    }

    /// Each was said by Slurm 22.05, except for those of limits, which need its accounting.
    #[test]
    fn a_no_is_told_from_an_answer_that_did_not_come() {
        for no in [
            "invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition name specified",
            "Batch job submission failed: Requested node configuration is not available",
            "Batch job submission failed: Invalid feature specification",
            "Batch job submission failed: Invalid job array specification",
            "Batch job submission failed: Invalid node name specified",
            "Batch job submission failed: Invalid account or account/partition combination specified",
            "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "Invalid generic resource (gres) specification",
            "Invalid directive found in batch script: x",
        ] {
            let refused = submitted(&answer(1, "", &format!("sbatch: error: {no}\n")));
            let Err(Error::Refused(said)) = refused else {
                panic!("{no}: {refused:?}");
            };
            assert!(
                said.ends_with(
                    no.lines()
                        .last()
                        .unwrap()
                        .trim_start_matches("sbatch: error: ")
                ),
                "{said}"
            );
        }
        let usage =
            "sbatch: unrecognized option '--nope'\nTry \"sbatch --help\" for more information\n";
        let Err(Error::Refused(said)) = submitted(&answer(255, "", usage)) else {
            panic!("not refused");
        };
        assert_eq!(said, "sbatch refused: sbatch: unrecognized option '--nope'");
        for unclear in [
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
            "Segmentation fault",
            "",
        ] {
            let answer = submitted(&answer(1, "", unclear));
            assert!(
                matches!(answer, Err(Error::Unclear(_))),
                "{unclear}: {answer:?}"
            );
        }
        let killed = Answer {
            code: None,
            ..answer(0, "", "")
        };
        assert!(matches!(submitted(&killed), Err(Error::Unclear(_))));
        assert!(matches!(
            submitted(&answer(1, "17\n", "")),
            Err(Error::Unclear(_))
        ));
        let missing = submitted(&answer(127, "", "sh: 1: sbatch: not found"));
        assert!(matches!(missing, Err(Error::Refused(_))));
    }

    #[test]
    fn a_limit_on_the_number_of_jobs_is_waited_for() {
        let policy = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy \
            (job submit limit, user's size and/or time limits)\n";
        for limit in [
            "QOSMaxSubmitJobPerUserLimit",
            "AssocMaxSubmitJobLimit",
            "QOSGrpSubmitJobsLimit",
        ] {
            let complaint = format!("sbatch: error: {limit}\n{policy}");
            let Err(Error::Unclear(said)) = submitted(&answer(1, "", &complaint)) else {
                panic!("{limit}");
            };
            let wanted = format!("the cluster takes no more jobs now: sbatch: error: {limit}");
            assert_eq!(said, wanted);
        }
        // A limit on what one job may be is no matter of time.
        let complaint = format!("sbatch: error: QOSMaxWallDurationPerJobLimit\n{policy}");
        let refused = submitted(&answer(1, "", &complaint));
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        let busy = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n";
        let Err(Error::Unclear(said)) = submitted(&answer(KILLED, "", busy)) else {
            panic!("not unclear");
        };
        assert!(said.contains("temporarily unable"), "{said}");
    }

    #[test]
    fn jobs_that_are_gone_cannot_be_cancelled_and_need_not() {
        let gone = "scancel: error: Kill job error on job id 7: Invalid job id specified\n";
        assert!(is_gone(&answer(1, "", gone)));
        let away =
            "scancel: error: Kill job error on job id 1: Unable to contact slurm controller\n";
        assert!(!is_gone(&answer(8, "", &format!("{gone}{away}"))));
        assert!(!is_gone(&answer(1, "", "")));
    }
}
