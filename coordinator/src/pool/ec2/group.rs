//! Which instance of a group is which allocation, and how many there should be. Pure.
//!
//! Instances of a group bear no names of orders: they come when the group's desired capacity is raised.
//! Each new one becomes the oldest allocation that has none yet; what the core then commits holds for
//! good. Nobody but this coordinator may change the desired capacity, and since it is an absolute
//! number, raising it twice for one order starts nothing twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coordinator_core::AllocationId;

use crate::pool::provider::{Known, OrderName, Sighted, Sighting};

/// A group as its provider describes it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Group {
    pub(super) desired: u32,
    pub(super) min: u32,
    pub(super) max: u32,
    /// What the group does not do by itself at present, such as `Launch`.
    pub(super) suspended: Vec<Box<str>>,
    /// Home of the coordinator that it is for, by its tag.
    pub(super) coordinator: Option<Box<str>>,
    pub(super) instances: Vec<Instance>,
}

impl Group {
    /// Gives the instances that are there to stay.
    pub(super) fn there(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|one| one.stage.is_there())
    }

    /// Gives how many instances count towards the desired capacity.
    fn counted(&self) -> usize {
        let counted = self.instances.iter().filter(|one| one.stage.counts());
        counted.count()
    }

    /// Tells whether the end of one more instance that counts must lower the desired capacity too, after
    /// `ended` others: else another one takes its place. A group that has more instances than it should
    /// has been told so already; lowering it again is refused at its minimum.
    pub(super) fn lowers(&self, ended: usize) -> bool {
        // Those that it has too many come first.
        let surplus = self.counted().saturating_sub(self.desired as usize);
        ended >= surplus
    }

    /// Says why the group does not become what is wanted of it, although it answers.
    pub(super) fn remark(&self, wanted: u32) -> Option<String> {
        let off = |process: &str| self.suspended.iter().any(|name| **name == *process);
        let mut remarks = vec![];
        for (process, consequence) in [
            ("Launch", "no instance is started"),
            ("Terminate", "no instance is ended"),
        ] {
            if off(process) {
                remarks.push(format!(
                    "its process {process} is suspended, so {consequence}: resume it"
                ));
            }
        }
        if wanted < self.min {
            let min = self.min;
            remarks.push(format!(
                "its min_size keeps {min} instances, though {wanted} are wanted: set it to 0, and let \
                 the pool's `min` say how many are always there"
            ));
        }
        (!remarks.is_empty()).then(|| remarks.join("; "))
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Instance {
    pub(super) id: Box<str>,
    pub(super) stage: Stage,
    /// The group does not choose it when it shrinks.
    pub(super) protected: bool,
}

/// How far an instance is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Coming,
    Running,
    /// In standby: it runs and does not count towards the desired capacity.
    Aside,
    Leaving,
    Gone,
}

impl Stage {
    /// Reads the group's word for it, such as `InService` or `Pending:Wait`.
    pub(super) fn parse(text: &str) -> Self {
        match text.split(':').next().unwrap_or_default() {
            "Pending" | "Quarantined" | "Warmed" => Self::Coming,
            "Terminated" | "Detached" => Self::Gone,
            "Terminating" | "Detaching" => Self::Leaving,
            "EnteringStandby" | "Standby" => Self::Aside,
            // In service, or a word that is new: it costs money and may do work.
            _ => Self::Running,
        }
    }

    /// Tells whether it is there until somebody ends it.
    fn is_there(self) -> bool {
        self.counts() || self == Self::Aside
    }

    /// Tells whether it counts towards the desired capacity.
    pub(super) fn counts(self) -> bool {
        matches!(self, Self::Coming | Self::Running)
    }
}

/// A launch that failed, in the provider's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) message: Box<str>,
}

impl Failure {
    /// Tells whether the group will have the instance once there is room for it: it tries again by itself,
    /// and nobody has to mend anything.
    fn passes(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        let lacks = ["capacity", "limitexceeded", "countexceeded"];
        lacks.iter().any(|word| message.contains(word))
    }
}

/// What follows from a look at a group.
#[derive(PartialEq, Eq, Default, Debug)]
pub(super) struct View {
    pub(super) sightings: Vec<Sighting>,
    /// What the desired capacity must become.
    pub(super) desired: Option<u32>,
    /// Instances that the group must not end by itself.
    pub(super) protect: Vec<Box<str>>,
}

/// Counts the allocations that the group has, or has to make, an instance for. One that leaves or stands
/// by is not counted: the group has its own number without it.
pub(super) fn wanted(known: &[Known], group: &Group) -> u32 {
    let counted = group.instances.iter().filter(|one| one.stage.counts());
    let counted: BTreeSet<&str> = counted.map(|one| &*one.id).collect();
    let wanted = known.iter().filter(|one| match &one.external {
        Some(external) => counted.contains(&**external),
        None => !one.ends,
    });
    u32::try_from(wanted.count()).unwrap_or(u32::MAX)
}

