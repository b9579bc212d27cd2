//! Carries out, for one pool, what the core wants of its provider: places orders, watches what
//! became of them, ends what is to end. Safe to repeat from any point. The simulator's `carrier.rs` is
//! a model of it: what changes here changes there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordinator_core::pool::{Held, Memory, Phase, PoolCommand, Seen};
use coordinator_core::{AllocationId, Command, Timestamp};
use muster_connect::private_file;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::provider::{Error, Known, Order, Provider};
use super::{folder, place};
use crate::auth::{Authenticator, make_private_folder};
use crate::engine::{self, Handle};

/// Pause between two looks at what the core wants, when nothing tells of a change.
const LOOK: Duration = Duration::from_secs(2);
/// How soon a list is asked for again after an order or an end.
const SOON: Duration = Duration::from_secs(1);
/// Longest pause between lists that fail.
const TROUBLE_MAX: Duration = Duration::from_secs(120);

/// How it goes with a pool's provider, for people. Volatile.
#[derive(Clone, Default, Debug)]
pub struct Standing {
    /// What is the matter with the provider; `None` when it answers.
    pub trouble: Option<String>,
    /// Allocations that nobody knows: they are ended unless somebody turns out to know them.
    pub orphans: usize,
    /// What it has is elsewhere than its section says, so it counts as not configured; `trouble` says more.
    pub moved: bool,
}

/// How it goes with all pools.
#[derive(Clone, Default, Debug)]
pub struct Standings(Arc<Mutex<BTreeMap<Arc<str>, Standing>>>);

impl Standings {
    /// Gives how it goes with one pool.
    #[must_use]
    pub fn of(&self, pool: &str) -> Standing {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(pool).cloned().unwrap_or_default()
    }

    pub(crate) fn set(&self, pool: &Arc<str>, change: impl FnOnce(&mut Standing)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(Arc::clone(pool)).or_default());
    }
}

/// What carries a pool.
pub struct Carrier {
    pub pool: Arc<str>,
    pub provider: Box<dyn Provider>,
    pub engine: Handle,
    pub auth: Arc<Authenticator>,
    /// The coordinator's home.
    pub home: PathBuf,
    /// Where it orders allocations, as [`PoolKind::place`](super::settings::PoolKind::place) says it.
    pub place: String,
    /// How often the provider is asked for its list.
    pub poll: Duration,
    /// Orders from here on are of this process; what became of older ones only a list can tell.
    pub fresh: AllocationId,
    pub standings: Standings,
}

/// What the core wants, and what is known.
struct Wanted {
    held: Vec<Held>,
    /// The same for the provider.
    known: Vec<Known>,
    /// Orders of which nothing is known to have arrived.
    orders: BTreeMap<AllocationId, Open>,
    /// To be ended now.
    ends: Vec<Box<str>>,
    exclude: Vec<Arc<str>>,
}

/// What is left of an order.
#[derive(Default)]
struct Open {
    ids: Vec<AllocationId>,
    /// How many of them are wanted still.
    wanted: usize,
}

struct State {
    memory: Memory,
    begun: Instant,
    next_list: Instant,
    pause: Duration,
    /// Older orders that surely have not arrived.
    lost: BTreeSet<AllocationId>,
    /// Why the last order was not clearly taken, until one is or none is wanted any more.
    unordered: Option<String>,
    /// Why what is to end was not ended, until it is or nothing is to end any more.
    unended: Option<String>,
}

