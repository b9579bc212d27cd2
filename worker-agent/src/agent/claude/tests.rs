//! The machine, fed with what the real program wrote.

use muster_proto::v1::{ChoiceEffect, ModelUsage, Question, TurnEnd, activity::Kind};
use serde_json::{Value, json};

use super::machine::Claude;
use crate::agent::conversation::{Conversation, Decision, ErrorClass, Opening, Step, Turn};

macro_rules! samples {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../tests/agents/claude-", $name, ".jsonl")))),*]
    };
}

/// What Claude Code 2.1.329 wrote, each beginning with a session.
pub(super) const SAMPLES: [(&str, &str); 21] = samples![
    "400",
    "401",
    "429",
    "500",
    "529",
    "ask",
    "budget",
    "cancelled-question",
    "denied",
    "dropped",
    "interrupt-steer",
    "max-turns",
    "no-login",
    "output-cap",
    "partials",
    "permissions",
    "refusal",
    "stream",
    "stream-error",
    "tools",
    "unreachable",
];

fn sample(name: &str) -> &'static str {
    SAMPLES.iter().find(|sample| sample.0 == name).unwrap().1
}

fn opening() -> Opening {
    Opening {
        folder: "/w/repo".into(),
        prompt: "do it".to_owned(),
        ..Opening::default()
    }
}

/// A machine that has sent the first prompt.
pub(super) fn begun() -> Claude {
    let mut machine = Claude::default();
    machine.open(&opening());
    let ready = json!({"type": "control_response", "response": {"subtype": "success"}});
    let steps = machine.line(ready.to_string().as_bytes());
    assert!(
        sent(&steps)[0]["message"]["content"] == "do it",
        "{steps:?}"
    );
    machine
}

/// Feeds lines; begins another turn after each.
pub(super) fn heard<'l>(
    machine: &mut Claude,
    lines: impl IntoIterator<Item = &'l [u8]>,
) -> Vec<Step> {
    let mut all = Vec::new();
    for line in lines {
        let steps = machine.line(line);
        let ended = steps.iter().any(|step| matches!(step, Step::TurnEnded(_)));
        all.extend(steps);
        if ended {
            machine.prompt("go on");
        }
    }
    all
}

pub(super) fn played(name: &str) -> Vec<Step> {
    heard(&mut begun(), sample(name).lines().map(str::as_bytes))
}

pub(super) fn told(steps: &[Step]) -> Vec<Kind> {
    let told = steps.iter().filter_map(|step| match step {
        Step::Tell(kind) => Some(kind.clone()),
        _ => None,
    });
    told.collect()
}

fn turns(steps: &[Step]) -> Vec<Turn> {
    let turns = steps.iter().filter_map(|step| match step {
        Step::TurnEnded(turn) => Some(turn.clone()),
        _ => None,
    });
    turns.collect()
}

fn questions(steps: &[Step]) -> Vec<Question> {
    let asked = steps.iter().filter_map(|step| match step {
        Step::Ask(question) => Some(question.clone()),
        _ => None,
    });
    asked.collect()
}

pub(super) fn sent(steps: &[Step]) -> Vec<Value> {
    let sent = steps.iter().filter_map(|step| match step {
        Step::Send(line) => Some(serde_json::from_str(line).unwrap()),
        _ => None,
    });
    sent.collect()
}

/// Sums usage: input, cached, output, micros.
fn sum(steps: &[Step]) -> (u64, u64, u64, u64, u32) {
    let mut sum = (0, 0, 0, 0, 0);
    for kind in told(steps) {
        if let Kind::Usage(usage) = kind {
            sum.0 += usage.input_tokens;
            sum.1 += usage.cached_input_tokens;
            sum.2 += usage.output_tokens;
            sum.3 += usage.cost_micros.unwrap_or_default();
            sum.4 += usage.calls;
        }
    }
    sum
}

