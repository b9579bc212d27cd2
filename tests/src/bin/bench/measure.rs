//! The three measurements.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use coordinator::app::{App, Mode, Options};
use coordinator_core::limits;
use coordinator_core::state::LeaseClocks;
use muster_connect::{AuthorizedChannel, Bearer, Endpoint, Token, bootstrap_ca, read_token_file};
use muster_proto::v1::operator_service_client::OperatorServiceClient;
use muster_proto::{MESSAGE_BYTES_MAX, v1};
use muster_tests::figures::{Taken, percentile, spread};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::worker::{Seen, work};
use crate::{Arguments, Part};

/// Begins the names of homes.
pub(crate) const HOME_PREFIX: &str = "muster-bench-";

/// A coordinator in this process, and a client of it.
struct Bed {
    app: App,
    address: String,
    operator: OperatorServiceClient<AuthorizedChannel>,
    workers: JoinSet<Result<()>>,
    seen: Arc<Mutex<Seen>>,
    _home: tempfile::TempDir,
}

/// What a part has found.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// For people.
    pub(crate) lines: Vec<String>,
    /// For comparing: microseconds, or tasks a second.
    pub(crate) figures: Vec<(&'static str, f64)>,
}

impl From<String> for Measured {
    fn from(line: String) -> Self {
        Self {
            lines: vec![line],
            figures: Vec::new(),
        }
    }
}

pub(crate) async fn part(part: Part, arguments: &Arguments) -> Result<Measured> {
    let mut bed = Bed::start().await?;
    let measured = match part {
        Part::Hops => hops(&mut bed, arguments.hops).await?,
        Part::Throughput => throughput(&mut bed, arguments).await?,
        Part::Memory => memory(&mut bed, arguments.waiting).await?,
    };
    bed.workers.abort_all();
    bed.app
        .stop(coordinator::pool::local::Parting::Keep)
        .await?;
    Ok(measured)
}

async fn hops(bed: &mut Bed, tasks: usize) -> Result<Measured> {
    bed.add_workers(1, 1).await?;
    let mut plan = "name: hops\ntasks:\n".to_owned();
    for task in 0..tasks {
        let after = if task == 0 {
            String::new()
        } else {
            format!("t{}", task - 1)
        };
        writeln!(
            plan,
            "  - {{ name: t{task}, depends_on: [{after}], run: 'true' }}"
        )?;
    }
    bed.submit("hops", plan).await?;
    bed.acknowledged(tasks).await?;
    let mut times = std::mem::take(&mut bed.seen.lock().await.hops);
    let line = format!(
        "hop (a task's success reported -> journaled -> its dependent granted), {tasks} in a chain: {}",
        spread(&mut times)
    );
    let microseconds = |percent| percentile(&times, percent).as_secs_f64() * 1e6;
    Ok(Measured {
        lines: vec![line],
        figures: vec![("hop-p50", microseconds(50)), ("hop-p99", microseconds(99))],
    })
}

async fn throughput(bed: &mut Bed, arguments: &Arguments) -> Result<Measured> {
    let Arguments {
        tasks,
        workers,
        slots,
        ..
    } = *arguments;
    bed.add_workers(workers, slots).await?;
    let mut plan = "name: throughput\ntasks:\n".to_owned();
    for task in 0..tasks {
        writeln!(plan, "  - {{ name: t{task}, run: 'true' }}")?;
    }
    let begun = Instant::now();
    bed.submit("throughput", plan).await?;
    let submitted = begun.elapsed();
    bed.acknowledged(tasks).await?;
    let seen = bed.seen.lock().await;
    let first = seen.first_grant.context("no grant")?;
    let took = seen
        .last_ack
        .context("no acknowledgement")?
        .duration_since(first)
        .as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = tasks as f64 / took;
    let lines = vec![
        format!("submission of {tasks} tasks: {submitted:.2?}"),
        format!(
            "throughput, {workers} workers of {slots} slots: {rate:.0} tasks a second granted, done and \
             journaled ({tasks} in {took:.2} s)"
        ),
    ];
    Ok(Measured {
        lines,
        figures: vec![("tasks-a-second", rate)],
    })
}

