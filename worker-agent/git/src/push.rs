//! Pushing, and reading what became of each ref.

use std::time::Duration;

use crate::error::GitError;
use crate::names::{ObjectId, RefName};
use crate::remote::{REMOTE_NAME, Remote};
use crate::repository::{Expected, Repository, unexpected};

/// How much of what a remote says besides its verdicts is kept, in characters.
const REMOTE_SAYS_CHARACTERS_MAX: usize = 2000;
/// What a remote says that could not move objects to where they stay. Git 2.47 says so when the same
/// pack is pushed twice at the same time: both pushes note their own process id beside it, and these
/// notes differ. The one that lost has only to try again.
const NOT_STORED: &str = "(unable to migrate objects to permanent storage)";
/// Pauses before it is tried again.
const NOT_STORED_PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_millis(2_000),
];

/// One ref of the remote to be created, moved or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushRef {
    /// The ref of the remote.
    pub name: RefName,
    /// What it becomes; `None` deletes it.
    pub new: Option<ObjectId>,
    /// What it must be before; with anything else the ref is not touched.
    pub expected: Expected,
}

/// What became of one ref of the remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefPush {
    /// The ref of the remote.
    pub name: RefName,
    /// What became of it.
    pub outcome: PushOutcome,
}

/// What became of a pushed ref.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// It is new.
    Created,
    /// It moved, or was deleted.
    Moved,
    /// It was already so, as after a push whose answer was lost.
    UpToDate,
    /// It is as it was.
    Rejected {
        /// The reason given for this ref, as in `stale info` for another value than expected.
        reason: String,
        /// What else the remote said during the push, for all refs together; if it said nothing,
        /// why git here could not send.
        remote_says: String,
    },
}

impl PushOutcome {
    /// Tells whether the ref is now what was asked for.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !matches!(self, Self::Rejected { .. })
    }
}

impl Remote {
    /// Pushes objects and moves refs of the remote; gives one verdict for each, in the order asked.
    ///
    /// Refs are judged one by one: some may move while others are rejected. After an error it is not
    /// known which refs moved; repeating is safe, since a ref that is already right is up to date
    /// even if it was expected to be absent. A person's pre-push hook does not run: it guards their
    /// own remote, not this one.
    pub async fn push(
        &self,
        repository: &Repository,
        refs: &[PushRef],
    ) -> Result<Vec<RefPush>, GitError> {
        if refs.is_empty() {
            return Ok(Vec::new());
        }
        let mut pauses = NOT_STORED_PAUSES.into_iter();
        let (described, output, said) = loop {
            let command = self
                .reach(repository.command())
                .await?
                // Parents that a person has made up locally are not those of the commits.
                .env("GIT_GRAFT_FILE", "/dev/null")
                .config("push.negotiate", "false")
                // Those of a person's own are for their own remote; an empty one takes them back.
                .config("push.pushOption", "")
                .args([
                    "push",
                    "--porcelain",
                    "--no-verify",
                    "--no-follow-tags",
                    "--no-signed",
                ])
                .arg("--recurse-submodules=no")
                .args(refs.iter().filter_map(lease))
                .args(["--end-of-options", REMOTE_NAME])
                .args(refs.iter().map(refspec));
            let described = command.describe();
            let output = command.run().await?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            match pauses.next().filter(|_| said.contains(NOT_STORED)) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => break (described, output, said),
            }
        };
        let verdicts = parse(&said, &output.stderr);
        let pushed: Option<Vec<RefPush>> = refs
            .iter()
            .map(|wanted| {
                verdicts
                    .iter()
                    .find(|verdict| verdict.name == wanted.name)
                    .cloned()
            })
            .collect();
        match (pushed, output.exit_code) {
            (Some(pushed), _) => Ok(pushed),
            (None, Some(0)) => Err(unexpected(described, "a ref has no verdict")),
            (None, exit_code) => Err(GitError::Failed {
                command: described,
                exit_code,
                stderr: output.stderr,
            }),
        }
    }
}

fn lease(wanted: &PushRef) -> Option<String> {
    match wanted.expected {
        Expected::Any => None,
        Expected::Absent => Some(format!("--force-with-lease={}:", wanted.name)),
        Expected::Is(id) => Some(format!("--force-with-lease={}:{id}", wanted.name)),
    }
}

fn refspec(wanted: &PushRef) -> String {
    let force = if wanted.expected == Expected::Any {
        "+"
    } else {
        ""
    };
    let new = wanted.new.map(|id| id.to_string()).unwrap_or_default();
    format!("{force}{new}:{}", wanted.name)
}

/// Reads the lines of `push --porcelain`: a flag, "from:to", and a summary.
///
/// A ref has no verdict if the remote failed to report its fate or could not store the objects.
fn parse(stdout: &str, stderr: &str) -> Vec<RefPush> {
    let said: Vec<&str> = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("remote:"))
        .map(str::trim)
        .collect();
    // Where the remote says nothing, what kept this side from sending is the reason.
    let of_git = stderr.lines().filter(|line| line.starts_with("fatal: "));
    let said = if said.is_empty() {
        of_git.collect()
    } else {
        said
    };
    let remote_says: String = said
        .join("\n")
        .trim()
        .chars()
        .take(REMOTE_SAYS_CHARACTERS_MAX)
        .collect();
    let verdict = |line: &str| {
        let mut parts = line.splitn(3, '\t');
        let (flag, names, summary) = (parts.next()?, parts.next()?, parts.next()?);
        let name = RefName::parse(names.rsplit(':').next()?).ok()?;
        let outcome = match flag {
            "*" => PushOutcome::Created,
            " " | "+" | "-" => PushOutcome::Moved,
            "=" => PushOutcome::UpToDate,
            "!" if summary.starts_with("[remote failure]") => return None,
            // The remote could not store what it was sent; that says nothing about the ref.
            "!" if summary.contains(NOT_STORED) => return None,
            "!" => {
                let reason = summary
                    .split_once(" (")
                    .map_or(summary, |(_, reason)| reason);
                let reason = reason.strip_suffix(')').unwrap_or(reason).to_owned();
                PushOutcome::Rejected {
                    reason,
                    remote_says: remote_says.clone(),
                }
            }
            _ => return None,
        };
        Some(RefPush { name, outcome })
    };
    stdout.lines().filter_map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::{PushOutcome, parse};

    #[test]
    fn each_ref_has_its_own_verdict() {
        let stdout = "To /x\n*\ta:refs/h/a\t[new branch]\n \tb:refs/h/b\t1..2\n\
            !\tc:refs/h/c\t[remote rejected] (lease 7 has ended (fenced))\n\
            !\td:refs/h/d\t[remote failure] (remote failed to report status)\n\
            !\tf:refs/h/f\t[remote rejected] (unable to migrate objects to permanent storage)\n\
            =\te:refs/h/e\t[up to date]\nDone\n";
        let stderr = "remote: first        \nremote: second\nerror: failed to push";
        let verdicts: Vec<_> = parse(stdout, stderr)
            .into_iter()
            .map(|push| (push.name.to_string(), push.outcome))
            .collect();
        let rejected = PushOutcome::Rejected {
            reason: "lease 7 has ended (fenced)".to_owned(),
            remote_says: "first\nsecond".to_owned(),
        };
        assert_eq!(
            verdicts,
            [
                ("refs/h/a".to_owned(), PushOutcome::Created),
                ("refs/h/b".to_owned(), PushOutcome::Moved),
                ("refs/h/c".to_owned(), rejected),
                ("refs/h/e".to_owned(), PushOutcome::UpToDate),
            ]
        );
    }
}
