//! What needs a person's attention: agents that ask, runs that failed, runs that wait, workers in trouble.

use jiff::{SignedDuration, Timestamp};
use muster_proto::v1;
use serde_json::{Value, json};

use super::client::Client;
use super::error::Result;
use super::{find, show};
use crate::output::{Paint, harmless, one_line, whole_line};

/// Runs of each kind that are looked at; each is asked for whole.
const RUNS_MAX: usize = 5;
/// Failed runs that are older were seen, or do not matter any more.
const FAILED_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Questions of agents that are named.
const QUESTIONS_MAX: usize = 5;
/// Workers that are named.
const WORKERS_MAX: usize = 10;
/// Tasks of a worker that are named.
const WORKS_ON_MAX: usize = 3;

/// Something that a person should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Concern {
    pub(super) kind: Kind,
    /// The run or worker.
    pub(super) name: String,
    /// The task that it is about.
    pub(super) task: Option<String>,
    /// The class of a failure.
    pub(super) class: Option<String>,
    /// What is wrong, in a line.
    pub(super) text: String,
    /// What would help, if anything is known.
    pub(super) remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Asks,
    Failed,
    Waits,
    Pool,
    Worker,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Asks => "agent_asks",
            Self::Failed => "run_failed",
            Self::Waits => "run_waits",
            Self::Pool => "pool_paused",
            Self::Worker => "worker",
        }
    }
}

/// Looks through the newest runs, and through the workers if there is a coordinator that has any.
///
/// # Errors
/// The coordinator does not answer.
pub(super) async fn look(
    client: &Client,
    runs: &[v1::RunSummary],
    with_workers: bool,
    program: &str,
    now: Timestamp,
) -> Result<Vec<Concern>> {
    let mut concerns = asked(client, "", program, now).await?;
    let failed = runs.iter().filter(|run| has_failed_lately(run, now));
    for run in failed.take(RUNS_MAX) {
        let run = find::get(client, &run.run).await?;
        concerns.push(failure(&run, program));
    }
    for run in runs.iter().filter(|run| may_wait(run)).take(RUNS_MAX) {
        let run = find::get(client, &run.run).await?;
        let Some(task) = waiting(&run) else { continue };
        let request = v1::ExplainTaskRequest {
            run: run.run.clone(),
            task: task.name.clone(),
        };
        // The task may have ended meanwhile.
        let Ok(said) = client.operator().explain_task(request).await else {
            continue;
        };
        concerns.push(waits(&run, task, &said.into_inner()));
    }
    if with_workers {
        // A coordinator of an earlier version knows no pools.
        if let Ok(planned) = client.operator().plan_pools(v1::PlanPoolsRequest {}).await {
            let pools = planned.into_inner().pools;
            let paused = pools.iter().filter(|pool| pool.hindrance == "paused");
            concerns.extend(paused.map(|pool| keeps_waiting(pool, program)));
        }
        let request = v1::ListWorkersRequest {};
        let listed = client.operator().list_workers(request).await?.into_inner();
        // One that has left with its allocation is no concern.
        let left = |of: &&v1::Worker| of.state == "away" && !of.allocation.is_empty();
        let troubled = listed.workers.iter().filter(|of| is_troubled(of));
        let troubled = troubled.filter(|of| !left(of));
        concerns.extend(troubled.take(WORKERS_MAX).map(|of| worker(of, now)));
    }
    Ok(concerns)
}

/// Looks for what agents ask, of a run or, without a name, of all.
///
/// # Errors
/// The coordinator does not answer.
pub(super) async fn asked(
    client: &Client,
    run: &str,
    program: &str,
    now: Timestamp,
) -> Result<Vec<Concern>> {
    let request = v1::ListQuestionsRequest {
        run: run.to_owned(),
    };
    let listed = client
        .operator()
        .list_questions(request)
        .await?
        .into_inner();
    let shown = listed.questions.iter().take(QUESTIONS_MAX);
    let mut concerns: Vec<Concern> = shown.map(|open| asks(open, program, now)).collect();
    let more = listed.questions.len() - concerns.len() + listed.more as usize;
    if let Some(last) = concerns.last_mut().filter(|_| more > 0) {
        let more = show::counted(more, "more question");
        last.remedy = Some(format!("{program} approvals, which shows {more}"));
    }
    Ok(concerns)
}