async fn memory(bed: &mut Bed, tasks: usize) -> Result<Measured> {
    let mut plan = "name: memory\ntasks:\n".to_owned();
    for task in 0..tasks {
        // Nobody carries the label; every tenth task waits for others besides.
        let (from, label) = (task.saturating_sub(3), "labels: [nobody]");
        let after = match task % 10 {
            9 => (from..task)
                .map(|of| format!("t{of}"))
                .collect::<Vec<_>>()
                .join(", "),
            _ => String::new(),
        };
        writeln!(
            plan,
            "  - {{ name: t{task}, depends_on: [{after}], {label}, run: 'echo {task}' }}"
        )?;
    }
    let text = plan.len();
    let before = Taken::by("self")?.resident_kib;
    let begun = Instant::now();
    bed.submit("memory", plan).await?;
    let took = begun.elapsed();
    let taken = Taken::by("self")?;
    let (after, peak) = (taken.resident_kib, taken.resident_peak_kib);
    let each = (after.saturating_sub(before)) * 1024 / u64::try_from(tasks)?.max(1);
    Ok(Measured::from(format!(
        "memory of {tasks} waiting tasks (a plan of {text} bytes, submitted in {took:.2?}): {} MiB more \
         resident, {each} bytes a task; peak {} MiB",
        after.saturating_sub(before) / 1024,
        peak / 1024
    )))
}

impl Bed {
    async fn start() -> Result<Self> {
        let home = tempfile::Builder::new().prefix(HOME_PREFIX).tempdir()?;
        let app = App::start(Options {
            home: home.path().to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            mode: Mode::Serve,
            local_slots: 0,
            clocks: LeaseClocks::default(),
            heartbeat_interval: limits::HEARTBEAT_INTERVAL,
            agents: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            pools: BTreeMap::new(),
            prices: coordinator::ledger::prices::Prices::default(),
            executable: std::env::current_exe()?,
        })
        .await?;
        let address = app.address().to_string();
        let token = read_token_file(&home.path().join("admin.token"))?;
        let operator = OperatorServiceClient::new(connect(&address, &token).await?)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let workers = JoinSet::new();
        Ok(Self {
            app,
            address,
            operator,
            workers,
            seen: Arc::default(),
            _home: home,
        })
    }

    async fn add_workers(&mut self, count: usize, slots: u32) -> Result<()> {
        let request = v1::CreateTokenRequest {
            role: "worker".to_owned(),
            name: "bench".to_owned(),
            ..v1::CreateTokenRequest::default()
        };
        let made = self.operator.create_token(request).await?.into_inner();
        let token: Token = Token::parse(&made.token)?;
        for index in 0..count {
            let (address, seen) = (self.address.clone(), Arc::clone(&self.seen));
            self.workers.spawn(work(
                address,
                token.clone(),
                format!("bench-{index}"),
                slots,
                seen,
            ));
        }
        loop {
            let info = self
                .operator
                .get_info(v1::GetInfoRequest::default())
                .await?
                .into_inner();
            if usize::try_from(info.workers_connected)? == count {
                return Ok(());
            }
            self.check_workers()?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn submit(&mut self, name: &str, plan: String) -> Result<()> {
        let key = format!("bench-{name}");
        let prepare = v1::PrepareRunRequest {
            plan: name.to_owned(),
            idempotency_key: key.clone(),
            ..v1::PrepareRunRequest::default()
        };
        let prepared = self.operator.prepare_run(prepare).await?.into_inner();
        let submit = v1::SubmitRunRequest {
            run: prepared.run,
            idempotency_key: key,
            plan: plan.into_bytes(),
            plan_name: format!("{name}.yaml"),
            ..v1::SubmitRunRequest::default()
        };
        let submitted = self.operator.submit_run(submit).await?.into_inner();
        ensure!(submitted.fresh, "the run was there before");
        Ok(())
    }

    /// Waits until all reports are acknowledged; coarse, for the workers note the times themselves.
    async fn acknowledged(&mut self, tasks: usize) -> Result<()> {
        while self.seen.lock().await.acknowledged < tasks {
            self.check_workers()?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    fn check_workers(&mut self) -> Result<()> {
        match self.workers.try_join_next() {
            Some(ended) => ended?.context("a simulated worker failed"),
            None => Ok(()),
        }
    }
}

async fn connect(address: &str, token: &Token) -> Result<AuthorizedChannel> {
    let ca = bootstrap_ca(address, token.ca, Duration::from_secs(10)).await?;
    Ok(Endpoint::new(address, ca)?
        .authorized(Bearer::token(token)?)
        .await?)
}
