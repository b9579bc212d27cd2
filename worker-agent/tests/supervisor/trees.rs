//! Nothing of a tree outlives its report.

use std::time::Duration;

use worker_agent::clock;
use worker_agent::supervisor::{
    CgroupUse, Containment, End, Event, ExitStatus, MARK_VARIABLE, StopCause,
};

use super::bench::{Bench, alive, ended, event, started, until, until_ended};

fn stopped(by: StopCause, status: ExitStatus) -> End {
    End::Stopped {
        by,
        status: Some(status),
    }
}

#[tokio::test]
async fn an_agent_that_hears_term_ends_in_its_own_way() {
    let bench = Bench::new();
    let script =
        "trap 'echo saved > saved; exit 7' TERM; echo > ready; while :; do sleep 0.05; done";
    let process = bench.spawn(bench.launch(script)).await;
    bench.told("ready");
    process.stop();
    let report = ended(process).await;
    assert_eq!(report.end, stopped(StopCause::Request, ExitStatus::Code(7)));
    assert_eq!(bench.told("saved"), "saved");
}

#[tokio::test]
async fn an_agent_that_ignores_term_is_killed_after_the_grace() {
    let bench = Bench::new();
    let script = "trap '' TERM; sleep 600 & echo $! > child; while :; do sleep 600; done";
    let mut launch = bench.launch(script);
    launch.term_grace_ms = 300;
    let process = bench.spawn(launch).await;
    let child = bench.pid("child");
    let asked = clock::now();
    process.stop();
    let report = ended(process).await;
    assert_eq!(
        report.end,
        stopped(StopCause::Request, ExitStatus::Signal(9))
    );
    assert!(clock::now().since(asked) >= Duration::from_millis(300));
    assert!(!alive(child));
}

#[tokio::test]
async fn an_agent_that_stopped_itself_hears_term() {
    let bench = Bench::new();
    let script = "trap 'exit 8' TERM; kill -STOP $$; while :; do sleep 0.05; done";
    let mut process = bench.spawn(bench.launch(script)).await;
    let pid = started(&mut process).await;
    until("the agent to stop", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") T ").then_some(())
    });
    process.stop();
    let report = ended(process).await;
    assert_eq!(report.end, stopped(StopCause::Request, ExitStatus::Code(8)));
}

#[tokio::test]
async fn a_daemon_left_behind_is_ended_with_the_agent() {
    let bench = Bench::new();
    // Two forks, a session of its own, no environment, no open pipe, and deaf to TERM.
    let script = "\
        (setsid env -i /bin/sh -c 'trap \"\" TERM HUP; echo $$ > daemon; \
            while :; do /bin/sleep 600; done' </dev/null >/dev/null 2>&1 &) ; \
        while ! [ -s daemon ]; do sleep 0.01; done; exit 5";
    let mut launch = bench.launch(script);
    launch.term_grace_ms = 100;
    let process = bench.spawn(launch).await;
    let report = ended(process).await;
    assert_eq!(report.end, End::Exited { code: 5 });
    assert!(!alive(bench.pid("daemon")));
}

#[tokio::test]
async fn the_main_process_is_told_to_have_exited_while_its_daemon_still_runs() {
    let bench = Bench::new();
    let script = "\
        (setsid sh -c 'trap \"\" TERM; echo $$ > daemon; exec sleep 600' &) ; \
        while ! [ -s daemon ]; do sleep 0.01; done; exit 6";
    let mut process = bench.spawn(bench.launch(script)).await;
    let status = event(&mut process, |event| match event {
        Event::Exited(status) => Some(status),
        Event::Started { .. } | Event::Output { .. } => None,
        Event::Gone => panic!("the daemon has ten seconds"),
    })
    .await;
    assert_eq!(status, ExitStatus::Code(6));
    let daemon = bench.pid("daemon");
    assert!(alive(daemon));
    kill("-KILL", daemon);
    assert_eq!(ended(process).await.end, End::Exited { code: 6 });
}

