use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{StatusCode, header};
use muster_git::{CommitTime, Git, Mode, ObjectFormat, RefUpdate, Update};
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::git::merges::identity;

const TASK: &str = "refs/heads/muster/r-1/tasks/a";
const OTHER: &str = "refs/heads/muster/r-1/tasks/b";
const INTEGRATION: &str = "refs/heads/muster/r-1/integration";

/// A hosted repository `app`, and an empty one elsewhere.
struct World {
    folder: tempfile::TempDir,
    repositories: Repositories,
    hosted: Repository,
    elsewhere: Repository,
    settings: MirrorSettings,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let git = Git::find().await.unwrap();
        let repositories = Repositories::new(git.clone(), folder.path().join("home"));
        let hosted = repositories.ready("app", ObjectFormat::Sha1).await.unwrap();
        let path = folder.path().join("elsewhere.git");
        let elsewhere = Repository::init_bare(&git, &path, ObjectFormat::Sha1)
            .await
            .unwrap();
        let settings = MirrorSettings {
            url: format!("file://{}", path.display()),
            credential_file: None,
        };
        Self {
            folder,
            repositories,
            hosted,
            elsewhere,
            settings,
        }
    }

    async fn round(&self) -> Round {
        round("ap*", &self.settings, &self.repositories).await
    }

    /// Writes a credential file that nobody else may read.
    fn credential(&mut self, line: &str) {
        let file = self.folder.path().join("credential");
        std::fs::write(&file, line).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        self.settings.credential_file = Some(file);
    }

    async fn there(&self, name: &str) -> Option<ObjectId> {
        let name = RefName::parse(name).unwrap();
        self.elsewhere.read_ref(&name).await.unwrap()
    }
}

/// Makes a commit of an empty tree that says something.
async fn commit(repository: &Repository, says: &str) -> ObjectId {
    let tree = repository
        .command()
        .args(["hash-object", "-t", "tree", "-w", "--stdin"])
        .run_ok()
        .await
        .unwrap()
        .text();
    let tree = ObjectId::parse(&tree).unwrap();
    let time = CommitTime::from_unix_seconds(1_800_000_000);
    repository
        .commit_tree(tree, &[], says, &identity().unwrap(), time)
        .await
        .unwrap()
}

async fn put(repository: &Repository, name: &str, commit: ObjectId) {
    let update = RefUpdate {
        name: RefName::parse(name).unwrap(),
        new: Some(commit),
        expected: Expected::Any,
    };
    let moved = repository.update_refs(&[update]).await.unwrap();
    assert_eq!(moved, Update::Done);
}

#[tokio::test]
async fn branches_are_copied_moved_and_never_deleted() {
    let world = World::new().await;
    assert_eq!(world.round().await, Round::default());
    let one = commit(&world.hosted, "one").await;
    let two = commit(&world.hosted, "two").await;
    put(&world.hosted, TASK, one).await;
    put(&world.hosted, INTEGRATION, one).await;
    put(&world.hosted, "refs/muster/attempts/r-1/a/1", one).await;
    let first = world.round().await;
    assert_eq!((first.mirrored.len(), first.refused.len()), (2, 0));
    assert_eq!(world.there(TASK).await, Some(one));
    assert_eq!(world.there("refs/muster/attempts/r-1/a/1").await, None);

    // Not a fast-forward: another attempt has won after a retry.
    put(&world.hosted, TASK, two).await;
    put(&world.elsewhere, "refs/heads/main", one).await;
    let own = world.there("refs/heads/main").await;
    assert!(world.round().await.refused.is_empty());
    assert_eq!(world.there(TASK).await, Some(two));
    assert_eq!(world.there("refs/heads/main").await, own);

    let gone = RefUpdate {
        name: RefName::parse(TASK).unwrap(),
        new: None,
        expected: Expected::Any,
    };
    let moved = world.hosted.update_refs(&[gone]).await.unwrap();
    assert_eq!(moved, Update::Done);
    world.round().await;
    assert_eq!(world.there(TASK).await, Some(two));
}