/// Tells how many allocations have been asked for and have no instance yet.
pub(super) fn missing(known: &[Known], group: &Group) -> usize {
    (group.desired as usize)
        .saturating_sub(group.counted())
        .min(
            known
                .iter()
                .filter(|one| one.external.is_none() && !one.ends)
                .count(),
        )
}

/// Tells which instance is which allocation. `failures` are launches that failed since the last look.
pub(super) fn view(
    home: &str,
    pool: &str,
    known: &[Known],
    group: &Group,
    failures: Vec<Failure>,
) -> View {
    let mut view = View::default();
    let of: BTreeMap<&str, &Known> = known
        .iter()
        .filter_map(|one| Some((one.external.as_deref()?, one)))
        .collect();
    let name = |first: AllocationId| OrderName {
        home: home.into(),
        pool: pool.into(),
        first,
    };
    let sighting = |one: &Known, external: &str, state: Sighted| Sighting {
        external: external.into(),
        name: name(one.first),
        index: u32::try_from(one.id.0.saturating_sub(one.first.0)).unwrap_or(u32::MAX),
        state,
    };
    let mut waiting: VecDeque<&Known> = known
        .iter()
        .filter(|one| one.external.is_none() && !one.ends)
        .collect();
    let mut instances: Vec<&Instance> = group.instances.iter().collect();
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    for instance in instances {
        let state = match instance.stage {
            Stage::Coming => Sighted::Queued,
            Stage::Running | Stage::Aside => Sighted::Running {
                host: instance.id.clone(),
            },
            // It takes minutes, comes back never, and the group counts it no more. Should its worker still
            // be heard, the core believes that.
            Stage::Leaving => Sighted::Ended {
                detail: "the group ends the instance".into(),
            },
            Stage::Gone => Sighted::Ended {
                detail: "the group has ended the instance".into(),
            },
        };
        // One that is coming cannot be protected yet, and all that are named with it would not be either.
        if !instance.protected && matches!(instance.stage, Stage::Running | Stage::Aside) {
            view.protect.push(instance.id.clone());
        }
        let known = match of.get(&*instance.id) {
            Some(known) => Some(*known),
            None if instance.stage.counts() => waiting.pop_front(),
            None => None,
        };
        match known {
            Some(known) => view.sightings.push(sighting(known, &instance.id, state)),
            // Of no order: no allocation has the number 0.
            None if instance.stage.is_there() => view.sightings.push(Sighting {
                external: instance.id.clone(),
                name: name(AllocationId(0)),
                index: 0,
                state,
            }),
            None => {}
        }
    }
    // Those that are on their way: asked for, and neither there nor refused.
    let live = group.counted();
    let coming = (group.desired as usize).saturating_sub(live);
    // The group tells of one launch that failed, however many are missing.
    let shortage = failures.iter().find(|failure| failure.passes());
    let shortage = shortage.map(|failure| failure.message.clone());
    let mut failures = failures.into_iter();
    let wanted = wanted(known, group);
    for (nth, one) in waiting.into_iter().enumerate() {
        let state = match failures.next() {
            // Those that the group has no place for keep theirs in the pool: the rest can work.
            _ if nth >= coming && group.desired >= group.max => Sighted::Held {
                reason: format!(
                    "the pool wants {wanted} instances, and the most that its auto scaling group may have \
                     is {}: raise its `max_size`, or lower the pool's `max`",
                    group.max
                )
                .into(),
            },
            // Nobody has told the group of those yet.
            _ if nth >= coming => break,
            Some(failure) if failure.passes() => Sighted::Held {
                reason: failure.message,
            },
            Some(failure) => Sighted::Ended {
                detail: failure.message,
            },
            None => match &shortage {
                Some(reason) => Sighted::Held {
                    reason: reason.clone(),
                },
                None => Sighted::Unknown,
            },
        };
        view.sightings.push(sighting(one, "", state));
    }
    let most = wanted.max(group.min);
    let live = u32::try_from(live).unwrap_or(u32::MAX);
    if group.desired > most && live <= most {
        // Instances above that are ended one by one, and the number with them.
        view.desired = Some(most);
    } else {
        // Some had no place until somebody made the group larger. One that is being ended may be listed
        // for a moment after the number was lowered for it.
        let stay: Vec<Known> = known.iter().filter(|one| !one.ends).cloned().collect();
        let stay = self::wanted(&stay, group).min(group.max);
        view.desired = (group.desired < stay).then_some(stay);
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(id: u64, first: u64, external: Option<&str>) -> Known {
        Known {
            id: AllocationId(id),
            first: AllocationId(first),
            external: external.map(Into::into),
            ends: false,
        }
    }

    fn group(desired: u32, instances: &[(&str, Stage)]) -> Group {
        Group {
            desired,
            max: 10,
            instances: instances
                .iter()
                .map(|(id, stage)| Instance {
                    id: (*id).into(),
                    stage: *stage,
                    protected: true,
                })
                .collect(),
            ..Group::default()
        }
    }

    fn see(known: &[Known], group: &Group) -> View {
        view("h", "p", known, group, vec![])
    }

    /// External, allocation and state of each.
    fn seen(view: &View) -> Vec<(String, u64, Sighted)> {
        let sightings = view.sightings.iter();
        sightings
            .map(|s| {
                let id = s.name.first.0 + u64::from(s.index);
                (s.external.to_string(), id, s.state.clone())
            })
            .collect()
    }

    fn runs(id: &str) -> Sighted {
        Sighted::Running { host: id.into() }
    }

    #[test]
    fn a_new_instance_becomes_the_oldest_allocation_that_has_none() {
        let inventory = [
            known(1, 1, Some("i-b")),
            known(2, 1, None),
            known(3, 3, None),
        ];
        let group = group(3, &[("i-b", Stage::Running), ("i-a", Stage::Coming)]);
        let view = see(&inventory, &group);
        assert_eq!(
            seen(&view),
            [
                ("i-a".to_owned(), 2, Sighted::Queued),
                ("i-b".to_owned(), 1, runs("i-b")),
                // Asked for, and on its way.
                (String::new(), 3, Sighted::Unknown),
            ]
        );
        assert_eq!((view.desired, view.protect), (None, vec![]));
        assert_eq!(missing(&inventory, &group), 1);
    }

    #[test]
    fn an_instance_that_leaves_makes_room_for_another_one_at_once() {
        let inventory = [known(1, 1, Some("i-a")), known(2, 2, None)];
        let group = group(0, &[("i-a", Stage::Leaving), ("i-b", Stage::Leaving)]);
        let detail = "the group ends the instance".into();
        // The other one is none of ours any more.
        assert_eq!(
            seen(&see(&inventory, &group)),
            [("i-a".to_owned(), 1, Sighted::Ended { detail })]
        );
    }

    #[test]
    fn an_order_that_the_group_has_not_heard_of_is_not_seen() {
        let inventory = [known(1, 1, Some("i-a")), known(2, 2, None)];
        let view = see(&inventory, &group(1, &[("i-a", Stage::Running)]));
        assert_eq!(seen(&view), [("i-a".to_owned(), 1, runs("i-a"))]);
    }

    #[test]
    fn a_failed_launch_ends_one_order_with_the_providers_words_and_one_without_capacity_waits() {
        let inventory = [known(1, 1, None), known(2, 1, None), known(3, 1, None)];
        let failed = |message: &str| Failure {
            message: message.into(),
        };
        let failures = vec![
            failed("Invalid IamInstanceProfile"),
            failed("We currently do not have sufficient m5.large capacity"),
        ];
        let view = view("h", "p", &inventory, &group(3, &[]), failures);
        let detail = "Invalid IamInstanceProfile".into();
        let reason: Box<str> = "We currently do not have sufficient m5.large capacity".into();
        assert_eq!(
            seen(&view),
            [
                (String::new(), 1, Sighted::Ended { detail }),
                (
                    String::new(),
                    2,
                    Sighted::Held {
                        reason: reason.clone()
                    }
                ),
                // The group tries for one of them at a time.
                (String::new(), 3, Sighted::Held { reason })
            ]
        );
        // A group that is short of instances goes on to try, and keeps its number.
        assert_eq!(view.desired, None);
        assert!(failed("Could not launch Spot Instances. MaxSpotInstanceCountExceeded").passes());
        assert!(!failed("The image id does not exist").passes());
    }

    #[test]
    fn the_capacity_is_lowered_to_what_is_wanted_and_never_below_what_runs() {
        // One was taken away, and nothing takes its place.
        let inventory = [known(1, 1, Some("i-a"))];
        let taken = group(2, &[("i-a", Stage::Running), ("i-b", Stage::Leaving)]);
        assert_eq!(see(&inventory, &taken).desired, Some(1));
        // The group was quicker: the new one is a stranger, to be ended by its id.
        let replaced = group(2, &[("i-a", Stage::Running), ("i-c", Stage::Running)]);
        let view = see(&inventory, &replaced);
        assert_eq!(view.desired, None);
        assert_eq!(seen(&view)[1], ("i-c".to_owned(), 0, runs("i-c")));
        // One that is to end and never came.
        let ends = Known {
            ends: true,
            ..known(2, 2, None)
        };
        let inventory = [known(1, 1, Some("i-a")), ends];
        let waits = group(2, &[("i-a", Stage::Running)]);
        assert_eq!(see(&inventory, &waits).desired, Some(1));
        // One that is to end and still works.
        let works = Known {
            ends: true,
            ..known(2, 2, Some("i-b"))
        };
        let both = group(2, &[("i-a", Stage::Running), ("i-b", Stage::Running)]);
        let inventory = [known(1, 1, Some("i-a")), works];
        assert_eq!(see(&inventory, &both).desired, None);
        // Being ended, and the group's number was lowered with that.
        let leaves = group(1, &[("i-a", Stage::Running), ("i-b", Stage::Leaving)]);
        assert_eq!(see(&inventory, &leaves).desired, None);
        assert_eq!(wanted(&inventory, &leaves), 1);
    }

    #[test]
    fn an_instance_that_the_group_might_end_by_itself_is_protected() {
        let mut group = group(
            3,
            &[
                ("i-a", Stage::Running),
                ("i-b", Stage::Leaving),
                ("i-c", Stage::Coming),
            ],
        );
        for instance in &mut group.instances {
            instance.protected = false;
        }
        let view = see(&[known(1, 1, Some("i-a")), known(2, 2, None)], &group);
        assert_eq!(view.protect, [Box::from("i-a")]);
    }

    #[test]
    fn the_capacity_is_not_raised_for_an_instance_that_is_being_ended() {
        let ending = Known {
            ends: true,
            ..known(1, 1, Some("i-a"))
        };
        // Its end has lowered the number, and the list still shows it in service.
        let group = group(0, &[("i-a", Stage::Running)]);
        assert_eq!(see(&[ending], &group).desired, None);
    }

    #[test]
    fn one_in_standby_is_seen_and_counts_for_nothing() {
        let inventory = [known(1, 1, Some("i-a")), known(2, 2, None)];
        // Somebody has put it aside, and the group's number was lowered with that.
        let mut group = group(0, &[("i-a", Stage::Aside)]);
        let view = see(&inventory, &group);
        assert_eq!(seen(&view), [("i-a".to_owned(), 1, runs("i-a"))]);
        assert_eq!((wanted(&inventory, &group), view.desired), (1, Some(1)));
        // Or it was not, and another one has taken its place: that is the one which was ordered.
        group.desired = 1;
        group.instances.push(Instance {
            id: "i-b".into(),
            stage: Stage::Running,
            protected: true,
        });
        assert_eq!(seen(&see(&inventory, &group))[1].1, 2);
        assert_eq!(wanted(&inventory, &group), 1);
        assert!(group.lowers(0));
    }

    #[test]
    fn the_capacity_is_not_lowered_below_the_groups_minimum_and_people_are_told() {
        let least = Group {
            min: 2,
            ..group(3, &[])
        };
        assert_eq!(see(&[], &least).desired, Some(2));
        let told = least.remark(0).unwrap();
        assert!(told.contains("min_size keeps 2"), "{told}");
        assert_eq!(least.remark(2), None);
        let off = Group {
            suspended: vec!["Launch".into(), "AZRebalance".into()],
            ..group(0, &[])
        };
        let told = off.remark(0).unwrap();
        assert_eq!(
            told,
            "its process Launch is suspended, so no instance is started: resume it"
        );
    }

    #[test]
    fn the_end_of_an_instance_lowers_the_capacity_unless_that_is_low_already() {
        let three = [
            ("i-a", Stage::Running),
            ("i-b", Stage::Coming),
            ("i-c", Stage::Running),
            ("i-d", Stage::Leaving),
        ];
        let lowers = |desired| -> Vec<bool> {
            let group = group(desired, &three);
            (0..3).map(|ended| group.lowers(ended)).collect()
        };
        assert_eq!(lowers(3), [true, true, true]);
        assert_eq!(lowers(2), [false, true, true]);
        assert_eq!(lowers(0), [false, false, false]);
        assert_eq!(lowers(5), [true, true, true]);
    }

    #[test]
    fn the_groups_words_are_known() {
        for (text, stage) in [
            ("Pending", Stage::Coming),
            ("Pending:Wait", Stage::Coming),
            ("InService", Stage::Running),
            ("Standby", Stage::Aside),
            ("Terminating:Proceed", Stage::Leaving),
            ("Terminated", Stage::Gone),
            ("SomethingNew", Stage::Running),
        ] {
            assert_eq!(Stage::parse(text), stage, "{text}");
        }
    }
}
