//! Workers on a Slurm cluster.
//!
//! An order becomes one job, or one array of jobs, whose name is the order's: by it a job is found
//! again whatever became of the answer to its submission, and by it alone, since the ids of jobs wrap.
//! The queue is asked for in one piece; what a job is doing is its worker's word.

mod directives;
mod login;
mod queue;
mod refusal;
mod script;
mod shells;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coordinator_core::pool::Policy;
use coordinator_core::{AllocationId, Span, limits};
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use tracing::{debug, warn};

use self::login::{Login, Repeat};
use self::queue::Whose;
use self::script::Script;
use super::provider::{Error, Known, Order, OrderName, Provider, Sighted, Sighting};
use super::settings::SlurmSettings;

pub use self::login::Limits;
pub use self::script::Error as ScriptError;

/// Says why an option of `sbatch` cannot be one of a site's own; `None` if it can.
#[must_use]
pub fn refuse_directive(line: &str) -> Option<String> {
    directives::foreign(line)
        .err()
        .map(|error| error.to_string())
}

/// How much sooner than asked a job may be told of its end: Slurm looks once a minute.
pub const SIGNAL_EARLY: Span = Span::from_secs(60);
/// Jobs that one `scancel` is given.
const CANCEL_MAX: usize = 500;
/// Token files that one `rm` is given.
const REMOVE_MAX: usize = 500;

/// How long the token of an order of which nothing was heard is kept. A submission ends long before
/// that (see `login.rs`), and the order is placed again soon after; its token is the same then.
const LATE: Duration = Duration::from_secs(600);
const _: () = assert!(LATE.as_millis() > limits::ORDER_SETTLES.ms() as u128);
/// Least time after which a worker that holds nothing leaves by itself. The coordinator ends idle
/// allocations; this is for one that is not there to do so.
const IDLE_EXIT: Span = Span::from_secs(900);

/// What a provider has to know of its coordinator.
#[derive(Clone, Debug)]
pub struct Coordinator {
    /// Id of its home, as in names of orders.
    pub home: Arc<str>,
    /// Its home, where the connection to a login host has its socket.
    pub folder: PathBuf,
    /// Its program, which is the worker's too.
    pub executable: PathBuf,
    /// `host:port` by which the nodes reach it, unless the pool says another.
    pub address: String,
    /// Its environment, of which commands get what finds programs and the cluster.
    pub variables: BTreeMap<OsString, OsString>,
}

/// Why a pool cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("the directory {} is not an absolute path in UTF-8", .0.display())]
    Directory(PathBuf),
    #[error("the pool {0:?} has a name that no file can have")]
    Pool(Arc<str>),
    #[error("the login host {0:?} begins with a dash or is empty")]
    Host(String),
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error("{0}")]
    Login(String),
}

/// A pool of jobs on a cluster.
#[derive(Debug)]
pub struct SlurmProvider {
    pool: Arc<str>,
    policy: Policy,
    settings: SlurmSettings,
    coordinator: Coordinator,
    directory: String,
    idle_exit: Span,
    login: Login,
    user: OnceCell<u32>,
    /// Where the own program lies on the cluster, and what of it is known.
    program: OnceCell<Program>,
    /// The program on the cluster was seen to be the own one.
    is_checked: AtomicBool,
    tokens: Mutex<Tokens>,
    /// This `squeue` has no JSON, or too much of it.
    no_json: AtomicBool,
}

/// Join tokens that lie on the cluster.
#[derive(Debug, Default)]
struct Tokens {
    /// Those that an earlier coordinator has left are among them.
    found: bool,
    staged: BTreeMap<(OrderName, u32), Staged>,
}

#[derive(Debug)]
struct Program {
    path: String,
    bytes: u64,
    /// SHA-256, in hexadecimal, as the program `sha256sum` says it.
    sum: String,
}

/// What is known of a staged token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Staged {
    /// Its order is being placed: its job may not be in the list yet.
    Placing,
    /// Nobody knows whether the order arrived; it may still.
    Unclear {
        since: Instant,
    },
    Placed,
}

