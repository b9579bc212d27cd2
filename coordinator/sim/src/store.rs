//! What the coordinator's disk keeps: the journal, snapshots, the archive.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::batch::Journal;
use coordinator_core::state::{Image, LeaseClocks, RunImage};
use coordinator_core::{Epoch, Event, RunId, State, Timestamp};

use crate::scenario::CrashPoint;

/// How often a row is tried again, and the pause before.
const RETRIES: u32 = 10;
const RETRY_MS: u64 = 500;

/// A row of the journal.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) at: Timestamp,
    pub(crate) events: Vec<Event>,
    /// From when on it survives the end of the process.
    pub(crate) durable_at: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Rows that it contains.
    pub(crate) upto: usize,
    pub(crate) at: Timestamp,
    pub(crate) image: Image,
}

/// The disk.
pub(crate) struct Store {
    /// All rows there ever were; those before `floor` were truncated.
    pub(crate) rows: Vec<Arc<Row>>,
    pub(crate) floor: usize,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) archive: BTreeMap<RunId, Arc<RunImage>>,
    /// Last event of each run in the journal.
    pub(crate) last: BTreeMap<RunId, u64>,
    pub(crate) epoch: u64,
    /// What replaying every durable row from the first gives.
    pub(crate) shadow: State,
    pub(crate) shadowed: usize,
    pub(crate) full_until: u64,
    pub(crate) slow_until: u64,
    pub(crate) sync_ms: u64,
    pub(crate) failing: u32,
    pub(crate) written: bool,
}

/// What came of writing a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    /// When the engine goes on, or the process dies.
    pub(crate) done_at: u64,
    pub(crate) row: bool,
    pub(crate) dies: bool,
}

/// Writes the row of one batch, at a time of the world.
pub(crate) struct Pen<'s> {
    pub(crate) store: &'s mut Store,
    pub(crate) now: u64,
    pub(crate) armed: Option<CrashPoint>,
    pub(crate) written: Written,
}

/// The row could not be written; the process dies.
#[derive(Debug)]
pub(crate) struct Dead;

impl Journal for Pen<'_> {
    type Error = Dead;

    fn append(&mut self, at: Timestamp, events: &[Event]) -> Result<(), Dead> {
        let (mut time, mut tried) = (self.now, 0);
        let dies = |done_at, row| Written {
            done_at,
            row,
            dies: true,
        };
        match self.armed {
            Some(CrashPoint::BeforeAppend | CrashPoint::TornAppend) => {
                self.written = dies(time, false);
                return Err(Dead);
            }
            Some(CrashPoint::AfterAppend) => {
                self.store.push(time, at, events);
                self.written = dies(time, true);
                return Err(Dead);
            }
            _ => {}
        }
        let mut row = false;
        loop {
            let full = time < self.store.full_until;
            let fails = self.store.failing > 0;
            if !full && !fails {
                break;
            }
            if !full {
                self.store.failing -= 1;
                if std::mem::take(&mut self.store.written) && !row {
                    row = true;
                    self.store.push(time, at, events);
                }
            }
            if tried == RETRIES {
                self.written = dies(time, row);
                return Err(Dead);
            }
            tried += 1;
            time += RETRY_MS;
        }
        if time < self.store.slow_until {
            time += self.store.sync_ms;
        }
        if !row {
            self.store.push(time, at, events);
        }
        self.written = Written {
            done_at: time,
            row: true,
            dies: false,
        };
        Ok(())
    }
}

impl Store {
    pub(crate) fn new(clocks: LeaseClocks) -> Self {
        let mut shadow = State::new();
        shadow.set_clocks(clocks);
        Self {
            rows: vec![],
            floor: 0,
            snapshots: vec![],
            archive: BTreeMap::new(),
            last: BTreeMap::new(),
            epoch: 0,
            shadow,
            shadowed: 0,
            full_until: 0,
            slow_until: 0,
            sync_ms: 0,
            failing: 0,
            written: false,
        }
    }

    fn push(&mut self, durable_at: u64, at: Timestamp, events: &[Event]) {
        let events = events.to_vec();
        self.rows.push(Arc::new(Row {
            at,
            events,
            durable_at,
        }));
    }

    /// Forgets rows that were not durable when the process died.
    pub(crate) fn die(&mut self, now: u64) {
        while self.rows.last().is_some_and(|row| row.durable_at > now) {
            self.rows.pop();
        }
    }

    /// Replays what is durable by now into the shadow, which is the journal's own truth.
    ///
    /// # Errors
    /// The journal contradicts itself.
    pub(crate) fn follow(&mut self) -> Result<(), String> {
        for row in self.rows.iter().skip(self.shadowed) {
            for event in &row.events {
                if let Some(run) = event.kind.run() {
                    self.last.insert(run, event.seq);
                }
                let replayed = self.shadow.replay(event);
                replayed.map_err(|error| error.to_string())?;
            }
        }
        self.shadowed = self.rows.len();
        Ok(())
    }

    /// Rebuilds the state as a start does: the newest snapshot, then the rows behind it.
    ///
    /// # Errors
    /// Rows are missing or contradict each other.
    pub(crate) fn rebuild(&self, clocks: LeaseClocks) -> Result<(State, Timestamp), String> {
        let (mut state, mut last_at, mut from) = match self.snapshots.last() {
            Some(snapshot) => {
                let state = State::from_image(snapshot.image.clone(), snapshot.at)
                    .map_err(|error| error.to_string())?;
                (state, snapshot.at, snapshot.upto)
            }
            None => (State::new(), Timestamp::default(), 0),
        };
        if from < self.floor {
            return Err(format!("row {from} was truncated and no snapshot has it"));
        }
        while let Some(row) = self.rows.get(from) {
            last_at = last_at.max(row.at);
            for event in &row.events {
                state.replay(event).map_err(|error| error.to_string())?;
            }
            from += 1;
        }
        state.set_clocks(clocks);
        Ok((state, last_at))
    }

    pub(crate) fn snapshot(&mut self, image: Image) {
        let upto = self.rows.len();
        let Some(at) = self.rows.last().map(|row| row.at) else {
            return;
        };
        if self.snapshots.iter().any(|known| known.upto == upto) {
            return;
        }
        self.snapshots.push(Snapshot { upto, at, image });
        if self.snapshots.len() > 2 {
            self.snapshots.remove(0);
        }
    }

    pub(crate) fn truncate(&mut self) {
        if let [older, _newer] = &*self.snapshots {
            self.floor = self.floor.max(older.upto);
        }
    }

    pub(crate) fn is_full(&self, now: u64) -> bool {
        now < self.full_until
    }

    /// Takes a new epoch.
    pub(crate) fn claim(&mut self) -> Epoch {
        self.epoch += 1;
        Epoch(self.epoch)
    }
}
