use muster_proto::v1::TurnEnd;

use super::*;
use crate::agent::conversation::ErrorClass;
use crate::agent::{Agent as _, Place};
use crate::document::{AgentDocument, ApprovalPolicy, AskMode, SandboxMode};
use crate::supervisor::End;

const THREAD: &str = "01a1fb6e-fae6-78b1-abaa-9d3c7da1eaaf";
const TURN_ID: &str = "01a1fb6e-fb03-7303-8288-b0dba2d5d98e";

/// A conversation in the middle of its first turn.
fn running() -> Player {
    let mut player = Player::new(machine(json!({})), &opening());
    for line in TURN.lines().filter(|line| line.starts_with('<')).take(5) {
        player.hear(line.split_at(2).1);
    }
    player
}

fn ask(player: &mut Player, method: &str, id: &Value, mut params: Value) {
    params["threadId"] = THREAD.into();
    player.hear(&json!({"method": method, "id": id, "params": params}).to_string());
}

fn last_sent(player: &Player) -> Value {
    player.steps.iter().rev().find_map(sent).unwrap()
}

#[test]
fn a_tool_of_a_server_is_asked_about_with_the_choices_that_the_agent_has() {
    let mut player = running();
    let params = json!({"serverName": "stub", "mode": "form", "message": "Allow it?",
        "_meta": {"codex_approval_kind": "mcp_tool_call", "persist": ["session", "always"],
            "tool_name": "echo", "tool_params": {"text": "hello"}},
        "requestedSchema": {"type": "object", "properties": {}}});
    for (effect, expected) in [
        (
            ChoiceEffect::AllowOnce,
            json!({"action": "accept", "content": {}, "_meta": null}),
        ),
        (
            ChoiceEffect::AllowSession,
            json!({"action": "accept", "content": {}, "_meta": {"persist": "session"}}),
        ),
        (
            ChoiceEffect::Deny,
            json!({"action": "decline", "content": null, "_meta": null}),
        ),
    ] {
        ask(
            &mut player,
            "mcpServer/elicitation/request",
            &json!("a"),
            params.clone(),
        );
        let open = &player.open[0];
        assert_eq!(open.kind, "tool");
        let lasting =
            |choice: &muster_proto::v1::Choice| choice.effect() == ChoiceEffect::AllowRule;
        assert!(
            !open.choices.iter().any(lasting),
            "it would outlive the task"
        );
        player.decide(effect, "");
        assert_eq!(last_sent(&player), json!({"id": "a", "result": expected}));
    }
}

#[test]
fn questions_of_the_model_are_answered_together() {
    let mut player = running();
    let params = json!({"questions": [
        {"id": "q1", "header": "H", "question": "Which?", "isOther": true, "options": [
            {"label": "A", "description": "the first"}, {"label": "A", "description": "again"}]},
        {"id": "q2", "header": "", "question": "Why?", "options": null},
    ]});
    ask(&mut player, "item/tool/requestUserInput", &json!(7), params);
    let ids: Vec<&str> = player.open[0]
        .choices
        .iter()
        .map(|choice| choice.id.as_str())
        .collect();
    assert_eq!(ids, ["A", "A-2", "text"]);
    let before = player.steps.len();
    let decision = |choice: &str, text: &str| Decision {
        choice: choice.into(),
        text: text.into(),
    };
    let steps = player.machine.answer(2, &decision("text", "because"));
    player.take(steps);
    assert_eq!(player.steps.len(), before, "answered before all was said");
    let steps = player.machine.answer(1, &decision("A", ""));
    player.take(steps);
    let answers = json!({"q1": {"answers": ["A"]}, "q2": {"answers": ["because"]}});
    assert_eq!(
        last_sent(&player),
        json!({"id": 7, "result": {"answers": answers}})
    );
}

