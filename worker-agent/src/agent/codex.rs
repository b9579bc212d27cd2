//! Codex, one `codex exec` for each attempt.
//!
//! Flags are those of Codex 0.169. What that version has removed is translated: `--full-auto` was a
//! workspace-write sandbox that asks nobody, which is what `exec` with that sandbox is today.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use muster_connect::private_file;
use muster_proto::v1::{AgentOffer, Failure};
use serde_json::Value;

use super::{Agent, Invocation, Own, Place, program};
use crate::document::TaskDocument;
use crate::failure::{chain, class, failure};
use crate::supervisor::End;

const KIND: &str = "codex";
/// Names the program, as codex-par does.
const PROGRAM_VARIABLE: &str = "CODEX_BIN";
/// Where Codex keeps its login and how it gets one; of the worker's environment it needs these.
const LOGIN: [&str; 3] = ["CODEX_API_KEY", "CODEX_HOME", "OPENAI_API_KEY"];
/// Those that are secret.
const KEYS: [&str; 2] = ["CODEX_API_KEY", "OPENAI_API_KEY"];
/// A longer prompt goes through standard input: Linux takes no argument above 128 KiB.
const PROMPT_ARGUMENT_BYTES_MAX: usize = 120 * 1024;
/// Runs its arguments with the file `$0` as standard input.
const WITH_INPUT: &str = r#"exec "$@" <"$0""#;
/// The last message is a task's summary; the coordinator keeps its first 4 KiB.
const SUMMARY_BYTES_MAX: u64 = 4_096;

/// Runs `codex exec`, which ends by itself and never asks anybody.
#[derive(Debug)]
pub(super) struct CodexAgent;

impl Agent for CodexAgent {
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

    fn invocation(&self, task: &TaskDocument, place: &Place<'_>) -> Result<Invocation, Failure> {
        let unavailable = |message: &str| failure(class::AGENT_UNAVAILABLE, message, b"");
        let mut argv = match task.agent.command.as_slice() {
            [] => vec![find(place.own).ok_or_else(|| {
                unavailable("codex is not there any more: neither CODEX_BIN nor PATH has it")
            })?],
            command => command.to_vec(),
        };
        argv.extend(arguments(task, place).map_err(|message| unavailable(&message))?);
        let prompt = task.prompt.as_deref().unwrap_or_default();
        if prompt.len() > PROMPT_ARGUMENT_BYTES_MAX {
            private_file::replace(&place.prompt, prompt.as_bytes()).map_err(|error| {
                let error = chain(&error);
                failure(
                    class::WORKSPACE,
                    &format!("cannot store the prompt: {error}"),
                    b"",
                )
            })?;
            let input = place.prompt.to_string_lossy().into_owned();
            let shell = ["/bin/sh", "-c", WITH_INPUT].map(str::to_owned);
            argv.splice(0..0, shell.into_iter().chain([input]));
            argv.push("-".to_owned());
        } else if !prompt.is_empty() {
            argv.extend(["--".to_owned(), prompt.to_owned()]);
        }
        let env = LOGIN
            .iter()
            .filter(|name| !task.has_variable(name))
            .filter_map(|name| Some(((*name).to_owned(), (place.own)(name)?)))
            .collect::<BTreeMap<_, _>>();
        Ok(Invocation {
            argv,
            env,
            masked: KEYS.map(str::to_owned).into(),
        })
    }

    fn judge(&self, end: &End, tail: &[u8]) -> Result<(), Failure> {
        super::command::judge("codex", class::AGENT_FAILED, end, tail)
    }

    fn summary(&self, place: &Place<'_>) -> String {
        read_head(&place.last_message).unwrap_or_default()
    }
}

/// Finds the program: the one that the worker's environment names, else the one in its path.
fn find(own: Own<'_>) -> Option<String> {
    let path = own("PATH").unwrap_or_default();
    match own(PROGRAM_VARIABLE).filter(|named| !named.is_empty()) {
        Some(named) if named.contains('/') => super::may_run(Path::new(&named)).then_some(named),
        Some(named) => program(&named, &path),
        None => program(KIND, &path),
    }
}

