//! The second look at a push: the moment its refs are about to move.
//!
//! Between the check of a push's head and the move of its refs lies the upload of a whole pack,
//! and a lease can end in that time. So git runs our `reference-transaction` hook once it holds the
//! locks of all refs of the push; the hook asks the coordinator through a unix socket, and any
//! answer but "ok" (also none) aborts the transaction. A push is known to the hook by an id that
//! cannot be guessed and is only in the environment of that push's git.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use muster_git::Git;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use uuid::Uuid;

use super::policy::{Fence, Refusal, Scope, decide_update, visible};
use super::refs::RefValue;
use super::repository::reaches_hidden;

/// The hidden subcommand of the coordinator's executable that [`hook_main`] serves.
pub const SUBCOMMAND: &str = "git-hook";

/// Environment of a push's git: the executable that the hook runs.
pub(super) const EXECUTABLE_VARIABLE: &str = "MUSTER_HOOK_EXE";
/// Environment of a push's git: the socket that the hook asks at.
pub(super) const SOCKET_VARIABLE: &str = "MUSTER_HOOK_SOCKET";
/// Environment of a push's git: the push's id.
pub(super) const PUSH_VARIABLE: &str = "MUSTER_HOOK_PUSH";

/// The hook that git runs. Only `prepared` can refuse, so the other states start no process more.
const SCRIPT: &str = "#!/bin/sh\n\
    if [ \"$1\" != prepared ]; then exit 0; fi\n\
    exec \"$MUSTER_HOOK_EXE\" git-hook\n";

/// The longest path of a socket; the kernel's limit is 108 bytes with the end mark.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The longest question: the largest command list with its ids, and some room.
const QUESTION_BYTES_MAX: u64 = 2 << 20;

/// The longest time for one question, with refs locked; the fence answers in milliseconds.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// The most questions at a time; each comes from a push, and those are bounded too.
const QUESTIONS_MAX: usize = 64;

const OK: &[u8] = b"ok\n";

/// Why the hook could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Answers the hooks of running pushes; ends when dropped, after which every push is refused.
pub struct HookServer {
    hooks: PathBuf,
    executable: PathBuf,
    socket: PathBuf,
    pushes: Arc<Pushes>,
    accepting: AbortHandle,
    /// Holds the socket when the home's path is too long for one.
    _short_folder: Option<tempfile::TempDir>,
}

impl HookServer {
    /// Writes the hook into `<home>/git-hooks` and listens for its questions.
    ///
    /// `executable` is run as `executable git-hook` and must end up in [`hook_main`]. Replaces what
    /// an earlier coordinator of the same home left. Errs if the hook cannot be executed where the
    /// home is (`noexec`): git would skip it, and pushes would not be fenced. Must be called inside
    /// a tokio runtime.
    pub fn start(
        git: Git,
        home: &Path,
        executable: PathBuf,
        fence: Arc<dyn Fence>,
    ) -> Result<Self, Error> {
        let hooks = home.join("git-hooks");
        private_folder(&hooks).map_err(at("create", &hooks))?;
        write_script(&hooks.join("reference-transaction"))?;

        let mut socket = hooks.join("socket");
        let mut short_folder = None;
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            // Made with mode 0700 by `tempfile`.
            let folder = tempfile::Builder::new().prefix("muster-").tempdir();
            let folder = folder.map_err(at("create a short folder for", &socket))?;
            socket = folder.path().join("socket");
            short_folder = Some(folder);
        }
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("remove", &socket)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&socket).map_err(at("listen at", &socket))?;
        let pushes = Arc::new(Pushes {
            git,
            fence,
            open: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&pushes))).abort_handle();
        Ok(Self {
            hooks,
            executable,
            socket,
            pushes,
            accepting,
            _short_folder: short_folder,
        })
    }

    /// The folder for `core.hooksPath`.
    pub(super) fn hooks(&self) -> &Path {
        &self.hooks
    }

    /// Registers a push into the repository at a path, whose refs may move under `scope` until the
    /// answer is dropped.
    pub(super) fn open(&self, scope: Scope, repository: PathBuf) -> Push {
        let id = Uuid::new_v4().simple().to_string();
        let entry = Entry {
            target: Arc::new((scope, repository)),
            refused: None,
        };
        self.pushes.lock().insert(id.clone(), entry);
        Push {
            environment: [
                (EXECUTABLE_VARIABLE, self.executable.clone()),
                (SOCKET_VARIABLE, self.socket.clone()),
                (PUSH_VARIABLE, PathBuf::from(&id)),
            ],
            id,
            pushes: Arc::clone(&self.pushes),
        }
    }
}

