//! What is started for a task, and where it is found.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::document::AgentDocument;

fn place(own: Own<'_>) -> Place<'_> {
    Place {
        work: "/w".into(),
        last_message: "/l/last".into(),
        prompt: "/l/prompt".into(),
        own,
    }
}

fn task() -> TaskDocument {
    TaskDocument {
        agent: AgentDocument {
            command: vec!["/bin/claude".into()],
            ..AgentDocument::default()
        },
        ..TaskDocument::default()
    }
}

fn invoked(task: &TaskDocument, own: Own<'_>) -> Invocation {
    ClaudeAgent.invocation(task, &place(own)).unwrap()
}

fn own(set: &[(&str, &str)], name: &str) -> Option<String> {
    let found = set.iter().find(|(key, _)| *key == name);
    found.map(|(_, value)| (*value).to_owned())
}

#[test]
fn the_program_speaks_json_both_ways_and_reads_no_settings_of_the_repository() {
    let argv = invoked(&task(), &|_| None).argv;
    assert_eq!(
        argv[..8],
        [
            "/bin/claude",
            "-p",
            "--output-format=stream-json",
            "--input-format=stream-json",
            "--verbose",
            "--include-partial-messages",
            "--permission-prompt-tool=stdio",
            "--setting-sources=user",
        ]
    );
}

#[test]
fn no_value_of_a_plan_becomes_a_flag() {
    let task = TaskDocument {
        model: Some("--dangerously-skip-permissions".into()),
        add_dirs: vec!["--bare".into()],
        approvals: ApprovalPolicy {
            deny: vec!["rm -r".into(), "x) Bash(y".into()],
            ..ApprovalPolicy::default()
        },
        ..task()
    };
    let argv = invoked(&task, &|_| None).argv;
    let has = |flag: &str| argv.iter().any(|argument| argument == flag);
    assert!(has("--model=--dangerously-skip-permissions") && has("--add-dir=--bare"));
    assert!(has("--disallowedTools=Bash(rm -r:*)"), "{argv:?}");
    assert!(
        !argv.iter().any(|argument| argument.contains("Bash(y")),
        "{argv:?}"
    );
}

#[test]
fn permissions_are_bypassed_only_where_the_task_and_the_host_want_it() {
    use AskMode::{Always, Never, Outside};
    use SandboxMode::{FullAccess, ReadOnly, WorkspaceWrite};
    for (sandbox, ask, deny, may_bypass, expected) in [
        (None, Never, false, true, "acceptEdits"),
        (Some(WorkspaceWrite), Outside, false, true, "acceptEdits"),
        (Some(WorkspaceWrite), Always, false, true, "default"),
        (Some(FullAccess), Never, false, true, "bypassPermissions"),
        (Some(FullAccess), Never, false, false, "acceptEdits"),
        (Some(FullAccess), Never, true, true, "default"),
        (Some(FullAccess), Outside, false, true, "acceptEdits"),
        (Some(ReadOnly), Never, false, true, "dontAsk"),
        (Some(ReadOnly), Outside, false, true, "default"),
    ] {
        let deny = if deny {
            vec!["rm".to_owned()]
        } else {
            Vec::new()
        };
        let task = TaskDocument {
            sandbox,
            approvals: ApprovalPolicy {
                ask,
                deny,
                ..ApprovalPolicy::default()
            },
            ..task()
        };
        assert_eq!(mode(&task, may_bypass), expected, "{sandbox:?} {ask:?}");
    }
    let read_only = TaskDocument {
        sandbox: Some(ReadOnly),
        ..task()
    };
    assert!(arguments(&read_only, false).contains(&"--disallowedTools=Write".to_owned()));
}

#[test]
fn root_bypasses_nothing_unless_its_host_is_a_sandbox() {
    let task = TaskDocument {
        sandbox: Some(SandboxMode::FullAccess),
        ..task()
    };
    let bypassed = |own: Own<'_>| {
        let argv = invoked(&task, own).argv;
        argv.contains(&"--permission-mode=bypassPermissions".to_owned())
    };
    let is_root = rustix::process::geteuid().as_raw() == 0;
    assert_eq!(bypassed(&|_| None), !is_root);
    assert!(bypassed(&|name| own(&[("IS_SANDBOX", "1")], name)));
}