/// Gives everything between the program and the prompt, or why an option cannot be passed on.
fn arguments(task: &TaskDocument, place: &Place<'_>) -> Result<Vec<String>, String> {
    let options = Options(&task.codex);
    let review = options.text("kind")? == Some("review");
    let mut argv = Vec::from(["exec", "--json", "--skip-git-repo-check"].map(str::to_owned));
    let mut flag = |flag: &str, value: &str| argv.extend([flag.to_owned(), value.to_owned()]);
    if !review {
        flag("-C", &place.work.to_string_lossy());
    }
    flag("-o", &place.last_message.to_string_lossy());
    flag(
        "-s",
        match options.text("sandbox")? {
            Some("read-only") => "read-only",
            Some("danger-full-access") => "danger-full-access",
            _ => "workspace-write",
        },
    );
    for (key, name) in [("model", "-m"), ("profile", "-p")] {
        if let Some(value) = options.text(key)? {
            flag(name, value);
        }
    }
    for (key, name) in [
        ("config_overrides", "-c"),
        ("enable_features", "--enable"),
        ("disable_features", "--disable"),
        ("add_dirs", "--add-dir"),
        ("images", "-i"),
    ] {
        for value in options.texts(key)? {
            flag(name, value);
        }
    }
    if let Some(schema) = options.text("output_schema")?.filter(|_| !review) {
        flag("--output-schema", schema);
    }
    if options.switch("ephemeral") {
        argv.push("--ephemeral".to_owned());
    }
    if review {
        argv.push("review".to_owned());
        if options.switch("uncommitted") {
            argv.push("--uncommitted".to_owned());
        }
        for (key, name) in [
            ("base", "--base"),
            ("commit", "--commit"),
            ("review_title", "--title"),
        ] {
            if let Some(value) = options.text(key)? {
                argv.extend([name.to_owned(), value.to_owned()]);
            }
        }
    }
    Ok(argv)
}

/// The options of a task as its plan gave them.
struct Options<'a>(&'a BTreeMap<String, Value>);

impl<'a> Options<'a> {
    fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("`{key}` of the task is not a text")),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>, String> {
        let wrong = || format!("`{key}` of the task is not a list of texts");
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().ok_or_else(wrong))
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    fn switch(&self, key: &str) -> bool {
        self.0.get(key) == Some(&Value::Bool(true))
    }
}