#[test]
fn each_end_of_a_turn_has_its_class() {
    use ErrorClass as Class;
    use TurnEnd::{Completed, Failed, Interrupted};
    for (name, end, class, status) in [
        ("400", Failed, Some(Class::InvalidRequest), Some(400)),
        ("401", Failed, Some(Class::Authentication), Some(401)),
        ("429", Failed, Some(Class::RateLimit), Some(429)),
        ("500", Failed, Some(Class::ProviderError), Some(500)),
        ("529", Failed, Some(Class::ProviderCapacity), Some(529)),
        ("budget", Failed, Some(Class::UsageLimit), None),
        ("cancelled-question", Interrupted, None, None),
        ("dropped", Completed, None, None),
        ("max-turns", Failed, Some(Class::AgentError), None),
        ("no-login", Failed, Some(Class::Authentication), None),
        ("output-cap", Failed, Some(Class::AgentError), None),
        ("partials", Completed, None, None),
        ("refusal", Failed, Some(Class::Refusal), None),
        ("stream", Completed, None, None),
        ("stream-error", Failed, Some(Class::Transport), None),
        ("unreachable", Failed, Some(Class::Transport), None),
    ] {
        let turns = turns(&played(name));
        let [turn] = turns.as_slice() else {
            panic!("{name}: {turns:?}");
        };
        let error = turn.error.as_ref();
        assert_eq!(turn.end, end, "{name}");
        assert_eq!(error.map(|error| error.class), class, "{name}");
        assert_eq!(error.and_then(|error| error.http_status), status, "{name}");
        assert!(
            error.is_none_or(|error| !error.message.is_empty()),
            "{name}"
        );
    }
}

#[test]
fn a_provider_that_is_too_busy_is_left_alone_as_long_as_the_program_left_it() {
    let steps = played("429");
    let Some(Kind::Retry(retry)) = told(&steps)
        .into_iter()
        .find(|kind| matches!(kind, Kind::Retry(_)))
    else {
        panic!("{steps:?}");
    };
    assert_eq!((retry.attempt, retry.attempts_max), (1, 1));
    assert_eq!(retry.error.unwrap().class, "rate_limit");
    let error = turns(&steps).remove(0).error.unwrap();
    assert_eq!(error.retry_after.unwrap().as_millis(), 1_242);
}

#[test]
fn what_was_consumed_is_told_once_whatever_the_programs_own_sums_say() {
    // The fake provider serves 1,150 tokens of input (1,000 of them cached) and 50 of output a call; a
    // stream that breaks has told 1 of output.
    for (name, calls, output, cost) in [
        ("stream", 2, 100, 3_700),
        ("partials", 1, 50, 1_850),
        ("budget", 1, 50, 1_850),
        ("max-turns", 2, 100, 3_700),
        ("refusal", 2, 100, 3_700),
        ("dropped", 3, 52, 3_630),
        ("stream-error", 2, 2, 0),
        ("output-cap", 4, 200, 7_400),
        ("permissions", 7, 350, 12_950),
        ("interrupt-steer", 6, 251, 9_195),
        ("cancelled-question", 1, 50, 1_850),
        ("429", 0, 0, 0),
    ] {
        let steps = played(name);
        let (input, cached, out, micros, told_calls) = sum(&steps);
        assert_eq!((input, cached), (1_150 * calls, 1_000 * calls), "{name}");
        assert_eq!((out, micros), (output, cost), "{name}");
        // Without streams only sums are known, and no number of calls.
        let streamed = sample(name).contains("message_start");
        let expected = if streamed { calls } else { 0 };
        assert_eq!(u64::from(told_calls), expected, "{name}");
    }
}

#[test]
fn running_totals_of_older_versions_become_differences() {
    let result = |tokens: u64, dollars: f64| {
        let usage = json!({"inputTokens": tokens, "outputTokens": 1, "costUSD": dollars});
        json!({"type": "result", "subtype": "success", "modelUsage": {"m": usage}}).to_string()
    };
    let mut machine = begun();
    let first = heard(&mut machine, [result(10, 0.5).as_bytes()]);
    let second = heard(&mut machine, [result(30, 0.75).as_bytes()]);
    let anew = heard(&mut machine, [result(5, 0.25).as_bytes()]);
    assert_eq!(sum(&first), (10, 0, 1, 500_000, 0));
    assert_eq!(sum(&second), (20, 0, 0, 250_000, 0));
    assert_eq!(sum(&anew), (5, 0, 1, 250_000, 0));

    let mut resumed = Claude::default();
    resumed.open(&Opening {
        resume: Some("s".to_owned()),
        ..opening()
    });
    let before = heard(&mut resumed, [result(100, 5.0).as_bytes()]);
    let since = heard(&mut resumed, [result(101, 5.0).as_bytes()]);
    assert_eq!(sum(&before), (0, 0, 0, 0, 0));
    assert_eq!(sum(&since).0, 1);
}