fn asks(open: &v1::OpenQuestion, program: &str, now: Timestamp) -> Concern {
    let title = open.question.as_ref().map(|asked| whole_line(&asked.title));
    let waits = show::time(open.asked_at.as_ref())
        .map(|at| format!(", for {}", show::duration(show::between(at, now))));
    let id = one_line(&open.id);
    Concern {
        kind: Kind::Asks,
        name: open.run.clone(),
        task: Some(open.task.clone()),
        class: None,
        text: format!(
            "{id}{}: {}",
            waits.unwrap_or_default(),
            title.unwrap_or_default()
        ),
        remedy: Some(format!("{program} approve {id}, or deny {id}")),
    }
}

fn has_failed_lately(run: &v1::RunSummary, now: Timestamp) -> bool {
    let ended = show::time(run.ended_at.as_ref());
    run.state == "failed" && ended.is_some_and(|at| now.duration_since(at) < FAILED_MAX)
}

/// Tells whether nothing of an unfinished run is at work.
fn may_wait(run: &v1::RunSummary) -> bool {
    let count = |state: &str| run.tasks.get(state).copied().unwrap_or_default();
    let works = ["leased", "verifying", "basing"].map(count);
    run.state == "active" && works.iter().sum::<u32>() == 0
}

/// Gives the task that a run waits for: the first that is ready.
fn waiting(run: &v1::Run) -> Option<&v1::Task> {
    // What is parked asks, and was named before.
    if run.tasks.iter().any(|task| task.state == "parked") {
        return None;
    }
    run.tasks.iter().find(|task| task.state == "ready")
}

fn failure(run: &v1::Run, program: &str) -> Concern {
    let task = run.tasks.iter().find(|task| task.state == "failed");
    let others = run
        .tasks
        .iter()
        .filter(|task| task.state == "failed")
        .count();
    let failure = task
        .and_then(|task| task.failure.as_ref())
        .or(run.failure.as_ref());
    let mut text = failure.map_or_else(String::new, |failure| one_line(&failure.message));
    if others > 1 {
        text = format!("{text} (and {} more)", show::counted(others - 1, "task"));
    }
    let remedy = match task {
        Some(task) => {
            let is_verify = failure.is_some_and(|failure| failure.class.starts_with("verify"));
            let verify = if is_verify { " --verify" } else { "" };
            format!("{program} logs {} {}{verify}", run.run, task.name)
        }
        None => format!("{program} status {}", run.run),
    };
    Concern {
        kind: Kind::Failed,
        name: run.run.clone(),
        task: task.map(|task| task.name.clone()),
        class: failure.map(|failure| failure.class.clone()),
        text,
        remedy: Some(remedy),
    }
}

/// Tells of a paused pool that work waits for.
fn keeps_waiting(pool: &v1::PlannedPool, program: &str) -> Concern {
    Concern {
        kind: Kind::Pool,
        name: pool.pool.clone(),
        task: None,
        class: None,
        text: format!("work waits for it: {}", one_line(&pool.hindrance_text)),
        remedy: Some(format!("{program} pool resume {}", pool.pool)),
    }
}

fn waits(run: &v1::Run, task: &v1::Task, said: &v1::ExplainTaskResponse) -> Concern {
    let first = |lines: &[String]| lines.first().map(|line| one_line(line));
    Concern {
        kind: Kind::Waits,
        name: run.run.clone(),
        task: Some(task.name.clone()),
        class: None,
        text: first(&said.reasons).unwrap_or_default(),
        remedy: first(&said.remedies),
    }
}

/// Tells whether a worker is not there, or takes nothing and says why.
fn is_troubled(worker: &v1::Worker) -> bool {
    worker.state != "connected" || !worker.trouble.is_empty()
}

fn worker(worker: &v1::Worker, now: Timestamp) -> Concern {
    let heard = show::time(worker.heard_at.as_ref())
        .map(|at| format!(", heard {} ago", show::duration(show::between(at, now))));
    let mut text = format!("{}{}", one_line(&worker.state), heard.unwrap_or_default());
    if worker.state == "connected" {
        text = format!("takes nothing new: {}", one_line(&worker.trouble));
    }
    let tasks: Vec<String> = worker
        .tasks
        .iter()
        .take(WORKS_ON_MAX)
        .map(|task| one_line(task))
        .collect();
    if !tasks.is_empty() {
        text = format!("{text}, holds {}", tasks.join(", "));
    }
    if worker.tasks.len() > WORKS_ON_MAX {
        text = format!("{text} and {} more", worker.tasks.len() - WORKS_ON_MAX);
    }
    Concern {
        kind: Kind::Worker,
        name: worker.worker.clone(),
        task: None,
        class: None,
        text,
        remedy: None,
    }
}