/// Reads the beginning of a file that the agent wrote; its tail is the agent's affair.
fn read_head(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let mut bytes = Vec::new();
    // An agent may have put anything there: a pipe must not hold the worker.
    let file = std::fs::File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        file.take(SUMMARY_BYTES_MAX).read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::document::AgentDocument;

    fn task(codex: Value) -> TaskDocument {
        let Value::Object(options) = codex else {
            panic!("{codex}");
        };
        TaskDocument {
            prompt: Some("do it".into()),
            agent: AgentDocument {
                command: vec!["/bin/codex".into()],
                ..AgentDocument::default()
            },
            codex: options.into_iter().collect(),
            ..TaskDocument::default()
        }
    }

    fn nothing(_: &str) -> Option<String> {
        None
    }

    fn place() -> Place<'static> {
        Place {
            work: "/w".into(),
            last_message: "/l/last".into(),
            prompt: "/l/prompt".into(),
            own: &nothing,
        }
    }

    fn argv(task: &TaskDocument) -> String {
        CodexAgent
            .invocation(task, &place())
            .unwrap()
            .argv
            .join(" ")
    }

    #[test]
    fn a_task_without_options_may_write_in_its_workspace() {
        assert_eq!(
            argv(&task(json!({}))),
            "/bin/codex exec --json --skip-git-repo-check -C /w -o /l/last -s workspace-write \
             -- do it"
        );
    }

    #[test]
    fn every_option_that_codex_still_has_is_passed_on() {
        let all = task(json!({
            "sandbox": "read-only", "full_auto": false, "model": "m", "profile": "p",
            "config_overrides": ["a=1", "b=2"], "images": ["i.png"], "add_dirs": ["d"],
            "output_schema": "s.json", "ephemeral": true, "enable_features": ["e"],
            "disable_features": ["f"], "agent_id": "x", "thread_id": "y",
        }));
        assert_eq!(
            argv(&all),
            "/bin/codex exec --json --skip-git-repo-check -C /w -o /l/last -s read-only -m m -p p \
             -c a=1 -c b=2 --enable e --disable f --add-dir d -i i.png --output-schema s.json \
             --ephemeral -- do it"
        );
    }

    #[test]
    fn a_review_names_its_scope_and_has_no_folder_flag() {
        let mut review = task(json!({"kind": "review", "commit": "c0ffee", "review_title": "T"}));
        review.prompt = Some(String::new());
        assert_eq!(
            argv(&review),
            "/bin/codex exec --json --skip-git-repo-check -o /l/last -s workspace-write review \
             --commit c0ffee --title T"
        );
    }

    #[test]
    fn an_option_of_a_wrong_type_is_refused_by_name() {
        let wrong = task(json!({"images": "one.png"}));
        let refused = CodexAgent.invocation(&wrong, &place()).unwrap_err();
        assert_eq!(refused.class, "agent_unavailable");
        assert!(refused.message.contains("`images`"), "{}", refused.message);
    }

    #[test]
    fn a_prompt_that_is_too_long_for_an_argument_goes_through_standard_input() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("prompt");
        let mut long = task(json!({}));
        long.prompt = Some("x".repeat(PROMPT_ARGUMENT_BYTES_MAX + 1));
        let place = Place {
            prompt: file.clone(),
            ..place()
        };
        let argv = CodexAgent.invocation(&long, &place).unwrap().argv;
        assert_eq!(argv[..3], ["/bin/sh", "-c", WITH_INPUT]);
        assert_eq!(argv[3], file.to_string_lossy());
        assert_eq!(argv[4], "/bin/codex");
        assert_eq!(argv.last().unwrap(), "-");
        assert_eq!(
            std::fs::read(&file).unwrap().len(),
            PROMPT_ARGUMENT_BYTES_MAX + 1
        );
    }

    #[test]
    fn the_program_is_the_named_one_else_the_one_in_the_path() {
        let own = |set: &[(&str, &str)], name: &str| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let named = [("CODEX_BIN", "/bin/sh"), ("PATH", "/bin")];
        assert_eq!(find(&|name| own(&named, name)).as_deref(), Some("/bin/sh"));
        let by_path = [("CODEX_BIN", "sh"), ("PATH", "/bin")];
        assert_eq!(
            find(&|name| own(&by_path, name)).as_deref(),
            Some("/bin/sh")
        );
        let gone = [("CODEX_BIN", "/bin/no-such-program"), ("PATH", "/bin")];
        assert_eq!(find(&|name| own(&gone, name)), None);
    }

    #[test]
    fn logins_come_from_the_worker_unless_the_task_has_its_own() {
        let own = |name: &str| Some(format!("own {name}"));
        let place = Place {
            own: &own,
            ..place()
        };
        let mut task = task(json!({}));
        task.env.insert("CODEX_HOME".into(), "mine".into());
        let env = CodexAgent.invocation(&task, &place).unwrap().env;
        let names: Vec<_> = env.keys().map(String::as_str).collect();
        assert_eq!(names, ["CODEX_API_KEY", "OPENAI_API_KEY"]);
    }

    #[test]
    fn the_last_message_is_the_summary_up_to_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("last");
        let place = Place {
            last_message: file.clone(),
            ..place()
        };
        assert_eq!(CodexAgent.summary(&place), "");
        std::fs::write(&file, "done ".repeat(10_000)).unwrap();
        assert_eq!(CodexAgent.summary(&place).len(), 4_096);
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(CodexAgent.summary(&place), "");
    }
}