impl SlurmProvider {
    /// Makes a provider, and sees whether a job of such a pool can be described at all.
    ///
    /// # Errors
    /// What is configured cannot be used.
    pub fn new(
        pool: Arc<str>,
        policy: Policy,
        settings: SlurmSettings,
        coordinator: Coordinator,
        limits: Limits,
    ) -> Result<Self, SetupError> {
        let directory = settings.directory.to_str();
        let directory = directory.filter(|_| settings.directory.is_absolute());
        let directory = directory
            .map(|directory| directory.trim_end_matches('/').to_owned())
            .ok_or_else(|| SetupError::Directory(settings.directory.clone()))?;
        if pool.is_empty() || pool.contains('/') {
            return Err(SetupError::Pool(pool));
        }
        let login = match &settings.login {
            None => Login::here(&coordinator.variables, limits),
            Some(host) if host.is_empty() || host.starts_with('-') => {
                return Err(SetupError::Host(host.clone()));
            }
            Some(host) => Login::at(
                host,
                &settings.ssh_options,
                &coordinator.folder,
                &coordinator.variables,
                limits,
            )
            .map_err(|error| SetupError::Login(error.to_string()))?,
        };
        // Leaves by itself only if the coordinator, which would end it, does not for long.
        let idle_exit = Span::from_ms(policy.idle_timeout.ms().saturating_mul(2)).max(IDLE_EXIT);
        let provider = Self {
            pool,
            policy,
            settings,
            coordinator,
            directory,
            idle_exit,
            login,
            user: OnceCell::new(),
            program: OnceCell::new(),
            is_checked: AtomicBool::new(false),
            tokens: Mutex::default(),
            no_json: AtomicBool::new(false),
        };
        let name = OrderName {
            home: (*provider.coordinator.home).into(),
            pool: (*provider.pool).into(),
            first: AllocationId(1),
        };
        provider.script(&name, 2, script::TEMPLATE, "worker", &BTreeSet::new())?;
        Ok(provider)
    }

    fn script(
        &self,
        name: &OrderName,
        count: u32,
        template: &str,
        program: &str,
        exclude: &BTreeSet<Arc<str>>,
    ) -> Result<String, ScriptError> {
        let mut words = vec![program.to_owned()];
        if self.settings.worker.is_none() {
            words.push("worker".to_owned());
        }
        let address = self.settings.coordinator.as_ref();
        let script = Script {
            name,
            count,
            settings: &self.settings,
            policy: &self.policy,
            exclude,
            program: &words,
            coordinator: address.unwrap_or(&self.coordinator.address),
            tokens: &self.tokens_of(name),
            directory: &self.directory,
            idle_exit: self.idle_exit,
        };
        script.render(template)
    }

    fn tokens_of(&self, name: &OrderName) -> String {
        format!("{}/tokens/{name}", self.directory)
    }

    fn token(&self, name: &OrderName, index: u32) -> String {
        format!("{}.{index}", self.tokens_of(name))
    }

    async fn place(&self, order: &Order) -> Result<Vec<Sighting>, Error> {
        let name = order.name();
        let unlike = order.pool != self.pool || order.home != self.coordinator.home;
        if unlike || order.count == 0 || order.tokens.len() != order.count as usize {
            return Err(Error::Refused(format!(
                "the order {name} is not for this pool"
            )));
        }
        self.mark(&name, order.count, Staged::Placing);
        let placed = self.submit(order, &name).await;
        match &placed {
            Ok(_) => self.mark(&name, order.count, Staged::Placed),
            Err(Error::Unclear(_)) => {
                let since = Instant::now();
                self.mark(&name, order.count, Staged::Unclear { since });
            }
            Err(Error::Refused(_)) => {
                let gone = (0..order.count).map(|index| (name.clone(), index));
                self.remove(gone.collect()).await;
            }
        }
        placed
    }

    async fn submit(&self, order: &Order, name: &OrderName) -> Result<Vec<Sighting>, Error> {
        let program = self.program().await?;
        let exclude = self.nodes(&order.exclude).await?;
        let own = format!("{}/worker.sbatch", self.directory);
        let own = self.login.read(&own).await.map_err(before)?;
        let template = match own {
            Some(own) => String::from_utf8(own).map_err(|_| {
                Error::Refused(format!("{}/worker.sbatch is no UTF-8", self.directory))
            })?,
            None => script::TEMPLATE.to_owned(),
        };
        let script = self
            .script(name, order.count, &template, &program, &exclude)
            .map_err(|error| Error::Refused(error.to_string()))?;
        self.stage_tokens(order, name).await?;
        let words = ["sbatch", "--parsable"];
        let step = "submitting with sbatch";
        let asked = self.login.submit(step, &words, script.as_bytes());
        let answer = asked.await.map_err(|error| match error {
            login::Error::Missing(_) => Error::Refused(error.to_string()),
            _ => Error::Unclear(error.to_string()),
        })?;
        let job = refusal::submitted(&answer)?;
        let sightings = (0..order.count).map(|index| Sighting {
            external: match order.count {
                1 => job.to_string().into(),
                _ => format!("{job}_{index}").into(),
            },
            name: name.clone(),
            index,
            state: Sighted::Queued,
        });
        Ok(sightings.collect())
    }

