use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use coordinator_core::CommitId;
use coordinator_core::plan::Source;
use proptest::prelude::*;

use super::*;

fn checked(text: &str) -> Result<Plan, Problems> {
    parse("plan.yaml", text.as_bytes(), &BTreeMap::new())
}

fn plan(text: &str) -> Plan {
    checked(text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn lowered(text: &str) -> Lowered {
    let plan = plan(text);
    let source = plan.document.repo.as_ref().map(|_| Source {
        repository: "app".into(),
        base: CommitId::new("0123456789012345678901234567890123456789"),
    });
    let admission = Admission {
        run: "run-1",
        source,
        submitted_by: "me",
        folder_prefix: "",
        personas: Cow::default(),
    };
    plan.lower(&admission).unwrap()
}

fn examples() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/plans");
    let mut examples: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    examples.sort();
    examples
}

/// Draws a caret below the place of each problem.
fn shown(text: &str, problems: &Problems) -> String {
    let mut out = String::new();
    for problem in &problems.list {
        let Position { line, column } = problem.at;
        let source = text.lines().nth(line as usize - 1).unwrap_or_default();
        let _ = writeln!(out, "  | {}", source.replace('\t', " "));
        let _ = writeln!(out, "  | {:>width$}", "^", width = column as usize);
        let _ = writeln!(out, "{problem}");
    }
    out
}

#[test]
fn every_wrong_plan_is_explained_at_its_place() {
    let mut out = String::new();
    let table = include_str!("wrong-plans.txt");
    let mut count = 0;
    for case in table.split("=== ").skip(1) {
        let (title, text) = case.split_once('\n').unwrap();
        let problems = checked(text).expect_err(title);
        let _ = writeln!(out, "=== {title}\n{}", shown(text, &problems));
        count += 1;
    }
    assert!(count >= 60);
    insta::assert_snapshot!(out);
}

#[test]
fn text_that_is_not_utf8_is_refused_at_its_place() {
    let problems = parse("p", b"name: x\ntasks: \xff\xfe", &BTreeMap::new()).unwrap_err();
    let wanted = "p:2:8: not UTF-8 text\n  hint: save the file as UTF-8";
    assert_eq!(problems.to_string(), wanted);
}

#[test]
fn problems_beyond_the_bound_are_counted() {
    let text = "tasks:\n".to_owned() + &"  - {name: a, oops: 1}\n".repeat(100);
    let problems = checked(&text).unwrap_err();
    assert_eq!(problems.list.len(), PROBLEMS_MAX);
    assert!(problems.omitted >= 50);
    assert!(problems.to_string().ends_with("more problems"));
}

#[test]
fn hostile_files_are_refused_within_bounds() {
    let bomb = (1..12).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, i| {
        let aliases = vec![format!("*a{}", i - 1); 9].join(",");
        text + &format!("a{i}: &a{i} [{aliases}]\n")
    });
    let wide = format!(
        "a: &a {}\nb: [{}]",
        "x".repeat(100_000),
        "*a,".repeat(1_000)
    );
    let deep_aliases = (1..80).fold("a0: &a0 [x]\n".to_owned(), |text, i| {
        text + &format!("a{i}: &a{i} [*a{}]\n", i - 1)
    });
    for (what, text, wanted) in [
        ("bomb", bomb, "aliases stand for too much"),
        ("wide", wide, "aliases stand for too much"),
        ("deep aliases", deep_aliases, "levels deep"),
        ("brackets", "[".repeat(20_000), "levels deep"),
        ("braces", "{a: ".repeat(20_000), "levels deep"),
        ("dashes", "- ".repeat(20_000), "levels deep"),
        ("question marks", "? ".repeat(20_000), "levels deep"),
        (
            "just too deep",
            "[".repeat(65) + &"]".repeat(65),
            "levels deep",
        ),
        (
            "an endless quote",
            format!("\"{}", "x".repeat(10_000_000)),
            "unclosed quote",
        ),
        ("NUL", "name: a\0b".to_owned(), "unexpected character"),
        ("too long", " ".repeat(FILE_BYTES_MAX + 1), "bytes; at most"),
    ] {
        let problems = checked(&text).expect_err(what);
        assert_eq!(problems.list.len(), 1, "{what}");
        let message = &problems.list[0].message;
        assert!(message.contains(wanted), "{what}: {message}");
    }
}

#[test]
fn values_are_counted() {
    let mut problems = Problems::new("p");
    assert!(tree::read(b"[a, b]", 3, &mut problems).is_some());
    assert!(tree::read(b"[a, b, c]", 3, &mut problems).is_none());
    let message = &problems.list[0].message;
    assert!(message.starts_with("more than 3 values"), "{message}");
}