#[test]
fn a_model_is_one_model_by_its_long_and_its_short_name() {
    let start = json!({"type": "stream_event", "event": {"type": "message_start", "message": {
        "id": "m1", "model": "claude-x-20260101", "usage": {"input_tokens": 7, "output_tokens": 1}}}});
    let usage = json!({"inputTokens": 7, "outputTokens": 1, "costUSD": 0.1});
    let side = json!({"inputTokens": 2, "outputTokens": 1, "costUSD": 0.0});
    let result = json!({"type": "result", "subtype": "success",
        "model_usage_since_last_result": {"claude-x[1m]": usage, "side": side}});
    let lines = [start.to_string(), result.to_string()];
    let steps = heard(&mut begun(), lines.iter().map(|line| line.as_bytes()));
    let told: Vec<ModelUsage> = told(&steps)
        .into_iter()
        .filter_map(|kind| match kind {
            Kind::Usage(usage) => Some(usage),
            _ => None,
        })
        .collect();
    let seen: Vec<_> = told
        .iter()
        .map(|usage| (usage.model.as_str(), usage.input_tokens))
        .collect();
    assert_eq!(
        seen,
        [
            ("claude-x-20260101", 7),
            ("claude-x-20260101", 0),
            ("side", 2)
        ]
    );
    assert_eq!(told[1].cost_micros, Some(100_000));
}

#[test]
fn texts_are_told_once_whether_they_are_streamed_or_not() {
    let text = |name: &str| {
        let said = told(&played(name))
            .into_iter()
            .filter_map(|kind| match kind {
                Kind::Message(delta) => Some(delta.text),
                Kind::Reasoning(delta) => Some(format!("({})", delta.text)),
                _ => None,
            });
        said.collect::<String>()
    };
    assert_eq!(text("stream"), "I will write the file.Done: wrote out.txt");
    assert_eq!(
        text("tools"),
        "(hmm, let me see)thought about itrancalledcalledcalledcalledboth"
    );
    assert_eq!(
        text("unreachable"),
        "",
        "what the program says of errors is no message"
    );
}

#[test]
fn tools_are_told_as_what_they_do() {
    let steps = played("tools");
    let mut seen = Vec::new();
    for kind in told(&steps) {
        match kind {
            Kind::CommandStarted(command) => seen.push(format!("run {}", command.command)),
            Kind::CommandOutput(output) => {
                seen.push(String::from_utf8(output.data).unwrap());
            }
            Kind::CommandEnded(ended) => seen.push(format!("ran {:?}", ended.exit_code)),
            Kind::FileChange(change) => {
                seen.push(format!(
                    "{} {}\n{}",
                    change.change, change.path, change.diff
                ));
            }
            Kind::ToolCall(call) => seen.push(format!("{} {}", call.tool, call.status)),
            _ => {}
        }
    }
    assert_eq!(
        seen,
        [
            "run echo out; echo err >&2; exit 3",
            "out\nerr",
            "ran Some(3)",
            "Read started",
            "Read completed",
            "modify out.txt\n@@ -1,1 +1,1 @@\n-hi\n+ho\n",
            "add new.txt\n@@ -0,0 +1,2 @@\n+a\n+b\n",
            "Edit failed",
            "run echo A",
            "run echo B",
            "A",
            "ran Some(0)",
            "B",
            "ran Some(0)",
        ]
    );
}

#[test]
fn what_nobody_allowed_is_told_as_declined() {
    let steps = played("denied");
    let declined = told(&steps).into_iter().filter_map(|kind| match kind {
        Kind::CommandEnded(ended) => Some(ended.declined),
        Kind::FileChange(change) => Some(change.declined && change.diff.is_empty()),
        _ => None,
    });
    assert_eq!(declined.collect::<Vec<_>>(), [true, true]);
}

