//! What a provider's list says about the inventory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Seen, Sighted, Sighting};
use crate::ids::AllocationId;
use crate::limits;
use crate::time::Timestamp;

/// An allocation of the inventory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub id: AllocationId,
    pub first: AllocationId,
    /// `None` while its order has no answer.
    pub external: Option<Box<str>>,
    /// A worker of it has said hello.
    pub joined: bool,
    /// Hosts of its workers that are connected or hold leases.
    pub hosts: BTreeSet<Arc<str>>,
}

impl Held {
    /// Tells whether its order has surely arrived: its provider has named it, or a worker has shown
    /// its credential.
    #[must_use]
    pub fn has_arrived(&self) -> bool {
        self.external.is_some() || self.joined
    }
}

/// What earlier lists have said. Volatile: after a restart it is learned again.
#[derive(Default, Debug)]
pub struct Memory {
    missing: BTreeMap<AllocationId, (u32, Timestamp)>,
    strangers: BTreeMap<Box<str>, Timestamp>,
    /// Orders that may or may not have arrived, and since when.
    doubts: BTreeMap<AllocationId, Timestamp>,
    /// Orders that have surely arrived, at least in part.
    arrived: BTreeSet<AllocationId>,
}

/// What follows from a list.
#[derive(PartialEq, Eq, Default, Debug)]
pub struct Judgement {
    pub seen: Vec<(AllocationId, Seen)>,
    /// What nobody knows any more, or came twice: to be ended.
    pub orphans: Vec<Box<str>>,
    /// Orders that surely have not arrived: they can be placed again.
    pub lost: Vec<AllocationId>,
}

impl Memory {
    /// An order may or may not have arrived.
    pub fn doubt(&mut self, first: AllocationId, now: Timestamp) {
        self.doubts.entry(first).or_insert(now);
    }

    /// Tells whether it is not known yet whether an order has arrived.
    #[must_use]
    pub fn doubts(&self, first: AllocationId) -> bool {
        self.doubts.contains_key(&first)
    }

    /// Tells whether something of an order was seen: it must not be placed again, even for those of
    /// its allocations that are still without a name.
    #[must_use]
    pub fn has_arrived(&self, first: AllocationId) -> bool {
        self.arrived.contains(&first)
    }

    /// Counts what the last list had that nobody knows: it is left alone for a while, then ended.
    #[must_use]
    pub fn strangers(&self) -> usize {
        self.strangers.len()
    }

    /// Compares a list, of this home and pool alone, with the inventory. `now` is when the list was
    /// asked for, since it may know nothing of what arrived later; it only grows, and a clock of the
    /// process will do.
    pub fn compare(&mut self, held: &[Held], sightings: &[Sighting], now: Timestamp) -> Judgement {
        let mut judgement = Judgement::default();
        let known: BTreeMap<AllocationId, &Held> = held.iter().map(|one| (one.id, one)).collect();
        let chosen = choose(&known, sightings);
        let mut strangers = BTreeSet::new();
        for (place, sighting) in sightings.iter().enumerate() {
            let id = id_of(sighting);
            if chosen.get(&id) == Some(&place) {
                let external = sighting.external.clone();
                let seen = match &sighting.state {
                    Sighted::Queued => Seen::Queued { external },
                    Sighted::Held { reason } => Seen::Held {
                        external,
                        reason: reason.clone(),
                    },
                    Sighted::Running { host } => Seen::Running {
                        external,
                        host: host.clone(),
                    },
                    Sighted::Ended { detail } => Seen::Gone {
                        detail: detail.clone(),
                    },
                    Sighted::Ending | Sighted::Unknown => continue,
                };
                judgement.seen.push((id, seen));
            } else if !matches!(sighting.state, Sighted::Ended { .. } | Sighted::Ending)
                // What has no name cannot be ended.
                && !sighting.external.is_empty()
            {
                strangers.insert(sighting.external.clone());
            }
        }
        self.miss(held, &chosen, now, &mut judgement);
        self.strangers.retain(|name, _| strangers.contains(name));
        for name in strangers {
            let since = *self.strangers.entry(name.clone()).or_insert(now);
            if now.since(since) >= limits::STRANGER_FOR {
                judgement.orphans.push(name);
            }
        }
        judgement
    }

