//! What goes wrong.

use std::time::{Duration, Instant};

use anyhow::Result;
use muster_tests::dice::Dice;
use muster_tests::ec2::{ApiFault, Boots, Capacity, Notice};

use crate::world::World;

/// One kind of fault.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The coordinator is killed and started again after up to two seconds.
    KillCoordinator,
    /// The interface answers wrongly for some seconds, to one action or to all.
    Api,
    /// Somebody terminates an instance.
    Terminate,
    /// An instance goes down while it runs for EC2.
    Crash,
    /// A spot instance is told that it will be taken back.
    Spot,
    /// An instance is told that it may be taken back.
    Rebalance,
    /// An instance does not reach the coordinator for some seconds.
    Cut,
    /// Somebody else raises what the group wants.
    Stranger,
    /// For some seconds instances start that never run their user data.
    NeverBoots,
    /// For some seconds instances start that take long.
    SlowBoots,
    /// There is no spot capacity for some seconds.
    NoCapacity,
}

impl Kind {
    /// All of them, with how often each comes.
    const ALL: [(u64, Self); 11] = [
        (4, Self::KillCoordinator),
        (5, Self::Api),
        (2, Self::Terminate),
        (1, Self::Crash),
        (2, Self::Spot),
        (2, Self::Rebalance),
        (2, Self::Cut),
        (2, Self::Stranger),
        (1, Self::NeverBoots),
        (2, Self::SlowBoots),
        (1, Self::NoCapacity),
    ];
}

/// Actions that alone may go wrong; the empty one stands for all.
const ACTIONS: [&str; 8] = [
    "",
    "",
    "DescribeScalingActivities",
    "DescribeAutoScalingGroups",
    "SetDesiredCapacity",
    "TerminateInstanceInAutoScalingGroup",
    "SetInstanceProtection",
    "GetCallerIdentity",
];

/// Decides what goes wrong when, and mends what was broken for a while.
pub(crate) struct Director {
    dice: Dice,
    every: Duration,
    api_until: Option<Instant>,
    boots_until: Option<Instant>,
    capacity_until: Option<Instant>,
    /// Instances that are cut off, and until when.
    cuts: Vec<(String, Instant)>,
}

impl Director {
    pub(crate) fn new(seed: u64, every: Duration) -> Self {
        Self {
            dice: Dice::new(seed, 1),
            every,
            api_until: None,
            boots_until: None,
            capacity_until: None,
            cuts: Vec::new(),
        }
    }

    /// Makes one fault, then pauses.
    pub(crate) fn act(&mut self, world: &mut World) -> Result<()> {
        let kind = self.dice.weighted(&Kind::ALL).copied();
        if let Some(kind) = kind {
            self.make(kind, world)?;
        }
        let most = u64::try_from(self.every.as_millis())?.saturating_mul(2);
        let until = Instant::now() + Duration::from_millis(self.dice.between(0, most));
        while Instant::now() < until {
            self.mend(world, Instant::now())?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Mends everything.
    pub(crate) fn rest(&mut self, world: &mut World) -> Result<()> {
        let later = Instant::now() + Duration::from_secs(3_600);
        self.mend(world, later)
    }

    fn make(&mut self, kind: Kind, world: &mut World) -> Result<()> {
        let machines = world.cloud.hypervisor.running();
        let machine = self.dice.index(machines.len()).map(|at| &machines[at]);
        // Drawn in any case, so that what follows depends on the seed alone.
        let (for_ms, which) = (self.dice.between(500, 8_000), self.dice.below(1 << 20));
        let until = Instant::now() + Duration::from_millis(for_ms);
        let seconds = format!("for {:.1} s", Duration::from_millis(for_ms).as_secs_f64());
        match kind {
            Kind::KillCoordinator => {
                world.cluster.kill_coordinator()?;
                let down = Duration::from_millis(which % 2_000);
                world.note(
                    "coordinator killed",
                    &format!("for {} ms", down.as_millis()),
                );
                std::thread::sleep(down);
                world.cluster.serve()?;
            }
            Kind::Api => {
                let fault = pick(&ApiFault::ALL, which);
                let action = pick(&ACTIONS, which / 16);
                let of_lists = matches!(fault, ApiFault::NoGroup | ApiFault::NoInstances);
                let action = (!action.is_empty() && !of_lists).then_some(action);
                world.cloud.moto.falter(fault, action)?;
                self.api_until = Some(until);
                let all = action.unwrap_or("everything");
                world.note(
                    &format!("interface: {fault:?}"),
                    &format!("{all} {seconds}"),
                );
            }
            Kind::Stranger => {
                let (client, group) = (world.cloud.client(), world.cloud.group.clone());
                let wanted = client.desired(&group)? + 1;
                // Refused where the group is as large as it may be.
                let done = client.set_desired(&group, wanted).is_ok();
                let done = if done { "done" } else { "refused" };
                world.note("stranger raises the group", &format!("to {wanted}: {done}"));
            }
            Kind::NeverBoots | Kind::SlowBoots => {
                let boots = match kind {
                    Kind::NeverBoots => Boots::Never,
                    _ => Boots::Slowly(Duration::from_millis(which % 18_000)),
                };
                world.cloud.hypervisor.boots(boots);
                self.boots_until = Some(until);
                world.note("instances boot badly", &format!("{boots:?} {seconds}"));
            }
            Kind::NoCapacity => {
                world.cloud.moto.capacity(Capacity::None)?;
                self.capacity_until = Some(until);
                world.note("no capacity", &seconds);
            }
            Kind::Terminate | Kind::Crash | Kind::Spot | Kind::Rebalance | Kind::Cut => {
                let Some(id) = machine else {
                    return Ok(());
                };
                // It may end by itself in this very moment.
                let hypervisor = &world.cloud.hypervisor;
                let done = match kind {
                    Kind::Terminate => world.cloud.client().terminate(id).is_ok(),
                    Kind::Crash => hypervisor.with(id, |machine| machine.crash()).is_ok(),
                    Kind::Spot => hypervisor.notice(id, Notice::Spot).is_ok(),
                    Kind::Rebalance => hypervisor.notice(id, Notice::Rebalance).is_ok(),
                    _ => hypervisor.with(id, |machine| machine.cut()).is_ok(),
                };
                if done && matches!(kind, Kind::Cut) {
                    self.cuts.push((id.clone(), until));
                }
                if done {
                    world.hit.insert(id.clone());
                    world.note(&format!("instance: {kind:?}"), id);
                }
            }
        }
        Ok(())
    }

    fn mend(&mut self, world: &mut World, now: Instant) -> Result<()> {
        let due = |until: &mut Option<Instant>| until.take_if(|until| *until <= now).is_some();
        if due(&mut self.api_until) {
            world.cloud.moto.recover()?;
        }
        if due(&mut self.boots_until) {
            world.cloud.hypervisor.boots(Boots::Normally);
        }
        if due(&mut self.capacity_until) {
            world.cloud.moto.capacity(Capacity::Available)?;
        }
        for (id, _) in self.cuts.extract_if(.., |(_, until)| *until <= now) {
            // One that has ended meanwhile, or is cut twice, needs nothing.
            let _ = world.cloud.hypervisor.with(&id, |machine| machine.mend());
        }
        Ok(())
    }
}

fn pick<T: Copy>(of: &[T], which: u64) -> T {
    let count = u64::try_from(of.len()).unwrap_or(1);
    of[usize::try_from(which % count).unwrap_or_default()]
}
