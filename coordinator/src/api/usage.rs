//! What was used of models, and what that costs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_proto::v1;
use tokio::sync::Mutex;
use tonic::Status;
use tracing::warn;

use super::limits::{USAGE_FRESH, USAGE_GROUPS, USAGE_RUNS};
use super::status;
use crate::ledger::prices::{BUILT_IN_DATE, Prices};
use crate::ledger::{Filter, Group, GroupBy, Ledger, Sums};

/// How long a question waits for what was just used.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for who asks for a run that has ended, while others wait.
const PATIENCE_WITH_RUN: Duration = Duration::from_millis(500);

/// Answers questions about usage; cheap to clone.
#[derive(Clone)]
pub struct Meter {
    ledger: Ledger,
    prices: Arc<Prices>,
    /// What runs have used, as it was lately: whoever looks at a run asks for it again and again.
    lately: Arc<Mutex<BTreeMap<String, Lately>>>,
}

struct Lately {
    asked: Instant,
    had_ended: bool,
    used: Option<v1::UsageGroup>,
}

impl Meter {
    /// Makes one over a ledger.
    #[must_use]
    pub fn new(ledger: Ledger, prices: Prices) -> Self {
        Self {
            ledger,
            prices: Arc::new(prices),
            lately: Arc::default(),
        }
    }

    /// Answers a question.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub(super) async fn usage(
        &self,
        request: v1::GetUsageRequest,
    ) -> Result<v1::GetUsageResponse, Status> {
        let by = match request.group_by() {
            v1::UsageGroupBy::Unspecified | v1::UsageGroupBy::Run => GroupBy::Run,
            v1::UsageGroupBy::Task => GroupBy::Task,
            v1::UsageGroupBy::Attempt => GroupBy::Attempt,
            v1::UsageGroupBy::Turn => GroupBy::Turn,
            v1::UsageGroupBy::Call => GroupBy::Call,
            v1::UsageGroupBy::Model => GroupBy::Model,
            v1::UsageGroupBy::Worker => GroupBy::Worker,
        };
        let limit = match usize::try_from(request.limit).unwrap_or(USAGE_GROUPS) {
            0 => USAGE_GROUPS,
            limit => limit.min(USAGE_GROUPS),
        };
        let since_ms = request.since.map(|since| {
            let seconds = u64::try_from(since.seconds).unwrap_or_default();
            let nanos = u64::try_from(since.nanos).unwrap_or_default();
            seconds
                .saturating_mul(1_000)
                .saturating_add(nanos / 1_000_000)
        });
        let filter = Filter {
            run: request.run,
            task: request.task,
            model: request.model,
            worker: request.worker,
            since_ms,
        };
        let behind = self.ledger.settle(PATIENCE).await.unwrap_or_default();
        let usage = self
            .ledger
            .usage(filter, by, limit)
            .await
            .map_err(|error| status::internal(&error))?;
        Ok(v1::GetUsageResponse {
            groups: usage.groups.iter().map(|group| self.group(group)).collect(),
            total: Some(self.group(&usage.total)),
            more: usage.more,
            prices_of: BUILT_IN_DATE.to_owned(),
            behind,
        })
    }

    /// Tells what a run has used, as of a moment ago; nothing if it has used nothing, or nobody knows.
    pub(super) async fn of_run(&self, run: &str, has_ended: bool) -> Option<v1::UsageGroup> {
        // One asks, the others have its answer.
        let mut lately = self.lately.lock().await;
        if let Some(known) = lately.get(run)
            && known.asked.elapsed() < USAGE_FRESH
            && known.had_ended == has_ended
        {
            return known.used.clone();
        }
        if has_ended && !self.ledger.is_behind() {
            // It is looked at for the last time: what was used last belongs to it.
            self.ledger.settle(PATIENCE_WITH_RUN).await;
        }
        let filter = Filter {
            run: Some(run.to_owned()),
            ..Filter::default()
        };
        let used = match self.ledger.usage(filter, GroupBy::Run, 1).await {
            Ok(usage) => usage.groups.first().map(|group| self.group(group)),
            Err(error) => {
                warn!(%run, error = crate::causes::chain(&error), "cannot tell what a run has used");
                None
            }
        };
        if lately.len() >= USAGE_RUNS {
            lately.clear();
        }
        let known = Lately {
            asked: Instant::now(),
            had_ended: has_ended,
            used: used.clone(),
        };
        lately.insert(run.to_owned(), known);
        used
    }

    fn group(&self, group: &Group) -> v1::UsageGroup {
        let (cost, unpriced) = group.cost(&self.prices);
        let models = group.models.iter().map(|(model, used)| v1::UsageOfModel {
            model: model.clone(),
            sums: Some(sums(used)),
            cost_nanos: self
                .prices
                .find(model)
                .map(|price| price.cost(used).nanos()),
        });
        v1::UsageGroup {
            run: group.run.clone(),
            task: group.task.clone(),
            work: group.work.map(|work| work.as_str().to_owned()),
            attempt: group.attempt,
            lease: group.lease.map(|lease| lease.0),
            worker: group.worker.clone(),
            turn: group.turn,
            event: group.number,
            sums: Some(sums(&group.sums())),
            models: models.collect(),
            cost_nanos: cost.map(|cost| cost.nanos()),
            unpriced_models: unpriced.into_iter().map(str::to_owned).collect(),
        }
    }
}

fn sums(sums: &Sums) -> v1::UsageSums {
    let time = |at_ms: u64| {
        let seconds = i64::try_from(at_ms / 1_000).unwrap_or(i64::MAX);
        let nanos = i32::try_from(at_ms % 1_000 * 1_000_000).unwrap_or_default();
        (sums.events > 0).then_some(prost_types::Timestamp { seconds, nanos })
    };
    v1::UsageSums {
        input_tokens: sums.input,
        cached_input_tokens: sums.cached,
        cache_write_tokens: sums.cache_write,
        output_tokens: sums.output,
        reasoning_tokens: sums.reasoning,
        calls: sums.calls,
        unknown_calls: sums.unknown_calls,
        events: sums.events,
        agents_cost_micros: sums.agents_cost_micros,
        events_without_agents_cost: sums.without_agents_cost,
        first_at: time(sums.first_ms),
        last_at: time(sums.last_ms),
    }
}