#[test]
fn a_permission_has_the_programs_own_choices_and_rules_stay_in_the_session() {
    let lines: Vec<&str> = sample("permissions").lines().collect();
    let asks = lines
        .iter()
        .position(|line| line.contains("can_use_tool"))
        .unwrap();
    let asked = |machine: &mut Claude| {
        let steps = heard(machine, lines[..=asks].iter().map(|line| line.as_bytes()));
        questions(&steps).remove(0)
    };
    let question = asked(&mut begun());
    assert_eq!(question.kind, "command");
    assert_eq!(question.detail, "echo hi > out.txt && cat out.txt");
    assert!(
        question.reason.contains("/w/repo/out.txt"),
        "{}",
        question.reason
    );
    let offered: Vec<_> = question
        .choices
        .iter()
        .map(|choice| (choice.id.as_str(), choice.effect(), choice.rule.as_str()))
        .collect();
    assert_eq!(
        offered,
        [
            ("allow", ChoiceEffect::AllowOnce, ""),
            ("allow-1", ChoiceEffect::AllowRule, "Bash(echo hi *)"),
            ("allow-2", ChoiceEffect::AllowSession, ""),
            ("deny", ChoiceEffect::Deny, ""),
            ("stop", ChoiceEffect::DenyAndStop, ""),
        ]
    );
    for (choice, text, expected) in [
        (
            "allow",
            "",
            json!({"behavior": "allow", "updatedInput": {
            "command": "echo hi > out.txt && cat out.txt", "description": "write file"}}),
        ),
        ("deny", "why", json!({"behavior": "deny", "message": "why"})),
        (
            "stop",
            "",
            json!({"behavior": "deny", "message": "this is not allowed here",
            "interrupt": true}),
        ),
    ] {
        let mut machine = begun();
        asked(&mut machine);
        let decision = Decision {
            choice: choice.to_owned(),
            text: text.to_owned(),
        };
        let answer = &sent(&machine.answer(1, &decision))[0]["response"];
        assert_eq!(answer["request_id"], "14de64cd-2586-4bdc-8639-8079143e4017");
        assert_eq!(answer["response"], expected);
        assert_eq!(machine.answer(1, &decision), [], "an answer counts once");
    }
    let mut machine = begun();
    asked(&mut machine);
    let decision = |choice: &str| Decision {
        choice: choice.to_owned(),
        text: String::new(),
    };
    assert_eq!(machine.answer(1, &decision("nonsense")), []);
    let answer = &sent(&machine.answer(1, &decision("allow-1")))[0]["response"]["response"];
    assert_eq!(answer["updatedPermissions"][0]["destination"], "session");
    assert_eq!(
        answer["updatedPermissions"][0]["rules"][0]["ruleContent"],
        "echo hi *"
    );
}

#[test]
fn what_is_allowed_for_the_session_is_more_than_the_folder_that_is_worked_in() {
    let folders = |folders: &[&str]| json!({"type": "addDirectories", "directories": folders});
    let mode = json!({"type": "setMode", "mode": "acceptEdits"});
    for (suggestion, label) in [
        (folders(&["/w/repo", "/w/repo/src"]), "Allow, and all edits"),
        (folders(&["/w/repo", "/srv"]), "Allow within /w/repo, /srv"),
    ] {
        let request = json!({"subtype": "can_use_tool", "tool_name": "Bash",
            "input": {"command": "touch a"}, "permission_suggestions": [suggestion, mode]});
        let line = json!({"type": "control_request", "request_id": "r", "request": request});
        let asked = questions(&begun().line(line.to_string().as_bytes()));
        let mut choices = asked[0].choices.iter();
        let session = choices.find(|choice| choice.effect() == ChoiceEffect::AllowSession);
        let offered = &session.unwrap().label;
        assert!(offered.starts_with(label), "{offered}");
    }
}