#[test]
fn a_login_is_taken_whole_or_not_at_all() {
    let own = |name: &str| Some(format!("own {name}"));
    let taken = invoked(&task(), &own);
    assert_eq!(taken.env["ANTHROPIC_API_KEY"], "own ANTHROPIC_API_KEY");
    assert_eq!(taken.env["CLAUDE_CONFIG_DIR"], "own CLAUDE_CONFIG_DIR");
    assert_eq!(taken.env["DISABLE_AUTOUPDATER"], "1");
    assert_eq!(taken.env["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"], "1");
    assert!(taken.masked.contains(&"ANTHROPIC_AUTH_TOKEN".to_owned()));

    let mut elsewhere = task();
    elsewhere
        .env
        .insert("ANTHROPIC_BASE_URL".into(), "http://else".into());
    let given = invoked(&elsewhere, &own);
    assert!(
        !given.env.contains_key("ANTHROPIC_API_KEY"),
        "a key goes only to its own provider"
    );
    assert!(
        !given.env.contains_key("ANTHROPIC_BASE_URL"),
        "the task's own stays"
    );
    assert_eq!(given.env["CLAUDE_CONFIG_DIR"], "own CLAUDE_CONFIG_DIR");
}

#[test]
fn a_profile_is_filled_from_the_worker_and_a_gap_fails_the_launch() {
    let mut task = task();
    task.agent_env = BTreeMap::from([
        ("ANTHROPIC_BASE_URL".to_owned(), "http://gateway".to_owned()),
        (
            "ANTHROPIC_CUSTOM_HEADERS".to_owned(),
            "key: ${GATEWAY_KEY}".to_owned(),
        ),
    ]);
    let filled = invoked(&task, &|name| {
        own(&[("GATEWAY_KEY", "k"), ("ANTHROPIC_API_KEY", "a")], name)
    });
    assert_eq!(filled.env["ANTHROPIC_CUSTOM_HEADERS"], "key: k");
    assert!(!filled.env.contains_key("ANTHROPIC_API_KEY"));
    assert!(
        filled
            .masked
            .contains(&"ANTHROPIC_CUSTOM_HEADERS".to_owned())
    );
    let failure = ClaudeAgent
        .invocation(&task, &place(&|_| None))
        .unwrap_err();
    assert_eq!(failure.class, "secret_unavailable");
    assert!(
        failure.message.contains("`GATEWAY_KEY`"),
        "{}",
        failure.message
    );
}

#[test]
fn a_session_is_gone_on_with_if_this_host_has_it() {
    let home = tempfile::tempdir().unwrap();
    let project = home.path().join(".claude/projects/-w");
    fs::create_dir_all(&project).unwrap();
    fs::write(project.join("01a1fb4d-b341.jsonl"), "").unwrap();
    let variables = [("HOME", home.path().to_str().unwrap())];
    let own = |name: &str| own(&variables, name);
    for (session, there) in [
        ("01a1fb4d-b341", true),
        ("another", false),
        ("../-w/01a1fb4d-b341", false),
        ("", false),
    ] {
        let mut invocation = invoked(&task(), &own);
        assert_eq!(
            ClaudeAgent.resume(&mut invocation, &place(&own), session),
            there,
            "{session}"
        );
        let flag = format!("--resume={session}");
        assert_eq!(invocation.argv.contains(&flag), there, "{session}");
    }
}

#[test]
fn the_native_program_of_a_package_is_found_with_its_version() {
    let modules = tempfile::tempdir().unwrap();
    let program = |path: &str| {
        let path = modules.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let script = program("@anthropic-ai/claude-code/cli.js");
    let package = r#"{"name": "@anthropic-ai/claude-code-linux-x64", "version": "2.1.329"}"#;
    let bin = modules.path().join(".bin");
    fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(&script, bin.join("claude")).unwrap();
    let variables = [("PATH", bin.to_str().unwrap())];
    let own_path = |name: &str| own(&variables, name);
    let offer = ClaudeAgent.find(&own_path).unwrap();
    assert_eq!(
        (offer.program.as_str(), offer.version.as_str()),
        (bin.join("claude").to_str().unwrap(), "")
    );
    let native = program("@anthropic-ai/claude-code-linux-x64/claude");
    fs::write(native.with_file_name("package.json"), package).unwrap();
    let offer = ClaudeAgent.find(&own_path).unwrap();
    assert_eq!(
        offer.program,
        native.canonicalize().unwrap().to_str().unwrap()
    );
    assert_eq!(ClaudeAgent.version(&offer.program), "2.1.329");

    let installed = program("versions/2.1.330");
    let variables = [("CLAUDE_BIN", installed.to_str().unwrap())];
    let offer = ClaudeAgent.find(&|name| own(&variables, name)).unwrap();
    assert_eq!(ClaudeAgent.version(&offer.program), "2.1.330");
    assert!(
        ClaudeAgent
            .find(&|name| own(&[("CLAUDE_BIN", "/no/claude")], name))
            .is_none()
    );
}
