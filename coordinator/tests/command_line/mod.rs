//! The program as a person uses it: real processes, real git, real workers.

mod sim;
mod wrong;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A home and a repository to work on.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(world.repository()).unwrap();
        world.write("app/a.txt", "base\n");
        world.git(&["init", "--quiet", "--initial-branch=main"]);
        world.git(&["config", "user.name", "Ann"]);
        world.git(&["config", "user.email", "ann@example.org"]);
        world.git(&["add", "."]);
        world.git(&["commit", "--quiet", "-m", "base"]);
        world
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("app")
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(path);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(self.repository())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn coordinator(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_coordinator"))
            .current_dir(self.repository())
            .env("MUSTER_HOME", self.folder.path().join("home"))
            .env_remove("MUSTER_LOG")
            .args(arguments)
            .output()
            .unwrap()
    }
}

fn last_json(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

const PLAN: &str = "\
name: small
repo: app
tasks:
  - name: one
    run: |
      echo made by one
      echo one > one.txt
    verify: [test -f one.txt]
  - name: two
    depends_on: [one]
    run: cat one.txt > two.txt
";

#[test]
fn a_run_is_made_read_and_landed_without_a_coordinator_being_kept() {
    let world = World::new();
    let plan = world.write("plan.yaml", PLAN);
    let ran = world.coordinator(&["run", plan.to_str().unwrap(), "--slots", "2", "--json"]);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    for line in String::from_utf8_lossy(&ran.stdout).lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    let result = last_json(&ran);
    let run = result["run"].as_str().unwrap();
    assert_eq!(result["state"], "succeeded");
    assert_eq!(result["tasks"]["succeeded"], 2);
    let commit = result["integration"]["commit"].as_str().unwrap();
    assert_eq!(
        world.git(&["for-each-ref", "--format=%(refname)"]),
        "refs/heads/main"
    );

    let status = world.coordinator(&["status", "@last", "--json"]);
    let whole = last_json(&status);
    for (key, value) in result.as_object().unwrap() {
        assert_eq!(whole.get(key), Some(value), "{key}");
    }
    let listed = last_json(&world.coordinator(&["status", "--json"]));
    assert_eq!(listed["runs"][0]["run"], run);
    let log = world.coordinator(&["logs", run, "one"]);
    assert_eq!(String::from_utf8_lossy(&log.stdout), "made by one\n");
    let explained = last_json(&world.coordinator(&["explain", run, "one", "--json"]));
    let placement = explained["placements"][0].as_str().unwrap();
    assert!(
        placement.starts_with("attempt 1: on ")
            && placement.ends_with("the only worker that had a slot free"),
        "{placement}"
    );
    let explained = last_json(&world.coordinator(&["explain", run, "--json"]));
    assert_eq!(explained["state"], "succeeded", "{explained}");
    let diff = world.coordinator(&["diff", "--stat"]);
    assert!(
        String::from_utf8_lossy(&diff.stdout).contains("two.txt"),
        "{diff:?}"
    );
    let watched = world.coordinator(&["watch", run, "--json"]);
    let numbers: Vec<u64> = String::from_utf8_lossy(&watched.stdout)
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["seq"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert!(numbers.is_sorted() && !numbers.is_empty(), "{numbers:?}");

    let landed = world.coordinator(&["land"]);
    assert_eq!(landed.status.code(), Some(0), "{landed:?}");
    assert_eq!(world.git(&["rev-parse", "main"]), commit);
    assert_eq!(text(&world.repository().join("two.txt")), "one\n");
}

#[test]
fn a_run_that_fails_says_so_with_its_exit_code() {
    let world = World::new();
    let plan = world.write(
        "plan.yaml",
        "tasks:\n  - name: bad\n    run: echo it went wrong; exit 3\n  - name: after\n    depends_on: [bad]\n    run: \"true\"\n",
    );
    let ran = world.coordinator(&["run", plan.to_str().unwrap()]);
    assert_eq!(ran.status.code(), Some(10), "{ran:?}");
    let summary = String::from_utf8(ran.stdout).unwrap();
    assert!(summary.contains("1 failed, 1 skipped"), "{summary}");
    assert!(summary.contains("it went wrong"), "{summary}");
    assert!(!summary.contains('\x1b'), "{summary}");
}

#[test]
fn a_wrong_plan_is_refused_with_its_place_and_leaves_no_trace() {
    let world = World::new();
    let plan = world.write("plan.yaml", "tasks:\n  - name: one\n    rum: x\n");
    for arguments in [&["plan", "check"][..], &["run"]] {
        let checked = world.coordinator(&[arguments, &[plan.to_str().unwrap()]].concat());
        assert_eq!(checked.status.code(), Some(2), "{checked:?}");
        let said = String::from_utf8(checked.stderr).unwrap();
        assert!(
            said.starts_with(&format!("{}:3:5: ", plan.display())),
            "{said}"
        );
    }
    assert!(!world.folder.path().join("home").exists());
}

#[test]
fn a_home_without_a_coordinator_is_an_answer() {
    let world = World::new();
    let status = world.coordinator(&["status"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    assert!(status.stdout.is_empty());
    let said = String::from_utf8(status.stderr).unwrap();
    assert!(
        said.contains("no coordinator runs") && said.contains("serve"),
        "{said}"
    );
    assert_eq!(world.coordinator(&["workers"]).status.code(), Some(4));
    assert!(!world.folder.path().join("home").exists());
}

#[test]
fn a_reader_that_goes_ends_the_program_quietly() {
    let world = World::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_coordinator"))
        .args(["plan", "schema"])
        .env("MUSTER_HOME", world.folder.path().join("home"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn help_and_completions_for_a_reader_that_takes_one_line_end_quietly() {
    use std::io::{BufRead as _, BufReader};
    for arguments in [&["help"][..], &["help", "run"], &["completions", "bash"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_coordinator"))
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        let mut reader = BufReader::with_capacity(16, child.stdout.take().unwrap());
        reader.read_line(&mut first).unwrap();
        drop(reader);
        let output = child.wait_with_output().unwrap();
        assert!(!first.is_empty(), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        assert!(!first.contains('\x1b'), "{first}");
    }
}

#[test]
fn a_plan_is_checked_for_programs() {
    let world = World::new();
    let plan = world.write("plan.yaml", "tasks:\n  - name: one\n    rum: x\n");
    let checked = world.coordinator(&["plan", "check", "--json", plan.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(2), "{checked:?}");
    let said = last_json(&checked);
    assert_eq!(said["right"], false);
    assert_eq!(said["problems"][0]["line"], 3);
    assert_eq!(said["problems"][0]["hints"][0], "did you mean `run`?");
    let plan = world.write("plan.yaml", PLAN);
    let checked = world.coordinator(&["plan", "check", "--json", plan.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert_eq!(last_json(&checked)["right"], true);
}

#[test]
fn a_token_is_written_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let file = world.folder.path().join("w.token");
    let created = world.coordinator(&[
        "token",
        "create",
        "--role",
        "worker",
        "--pool",
        "gpu",
        "--out",
        file.to_str().unwrap(),
    ]);
    assert_eq!(created.status.code(), Some(0), "{created:?}");
    assert!(created.stdout.is_empty());
    assert!(text(&file).starts_with("muster_"));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let listed = last_json(&world.coordinator(&["token", "list", "--json"]));
    let ours = |token: &&Value| token["pool"] == "gpu";
    let id = listed["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .find(ours)
        .unwrap()["id"]
        .clone();
    let revoked = world.coordinator(&["token", "revoke", id.as_str().unwrap()]);
    assert_eq!(revoked.status.code(), Some(0), "{revoked:?}");
}
