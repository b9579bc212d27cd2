//! Copies of hosted repositories.

use std::path::{Path, PathBuf};

use muster_git::{Git, ObjectId, RefName, Repository};

use super::promises::Promises;
use super::{Error, files, io};
use crate::git::repository;

/// Refs or ids in one git process.
const AT_ONCE: usize = 100_000;
/// Repacks that one copy stands; there are minutes between two.
const COPY_TRIES: usize = 5;
/// Git may have to walk a large history.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(4 * 3_600);

/// Copies a repository: all objects, and refs as the journal has them; gives how many refs.
pub(super) async fn copy(
    git: &Git,
    (from, to): (&Path, &Path),
    name: &str,
    promises: &Promises,
) -> Result<usize, Error> {
    let source = Repository::open_bare(git, from).await?;
    // Before the objects, so that what these reach is among those.
    let mut refs: Vec<(RefName, String)> = Vec::new();
    for (name, id) in source.list_refs("refs").await? {
        if !promises.refs.contains_key(name.as_str()) && promises.allows(name.as_str()) {
            refs.push((name, id.to_string()));
        }
    }
    for (name, commit) in &promises.refs {
        refs.push((RefName::parse(name)?, commit.to_string()));
    }
    if let Some(parent) = to.parent() {
        files::folder(parent)?;
    }
    repository::init(git, to, source.object_format().await?).await?;
    copy_objects(&from.join("objects"), &to.join("objects"))?;
    let target = Repository::open_bare(git, to).await?;
    has_commits(&target, name, promises).await?;
    for refs in refs.chunks(AT_ONCE) {
        let lines = refs
            .iter()
            .map(|(name, id)| format!("create {name}\0{id}\0"))
            .collect::<String>();
        target
            .command()
            .config("core.fsync", "none")
            .args(["update-ref", "--stdin", "-z"])
            .stdin(lines)
            .timeout(PATIENCE)
            .run_ok()
            .await?;
    }
    target
        .command()
        .config("core.fsync", "none")
        .args(["pack-refs", "--all", "--prune"])
        .run_ok()
        .await?;
    Ok(refs.len())
}

/// Copies loose objects and packs. A repack may move objects into other files meanwhile; then all
/// is copied again, since a file that has gone says nothing about where its objects are.
fn copy_objects(from: &Path, to: &Path) -> Result<(), Error> {
    for _ in 0..COPY_TRIES {
        if copy_listed(&files::list(from)?, from, to)? {
            return Ok(());
        }
        std::fs::remove_dir_all(to).map_err(io("empty", to))?;
    }
    let moving = "its files keep being replaced; try again while less is pushed";
    Err(io("copy", from)(std::io::Error::other(moving)))
}

/// Copies the files of a list; tells whether all were there. What is just being received has names
/// of its own and is left out; an index is taken only when its pack was there.
fn copy_listed(all: &[PathBuf], from: &Path, to: &Path) -> Result<bool, Error> {
    files::folder(to)?;
    for path in all {
        let below = path.strip_prefix(from).unwrap_or(path);
        let is_incoming = below.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            part.starts_with(repository::INCOMING) || part.starts_with("tmp_")
        });
        let beside_pack = path
            .extension()
            .is_some_and(|end| end == "idx" || end == "rev" || end == "bitmap");
        let orphan = beside_pack && all.binary_search(&path.with_extension("pack")).is_err();
        // The rest of `info` is derived, and `alternates` would lead out of the backup.
        if is_incoming || orphan || below.starts_with("info") {
            continue;
        }
        if files::copy(path, &to.join(below))?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Insists on every commit that the journal names.
async fn has_commits(
    repository: &Repository,
    name: &str,
    promises: &Promises,
) -> Result<(), Error> {
    let commits: Vec<_> = promises.commits.iter().collect();
    for commits in commits.chunks(AT_ONCE) {
        let mut lines = String::new();
        for (commit, _) in commits {
            // An id, and nothing that git could take for a name.
            lines.push_str(&ObjectId::parse(commit.as_str())?.to_string());
            lines.push('\n');
        }
        let output = repository
            .command()
            .args(["cat-file", "--batch-check=%(objecttype)"])
            .stdin(lines)
            .run_ok()
            .await?;
        let text = output.text();
        let mut types = text.lines();
        for (commit, what) in commits {
            if types.next() != Some("commit") {
                return Err(Error::MissingCommit {
                    repository: name.to_owned(),
                    commit: commit.to_string(),
                    what: (*what).clone(),
                });
            }
        }
    }
    Ok(())
}

/// Lists the hosted repositories of a home by name.
pub(super) fn list(home: &Path) -> Result<Vec<String>, Error> {
    let folder = repository::folder(home);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io("list", &folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(io("list", &folder))?.file_name();
        // One that is being made begins with a dot.
        let name = name.to_str().and_then(|name| name.strip_suffix(".git"));
        names.extend(
            name.filter(|name| !name.starts_with('.'))
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repack_between_listing_and_copying_is_seen_and_all_is_copied_again() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::create_dir_all(from.join("pack")).unwrap();
        for file in ["pack/pack-1.pack", "pack/pack-1.idx"] {
            std::fs::write(from.join(file), file).unwrap();
        }
        let before = files::list(&from).unwrap();
        for end in ["pack", "idx"] {
            let name = |pack: u32| from.join(format!("pack/pack-{pack}.{end}"));
            std::fs::rename(name(1), name(2)).unwrap();
        }
        assert!(!copy_listed(&before, &from, &to).unwrap());
        std::fs::remove_dir_all(&to).unwrap();
        copy_objects(&from, &to).unwrap();
        assert!(to.join("pack/pack-2.pack").exists() && to.join("pack/pack-2.idx").exists());
    }
}
