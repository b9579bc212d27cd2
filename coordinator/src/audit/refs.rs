//! Hosted repositories against the journal: each commit that counts is there and whole, and each
//! ref says what the journal says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use coordinator_core::CommitId;
use coordinator_core::event::Outcome;
use coordinator_core::state::{AttemptEnd, Run, RunPhase, Task, TaskState};
use muster_git::{Git, GitError, Repository};

use super::finding::{Code, Finding, Place, Repair};
use super::journal::{FINDINGS_OF_A_KIND, Facts, Known};
use super::report::Report;
use crate::causes::chain;
use crate::engine::grant::base_ref;
use crate::git::refs::{AttemptName, ParsedRef, TaskName};
use crate::git::{names, projection, repository};

/// Where refs are kept that a repair has moved away.
pub(super) const LOST: &str = "refs/muster/lost";
/// How long git may look through one repository.
const LOOK_MAX: Duration = Duration::from_secs(4 * 60 * 60);
/// Bytes of refs that are read: millions of them.
const REFS_BYTES_MAX: usize = 1 << 30;

/// How thoroughly objects are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Every byte of every object.
    Full,
    /// Only that whatever is referred to is there.
    Connectivity,
}

/// A ref that the journal vouches for.
struct Wanted {
    commit: CommitId,
    place: Place,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One of Muster's own.
    Own,
    /// A branch that people fetch.
    Branch,
    /// A branch of a run that is live, which a coordinator moves as soon as it can.
    LiveBranch,
}

/// Checks all hosted repositories of a home.
pub(crate) async fn check(
    git: &Git,
    home: &Path,
    depth: Depth,
    facts: &Facts,
    report: &mut Report,
) {
    match repository::leftovers(home) {
        Ok(found) => {
            for path in found {
                let what = "git, or a coordinator that was killed, has left it";
                let finding = Finding::new(Code::GitLeftover, Place::file(&path), what);
                report.find(finding.mended_by(Repair::SetAside { path }));
            }
        }
        Err(error) => {
            let place = Place::file(&repository::folder(home));
            report.find(Finding::new(Code::RepositoryMissing, place, chain(&error)));
        }
    }
    let mut runs: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
    for known in facts.runs.values() {
        if let Some(source) = &known.run.source {
            runs.entry(&source.repository).or_default().push(known);
        }
    }
    let there = hosted(home);
    for name in &there {
        if !runs.contains_key(name.as_str()) && facts.is_complete {
            let what = "no run uses it";
            report.find(Finding::new(
                Code::RepositoryUnused,
                Place::repository(name),
                what,
            ));
            runs.entry(name).or_default();
        }
    }
    for (name, runs) in runs {
        let folder = repository::folder(home).join(format!("{name}.git"));
        let opened = Repository::open_bare(git, &folder).await;
        let result = match opened {
            Ok(repository) => {
                report.counts.repositories += 1;
                let look = Look {
                    name,
                    repository: &repository,
                    facts,
                };
                look.check(&runs, depth, report).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let place = Place::repository(name).at_file(&folder);
            report.find(Finding::new(Code::RepositoryMissing, place, chain(&error)));
        }
    }
}

fn hosted(home: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(repository::folder(home))
        .into_iter()
        .flatten();
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".git")?.to_owned()))
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort_unstable();
    names
}

struct Look<'a> {
    name: &'a str,
    repository: &'a Repository,
    facts: &'a Facts,
}

