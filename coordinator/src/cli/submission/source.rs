//! Where the code of a run comes from, as a commit in a repository of this machine.

use std::collections::BTreeSet;
use std::path::Path;

use muster_git::{
    CommitTime, Git, GitCommand, GitError, Identity, Mode, ObjectFormat, ObjectId, RefName,
    Refspec, Remote, Repository,
};
use tempfile::TempDir;

use super::ReadPlan;
use crate::cli::error::{CliError, Kind, Result};
use crate::cli::fetch::not_opened;
use crate::cli::land::some;
use crate::output::Output;
use crate::plan::{FolderRepo, Hooks, PlanDocument, Repo};

/// When every commit of a folder was made: a repeat must give the same commit. 2000-01-01.
const FOLDER_COMMIT_TIME: u64 = 946_684_800;
/// Digits of the hash that tells repositories of one name apart.
const HINT_HASH_DIGITS: usize = 8;
const HINT_NAME_CHARS: usize = 40;
/// How much of a list of files is held, in bytes: more than 500 000 files.
const STAGED_BYTES_MAX: usize = 64 << 20;
/// The remote of a plan's git URL within one command.
const REMOTE: &str = "muster-source";

/// A commit to start from, and the repository that has it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) repository: Repository,
    pub(crate) base: ObjectId,
    /// What the hosted repository should be called; the same repository gives the same.
    pub(crate) hint: String,
    /// Folder of the plan's repository path within its repository: empty, or ending in `/`.
    pub(crate) folder_prefix: String,
    _temporary: Option<TempDir>,
}

