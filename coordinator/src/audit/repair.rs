//! Mends what an audit has found and can be mended. Nothing is deleted but halves of copies that a
//! killed backup or restore has left: what has to go is moved to `repaired/<time>/` of the home, and
//! commits that lose their ref get one under `refs/muster/lost`.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use coordinator_core::state::RunImage;
use muster_git::{Expected, Git, ObjectId, RefName, RefUpdate, Repository, Update};

use super::finding::{Finding, Level, Repair};
use super::home::REPAIRED;
use super::refs::LOST;
use super::report::Report;
use super::{Options, audit};
use crate::app::JOURNAL;
use crate::backup;
use crate::causes::chain;
use crate::git::repository;
use crate::home::Home;
use crate::ledger;
use crate::store::sqlite::SqliteStore;
use crate::store::{BatchSeq, Progress, Store as _};
use crate::transcript::mend;

/// Rounds of looking and mending: what one has mended may let the next see more.
const ROUNDS: u32 = 3;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Something that was tried.
#[derive(Debug)]
pub struct Step {
    pub finding: Finding,
    /// What was done, or why it could not be.
    pub outcome: Result<String, String>,
}

/// What became of a repair.
#[derive(Debug)]
pub struct Repaired {
    pub steps: Vec<Step>,
    /// What is wrong now.
    pub report: Report,
    /// Where things were moved to, if any were.
    pub aside: Option<PathBuf>,
}

/// Mends a home. The caller owns it, so that no coordinator runs on it meanwhile.
///
/// Each step is made or not made, and repeating the whole is safe.
pub async fn repair(git: &Git, home: &Home, options: &Options) -> Repaired {
    let mut report = audit(git, options).await;
    let mut steps: Vec<Step> = Vec::new();
    let mut mender = Mender::new(git, home.path());
    for _ in 0..ROUNDS {
        let mut tried = false;
        let mut found: Vec<Finding> = report
            .findings
            .iter()
            .filter(|found| found.repair.is_some())
            .filter(|found| !steps.iter().any(|step| step.finding.is_same(found)))
            .cloned()
            .collect();
        found.sort_by_key(|found| found.repair.as_ref().map(order));
        for finding in found {
            let Some(wanted) = finding.repair.clone() else {
                continue;
            };
            tried = true;
            let outcome = mender.mend(wanted).await;
            let outcome = outcome.map_err(|error| chain(&*error));
            steps.push(Step { finding, outcome });
        }
        if !tried {
            break;
        }
        report = audit(git, options).await;
    }
    for found in &mut report.findings {
        // It was tried; what is left is for a person.
        found.repair = None;
    }
    // What was moved away just now is said by the steps.
    let aside = mender.made.then_some(mender.aside);
    if let Some(aside) = &aside {
        report.findings.retain(|found| {
            found.code.level() != Level::Note || found.place.file.as_ref() != Some(aside)
        });
    }
    Repaired {
        steps,
        report,
        aside,
    }
}

/// What goes first: locks that would refuse the rest, and the journal's own before what follows it.
fn order(repair: &Repair) -> u8 {
    match repair {
        Repair::Chmod { .. } | Repair::SetAside { .. } | Repair::RemoveUnfinished { .. } => 0,
        Repair::DropSnapshot { .. } | Repair::Archive { .. } => 1,
        Repair::MendTranscript { .. } => 2,
        Repair::SetRef { .. } | Repair::LoseRef { .. } | Repair::RebuildUsage => 3,
    }
}

struct Mender<'a> {
    git: &'a Git,
    home: &'a Path,
    /// Where things are moved to.
    aside: PathBuf,
    made: bool,
}

impl<'a> Mender<'a> {
    fn new(git: &'a Git, home: &'a Path) -> Self {
        let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%.3fZ");
        Self {
            git,
            home,
            aside: home.join(REPAIRED).join(now.to_string()),
            made: false,
        }
    }

    async fn mend(&mut self, wanted: Repair) -> Result<String, Error> {
        match wanted {
            Repair::Chmod { path, mode } => {
                let wanted = fs::Permissions::from_mode(mode);
                fs::set_permissions(&path, wanted).map_err(at("change the mode of", &path))?;
                Ok(format!("its mode is {mode:03o} now"))
            }
            Repair::SetAside { path } => {
                let to = self.place(&path)?;
                fs::rename(&path, &to).map_err(at("move", &path))?;
                Ok(format!("moved to {}", to.display()))
            }
            Repair::RemoveUnfinished { path } => {
                backup::remove(&path).map_err(at("remove", &path))?;
                Ok("removed; what it was half a copy of is untouched".to_owned())
            }
            Repair::MendTranscript { path } => {
                let to = self.place(&path)?;
                let look = mend::mend(&path, &to)?;
                let noted = match look.is_damaged() || !look.gaps.is_empty() {
                    true => ", with a note where some are missing",
                    false => "",
                };
                Ok(format!(
                    "its {} sound events are kept{noted}; as it was: {}",
                    look.events,
                    to.display()
                ))
            }
            Repair::RebuildUsage => self.rebuild_usage(),
            Repair::DropSnapshot { upto } => self.drop_snapshot(upto),
            Repair::Archive { image } => self.archive(&image),
            Repair::SetRef {
                repository,
                name,
                commit,
                found,
            } => self.set_ref(&repository, &name, &commit, found).await,
            Repair::LoseRef {
                repository,
                name,
                found,
            } => self.lose_ref(&repository, &name, &found).await,
        }
    }