#[test]
fn a_form_is_filled_with_words_or_an_object() {
    for (words, expected) in [
        (
            "blue",
            json!({"action": "accept", "content": {"colour": "blue"}, "_meta": null}),
        ),
        (
            "{\"colour\": \"red\"}",
            json!({"action": "accept", "content": {"colour": "red"}, "_meta": null}),
        ),
    ] {
        let mut player = running();
        let params = json!({"serverName": "s", "mode": "form", "message": "Colour?",
            "requestedSchema": {"type": "object", "properties": {"colour": {"type": "string"}}}});
        ask(
            &mut player,
            "mcpServer/elicitation/request",
            &json!(1),
            params,
        );
        player.decide(ChoiceEffect::Text, words);
        assert_eq!(last_sent(&player)["result"], expected);
    }
}

#[test]
fn what_nobody_can_be_asked_is_refused_and_never_left_open() {
    let mut player = running();
    for method in ["attestation/generate", "item/tool/call", "later/thing"] {
        ask(&mut player, method, &json!("x"), json!({}));
        let refused = last_sent(&player);
        assert_eq!(
            (&refused["id"], &refused["error"]["code"]),
            (&json!("x"), &json!(-32_601))
        );
    }
    assert!(player.open.is_empty());
}

#[test]
fn a_line_that_is_too_long_leaves_nothing_waiting() {
    let mut player = running();
    let overlong = |player: &mut Player, beginning: &str| {
        let steps = player.machine.overlong(beginning.as_bytes());
        player.take(steps);
    };
    let before = player.steps.len();
    overlong(
        &mut player,
        r#"{"method":"item/completed","params":{"item":{"ou"#,
    );
    overlong(&mut player, "yyyy");
    assert_eq!(player.steps.len(), before, "told piece by piece before");
    overlong(
        &mut player,
        r#"{"method":"item/fileChange/requestApproval","id":3,"params":{"x"#,
    );
    let refused = last_sent(&player);
    assert_eq!(
        (&refused["id"], &refused["error"]["code"]),
        (&json!(3), &json!(-32_600))
    );
    assert!(player.ended().is_empty() && player.open.is_empty());
    let Some(Kind::Error(error)) = player.told().pop() else {
        panic!("{:?}", player.told());
    };
    assert!(error.message.contains("8 MiB"), "{}", error.message);
    overlong(
        &mut player,
        r#"{"method":"turn/completed","params":{"turn":{"items":["#,
    );
    assert_eq!(ended_with(&player), ErrorClass::AgentError);

    for beginning in [r#"{"id":1,"result":{"user"#, r#"{"params":{"item":{"#] {
        let mut player = Player::new(machine(json!({})), &opening());
        overlong(&mut player, beginning);
        assert_eq!(ended_with(&player), ErrorClass::AgentError, "{beginning}");
    }
}

fn ended_with(player: &Player) -> ErrorClass {
    player.ended()[0].error.as_ref().unwrap().class
}

#[test]
fn a_change_is_asked_about_with_its_places_in_the_work_tree_and_where_files_go() {
    let mut player = running();
    let changes = json!([
        {"path": "/home/user/repo/a", "kind": {"type": "update", "move_path": "/etc/b"}, "diff": "-x\n"},
        {"path": "/tmp/c", "kind": {"type": "add"}, "diff": "+y\n"},
    ]);
    let item = json!({"type": "fileChange", "id": "i", "changes": changes});
    let params = json!({"threadId": THREAD, "item": item});
    player.hear(&json!({"method": "item/started", "params": params}).to_string());
    let params = json!({"itemId": "i"});
    ask(
        &mut player,
        "item/fileChange/requestApproval",
        &json!(0),
        params,
    );
    assert_eq!(player.open[0].paths, ["a", "/etc/b", "/tmp/c"]);
    assert_eq!(player.open[0].title, "a /etc/b /tmp/c");
}

