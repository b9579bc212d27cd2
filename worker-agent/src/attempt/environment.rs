//! What the processes of a lease see of the worker's environment: a list, not the rest.

use std::collections::BTreeMap;

use muster_proto::v1::{Grant, work};

use super::folder::LeaseFolder;
use crate::document::TaskDocument;

/// Variables taken over from the worker. `HOME` stays the user's own, because agents keep their
/// logins and tools their settings there.
pub(super) const TAKEN_OVER: [&str; 4] = ["HOME", "LANG", "PATH", "USER"];
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Makes the whole environment of a lease's processes; `own` is the worker's.
///
/// `given` are those of the task's variables that have their values from this host.
/// The task's variables come before those that were taken over, and Muster's before both.
pub(crate) fn environment(
    own: impl Fn(&str) -> Option<String>,
    folder: &LeaseFolder,
    grant: &Grant,
    task: &TaskDocument,
    given: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), PATH.to_owned()),
        ("TERM".to_owned(), "dumb".to_owned()),
    ]);
    for name in TAKEN_OVER {
        if let Some(value) = own(name) {
            env.insert(name.to_owned(), value);
        }
    }
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    env.insert("TMPDIR".to_owned(), text(folder.tmp()));
    let names = task
        .env
        .iter()
        .chain(given)
        .filter(|(name, _)| !name.starts_with("MUSTER_"));
    env.extend(names.map(|(name, value)| (name.clone(), value.clone())));
    env.insert("MUSTER_RUN".to_owned(), grant.run.clone());
    env.insert("MUSTER_TASK".to_owned(), grant.task.clone());
    if let Some(attempt) = attempt_number(grant) {
        env.insert("MUSTER_ATTEMPT".to_owned(), attempt.to_string());
    }
    if let Some(source) = &grant.source {
        let base = if source.base.is_empty() {
            &source.commit
        } else {
            &source.base
        };
        env.insert("MUSTER_BASE".to_owned(), base.clone());
    }
    env.insert("MUSTER_CONTEXT_FILE".to_owned(), text(folder.context()));
    env
}

/// Number of the attempt that a lease does or verifies; the last verify of a run has none.
pub(crate) fn attempt_number(grant: &Grant) -> Option<u32> {
    match grant.work.as_ref()?.kind.as_ref()? {
        work::Kind::Attempt(attempt) => Some(attempt.attempt),
        work::Kind::Verify(verify) => Some(verify.attempt),
        work::Kind::FinalVerify(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use muster_proto::v1::{AttemptWork, GitSource, Work};

    use super::*;

    #[test]
    fn processes_see_a_list_of_variables_and_no_secret_of_the_worker() {
        let grant = Grant {
            run: "r".into(),
            task: "t".into(),
            work: Some(Work {
                kind: Some(work::Kind::Attempt(AttemptWork { attempt: 3 })),
            }),
            source: Some(GitSource {
                commit: "c".into(),
                base: "b".into(),
                ..GitSource::default()
            }),
            ..Grant::default()
        };
        let task = TaskDocument {
            env: BTreeMap::from([
                ("LANG".into(), "C".into()),
                ("MUSTER_RUN".into(), "forged".into()),
            ]),
            ..TaskDocument::default()
        };
        let given = [("MUSTER_X", "forged"), ("TOKEN", "t")];
        let given = given
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let own = |name: &str| Some(format!("own {name}"));
        let folder = LeaseFolder::of(Path::new("/s"), 7);
        let env = environment(own, &folder, &grant, &task, &given);
        let expected = [
            ("HOME", "own HOME"),
            ("LANG", "C"),
            ("MUSTER_ATTEMPT", "3"),
            ("MUSTER_BASE", "b"),
            ("MUSTER_CONTEXT_FILE", "/s/7/context.json"),
            ("MUSTER_RUN", "r"),
            ("MUSTER_TASK", "t"),
            ("PATH", "own PATH"),
            ("TERM", "dumb"),
            ("TMPDIR", "/s/7/tmp"),
            ("TOKEN", "t"),
            ("USER", "own USER"),
        ];
        let seen: Vec<_> = env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(seen, expected);
    }
}