/// Writes what needs attention, and an empty line behind it; nothing if nothing does.
pub(super) fn text(concerns: &[Concern], paint: Paint) -> String {
    if concerns.is_empty() {
        return String::new();
    }
    let mut text = format!("{}\n", paint.bold("needs attention:"));
    for concern in concerns {
        let (sign, word) = match concern.kind {
            Kind::Asks => (paint.yellow("?"), paint.yellow("asks you")),
            Kind::Failed => (paint.red("✗"), paint.red("failed")),
            Kind::Waits => (paint.yellow("!"), paint.yellow("waits")),
            Kind::Pool => (paint.yellow("!"), "pool".to_owned()),
            Kind::Worker => (paint.yellow("!"), "worker".to_owned()),
        };
        let name = paint.bold(&harmless(&concern.name));
        let mut about = String::new();
        for part in [&concern.task, &concern.class].into_iter().flatten() {
            about.push_str(&format!("{}: ", one_line(part)));
        }
        let line = match concern.kind {
            Kind::Pool | Kind::Worker => format!("  {sign} {word} {name}: {}", concern.text),
            Kind::Asks | Kind::Failed | Kind::Waits => {
                format!("  {sign} {name} {word}: {about}{}", concern.text)
            }
        };
        text.push_str(&line);
        text.push('\n');
        if let Some(remedy) = &concern.remedy {
            text.push_str(&format!("      {}\n", paint.dim(remedy)));
        }
    }
    text
}

/// Describes a concern for programs.
pub(super) fn json(concern: &Concern) -> Value {
    json!({
        "kind": concern.kind.as_str(),
        "name": concern.name,
        "task": concern.task,
        "class": concern.class,
        "text": concern.text,
        "remedy": concern.remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned;

    fn summary(state: &str, tasks: &[(&str, u32)]) -> v1::RunSummary {
        v1::RunSummary {
            state: state.to_owned(),
            ended_at: canned::failed().ended_at,
            tasks: tasks
                .iter()
                .map(|(state, count)| ((*state).to_owned(), *count))
                .collect(),
            ..v1::RunSummary::default()
        }
    }

    #[test]
    fn failures_waits_and_workers_come_first_and_say_what_to_do() {
        let said = v1::ExplainTaskResponse {
            state: "ready".to_owned(),
            reasons: vec!["no connected worker has the label gpu".to_owned()],
            remedies: vec!["start a worker with the label gpu".to_owned()],
            ..v1::ExplainTaskResponse::default()
        };
        let mut waiting_run = canned::live();
        waiting_run.run = "train-xyz".to_owned();
        let task = waiting(&waiting_run).unwrap().clone();
        assert_eq!(task.name, "lint");
        let lost = v1::Worker {
            worker: "gpu-7".to_owned(),
            state: "lost".to_owned(),
            tasks: ["a/1", "a/2", "a/3", "a/4"].map(str::to_owned).to_vec(),
            heard_at: canned::failed().submitted_at,
            ..v1::Worker::default()
        };
        let concerns = [
            asks(&canned::question(), "coordinator", canned::at(90)),
            failure(&canned::failed(), "coordinator"),
            failure(&canned::conflicting(), "coordinator"),
            waits(&waiting_run, &task, &said),
            worker(&lost, canned::at(90)),
        ];
        insta::assert_snapshot!(text(&concerns, Paint::new(false)));
        assert_eq!(json(&concerns[0])["kind"], "agent_asks");
        assert_eq!(json(&concerns[1])["class"], "verify_failed");
        assert_eq!(text(&[], Paint::new(false)), "");
    }

    #[test]
    fn a_worker_that_takes_nothing_is_named_with_its_reason() {
        let mut full = v1::Worker {
            worker: "small-1".to_owned(),
            state: "connected".to_owned(),
            ..v1::Worker::default()
        };
        assert!(!is_troubled(&full));
        full.trouble = "its disk cannot be worked on: only 7 bytes are free".to_owned();
        assert!(is_troubled(&full));
        assert_eq!(
            worker(&full, canned::at(90)).text,
            "takes nothing new: its disk cannot be worked on: only 7 bytes are free"
        );
    }

    #[test]
    fn only_what_failed_lately_or_stands_still_is_looked_at() {
        let failed = summary("failed", &[]);
        assert!(has_failed_lately(&failed, canned::at(3600)));
        assert!(!has_failed_lately(&failed, canned::at(90_000)));
        assert!(!has_failed_lately(
            &summary("cancelled", &[]),
            canned::at(90)
        ));
        assert!(may_wait(&summary(
            "active",
            &[("ready", 1), ("succeeded", 3)]
        )));
        assert!(!may_wait(&summary(
            "active",
            &[("ready", 1), ("leased", 1)]
        )));
        assert!(!may_wait(&summary("succeeded", &[("succeeded", 1)])));
    }
}