impl Drop for HookServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A push that the hook may ask about.
pub(super) struct Push {
    id: String,
    environment: [(&'static str, PathBuf); 3],
    pushes: Arc<Pushes>,
}

impl Push {
    /// What git and the hook need in their environment.
    pub(super) fn environment(&self) -> &[(&'static str, PathBuf)] {
        &self.environment
    }

    /// Why the hook was told to abort, if it was.
    pub(super) fn refused(&self) -> Option<Refusal> {
        self.pushes.lock().get(&self.id)?.refused.clone()
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        self.pushes.lock().remove(&self.id);
    }
}

struct Entry {
    target: Arc<(Scope, PathBuf)>,
    refused: Option<Refusal>,
}

struct Pushes {
    git: Git,
    fence: Arc<dyn Fence>,
    open: Mutex<HashMap<String, Entry>>,
}

impl Pushes {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        // Every change is one insert, remove or assignment, so the map is whole after a panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides one question and remembers a refusal for the push's answer.
    async fn decide(&self, question: &str) -> Result<(), Refusal> {
        let (id, updates) = question.split_once('\n').ok_or(Refusal::NoAccess)?;
        let target = self.lock().get(id).map(|entry| Arc::clone(&entry.target));
        let target = target.ok_or(Refusal::NoAccess)?;
        let (scope, repository) = &*target;
        let decision = self.check(scope, repository, updates).await;
        if let (Err(refusal), Some(entry)) = (&decision, self.lock().get_mut(id)) {
            entry.refused = Some(refusal.clone());
        }
        decision
    }

    /// Checks the lines `<old> <new> <ref>` of a transaction that git has prepared.
    ///
    /// Git has locked the refs and compared their values with the old ones by now, so these are
    /// real. Whether the lease lives comes last, next to the move.
    async fn check(&self, scope: &Scope, repository: &Path, updates: &str) -> Result<(), Refusal> {
        let mut tips = Vec::new();
        for update in updates.lines() {
            let (old, new, refname) = parse_update(update).ok_or(Refusal::NotYours)?;
            decide_update(scope, refname, &old, &new)?;
            tips.push(new);
        }
        if scope.reads_are_limited() {
            let hidden = reaches_hidden(&self.git, repository, &visible(scope), &tips).await;
            match hidden {
                Ok(false) => {}
                Ok(true) => return Err(Refusal::ForeignCommits),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "cannot check what a push reaches");
                    return Err(Refusal::Unavailable);
                }
            }
        }
        self.fence.still_live(scope).await
    }
}

fn parse_update(update: &str) -> Option<(RefValue, RefValue, &str)> {
    let (old, rest) = update.split_once(' ')?;
    let (new, refname) = rest.split_once(' ')?;
    Some((RefValue::parse(old)?, RefValue::parse(new)?, refname))
}

async fn accept(listener: UnixListener, pushes: Arc<Pushes>) {
    let room = Arc::new(Semaphore::new(QUESTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let pushes = Arc::clone(&pushes);
                tokio::spawn(async move {
                    let answered = tokio::time::timeout(ANSWER_TIME_MAX, answer(stream, &pushes));
                    match answered.await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::warn!(%error, "a git hook went away"),
                        Err(_) => tracing::warn!("a git hook was not answered in time"),
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors: waiting is all that helps, and a tight loop would not.
                tracing::error!(%error, "cannot accept a git hook");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, pushes: &Pushes) -> io::Result<()> {
    let (reading, mut writing) = stream.split();
    let mut question = Vec::new();
    reading
        .take(QUESTION_BYTES_MAX)
        .read_to_end(&mut question)
        .await?;
    // A cut question would show only some of the updates.
    let whole = (question.len() as u64) < QUESTION_BYTES_MAX;
    let decision = match str::from_utf8(&question) {
        Ok(question) if whole => pushes.decide(question).await,
        _ => Err(Refusal::NotYours),
    };
    match decision {
        Ok(()) => writing.write_all(OK).await,
        Err(refusal) => {
            tracing::info!(%refusal, "a push was refused when its refs were about to move");
            writing.write_all(format!("{refusal}\n").as_bytes()).await
        }
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error {
        action,
        path,
        source,
    }
}

fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn write_script(path: &Path) -> Result<(), Error> {
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o700)
        .open(&fresh)
        .map_err(at("write", &fresh))?;
    file.write_all(SCRIPT.as_bytes())
        .map_err(at("write", &fresh))?;
    drop(file);
    // Renamed, so that a git which still runs never reads half a script.
    fs::rename(&fresh, path).map_err(at("write", path))?;
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
        .map_err(|errno| at("execute (is its file system mounted noexec?)", path)(errno.into()))
}

/// Runs as git's hook: asks the coordinator about the updates on stdin; succeeds only on its "ok".
pub fn hook_main() -> ExitCode {
    match ask() {
        Ok(answer) if answer.as_bytes() == OK => ExitCode::SUCCESS,
        Ok(answer) => fail(answer.trim_end()),
        Err(error) => fail(&format!("cannot ask the coordinator: {error}")),
    }
}

fn ask() -> io::Result<String> {
    let variable = |name| std::env::var_os(name).ok_or(io::ErrorKind::NotFound);
    let push = variable(PUSH_VARIABLE)?;
    let mut question = push.into_encoded_bytes();
    question.push(b'\n');
    io::stdin()
        .take(QUESTION_BYTES_MAX)
        .read_to_end(&mut question)?;
    let mut stream = StdUnixStream::connect(variable(SOCKET_VARIABLE)?)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
    stream.write_all(&question)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.take(4_096).read_to_string(&mut answer)?;
    Ok(answer)
}

fn fail(reason: &str) -> ExitCode {
    // Goes into git's stderr, which the coordinator reads; there is nobody else to tell.
    let _ = writeln!(io::stderr(), "muster: {reason}");
    ExitCode::FAILURE
}