    fn miss(
        &mut self,
        held: &[Held],
        chosen: &BTreeMap<AllocationId, usize>,
        now: Timestamp,
        judgement: &mut Judgement,
    ) {
        let missing = held.iter().filter(|one| !chosen.contains_key(&one.id));
        let missing: BTreeMap<AllocationId, &Held> = missing.map(|one| (one.id, one)).collect();
        self.missing.retain(|id, _| missing.contains_key(id));
        let there = held.iter().filter(|one| one.has_arrived());
        let there = there.map(|one| one.first);
        let listed = held.iter().filter(|one| chosen.contains_key(&one.id));
        self.arrived
            .extend(there.chain(listed.map(|one| one.first)));
        let firsts: BTreeSet<AllocationId> = held.iter().map(|one| one.first).collect();
        self.arrived.retain(|first| firsts.contains(first));
        let arrived = &self.arrived;
        self.doubts
            .retain(|first, _| firsts.contains(first) && !arrived.contains(first));
        for (id, one) in missing {
            // Nobody has ordered it yet, or the answer is not clear.
            if one.external.is_none() && !self.arrived.contains(&one.first) {
                continue;
            }
            let (lists, since) = self.missing.entry(id).or_insert((0, now));
            *lists += 1;
            if *lists >= limits::MISSING_LISTS && now.since(*since) >= limits::MISSING_FOR {
                let detail = "its provider does not list it any more".into();
                judgement.seen.push((id, Seen::Gone { detail }));
            }
        }
        let settled = self.doubts.iter();
        let settled = settled.filter(|(_, since)| now.since(**since) >= limits::ORDER_SETTLES);
        judgement.lost = settled.map(|(first, _)| *first).collect();
        for first in &judgement.lost {
            self.doubts.remove(first);
        }
    }
}

fn id_of(sighting: &Sighting) -> AllocationId {
    AllocationId(
        sighting
            .name
            .first
            .0
            .saturating_add(u64::from(sighting.index)),
    )
}

/// Chooses for each allocation the sighting that is it: one whose worker is there, whatever was known
/// before; else the one with the name that is known, else the one that is farthest, else the first. All
/// others of that name came twice.
fn choose(
    known: &BTreeMap<AllocationId, &Held>,
    sightings: &[Sighting],
) -> BTreeMap<AllocationId, usize> {
    let mut chosen: BTreeMap<AllocationId, ((bool, u8), usize)> = BTreeMap::new();
    for (place, sighting) in sightings.iter().enumerate() {
        let id = id_of(sighting);
        let Some(held) = known
            .get(&id)
            .filter(|held| held.first == sighting.name.first)
        else {
            continue;
        };
        let without = !has_worker(held, &sighting.state);
        let rank = match (&held.external, &sighting.state) {
            (Some(external), _) if *external == sighting.external => 0,
            (Some(_), _) if without => continue,
            (_, Sighted::Running { .. }) => 1,
            (_, Sighted::Queued | Sighted::Held { .. } | Sighted::Unknown) => 2,
            (_, Sighted::Ending | Sighted::Ended { .. }) => 3,
        };
        let rank = (without, rank);
        let best = chosen.entry(id).or_insert((rank, place));
        if rank < best.0 {
            *best = (rank, place);
        }
    }
    let places = chosen.into_iter();
    places.map(|(id, (_, place))| (id, place)).collect()
}

