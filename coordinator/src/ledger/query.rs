//! Questions to the ledger.

use coordinator_core::LeaseId;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};

use super::database::failed;
use super::prices::{self, Cost, Prices};
use super::{Error, WorkKind};

/// What is to be counted. Whatever is not given does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub run: Option<String>,
    pub task: Option<String>,
    /// As an agent names it; case and punctuation do not matter.
    pub model: Option<String>,
    pub worker: Option<String>,
    /// Only from then on, by the workers' clocks, in milliseconds since 1970.
    pub since_ms: Option<u64>,
}

/// What makes a group of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupBy {
    #[default]
    Run,
    Task,
    /// An attempt or a verify: what one lease was for.
    Attempt,
    Turn,
    /// One event, in which an agent may sum up several calls.
    Call,
    Model,
    Worker,
}

impl GroupBy {
    /// The columns that make a group, in the order in which they are shown.
    fn columns(self) -> &'static str {
        match self {
            Self::Run => "lease.run",
            Self::Task => "lease.run, lease.task",
            Self::Attempt => "lease.run, lease.task, lease.lease",
            Self::Turn => "lease.run, lease.task, lease.lease, turn",
            Self::Call => "lease.run, lease.task, lease.lease, number",
            Self::Model => "model_key",
            Self::Worker => "worker",
        }
    }
}

/// Sums of tokens and of what agents reckon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// All input, with what was read from and written to a cache.
    pub input: u64,
    pub cached: u64,
    pub cache_write: u64,
    /// All output, with reasoning.
    pub output: u64,
    pub reasoning: u64,
    /// Calls of models, as far as agents say.
    pub calls: u64,
    /// Further calls, of which nobody knows what they consumed.
    pub unknown_calls: u64,
    /// Events that are summed up.
    pub events: u64,
    /// What agents reckon themselves, in millionths of a dollar.
    pub agents_cost_micros: u64,
    /// Events of which the agent did not say what they cost.
    pub without_agents_cost: u64,
    /// Time of the first and the last event, by the workers' clocks, in milliseconds since 1970.
    pub first_ms: u64,
    pub last_ms: u64,
}

impl Sums {
    pub(super) fn add(&mut self, other: &Self) {
        let first_ms = match self.events {
            0 => other.first_ms,
            _ => self.first_ms.min(other.first_ms),
        };
        *self = Self {
            input: self.input.saturating_add(other.input),
            cached: self.cached.saturating_add(other.cached),
            cache_write: self.cache_write.saturating_add(other.cache_write),
            output: self.output.saturating_add(other.output),
            reasoning: self.reasoning.saturating_add(other.reasoning),
            calls: self.calls.saturating_add(other.calls),
            unknown_calls: self.unknown_calls.saturating_add(other.unknown_calls),
            events: self.events.saturating_add(other.events),
            agents_cost_micros: self
                .agents_cost_micros
                .saturating_add(other.agents_cost_micros),
            without_agents_cost: self
                .without_agents_cost
                .saturating_add(other.without_agents_cost),
            first_ms,
            last_ms: self.last_ms.max(other.last_ms),
        };
    }
}

/// What a group has consumed of each model. Of what it is for, only that is given which is the same
/// for the whole group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub run: Option<String>,
    pub task: Option<String>,
    pub work: Option<WorkKind>,
    pub attempt: Option<u32>,
    pub lease: Option<LeaseId>,
    pub worker: Option<String>,
    pub turn: Option<u32>,
    pub number: Option<u64>,
    /// By models' names.
    pub models: Vec<(String, Sums)>,
}

impl Group {
    /// Sums up all models.
    #[must_use]
    pub fn sums(&self) -> Sums {
        let mut all = Sums::default();
        for (_, sums) in &self.models {
            all.add(sums);
        }
        all
    }

    /// Gives the cost of the models that have a price, and the others by name. Without any price there
    /// is no cost.
    #[must_use]
    pub fn cost(&self, prices: &Prices) -> (Option<Cost>, Vec<&str>) {
        let (mut cost, mut unpriced) = (None, Vec::new());
        for (model, sums) in &self.models {
            match prices.find(model) {
                Some(price) => {
                    cost = Some(cost.unwrap_or(Cost::default()).and(price.cost(sums)));
                }
                None => unpriced.push(model.as_str()),
            }
        }
        (cost, unpriced)
    }
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub groups: Vec<Group>,
    /// All that fits the filter, also what is in no group that is given.
    pub total: Group,
    /// There are more groups than were asked for.
    pub more: bool,
}

/// Models of all groups beyond the first of each: whoever makes names up does not fill memory.
const ROWS_MAX: usize = 10_000;
/// Models of the total that are named; those behind them are one.
const MODELS_MAX: usize = 1_000;
const OTHER_MODELS: &str = "(other models)";

const SUMS: &str = "min(model), sum(input), sum(cached), sum(cache_write), sum(output),
    sum(reasoning), sum(calls), count(*), coalesce(sum(cost_micros), 0), sum(cost_micros IS NULL),
    min(at_ms), max(at_ms), sum(unknown_calls)";
/// How many columns these are.
const SUMS_COLUMNS: usize = 13;
/// One value if it is the same in the whole group, else nothing.
const IDENTITY: [&str; 8] = [
    "lease.run",
    "lease.task",
    "lease.work",
    "lease.attempt",
    "lease.lease",
    "lease.worker",
    "turn",
    "number",
];