#[tokio::test]
async fn what_somebody_else_has_put_there_is_told_and_kept() {
    let world = World::new().await;
    let ours = commit(&world.hosted, "ours").await;
    let theirs = commit(&world.elsewhere, "theirs").await;
    put(&world.hosted, TASK, ours).await;
    put(&world.hosted, OTHER, ours).await;
    put(&world.elsewhere, TASK, theirs).await;
    let round = world.round().await;
    assert_eq!(world.there(TASK).await, Some(theirs));
    assert_eq!(world.there(OTHER).await, Some(ours));
    let why = round.refused.get(TASK).unwrap();
    assert!(why.contains(&theirs.to_string()), "{why}");
    assert!(round.is_behind());
}

#[tokio::test]
async fn a_branch_that_the_remote_protects_is_refused_by_name_and_the_others_go_on() {
    let world = World::new().await;
    let hooks = world.elsewhere.folder().join("hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    let hook = hooks.join("update");
    let script =
        "#!/bin/sh\ncase $1 in */integration) echo 'integration is protected' >&2; exit 1;; esac\n";
    std::fs::write(&hook, script).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let one = commit(&world.hosted, "one").await;
    put(&world.hosted, TASK, one).await;
    put(&world.hosted, INTEGRATION, one).await;
    let round = world.round().await;
    assert_eq!(world.there(TASK).await, Some(one));
    assert_eq!(world.there(INTEGRATION).await, None);
    let why = round.refused.get(INTEGRATION).unwrap();
    assert!(
        why.contains("hook declined") && why.contains("integration is protected"),
        "{why}"
    );

    let mirrors = Mirrors::new(&[("ap*".to_owned(), world.settings.clone())].into());
    let commits = [(TASK.to_owned(), one.to_string())].into();
    let state = |run: &str| {
        let of = mirrors.of_run("app", run, &commits);
        of.map(|of| (of.state, of.detail)).unwrap_or_default()
    };
    assert_eq!(state("r-1").0, "behind");
    assert!(mirrors.note("ap*", 1, round.clone()));
    assert!(!mirrors.note("ap*", 2, round));
    let (refused, why) = state("r-1");
    assert_eq!(refused, "refused");
    assert!(why.starts_with("muster/r-1/integration: "), "{why}");
    assert_eq!(state("r-2").0, "mirrored");
    assert_eq!(mirrors.of_run("other", "r-1", &commits), None);
}

#[tokio::test]
async fn an_unreachable_remote_is_a_trouble_that_passes() {
    let mut world = World::new().await;
    let one = commit(&world.hosted, "one").await;
    put(&world.hosted, TASK, one).await;
    let there = world.elsewhere.folder().to_owned();
    let away = there.with_extension("away");
    std::fs::rename(&there, &away).unwrap();
    let mirrors = Mirrors::new(&[("app".to_owned(), world.settings.clone())].into());
    let (moves, moved) = watch::channel(0);
    let ending = CancellationToken::new();
    let task = tokio::spawn(run(
        "app".to_owned(),
        world.settings.clone(),
        world.repositories.clone(),
        mirrors.clone(),
        moved,
        ending.clone(),
    ));
    let soon = Duration::from_secs(60);
    tokio::time::timeout(soon, mirrors.looked(0)).await.unwrap();
    let commits = [(TASK.to_owned(), one.to_string())].into();
    let state = || mirrors.of_run("app", "r-1", &commits).unwrap();
    assert_eq!(state().state, "behind");
    assert!(!state().detail.is_empty());
    std::fs::rename(&away, &there).unwrap();
    moves.send_replace(1);
    tokio::time::timeout(soon, mirrors.looked(1)).await.unwrap();
    assert_eq!(state().state, "mirrored");
    ending.cancel();
    task.await.unwrap();
    world.elsewhere = Repository::open_bare(world.hosted.git(), &there)
        .await
        .unwrap();
    assert_eq!(world.there(TASK).await, Some(one));
}

#[tokio::test]
async fn a_branch_that_was_deleted_or_set_back_there_is_put_where_it_belongs() {
    let world = World::new().await;
    let (one, two) = (
        commit(&world.hosted, "one").await,
        commit(&world.hosted, "two").await,
    );
    put(&world.hosted, TASK, two).await;
    assert!(!world.round().await.is_behind());
    let gone = RefUpdate {
        name: RefName::parse(TASK).unwrap(),
        new: None,
        expected: Expected::Any,
    };
    assert_eq!(
        world.elsewhere.update_refs(&[gone]).await.unwrap(),
        Update::Done
    );
    assert!(!world.round().await.is_behind());
    assert_eq!(world.there(TASK).await, Some(two));
    assert_eq!(commit(&world.elsewhere, "one").await, one);
    put(&world.elsewhere, TASK, one).await;
    assert!(!world.round().await.is_behind());
    assert_eq!(world.there(TASK).await, Some(two));
}

#[tokio::test]
async fn a_password_goes_to_the_remote_and_nowhere_else() {
    let mut world = World::new().await;
    let one = commit(&world.hosted, "one").await;
    put(&world.hosted, TASK, one).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .fallback(backend)
        .with_state(world.folder.path().to_owned());
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    world.settings.url = format!("http://{address}/elsewhere.git");
    let trouble = async |world: &World| world.round().await.trouble.unwrap();
    assert!(trouble(&world).await.contains("credential"));
    world.credential("ann:wr0ng");
    let said = trouble(&world).await;
    let encoded = STANDARD.encode("ann:wr0ng");
    assert!(
        said.contains("does not accept the credential")
            && !said.contains("wr0ng")
            && !said.contains(&encoded),
        "{said}"
    );
    world.credential("ann:s3cret");
    assert!(!world.round().await.is_behind());
    assert_eq!(world.there(TASK).await, Some(one));
    let shown = format!("{:?}", world.settings);
    assert!(!shown.contains("s3cret"), "{shown}");
    // Whatever an error tells of the address, it is not who we are there.
    world.settings.url = format!("http://tok3n@{address}/absent.git");
    let said = trouble(&world).await;
    assert!(
        !said.contains("tok3n") && !said.contains("s3cret"),
        "{said}"
    );
    server.abort();
}

/// Tells whether any process of this machine has a text among its arguments.
fn is_argument(text: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(text))
}