impl State {
    /// Time since this process began, which is all that lists are compared by.
    fn now(&self) -> Timestamp {
        let elapsed = self.begun.elapsed().as_millis();
        Timestamp::from_ms(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

impl Carrier {
    /// Works until `ending`.
    pub async fn run(self, ending: CancellationToken) {
        let now = Instant::now();
        let mut state = State {
            memory: Memory::default(),
            begun: now,
            next_list: now,
            pause: self.poll,
            lost: BTreeSet::new(),
            unordered: None,
            unended: None,
        };
        let mut changed = self.engine.notices().pools();
        loop {
            changed.mark_unchanged();
            let stepped = tokio::select! {
                () = ending.cancelled() => return,
                stepped = self.step(&mut state) => stepped,
            };
            if let Err(error) = stepped {
                warn!(pool = &*self.pool, error = %error, "the engine does not answer a pool");
            }
            let wait = state.next_list.min(Instant::now() + LOOK);
            tokio::select! {
                () = ending.cancelled() => return,
                told = changed.changed() => if told.is_err() { return },
                () = tokio::time::sleep_until(wait) => {}
            }
        }
    }

    async fn step(&self, state: &mut State) -> Result<(), engine::Error> {
        let wanted = self.wanted().await?;
        self.forget_tokens(&wanted.held);
        for (first, open) in &wanted.orders {
            if state.memory.doubts(*first) || state.memory.has_arrived(*first) {
                continue;
            }
            if *first < self.fresh && !state.lost.contains(first) {
                state.memory.doubt(*first, state.now());
                continue;
            }
            // What cannot be listed cannot be ended either.
            if state.pause > self.poll {
                continue;
            }
            if open.wanted == 0 {
                self.never(&open.ids).await?;
            } else {
                self.order(state, *first, &open.ids, &wanted).await?;
            }
        }
        if Instant::now() >= state.next_list {
            // Of what is to end by now: orders take their time, and some may have joined meanwhile.
            let ends = self.wanted().await?.ends;
            state.unended = self.end(&ends, "end allocations").await;
            self.look(state).await?;
        }
        Ok(())
    }

    async fn wanted(&self) -> Result<Wanted, engine::Error> {
        let pool = Arc::clone(&self.pool);
        let query = move |core: &coordinator_core::State, now| {
            let mut wanted = Wanted {
                held: vec![],
                known: vec![],
                orders: BTreeMap::new(),
                ends: vec![],
                exclude: vec![],
            };
            let mut hosts = core.hosts_of_allocations();
            for held in core.allocations().filter(|held| held.pool == pool) {
                wanted.held.push(Held {
                    id: held.id,
                    first: held.first,
                    external: held.external.clone(),
                    joined: held.joined,
                    hosts: hosts.remove(&held.id).unwrap_or_default(),
                });
                wanted.known.push(Known {
                    id: held.id,
                    first: held.first,
                    external: held.external.clone(),
                    ends: held.ending.is_some(),
                });
                match (&held.external, held.phase) {
                    (Some(external), _) if core.may_end(held.id, now) => {
                        wanted.ends.push(external.clone());
                    }
                    (None, Phase::Wanted) => {
                        let order: &mut Open = wanted.orders.entry(held.first).or_default();
                        order.ids.push(held.id);
                        order.wanted += usize::from(held.ending.is_none());
                    }
                    _ => {}
                }
            }
            for one in wanted.held.iter().filter(|one| one.has_arrived()) {
                wanted.orders.remove(&one.first);
            }
            if let Some(known) = core.pool(&pool) {
                wanted.exclude = known.quarantined.keys().cloned().collect();
            }
            wanted
        };
        self.engine.query(query).await
    }

    /// Says that an order which was never placed never will be.
    async fn never(&self, ids: &[AllocationId]) -> Result<(), engine::Error> {
        let detail = "it was not needed any more before it was ordered";
        let gone = || Seen::Gone {
            detail: detail.into(),
        };
        self.observe(ids.iter().map(|id| (*id, gone())).collect())
            .await
    }

    async fn order(
        &self,
        state: &mut State,
        first: AllocationId,
        ids: &[AllocationId],
        wanted: &Wanted,
    ) -> Result<(), engine::Error> {
        // Some of it may have ended alone; the others keep their places.
        let last = ids.iter().max().copied().unwrap_or(first);
        let count = u32::try_from(last.0.saturating_sub(first.0)).unwrap_or(u32::MAX);
        let count = count.saturating_add(1);
        let tokens = match self.tokens(first, count) {
            Ok(tokens) => tokens,
            Err(error) => {
                self.trouble("write join tokens", &Error::Unclear(error.to_string()));
                return Ok(());
            }
        };
        if let Err(error) = place::note(&self.home, &self.pool, &self.place) {
            self.trouble(
                "note where its allocations are",
                &Error::Unclear(error.to_string()),
            );
            return Ok(());
        }
        let order = Order {
            pool: Arc::clone(&self.pool),
            home: self.auth.home_id().into(),
            first,
            count,
            known: wanted.known.clone(),
            tokens,
            exclude: wanted.exclude.clone(),
        };
        let started = self.provider.start(&order).await;
        state.next_list = state.next_list.min(Instant::now() + SOON);
        state.unordered = None;
        match started {
            Ok(sightings) => {
                info!(pool = &*self.pool, %first, count, "ordered allocations");
                if sightings.is_empty() {
                    // Taken, and nothing of it is there yet.
                    state.memory.doubt(first, state.now());
                }
                let seen = sightings.into_iter().map(|sighting| {
                    let id = AllocationId(first.0.saturating_add(u64::from(sighting.index)));
                    let external = sighting.external;
                    (id, Seen::Queued { external })
                });
                self.observe(seen.collect()).await
            }
            Err(Error::Refused(detail)) => {
                warn!(pool = &*self.pool, %first, detail, "the provider refuses an order");
                let refused = || Seen::Refused {
                    detail: detail.as_str().into(),
                };
                self.observe(ids.iter().map(|id| (*id, refused())).collect())
                    .await
            }
            Err(error @ Error::Unclear(_)) => {
                state.unordered = Some(self.trouble("order allocations", &error));
                state.memory.doubt(first, state.now());
                Ok(())
            }
        }
    }

    /// Asks for the list and tells the core what it says.
    async fn look(&self, state: &mut State) -> Result<(), engine::Error> {
        let asked = state.now();
        let known = self.wanted().await?.known;
        let listed = self.provider.list(&known).await;
        let now = Instant::now();
        let sightings = match listed {
            Ok(sightings) => sightings,
            Err(error) => {
                self.trouble("list allocations", &error);
                state.pause = (state.pause * 2).min(TROUBLE_MAX.max(self.poll));
                state.next_list = now + state.pause;
                return Ok(());
            }
        };
        state.pause = self.poll;
        state.next_list = now + self.poll;
        // Of what is in the inventory by now, whatever was ordered meanwhile.
        let held = self.wanted().await?.held;
        let judgement = state.memory.compare(&held, &sightings, asked);
        for first in judgement.lost {
            info!(pool = &*self.pool, %first, "an order has not arrived and is placed again");
            state.lost.insert(first);
        }
        let is_open = |one: &Held| !one.has_arrived() && !state.memory.has_arrived(one.first);
        if !held.iter().any(is_open) {
            state.unordered = None;
        }
        let orphans = &judgement.orphans;
        let strangers = state.memory.strangers();
        self.standings
            .set(&self.pool, |standing| standing.orphans = strangers);
        if !orphans.is_empty() {
            warn!(
                pool = &*self.pool,
                ?orphans,
                "ending allocations that nobody knows"
            );
            let doing = "end allocations that nobody knows";
            let unended = self.end(orphans, doing).await;
            state.unended = state.unended.take().or(unended);
        }
        let troubles = [&state.unordered, &state.unended].into_iter().flatten();
        let troubles: Vec<String> = troubles.cloned().chain(self.provider.remark()).collect();
        let trouble = (!troubles.is_empty()).then(|| troubles.join("; "));
        self.standings
            .set(&self.pool, |standing| standing.trouble = trouble);
        self.observe(judgement.seen).await
    }

    /// Ends allocations, and says what is the matter if that failed.
    async fn end(&self, externals: &[Box<str>], doing: &str) -> Option<String> {
        if externals.is_empty() {
            return None;
        }
        let ended = self.provider.end(externals).await;
        ended.err().map(|error| failure(&self.pool, doing, &error))
    }

    async fn observe(&self, allocations: Vec<(AllocationId, Seen)>) -> Result<(), engine::Error> {
        if allocations.is_empty() {
            return Ok(());
        }
        let command = Command::Pool(PoolCommand::Observe { allocations });
        self.engine.command(command).await.map(drop)
    }

    fn trouble(&self, doing: &str, error: &Error) -> String {
        let trouble = failure(&self.pool, doing, error);
        self.standings.set(&self.pool, |standing| {
            standing.trouble = Some(trouble.clone());
        });
        trouble
    }

    fn token_path(&self, id: AllocationId) -> PathBuf {
        folder(&self.home, &self.pool).join(format!("{id}.token"))
    }

    /// Writes the join tokens of an order; the same each time.
    fn tokens(&self, first: AllocationId, count: u32) -> std::io::Result<Vec<PathBuf>> {
        make_private_folder(&folder(&self.home, &self.pool))?;
        let ids = (0..u64::from(count)).map(|nth| AllocationId(first.0.saturating_add(nth)));
        let written = ids.map(|id| {
            let path = self.token_path(id);
            let token = self.auth.allocation_token(id.0);
            private_file::replace(&path, format!("{}\n", token.reveal()).as_bytes())?;
            Ok(path)
        });
        written.collect()
    }

    /// Removes the tokens of allocations that have ended; they open nothing any more.
    fn forget_tokens(&self, held: &[Held]) {
        let Ok(files) = std::fs::read_dir(folder(&self.home, &self.pool)) else {
            return;
        };
        for file in files.flatten() {
            let name = file.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".token"));
            let id = id.and_then(|id| id.strip_prefix('A')?.parse().ok());
            if id.is_some_and(|id| held.iter().all(|held| held.id != AllocationId(id))) {
                drop(std::fs::remove_file(file.path()));
            }
        }
    }
}

/// Logs what could not be done, and says so.
fn failure(pool: &str, doing: &str, error: &Error) -> String {
    warn!(pool, error = %error, "failed to {doing}");
    format!("failed to {doing}: {error}")
}