impl Source {
    /// Finds the plan's repository, or `instead` of it, and the commit that `base` names there.
    ///
    /// `None` if the plan has no repository.
    pub(crate) async fn find(
        git: &Git,
        output: Output,
        read: &ReadPlan,
        instead: Option<&str>,
    ) -> Result<Option<Self>> {
        let document = &read.plan.document;
        let beside = read.path.parent().unwrap_or(Path::new(""));
        let base = document.base.as_deref();
        let found = match (&document.repo, instead) {
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                return Err(CliError::user(format!(
                    "{} names no repository, so `--repo` has nothing to replace",
                    read.path.display()
                ))
                .hint("add `repo: .` to the plan"));
            }
            // A path that is typed is relative to where it is typed.
            (Some(_), Some(text)) => match Repo::Location(text.to_owned()) {
                url if url.is_url() => Self::of_url(git, text, base).await?,
                _ => Self::of_path(git, output, Path::new(text), base).await?,
            },
            (Some(repo @ Repo::Location(text)), None) if repo.is_url() => {
                Self::of_url(git, text, base).await?
            }
            (Some(Repo::Location(text)), None) => {
                Self::of_path(git, output, &beside.join(text), base).await?
            }
            (Some(Repo::Folder(FolderRepo { from })), None) => {
                if base.is_some() {
                    return Err(CliError::user(
                        "`base` has no meaning for a repository that is made of a folder",
                    ));
                }
                Self::of_folder(git, &beside.join(from), read.plan.name()).await?
            }
        };
        Ok(Some(found))
    }

    /// Checks that the folders whose hooks the plan wants to run are in the base commit.
    ///
    /// # Errors
    /// One is not, so that its hooks would silently not run.
    pub(crate) async fn has_hooks(&self, document: &PlanDocument) -> Result<()> {
        let tasks = document.tasks.iter().map(|task| &task.settings);
        let hooks = tasks.chain([&document.defaults]).filter_map(|settings| {
            let Some(Hooks::In(folder)) = &settings.hooks else {
                return None;
            };
            Some(folder.path.as_str())
        });
        for folder in hooks.collect::<BTreeSet<_>>() {
            let base = self.base.to_string();
            let listed = self
                .repository
                .command()
                .env("GIT_LITERAL_PATHSPECS", "1")
                .args(["ls-tree", "-d", "--full-tree", "--name-only", "-z"])
                .args(["--end-of-options", base.as_str(), folder])
                .run_ok()
                .await?;
            if listed.stdout.is_empty() {
                let base = crate::cli::show::short(&base);
                return Err(CliError::user(format!(
                    "`hooks`: the commit {base} that the run starts from has no folder {folder:?}"
                ))
                .hint(
                    "commit the folder with its hooks, or write `hooks: never`; those in \
                     .git/hooks are not part of any commit",
                ));
            }
        }
        Ok(())
    }

    /// Tells what may keep the repository from being pushed, and the way out.
    pub(crate) async fn hint_for_push(&self) -> &'static str {
        let says = |arguments: &'static [&'static str]| async move {
            let asked = self.repository.command().args(arguments).run_ok().await;
            asked.map(|output| output.text()).unwrap_or_default()
        };
        if says(&["rev-parse", "--is-shallow-repository"]).await == "true" {
            return "the repository is a shallow clone, which cannot be pushed; \
                    `git fetch --unshallow` completes it";
        }
        let promised = ["config", "--get-regexp", r"^remote\..*\.promisor$"];
        let asked = self.repository.command().args(promised).run_ok().await;
        if asked.is_ok() {
            return "the repository is a partial clone: what it lacks has to be fetched from its \
                    own remote, which must be within reach without a question; \
                    `git fetch --refetch --no-filter` completes it";
        }
        "see whether the repository is whole with `git fsck`"
    }

    async fn of_path(git: &Git, output: Output, folder: &Path, base: Option<&str>) -> Result<Self> {
        let shown = folder.display();
        if !folder.is_dir() {
            return Err(CliError::user(format!(
                "the repository {shown} is not there, or not a folder"
            ))
            .hint("`repo` is relative to the plan file; `--repo PATH` takes another"));
        }
        let repository = Repository::open_user(git, folder).await.map_err(|error| {
            let hint = "`repo: {from: DIR}` makes a fresh repository of a folder that is none";
            not_opened(error, &shown.to_string(), hint)
        })?;
        let base_id = match repository.rev_parse(base.unwrap_or("HEAD")).await {
            Ok(id) => id,
            Err(error) => return Err(no_base(&repository, &shown.to_string(), base, error).await),
        };
        let ask = |arguments: [&'static str; 2]| {
            git.command(Mode::UserRepository)
                .directory(folder)
                .args(arguments)
                .run_ok()
        };
        let folder_prefix = ask(["rev-parse", "--show-prefix"]).await?.text();
        let common = ask(["rev-parse", "--git-common-dir"]).await?.path();
        let common = folder.join(common);
        let common = common.canonicalize().map_err(|error| {
            CliError::new(Kind::User, error).while_doing(format!("find {}", common.display()))
        })?;
        warn_of_uncommitted(git, output, folder, base_id).await;
        let name = match common.file_name() {
            Some(name) if name == ".git" => common.parent().and_then(Path::file_name),
            name => name,
        };
        let name = name.map(|name| name.to_string_lossy()).unwrap_or_default();
        Ok(Self {
            repository,
            base: base_id,
            hint: hint(&name, &common.to_string_lossy()),
            folder_prefix,
            _temporary: None,
        })
    }

    async fn of_url(git: &Git, url: &str, base: Option<&str>) -> Result<Self> {
        let remote = Remote::new(url)?;
        let shown = remote.display_url();
        let what = |error: CliError| error.while_doing(format!("fetch from {shown}"));
        // The person's own configuration and keys decide whether they may read it.
        let listed = git
            .command(Mode::UserRepository)
            .config(format!("remote.{REMOTE}.url"), url)
            .secret(url)
            .args(["ls-remote", "--quiet", "--end-of-options", REMOTE])
            .run_ok()
            .await
            .map_err(|error| what(error.into()))?
            .text();
        let (name, format) = choose(&listed, base).ok_or_else(|| {
            CliError::user(match base {
                Some(base) => format!("{shown} has no branch, tag or commit called {base:?}"),
                None => format!("{shown} has no commit yet"),
            })
        })?;
        let folder = temporary()?;
        Repository::init_bare(git, folder.path(), format).await?;
        let repository = Repository::open_user(git, folder.path()).await?;
        let fetched = RefName::parse("refs/muster/fetched")?;
        let refspec = match &name {
            Wanted::Ref(name) => Refspec::to_ref(name, &fetched),
            Wanted::Commit(id) => Refspec::commit_to_ref(*id, &fetched),
        };
        remote
            .fetch(&repository, &[refspec])
            .await
            .map_err(|error| what(error.into()))?;
        let base = repository.rev_parse(fetched.as_str()).await?;
        let last = url.trim_end_matches('/').rsplit(['/', ':']).next();
        let last = last.unwrap_or_default().trim_end_matches(".git");
        Ok(Self {
            repository,
            base,
            hint: hint(last, &shown),
            folder_prefix: String::new(),
            _temporary: Some(folder),
        })
    }

    async fn of_folder(git: &Git, folder: &Path, plan: &str) -> Result<Self> {
        let refused = |error: std::io::Error| {
            CliError::new(Kind::User, error)
                .while_doing(format!("read the folder {}", folder.display()))
                .hint("`from` is relative to the plan file")
        };
        if folder.is_file() {
            return Err(refused(std::io::ErrorKind::NotADirectory.into()));
        }
        let folder = folder.canonicalize().map_err(refused)?;
        let temporary = temporary()?;
        let repository = Repository::init_bare(git, temporary.path(), ObjectFormat::Sha1).await?;
        let within = || {
            repository
                .command()
                .env("GIT_WORK_TREE", &folder)
                .directory(&folder)
        };
        let add = within().args(["add", "--all", "."]);
        let described = format!("make a repository of the folder {}", folder.display());
        let added = add.config("core.safecrlf", "false").run().await?;
        let nested = nested_in(&added, within()).await?;
        if !nested.is_empty() {
            let list = some(nested.iter().map(String::as_str));
            return Err(CliError::user(format!(
                "cannot {described}: parts of it are repositories of their own, which a commit \
                 cannot hold: {list}"
            ))
            .hint("name a repository as `repo: PATH`, list it in a .gitignore, or move it away"));
        }
        if added.exit_code != Some(0) {
            return Err(CliError::user(added.stderr).while_doing(described));
        }
        let tree = within().arg("write-tree").run_ok().await?.text();
        let name = folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let identity = Identity::new("Muster", "muster@localhost")?;
        let base = repository
            .commit_tree(
                ObjectId::parse(&tree)?,
                &[],
                &format!("Import {name}"),
                &identity,
                CommitTime::from_unix_seconds(FOLDER_COMMIT_TIME),
            )
            .await?;
        Ok(Self {
            repository,
            base,
            hint: hint(plan, &folder.to_string_lossy()),
            folder_prefix: String::new(),
            _temporary: Some(temporary),
        })
    }
}

