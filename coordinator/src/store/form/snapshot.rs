//! Form of a snapshot's head: everything of the image but the runs, which are kept apart.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator_core::pool::{Allocation, Pool};
use coordinator_core::state::{Image, KeyUse, Lease, Link, Run, Worker};
use coordinator_core::time::Span;
use coordinator_core::worker::Offer;
use coordinator_core::{
    AllocationId, Epoch, Incarnation, LeaseId, QuestionId, RunId, Timestamp, WorkerId,
};
use serde::{Deserialize, Serialize};

use super::Error;
use super::event::WorkV1;
use super::plan::{OfferV1, Text, shared, text};
use super::pool::{AllocationV1, PoolV1};

/// An image without its runs, and the time of the batch that it stands behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    pub at: Timestamp,
    /// The image; its `runs` are empty.
    pub image: Image,
    /// Runs in the image's order.
    pub runs: Vec<RunId>,
}

impl Head {
    /// Takes an image apart.
    pub(in crate::store) fn new(at: Timestamp, image: &Image) -> Self {
        Self {
            at,
            runs: image.runs.iter().map(|run| run.id).collect(),
            image: Image {
                epoch: image.epoch,
                last_seq: image.last_seq,
                next_run: image.next_run,
                next_lease: image.next_lease,
                next_question: image.next_question,
                next_allocation: image.next_allocation,
                pools: image.pools.clone(),
                allocations: image.allocations.clone(),
                workers: image.workers.clone(),
                runs: Vec::new(),
                leases: image.leases.clone(),
                keys: image.keys.clone(),
            },
        }
    }

    /// Puts the image together again.
    #[must_use]
    pub fn with_runs(self, runs: Vec<Run>) -> Image {
        Image { runs, ..self.image }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeadV1<'a> {
    at: u64,
    epoch: u64,
    last_seq: u64,
    next_run: u64,
    next_lease: u64,
    next_question: u64,
    runs: Vec<u64>,
    workers: Vec<WorkerV1<'a>>,
    leases: Vec<LeaseV1<'a>>,
    keys: Vec<KeyV1<'a>>,
    /// 0 in snapshots that are older than pools.
    #[serde(default, skip_serializing_if = "is_first")]
    next_allocation: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pools: Vec<PoolV1<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allocations: Vec<AllocationV1<'a>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_first(next: &u64) -> bool {
    *next <= 1
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyV1<'a> {
    key: Text<'a>,
    run: u64,
    name: Text<'a>,
    digest: Text<'a>,
}

impl<'a> From<&'a Head> for HeadV1<'a> {
    fn from(head: &'a Head) -> Self {
        let image = &head.image;
        Self {
            at: head.at.ms(),
            epoch: image.epoch.0,
            last_seq: image.last_seq,
            next_run: image.next_run.0,
            next_lease: image.next_lease.0,
            next_question: image.next_question.0,
            runs: head.runs.iter().map(|run| run.0).collect(),
            workers: image.workers.iter().map(WorkerV1::from).collect(),
            leases: image.leases.iter().map(LeaseV1::from).collect(),
            keys: image
                .keys
                .iter()
                .map(|(key, used)| KeyV1 {
                    key: text(key),
                    run: used.run.0,
                    name: text(&used.name),
                    digest: text(&used.digest),
                })
                .collect(),
            next_allocation: image.next_allocation.0,
            pools: (image.pools.iter())
                .map(|(name, pool)| PoolV1::new(name, pool))
                .collect(),
            allocations: image.allocations.iter().map(AllocationV1::from).collect(),
        }
    }
}