    /// Makes the place that a file or folder of the home is moved to.
    fn place(&mut self, path: &Path) -> Result<PathBuf, Error> {
        let inside = path.strip_prefix(self.home)?;
        let to = self.aside.join(inside);
        if let Some(folder) = to.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(at("make", folder))?;
        }
        self.made = true;
        Ok(to)
    }

    fn rebuild_usage(&mut self) -> Result<String, Error> {
        let mut kept = String::new();
        for path in ledger::files(self.home) {
            if path.exists() {
                let to = self.place(&path)?;
                fs::rename(&path, &to).map_err(at("move", &path))?;
                if kept.is_empty() {
                    kept = format!("; as it was: {}", to.display());
                }
            }
        }
        ledger::rebuild(self.home)?;
        Ok(format!("made anew from the transcripts{kept}"))
    }

    fn store(&self) -> Result<SqliteStore, Error> {
        let mut store = SqliteStore::open(&self.home.join(JOURNAL))?;
        store.claim_epoch()?;
        Ok(store)
    }

    fn keep(&mut self, name: &Path, bytes: &[u8]) -> Result<(), Error> {
        let to = self.place(&self.home.join(name))?;
        muster_connect::private_file::replace(&to, bytes).map_err(at("write", &to))?;
        Ok(())
    }

    fn drop_snapshot(&mut self, upto: BatchSeq) -> Result<String, Error> {
        let mut store = self.store()?;
        let folder = PathBuf::from(format!("snapshot-{}", upto.0));
        for (name, bytes) in store.raw_snapshot(upto)? {
            self.keep(&folder.join(name), &bytes)?;
        }
        store.drop_snapshot(upto)?;
        let folder = self.aside.join(folder);
        Ok(format!("dropped; its bodies are in {}", folder.display()))
    }

    fn archive(&mut self, image: &RunImage) -> Result<String, Error> {
        let mut store = self.store()?;
        let before = store.raw_archive(image.run.id)?;
        if let Some((name, bytes)) = &before {
            self.keep(Path::new(name), bytes)?;
        }
        while store.archive(image)? == Progress::More {}
        Ok(match before {
            None => "archived as its events have left it".to_owned(),
            Some((name, _)) => format!(
                "archived as its events have left it; what was there: {}",
                self.aside.join(name).display()
            ),
        })
    }

    async fn open(&self, name: &str) -> Result<Repository, Error> {
        let folder = repository::folder(self.home).join(format!("{name}.git"));
        Ok(Repository::open_bare(self.git, &folder).await?)
    }

    async fn set_ref(
        &mut self,
        repository: &str,
        name: &str,
        commit: &str,
        found: Option<String>,
    ) -> Result<String, Error> {
        let repository = self.open(repository).await?;
        let mut updates = Vec::new();
        let mut said = format!("it is {commit} now");
        let expected = match &found {
            Some(found) => {
                let held = ObjectId::parse(found)?;
                if repository.exists(held).await? {
                    let lost = lost_name(name, found);
                    said.push_str(&format!("; what it was is kept as {lost}"));
                    updates.push(update(&lost, Some(held), Expected::Any)?);
                }
                Expected::Is(held)
            }
            None => {
                // One that holds no id is no ref for git, and in the way of the right one.
                let file = repository.folder().join(name);
                if file.is_file() {
                    let to = self.place(&file)?;
                    fs::rename(&file, &to).map_err(at("move", &file))?;
                    said.push_str(&format!("; what was there: {}", to.display()));
                }
                Expected::Absent
            }
        };
        updates.push(update(name, Some(ObjectId::parse(commit)?), expected)?);
        apply(&repository, &updates).await?;
        Ok(said)
    }

    async fn lose_ref(&self, repository: &str, name: &str, found: &str) -> Result<String, Error> {
        let repository = self.open(repository).await?;
        let held = ObjectId::parse(found)?;
        if !repository.exists(held).await? {
            return Err(format!("{found}, to which it points, is not there").into());
        }
        let lost = lost_name(name, found);
        let updates = [
            update(&lost, Some(held), Expected::Any)?,
            update(name, None, Expected::Is(held))?,
        ];
        apply(&repository, &updates).await?;
        Ok(format!("moved to {lost}"))
    }
}

/// Says where something could not be done: what the system says names no place.
fn at(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let doing = format!("cannot {action} {}", path.display());
    move |error| format!("{doing}: {error}").into()
}

/// Names where a ref is kept that had to move.
fn lost_name(name: &str, found: &str) -> String {
    let rest = name.strip_prefix("refs/").unwrap_or(name);
    let short = found.get(..12).unwrap_or(found);
    format!("{LOST}/{rest}/{short}")
}

fn update(name: &str, new: Option<ObjectId>, expected: Expected) -> Result<RefUpdate, Error> {
    Ok(RefUpdate {
        name: RefName::parse(name)?,
        new,
        expected,
    })
}

async fn apply(repository: &Repository, updates: &[RefUpdate]) -> Result<(), Error> {
    match repository.update_refs(updates).await? {
        Update::Done => Ok(()),
        Update::Refused { name, .. } => Err(format!("{name} has changed meanwhile").into()),
    }
}