#[test]
fn an_edit_is_asked_about_with_its_file_and_what_it_changes() {
    let edits: Vec<Question> = questions(&played("tools"))
        .into_iter()
        .filter(|question| question.kind == "file_change")
        .collect();
    assert_eq!(edits[0].paths, ["out.txt"]);
    assert_eq!(edits[0].detail, "-hi\n+ho\n");
    assert_eq!(edits[1].detail, "+a\n+b\n");
    let everything = edits[0]
        .choices
        .iter()
        .find(|choice| choice.id == "allow-1")
        .unwrap();
    assert_eq!(everything.effect(), ChoiceEffect::AllowSession);
}

#[test]
fn what_only_reads_names_what_it_reads() {
    for (tool, input, kind, paths) in [
        (
            "Read",
            json!({"file_path": "/s/SKILL.md", "limit": 9}),
            "file_read",
            &["/s/SKILL.md"][..],
        ),
        (
            "Grep",
            json!({"pattern": "x", "path": "/w/repo/a"}),
            "file_read",
            &["a"],
        ),
        ("Grep", json!({"pattern": "x"}), "tool", &[]),
        ("WebFetch", json!({"path": "/s"}), "tool", &[]),
    ] {
        let ask = json!({"type": "control_request", "request_id": "1", "request":
            {"subtype": "can_use_tool", "tool_name": tool, "input": input}});
        let asked = questions(&begun().line(ask.to_string().as_bytes())).remove(0);
        assert_eq!(asked.kind, kind, "{tool}");
        assert_eq!(asked.paths, paths, "{tool}");
        assert_eq!(asked.detail, input.to_string());
    }
}

#[test]
fn a_question_of_the_model_is_answered_in_words_or_with_one_of_its_options() {
    let lines: Vec<&str> = sample("ask").lines().collect();
    let asks = lines
        .iter()
        .position(|line| line.contains("can_use_tool"))
        .unwrap();
    for (choice, text, expected) in [("option-2", "", "B"), ("text", "neither", "neither")] {
        let mut machine = begun();
        let steps = heard(
            &mut machine,
            lines[..=asks].iter().map(|line| line.as_bytes()),
        );
        let question = questions(&steps).remove(0);
        assert_eq!(
            (question.kind.as_str(), question.title.as_str()),
            ("input", "Which?")
        );
        let decision = Decision {
            choice: choice.to_owned(),
            text: text.to_owned(),
        };
        let answer = &sent(&machine.answer(1, &decision))[0]["response"]["response"];
        assert_eq!(answer["updatedInput"]["answers"]["Which?"], expected);
    }
}

#[test]
fn a_question_that_the_program_takes_back_is_withdrawn() {
    let steps = played("cancelled-question");
    let asked = steps
        .iter()
        .position(|step| matches!(step, Step::Ask(_)))
        .unwrap();
    let withdrawn = steps
        .iter()
        .position(|step| *step == Step::Withdraw(1))
        .unwrap();
    assert!(asked < withdrawn);
    assert_eq!(
        steps
            .iter()
            .filter(|step| matches!(step, Step::Withdraw(_)))
            .count(),
        1
    );
}

#[test]
fn a_session_is_told_once_and_says_whether_it_goes_on() {
    for (resume, resumed, told_so) in [
        (None, false, false),
        (Some("90acd6fc-2086-441b-81e8-e62c61ce4a6d"), true, false),
        (Some("another"), false, true),
    ] {
        let mut machine = Claude::default();
        machine.open(&Opening {
            resume: resume.map(str::to_owned),
            ..opening()
        });
        let lines = sample("stream").lines().chain(sample("stream").lines());
        let steps = heard(&mut machine, lines.map(str::as_bytes));
        let sessions: Vec<_> = told(&steps)
            .into_iter()
            .filter_map(|kind| match kind {
                Kind::SessionOpened(session) => Some(session),
                _ => None,
            })
            .collect();
        let [session] = sessions.as_slice() else {
            panic!("{sessions:?}");
        };
        assert_eq!(session.id, "90acd6fc-2086-441b-81e8-e62c61ce4a6d");
        assert_eq!(session.model, "claude-opus-5-5");
        assert_eq!(session.software, "Claude Code 2.1.329");
        assert_eq!(session.resumed, resumed);
        let said = steps.iter().any(|step| matches!(step, Step::NotResumed(_)));
        assert_eq!(said, told_so);
    }
}

