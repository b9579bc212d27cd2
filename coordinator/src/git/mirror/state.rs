//! What is known of the mirrors, for whoever asks.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_git::without_users;
use tokio::sync::watch;

use super::MirrorSettings;
use crate::git::names;

/// What a round came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Branches that the mirror has, with their commits.
    pub(super) mirrored: BTreeMap<String, String>,
    /// Branches that it did not take, with the reason.
    pub(super) refused: BTreeMap<String, String>,
    /// Why something could not be compared or pushed.
    pub(super) trouble: Option<String>,
}

impl Round {
    pub(super) fn is_behind(&self) -> bool {
        self.trouble.is_some() || !self.refused.is_empty()
    }
}

#[derive(Clone, Debug)]
struct Known {
    url: String,
    /// Which state of the branches was last looked at; `None` before the first round.
    version: Option<u64>,
    /// From the last round that came through, and what later ones have added.
    last: Round,
}

/// Where the branches of one run are on their mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunMirror {
    /// Its address, without a user part.
    pub url: String,
    /// `mirrored`, `behind` or `refused`.
    pub state: &'static str,
    /// Why it is not `mirrored`, if that is known.
    pub detail: String,
}

/// All mirrors of a coordinator; clones share what is known.
#[derive(Clone, Debug)]
pub struct Mirrors(Arc<watch::Sender<BTreeMap<String, Known>>>);

impl Mirrors {
    /// Knows of the mirrors that are configured, by the names of the hosted repositories.
    #[must_use]
    pub fn new(settings: &BTreeMap<String, MirrorSettings>) -> Self {
        let known = |settings: &MirrorSettings| Known {
            url: without_users(&settings.url),
            version: None,
            last: Round::default(),
        };
        let all = settings.iter();
        let all = all.map(|(name, settings)| (name.clone(), known(settings)));
        Self(Arc::new(watch::Sender::new(all.collect())))
    }

    /// Notes how a round ended; tells whether that is news.
    pub(super) fn note(&self, name: &str, version: u64, round: Round) -> bool {
        let mut is_news = false;
        self.0.send_modify(|all| {
            let Some(known) = all.get_mut(name) else {
                return;
            };
            let mut last = round;
            if last.trouble.is_some() {
                // What was there before is not taken to be gone.
                let before = known.last.mirrored.iter();
                for (branch, commit) in before {
                    let kept = last.mirrored.entry(branch.clone());
                    kept.or_insert_with(|| commit.clone());
                }
            }
            known.version = Some(version);
            is_news = known.last != last;
            known.last = last;
        });
        is_news
    }

    /// Waits until every mirror has looked at that state of the branches, well or not.
    pub async fn looked(&self, version: u64) {
        let mut all = self.0.subscribe();
        let looked = |known: &Known| known.version.is_some_and(|seen| seen >= version);
        // It only fails without a sender, and this holds one.
        drop(all.wait_for(|all| all.values().all(looked)).await);
    }

    /// Tells where the branches of a run are, if its repository has a mirror. `commits` are the
    /// branches that the run has by now.
    #[must_use]
    pub fn of_run(
        &self,
        repository: &str,
        run: &str,
        commits: &BTreeMap<String, String>,
    ) -> Option<RunMirror> {
        let all = self.0.borrow();
        let fits = |(name, _): &(&String, &Known)| {
            let start = name.strip_suffix('*');
            start.is_some_and(|start| repository.starts_with(start))
        };
        let known = match all.get(repository) {
            Some(known) => known,
            None => all.iter().find(fits)?.1,
        };
        let folder = format!("{}/{run}/", names::HEADS);
        let mut refused = known
            .last
            .refused
            .iter()
            .filter(|(branch, _)| branch.starts_with(&folder));
        let missing = commits
            .iter()
            .any(|(branch, commit)| known.last.mirrored.get(branch) != Some(commit));
        let (state, detail) = match (&known.last.trouble, refused.next()) {
            (_, Some((branch, why))) => {
                let branch = branch.trim_start_matches("refs/heads/");
                let more = refused.count();
                let more = match more {
                    0 => String::new(),
                    1 => "; and 1 more branch".to_owned(),
                    more => format!("; and {more} more branches"),
                };
                ("refused", format!("{branch}: {why}{more}"))
            }
            (Some(trouble), None) if missing => ("behind", trouble.clone()),
            (None, None) if missing => ("behind", String::new()),
            (_, None) => ("mirrored", String::new()),
        };
        Some(RunMirror {
            url: known.url.clone(),
            state,
            detail,
        })
    }
}