#[test]
fn what_no_retry_cures_ends_the_turn_at_the_first_one() {
    for (info, details, expected) in [
        (
            json!({"responseStreamDisconnected": {"httpStatusCode": 401}}),
            "unexpected status 401 Unauthorized",
            Some(ErrorClass::Authentication),
        ),
        (
            json!("usageLimitExceeded"),
            "",
            Some(ErrorClass::UsageLimit),
        ),
        (
            json!({"responseStreamDisconnected": {"httpStatusCode": 400}}),
            "unexpected status 400",
            Some(ErrorClass::InvalidRequest),
        ),
        (
            json!({"responseStreamDisconnected": {"httpStatusCode": 429}}),
            "last status: 429 Too Many Requests",
            None,
        ),
        (
            json!({"responseStreamDisconnected": {"httpStatusCode": 408}}),
            "unexpected status 408",
            None,
        ),
        (
            json!({"responseStreamDisconnected": {"httpStatusCode": null}}),
            "websockets are not supported",
            None,
        ),
    ] {
        let mut player = running();
        let error = json!({"message": "Reconnecting... 1/5", "codexErrorInfo": info,
            "additionalDetails": details});
        let params = json!({"error": error, "willRetry": true, "threadId": THREAD});
        player.hear(&json!({"method": "error", "params": params}).to_string());
        let ended = player.ended().into_iter().next();
        let class = ended.map(|turn| turn.error.as_ref().unwrap().class);
        assert_eq!(class, expected, "{info}");
        assert!(matches!(player.told().pop(), Some(Kind::Retry(_))));
    }
}

#[test]
fn to_stop_at_the_question_of_a_tool_interrupts_the_turn_which_codex_would_not() {
    let mut player = running();
    let params = json!({"serverName": "stub", "mode": "form", "message": "Allow it?",
        "_meta": {"codex_approval_kind": "mcp_tool_call", "tool_name": "echo"}});
    ask(
        &mut player,
        "mcpServer/elicitation/request",
        &json!(0),
        params,
    );
    player.decide(ChoiceEffect::DenyAndStop, "");
    assert_eq!(player.sent("turn/interrupt").len(), 1);
    let params = json!({"command": "ls", "itemId": "i"});
    let mut player = running();
    ask(
        &mut player,
        "item/commandExecution/requestApproval",
        &json!(0),
        params,
    );
    player.decide(ChoiceEffect::DenyAndStop, "");
    assert_eq!(
        player.sent("turn/interrupt").len(),
        0,
        "Codex does that itself"
    );
}

#[test]
fn a_question_that_codex_takes_back_is_withdrawn_and_not_answered_any_more() {
    let mut player = running();
    let params = json!({"command": "rm x", "itemId": "i"});
    ask(
        &mut player,
        "item/commandExecution/requestApproval",
        &json!(5),
        params,
    );
    let number = player.open[0].number;
    let usual: Vec<&str> = player.open[0]
        .choices
        .iter()
        .map(|choice| choice.id.as_str())
        .collect();
    assert_eq!(usual, ["accept", "acceptForSession", "decline", "cancel"]);
    let resolved = json!({"method": "serverRequest/resolved",
        "params": {"threadId": THREAD, "requestId": 5}});
    player.hear(&resolved.to_string());
    assert_eq!(player.steps.last(), Some(&Step::Withdraw(number)));
    let decision = Decision {
        choice: "accept".into(),
        text: String::new(),
    };
    assert_eq!(player.machine.answer(number, &decision), []);
}

#[test]
fn why_something_was_denied_is_said_within_the_turn() {
    let mut player = running();
    let params = json!({"command": "rm x", "itemId": "i"});
    ask(
        &mut player,
        "item/commandExecution/requestApproval",
        &json!(5),
        params,
    );
    player.decide(ChoiceEffect::Deny, "keep x");
    let steer = &player.sent("turn/steer")[0]["params"];
    assert_eq!(steer["expectedTurnId"], TURN_ID);
    assert_eq!(steer["input"][0]["text"], "keep x");
}

#[test]
fn an_interrupted_turn_ends_only_when_its_commands_are_ended_too() {
    let mut player = Player::new(machine(json!({})), &opening());
    let lines: Vec<&str> = TURN.lines().filter(|line| line.starts_with('<')).collect();
    for line in &lines[..2] {
        player.hear(line.split_at(2).1);
    }
    let steps = player.machine.cancel();
    assert_eq!(steps, [], "there is no turn yet to interrupt");
    for line in &lines[2..4] {
        player.hear(line.split_at(2).1);
    }
    assert_eq!(
        player.sent("turn/interrupt")[0]["params"]["turnId"],
        TURN_ID
    );
    assert_eq!(player.machine.cancel(), [], "interrupted twice");
    let over = json!({"method": "turn/completed", "params": {"threadId": THREAD,
        "turn": {"id": TURN_ID, "status": "interrupted", "items": []}}});
    let steps = player.machine.line(over.to_string().as_bytes());
    let [clean] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    let id = sent(clean).unwrap()["id"].clone();
    let steps = player.machine.line(
        json!({"id": id, "error": {"code": 1}})
            .to_string()
            .as_bytes(),
    );
    assert!(matches!(&steps[..], [Step::TurnEnded(turn)] if turn.end == TurnEnd::Interrupted));
}

