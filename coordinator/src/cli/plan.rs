//! `coordinator plan`.

use serde_json::{Value, json};

use super::arguments::{Plan, PlanCommand};
use super::context::Context;
use super::error::{Exit, Result};
use super::{show, submission};
use crate::config::Flags;
use crate::plan::{self, Graph, Problem, json_schema};

pub(crate) fn plan(context: &Context, options: Plan) -> Result<Exit> {
    let agents = || -> Result<_> { Ok(context.config(Flags::default())?.config.agents) };
    match options.command {
        PlanCommand::Check(options) if options.json => {
            let shown = options.plan.display().to_string();
            let bytes = submission::read_bytes(&options.plan)?;
            let checked = plan::parse(&shown, &bytes, &agents()?);
            let (problems, omitted, warnings) = match &checked {
                Ok(plan) => (&[][..], 0, &plan.warnings.list[..]),
                Err(problems) => (&problems.list[..], problems.omitted, &[][..]),
            };
            context.output.json(&json!({
                "file": shown,
                "right": checked.is_ok(),
                "problems": problems.iter().map(as_json).collect::<Vec<_>>(),
                "omitted": omitted,
                "warnings": warnings.iter().map(as_json).collect::<Vec<_>>(),
            }))?;
            if checked.is_err() {
                return Ok(Exit::WrongPlan);
            }
        }
        PlanCommand::Check(options) => {
            let read = submission::read_plan(&options.plan, &agents()?)?;
            submission::say_warnings(context.output, &read);
            let plan = &read.plan;
            let tasks = show::counted(plan.document.tasks.len(), "task");
            let chain = Graph::of(plan).critical_path().len();
            context.output.say(&format!(
                "{} is right: {} with {tasks}, longest chain {chain}",
                options.plan.display(),
                plan.name()
            ));
        }
        PlanCommand::Schema => context.output.bytes(json_schema().as_bytes())?,
        PlanCommand::Graph(options) => {
            let read = submission::read_plan(&options.plan, &agents()?)?;
            let graph = Graph::of(&read.plan);
            let text = if options.dot {
                graph.dot()
            } else if options.mermaid {
                graph.mermaid()
            } else {
                graph.text()
            };
            context.output.bytes(text.as_bytes())?;
        }
    }
    Ok(Exit::Success)
}

fn as_json(problem: &Problem) -> Value {
    json!({
        "line": problem.at.line,
        "column": problem.at.column,
        "message": problem.message,
        "hints": problem.hints,
    })
}
