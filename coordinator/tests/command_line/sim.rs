//! `coordinator sim`: worlds in the program as it is shipped.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::last_json;

/// Generous: a whole test machine may be at work beside this.
const PATIENCE: Duration = Duration::from_secs(60);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command.arg("sim").args(arguments).env_remove("MUSTER_LOG");
    command
}

fn sim(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&super::text(path)).unwrap()
}

#[test]
fn seeds_are_the_same_worlds_in_one_thread_and_in_two() {
    let one = sim(&["--seeds", "0..24", "--threads", "1", "--json"]);
    let two = sim(&["--seeds", "0..24", "--threads", "2", "--json"]);
    assert_eq!(one.status.code(), Some(0), "{one:?}");
    let (one, two) = (last_json(&one), last_json(&two));
    assert_eq!(one["worlds"], 24);
    assert_eq!(one["violations"], Value::Array(vec![]));
    assert!(one["worlds_per_second"].as_f64().unwrap() > 0.0);
    for same in ["digest", "steps", "simulated_ms", "counts", "seeds", "left"] {
        assert_eq!(one[same], two[same], "{same}");
    }
}

#[test]
fn a_story_is_the_same_to_the_byte_each_time_it_is_told() {
    let first = sim(&["--seed", "5", "--story"]);
    assert_eq!(first.status.code(), Some(0), "{first:?}");
    let (out, _) = said(&first);
    assert!(out.contains("seed 5: no violation"), "{out}");
    let lines = |out: &str| {
        let story = out.lines().take_while(|line| !line.starts_with("seed 5:"));
        story.map(str::to_owned).collect::<Vec<_>>()
    };
    let again = said(&sim(&["--seed", "5", "--story"])).0;
    assert!(!lines(&out).is_empty());
    assert_eq!(lines(&out), lines(&again));
}

#[test]
fn seeds_that_are_done_are_not_run_again_and_what_failed_stays_failed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("seeds.json");
    let path = file.to_str().unwrap();
    let first = sim(&["--seeds", "3..9", "--progress", path, "--json"]);
    assert_eq!(last_json(&first)["worlds"], 6);
    assert_eq!(read(&file)["done"], serde_json::json!([[3, 9]]));
    let more = sim(&["--seeds", "0..12", "--progress", path, "--json"]);
    assert_eq!(last_json(&more)["worlds"], 6);
    assert_eq!(read(&file)["done"], serde_json::json!([[0, 12]]));

    let mut told = read(&file);
    let failed =
        serde_json::json!([{ "seed": 4, "at_ms": 1, "rule": "one winner", "what": "two" }]);
    told["failed"] = failed;
    std::fs::write(&file, told.to_string()).unwrap();
    let (out, _) = said(&sim(&["--seeds", "5..12", "--progress", path]));
    assert!(
        out.contains("no violation"),
        "the seed that failed is not asked for: {out}"
    );
    let failing = sim(&["--seeds", "0..12", "--progress", path]);
    assert_eq!(failing.status.code(), Some(1), "{failing:?}");
    let (out, _) = said(&failing);
    assert!(
        out.contains("one winner") && out.contains("coordinator sim --seed 4 --story"),
        "{out}"
    );

    told["simulator"] = "0.0.1-feed".into();
    std::fs::write(&file, told.to_string()).unwrap();
    let foreign = sim(&["--seeds", "0..12", "--progress", path]);
    assert_eq!(foreign.status.code(), Some(2), "{foreign:?}");
    let (_, err) = said(&foreign);
    assert!(
        err.contains("0.0.1-feed") && err.contains("delete this one"),
        "{err}"
    );
}

#[test]
fn what_cannot_be_run_is_refused_with_the_way_out() {
    for (arguments, part) in [
        (&["--seeds", "9..2"][..], "2..9 would be a range"),
        (&["--seeds", "4..4"], "4..5 holds one"),
        (&["--seeds", "x"], "two numbers such as"),
        (&["--story"], "`--seed N`"),
        (&["--seed", "1", "--seeds", "0..9"], "cannot be used with"),
        (&["--scenario", "no-such-file"], "no-such-file"),
        (&["--threads", "0"], "--threads"),
    ] {
        let refused = sim(arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {refused:?}");
        let (out, err) = said(&refused);
        assert!(out.is_empty() && err.contains(part), "{arguments:?}: {err}");
    }
}

#[test]
fn pairs_that_few_seeds_do_not_reach_are_named_and_make_it_fail() {
    let output = sim(&["--seeds", "0..2", "--coverage"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (out, _) = said(&output);
    assert!(out.contains("never reached, without a reason:"), "{out}");
    let json = last_json(&sim(&["--seeds", "0..2", "--coverage", "--json"]));
    let table = &json["coverage"];
    let unreached = table["unreached"].as_array().unwrap().len() as u64;
    let sum = table["reached"].as_u64().unwrap() + table["excused"].as_u64().unwrap() + unreached;
    assert_eq!(Some(sum), table["pairs"].as_u64());
}

#[test]
fn worlds_that_failed_once_are_run_by_users_too() {
    let output = sim(&["--regressions", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(last_json(&output)["violations"], Value::Array(vec![]));
}

#[test]
fn ctrl_c_says_what_was_done_and_the_file_knows_where_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("seeds.json");
    let all = format!("0..{}", u64::MAX);
    let arguments = [
        "--seeds",
        &all,
        "--threads",
        "1",
        "--progress",
        file.to_str().unwrap(),
    ];
    let child = command(&arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !file.exists() {
        assert!(begin.elapsed() < PATIENCE, "nothing was written");
        std::thread::yield_now();
    }
    let pid = i32::try_from(child.id()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let (out, err) = said(&output);
    assert!(out.contains("worlds/s"), "{out}");
    assert!(err.contains("the same command goes on"), "{err}");
    let done = read(&file)["done"].clone();
    let end = done[0][1].as_u64().unwrap();
    assert!(done[0][0] == 0 && end > 0, "{done}");
    let told = format!("{} seeds left", u64::MAX - end);
    assert!(err.contains(&told), "{err}");
}
