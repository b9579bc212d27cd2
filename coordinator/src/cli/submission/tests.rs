use std::net::{Ipv4Addr, SocketAddr};

use muster_git::Mode;

use super::*;
use crate::app::{self, App};
use crate::cli::client::Whereabouts;
use crate::cli::find;
use crate::config::{self, Flags};
use crate::output::ColorChoice;
use crate::pool::local::Parting;

/// A coordinator without workers, and a folder for plans and repositories.
struct World {
    folder: tempfile::TempDir,
    git: Git,
    client: Client,
    app: App,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let config = config::load(&home, Flags::default()).unwrap().config;
        let app = App::start(app::Options {
            home: home.clone(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            mode: app::Mode::Embedded,
            local_slots: 0,
            clocks: config.clocks,
            heartbeat_interval: config.heartbeat_interval,
            agents: config.agents,
            mirrors: config.mirrors,
            prices: config.prices,
            pools: config.pools,
            // What git's hook runs, and it consents: no lease is tested here.
            executable: "/bin/true".into(),
        })
        .await
        .unwrap();
        let client = Client::connect(&Whereabouts::Home(home))
            .await
            .map_err(CliError::from);
        Self {
            git: Git::find().await.unwrap(),
            client: client.unwrap(),
            folder,
            app,
        }
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn run(&self, folder: &str, arguments: &[&str]) -> String {
        self.git
            .command(Mode::UserRepository)
            .directory(&self.folder.path().join(folder))
            .config("user.name", "Ann")
            .config("user.email", "ann@example.org")
            .args(arguments)
            .run_ok()
            .await
            .unwrap()
            .text()
    }

    async fn submit(
        &self,
        plan: &Path,
        key: &str,
        repo: Option<&str>,
    ) -> Result<v1::SubmitRunResponse> {
        let read = read_plan(plan, &BTreeMap::new())?;
        let submission = self.find(&read, repo).await?;
        submission.submit_as(&self.client, key.to_owned()).await
    }

    async fn find<'r>(&self, read: &'r ReadPlan, repo: Option<&str>) -> Result<Submission<'r>> {
        let output = Output::of_process(ColorChoice::Never, true);
        Submission::find(&self.git, output, read, repo, &BTreeMap::new()).await
    }

    /// Tells how many runs there are of a plan as it is now.
    async fn runs_of(&self, plan: &Path) -> u32 {
        let read = read_plan(plan, &BTreeMap::new()).unwrap();
        let submission = self.find(&read, None).await.unwrap();
        submission.next_number(&self.client).await.unwrap()
    }

    async fn repository(&self) {
        self.write("app/a.txt", "one\n");
        self.run("app", &["init", "--quiet", "--initial-branch=main"])
            .await;
        self.run("app", &["add", "."]).await;
        self.run("app", &["commit", "--quiet", "-m", "one"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_submitted_as_it_was_committed_and_not_written_to() {
    let world = World::new().await;
    world.write("app/sub/a.txt", "one\n");
    world
        .run("app", &["init", "--quiet", "--initial-branch=main"])
        .await;
    world.run("app", &["add", "."]).await;
    world.run("app", &["commit", "--quiet", "-m", "one"]).await;
    world.write("app/sub/a.txt", "two, not committed\n");
    let plan = world.write(
        "app/sub/plan.yaml",
        "repo: .\ntasks:\n  - name: one\n    run: \"true\"\n",
    );
    let files = || async {
        let head = world.run("app", &["rev-parse", "HEAD"]).await;
        (
            head,
            world.run("app", &["for-each-ref"]).await,
            world.run("app", &["count-objects"]).await,
        )
    };
    let before = files().await;

    let submitted = world.submit(&plan, "k", None).await.unwrap();
    let run = find::get(&world.client, &submitted.run).await.unwrap();
    assert_eq!(run.base.as_deref(), Some(before.0.as_str()));
    assert_eq!(files().await, before);

    let again = world.submit(&plan, "k", None).await.unwrap();
    assert_eq!((again.run, again.fresh), (submitted.run, false));
    let other = world.submit(&plan, "l", None).await.unwrap();
    let other = find::get(&world.client, &other.run).await.unwrap();
    assert_ne!(other.run, run.run);
    assert_eq!(other.repository, run.repository);
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn submitting_runs_no_filter_and_no_hook_of_the_person() {
    let world = World::new().await;
    world.repository().await;
    let trace = world.folder.path().join("trace");
    let script = format!("#!/bin/sh\necho $0 >> '{}'\ncat\n", trace.display());
    let program = world.write("program", &script);
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    for hook in ["pre-push", "post-index-change", "reference-transaction"] {
        std::fs::copy(&program, world.write(&format!("app/.git/hooks/{hook}"), "")).unwrap();
    }
    let program = program.to_str().unwrap();
    for (key, value) in [("clean", program), ("required", "true")] {
        let key = format!("filter.C.d.{key}");
        world.run("app", &["config", &key, value]).await;
    }
    world.write("app/.git/info/attributes", "* filter=C.d\n");
    world.write("app/a.txt", "two\n");
    // The person's own git does run it.
    world.run("app", &["status", "--porcelain"]).await;
    assert!(trace.exists());
    std::fs::remove_file(&trace).unwrap();
    world.write("app/a.txt", "six\n");
    let plan = plan_of(&world, "app", "base: main");
    world.submit(&plan, "key", None).await.unwrap();
    assert!(
        !trace.exists(),
        "{}",
        std::fs::read_to_string(&trace).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_that_are_not_committed_are_refused_before_anything_is_sent() {
    let world = World::new().await;
    world.repository().await;
    world.write("app/.githooks/pre-commit", "#!/bin/sh\n");
    let text = "repo: ./app\ntasks: [{name: a, run: echo, hooks: {path: .githooks}}]\n";
    let plan = world.write("plan.yaml", text);
    let refused = world.submit(&plan, "key", None).await.unwrap_err();
    let refused = format!("{refused:?}");
    assert!(refused.contains("has no folder \".githooks\""), "{refused}");
    assert!(refused.contains("hooks: never"), "{refused}");
    world.run("app", &["add", "."]).await;
    world
        .run("app", &["commit", "--quiet", "-m", "hooks"])
        .await;
    world.submit(&plan, "key", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_becomes_the_same_commit_each_time() {
    let world = World::new().await;
    world.write("code/a.txt", "one\n");
    let plan = world.write(
        "plan.yaml",
        "repo: { from: code }\ntasks:\n  - name: one\n    run: \"true\"\n",
    );
    let mut bases = Vec::new();
    for key in ["k", "l"] {
        let submitted = world.submit(&plan, key, None).await.unwrap();
        bases.push(
            find::get(&world.client, &submitted.run)
                .await
                .unwrap()
                .base
                .unwrap(),
        );
    }
    assert_eq!(bases.first(), bases.last());
    assert!(!world.folder.path().join("code/.git").exists());
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_url_is_fetched_and_its_branch_submitted() {
    let world = World::new().await;
    world.write("app/a.txt", "one\n");
    world
        .run("app", &["init", "--quiet", "--initial-branch=main"])
        .await;
    world.run("app", &["add", "."]).await;
    world.run("app", &["commit", "--quiet", "-m", "one"]).await;
    world.run("app", &["branch", "next"]).await;
    let head = world.run("app", &["rev-parse", "HEAD"]).await;
    let url = format!("file://{}", world.folder.path().join("app").display());
    let plan = world.write(
        "plan.yaml",
        &format!("repo: {url}\nbase: next\ntasks:\n  - name: one\n    run: \"true\"\n"),
    );
    let submitted = world.submit(&plan, "k", None).await.unwrap();
    let run = find::get(&world.client, &submitted.run).await.unwrap();
    assert_eq!(run.base, Some(head));
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_an_address_is_in_no_message() {
    let world = World::new().await;
    let text = "repo: http://tok3n@127.0.0.1:1/a.git\ntasks: [{name: one, run: \"true\"}]\n";
    let plan = world.write("plan.yaml", text);
    let pair = "http://ann:tok3n@127.0.0.1:1/a.git";
    for instead in [None, Some(pair)] {
        let error = world.submit(&plan, "k", instead).await.unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(said.contains("http://***@127.0.0.1:1/a.git"), "{said}");
        assert!(!said.contains("tok3n"), "{said}");
    }
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_repository_needs_none() {
    let world = World::new().await;
    let plan = world.write("plan.yaml", "tasks:\n  - name: one\n    run: \"true\"\n");
    let submitted = world.submit(&plan, "k", None).await.unwrap();
    let run = find::get(&world.client, &submitted.run).await.unwrap();
    assert_eq!((run.base, run.repository), (None, None));
    let error = world.submit(&plan, "l", Some(".")).await.unwrap_err();
    assert!(error.to_string().contains("names no repository"), "{error}");
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_what_has_not_changed_are_counted() {
    let world = World::new().await;
    world.repository().await;
    let text = "name: plan\nrepo: app\ntasks:\n  - name: one\n    run: \"true\"\n";
    let plan = world.write("plan.yaml", text);
    let read = read_plan(&plan, &BTreeMap::new()).unwrap();
    let submission = world.find(&read, None).await.unwrap();
    let mut names = Vec::new();
    for number in 0..6 {
        assert_eq!(submission.next_number(&world.client).await.unwrap(), number);
        let submitted = submission.submit_again(&world.client).await.unwrap();
        assert!(submitted.fresh);
        let name = submission.name(&world.client, number).await.unwrap();
        assert_eq!(name, submitted.run);
        names.push(name);
    }
    names.dedup();
    assert_eq!(names.len(), 6);
    // The same contents elsewhere are the same; a comment, or another commit, is a change.
    assert_eq!(world.runs_of(&world.write("copy.yaml", text)).await, 6);
    let changed = format!("# changed\n{text}");
    assert_eq!(world.runs_of(&world.write("plan.yaml", &changed)).await, 0);
    let plan = world.write("plan.yaml", text);
    world
        .run("app", &["commit", "--quiet", "--allow-empty", "-m", "two"])
        .await;
    assert_eq!(world.runs_of(&plan).await, 0);
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_that_begin_the_same_at_once_one_is_first() {
    let world = World::new().await;
    world.repository().await;
    let text = "repo: app\ntasks:\n  - name: one\n    run: \"true\"\n";
    let plan = world.write("plan.yaml", text);
    let read = read_plan(&plan, &BTreeMap::new()).unwrap();
    for number in 0..4 {
        let begin = || async {
            let submission = world.find(&read, None).await.unwrap();
            submission.submit(&world.client, number).await.unwrap()
        };
        let begun = futures::future::join_all([begin(), begin(), begin()]).await;
        let fresh = begun.iter().filter(|submitted| submitted.fresh).count();
        assert_eq!(fresh, 1, "{begun:?}");
        let first = begun.first().map(|submitted| &submitted.run);
        assert!(begun.iter().all(|submitted| Some(&submitted.run) == first));
    }
    assert_eq!(world.runs_of(&plan).await, 4);
    world.app.stop(Parting::Keep).await.unwrap();
}

#[test]
fn all_problems_of_a_plan_are_said_with_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.yaml");
    std::fs::write(
        &path,
        "tasks:\n  - name: one\n    rum: x\n  - name: two\n    run: x\n    depends_on: [tow]\n",
    )
    .unwrap();
    let error = read_plan(&path, &BTreeMap::new()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::User);
    let text = error.to_string();
    let place = format!("{}:3:5: ", path.display());
    assert!(text.starts_with(&place), "{text}");
    assert!(text.contains("plan.yaml:6:"), "{text}");
    assert!(text.contains("problems"), "{text}");
}

/// A repository `full` of four commits that can be cloned in part.
async fn full(world: &World) {
    world.write("full/a.txt", "one\n");
    world
        .run("full", &["init", "--quiet", "--initial-branch=main"])
        .await;
    world
        .run("full", &["config", "uploadpack.allowFilter", "true"])
        .await;
    for number in ["1", "2", "3", "4"] {
        world.write("full/a.txt", number);
        world.run("full", &["add", "."]).await;
        world
            .run("full", &["commit", "--quiet", "-m", number])
            .await;
    }
}

fn plan_of(world: &World, repo: &str, base: &str) -> PathBuf {
    let text = format!("repo: {repo}\n{base}\ntasks:\n  - name: one\n    run: \"true\"\n");
    world.write(&format!("{}.yaml", repo.replace('/', "-")), &text)
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_that_lack_something_are_submitted_or_refused_with_the_way_out() {
    let world = World::new().await;
    full(&world).await;
    let url = format!("file://{}", world.folder.path().join("full").display());
    for (name, how) in [
        ("shallow", "--depth=2"),
        ("partial", "--filter=blob:none"),
        ("treeless", "--filter=tree:0"),
        ("cut-off", "--filter=tree:0"),
        ("damaged", "--no-local"),
        ("grafted", "--no-local"),
    ] {
        world.run("", &["clone", "--quiet", how, &url, name]).await;
    }
    let gone = ["config", "remote.origin.url", "/nonexistent"];
    world.run("cut-off", &gone).await;
    let head = world.run("grafted", &["rev-parse", "HEAD"]).await;
    world.write("grafted/.git/info/grafts", &head);
    world.run("damaged", &["repack", "-adq"]).await;
    let packs = world.folder.path().join("damaged/.git/objects/pack");
    for pack in std::fs::read_dir(packs).unwrap() {
        let pack = pack.unwrap().path();
        if pack.extension().is_some_and(|end| end == "pack") {
            std::fs::set_permissions(&pack, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            let bytes = std::fs::read(&pack).unwrap();
            std::fs::write(&pack, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
    let mut refused = String::new();
    for name in [
        "partial", "treeless", "grafted", "shallow", "cut-off", "damaged",
    ] {
        let plan = plan_of(&world, name, "");
        match world.submit(&plan, name, None).await {
            Ok(_) => refused.push_str(&format!("{name}: submitted\n")),
            Err(error) => {
                let hint = error
                    .to_string()
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .to_owned();
                refused.push_str(&format!("{name}: {hint}\n"));
            }
        }
    }
    insta::assert_snapshot!(refused, @r"
    partial: submitted
    treeless: submitted
    grafted: submitted
    shallow: hint: the repository is a shallow clone, which cannot be pushed; `git fetch --unshallow` completes it
    cut-off: hint: the repository is a partial clone: what it lacks has to be fetched from its own remote, which must be within reach without a question; `git fetch --refetch --no-filter` completes it
    damaged: hint: the repository is damaged; `git fsck` says how
    ");
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_is_no_commit_is_refused_by_name() {
    let world = World::new().await;
    full(&world).await;
    world.write("unborn/a.txt", "one\n");
    world.run("unborn", &["init", "--quiet"]).await;
    let mut refused = String::new();
    for (repo, base) in [
        ("unborn", ""),
        ("full", "base: HEAD^{tree}"),
        ("full", "base: HEAD:a.txt"),
        ("full", "base: absent"),
        ("full", "base: HEAD~9"),
        ("full", "base: --all"),
        ("absent", ""),
        ("home", ""),
        ("{from: full/a.txt}", ""),
    ] {
        let plan = plan_of(&world, repo, base);
        let error = world.submit(&plan, "k", None).await.unwrap_err();
        refused.push_str(&format!("{error}\n"));
    }
    let refused = refused.replace(&world.folder.path().display().to_string(), "FOLDER");
    insta::assert_snapshot!(refused, @r#"
    error: the repository FOLDER/unborn has no commit yet
    hint: commit something first, or name a branch as `base` in the plan
    error: "HEAD^{tree}" in the repository FOLDER/full is a tree, not a commit
    hint: `base` in the plan is a branch, a tag or a commit
    error: "HEAD:a.txt" in the repository FOLDER/full is a blob, not a commit
    hint: `base` in the plan is a branch, a tag or a commit
    error: the repository FOLDER/full has no commit called "absent"
    hint: `base` in the plan is a branch, a tag or a commit
    error: the repository FOLDER/full has no commit called "HEAD~9"
    hint: `base` in the plan is a branch, a tag or a commit
    error: the repository FOLDER/full has no commit called "--all"
    hint: `base` in the plan is a branch, a tag or a commit
    error: the repository FOLDER/absent is not there, or not a folder
    hint: `repo` is relative to the plan file; `--repo PATH` takes another
    error: cannot open the repository FOLDER/home
      caused by: `git rev-parse --absolute-git-dir` failed (exit code 128): fatal: not a git repository (or any of the parent directories): .git
    hint: `repo: {from: DIR}` makes a fresh repository of a folder that is none
    error: cannot read the folder FOLDER/full/a.txt
      caused by: not a directory
    hint: `from` is relative to the plan file
    "#);
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_with_repositories_in_it_is_refused_before_they_are_lost() {
    let world = World::new().await;
    world.write("code/a.txt", "one\n");
    world.write("code/inner/b.txt", "one\n");
    world.write("code/empty/c.txt", "one\n");
    let plan = world.write(
        "plan.yaml",
        "repo: { from: code }\ntasks:\n  - name: one\n    run: \"true\"\n",
    );
    let refused = async |path: &str| {
        let error = world
            .submit(&plan, "k", None)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("repositories of their own"), "{error}");
        assert!(error.contains(&format!("cannot hold: {path}")), "{error}");
    };
    world.run("code/inner", &["init", "--quiet"]).await;
    refused("inner").await;
    world.run("code/inner", &["add", "."]).await;
    let commit = ["commit", "--quiet", "-m", "inner"];
    world.run("code/inner", &commit).await;
    refused("inner").await;
    world.write("code/.gitignore", "inner\n");
    world.submit(&plan, "l", None).await.unwrap();
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_has_set_for_their_own_remotes_does_not_keep_a_base_from_here() {
    let world = World::new().await;
    full(&world).await;
    for (key, value) in [
        ("push.pushOption", "ci.skip"),
        ("push.gpgSign", "true"),
        ("push.recurseSubmodules", "on-demand"),
        ("protocol.allow", "never"),
        ("http.extraHeader", "Authorization: Basic eDp5"),
        ("http.proxy", "http://127.0.0.1:1"),
        ("url.ssh://git@.insteadOf", "https://"),
    ] {
        world.run("full", &["config", key, value]).await;
    }
    let plan = plan_of(&world, "full", "base: ':/2'");
    world.submit(&plan, "k", None).await.unwrap();
    world.app.stop(Parting::Keep).await.unwrap();
}