/// Serves the repositories of a folder to whoever knows the password, unless it is in the arguments
/// of a process.
async fn backend(State(root): State<PathBuf>, request: Request) -> Response {
    let wanted = format!("Basic {}", STANDARD.encode("ann:s3cret"));
    let headers = request.headers().clone();
    let header = |name: header::HeaderName| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    if header(header::AUTHORIZATION) != wanted {
        let ask = [(header::WWW_AUTHENTICATE, "Basic realm=git")];
        return (StatusCode::UNAUTHORIZED, ask).into_response();
    }
    if is_argument("s3cret") || is_argument(&STANDARD.encode("ann:s3cret")) {
        return StatusCode::IM_A_TEAPOT.into_response();
    }
    let uri = request.uri().clone();
    let method = request.method().to_string();
    let body: Bytes = axum::body::to_bytes(request.into_body(), 1 << 20)
        .await
        .unwrap();
    let git = Git::find().await.unwrap();
    let mut child = git
        .command(Mode::UserRepository)
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "ann")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header(header::CONTENT_TYPE))
        .env("HTTP_CONTENT_ENCODING", header(header::CONTENT_ENCODING))
        .into_process()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&body).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap().stdout;
    let end = output
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let mut answer = Response::builder();
    for line in head.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        answer = match name {
            "Status" => answer.status(value[..3].parse::<u16>().unwrap()),
            _ => answer.header(name, value),
        };
    }
    let rest = output[end + 4..].to_vec();
    answer.body(rest.into()).unwrap()
}
