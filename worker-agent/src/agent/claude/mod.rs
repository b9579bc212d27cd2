//! Claude Code, driven over stream-json.
//!
//! Settings of the repository are not read: its hooks would run on the worker unasked. The program asks
//! the worker for every permission; what the worker answers is the task's policy.

mod ending;
#[cfg(test)]
mod hostile;
mod machine;
mod question;
#[cfg(test)]
mod starting;
#[cfg(test)]
mod tests;
mod tools;
mod usage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use muster_proto::v1::{AgentOffer, Failure};
use serde_json::Value;

use super::conversation::Conversation;
use super::{Agent, Invocation, Own, Place, may_run, profile, program, version};
use crate::document::{ApprovalPolicy, AskMode, SandboxMode, TaskDocument};
use crate::failure::{class, failure};
use crate::supervisor::End;

const KIND: &str = "claude";
/// Names the program.
const PROGRAM_VARIABLE: &str = "CLAUDE_BIN";
/// How the program reaches a provider and who pays; of the worker's environment all of it is taken, or
/// nothing if the task says anything of it: a key goes nowhere but where its owner meant it to go.
const LOGIN: [&str; 21] = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_BEDROCK_BASE_URL",
    "ANTHROPIC_BETAS",
    "ANTHROPIC_CUSTOM_HEADERS",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL",
    "ANTHROPIC_DEFAULT_OPUS_MODEL",
    "ANTHROPIC_DEFAULT_SONNET_MODEL",
    "ANTHROPIC_FOUNDRY_API_KEY",
    "ANTHROPIC_FOUNDRY_RESOURCE",
    "ANTHROPIC_MODEL",
    "ANTHROPIC_SMALL_FAST_MODEL",
    "ANTHROPIC_VERTEX_BASE_URL",
    "ANTHROPIC_VERTEX_PROJECT_ID",
    "AWS_BEARER_TOKEN_BEDROCK",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_VERTEX",
    "CLOUD_ML_REGION",
];
/// Where the program keeps its own, and how it behaves on this host.
const SETTINGS: [&str; 12] = [
    "API_TIMEOUT_MS",
    "AWS_REGION",
    "CLAUDE_CODE_EFFORT_LEVEL",
    "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
    "CLAUDE_CODE_MAX_RETRIES",
    CONFIG_FOLDER,
    "HTTPS_PROXY",
    "HTTP_PROXY",
    SANDBOX_VARIABLE,
    "NODE_EXTRA_CA_CERTS",
    "NO_PROXY",
    "SSL_CERT_FILE",
];
const CONFIG_FOLDER: &str = "CLAUDE_CONFIG_DIR";
/// Says that the whole host is a sandbox: the program lets root bypass permissions only then.
const SANDBOX_VARIABLE: &str = "IS_SANDBOX";
/// Those that are secret.
const KEYS: [&str; 6] = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_CUSTOM_HEADERS",
    "ANTHROPIC_FOUNDRY_API_KEY",
    "AWS_BEARER_TOKEN_BEDROCK",
    "CLAUDE_CODE_OAUTH_TOKEN",
];
/// Nothing but calls of the model leaves the host.
const QUIET: [&str; 2] = [
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "DISABLE_AUTOUPDATER",
];
/// Tools that would leave the work tree, or wake the program when nobody waits for it any more.
const NOT_OFFERED: [&str; 6] = [
    "CronCreate",
    "CronDelete",
    "CronList",
    "EnterWorktree",
    "ExitWorktree",
    "ScheduleWakeup",
];
/// Tools that write files.
const EDITING: [&str; 4] = ["Edit", "MultiEdit", "NotebookEdit", "Write"];
/// Packages with the native program, by what they are installed for.
const NATIVE: [&str; 4] = [
    "claude-code-linux-x64",
    "claude-code-linux-x64-musl",
    "claude-code-linux-arm64",
    "claude-code-linux-arm64-musl",
];

/// Runs Claude Code.
#[derive(Debug)]
pub(super) struct ClaudeAgent;

