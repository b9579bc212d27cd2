//! What the journal promises of its repositories: refs with their commits.

use std::collections::{BTreeMap, BTreeSet};

use coordinator_core::event::Outcome;
use coordinator_core::state::{Attempt, AttemptEnd, Run, RunPhase};
use coordinator_core::{AttemptNo, CommitId};

use crate::git::names;
use crate::git::projection::Wanted;
use crate::git::refs::{AttemptName, ParsedRef};

/// What the journal says about the refs of one repository.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Refs that must be there, with the commit that they must be.
    pub(super) refs: BTreeMap<String, CommitId>,
    /// Every commit that the journal names, each with where it does.
    pub(super) commits: BTreeMap<CommitId, String>,
    /// Attempts that were begun: task, number.
    attempts: BTreeSet<(String, String, u32)>,
    runs: BTreeMap<String, u32>,
}

impl Promises {
    /// Adds what a run says to its repository's promises.
    pub(super) fn add(all: &mut BTreeMap<String, Self>, run: &Run) {
        if let Some(source) = &run.source {
            all.entry(source.repository.to_string())
                .or_default()
                .of_run(run, &source.base);
        }
    }

    fn of_run(&mut self, run: &Run, base: &CommitId) {
        self.runs.insert(run.name.to_string(), run.generation);
        self.must(
            names::source(&run.name),
            base,
            "the source of run",
            &run.name,
        );
        for (ix, task) in run.indexed() {
            let place = format!("{}/{}", run.name, task.name);
            for attempt in task.attempts() {
                let AttemptNo(number) = attempt.number;
                let name = (run.name.to_string(), task.name.to_string(), number);
                self.attempts.insert(name);
                if let Some(commit) = published(attempt) {
                    let name = names::attempt(&run.name, &task.name, number);
                    self.must(name, commit, "an attempt of", &place);
                }
            }
            if let Some(commit) = run.base(ix) {
                let note = format!("the base of {place}");
                self.commits.entry(commit.clone()).or_insert(note);
                if let [_, _, ..] = &*task.dependencies {
                    self.must(
                        names::base(&run.name, &task.name),
                        commit,
                        "the base of",
                        &place,
                    );
                }
            }
        }
        let integrated = match &run.phase {
            RunPhase::Verifying { commit, .. } => Some(commit),
            RunPhase::Ended { integrated, .. } => integrated.as_ref(),
            RunPhase::Active | RunPhase::Integrating { .. } => None,
        };
        if let Some(commit) = integrated {
            let name = names::candidate(&run.name, run.generation);
            self.must(name, commit, "the integration of run", &run.name);
        }
        for (name, commit) in Wanted::of(run).into_iter().flat_map(|wanted| wanted.heads) {
            self.must(name, &commit, "a branch of run", &run.name);
        }
    }

    fn must(&mut self, name: String, commit: &CommitId, what: &str, of: &str) {
        let note = format!("{what} {of}");
        self.commits.entry(commit.clone()).or_insert(note);
        self.refs.insert(name, commit.clone());
    }

    /// Tells whether a ref that the journal does not name may be kept as it is.
    pub(super) fn allows(&self, refname: &str) -> bool {
        let begun = |name: &AttemptName| {
            let task = name.task();
            let name = (
                task.run().to_owned(),
                task.task().to_owned(),
                name.number().get(),
            );
            self.attempts.contains(&name)
        };
        match ParsedRef::parse(refname) {
            Some(ParsedRef::Attempt(name) | ParsedRef::Wip(name) | ParsedRef::Salvage(name)) => {
                begun(&name)
            }
            // Each is made again from the journal when it is wanted.
            Some(
                ParsedRef::Base(_)
                | ParsedRef::Source { .. }
                | ParsedRef::TaskHead(_)
                | ParsedRef::IntegrationHead { .. },
            ) => false,
            Some(ParsedRef::Candidate { run, generation }) => self
                .runs
                .get(&run)
                .is_some_and(|present| generation.get() < *present),
            // Not ours: somebody has put it there.
            None => true,
        }
    }
}

fn published(attempt: &Attempt) -> Option<&CommitId> {
    match &attempt.end {
        Some(
            AttemptEnd::Made(Outcome::Commit(commit))
            | AttemptEnd::Succeeded(Outcome::Commit(commit))
            | AttemptEnd::VerifyFailed {
                outcome: Outcome::Commit(commit),
                ..
            },
        ) => Some(commit),
        Some(
            AttemptEnd::Made(Outcome::NoChange | Outcome::NoRepository)
            | AttemptEnd::Succeeded(Outcome::NoChange | Outcome::NoRepository)
            | AttemptEnd::VerifyFailed {
                outcome: Outcome::NoChange | Outcome::NoRepository,
                ..
            }
            | AttemptEnd::Failed(_)
            | AttemptEnd::Cancelled
            | AttemptEnd::Parked { .. }
            | AttemptEnd::NeverStarted,
        )
        | None => None,
    }
}