/// Lists the repositories that git has found inside a folder when it was to add all of it: those
/// without a commit it refuses, and of others it would keep nothing but the commit's id.
async fn nested_in(added: &muster_git::Output, within: GitCommand) -> Result<Vec<String>> {
    let refused = added.stderr.lines().filter_map(|line| {
        let line = line.strip_prefix("error: '")?;
        line.strip_suffix("/' does not have a commit checked out")
    });
    let mut nested: Vec<String> = refused.map(str::to_owned).collect();
    let staged = within
        .args(["ls-files", "--stage", "-z"])
        .stdout_limit(STAGED_BYTES_MAX);
    let staged = staged.run_ok().await?.text();
    let links = staged.split('\0').filter_map(|entry| {
        let entry = entry.strip_prefix("160000 ")?;
        Some(entry.split_once('\t')?.1.to_owned())
    });
    nested.extend(links);
    Ok(nested)
}

/// Says why there is no commit to start from.
async fn no_base(
    repository: &Repository,
    shown: &str,
    base: Option<&str>,
    error: GitError,
) -> CliError {
    if !matches!(error, GitError::UnknownRevision { .. }) {
        return CliError::from(error);
    }
    let ask = |arguments: &[&str]| repository.command().args(arguments).run_ok();
    let named = base.unwrap_or("HEAD");
    let way = [
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        named,
    ];
    let kind = match ask(&way).await {
        Ok(found) => Some(ask(&["cat-file", "-t", &found.text()]).await),
        Err(_) => None,
    };
    match (kind, base) {
        (Some(Ok(kind)), _) => {
            let kind = kind.text();
            CliError::user(format!(
                "{named:?} in the repository {shown} is a {kind}, not a commit"
            ))
            .hint("`base` in the plan is a branch, a tag or a commit")
        }
        (Some(Err(_)), _) => CliError::user(format!(
            "the commit of {named:?} in the repository {shown} cannot be read"
        ))
        .hint("the repository is damaged; `git fsck` says how"),
        (None, None) => CliError::user(format!("the repository {shown} has no commit yet"))
            .hint("commit something first, or name a branch as `base` in the plan"),
        (None, Some(base)) => CliError::user(format!(
            "the repository {shown} has no commit called {base:?}"
        ))
        .hint("`base` in the plan is a branch, a tag or a commit"),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Ref(RefName),
    Commit(ObjectId),
}

/// Chooses what to fetch from what a remote lists: branches before tags, `HEAD` if nothing is asked
/// for, else a commit that is asked for by its id.
fn choose(listed: &str, base: Option<&str>) -> Option<(Wanted, ObjectFormat)> {
    let refs: Vec<(&str, ObjectId)> = listed
        .lines()
        .filter_map(|line| {
            let (id, name) = line.split_once('\t')?;
            Some((name, ObjectId::parse(id).ok()?))
        })
        .collect();
    let format = refs.first()?.1.format();
    let find = |name: &str| refs.iter().find(|(found, _)| *found == name);
    let wanted = match base {
        None | Some("HEAD") => {
            let (_, head) = find("HEAD")?;
            Some(Wanted::Commit(*head))
        }
        Some(base) => [
            format!("refs/heads/{base}"),
            format!("refs/tags/{base}"),
            base.to_owned(),
        ]
        .iter()
        .find_map(|name| {
            find(name)?;
            RefName::parse(name).ok().map(Wanted::Ref)
        })
        .or_else(|| ObjectId::parse(base).ok().map(Wanted::Commit)),
    };
    wanted.map(|wanted| (wanted, format))
}

/// Says that what is not committed stays at home; nobody expects that of a tool that runs here.
async fn warn_of_uncommitted(git: &Git, output: Output, folder: &Path, base: ObjectId) {
    let ask = || git.command(Mode::UserRepository).directory(folder);
    let named = ["config", "--null", "--name-only", "--get-regexp"];
    let filters = ask()
        .args(named)
        .arg(r"^filter\..*\.(clean|process|required)$")
        .run()
        .await
        .map(|output| output.stdout)
        .unwrap_or_default();
    // Nor may looking run their programs. A file with a filter that was touched and not changed
    // counts as changed, then, until the person's own git has looked at it.
    let without_filters = filters
        .split(|byte| *byte == 0)
        .filter_map(|key| std::str::from_utf8(key).ok())
        .filter(|key| !key.is_empty())
        .fold(ask(), |command, key| {
            let value = if key.ends_with(".required") {
                "false"
            } else {
                ""
            };
            command.config(key, value)
        });
    let asked = without_filters
        // Looking must not even refresh the index.
        .env("GIT_OPTIONAL_LOCKS", "0")
        .args([
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--ignore-submodules",
        ])
        .run_ok()
        .await;
    // A bare repository has no work tree to ask about.
    let Ok(found) = asked else { return };
    let count = found.text().lines().count();
    if count > 0 {
        let what = crate::cli::show::counted(count, "file");
        let base = base.to_string();
        let base = crate::cli::show::short(&base);
        output.say(&format!(
            "warning: uncommitted changes in {what} are not part of the run, which starts from {base}"
        ));
    }
}

fn temporary() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("muster-")
        .tempdir()
        .map_err(|error| CliError::internal(error).while_doing("make a temporary folder"))
}

