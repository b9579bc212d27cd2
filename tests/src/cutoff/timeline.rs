//! What happens when, in all cases at once.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{Coordinator, JUMP_SECONDS, Length, Loss, Subject};
use crate::clocks::Clocks;
use crate::cluster::{Cluster, Options};
use crate::wait::{SOON, until_true};

/// Lets everything happen; gives the moment of the cut.
pub(super) fn pass(
    cluster: &mut Cluster,
    terms: Options,
    coordinator: Coordinator,
    of_coordinator: Option<&Clocks>,
    subjects: &mut [Subject],
) -> Result<SystemTime> {
    let (ttl, grace) = (terms.lease_ttl, terms.lease_grace);
    let (start, begun) = (Instant::now(), SystemTime::now());
    let at = |offset: Duration| {
        std::thread::sleep((start + offset).saturating_duration_since(Instant::now()));
    };
    let lid = match coordinator {
        Coordinator::Lid(length) => Some(length),
        Coordinator::Undisturbed | Coordinator::WallJumps => None,
    };
    let all_longer = lid == Some(Length::Longer);
    if lid.is_some() {
        cluster.coordinator()?.signal(Signal::STOP)?;
    }
    for subject in &mut *subjects {
        cut(subject)?;
    }

    at(ttl / 4);
    walls(coordinator, of_coordinator, subjects, JUMP_SECONDS)?;
    at(ttl * 3 / 8);
    for subject in &mut *subjects {
        if subject.case.length == Length::Shorter {
            heal(subject, start)?;
        }
    }
    if lid == Some(Length::Shorter) {
        open_lid(cluster, of_coordinator, start)?;
    }
    at(ttl * 5 / 8);
    walls(coordinator, of_coordinator, subjects, -JUMP_SECONDS)?;
    reconnect(coordinator, subjects, 2)?;
    walls(coordinator, of_coordinator, subjects, JUMP_SECONDS)?;
    reconnect(coordinator, subjects, 3)?;

    at(ttl + grace + Duration::from_millis(200));
    if all_longer {
        open_lid(cluster, of_coordinator, start)?;
    }
    for subject in &mut *subjects {
        if all_longer || subject.case.length == Length::Longer {
            until_true("the task was given away", SOON, || {
                Ok(subject.agent.starts()?.contains(&2))
            })?;
            heal(subject, start)?;
            until_true("the first attempt has ended", SOON, || {
                Ok(subject.agent.ended_at().is_some())
            })?;
        }
    }
    // Later than the lease would have lived without a renewal after the cut.
    at(ttl + grace + ttl / 4);
    for subject in &mut *subjects {
        if !all_longer && subject.case.length == Length::Shorter {
            let name = subject.case.name();
            ensure!(
                subject.agent.ended_at().is_none(),
                "{name}: the agent has ended"
            );
            let looked = SystemTime::now();
            until_true("the agent still works", SOON, || {
                Ok(subject.agent.last_sign()? > looked)
            })?;
            subject.agent.finish()?;
        }
    }
    Ok(begun)
}

fn cut(subject: &mut Subject) -> Result<()> {
    let loss = subject.case.loss;
    subject.wire.cut(loss)?;
    if loss == Loss::Lid {
        subject.agent.sleep(subject.worker.id()?, &subject.folder)?;
    }
    Ok(())
}

fn heal(subject: &mut Subject, since: Instant) -> Result<()> {
    if subject.case.loss == Loss::Lid {
        if let Some(clocks) = &subject.clocks {
            clocks.slept(since.elapsed())?;
        }
        subject.agent.wake();
    }
    subject.wire.heal(subject.case.loss)
}

fn open_lid(cluster: &mut Cluster, clocks: Option<&Clocks>, since: Instant) -> Result<()> {
    if let Some(clocks) = clocks {
        clocks.slept(since.elapsed())?;
    }
    cluster.coordinator()?.signal(Signal::CONT)
}

fn walls(
    coordinator: Coordinator,
    of_coordinator: Option<&Clocks>,
    subjects: &[Subject],
    seconds: i64,
) -> Result<()> {
    if coordinator == Coordinator::WallJumps
        && let Some(clocks) = of_coordinator
    {
        clocks.wall(seconds)?;
    }
    for subject in subjects {
        if subject.case.wall_jumps
            && let Some(clocks) = &subject.clocks
        {
            clocks.wall(seconds)?;
        }
    }
    Ok(())
}

/// Breaks the connections of workers whose clock or whose coordinator's clock is wrong now, and
/// waits until they have a session again: certificates and tokens must still be good.
fn reconnect(coordinator: Coordinator, subjects: &[Subject], sessions: usize) -> Result<()> {
    let wrong = subjects
        .iter()
        .filter(|subject| subject.reconnects(coordinator));
    let wrong: Vec<&Subject> = wrong.collect();
    for subject in &wrong {
        subject.wire.reset()?;
    }
    for subject in &wrong {
        until_true(
            "it has a session again while a clock is wrong",
            SOON,
            || Ok(subject.sessions() >= sessions),
        )?;
    }
    Ok(())
}