pub(super) fn usage(
    connection: &Connection,
    filter: &Filter,
    by: GroupBy,
    limit: usize,
) -> Result<Usage, Error> {
    let doing = failed("read");
    // Both questions are about the same moment.
    connection.execute_batch("BEGIN").map_err(doing)?;
    let (condition, values) = condition(filter);
    let from = format!("FROM usage JOIN lease USING (lease) WHERE {condition}");
    let identity: Vec<String> = IDENTITY
        .iter()
        .map(|column| format!("min({column}), max({column})"))
        .collect();
    let identity = identity.join(", ");
    let columns = by.columns();
    let sql = format!(
        "SELECT {SUMS}, {identity} {from} GROUP BY {columns}, model_key ORDER BY {columns}, model_key"
    );
    let mut usage = Usage::default();
    let mut taken = 0;
    let mut statement = connection.prepare(&sql).map_err(doing)?;
    let mut rows = statement
        .query(params_from_iter(values.clone()))
        .map_err(doing)?;
    while let Some(row) = rows.next().map_err(doing)? {
        let (model, sums, of) = (|| Ok((row.get(0)?, sums(row)?, of(row)?)))().map_err(doing)?;
        let full = usage.groups.len() >= limit;
        let last = usage.groups.last_mut();
        if let Some(last) = last.filter(|last| is_same(last, &of, by)) {
            taken += 1;
            if taken > ROWS_MAX {
                usage.more = true;
                break;
            }
            last.join(&of, model, sums);
        } else if full {
            usage.more = true;
            break;
        } else {
            let models = vec![(model, sums)];
            usage.groups.push(Group { models, ..of });
        }
    }
    let sql = format!("SELECT {SUMS} {from} GROUP BY model_key ORDER BY model_key");
    let mut statement = connection.prepare(&sql).map_err(doing)?;
    let models = statement
        .query_map(params_from_iter(values), |row| {
            Ok((row.get(0)?, sums(row)?))
        })
        .map_err(doing)?;
    let all = &mut usage.total.models;
    for found in models {
        let (model, sums): (String, Sums) = found.map_err(doing)?;
        if let Some((_, others)) = all.get_mut(MODELS_MAX) {
            others.add(&sums);
        } else if all.len() == MODELS_MAX {
            all.push((OTHER_MODELS.to_owned(), sums));
        } else {
            all.push((model, sums));
        }
    }
    Ok(usage)
}

impl Group {
    /// Adds what was consumed of another model.
    fn join(&mut self, of: &Self, model: String, sums: Sums) {
        fn same<T: PartialEq>(mine: &mut Option<T>, other: &Option<T>) {
            if mine != other {
                *mine = None;
            }
        }
        same(&mut self.run, &of.run);
        same(&mut self.task, &of.task);
        same(&mut self.work, &of.work);
        same(&mut self.attempt, &of.attempt);
        same(&mut self.lease, &of.lease);
        same(&mut self.worker, &of.worker);
        same(&mut self.turn, &of.turn);
        same(&mut self.number, &of.number);
        self.models.push((model, sums));
    }
}

/// Tells whether a row of another model is of the same group.
fn is_same(group: &Group, other: &Group, by: GroupBy) -> bool {
    match by {
        GroupBy::Run => group.run == other.run,
        GroupBy::Task => (&group.run, &group.task) == (&other.run, &other.task),
        GroupBy::Attempt => group.lease == other.lease,
        GroupBy::Turn => (group.lease, group.turn) == (other.lease, other.turn),
        GroupBy::Call | GroupBy::Model => false,
        GroupBy::Worker => group.worker == other.worker,
    }
}

fn condition(filter: &Filter) -> (String, Vec<Value>) {
    let mut parts = vec!["1"];
    let mut values = Vec::new();
    let mut add = |part, value: Value| {
        parts.push(part);
        values.push(value);
    };
    if let Some(run) = &filter.run {
        add("lease.run = ?", run.clone().into());
    }
    if let Some(task) = &filter.task {
        add("lease.task = ?", task.clone().into());
    }
    if let Some(model) = &filter.model {
        add("model_key = ?", prices::key(model).into());
    }
    if let Some(worker) = &filter.worker {
        add("lease.worker = ?", worker.clone().into());
    }
    if let Some(since) = filter.since_ms {
        add(
            "at_ms >= ?",
            i64::try_from(since).unwrap_or(i64::MAX).into(),
        );
    }
    (parts.join(" AND "), values)
}

fn sums(row: &Row<'_>) -> rusqlite::Result<Sums> {
    let number = |at| row.get::<_, i64>(at).map(i64::unsigned_abs);
    Ok(Sums {
        input: number(1)?,
        cached: number(2)?,
        cache_write: number(3)?,
        output: number(4)?,
        reasoning: number(5)?,
        calls: number(6)?,
        events: number(7)?,
        agents_cost_micros: number(8)?,
        without_agents_cost: number(9)?,
        first_ms: number(10)?,
        last_ms: number(11)?,
        unknown_calls: number(12)?,
    })
}

/// Reads what a row is for: columns in pairs of the least and the greatest.
fn of(row: &Row<'_>) -> rusqlite::Result<Group> {
    fn one<T: rusqlite::types::FromSql + PartialEq>(
        row: &Row<'_>,
        column: usize,
    ) -> rusqlite::Result<Option<T>> {
        let at = SUMS_COLUMNS + 2 * column;
        let (least, greatest): (T, T) = (row.get(at)?, row.get(at + 1)?);
        Ok((least == greatest).then_some(least))
    }
    Ok(Group {
        run: one(row, 0)?,
        task: one(row, 1)?,
        work: one::<String>(row, 2)?.and_then(|work| WorkKind::parse(&work)),
        attempt: one(row, 3)?,
        lease: one::<i64>(row, 4)?.map(|lease| LeaseId(lease.unsigned_abs())),
        worker: one(row, 5)?,
        turn: one(row, 6)?,
        number: one::<i64>(row, 7)?.map(i64::unsigned_abs),
        models: Vec::new(),
    })
}
