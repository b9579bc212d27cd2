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

    async fn submit(&self, plan: &Path, request: &Request) -> Result<v1::SubmitRunResponse> {
        let output = Output::of_process(ColorChoice::Never, true);
        let read = read_plan(plan, &BTreeMap::new())?;
        let source = source(&self.git, output, &read, None).await?;
        submit(&self.client, output, &read, source.as_ref(), request).await
    }
}

fn keyed(key: &str) -> Request {
    Request {
        idempotency_key: Some(key.to_owned()),
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

    let submitted = world.submit(&plan, &keyed("k")).await.unwrap();
    let run = find::get(&world.client, &submitted.run).await.unwrap();
    assert_eq!(run.base.as_deref(), Some(before.0.as_str()));
    assert_eq!(files().await, before);

    let again = world.submit(&plan, &keyed("k")).await.unwrap();
    assert_eq!((again.run, again.fresh), (submitted.run, false));
    let other = world.submit(&plan, &keyed("l")).await.unwrap();
    let other = find::get(&world.client, &other.run).await.unwrap();
    assert_ne!(other.run, run.run);
    assert_eq!(other.repository, run.repository);
    world.app.stop(Parting::Keep).await.unwrap();
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
        let submitted = world.submit(&plan, &keyed(key)).await.unwrap();
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
    let submitted = world.submit(&plan, &keyed("k")).await.unwrap();
    let run = find::get(&world.client, &submitted.run).await.unwrap();
    assert_eq!(run.base, Some(head));
    world.app.stop(Parting::Keep).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_repository_needs_none() {
    let world = World::new().await;
    let plan = world.write("plan.yaml", "tasks:\n  - name: one\n    run: \"true\"\n");
    let submitted = world.submit(&plan, &keyed("k")).await.unwrap();
    let run = find::get(&world.client, &submitted.run).await.unwrap();
    assert_eq!((run.base, run.repository), (None, None));
    let output = Output::of_process(ColorChoice::Never, true);
    let read = read_plan(&plan, &BTreeMap::new()).unwrap();
    let error = source(&world.git, output, &read, Some("."))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("names no repository"), "{error}");
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