impl TryFrom<HeadV1<'_>> for Head {
    type Error = Error;

    fn try_from(form: HeadV1<'_>) -> Result<Self, Error> {
        let keys: BTreeMap<_, _> = form
            .keys
            .iter()
            .map(|form| {
                let used = KeyUse {
                    run: RunId(form.run),
                    name: shared(&form.name),
                    digest: shared(&form.digest),
                };
                (shared(&form.key), used)
            })
            .collect();
        let pools = form.pools.into_iter();
        let pools = pools.map(|form| (shared(&form.name), Pool::from(form)));
        let allocations = form.allocations.into_iter().map(Allocation::try_from);
        Ok(Self {
            at: Timestamp::from_ms(form.at),
            runs: form.runs.into_iter().map(RunId).collect(),
            image: Image {
                epoch: Epoch(form.epoch),
                last_seq: form.last_seq,
                next_run: RunId(form.next_run),
                next_lease: LeaseId(form.next_lease),
                next_question: QuestionId(form.next_question),
                workers: form.workers.into_iter().map(Worker::from).collect(),
                runs: Vec::new(),
                leases: form.leases.into_iter().map(Lease::from).collect(),
                keys,
                next_allocation: AllocationId(form.next_allocation.max(1)),
                pools: pools.collect(),
                allocations: allocations.collect::<Result<_, _>>()?,
            },
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkerV1<'a> {
    id: Text<'a>,
    incarnation: u64,
    offer: OfferV1<'a>,
    draining: bool,
    link: LinkV1,
}

impl<'a> From<&'a Worker> for WorkerV1<'a> {
    fn from(worker: &'a Worker) -> Self {
        Self {
            id: text(worker.id.as_str()),
            incarnation: worker.incarnation.0,
            offer: OfferV1::from(&*worker.offer),
            draining: worker.draining,
            link: LinkV1::from(&worker.link),
        }
    }
}

impl From<WorkerV1<'_>> for Worker {
    fn from(form: WorkerV1<'_>) -> Self {
        Self {
            id: WorkerId::new(&form.id),
            incarnation: Incarnation(form.incarnation),
            offer: Arc::new(Offer::from(&form.offer)),
            draining: form.draining,
            link: form.link.into(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum LinkV1 {
    Down {
        since: u64,
    },
    Up {
        session: u64,
        heartbeat: u64,
        heard_at: u64,
        free_slots: u32,
        draining: bool,
    },
}

impl From<&Link> for LinkV1 {
    fn from(link: &Link) -> Self {
        match link {
            Link::Down { since } => Self::Down { since: since.ms() },
            Link::Up {
                session,
                heartbeat,
                heard_at,
                free_slots,
                draining,
            } => Self::Up {
                session: *session,
                heartbeat: *heartbeat,
                heard_at: heard_at.ms(),
                free_slots: *free_slots,
                draining: *draining,
            },
        }
    }
}

impl From<LinkV1> for Link {
    fn from(form: LinkV1) -> Self {
        match form {
            LinkV1::Down { since } => Self::Down {
                since: Timestamp::from_ms(since),
            },
            LinkV1::Up {
                session,
                heartbeat,
                heard_at,
                free_slots,
                draining,
            } => Self::Up {
                session,
                heartbeat,
                heard_at: Timestamp::from_ms(heard_at),
                free_slots,
                draining,
            },
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseV1<'a> {
    id: u64,
    run: u64,
    work: WorkV1,
    worker: Text<'a>,
    incarnation: u64,
    granted_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_at: Option<u64>,
    ttl: u64,
    revoked: bool,
    expires_at: u64,
}

impl<'a> From<&'a Lease> for LeaseV1<'a> {
    fn from(lease: &'a Lease) -> Self {
        Self {
            id: lease.id.0,
            run: lease.run.0,
            work: WorkV1::from(lease.work),
            worker: text(lease.worker.as_str()),
            incarnation: lease.incarnation.0,
            granted_at: lease.granted_at.ms(),
            started_at: lease.started_at.map(Timestamp::ms),
            ttl: lease.ttl.ms(),
            revoked: lease.revoked,
            expires_at: lease.expires_at.ms(),
        }
    }
}

impl From<LeaseV1<'_>> for Lease {
    fn from(form: LeaseV1<'_>) -> Self {
        Self {
            id: LeaseId(form.id),
            run: RunId(form.run),
            work: form.work.into(),
            worker: WorkerId::new(&form.worker),
            incarnation: Incarnation(form.incarnation),
            granted_at: Timestamp::from_ms(form.granted_at),
            started_at: form.started_at.map(Timestamp::from_ms),
            ttl: Span::from_ms(form.ttl),
            revoked: form.revoked,
            expires_at: Timestamp::from_ms(form.expires_at),
        }
    }
}
