//! One `codex exec` for each attempt.
//!
//! Flags are those of Codex 0.169. What that version has removed is translated: `--full-auto` was a
//! workspace-write sandbox that asks nobody, which is what `exec` with that sandbox is today.

use std::io;
use std::path::Path;

use muster_connect::private_file;
use muster_proto::v1::{Failure, ModelUsage};
use serde_json::Value;

use super::json::text;
use super::settings::Options;
use super::usage;
use crate::agent::{Meter, Place};
use crate::document::TaskDocument;
use crate::failure::{chain, class, failure};

/// A longer prompt goes through standard input: Linux takes no argument above 128 KiB.
const PROMPT_ARGUMENT_BYTES_MAX: usize = 120 * 1024;
/// Runs its arguments with the file `$0` as standard input.
const WITH_INPUT: &str = r#"exec "$@" <"$0""#;
/// The last message is a task's summary; the coordinator keeps its first 4 KiB.
const SUMMARY_BYTES_MAX: u64 = 4_096;

/// Gives program and arguments of a task that `codex exec` does, which ends by itself and never asks
/// anybody.
pub(super) fn argv(
    program: Vec<String>,
    task: &TaskDocument,
    place: &Place<'_>,
) -> Result<Vec<String>, Failure> {
    let mut argv = program;
    let arguments = arguments(task, place);
    argv.extend(arguments.map_err(|message| failure(class::AGENT_UNAVAILABLE, &message, b""))?);
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
    Ok(argv)
}

/// Gives what the agent said last.
pub(super) fn summary(place: &Place<'_>) -> String {
    read_head(&place.last_message).unwrap_or_default()
}

/// Reads off the stream of `codex exec --json` what its turns consumed. It does not tell of calls, and
/// nothing of a turn that fails or is a review: those are told as not known.
#[derive(Debug)]
pub(super) struct Turns {
    model: String,
    /// What was told of all turns of the thread so far.
    total: Value,
    /// A turn has begun and not ended.
    runs: bool,
}

impl Turns {
    pub(super) fn new(task: &TaskDocument) -> Self {
        let options = Options(&task.codex);
        let model = options.text("model").ok().flatten();
        Self {
            model: model.unwrap_or_default().to_owned(),
            total: Value::Null,
            runs: false,
        }
    }
}

impl Meter for Turns {
    fn line(&mut self, line: &[u8]) -> Option<ModelUsage> {
        let event: Value = serde_json::from_slice(line).ok()?;
        match text(&event, "type") {
            "turn.started" => {
                self.runs = true;
                None
            }
            "turn.completed" => {
                self.runs = false;
                let total = event.get("usage").cloned().unwrap_or_default();
                let before = std::mem::replace(&mut self.total, total);
                let added = usage::of_turns(&before, &self.total, &self.model);
                Some(added.unwrap_or_else(|| usage::unknown(&self.model)))
            }
            "turn.failed" => {
                self.runs = false;
                Some(usage::unknown(&self.model))
            }
            _ => None,
        }
    }

    fn ended(&mut self) -> Option<ModelUsage> {
        std::mem::take(&mut self.runs).then(|| usage::unknown(&self.model))
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
    if options.switch("ephemeral")? {
        argv.push("--ephemeral".to_owned());
    }
    if review {
        argv.push("review".to_owned());
        if options.switch("uncommitted")? {
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
    use serde_json::{Value, json};

    use super::super::CodexAgent;
    use super::*;
    use crate::agent::Agent as _;
    use crate::document::AgentDocument;

    fn task(codex: Value) -> TaskDocument {
        let Value::Object(mut options) = codex else {
            panic!("{codex}");
        };
        options.insert("protocol".into(), "exec".into());
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

    /// What lines of a stream add: input, output, and what is not known.
    fn metered(lines: &[Value]) -> Vec<(u64, u64, u32)> {
        let mut turns = Turns::new(&task(json!({"model": "m"})));
        let told = |usage: ModelUsage| {
            assert_eq!((usage.model.as_str(), usage.calls), ("m", 0));
            (usage.input_tokens, usage.output_tokens, usage.unknown_calls)
        };
        let mut found: Vec<_> = lines
            .iter()
            .filter_map(|line| turns.line(line.to_string().as_bytes()))
            .collect();
        found.extend(turns.ended());
        found.into_iter().map(told).collect()
    }

    #[test]
    fn a_turn_consumed_what_the_threads_total_grew_by() {
        let completed = |input: u64| {
            json!({"type": "turn.completed", "usage": {"input_tokens": input,
                "cached_input_tokens": 1, "output_tokens": input / 10}})
        };
        let started = json!({"type": "turn.started"});
        let found = metered(&[
            json!("noise"),
            started.clone(),
            completed(3000),
            started,
            completed(6000),
            // Written anew.
            completed(1000),
        ]);
        assert_eq!(found, [(3000, 300, 0), (3000, 300, 0), (1000, 100, 0)]);
    }

    #[test]
    fn a_turn_that_does_not_say_what_it_consumed_is_known_to_be_unknown() {
        let started = json!({"type": "turn.started"});
        let failed = json!({"type": "turn.failed", "error": {"message": "no"}});
        assert_eq!(metered(&[started.clone(), failed]), [(0, 0, 1)]);
        assert_eq!(metered(std::slice::from_ref(&started)), [(0, 0, 1)]);
        let review = json!({"type": "turn.completed", "usage": {"input_tokens": 0}});
        assert_eq!(metered(&[started, review]), [(0, 0, 1)]);
        assert_eq!(metered(&[]), []);
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