#[test]
fn reading_ends_at_the_first_task_that_is_too_many() {
    let most = coordinator_core::limits::TASKS_PER_RUN;
    // What comes behind is never looked at, and lists of other keys are not counted.
    let tasks = "x,".repeat(most + 1);
    let refused = checked(&format!("{{other: [{tasks}], tasks: [{tasks} ]]]")).unwrap_err();
    assert_eq!(refused.list.len(), 1);
    let message = &refused.list[0].message;
    assert!(message.contains("200000 tasks"), "{message}");
    let mut problems = Problems::new("p");
    let text = format!("tasks: [{}]", "x,".repeat(most));
    assert!(tree::read(text.as_bytes(), tree::VALUES_MAX, &mut problems).is_some());
}

#[test]
fn many_unknown_keys_cost_no_more_than_their_reading() {
    let keys: String = (0..100_000).map(|i| format!("key{i}: 1\n")).collect();
    let problems = checked(&keys).unwrap_err();
    assert_eq!(problems.list.len(), PROBLEMS_MAX);
}

#[test]
fn defaults_fill_what_a_task_leaves_open() {
    let lowered = lowered(
        "
name: demo
repo: .
max_parallel: 4
agents: { mine: { kind: acp, command: [my-agent, --acp] } }
defaults:
  agent: mine
  timeout: 45m
  retries: 2
  verify: [make check]
  labels: [linux]
  resources: { cpus: 2, memory: 64 MiB }
  env: { A: default, B: 1 }
tasks:
  - name: one
    prompt: do it
  - name: two
    depends_on: [one]
    paths: [src/db]
    run: true
    timeout: 90s
    idle_timeout: 30s
    verify: []
    verify_timeout: 5m
    priority: -3
    labels: [gpu=a100]
    resources: { gpus: 1 }
    pool: slurm
    env: { A: own }
integrate: { verify: [make all], verify_timeout: 2h }
",
    );
    insta::assert_debug_snapshot!(lowered);
}

#[test]
fn a_run_without_a_repository_is_not_integrated() {
    let lowered = lowered("tasks: [{name: a, run: echo}]");
    assert_eq!(lowered.integrate, None);
    assert_eq!(lowered.spec.integrate, None);
    assert_eq!(&*lowered.spec.plan, "plan");
}

#[test]
fn integration_can_be_switched_off() {
    let with = |line: &str| lowered(&format!("repo: .\n{line}\ntasks: [{{name: a, run: echo}}]"));
    assert!(with("").integrate.is_some());
    assert!(with("integrate: true").integrate.is_some());
    assert!(with("integrate: false").integrate.is_none());
}

#[test]
fn lowering_wants_a_base_exactly_when_there_is_a_repository() {
    let with = plan("repo: .\ntasks: [{name: a, run: echo}]");
    let refused = with.lower(&Admission::default());
    assert_eq!(refused.unwrap_err(), LowerError::SourceMissing);
    let without = plan("tasks: [{name: a, run: echo}]");
    let admission = Admission {
        source: Some(Source {
            repository: "app".into(),
            base: CommitId::new("00"),
        }),
        ..Admission::default()
    };
    let refused = without.lower(&admission);
    assert_eq!(refused.unwrap_err(), LowerError::SourceUnwanted);
}

#[test]
fn agents_of_the_configuration_are_known() {
    let agents = BTreeMap::from([(
        "house".to_owned(),
        AgentDefinition {
            kind: AgentKind::Claude,
            command: Some(vec!["house-claude".to_owned()]),
            env: BTreeMap::new(),
        },
    )]);
    let text = b"tasks: [{name: a, agent: house, prompt: x}]";
    let plan = parse("p.yaml", text, &agents).unwrap();
    let lowered = plan.lower(&Admission::default()).unwrap();
    assert_eq!(lowered.tasks[0].agent.kind, AgentKind::Claude);
    assert_eq!(lowered.tasks[0].agent.command, ["house-claude"]);
}