    /// Gives where the worker's program lies on the cluster, after it was put there.
    async fn program(&self) -> Result<String, Error> {
        if let Some(worker) = &self.settings.worker {
            let worker = worker.to_str().map(str::to_owned);
            return worker
                .ok_or_else(|| Error::Refused("the worker's path is no UTF-8".to_owned()));
        }
        let program = self.program.get_or_try_init(|| self.describe()).await?;
        let path = &program.path;
        let (script, size) = (shells::is_staged(), program.bytes.to_string());
        // What it is, and not only how long, is looked at once.
        let sum = match self.is_checked.load(Ordering::Relaxed) {
            true => "",
            false => &*program.sum,
        };
        let words = ["sh", "-c", &script, "sh", path, &size, sum];
        let step = "looking for the worker's program";
        let asked = self.login.run(step, &words, b"", Repeat::Safe);
        let answer = asked.await.map_err(before)?;
        if answer.code == Some(shells::DISTRUSTED) {
            return Err(Error::Refused(answer.said()));
        }
        if !answer.is_success() {
            let executable = &self.coordinator.executable;
            debug!(path, bytes = program.bytes, "sends the worker's program");
            let put = self.login.put_file(path, "700", executable, program.bytes);
            put.await.map_err(before)?;
        }
        self.is_checked.store(true, Ordering::Relaxed);
        Ok(path.clone())
    }

