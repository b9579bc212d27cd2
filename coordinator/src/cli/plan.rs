//! `coordinator plan`.

use super::arguments::{Plan, PlanCommand};
use super::context::Context;
use super::error::{Exit, Result};
use super::{show, submission};
use crate::config::Flags;
use crate::plan::{Graph, json_schema};

pub(crate) fn plan(context: &Context, options: Plan) -> Result<Exit> {
    let agents = || -> Result<_> { Ok(context.config(Flags::default())?.config.agents) };
    match options.command {
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
