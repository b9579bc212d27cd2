//! `coordinator plan`.

use muster_proto::v1;
use serde_json::{Value, json};

use super::arguments::{GraphFormat, Plan, PlanCommand, PlanGraph};
use super::context::Context;
use super::error::{CliError, Exit, Kind, Result};
use super::{find, show, submission};
use crate::config::Flags;
use crate::plan::{self, Graph, Node, NodeState, Problem, WIDTH_DEFAULT, json_schema, reference};

pub(crate) async fn plan(context: &Context, options: Plan) -> Result<Exit> {
    let agents = || -> Result<_> { Ok(context.config(Flags::default())?.config.agents) };
    match options.command {
        PlanCommand::Check(options) if options.json => {
            let shown = options.plan.display().to_string();
            let bytes = submission::read_bytes(&options.plan)?;
            let folder = submission::folder_of(&options.plan);
            let checked = plan::parse_with_personas(&shown, &bytes, &agents()?, folder);
            let (problems, omitted, warnings) = match &checked {
                Ok((plan, _)) => (&[][..], 0, &plan.warnings.list[..]),
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
        PlanCommand::Reference => {
            let text = reference().map_err(|error| {
                CliError::internal(error).while_doing("read the schema of plans")
            })?;
            context.output.bytes(text.as_bytes())?;
        }
        PlanCommand::Graph(options) => return Box::pin(graph(context, &options)).await,
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

async fn graph(context: &Context, options: &PlanGraph) -> Result<Exit> {
    if let Some(path) = &options.plan {
        let agents = context.config(Flags::default())?.config.agents;
        let read = submission::read_plan(path, &agents)?;
        draw(context, &Graph::of(&read.plan), options.format)?;
        return Ok(Exit::Success);
    }
    let session = context.session().await?;
    let found = async {
        let name = find::run(&session.client, options.run.as_deref()).await?;
        find::get(&session.client, &name).await
    };
    let found = found.await;
    session.close().await;
    let run = found?;
    draw(context, &graph_of(&run), options.format)?;
    Ok(Exit::Success)
}

/// Gives the graph of a run, each task with its state.
fn graph_of(run: &v1::Run) -> Graph<'_> {
    let nodes = run
        .tasks
        .iter()
        .map(|task| Node {
            name: &task.name,
            depends_on: task.depends_on.iter().map(String::as_str).collect(),
            state: Some(NodeState {
                word: show::state_word(task),
                sign: show::state_sign(show::state_word(task)),
            }),
        })
        .collect();
    Graph::new(&run.run, nodes)
}

fn draw(context: &Context, graph: &Graph<'_>, format: GraphFormat) -> Result<()> {
    let text = match format {
        GraphFormat::Text => {
            let width = context.output.data_width().unwrap_or(WIDTH_DEFAULT);
            graph.text(width.max(WIDTH_DEFAULT))
        }
        GraphFormat::Dot => graph.dot(),
        GraphFormat::Mermaid => graph.mermaid(),
        GraphFormat::Svg => graph.svg().map_err(|error| {
            CliError::new(Kind::User, error)
                .while_doing("draw the graph")
                .hint("`--format dot` has no limit; Graphviz' `sfdp` lays out large graphs")
        })?,
    };
    Ok(context.output.bytes(text.as_bytes())?)
}