impl Agent for ClaudeAgent {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn find(&self, own: Own<'_>) -> Option<AgentOffer> {
        Some(AgentOffer {
            name: KIND.to_owned(),
            program: find(own)?,
            version: String::new(),
        })
    }

    fn version(&self, program: &str) -> String {
        installed_version(Path::new(program)).unwrap_or_else(|| version::ask(program))
    }

    fn invocation(&self, task: &TaskDocument, place: &Place<'_>) -> Result<Invocation, Failure> {
        let mut argv = match task.agent.command.as_slice() {
            [] => {
                let message = "claude is not there any more: neither CLAUDE_BIN nor PATH has it; \
                               install it on this worker, or start the worker with \
                               `--agent claude=COMMAND`";
                vec![
                    find(place.own)
                        .ok_or_else(|| failure(class::AGENT_UNAVAILABLE, message, b""))?,
                ]
            }
            command => command.to_vec(),
        };
        let profile = profile::expand(&task.agent_env, place.own)?;
        let (env, masked) = environment(task, profile, place.own);
        let may_bypass = rustix::process::geteuid().as_raw() != 0
            || env.get(SANDBOX_VARIABLE).is_some_and(|value| is_on(value));
        argv.extend(arguments(task, may_bypass));
        Ok(Invocation { argv, env, masked })
    }

    fn resume(&self, invocation: &mut Invocation, place: &Place<'_>, session: &str) -> bool {
        if !is_session_id(session) || !has_session(invocation, place, session) {
            return false;
        }
        invocation.argv.push(format!("--resume={session}"));
        true
    }

