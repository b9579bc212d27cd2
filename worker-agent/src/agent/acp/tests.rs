//! The machine, fed with what a real agent wrote, and what the protocol allows besides.

use muster_proto::v1::{ChoiceEffect, Question, TurnEnd, activity::Kind};
use serde_json::{Value, json};

use super::machine::Acp;
use super::*;
use crate::agent::conversation::{Decision, ErrorClass, Opening, Step, Turn};
use crate::document::AgentDocument;

/// What opencode 1.18.33 wrote in three turns: a permission, an error, a cancel.
pub(super) const OPENCODE: &str = include_str!("../../../tests/agents/acp-opencode.jsonl");

pub(super) fn opening() -> Opening {
    Opening {
        folder: "/w/repo5".into(),
        prompt: "do it".to_owned(),
        ..Opening::default()
    }
}

pub(super) fn opened() -> Acp {
    let mut machine = Acp::default();
    machine.open(&opening());
    machine
}

/// Feeds lines; begins another turn after each.
pub(super) fn heard<'l>(machine: &mut Acp, lines: impl IntoIterator<Item = &'l [u8]>) -> Vec<Step> {
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

fn fed(machine: &mut Acp, lines: &[Value]) -> Vec<Step> {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    heard(machine, lines.iter().map(|line| line.as_bytes()))
}

pub(super) fn played() -> Vec<Step> {
    heard(&mut opened(), OPENCODE.lines().map(str::as_bytes))
}

fn told(steps: &[Step]) -> Vec<Kind> {
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

fn asked(steps: &[Step]) -> Question {
    let asked = steps.iter().find_map(|step| match step {
        Step::Ask(question) => Some(question.clone()),
        _ => None,
    });
    asked.unwrap()
}

fn sent(steps: &[Step]) -> Vec<Value> {
    let sent = steps.iter().filter_map(|step| match step {
        Step::Send(line) => Some(serde_json::from_str(line).unwrap()),
        _ => None,
    });
    sent.collect()
}

/// An agent's answers up to the first prompt, which is request 3.
fn ready(capabilities: &Value) -> [Value; 2] {
    [
        json!({"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": 1,
            "agentCapabilities": capabilities, "agentInfo": {"name": "a", "version": "9"}}}),
        json!({"jsonrpc": "2.0", "id": 2, "result": {"sessionId": "s"}}),
    ]
}

fn working() -> Acp {
    let mut machine = opened();
    fed(&mut machine, &ready(&json!({})));
    machine
}

fn update(update: &Value) -> Value {
    json!({"jsonrpc": "2.0", "method": "session/update",
        "params": {"sessionId": "s", "update": update}})
}

fn decision(choice: &str) -> Decision {
    Decision {
        choice: choice.to_owned(),
        text: String::new(),
    }
}

#[test]
fn a_real_agents_turns_are_told_and_end_as_they_did() {
    let steps = played();
    let turns = turns(&steps);
    let ends: Vec<_> = turns
        .iter()
        .map(|turn| {
            (
                turn.end,
                turn.error
                    .as_ref()
                    .map(|error| (error.class, error.http_status)),
            )
        })
        .collect();
    assert_eq!(
        ends,
        [
            (TurnEnd::Completed, None),
            (
                TurnEnd::Failed,
                Some((ErrorClass::InvalidRequest, Some(400)))
            ),
            (TurnEnd::Interrupted, None),
        ]
    );
    assert_eq!(turns[0].message, "ran");
    let mut seen = Vec::new();
    for kind in told(&steps) {
        match kind {
            Kind::SessionOpened(session) => {
                assert_eq!(session.id, "ses_e048fc38bffehi98NrQkxV7HkI");
                seen.push(format!("{} {}", session.software, session.model));
            }
            Kind::CommandStarted(command) => seen.push(format!("run {}", command.command)),
            Kind::CommandEnded(ended) => seen.push(format!("ran {:?}", ended.exit_code)),
            Kind::Message(delta) => seen.push(delta.text),
            Kind::Usage(usage) => {
                assert_eq!(
                    (usage.cached_input_tokens, usage.cache_write_tokens),
                    (1_000, 50)
                );
                let cost = usage.cost_micros.unwrap_or_default();
                seen.push(format!(
                    "{} {} {cost}",
                    usage.input_tokens, usage.output_tokens
                ));
            }
            Kind::CommandOutput(output) => {
                seen.push(String::from_utf8(output.data).unwrap());
            }
            _ => {}
        }
    }
    assert_eq!(
        seen,
        [
            "OpenCode 1.18.33 fake/fake-model",
            "run touch /home/user",
            "(no output)",
            "ran Some(0)",
            "ran",
            "1150 50 3075",
        ]
    );
}

#[test]
fn a_permission_has_the_agents_own_options_and_one_to_stop() {
    let lines: Vec<&str> = OPENCODE.lines().collect();
    let asks = lines
        .iter()
        .position(|line| line.contains("request_permission"))
        .unwrap();
    let begun = || {
        let mut machine = opened();
        let steps = heard(
            &mut machine,
            lines[..=asks].iter().map(|line| line.as_bytes()),
        );
        (machine, asked(&steps))
    };
    let (_, question) = begun();
    assert_eq!(
        (question.kind.as_str(), question.detail.as_str()),
        ("command", "touch /home/user")
    );
    let offered: Vec<_> = question
        .choices
        .iter()
        .map(|choice| (choice.id.as_str(), choice.effect()))
        .collect();
    assert_eq!(
        offered,
        [
            ("once", ChoiceEffect::AllowOnce),
            ("always", ChoiceEffect::AllowSession),
            ("reject", ChoiceEffect::Deny),
            ("muster-stop", ChoiceEffect::DenyAndStop),
        ]
    );
    let (mut machine, _) = begun();
    assert_eq!(machine.answer(1, &decision("nonsense")), []);
    let answer = sent(&machine.answer(1, &decision("once")));
    assert_eq!(
        answer,
        [json!({"jsonrpc": "2.0", "id": 0,
            "result": {"outcome": {"outcome": "selected", "optionId": "once"}}})]
    );
    assert_eq!(
        machine.answer(1, &decision("once")),
        [],
        "an answer counts once"
    );

    let (mut machine, _) = begun();
    let stopped = sent(&machine.answer(1, &decision("muster-stop")));
    assert_eq!(stopped[0]["result"]["outcome"]["outcome"], "cancelled");
    assert_eq!(stopped[1]["method"], "session/cancel");

    let (mut machine, _) = begun();
    let cancelled = machine.cancel();
    assert_eq!(cancelled[0], Step::Withdraw(1));
    assert_eq!(
        sent(&cancelled)[0]["result"]["outcome"]["outcome"],
        "cancelled"
    );
    assert_eq!(sent(&cancelled)[1]["method"], "session/cancel");
}

#[test]
fn a_denied_call_is_told_as_declined() {
    let call = json!({"sessionUpdate": "tool_call", "toolCallId": "c", "title": "rm",
        "kind": "execute", "status": "pending", "rawInput": {"command": ["rm", "x"]}});
    let ask = json!({"jsonrpc": "2.0", "id": "q", "method": "session/request_permission", "params": {
        "toolCall": {"toolCallId": "c"}, "options": [
            {"optionId": "n", "name": "No", "kind": "reject_once"},
            {"optionId": "n", "name": "No again", "kind": "reject_always"},
            {"optionId": "x", "name": "New", "kind": "something_new"}]}});
    let ended = json!({"sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "failed",
        "content": [{"type": "content", "content": {"type": "text", "text": "denied"}}]});
    let mut machine = working();
    let question = asked(&fed(&mut machine, &[update(&call), ask]));
    assert_eq!(question.detail, "rm x");
    assert_eq!(question.choices.len(), 2);
    machine.answer(1, &decision("n"));
    let seen = told(&fed(&mut machine, &[update(&ended)]));
    let [Kind::CommandStarted(_), Kind::CommandEnded(end)] = seen.as_slice() else {
        panic!("{seen:?}");
    };
    assert!(end.declined && end.exit_code.is_none());
}

#[test]
fn edits_are_changes_of_files_and_other_calls_are_calls() {
    let edit = json!({"sessionUpdate": "tool_call", "toolCallId": "e", "title": "Edit", "kind": "edit",
        "status": "completed", "content": [
            {"type": "diff", "path": "/w/repo5/a", "oldText": "1\n2\n3\n", "newText": "1\nx\n3\n"},
            {"type": "diff", "path": "/w/repo5/b", "oldText": null, "newText": "new\n"}]});
    let gone = json!({"sessionUpdate": "tool_call", "toolCallId": "d", "kind": "delete",
        "status": "completed", "locations": [{"path": "/else/c"}]});
    let fetch = json!({"sessionUpdate": "tool_call", "toolCallId": "f", "title": "Fetch",
        "kind": "fetch", "status": "in_progress", "rawInput": {"url": "u"}});
    let failed =
        json!({"sessionUpdate": "tool_call_update", "toolCallId": "f", "status": "failed"});
    let plan = json!({"sessionUpdate": "plan", "entries": [
        {"content": "look", "priority": "high", "status": "completed"}]});
    let lines = [edit, gone, fetch, failed, plan].map(|line| update(&line));
    let mut seen = Vec::new();
    for kind in told(&fed(&mut working(), &lines)) {
        seen.push(match kind {
            Kind::FileChange(change) => {
                format!("{} {} {:?}", change.change, change.path, change.diff)
            }
            Kind::ToolCall(call) => format!("{} {} {}", call.tool, call.status, call.arguments),
            Kind::TodoList(list) => format!("{} {}", list.items[0].text, list.items[0].status),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(
        seen,
        [
            "modify a \"@@ @@\\n-2\\n+x\\n\"",
            "add b \"@@ @@\\n+new\\n\"",
            "delete /else/c \"\"",
            "Fetch started {\"url\":\"u\"}",
            "Fetch failed {\"url\":\"u\"}",
            "look completed",
        ]
    );
}

#[test]
fn each_reason_to_stop_has_its_end() {
    for (reason, end, class) in [
        ("end_turn", TurnEnd::Completed, None),
        ("something_new", TurnEnd::Completed, None),
        ("cancelled", TurnEnd::Interrupted, None),
        ("refusal", TurnEnd::Failed, Some(ErrorClass::Refusal)),
        ("max_tokens", TurnEnd::Failed, Some(ErrorClass::AgentError)),
        (
            "max_turn_requests",
            TurnEnd::Failed,
            Some(ErrorClass::AgentError),
        ),
    ] {
        let done = json!({"jsonrpc": "2.0", "id": 3, "result": {"stopReason": reason}});
        let turn = turns(&fed(&mut working(), &[done])).remove(0);
        assert_eq!(
            (turn.end, turn.error.map(|error| error.class)),
            (end, class),
            "{reason}"
        );
    }
}

#[test]
fn errors_have_classes_by_code_kind_words_and_status() {
    use ErrorClass as Class;
    for (error, class, status) in [
        (
            json!({"code": -32000, "message": "Authentication required"}),
            Class::Authentication,
            None,
        ),
        (
            json!({"code": -32602, "message": "Invalid params"}),
            Class::InvalidRequest,
            None,
        ),
        (
            json!({"code": -32603, "message": "Internal error", "data": {"errorKind": "overloaded"}}),
            Class::ProviderCapacity,
            None,
        ),
        (
            json!({"code": -32603, "message": "Internal error: fake http 500"}),
            Class::ProviderError,
            Some(500),
        ),
        (
            json!({"code": -32603, "message": "x", "data": {"details": "429 Too Many Requests"}}),
            Class::RateLimit,
            Some(429),
        ),
        (
            json!({"code": -32603, "message": "x", "data": "prompt is too long: 9 > 8"}),
            Class::ContextWindow,
            None,
        ),
        (
            json!({"code": -32603, "message": "connect ECONNREFUSED 127.0.0.1:1"}),
            Class::Transport,
            None,
        ),
        (
            json!({"code": -32603, "message": "400x, 1400"}),
            Class::AgentError,
            None,
        ),
        (json!({}), Class::AgentError, None),
    ] {
        let answer = json!({"jsonrpc": "2.0", "id": 3, "error": error});
        let turn = turns(&fed(&mut working(), &[answer])).remove(0);
        let told = turn.error.unwrap();
        assert_eq!((told.class, told.http_status), (class, status), "{error}");
    }
}

#[test]
fn what_only_reads_names_what_it_reads() {
    for (call, kind, paths) in [
        (
            json!({"kind": "read", "locations": [{"path": "/s/SKILL.md"}]}),
            "file_read",
            &["/s/SKILL.md"][..],
        ),
        (json!({"kind": "read"}), "tool", &[]),
        (
            json!({"kind": "read", "locations": [{"path": "/s"}], "rawInput": {"command": "rm"}}),
            "command",
            &[],
        ),
    ] {
        let mut call = call.clone();
        call["toolCallId"] = "1".into();
        let ask = json!({"jsonrpc": "2.0", "id": 0, "method": "session/request_permission",
            "params": {"sessionId": "s", "toolCall": call, "options": []}});
        let steps = fed(&mut working(), &[ask]);
        let Some(Step::Ask(asked)) = steps.last() else {
            panic!("{call}: {steps:?}");
        };
        assert_eq!(asked.kind, kind);
        assert_eq!(asked.paths, paths);
    }
}

#[test]
fn a_beginning_that_fails_ends_the_turn() {
    let [began, _] = ready(&json!({}));
    let old = json!({"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": 2}});
    let login = json!({"jsonrpc": "2.0", "id": 2, "error": {"code": -32000, "message": "log in"}});
    let nameless = json!({"jsonrpc": "2.0", "id": 2, "result": {}});
    for (lines, class) in [
        (vec![old], ErrorClass::InvalidRequest),
        (vec![began.clone(), login], ErrorClass::Authentication),
        (vec![began, nameless], ErrorClass::InvalidRequest),
    ] {
        let turn = turns(&fed(&mut opened(), &lines)).remove(0);
        assert_eq!(turn.error.unwrap().class, class, "{lines:?}");
    }
    let mut early = opened();
    assert_eq!(turns(&early.cancel())[0].end, TurnEnd::Interrupted);
    assert_eq!(
        fed(&mut early, &ready(&json!({}))),
        [],
        "nothing begins after that"
    );
}

#[test]
fn a_session_is_loaded_without_telling_its_history_again() {
    let resume = || {
        let mut machine = Acp::default();
        machine.open(&Opening {
            resume: Some("s".to_owned()),
            ..opening()
        });
        machine
    };
    let [able, _] = ready(&json!({"loadSession": true}));
    let cost = |amount: f64| {
        update(
            &json!({"sessionUpdate": "usage_update", "cost": {"amount": amount, "currency": "USD"}}),
        )
    };
    let history =
        update(&json!({"sessionUpdate": "agent_message_chunk", "content": {"text": "old"}}));
    let mut machine = resume();
    let load = fed(&mut machine, std::slice::from_ref(&able));
    assert_eq!(sent(&load)[0]["method"], "session/load");
    assert_eq!(sent(&load)[0]["params"]["sessionId"], "s");
    let loaded = json!({"jsonrpc": "2.0", "id": 2, "result": null});
    let steps = fed(&mut machine, &[cost(0.5), cost(1.0), history, loaded]);
    let seen = told(&steps);
    let [Kind::SessionOpened(session)] = seen.as_slice() else {
        panic!("{steps:?}");
    };
    assert!(session.resumed && session.id == "s");
    assert_eq!(sent(&steps)[0]["method"], "session/prompt");
    let done = json!({"jsonrpc": "2.0", "id": 3, "result": {"stopReason": "end_turn"}});
    let steps = fed(&mut machine, &[cost(1.25), done]);
    let seen = told(&steps);
    let [Kind::Usage(usage)] = seen.as_slice() else {
        panic!("{steps:?}");
    };
    assert_eq!(usage.cost_micros, Some(250_000));

    let refused = json!({"jsonrpc": "2.0", "id": 2, "error": {"code": -32603, "message": "gone"}});
    let steps = fed(&mut resume(), &[able, refused]);
    assert!(
        matches!(&steps[1], Step::NotResumed(why) if why.contains("gone")),
        "{steps:?}"
    );
    assert_eq!(sent(&steps)[1]["method"], "session/new");

    let [unable, _] = ready(&json!({}));
    let steps = fed(&mut resume(), &[unable]);
    assert!(matches!(&steps[0], Step::NotResumed(_)), "{steps:?}");
    assert_eq!(sent(&steps)[0]["method"], "session/new");
}

#[test]
fn the_tasks_model_is_chosen_or_the_turn_fails() {
    let begun = |session: Value| {
        let mut machine = Acp::new(Some("big"), &[]);
        machine.open(&opening());
        let [able, _] = ready(&json!({}));
        let created = json!({"jsonrpc": "2.0", "id": 2, "result": session});
        let steps = fed(&mut machine, &[able, created]);
        (machine, steps)
    };
    let options = json!([{"id": "m", "category": "model", "currentValue": "small"}]);
    let (mut machine, steps) = begun(json!({"sessionId": "s", "configOptions": options}));
    let choose = &sent(&steps)[1];
    assert_eq!(choose["method"], "session/set_config_option");
    assert_eq!(choose["params"]["configId"], "m");
    assert_eq!(choose["params"]["value"], "big");
    let chosen = json!({"jsonrpc": "2.0", "id": 3, "result": {}});
    assert_eq!(
        sent(&fed(&mut machine, &[chosen]))[0]["method"],
        "session/prompt"
    );

    let (_, steps) = begun(json!({"sessionId": "s", "models": {"currentModelId": "small"}}));
    assert_eq!(sent(&steps)[1]["method"], "session/set_model");
    let (_, steps) = begun(json!({"sessionId": "s", "models": {"currentModelId": "big"}}));
    assert_eq!(sent(&steps)[1]["method"], "session/prompt");
    let (_, steps) = begun(json!({"sessionId": "s"}));
    assert_eq!(
        turns(&steps)[0].error.as_ref().unwrap().class,
        ErrorClass::InvalidRequest
    );
}

#[test]
fn the_first_prompt_has_the_persona_and_the_images() {
    let mut machine = Acp::new(None, &["a.png".to_owned()]);
    machine.open(&Opening {
        instructions: "be brief".to_owned(),
        ..opening()
    });
    let steps = fed(&mut machine, &ready(&json!({})));
    let prompt = &sent(&steps)[1]["params"]["prompt"];
    assert_eq!(prompt[0]["text"], "be brief\n\ndo it");
    assert_eq!(prompt[1]["uri"], "file:///w/repo5/a.png");
    let again = sent(&machine.prompt("more"));
    assert_eq!(
        again[0]["params"]["prompt"],
        json!([{"type": "text", "text": "more"}])
    );
}

#[test]
fn usage_is_read_as_each_agent_means_it() {
    for (result, expected) in [
        (
            json!({"usage": {"inputTokens": 10, "outputTokens": 5, "cachedReadTokens": 100,
            "totalTokens": 115}}),
            (110, 100, 5, 0),
        ),
        (
            json!({"usage": {"inputTokens": 110, "outputTokens": 5, "cachedReadTokens": 100,
            "thoughtTokens": 3, "totalTokens": 115}}),
            (110, 100, 5, 3),
        ),
        (
            json!({"_meta": {"quota": {"token_count": {"input_tokens": 7, "output_tokens": 2}}}}),
            (7, 0, 2, 0),
        ),
        (
            json!({"_meta": {"quota": {"token_count": {"input_tokens": 9, "output_tokens": 9},
            "model_usage": [{"model": "g", "token_count": {"input_tokens": 7, "output_tokens": 2}}]}}}),
            (7, 0, 2, 0),
        ),
    ] {
        let done = json!({"jsonrpc": "2.0", "id": 3, "result": result});
        let steps = fed(&mut working(), &[done]);
        let seen = told(&steps);
        let [Kind::Usage(usage)] = seen.as_slice() else {
            panic!("{steps:?}");
        };
        let seen = (
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
        );
        assert_eq!(seen, expected);
    }
}

#[test]
fn what_is_not_offered_is_answered_so_and_news_mean_nothing() {
    let mut machine = working();
    let read = json!({"jsonrpc": "2.0", "id": 7, "method": "fs/read_text_file", "params": {}});
    let answer = sent(&fed(&mut machine, &[read]));
    assert_eq!(answer[0]["error"]["code"], -32601);
    assert_eq!(answer[0]["id"], 7);
    let foreign = json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "other",
        "update": {"sessionUpdate": "agent_message_chunk", "content": {"text": "no"}}}});
    let news = [
        update(&json!({"sessionUpdate": "something_new"})),
        json!({"jsonrpc": "2.0", "method": "_vendor/news"}),
        json!({"jsonrpc": "2.0", "id": 99, "result": {}}),
        foreign,
    ];
    assert_eq!(fed(&mut machine, &news), []);
}