    async fn describe(&self) -> Result<Program, Error> {
        let executable = self.coordinator.executable.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::File::open(executable)?;
            let (mut hash, mut sum) = (blake3::Hasher::new(), Sha256::new());
            let mut block = vec![0; 1 << 16];
            loop {
                let read = match file.read(&mut block) {
                    Ok(0) => break,
                    Ok(read) => block.get(..read).unwrap_or_default(),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                hash.update(read);
                sum.update(read);
            }
            Ok::<_, std::io::Error>((hash.count(), hash.finalize(), sum.finalize()))
        });
        let hashed = hashed.await.map_err(std::io::Error::other);
        let (bytes, hash, sum) = hashed.flatten().map_err(|error| {
            let executable = self.coordinator.executable.display();
            Error::Refused(format!("failed to read {executable}: {error}"))
        })?;
        let version = &hash.to_hex()[..16];
        Ok(Program {
            path: format!("{}/bin/{version}/muster", self.directory),
            bytes,
            sum: sum.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// Gives the names that Slurm has for hosts as workers know them. One that it does not know, or
    /// by which it has several nodes, is left out: it would refuse the whole order.
    async fn nodes(&self, hosts: &[Arc<str>]) -> Result<BTreeSet<Arc<str>>, Error> {
        if hosts.is_empty() {
            return Ok(BTreeSet::new());
        }
        let words = ["sinfo", "--noheader", "--Node", "--format=%N %n"];
        let step = "asking sinfo for names of nodes";
        let answer = self.login.run(step, &words, b"", Repeat::Safe);
        let answer = answer.await.map_err(before)?;
        if !answer.is_success() {
            return Err(Error::Unclear(format!("sinfo failed: {}", answer.said())));
        }
        let text = String::from_utf8_lossy(&answer.output);
        Ok(queue::nodes(&text, hosts))
    }

    async fn stage_tokens(&self, order: &Order, name: &OrderName) -> Result<(), Error> {
        let mut lines = Vec::new();
        for file in &order.tokens {
            let token = tokio::fs::read(file).await.map_err(|error| {
                Error::Refused(format!("failed to read {}: {error}", file.display()))
            })?;
            let token = token.trim_ascii();
            if token.is_empty() || token.contains(&b'\n') {
                let file = file.display();
                return Err(Error::Refused(format!("{file} holds no single token")));
            }
            lines.extend_from_slice(token);
            lines.push(b'\n');
        }
        lines.extend_from_slice(b"end\n");
        let count = order.count.to_string();
        let path = self.tokens_of(name);
        let program = shells::PUT_TOKENS;
        let words = ["sh", "-c", program, "sh", &path, &count, &self.directory];
        let step = "writing the join tokens";
        let asked = self.login.run(step, &words, &lines, Repeat::Safe);
        let answer = asked.await.map_err(before)?;
        Login::done(step, &answer).map_err(before)
    }

    /// Asks for the whole queue once.
    async fn queue(&self) -> Result<Vec<Sighting>, Error> {
        let unclear = |error: login::Error| Error::Unclear(error.to_string());
        let user = *self.user.get_or_try_init(|| self.ask_user()).await?;
        let whose = Whose {
            home: &self.coordinator.home,
            pool: &self.pool,
            user,
        };
        let of_user = format!("--user={user}");
        let step = "asking squeue for the queue";
        if !self.no_json.load(Ordering::Relaxed) {
            // Older versions answer with everybody's jobs whatever is asked.
            let words = ["squeue", "--json", "--states=all", &of_user];
            match self.login.run(step, &words, b"", Repeat::Safe).await {
                Ok(answer) if answer.is_success() => match queue::json(&answer.output, whose) {
                    // Perhaps a version with yet other shapes; the text has been the same for long.
                    Err(queue::Error::Json(error)) => {
                        debug!(pool = %self.pool, error, "asks for the queue as text");
                    }
                    answer => return answer.map_err(|error| Error::Unclear(error.to_string())),
                },
                Ok(answer) if !lacks_json(&answer) => {
                    return Err(Error::Unclear(format!("squeue failed: {}", answer.said())));
                }
                Ok(_) | Err(login::Error::TooMuch { .. }) => {
                    debug!(pool = %self.pool, "asks for the queue as text from now on");
                    self.no_json.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(unclear(error)),
            }
        }
        let columns = format!("--format={}", queue::COLUMNS);
        let words = ["squeue", "--array", "--states=all", &of_user, &columns];
        let answer = self
            .login
            .run(step, &words, b"", Repeat::Safe)
            .await
            .map_err(unclear)?;
        if !answer.is_success() {
            return Err(Error::Unclear(format!("squeue failed: {}", answer.said())));
        }
        let text = String::from_utf8_lossy(&answer.output);
        queue::text(&text, whose).map_err(|error| Error::Unclear(error.to_string()))
    }

    async fn ask_user(&self) -> Result<u32, Error> {
        let step = "asking id who submits";
        let answer = self.login.run(step, &["id", "-u"], b"", Repeat::Safe).await;
        let answer = answer.map_err(|error| Error::Unclear(error.to_string()))?;
        let text = String::from_utf8_lossy(&answer.output);
        let number = text.trim().parse().ok();
        number.ok_or_else(|| Error::Unclear(format!("id failed: {}", answer.said())))
    }

    async fn look(&self) -> Result<Vec<Sighting>, Error> {
        self.find_tokens().await?;
        let suspects = self.suspects();
        let mut sightings = self.queue().await?;
        for sighting in &mut sightings {
            self.name_log(sighting);
        }
        let ended = |sighting: &&Sighting| !matches!(sighting.state, Sighted::Ended { .. });
        let live: BTreeSet<(OrderName, u32)> = sightings
            .iter()
            .filter(ended)
            .map(|sighting| (sighting.name.clone(), sighting.index))
            .collect();
        let gone: BTreeSet<_> = suspects.difference(&live).cloned().collect();
        self.remove(gone).await;
        Ok(sightings)
    }

    /// Says of a job that has ended where its log is, unless the site has it elsewhere.
    fn name_log(&self, sighting: &mut Sighting) {
        let name = &sighting.name;
        let Sighted::Ended { detail } = &mut sighting.state else {
            return;
        };
        if !directives::names_output(&self.settings.directives) {
            let (folder, external) = (&self.directory, &sighting.external);
            *detail = format!("{detail}; its log is {folder}/logs/{name}-{external}.log").into();
        }
    }

    /// Reads once what an earlier coordinator has left.
    async fn find_tokens(&self) -> Result<(), Error> {
        let is_known = |tokens: &mut Tokens| tokens.found;
        if is_known(&mut self.tokens()) {
            return Ok(());
        }
        let folder = format!("{}/tokens", self.directory);
        let words = ["sh", "-c", shells::LIST, "sh", &folder];
        let step = "listing the join tokens";
        let answer = self.login.run(step, &words, b"", Repeat::Safe).await;
        let answer = answer.map_err(|error| Error::Unclear(error.to_string()))?;
        if !answer.is_success() {
            let said = answer.said();
            return Err(Error::Unclear(format!("listing {folder} failed: {said}")));
        }
        let text = String::from_utf8_lossy(&answer.output);
        let mut tokens = self.tokens();
        for line in text.lines() {
            let Some((name, index)) = line.rsplit_once('.') else {
                continue;
            };
            let name = OrderName::parse(name);
            let name = name.filter(|n| *n.home == *self.coordinator.home && *n.pool == *self.pool);
            if let (Some(name), Ok(index)) = (name, index.parse()) {
                tokens.staged.entry((name, index)).or_insert(Staged::Placed);
            }
        }
        tokens.found = true;
        Ok(())
    }

    /// Gives the tokens that are of no use any more unless the next list shows their job.
    fn suspects(&self) -> BTreeSet<(OrderName, u32)> {
        let tokens = self.tokens();
        let staged = tokens.staged.iter();
        let suspects = staged.filter(|(_, staged)| match staged {
            Staged::Placing => false,
            Staged::Unclear { since } => since.elapsed() > LATE,
            Staged::Placed => true,
        });
        suspects.map(|(token, _)| token.clone()).collect()
    }

    fn mark(&self, name: &OrderName, count: u32, staged: Staged) {
        let mut tokens = self.tokens();
        for index in 0..count {
            tokens.staged.insert((name.clone(), index), staged);
        }
    }

    /// Removes tokens; one that cannot be is tried again after the next list.
    async fn remove(&self, gone: BTreeSet<(OrderName, u32)>) {
        let gone: Vec<_> = gone.into_iter().collect();
        for gone in gone.chunks(REMOVE_MAX) {
            let paths: Vec<String> = gone
                .iter()
                .map(|(name, index)| self.token(name, *index))
                .collect();
            let mut words = vec!["rm", "-f", "--"];
            words.extend(paths.iter().map(String::as_str));
            let step = "removing join tokens";
            let removed = match self.login.run(step, &words, b"", Repeat::Safe).await {
                Ok(answer) => Login::done(step, &answer),
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) => {
                    let mut tokens = self.tokens();
                    for token in gone {
                        tokens.staged.remove(token);
                    }
                }
                Err(error) => warn!(pool = %self.pool, error = %error, "keeps old join tokens"),
            }
        }
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn cancel(&self, externals: &[Box<str>]) -> Result<(), Error> {
        // Ids wrap: what is cancelled must bear a name of ours at this moment.
        let wanted: BTreeSet<&str> = externals.iter().map(|external| &**external).collect();
        let sightings = self.queue().await?;
        let live: Vec<&str> = sightings
            .iter()
            .filter(|sighting| !matches!(sighting.state, Sighted::Ended { .. }))
            .map(|sighting| &*sighting.external)
            .filter(|external| wanted.contains(external))
            .collect();
        for chunk in live.chunks(CANCEL_MAX) {
            let mut words = vec!["scancel"];
            words.extend(chunk);
            let step = "cancelling with scancel";
            let answer = self.login.run(step, &words, b"", Repeat::Safe).await;
            let answer = answer.map_err(|error| Error::Unclear(error.to_string()))?;
            if !answer.is_success() && !refusal::is_gone(&answer) {
                return Err(Error::Unclear(format!("scancel failed: {}", answer.said())));
            }
        }
        Ok(())
    }
}

impl Provider for SlurmProvider {
    fn start<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        Box::pin(self.place(order))
    }

    fn list<'a>(&'a self, _: &'a [Known]) -> BoxFuture<'a, Result<Vec<Sighting>, Error>> {
        Box::pin(self.look())
    }

    fn end<'a>(&'a self, externals: &'a [Box<str>]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.cancel(externals))
    }
}

/// What a trouble means before anything was ordered: one that a repeat may not meet leaves the order
/// to the next list, which will not have it.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn before(error: login::Error) -> Error {
    match error {
        login::Error::Missing(_) | login::Error::Failed { .. } => Error::Refused(error.to_string()),
        _ => Error::Unclear(error.to_string()),
    }
}

fn lacks_json(answer: &login::Answer) -> bool {
    let complaint = answer.complaint.to_ascii_lowercase();
    [
        "unrecognized option",
        "invalid option",
        "plugin",
        "serializer",
        "json",
    ]
    .iter()
    .any(|words| complaint.contains(words))
}