/// Tells whether a worker of an allocation is on the host of what was sighted, as far as that can be
/// seen: a provider may call hosts by other names, or tell of several at once.
fn has_worker(held: &Held, state: &Sighted) -> bool {
    let Sighted::Running { host } = state else {
        return false;
    };
    let short = |host: &str| host.split('.').next().unwrap_or_default().to_owned();
    let mut hosts = held.hosts.iter();
    !host.is_empty() && hosts.any(|at| short(at) == short(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::OrderName;
    use crate::time::Span;

    const POLL: u64 = 10;

    fn held(id: u64, external: Option<&str>) -> Held {
        Held {
            id: AllocationId(id),
            first: AllocationId(id),
            external: external.map(Into::into),
            joined: false,
            hosts: BTreeSet::new(),
        }
    }

    fn sighting(first: u64, external: &str, state: Sighted) -> Sighting {
        Sighting {
            external: external.into(),
            name: OrderName {
                home: "h".into(),
                pool: "p".into(),
                first: AllocationId(first),
            },
            index: 0,
            state,
        }
    }

    fn running() -> Sighted {
        Sighted::Running { host: "n1".into() }
    }

    fn secs(secs: u64) -> Timestamp {
        Timestamp::default() + Span::from_secs(secs)
    }

    /// Hands in the same list every ten seconds until something but `seen` follows.
    fn repeat(memory: &mut Memory, held: &[Held], list: &[Sighting]) -> (u64, Judgement) {
        for nth in 0..100 {
            let judgement = memory.compare(held, list, secs(nth * POLL));
            if !judgement.orphans.is_empty() || !judgement.lost.is_empty() {
                return (nth * POLL, judgement);
            }
        }
        panic!("nothing follows in a hundred lists");
    }

    #[test]
    fn what_is_listed_is_observed() {
        let mut memory = Memory::default();
        let list = [
            sighting(1, "j1", Sighted::Queued),
            sighting(2, "j2", running()),
            sighting(3, "j3", Sighted::Unknown),
            sighting(4, "j4", Sighted::Ending),
            sighting(
                5,
                "j5",
                Sighted::Ended {
                    detail: "TIMEOUT".into(),
                },
            ),
        ];
        let held: Vec<Held> = (1..=5).map(|id| held(id, None)).collect();
        let judgement = memory.compare(&held, &list, secs(0));
        assert_eq!(
            judgement.seen,
            [
                (
                    AllocationId(1),
                    Seen::Queued {
                        external: "j1".into()
                    }
                ),
                (
                    AllocationId(2),
                    Seen::Running {
                        external: "j2".into(),
                        host: "n1".into()
                    }
                ),
                (
                    AllocationId(5),
                    Seen::Gone {
                        detail: "TIMEOUT".into()
                    }
                ),
            ]
        );
    }

    #[test]
    fn an_allocation_is_gone_only_after_it_was_missing_twice_and_for_a_while() {
        let mut memory = Memory::default();
        let held = [held(1, Some("j1"))];
        assert_eq!(memory.compare(&held, &[], secs(0)), Judgement::default());
        assert_eq!(memory.compare(&held, &[], secs(1)), Judgement::default());
        let there = [sighting(1, "j1", Sighted::Unknown)];
        memory.compare(&held, &there, secs(5));
        assert_eq!(memory.compare(&held, &[], secs(11)).seen, []);
        assert_eq!(memory.compare(&held, &[], secs(12)).seen, []);
        assert_eq!(memory.compare(&held, &[], secs(21)).seen.len(), 1);
    }

    #[test]
    fn an_order_without_an_answer_is_found_by_its_name() {
        let mut memory = Memory::default();
        memory.doubt(AllocationId(1), secs(0));
        let judgement = memory.compare(
            &[held(1, None)],
            &[sighting(1, "j9", Sighted::Queued)],
            secs(1),
        );
        assert_eq!(judgement.seen.len(), 1);
        assert!(!memory.doubts(AllocationId(1)));
    }

    #[test]
    fn an_order_that_does_not_arrive_can_be_placed_again_and_not_before() {
        let mut memory = Memory::default();
        memory.doubt(AllocationId(1), secs(0));
        let (at, judgement) = repeat(&mut memory, &[held(1, None)], &[]);
        assert_eq!(at, 30);
        assert_eq!(judgement.lost, [AllocationId(1)]);
        assert_eq!(judgement.seen, []);
    }

    #[test]
    fn an_order_whose_allocation_is_seen_in_whatever_state_has_arrived() {
        let ended = Sighted::Ended { detail: "".into() };
        for state in [Sighted::Unknown, Sighted::Ending, ended] {
            let mut memory = Memory::default();
            memory.doubt(AllocationId(1), secs(0));
            memory.compare(&[held(1, None)], &[sighting(1, "j1", state)], secs(1));
            assert!(!memory.doubts(AllocationId(1)));
            // It says nothing that the core would note, and is not placed again all the same.
            assert!(memory.has_arrived(AllocationId(1)));
            memory.compare(&[], &[], secs(2));
            assert!(!memory.has_arrived(AllocationId(1)), "it is over");
        }
    }

    #[test]
    fn an_order_of_which_a_worker_has_joined_has_arrived_whatever_lists_say() {
        let mut memory = Memory::default();
        memory.doubt(AllocationId(1), secs(0));
        let joined = Held {
            joined: true,
            ..held(1, None)
        };
        for nth in 0..2 {
            let judgement = memory.compare(std::slice::from_ref(&joined), &[], secs(nth * 60));
            assert_eq!(judgement.lost, []);
        }
        assert!(memory.has_arrived(AllocationId(1)));
    }

    #[test]
    fn what_nobody_knows_is_ended_after_a_grace_time() {
        let mut memory = Memory::default();
        let first = memory.compare(&[], &[sighting(1, "j1", running())], secs(0));
        assert_eq!((first.orphans.len(), memory.strangers()), (0, 1));
        let (at, judgement) = repeat(&mut memory, &[], &[sighting(1, "j1", running())]);
        assert_eq!(at, 60);
        assert_eq!(judgement.orphans, ["j1".into()]);
        let ended = Sighted::Ended { detail: "".into() };
        let judgement = memory.compare(&[], &[sighting(1, "j1", ended)], secs(200));
        assert_eq!((judgement, memory.strangers()), (Judgement::default(), 0));
        for at in [300, 400] {
            let nameless = [sighting(1, "", Sighted::Unknown)];
            assert_eq!(memory.compare(&[], &nameless, secs(at)).orphans, []);
        }
    }

    #[test]
    fn an_allocation_that_comes_twice_is_kept_once() {
        let mut memory = Memory::default();
        let twice = [
            sighting(1, "j1", Sighted::Queued),
            sighting(1, "j2", running()),
        ];
        let judgement = memory.compare(&[held(1, None)], &twice, secs(0));
        assert!(matches!(
            &judgement.seen[..],
            [(_, Seen::Running { external, .. })] if &**external == "j2"
        ));
        let (_, judgement) = repeat(&mut memory, &[held(1, Some("j2"))], &twice);
        assert_eq!(judgement.orphans, ["j1".into()]);
    }

    #[test]
    fn of_two_that_came_for_one_order_the_one_whose_worker_is_there_is_kept() {
        let mut memory = Memory::default();
        let on = |host: &str| Sighted::Running { host: host.into() };
        let with_worker = |external: &str| Held {
            joined: true,
            hosts: ["n2.cluster.example".into()].into(),
            ..held(1, Some(external))
        };
        let seen_as = |judgement: &Judgement| match &judgement.seen[..] {
            [(_, Seen::Running { external, .. })] => external.clone(),
            other => panic!("{other:?}"),
        };
        for first in [Sighted::Queued, on("n1")] {
            let twice = [sighting(1, "j1", first), sighting(1, "j2", on("n2"))];
            let judgement = memory.compare(&[with_worker("j1")], &twice, secs(0));
            assert_eq!(&*seen_as(&judgement), "j2");
            let (_, judgement) = repeat(&mut memory, &[with_worker("j2")], &twice);
            assert_eq!(judgement.orphans, ["j1".into()]);
        }
        // On one host they cannot be told apart, and the known one stays.
        let twice = [sighting(1, "j1", on("n2")), sighting(1, "j2", on("n2"))];
        let (_, judgement) = repeat(&mut memory, &[with_worker("j2")], &twice);
        assert_eq!(judgement.orphans, ["j1".into()]);
        assert_eq!(&*seen_as(&judgement), "j2");
    }

    #[test]
    fn a_known_allocation_is_not_taken_for_another_of_its_name() {
        let mut memory = Memory::default();
        let other = [sighting(1, "j2", running())];
        let known = [held(1, Some("j1"))];
        let (_, judgement) = repeat(&mut memory, &known, &other);
        assert_eq!(judgement.orphans, ["j2".into()]);
    }

    #[test]
    fn of_an_array_each_task_is_judged_for_itself() {
        let mut memory = Memory::default();
        let array = |id, external: Option<&str>| Held {
            first: AllocationId(5),
            ..held(id, external)
        };
        let at = |index, external: &str, state| Sighting {
            index,
            ..sighting(5, external, state)
        };
        let list = [at(0, "j_0", running()), at(2, "j_2", Sighted::Queued)];
        memory.doubt(AllocationId(5), secs(0));
        assert!(!memory.has_arrived(AllocationId(5)));
        let inventory = [array(5, None), array(6, None), array(7, None)];
        let judgement = memory.compare(&inventory, &list, secs(0));
        let ids: Vec<u64> = judgement.seen.iter().map(|(id, _)| id.0).collect();
        assert_eq!(ids, [5, 7]);
        assert!(memory.has_arrived(AllocationId(5)), "in part");
        memory.compare(&inventory, &list, secs(10));
        let judgement = memory.compare(&inventory, &list, secs(20));
        let gone = (
            AllocationId(6),
            Seen::Gone {
                detail: "its provider does not list it any more".into(),
            },
        );
        assert!(judgement.seen.contains(&gone), "the order has arrived");
        assert_eq!(judgement.lost, []);
    }
}