/// Makes a name that is the same for the same place, and readable.
fn hint(name: &str, place: &str) -> String {
    let mut slug: String = name
        .chars()
        .map(|letter| match letter {
            'A'..='Z' => letter.to_ascii_lowercase(),
            'a'..='z' | '0'..='9' | '-' | '_' => letter,
            _ => '-',
        })
        .take(HINT_NAME_CHARS)
        .collect();
    slug = slug.trim_matches('-').to_owned();
    if slug.is_empty() {
        slug.push_str("repository");
    }
    let hash = blake3::hash(place.as_bytes()).to_hex();
    let hash = hash.get(..HINT_HASH_DIGITS).unwrap_or_default();
    format!("{slug}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";

    #[test]
    fn the_base_of_a_remote_is_a_branch_before_a_tag_before_a_commit() {
        let listed = format!(
            "{ONE}\tHEAD\n{ONE}\trefs/heads/main\n{TWO}\trefs/heads/v1\n{ONE}\trefs/tags/v1\n"
        );
        let chosen = |base| choose(&listed, base).map(|(wanted, _)| wanted);
        let name = |name| Some(Wanted::Ref(RefName::parse(name).unwrap()));
        assert_eq!(chosen(Some("v1")), name("refs/heads/v1"));
        assert_eq!(chosen(Some("main")), name("refs/heads/main"));
        assert_eq!(chosen(Some("refs/tags/v1")), name("refs/tags/v1"));
        assert_eq!(
            chosen(None),
            Some(Wanted::Commit(ObjectId::parse(ONE).unwrap()))
        );
        assert_eq!(
            chosen(Some(TWO)),
            Some(Wanted::Commit(ObjectId::parse(TWO).unwrap()))
        );
        assert_eq!(chosen(Some("absent")), None);
        assert_eq!(choose("", None), None);
    }

    #[test]
    fn a_hint_is_readable_and_tells_places_apart() {
        let (one, two) = (hint("My App", "/a"), hint("My App", "/b"));
        assert!(one.starts_with("my-app-"), "{one}");
        assert_ne!(one, two);
        assert_eq!(one, hint("My App", "/a"));
        assert!(hint("日本", "/a").starts_with("repository-"));
    }
}