#[test]
fn a_conversation_that_is_cancelled_before_its_thread_is_open_begins_no_turn() {
    let mut player = Player::new(machine(json!({})), &opening());
    assert_eq!(player.machine.cancel(), []);
    for line in TURN.lines().filter(|line| line.starts_with('<')).take(2) {
        player.hear(line.split_at(2).1);
    }
    assert_eq!(player.ended()[0].end, TurnEnd::Interrupted);
    assert!(player.sent("turn/start").is_empty());
}

#[test]
fn a_conversation_that_is_gone_is_begun_anew_and_that_is_said() {
    let mut player = Player::new(
        machine(json!({})),
        &Opening {
            resume: Some("gone".into()),
            anew: "A summary, and the task.".into(),
            ..opening()
        },
    );
    player.hear(&json!({"id": 1, "result": {}}).to_string());
    assert_eq!(
        player.sent("thread/resume")[0]["params"]["threadId"],
        "gone"
    );
    let refused = json!({"id": 2, "error": {"code": -32600, "message": "no rollout found"}});
    player.hear(&refused.to_string());
    assert!(
        matches!(&player.steps[player.steps.len() - 2], Step::NotResumed(why)
        if why.contains("no rollout found"))
    );
    assert!(
        player.sent("thread/start")[0]["params"]
            .get("threadId")
            .is_none()
    );
    player.hear(&json!({"id": 3, "result": {"thread": {"id": "new"}}}).to_string());
    let prompt = player.sent("turn/start")[0]["params"]["input"].to_string();
    assert!(prompt.contains("A summary, and the task."), "{prompt}");
}

#[test]
fn a_thread_that_codex_does_not_open_fails_the_turn() {
    let mut player = Player::new(machine(json!({})), &opening());
    player.hear(&json!({"id": 1, "result": {}}).to_string());
    let refused = json!({"id": 2, "error": {"code": -32600, "message": "no such model"}});
    player.hear(&refused.to_string());
    let error = player.ended()[0].error.clone().unwrap();
    assert_eq!(error.class, ErrorClass::InvalidRequest);
    assert!(error.message.contains("no such model"));
}