impl Look<'_> {
    async fn check(
        &self,
        runs: &[&Known],
        depth: Depth,
        report: &mut Report,
    ) -> Result<(), GitError> {
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        let mut commits: BTreeMap<CommitId, Place> = BTreeMap::new();
        for known in runs {
            self.wanted_of(known, &mut wanted, &mut commits);
        }
        let refs = match self.refs().await {
            Ok(refs) => refs,
            Err(error) => return self.unreadable(&error, report),
        };
        report.counts.refs += refs.len() as u64;
        report.counts.commits += commits.len() as u64;
        let bad = self.commits(&commits, report).await?;
        for (name, wanted) in &wanted {
            let finding = self.compare(name, wanted, refs.get(name), &bad);
            finding.into_iter().for_each(|finding| report.find(finding));
        }
        for (name, found) in &refs {
            if !wanted.contains_key(name)
                && let Some(finding) = self.stranger(name, found)
            {
                report.find(finding);
            }
        }
        self.broken(&refs, report).await?;
        self.objects(depth, report).await
    }

    /// Collects what the journal says about a run's refs and commits.
    fn wanted_of(
        &self,
        known: &Known,
        wanted: &mut BTreeMap<String, Wanted>,
        commits: &mut BTreeMap<CommitId, Place>,
    ) {
        let run = &known.run;
        let mut want = |name: String, commit: &CommitId, place: Place, kind: Kind| {
            let place = Place {
                repository: Some(self.name.to_owned()),
                ..place
            };
            commits
                .entry(commit.clone())
                .or_insert_with(|| place.clone());
            let place = place.at_ref(&name);
            let commit = commit.clone();
            wanted.insert(
                name,
                Wanted {
                    commit,
                    place,
                    kind,
                },
            );
        };
        let of_run = || Place::run(&run.name);
        if let Some(source) = &run.source {
            want(names::source(&run.name), &source.base, of_run(), Kind::Own);
        }
        for (ix, task) in run.indexed() {
            let of_task = || of_run().of_task(&task.name);
            for attempt in task.attempts() {
                if let Some(commit) = made(attempt.end.as_ref()) {
                    let number = attempt.number.0;
                    let name = names::attempt(&run.name, &task.name, number);
                    want(name, commit, of_task().of_attempt(number), Kind::Own);
                }
            }
            let name = names::base(&run.name, &task.name);
            if has_base(run, task)
                && base_ref(run, ix) == name
                && let Some(base) = run.base(ix)
            {
                want(name, base, of_task(), Kind::Own);
            }
        }
        if let RunPhase::Verifying { commit, .. }
        | RunPhase::Ended {
            integrated: Some(commit),
            ..
        } = &run.phase
        {
            let name = names::candidate(&run.name, run.generation);
            want(name, commit, of_run(), Kind::Own);
        }
        let kind = if known.is_live {
            Kind::LiveBranch
        } else {
            Kind::Branch
        };
        for (name, commit) in projection::heads(run) {
            let place = match ParsedRef::parse(&name) {
                Some(ParsedRef::TaskHead(task)) => of_run().of_task(task.task()),
                _ => of_run(),
            };
            want(name, &commit, place, kind);
        }
    }

    async fn refs(&self) -> Result<BTreeMap<String, String>, GitError> {
        let output = self
            .repository
            .command()
            .args(["for-each-ref", "--format=%(objectname) %(refname)"])
            .stdout_limit(REFS_BYTES_MAX)
            .run_ok()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let split = |line: &str| {
            let (id, name) = line.split_once(' ')?;
            Some((name.to_owned(), id.to_owned()))
        };
        Ok(text.lines().filter_map(split).collect())
    }

    /// Says that git cannot read the refs. Those that the journal vouches for are made from it again
    /// when the file that is in the way has gone.
    fn unreadable(&self, error: &GitError, report: &mut Report) -> Result<(), GitError> {
        let packed = self.repository.folder().join("packed-refs");
        let what = chain(error);
        let place = Place::repository(self.name);
        report.find(if what.contains("packed-refs") && packed.is_file() {
            let finding = Finding::new(Code::RefsUnreadable, place.at_file(&packed), what);
            finding.mended_by(Repair::SetAside { path: packed })
        } else {
            Finding::new(Code::RefsUnreadable, place, what)
        });
        Ok(())
    }

    /// Finds commits that count and are missing or incomplete.
    async fn commits(
        &self,
        commits: &BTreeMap<CommitId, Place>,
        report: &mut Report,
    ) -> Result<BTreeSet<CommitId>, GitError> {
        let mut bad = BTreeSet::new();
        let ids: Vec<&str> = commits.keys().map(CommitId::as_str).collect();
        let missing = self.missing(&ids).await?;
        for (commit, place) in commits {
            if missing.contains(commit.as_str()) {
                let what = format!("{commit} is not in the repository");
                report.find(Finding::new(Code::CommitMissing, place.clone(), what));
                bad.insert(commit.clone());
            }
        }
        let there: Vec<(&CommitId, &Place)> = commits
            .iter()
            .filter(|(commit, _)| !bad.contains(*commit))
            .collect();
        let all: Vec<&str> = there.iter().map(|(commit, _)| commit.as_str()).collect();
        if self.incomplete(&all).await?.is_none() {
            return Ok(bad);
        }
        for (commit, place) in there.into_iter().take(10 * FINDINGS_OF_A_KIND) {
            if let Some(said) = self.incomplete(&[commit.as_str()]).await? {
                let what = format!("{commit} lacks something: {said}");
                report.find(Finding::new(Code::CommitIncomplete, place.clone(), what));
                bad.insert(commit.clone());
            }
        }
        Ok(bad)
    }

    /// Gives those of some objects that are not there.
    async fn missing(&self, ids: &[&str]) -> Result<BTreeSet<String>, GitError> {
        if ids.is_empty() {
            return Ok(BTreeSet::new());
        }
        let output = self
            .repository
            .command()
            .args(["cat-file", "--batch-check=%(objectname) %(objecttype)"])
            .stdin(lines(ids))
            .stdout_limit(REFS_BYTES_MAX)
            .run_ok()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let missing = text
            .lines()
            .filter_map(|line| line.strip_suffix(" missing"));
        Ok(missing.map(str::to_owned).collect())
    }

    /// Says what commits lack of what they refer to; `None` if nothing.
    async fn incomplete(&self, ids: &[&str]) -> Result<Option<String>, GitError> {
        if ids.is_empty() {
            return Ok(None);
        }
        let output = self
            .repository
            .command()
            .args(["rev-list", "--objects", "--quiet", "--stdin"])
            .stdin(lines(ids))
            .timeout(LOOK_MAX)
            .run()
            .await?;
        let said = output
            .stderr
            .lines()
            .last()
            .unwrap_or("git does not say what");
        Ok((output.exit_code != Some(0)).then(|| said.to_owned()))
    }

    fn compare(
        &self,
        name: &str,
        wanted: &Wanted,
        found: Option<&String>,
        bad: &BTreeSet<CommitId>,
    ) -> Option<Finding> {
        let commit = wanted.commit.as_str();
        if found.is_some_and(|found| found == commit) {
            return None;
        }
        let code = match (wanted.kind, found) {
            (Kind::Own, None) => Code::RefMissing,
            (Kind::Own, Some(_)) => Code::RefDiffers,
            (Kind::Branch, None) => Code::BranchMissing,
            (Kind::Branch, Some(_)) => Code::BranchDiffers,
            (Kind::LiveBranch, _) => Code::BranchBehind,
        };
        let what = match found {
            None => format!("it is not there; the journal says {commit}"),
            Some(found) => format!("it is {found}; the journal says {commit}"),
        };
        let finding = Finding::new(code, wanted.place.clone(), what);
        if bad.contains(&wanted.commit) {
            return Some(finding);
        }
        Some(finding.mended_by(Repair::SetRef {
            repository: self.name.to_owned(),
            name: name.to_owned(),
            commit: commit.to_owned(),
            found: found.cloned(),
        }))
    }

    /// Judges a ref that the journal does not vouch for.
    fn stranger(&self, name: &str, found: &str) -> Option<Finding> {
        let place = || Place::repository(self.name).at_ref(name);
        if name.starts_with(LOST) {
            let what = format!("it holds {found}");
            return Some(Finding::new(Code::RefLost, place(), what));
        }
        let parsed = ParsedRef::parse(name);
        let run = parsed.as_ref().map(run_of);
        let known = run.and_then(|run| self.facts.runs.get(run));
        let what = match (&parsed, known) {
            (None, _) => "it is not a ref that Muster makes".to_owned(),
            // What is missing may have been lost.
            (Some(_), None) if !self.facts.is_complete => return None,
            (Some(ParsedRef::Source { run }), None) => {
                let what = format!("there is no run {run}");
                return Some(Finding::new(Code::SourceOfNoRun, place(), what));
            }
            (Some(_), None) => "there is no such run".to_owned(),
            (Some(parsed), Some(known)) => self.why_unknown(parsed, &known.run)?,
        };
        let finding = Finding::new(
            Code::RefUnknown,
            place(),
            format!("{what}; it holds {found}"),
        );
        Some(finding.mended_by(Repair::LoseRef {
            repository: self.name.to_owned(),
            name: name.to_owned(),
            found: found.to_owned(),
        }))
    }

    /// Says why a ref of a known run cannot be; `None` if it can.
    fn why_unknown(&self, parsed: &ParsedRef, run: &Run) -> Option<String> {
        let hosted = run.source.as_ref().map(|source| &*source.repository);
        if hosted != Some(self.name) {
            return Some("its run uses another repository".to_owned());
        }
        let task = |name: &TaskName| run.tasks.iter().find(|task| *task.name == *name.task());
        let no_task = || Some("its run has no such task".to_owned());
        let attempt = |name: &AttemptName| match task(name.task()) {
            None => no_task(),
            Some(task) => {
                let known =
                    |number: u32| task.attempts().iter().any(|tried| tried.number.0 == number);
                let unknown = !known(name.number().get());
                unknown.then(|| "its task has no such attempt".to_owned())
            }
        };
        match parsed {
            ParsedRef::Attempt(name) | ParsedRef::Wip(name) | ParsedRef::Salvage(name) => {
                attempt(name)
            }
            ParsedRef::Base(name) => match task(name) {
                None => no_task(),
                Some(_) => None,
            },
            ParsedRef::Source { .. } => None,
            ParsedRef::Candidate { generation, .. } => (generation.get() > run.generation)
                .then(|| "its run has no such generation".to_owned()),
            // What an earlier generation made stays until a later one has something better.
            ParsedRef::TaskHead(name) => match task(name) {
                None => no_task(),
                Some(task) => (task.generation <= 1)
                    .then(|| "its task has not succeeded with a commit".to_owned()),
            },
            ParsedRef::IntegrationHead { .. } => {
                (run.generation <= 1).then(|| "its run has not been integrated".to_owned())
            }
        }
    }

    /// Finds refs that point to nothing.
    async fn broken(
        &self,
        refs: &BTreeMap<String, String>,
        report: &mut Report,
    ) -> Result<(), GitError> {
        let ids: BTreeSet<&str> = refs.values().map(String::as_str).collect();
        let ids: Vec<&str> = ids.into_iter().collect();
        let missing = self.missing(&ids).await?;
        for (name, id) in refs.iter().filter(|(_, id)| missing.contains(*id)) {
            let place = Place::repository(self.name).at_ref(name);
            let what = format!("{id}, to which it points, is not there");
            report.find(Finding::new(Code::RefBroken, place, what));
        }
        Ok(())
    }

    /// Lets git look through the objects.
    async fn objects(&self, depth: Depth, report: &mut Report) -> Result<(), GitError> {
        for complaint in complaints(self.repository, depth).await? {
            let place = Place::repository(self.name);
            report.find(Finding::new(Code::ObjectsDamaged, place, complaint));
        }
        Ok(())
    }
}