#[test]
fn the_persona_and_the_schema_go_through_the_pipe_before_the_prompt() {
    let mut machine = Claude::new(&["a.png".to_owned()]);
    let schema = json!({"type": "object"});
    let steps = machine.open(&Opening {
        instructions: "be brief".to_owned(),
        output_schema: Some(schema.clone()),
        ..opening()
    });
    let request = &sent(&steps)[0]["request"];
    assert_eq!(request["subtype"], "initialize");
    assert_eq!(request["appendSystemPrompt"], "be brief");
    assert_eq!(request["jsonSchema"], schema);
    let ready = json!({"type": "control_response", "response": {"subtype": "success"}});
    let prompt = machine.line(ready.to_string().as_bytes());
    let text = sent(&prompt)[0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        text.starts_with("do it") && text.contains("- a.png"),
        "{text}"
    );
    assert_eq!(machine.line(ready.to_string().as_bytes()), []);
}

#[test]
fn a_program_that_does_not_begin_fails_the_turn() {
    let mut machine = Claude::default();
    machine.open(&opening());
    let refused = json!({"type": "control_response",
        "response": {"subtype": "error", "error": "no such thing"}});
    let turn = turns(&machine.line(refused.to_string().as_bytes())).remove(0);
    assert_eq!(turn.end, TurnEnd::Failed);
    let error = turn.error.unwrap();
    assert_eq!(error.class, ErrorClass::InvalidRequest);
    assert!(error.message.contains("no such thing"), "{}", error.message);
}

#[test]
fn a_structured_answer_is_given_apart() {
    let turn = turns(&played("partials")).remove(0);
    assert_eq!(turn.structured, Some(json!({"verdict": "ok", "score": 3})));
    // One that has not come is for who asked to see.
    let gave_up = json!({"type": "result", "subtype": "error_max_structured_output_retries",
        "is_error": true, "terminal_reason": "structured_output_retry_exhausted"});
    let steps = heard(&mut begun(), [gave_up.to_string().as_bytes()]);
    let turn = turns(&steps).remove(0);
    assert_eq!(
        (turn.end, turn.structured, turn.error),
        (TurnEnd::Completed, None, None)
    );
}

#[test]
fn a_turn_is_interrupted_by_request_and_before_it_began_at_once() {
    let mut machine = begun();
    assert_eq!(
        sent(&machine.cancel())[0]["request"]["subtype"],
        "interrupt"
    );
    let mut machine = Claude::default();
    machine.open(&opening());
    assert_eq!(turns(&machine.cancel())[0].end, TurnEnd::Interrupted);
    let ready = json!({"type": "control_response", "response": {"subtype": "success"}});
    assert_eq!(
        machine.line(ready.to_string().as_bytes()),
        [],
        "no prompt follows"
    );
}

#[test]
fn words_tell_classes_that_have_no_better_sign() {
    for (message, reason, class) in [
        (
            "API Error: 400 prompt is too long: 9 tokens > 8",
            "api_error",
            ErrorClass::ContextWindow,
        ),
        (
            "Prompt is too long",
            "prompt_too_long",
            ErrorClass::ContextWindow,
        ),
        (
            "Credit balance is too low",
            "api_error",
            ErrorClass::UsageLimit,
        ),
        ("something else", "model_error", ErrorClass::AgentError),
    ] {
        let result = json!({"type": "result", "subtype": "success", "is_error": true,
            "result": message, "terminal_reason": reason});
        let steps = heard(&mut begun(), [result.to_string().as_bytes()]);
        assert_eq!(
            turns(&steps)[0].error.as_ref().unwrap().class,
            class,
            "{message}"
        );
    }
    let limited = json!({"type": "rate_limit_event", "rate_limit_info": {"status": "rejected"}});
    let result = json!({"type": "result", "subtype": "success", "is_error": true,
        "result": "no", "terminal_reason": "api_error", "api_error_status": 429});
    let lines = [limited.to_string(), result.to_string()];
    let steps = heard(&mut begun(), lines.iter().map(|line| line.as_bytes()));
    assert_eq!(
        turns(&steps)[0].error.as_ref().unwrap().class,
        ErrorClass::UsageLimit
    );
}