#[tokio::test]
async fn a_storm_of_forks_is_ended() {
    let bench = Bench::new();
    // Each process starts the next one and ends, twenty at a time, for ever.
    std::fs::write(bench.dir().join("hop"), "trap '' TERM\nsh ./hop &\n").unwrap();
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
        sh ./hop & done; echo > ready; trap '' TERM; while :; do sleep 600; done";
    storm(&bench, script, CgroupUse::Never).await;
}

#[tokio::test]
async fn processes_that_flee_into_new_sessions_are_ended() {
    let bench = Bench::new();
    std::fs::write(bench.dir().join("hop"), "trap '' TERM\nsetsid sh ./hop &\n").unwrap();
    let script = "for i in 1 2 3 4 5; do sh ./hop & done; echo > ready; exit 0";
    storm(&bench, script, CgroupUse::Never).await;
}

#[tokio::test]
async fn processes_that_flee_into_new_sessions_are_ended_by_a_cgroup_too() {
    let bench = Bench::new();
    std::fs::write(bench.dir().join("hop"), "trap '' TERM\nsetsid sh ./hop &\n").unwrap();
    let script = "for i in 1 2 3 4 5; do sh ./hop & done; echo > ready; exit 0";
    storm(&bench, script, CgroupUse::IfPossible).await;
}

/// Runs a script that must be killed, and looks whether anything with its mark is left.
async fn storm(bench: &Bench, script: &str, cgroup: CgroupUse) {
    let mut launch = bench.launch(script);
    launch.term_grace_ms = 100;
    launch.cgroup = cgroup;
    let variable = format!("{MARK_VARIABLE}={}", launch.mark.as_str());
    let process = bench.spawn(launch).await;
    bench.told("ready");
    process.stop();
    ended(process).await;
    assert_eq!(with_variable(&variable), Vec::<String>::new());
}

/// Lists the processes whose environment has the entry.
pub(crate) fn with_variable(entry: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let environ = std::fs::read(process.path().join("environ")).unwrap_or_default();
        if environ.split(|&b| b == 0).any(|e| e == entry.as_bytes()) {
            found.push(process.file_name().into_string().unwrap());
        }
    }
    found
}

pub(crate) fn kill(signal: &str, pid: i32) {
    let pid = pid.to_string();
    assert!(
        std::process::Command::new("kill")
            .args([signal, &pid])
            .status()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn a_marked_process_that_is_nobodys_descendant_is_ended() {
    let bench = Bench::new();
    let mut launch = bench.launch("echo > ready; while :; do sleep 600; done");
    launch.term_grace_ms = 100;
    // As if the agent had asked a service of the host to start it.
    let mut foreign = std::process::Command::new("sh")
        .args(["-c", "trap '' TERM; echo > foreign; exec sleep 600"])
        .current_dir(bench.dir())
        .env(MARK_VARIABLE, launch.mark.as_str())
        .spawn()
        .unwrap();
    let process = bench.spawn(launch).await;
    bench.told("ready");
    bench.told("foreign");
    process.stop();
    ended(process).await;
    until_ended(i32::try_from(foreign.id()).unwrap());
    foreign.wait().unwrap();
}

#[tokio::test]
async fn a_tree_has_a_cgroup_where_the_host_allows_it_and_leaves_none() {
    let bench = Bench::new();
    let mut launch = bench.launch("cat /proc/self/cgroup; mkdir below 2>/dev/null; exit 0");
    launch.cgroup = CgroupUse::IfPossible;
    let name = format!("muster-{}", launch.mark.as_str());
    let report = ended(bench.spawn(launch).await).await;
    let seen = String::from_utf8(bench.stored(worker_agent::supervisor::Stream::Stdout)).unwrap();
    assert_eq!(
        seen.contains(&name),
        report.containment == Containment::Cgroup,
        "{seen}"
    );
    if let Ok(path) = std::fs::read_to_string(bench.dir().join("cgroup")) {
        assert_eq!(report.containment, Containment::Cgroup);
        until("the cgroup to be removed", || {
            (!std::path::Path::new(&path).exists()).then_some(())
        });
    }
}