/// Gives what git says is wrong with a repository's objects.
///
/// Objects that are merely oddly formed, as old histories hold, are not wrong.
pub(super) async fn complaints(
    repository: &Repository,
    depth: Depth,
) -> Result<Vec<String>, GitError> {
    let how = match depth {
        Depth::Full => "--full",
        Depth::Connectivity => "--connectivity-only",
    };
    let output = repository
        .command()
        .args([
            "fsck",
            how,
            "--no-dangling",
            "--no-progress",
            "--no-reflogs",
        ])
        .timeout(LOOK_MAX)
        .run()
        .await?;
    if output.exit_code == Some(0) {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let harmless = ["notice:", "dangling", "unreachable", "warning", "error in "];
    let said = text.lines().chain(output.stderr.lines());
    let said = said.map(str::trim).filter(|line| !line.is_empty());
    Ok(said
        .filter(|line| !harmless.iter().any(|beginning| line.starts_with(beginning)))
        .take(FINDINGS_OF_A_KIND)
        .map(str::to_owned)
        .collect())
}

fn lines(ids: &[&str]) -> Vec<u8> {
    let mut text = ids.join("\n");
    text.push('\n');
    text.into_bytes()
}

/// Gives the commit that an attempt published, if it did.
fn made(end: Option<&AttemptEnd>) -> Option<&CommitId> {
    match end? {
        AttemptEnd::Made(Outcome::Commit(commit))
        | AttemptEnd::Succeeded(Outcome::Commit(commit))
        | AttemptEnd::VerifyFailed {
            outcome: Outcome::Commit(commit),
            ..
        } => Some(commit),
        AttemptEnd::Made(_)
        | AttemptEnd::Succeeded(_)
        | AttemptEnd::VerifyFailed { .. }
        | AttemptEnd::Failed(_)
        | AttemptEnd::Cancelled
        | AttemptEnd::Parked { .. }
        | AttemptEnd::NeverStarted => None,
    }
}

/// Tells whether a task's merged base stands.
fn has_base(run: &Run, task: &Task) -> bool {
    let begun = task
        .history
        .as_ref()
        .is_some_and(|history| history.base.is_some());
    let mut dependencies = task.dependencies.iter().filter_map(|ix| run.task(*ix));
    begun
        && !matches!(
            task.state,
            TaskState::Blocked { .. } | TaskState::Basing { .. }
        )
        && task.dependencies.len() > 1
        && dependencies.all(|dependency| dependency.state.is_succeeded())
}

fn run_of(parsed: &ParsedRef) -> &str {
    match parsed {
        ParsedRef::Attempt(name) | ParsedRef::Wip(name) | ParsedRef::Salvage(name) => {
            name.task().run()
        }
        ParsedRef::Base(name) | ParsedRef::TaskHead(name) => name.run(),
        ParsedRef::Source { run }
        | ParsedRef::IntegrationHead { run }
        | ParsedRef::Candidate { run, .. } => run,
    }
}