#[test]
fn a_key_is_logged_in_with_and_kept_nowhere() {
    let env = [("CODEX_API_KEY", "sk-secret"), ("OTHER", "x")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut player = Player::new(
        machine(json!({})),
        &Opening {
            env: env.into(),
            ..opening()
        },
    );
    player.hear(&json!({"id": 1, "result": {}}).to_string());
    let login = &player.sent("account/login/start")[0]["params"];
    assert_eq!(*login, json!({"type": "apiKey", "apiKey": "sk-secret"}));
    assert!(!format!("{:?}", player.machine).contains("sk-secret"));
    let refused = json!({"id": 2, "error": {"code": 1, "message": "no"}});
    player.hear(&refused.to_string());
    let error = player.ended()[0].error.clone().unwrap();
    assert_eq!(error.class, ErrorClass::Authentication);
}

#[test]
fn a_program_that_is_gone_says_why_if_it_did() {
    let mut player = Player::new(machine(json!({})), &opening());
    let error = player.machine.lost(
        &End::Exited { code: 1 },
        "\u{1b}[31mError:\u{1b}[0m bad config\n\n",
    );
    assert_eq!(error.class, ErrorClass::InvalidRequest);
    assert!(
        error.message.ends_with("Error: bad config"),
        "{}",
        error.message
    );
    let mut player = running();
    let error = player.machine.lost(&End::Signalled { signal: 9 }, "");
    assert_eq!(error.class, ErrorClass::AgentCrashed);
    assert_eq!(error.message, "codex was killed in its turn by signal 9");
}

fn thread(task: &TaskDocument) -> Value {
    Settings::of(task).unwrap().thread(&opening())
}

#[test]
fn a_thread_is_opened_with_everything_that_a_task_says() {
    let mut all = task(json!({
        "base_instructions": "base", "developer_instructions": "more", "compact_prompt": "short",
        "config": {"a": {"b": [1, "2"]}, "c": true}, "effort": "low", "network": true,
    }));
    all.model = Some("m".into());
    all.sandbox = Some(SandboxMode::FullAccess);
    all.add_dirs = vec!["../more".into(), "/abs".into()];
    let settings = Settings::of(&all).unwrap();
    let opening = Opening {
        instructions: "persona".into(),
        ..opening()
    };
    assert_eq!(
        settings.thread(&opening),
        json!({
            "cwd": "/home/user/repo", "model": "m", "sandbox": "danger-full-access",
            "approvalPolicy": thread(&task(json!({})))["approvalPolicy"],
            "config": {"a.b": [1, "2"], "c": true, "compact_prompt": "short",
                "model_reasoning_effort": "low", "sandbox_workspace_write.network_access": true},
            "baseInstructions": "base", "developerInstructions": "persona\n\nmore",
            "runtimeWorkspaceRoots": ["/home/user/repo", "/home/user/repo/../more", "/abs"],
        })
    );
}

#[test]
fn what_codex_lost_is_translated_or_refused_with_its_replacement() {
    for (options, sandbox) in [
        (json!({}), "workspace-write"),
        (json!({"full_auto": true}), "workspace-write"),
        (json!({"sandbox": "read-write"}), "workspace-write"),
        (
            json!({"sandbox": "read-only", "full_auto": false}),
            "read-only",
        ),
        (
            json!({"sandbox": "danger-full-access"}),
            "danger-full-access",
        ),
    ] {
        assert_eq!(thread(&task(options))["sandbox"], sandbox);
    }
    let mut failing = task(json!({"approval_policy": "on-failure"}));
    let refused = Settings::of(&failing).unwrap_err();
    assert!(refused.contains("ask: outside"), "{refused}");
    failing.approvals.ask = AskMode::Outside;
    assert_eq!(thread(&failing)["approvalPolicy"], "on-request");
    for (options, way_out) in [
        (json!({"ask_for_approval": "never"}), "`approvals`"),
        (json!({"worktree": true}), "work tree"),
        (json!({"cwd": "/x"}), "folder"),
        (json!({"colour": "blue"}), "`colour`"),
        (json!({"sandbox": "none"}), "`read-only`"),
        (json!({"approval_policy": "sometimes"}), "`untrusted`"),
        (json!({"output_schema": "file.json"}), "of the task"),
        (
            json!({"kind": "review", "base": "main", "commit": "c"}),
            "one of",
        ),
        (json!({"kind": "dream"}), "dream"),
        (json!({"config": 1}), "`config`"),
        (
            json!({"config": {"shell_environment_policy": {"exclude": []}}}),
            "`config_overrides`",
        ),
        (json!({"ephemeral": "yes"}), "`ephemeral`"),
    ] {
        let refused = Settings::of(&task(options.clone())).unwrap_err();
        assert!(refused.contains(way_out), "{options}: {refused}");
    }
}

#[test]
fn codex_asks_as_much_as_the_tasks_rules_can_answer() {
    let of = |ask: AskMode, deny: &[&str], options: Value| {
        let mut task = task(options);
        task.approvals = ApprovalPolicy {
            ask,
            deny: deny.iter().map(|rule| (*rule).to_owned()).collect(),
            ..ApprovalPolicy::default()
        };
        Settings::of(&task).map(|settings| settings.thread(&opening())["approvalPolicy"].clone())
    };
    let with = |ask, deny: &[&str]| of(ask, deny, json!({})).unwrap();
    assert_eq!(with(AskMode::Always, &[]), "untrusted");
    assert_eq!(with(AskMode::Outside, &[]), "on-request");
    assert_eq!(with(AskMode::Outside, &["rm"]), "untrusted");
    // Who answers by itself could let a command out of the sandbox.
    let refused = of(AskMode::Never, &["rm"], json!({})).unwrap_err();
    assert!(refused.contains("ask: outside"), "{refused}");
    let free = json!({"sandbox": "danger-full-access"});
    assert_eq!(of(AskMode::Never, &["rm"], free).unwrap(), "untrusted");
    let never = &with(AskMode::Never, &[])["granular"];
    assert_eq!(
        never["sandbox_approval"], false,
        "the sandbox is not opened by itself"
    );
    assert_eq!(never["mcp_elicitations"], true, "tools may be called");
}

#[test]
fn a_review_has_one_scope() {
    for (options, prompt, expected) in [
        (
            json!({"uncommitted": true}),
            "",
            json!({"type": "uncommittedChanges"}),
        ),
        (json!({}), "", json!({"type": "uncommittedChanges"})),
        (
            json!({"base": "main"}),
            "",
            json!({"type": "baseBranch", "branch": "main"}),
        ),
        (
            json!({"commit": "c0ffee", "review_title": "T"}),
            "",
            json!({"type": "commit", "sha": "c0ffee", "title": "T"}),
        ),
        (
            json!({}),
            "look",
            json!({"type": "custom", "instructions": "look"}),
        ),
    ] {
        let mut review = task(options);
        review.codex.insert("kind".into(), "review".into());
        review.prompt = Some(prompt.into());
        assert_eq!(Settings::of(&review).unwrap().review, Some(expected));
    }
}

#[test]
fn a_schema_that_the_provider_takes_holds_the_answer_and_another_is_asked_for_in_words() {
    let strict = json!({"type": "object", "properties": {}, "required": [],
        "additionalProperties": false});
    for (schema, held) in [(strict, true), (json!({"type": "array"}), false)] {
        let mut player = Player::new(
            machine(json!({"images": ["a.png"]})),
            &Opening {
                output_schema: Some(schema.clone()),
                ..opening()
            },
        );
        for line in TURN.lines().filter(|line| line.starts_with('<')).take(2) {
            player.hear(line.split_at(2).1);
        }
        let params = &player.sent("turn/start")[0]["params"];
        assert_eq!(params.get("outputSchema"), held.then_some(&schema));
        let text = params["input"][0]["text"].as_str().unwrap();
        assert_eq!(text.contains("JSON Schema"), !held, "{text}");
        let image = json!({"type": "localImage", "path": "/home/user/repo/a.png"});
        assert_eq!(params["input"][1], image);
    }
}

#[test]
fn the_program_is_started_so_that_it_neither_hangs_nor_shows_its_keys() {
    let mut task = task(
        json!({"config_overrides": ["shell_environment_policy.exclude=[\"A*\", ]", "a=1"], "enable_features": ["e"],
        "disable_features": ["d"]}),
    );
    task.agent = AgentDocument {
        command: vec!["/bin/codex".into()],
        ..AgentDocument::default()
    };
    task.agent_env.insert("MY_KEY".into(), "k".into());
    let own = |name: &str| (name == "CODEX_API_KEY").then(|| "sk".to_owned());
    let place = Place {
        work: "/w".into(),
        last_message: "/l/last".into(),
        prompt: "/l/prompt".into(),
        own: &own,
    };
    let invocation = super::super::CodexAgent.invocation(&task, &place).unwrap();
    assert_eq!(
        invocation.argv,
        [
            "/bin/codex",
            "app-server",
            "-c",
            "features.unbounded_connection_retries=false",
            "-c",
            "sandbox_workspace_write.exclude_slash_tmp=true",
            "-c",
            "cli_auth_credentials_store=\"ephemeral\"",
            "-c",
            "a=1",
            "-c",
            "shell_environment_policy.exclude=[\"CODEX_API_KEY\",\"OPENAI_API_KEY\",\"MY_KEY\",\"A*\"]",
            "-c",
            "projects={\"/w\"={trust_level=\"untrusted\"}}",
            "--enable",
            "e",
            "--disable",
            "d",
        ]
    );
    task.codex.insert("worktree".into(), true.into());
    let refused = super::super::CodexAgent
        .invocation(&task, &place)
        .unwrap_err();
    assert_eq!(refused.class, "agent_unavailable");
}