#[test]
fn the_digest_is_that_of_the_meaning() {
    let digest = |text: &str| lowered(text).digest;
    let plain = digest(
        "name: x\nrepo: .\ntasks:\n- {name: a, run: echo, timeout: 60s, labels: [p, q]}\n\
         - {name: b, run: echo, timeout: 60s, labels: [p, q], depends_on: [a]}\n",
    );
    let written_otherwise = "
# A comment.
tasks:
  - run: echo
    labels: [q, p]
    name: 'a'
  - depends_on: [\"a\"]
    name: b
    agent: command
    run: \"echo\"
repo: .
defaults: { timeout: 1m, labels: [p, q], retries: 0 }
name: x
";
    assert_eq!(digest(written_otherwise), plain);
    for (from, to) in [
        ("repo: .", "repo: ./x"),
        ("name: x", "name: y"),
        ("timeout: 1m", "timeout: 2m"),
        ("timeout: 1m", "timeout: 1m, expected: 30s"),
        ("retries: 0", "retries: 1"),
        ("run: echo", "run: echo 1"),
        ("[p, q]", "[p]"),
        ("depends_on: [\"a\"]", "depends_on: []"),
        ("name: x", "name: x\nintegrate: false"),
        ("name: x", "name: x\nbase: main"),
        ("name: x", "name: x\nmax_parallel: 3"),
    ] {
        assert_ne!(
            digest(&written_otherwise.replacen(from, to, 1)),
            plain,
            "{to}"
        );
    }
}

#[test]
fn task_documents_survive_json() {
    for task in lowered("repo: .\ntasks: [{name: a, run: echo, verify: [x], env: {A: b}}]").tasks {
        let json = serde_json::to_string(&task).unwrap();
        assert_eq!(serde_json::from_str::<TaskDocument>(&json).unwrap(), task);
    }
}

#[test]
fn a_codex_par_file_runs_unchanged() {
    let text = "
tasks:
  - name: api
    cwd: /srv/app/services/api
    prompt: Add the endpoint.
    sandbox: read-write
    full_auto: true
    model: gpt-5
    colour: blue
    config_overrides: [a=1]
  - name: review
    cwd: /srv/app/./services/x/../web
    kind: review
    prompt: ''
    uncommitted: true
    in_place: true
    depends_on: [api]
";
    let plan = plan(text);
    let location = Repo::Location("/srv/app/services".to_owned());
    assert_eq!(plan.document.repo, Some(location));
    let admission = Admission {
        source: Some(Source {
            repository: "app".into(),
            base: CommitId::new("00"),
        }),
        folder_prefix: "services/",
        ..Admission::default()
    };
    insta::assert_snapshot!(plan.warnings);
    insta::assert_debug_snapshot!(plan.lower(&admission).unwrap().tasks);
}

#[test]
fn urls_are_told_from_paths() {
    let url = |text: &str| Repo::Location(text.to_owned()).is_url();
    for location in [
        "https://x.org/a.git",
        "file:///a",
        "git@x.org:a/b.git",
        "host:a",
    ] {
        assert!(url(location), "{location}");
    }
    for location in [".", "../a", "/srv/a:b", "./a:b", "a/b"] {
        assert!(!url(location), "{location}");
    }
}

#[test]
fn json_is_a_plan_too() {
    let plan =
        plan(r#"{"name": "j", "tasks": [{"name": "a", "run": "echo \"x\"", "retries": 1}]}"#);
    assert_eq!(plan.document.tasks[0].run.as_deref(), Some("echo \"x\""));
}

#[test]
fn aliases_share_values() {
    let plan =
        plan("tasks:\n- {name: a, run: echo, env: &e {A: 1}}\n- {name: b, run: echo, env: *e}");
    assert_eq!(
        plan.document.tasks[0].settings.env,
        plan.document.tasks[1].settings.env
    );
}

#[test]
fn the_examples_are_sound_and_fit_the_schema() {
    let examples = examples();
    assert!(examples.len() >= 6);
    for path in examples {
        let plan = read(&path, &BTreeMap::new()).unwrap_or_else(|error| panic!("{error}"));
        assert!(plan.warnings.list.is_empty());
        assert!(!Graph::of(&plan).critical_path().is_empty());
        // The schema is about Muster's own plans.
        if path.ends_with("codex-par.yaml") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        if let Err(reason) = schema::tests::accepts(&bytes) {
            panic!("{}: {reason}", path.display());
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse("p", &bytes, &BTreeMap::new());
    }

    #[test]
    fn arbitrary_yaml_never_panics(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "tasks:", "\n", "\n  ", "\n    ", "- ", "name: ", "a", "run: ", "&x ", "*x", "[", "]",
                "{", "}", ", ", ": ", "\"", "'", "|", ">", "? ", "!!str ", "!t ", "#", "---", "\t",
                "depends_on: ", "paths: ", "timeout: ", "1h", "4 GiB", "memory: ", "resources: ",
                "cwd: ", "prompt: ", "env: ", "repo: ", "integrate: ", "verify: ", "é", "\0", "~",
                "../", "9999999999999999999", "-1", "agents: ", "kind: ", "acp", "defaults: ", "<<: ",
            ]),
            0..60,
        )
    ) {
        if let Err(problems) = checked(&parts.concat()) {
            prop_assert!(!problems.list.is_empty());
            let _ = problems.to_string();
        }
    }

    #[test]
    fn mutilated_examples_never_panic(cut in 0_usize..3_000, byte in any::<u8>()) {
        let mut bytes = include_bytes!("../../../tests/plans/first.yaml").to_vec();
        let place = cut % bytes.len();
        bytes[place] = byte;
        let _ = parse("p", &bytes, &BTreeMap::new());
        bytes.truncate(place);
        let _ = parse("p", &bytes, &BTreeMap::new());
    }
}

