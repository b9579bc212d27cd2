//! Runs what the interface says that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::volume::Volume;
use super::{Client, Instance, Machine, Notice, Place};
use crate::wait::{LONG, until_true};

/// Between two looks at the interface.
const PAUSE: Duration = Duration::from_millis(200);

/// What becomes of instances that start from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boots {
    /// They run their user data.
    Normally,
    /// They run it after so long.
    Slowly(Duration),
    /// They hang before it: they run for EC2 and never join.
    Never,
}

/// Keeps one machine for each running instance; all are killed with its value.
#[derive(Debug)]
pub struct Hypervisor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    end: AtomicBool,
    boots: Mutex<Boots>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    machines: BTreeMap<String, Machine>,
    // Dropped after the machines that have them.
    volumes: Vec<Volume>,
    /// Instances that have started and have no machine yet: when they get one, and whether it boots.
    booting: BTreeMap<String, (Instant, Boots)>,
    /// Every instance that ever ran.
    ever: BTreeSet<String>,
    troubles: Vec<String>,
}

impl Hypervisor {
    /// Begins to look at the interface.
    #[must_use]
    pub fn start(client: Client, place: Place) -> Self {
        let shared = Arc::new(Shared {
            end: AtomicBool::new(false),
            boots: Mutex::new(Boots::Normally),
            state: Mutex::default(),
        });
        let seen = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !seen.end.load(Ordering::Relaxed) {
                if let Err(error) = seen.look(client, &place) {
                    seen.state().troubles.push(format!("{error:#}"));
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Says what becomes of instances that start from now on.
    pub fn boots(&self, boots: Boots) {
        *self.shared.boots() = boots;
    }

    /// Lists the instances whose machines run.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        self.shared.state().machines.keys().cloned().collect()
    }

    /// Lists every instance whose machine ever ran.
    #[must_use]
    pub fn ever(&self) -> BTreeSet<String> {
        self.shared.state().ever.clone()
    }

    /// Waits until exactly `count` machines run.
    ///
    /// # Errors
    /// That does not come in time; with what all machines have printed.
    pub fn until_running(&self, count: usize) -> Result<Vec<String>> {
        let what = format!("{count} machines run");
        until_true(&what, LONG, || Ok(self.running().len() == count))
            .with_context(|| self.story())?;
        Ok(self.running())
    }

    /// Asks a machine.
    ///
    /// # Errors
    /// It does not run.
    pub fn with<T>(&self, id: &str, ask: impl FnOnce(&mut Machine) -> T) -> Result<T> {
        let mut state = self.shared.state();
        let machine = state.machines.get_mut(id);
        Ok(ask(machine.with_context(|| format!("{id} does not run"))?))
    }

    /// Serves a notice to an instance.
    ///
    /// # Errors
    /// It does not run.
    pub fn notice(&self, id: &str, notice: Notice) -> Result<()> {
        self.with(id, |machine| machine.imds().notice(notice))
    }

    /// Gives the end of what everything has printed, for a test that failed.
    #[must_use]
    pub fn story(&self) -> String {
        let state = self.shared.state();
        let mut story = format!("--- hypervisor\n{}\n", state.troubles.join("\n"));
        for machine in state.machines.values() {
            story.push_str(&machine.story());
        }
        story
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn boots(&self) -> MutexGuard<'_, Boots> {
        self.boots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how a new instance boots, once it is as far.
    fn is_up(&self, id: &str) -> Option<Boots> {
        let boots = *self.boots();
        let mut state = self.state();
        let now = Instant::now();
        let after = match boots {
            Boots::Slowly(after) => after,
            Boots::Normally | Boots::Never => Duration::ZERO,
        };
        let begun = state.booting.entry(id.to_owned());
        let (at, boots) = *begun.or_insert((now + after, boots));
        (now >= at).then_some(boots)
    }

    fn look(&self, client: Client, place: &Place) -> Result<()> {
        let running: BTreeMap<String, Instance> = client
            .instances()?
            .into_iter()
            .filter(|instance| instance.state == "running")
            .map(|instance| (instance.id.clone(), instance))
            .collect();
        let mut state = self.state();
        let gone: Vec<String> = state
            .machines
            .keys()
            .filter(|id| !running.contains_key(*id))
            .cloned()
            .collect();
        state.booting.retain(|id, _| running.contains_key(id));
        let gone: Vec<Machine> = gone
            .iter()
            .filter_map(|id| state.machines.remove(id))
            .collect();
        let new: Vec<Instance> = running
            .into_values()
            .filter(|instance| !state.ever.contains(&instance.id))
            .collect();
        drop(state);
        drop(gone);
        for instance in new {
            let id = instance.id.clone();
            let Some(boots) = self.is_up(&id) else {
                continue;
            };
            let machine = Machine::start(place, client, &instance, boots != Boots::Never)
                .with_context(|| format!("cannot start {id}"))?;
            let mut state = self.state();
            state.booting.remove(&id);
            state.ever.insert(id.clone());
            state.machines.insert(id, machine);
        }
        let mut state = self.state();
        let State {
            machines, volumes, ..
        } = &mut *state;
        for machine in machines.values_mut() {
            machine.attach_home(place, client, volumes)?;
        }
        Ok(())
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let mut state = self.shared.state();
        state.machines.clear();
        state.volumes.clear();
    }
}