    fn takes_schema(&self) -> bool {
        true
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn judge(&self, end: &End, tail: &[u8]) -> Result<(), Failure> {
        super::command::judge("Claude Code", class::AGENT_FAILED, end, tail)
    }

    fn conversation(&self, task: &TaskDocument) -> Option<Box<dyn Conversation>> {
        Some(Box::new(machine::Claude::new(&task.images)))
    }
}

/// Finds the program: the one that the worker's environment names, else the one in its path.
fn find(own: Own<'_>) -> Option<String> {
    let path = own("PATH").unwrap_or_default();
    let found = match own(PROGRAM_VARIABLE).filter(|named| !named.is_empty()) {
        Some(named) if named.contains('/') => may_run(Path::new(&named)).then_some(named),
        Some(named) => program(&named, &path),
        None => program(KIND, &path),
    };
    found.map(native)
}

/// Gives the native program beside one that a package manager has installed, which may be a script that
/// only starts it.
fn native(found: String) -> String {
    let real = std::fs::canonicalize(&found).unwrap_or_default();
    let scope = real
        .ancestors()
        .find(|folder| folder.ends_with("@anthropic-ai"));
    let mut candidates = NATIVE.iter().filter_map(|package| {
        let candidate = scope?.join(package).join("claude");
        may_run(&candidate).then(|| candidate.to_string_lossy().into_owned())
    });
    candidates.next().unwrap_or(found)
}

/// Reads the program's version from where it is installed; nothing is started for it.
fn installed_version(program: &Path) -> Option<String> {
    let real = std::fs::canonicalize(program).ok()?;
    let mut folders = real.ancestors().skip(1).take(2);
    let package = folders.find_map(|folder| {
        let text = std::fs::read_to_string(folder.join("package.json")).ok()?;
        let package: Value = serde_json::from_str(&text).ok()?;
        let name = package["name"].as_str()?;
        let version = package["version"].as_str()?;
        name.starts_with("@anthropic-ai/claude-code")
            .then(|| version.to_owned())
    });
    package.or_else(|| {
        // The program's own installer names the file by its version.
        let name = real.file_name()?.to_str()?;
        let is_version =
            name.split('.').count() == 3 && name.chars().all(|c| c.is_ascii_digit() || c == '.');
        is_version.then(|| name.to_owned())
    })
}

/// Gives the program's variables, and the names of those that no output may show.
fn environment(
    task: &TaskDocument,
    profile: profile::Profile,
    own: Own<'_>,
) -> (BTreeMap<String, String>, Vec<String>) {
    let profile::Profile {
        values: mut env,
        mut masked,
    } = profile;
    let given = |env: &BTreeMap<String, String>, name: &str| {
        env.contains_key(name) || task.has_variable(name)
    };
    let own_login = !LOGIN.iter().any(|name| given(&env, name));
    let taken = LOGIN.iter().filter(|_| own_login).chain(&SETTINGS);
    for name in taken {
        if !given(&env, name)
            && let Some(value) = own(name)
        {
            env.insert((*name).to_owned(), value);
        }
    }
    for name in QUIET {
        if !given(&env, name) {
            env.insert(name.to_owned(), "1".to_owned());
        }
    }
    let keys = KEYS.iter().filter(|key| env.contains_key(**key));
    masked.extend(keys.map(|key| (*key).to_owned()));
    (env, masked)
}

fn is_on(value: &str) -> bool {
    matches!(
        value.to_ascii_lowercase().as_str(),
        "1" | "true" | "yes" | "on"
    )
}

/// Gives everything after the program.
fn arguments(task: &TaskDocument, may_bypass: bool) -> Vec<String> {
    let flags = [
        "-p",
        "--output-format=stream-json",
        "--input-format=stream-json",
        "--verbose",
        "--include-partial-messages",
        "--permission-prompt-tool=stdio",
        "--setting-sources=user",
    ];
    let mut argv: Vec<String> = flags.map(str::to_owned).into();
    let mode = mode(task, may_bypass);
    argv.push(format!("--permission-mode={mode}"));
    // A value follows each flag after `=`: whatever it begins with, it is no flag then.
    let mut flag = |flag: &str, value: &str| argv.push(format!("{flag}={value}"));
    if let Some(model) = &task.model {
        flag("--model", model);
    }
    for folder in &task.add_dirs {
        flag("--add-dir", folder);
    }
    for tool in NOT_OFFERED {
        flag("--disallowedTools", tool);
    }
    if task.sandbox == Some(SandboxMode::ReadOnly) {
        for tool in EDITING {
            flag("--disallowedTools", tool);
        }
    }
    // The program does not ask about commands that it takes for harmless.
    for rule in task.approvals.deny.iter().filter(|rule| is_plain(rule)) {
        flag("--disallowedTools", &format!("Bash({rule}:*)"));
    }
    argv
}

/// Chooses what the program does without asking the worker.
fn mode(task: &TaskDocument, may_bypass: bool) -> &'static str {
    let ApprovalPolicy { ask, deny, .. } = &task.approvals;
    match (task.sandbox, ask) {
        // What would be asked about may write.
        (Some(SandboxMode::ReadOnly), AskMode::Never) => "dontAsk",
        (Some(SandboxMode::ReadOnly), _) | (_, AskMode::Always) => "default",
        _ if !deny.is_empty() => "default",
        (Some(SandboxMode::FullAccess), AskMode::Never) if may_bypass => "bypassPermissions",
        _ => "acceptEdits",
    }
}

/// Tells whether a rule means the same to the program.
fn is_plain(rule: &str) -> bool {
    !rule.is_empty()
        && rule
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || " ./_-".contains(c))
}

fn is_session_id(session: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !session.is_empty() && session.len() <= 64 && session.chars().all(is_part)
}

/// Looks for a session among those that the program has stored: it ends at once if it is to go on with
/// one that is not there.
fn has_session(invocation: &Invocation, place: &Place<'_>, session: &str) -> bool {
    let folder = invocation.env.get(CONFIG_FOLDER).map(PathBuf::from);
    let home = || Some(PathBuf::from((place.own)("HOME")?).join(".claude"));
    let Some(folder) = folder.or_else(home) else {
        return false;
    };
    let file = format!("{session}.jsonl");
    let projects = std::fs::read_dir(folder.join("projects"))
        .into_iter()
        .flatten();
    let mut projects = projects.filter_map(Result::ok);
    projects.any(|project| project.path().join(&file).is_file())
}