#[test]
fn declared_agents_are_looked_for_unless_their_tasks_have_a_path_of_their_own() {
    let configured = [(
        "theirs".to_owned(),
        AgentDefinition {
            kind: AgentKind::Codex,
            command: None,
            env: BTreeMap::new(),
        },
    )]
    .into();
    let text = "
agents:
  mine: {kind: acp, command: [opencode, acp]}
  apart: {kind: acp, command: x, env: {PATH: /opt/bin}}
tasks:
  - {name: a, agent: mine, prompt: x}
  - {name: b, agent: theirs, prompt: x}
  - {name: c, agent: codex, prompt: x}
  - {name: d, agent: apart, prompt: x}
  - {name: e, agent: mine, prompt: x, env: {PATH: {env: OTHER_PATH}}}
  - {name: f, run: echo}
  - {name: g, agent: acp, prompt: x}
  - {name: h, agent: acp, prompt: x, env: {PATH: /opt/bin}}
";
    let plan = parse("p", text.as_bytes(), &configured).unwrap();
    let lowered = plan.lower(&Admission::default()).unwrap();
    let declared = lowered.spec.tasks.iter().map(|task| {
        let requirement = &task.profile.requirement;
        let declared = requirement.declared.as_ref();
        declared
            .map(|declared| format!("{} {} {:?}", declared.kind, declared.name, declared.program))
    });
    let declared: Vec<_> = declared.collect();
    let expected = [
        Some("acp mine \"opencode\"".to_owned()),
        Some("codex theirs \"\"".to_owned()),
        None,
        None,
        None,
        None,
        // Nobody has a program for it unless a worker's operator says so.
        Some("acp acp \"\"".to_owned()),
        Some("acp acp \"\"".to_owned()),
    ];
    assert_eq!(declared, expected);
}

#[test]
fn of_equal_names_the_plans_agent_comes_before_the_configured_one() {
    let configured = |command: &str| {
        let agent = AgentDefinition {
            kind: AgentKind::Acp,
            command: Some(vec![command.to_owned()]),
            env: BTreeMap::new(),
        };
        [("mine".to_owned(), agent)].into()
    };
    let text =
        "agents: {mine: {kind: acp, command: ours}}\ntasks: [{name: a, agent: mine, prompt: x}]";
    let plan = parse("p", text.as_bytes(), &configured("theirs")).unwrap();
    let lowered = plan.lower(&Admission::default()).unwrap();
    assert_eq!(lowered.tasks[0].agent.command, ["ours"]);
}

#[test]
fn rules_that_no_command_fits_are_refused_each_at_its_place() {
    let text = "
defaults:
  approvals: {allow: [ls, 'a; b', \"git log 'x'\"]}
tasks:
- name: a
  agent: claude
  prompt: x
  approvals:
    deny:
    - ./y.sh
    - curl x | sh
    - rm 'a b'
    - |
      rm -rf
";
    let problems = checked(text).unwrap_err();
    insta::assert_snapshot!(shown(text, &problems), @r#"
      |   approvals: {allow: [ls, 'a; b', "git log 'x'"]}
      |                           ^
    3:27: defaults: `allow`: no command fits "a; b", for its ";"
      hint: a rule is the plain words of one command, such as `git push`; write one rule for each
      |     - curl x | sh
      |       ^
    11:7: task "a": `deny`: no command fits "curl x | sh", for its "|"
      hint: a rule is the plain words of one command, such as `git push`; write one rule for each
      |     - rm 'a b'
      |       ^
    12:7: task "a": `deny`: no command fits "rm 'a b'", for its "'"
      hint: a rule is the plain words of one command, such as `git push`; write one rule for each
    "#);
}