#[test]
fn a_program_that_is_gone_is_judged_by_its_last_words() {
    use crate::supervisor::End;
    let mut machine = begun();
    let crashed = machine.lost(&End::Signalled { signal: 9 }, "");
    assert_eq!(crashed.class, ErrorClass::AgentCrashed);
    assert!(crashed.message.contains("signal 9"), "{}", crashed.message);
    let login = machine.lost(
        &End::Exited { code: 1 },
        "warning\nInvalid API key · Please run /login\n\n",
    );
    assert_eq!(login.class, ErrorClass::Authentication);
    assert!(login.message.ends_with("/login"), "{}", login.message);
}

#[test]
fn requests_that_nobody_can_answer_are_answered() {
    let mut machine = begun();
    let hook = json!({"type": "control_request", "request_id": "h", "request": {"subtype": "hook_callback"}});
    let answer = sent(&machine.line(hook.to_string().as_bytes()));
    assert_eq!(answer[0]["response"]["subtype"], "error");
    assert_eq!(answer[0]["response"]["request_id"], "h");
    let beginning =
        br#"{"type": "control_request", "request_id": "big", "request": {"subtype": "can"#;
    let answer = sent(&machine.overlong(beginning));
    assert_eq!(answer[0]["response"]["request_id"], "big");
    assert_eq!(answer[0]["response"]["response"]["behavior"], "deny");
    assert_eq!(machine.overlong(br#"{"type":"assistant","message":"#), []);
    assert_eq!(machine.overlong(b"noise"), []);
}

#[test]
fn an_end_that_is_too_long_to_be_read_is_a_failure_and_no_wait() {
    for beginning in [
        br#"{"duration_api_ms":118,"stop_reason":"end_turn","result":"xx"#.as_slice(),
        br#"{"type":"result","result":"xx"#,
        br#"{"type":"control_response","response":{"subtype":"succ"#,
    ] {
        let steps = begun().overlong(beginning);
        let turns = turns(&steps);
        let error = turns[0].error.as_ref().unwrap();
        assert_eq!(error.class, ErrorClass::AgentError);
        assert!(error.message.contains("8 MiB"), "{}", error.message);
    }
}

#[test]
fn what_no_retry_cures_ends_the_turn_before_the_program_gives_up() {
    let retry = |attempt: u32, status: u16, kind: &str| {
        json!({"type": "system", "subtype": "api_retry", "attempt": attempt, "max_retries": 10,
            "retry_delay_ms": 571, "error_status": status, "error": kind})
        .to_string()
    };
    for (status, kind, attempts, class) in [
        // It may have renewed its login in between.
        (
            401,
            "authentication_failed",
            2,
            Some(ErrorClass::Authentication),
        ),
        (
            403,
            "oauth_org_not_allowed",
            1,
            Some(ErrorClass::Authentication),
        ),
        (400, "invalid_request", 1, Some(ErrorClass::InvalidRequest)),
        (402, "billing_error", 1, Some(ErrorClass::UsageLimit)),
        (429, "rate_limit", 10, None),
        (408, "unknown", 10, None),
        (529, "overloaded", 10, None),
    ] {
        let mut machine = begun();
        for attempt in 1..=attempts {
            let steps = heard(&mut machine, [retry(attempt, status, kind).as_bytes()]);
            assert!(matches!(told(&steps)[0], Kind::Retry(_)));
            let ended = turns(&steps).into_iter().next();
            let found = ended.map(|turn| turn.error.unwrap().class);
            assert_eq!(
                found,
                class.filter(|_| attempt == attempts),
                "{status} {attempt}"
            );
            let interrupts = sent(&steps).len();
            assert_eq!(interrupts, usize::from(found.is_some()), "{status}");
        }
    }
    let mut machine = begun();
    let limited = json!({"type": "rate_limit_event", "rate_limit_info": {"status": "rejected"}});
    let lines = [limited.to_string(), retry(1, 429, "rate_limit")];
    let steps = heard(&mut machine, lines.iter().map(|line| line.as_bytes()));
    assert_eq!(
        turns(&steps)[0].error.as_ref().unwrap().class,
        ErrorClass::UsageLimit
    );
}