#[test]
fn a_line_that_is_too_long_leaves_nothing_waiting() {
    let mut machine = working();
    let update = br#"{"jsonrpc":"2.0","method":"session/update","params":{"up"#;
    assert_eq!(machine.overlong(update), []);
    assert_eq!(machine.overlong(b"noise"), []);
    for (method, part) in [
        ("session/request_permission", "result"),
        ("fs/write_text_file", "error"),
    ] {
        let beginning = format!(r#"{{"jsonrpc":"2.0","id":"q1","method":"{method}","params":{{"x"#);
        let steps = machine.overlong(beginning.as_bytes());
        assert!(matches!(steps[0], Step::Tell(Kind::Error(_))), "{steps:?}");
        let answer = &sent(&steps)[0];
        assert_eq!(answer["id"], "q1");
        assert!(answer.get(part).is_some(), "{answer}");
    }
    let steps = machine.overlong(br#"{"jsonrpc":"2.0","id":3,"result":{"x"#);
    let [Step::TurnEnded(turn)] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    assert_eq!(turn.error.as_ref().unwrap().class, ErrorClass::AgentError);
}

#[test]
fn an_answer_to_the_prompt_that_does_not_say_why_it_ends_is_a_failure() {
    for answer in [
        json!({}),
        json!({"result": null}),
        json!({"result": {}}),
        json!({"result": {"stopReason": 1}}),
    ] {
        let mut machine = working();
        let mut line = answer.clone();
        line["jsonrpc"] = "2.0".into();
        line["id"] = 3.into();
        let steps = fed(&mut machine, &[line]);
        let Some(Step::TurnEnded(turn)) = steps.last() else {
            panic!("{answer}: {steps:?}");
        };
        let error = turn.error.as_ref().expect("it is no success");
        assert_eq!(error.class, ErrorClass::AgentError, "{answer}");
        assert!(error.message.contains("stopReason"), "{}", error.message);
    }
}

#[test]
fn a_task_without_a_command_line_says_what_is_missing() {
    let place = Place {
        work: "/w".into(),
        last_message: "/l".into(),
        prompt: "/p".into(),
        own: &|_| None,
    };
    let mut task = TaskDocument {
        agent: AgentDocument {
            name: "goose".into(),
            ..AgentDocument::default()
        },
        ..TaskDocument::default()
    };
    let failure = AcpAgent.invocation(&task, &place).unwrap_err();
    assert_eq!(failure.class, "agent_unavailable");
    assert!(failure.message.contains("\"goose\"") && failure.message.contains("`command`"));
    task.agent.command = vec!["goose".into(), "acp".into()];
    let invocation = AcpAgent.invocation(&task, &place).unwrap();
    assert_eq!(invocation.argv, ["goose", "acp"]);
}
