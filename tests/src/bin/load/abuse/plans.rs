//! Abuse by those who submit: plans that are too many, too large, or too strange.

use std::time::Instant;

use anyhow::{Result, ensure};
use muster_proto::v1;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::Ring;
use crate::site::wide_plan;

/// One plan of a million tasks, again and again, from several at once.
pub(super) async fn a_million_tasks(ring: Ring) -> Result<()> {
    // Each as short as a task can be, so that the plan fits into one message.
    let mut plan = "name: load\ntasks:\n".to_owned();
    for task in 0..1_000_000 {
        plan.push_str(&format!("- {{name: t{task}, run: x}}\n"));
    }
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (ring, plan) = (ring.clone(), plan.clone());
        tasks.spawn(async move {
            while ring.goes_on() {
                let begun = Instant::now();
                let refused = ring.door.submit(plan.clone()).await;
                let took = begun.elapsed().as_secs();
                match refused {
                    Ok(_) => ring.note("taken"),
                    Err(status) => {
                        ring.note_status(&status);
                        ring.note(&format!(
                            "within {} s",
                            if took < 10 { "ten" } else { "many" }
                        ));
                    }
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    ensure!(
        !ring.answers().iter().any(|(answer, _)| answer == "taken"),
        "a plan of a million tasks was taken"
    );
    Ok(())
}

/// Fields that are much larger than anybody needs, chains and fans of dependencies.
pub(super) async fn giant_fields(ring: Ring) -> Result<()> {
    let large = "x".repeat(24 << 20);
    let chain = |count: usize| {
        let mut plan = "name: load\ntasks:\n- {name: t0, run: x, labels: [nobody]}\n".to_owned();
        for task in 1..count {
            plan.push_str(&format!(
                "- {{name: t{task}, run: x, labels: [nobody], depends_on: [t{}]}}\n",
                task - 1
            ));
        }
        plan
    };
    let fan = {
        let all: Vec<String> = (0..20_000).map(|task| format!("t{task}")).collect();
        let tasks = wide_plan(20_000, "labels: [nobody], ");
        format!(
            "{tasks}  - {{ name: last, run: x, depends_on: [{}] }}\n",
            all.join(", ")
        )
    };
    let plans = [
        format!("name: load\ntasks:\n- {{name: t, run: '{large}', labels: [nobody]}}\n"),
        format!("name: load\ntasks:\n- {{name: t, run: x, labels: [{large}]}}\n"),
        format!("name: load\ntasks:\n- {{name: {large}, run: x}}\n"),
        format!("name: load\ntasks: {}", "[".repeat(1 << 20)),
        "name: load\ntasks: &a [*a, *a]\n".to_owned(),
        chain(50_000),
        fan,
    ];
    for plan in plans {
        let begun = Instant::now();
        match ring.door.submit(plan).await {
            Ok(run) => {
                ring.note("taken");
                cancel(&ring, run).await?;
            }
            Err(status) => {
                ensure!(status.code() != Code::Internal, "{status}");
                ring.note_status(&status);
            }
        }
        ensure!(
            begun.elapsed().as_secs() < 30,
            "a plan took {:?}",
            begun.elapsed()
        );
    }
    Ok(())
}

/// Plans of one task as fast as they are taken.
pub(super) async fn many_small(ring: Ring) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let ring = ring.clone();
        tasks.spawn(async move {
            while ring.goes_on() {
                match ring.door.submit(wide_plan(1, "labels: [nobody], ")).await {
                    Ok(run) => {
                        ring.note("taken");
                        if let Err(error) = cancel(&ring, run).await {
                            ring.note(&format!("{error:#}"));
                        }
                    }
                    Err(status) => ring.note_status(&status),
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Five plans of a hundred thousand tasks at once, and many who look at them whole.
pub(super) async fn hundred_thousand(ring: Ring) -> Result<()> {
    let mut submitted = JoinSet::new();
    for _ in 0..5 {
        let ring = ring.clone();
        submitted.spawn(async move {
            let plan = wide_plan(100_000, "labels: [nobody], ");
            ring.door.submit(plan).await
        });
    }
    let mut runs = Vec::new();
    while let Some(run) = submitted.join_next().await {
        match run? {
            Ok(run) => {
                ring.admit(100_000);
                runs.push(run);
            }
            Err(status) => ring.note_status(&status),
        }
    }
    let mut looking = JoinSet::new();
    for index in 0..16 {
        let ring = ring.clone();
        let Some(run) = runs.get(index % runs.len().max(1)).cloned() else {
            continue;
        };
        looking.spawn(async move {
            let mut viewer = ring.door.viewer().await?;
            while ring.goes_on() {
                let request = v1::GetRunRequest {
                    run: run.clone(),
                    ..v1::GetRunRequest::default()
                };
                match viewer.get_run(request).await {
                    Ok(_) => ring.note("a run"),
                    Err(status) => ring.note_status(&status),
                }
                if let Err(status) = viewer.list_runs(v1::ListRunsRequest::default()).await {
                    ring.note_status(&status);
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(looked) = looking.join_next().await {
        looked??;
    }
    for run in runs {
        cancel(&ring, run).await?;
    }
    Ok(())
}

async fn cancel(ring: &Ring, run: String) -> Result<(), Status> {
    let mut operator = ring
        .door
        .operator()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let cancel = v1::CancelRequest {
        run,
        ..v1::CancelRequest::default()
    };
    operator.cancel(cancel).await.map(|_| ())
}
