//! What cannot be typed.

use super::Scene;

#[test]
fn wrong_flags_are_explained() {
    let mut scene = Scene::new();
    scene.write("plan.yaml", "tasks: [{name: a, run: echo}]");
    for (title, arguments) in [
        ("no command", &[][..]),
        ("no such command", &["frobnicate"]),
        ("a misspelt command", &["statsu"]),
        ("a command within a command is missing", &["token"]),
        (
            "no such command within a command",
            &["plan", "chekc", "plan.yaml"],
        ),
        ("no plan", &["run"]),
        (
            "a plan and a run to go on with",
            &["run", "plan.yaml", "--resume"],
        ),
        ("a misspelt option", &["run", "plan.yaml", "--slot", "2"]),
        (
            "an option that is given twice",
            &["run", "plan.yaml", "--slots", "2", "--slots", "3"],
        ),
        ("no slots", &["run", "plan.yaml", "--slots", "0"]),
        (
            "more slots than any machine has",
            &["serve", "--slots", "999999999"],
        ),
        ("slots in words", &["run", "plan.yaml", "--slots", "many"]),
        ("listening nowhere", &["serve", "--listen", "here"]),
        ("listening at a port alone", &["serve", "--listen", "7733"]),
        (
            "serving elsewhere",
            &["serve", "--coordinator", "h:1", "--token-file", "t"],
        ),
        ("an answer to nothing", &["approve"]),
        (
            "a choice and all of the session",
            &["approve", "Q1", "--choice", "yes", "--session"],
        ),
        (
            "a rule and all of the session",
            &["approve", "Q1", "--rule", "--session"],
        ),
        ("a misspelt no", &["dney", "Q1"]),
        ("a no with a choice", &["deny", "Q1", "--choice", "no"]),
        ("a token for nobody", &["token", "create"]),
        (
            "a token for a role that is not there",
            &["token", "create", "--role", "king"],
        ),
        (
            "a token for a time that is none",
            &["token", "create", "--role", "worker", "--valid-for", "soon"],
        ),
        (
            "a pool for a viewer",
            &["token", "create", "--role", "viewer", "--pool", "gpu"],
        ),
        (
            "a token into a folder that is not there",
            &["token", "create", "--role", "worker", "--out", "no/w.token"],
        ),
        (
            "a token over something else",
            &["token", "create", "--role", "worker", "--out", "plan.yaml"],
        ),
        ("a token id that is none", &["token", "revoke", "7"]),
        ("colours sometimes", &["--color", "sometimes", "status"]),
        ("a shell that is not known", &["completions", "tcsh"]),
        ("a log of nothing", &["logs"]),
        ("an attempt of no task", &["diff", "--attempt", "1"]),
        (
            "an attempt that is no number",
            &["logs", "@last", "a", "--attempt", "first"],
        ),
        ("an event that is no number", &["watch", "--after", "x"]),
        ("too many words", &["status", "a", "b"]),
        ("an empty home", &["--home", "", "status"]),
        (
            "a token file without a coordinator",
            &["--token-file", "t", "status"],
        ),
        (
            "a coordinator without a token file",
            &["--coordinator", "h:1", "status"],
        ),
    ] {
        scene.wrong(title, arguments);
    }
    scene.wrong_with("nowhere to keep anything", &["status"], |command| {
        command.env_remove("HOME");
    });
    insta::assert_snapshot!(scene.told);
}
