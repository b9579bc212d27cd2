//! How an agent ends by itself, and what is said about it.

use worker_agent::supervisor::{End, Event, ExecFailure, ExitStatus, Stream};

use super::bench::{Bench, ended, event};

#[tokio::test]
async fn an_exit_code_is_reported() {
    assert_eq!(
        Bench::new().run("exit 0").await.end,
        End::Exited { code: 0 }
    );
    assert_eq!(
        Bench::new().run("exit 127").await.end,
        End::Exited { code: 127 }
    );
}

#[tokio::test]
async fn a_signal_is_reported() {
    assert_eq!(
        Bench::new().run("kill -SEGV $$").await.end,
        End::Signalled { signal: 11 }
    );
}

#[tokio::test]
async fn events_come_in_order() {
    let bench = Bench::new();
    let mut process = bench.spawn(bench.launch("printf hello; exit 3")).await;
    let mut events = Vec::new();
    while let Some(event) = process.next_event().await {
        events.push(event);
    }
    let [Event::Started { pid, .. }, rest @ ..] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(*pid > 0);
    assert!(rest.contains(&Event::Output { bytes: 5 }), "{events:?}");
    assert!(
        rest.contains(&Event::Exited(ExitStatus::Code(3))),
        "{events:?}"
    );
    assert_eq!(rest.last(), Some(&Event::Gone), "{events:?}");
    assert_eq!(ended(process).await.end, End::Exited { code: 3 });
}

#[tokio::test]
async fn a_program_that_is_not_there_is_not_an_exit_code() {
    let bench = Bench::new();
    for program in ["muster-no-such-program", "/no/such/program"] {
        let bench = Bench::new();
        let mut launch = bench.launch("");
        launch.argv = vec![program.to_owned()];
        let report = ended(bench.spawn(launch).await).await;
        assert_eq!(
            report.end,
            End::ExecFailed {
                reason: ExecFailure::NotFound
            }
        );
    }
    let mut launch = bench.launch("");
    launch.argv = vec!["/etc/passwd".to_owned()];
    let mut process = bench.spawn(launch).await;
    event(&mut process, |event| match event {
        Event::Gone => Some(()),
        Event::Output { .. } => None,
        Event::Started { .. } | Event::Exited(_) => panic!("it did not run: {event:?}"),
    })
    .await;
    let report = ended(process).await;
    assert_eq!(
        report.end,
        End::ExecFailed {
            reason: ExecFailure::PermissionDenied
        }
    );
}

#[tokio::test]
async fn a_working_folder_that_is_not_there_is_named_as_the_reason() {
    let bench = Bench::new();
    let mut launch = bench.launch("true");
    launch.cwd = "/no/such/folder".into();
    let report = ended(bench.spawn(launch).await).await;
    assert!(
        matches!(
            &report.end,
            End::ExecFailed { reason: ExecFailure::WorkingFolder { message } }
                if message.contains("No such file")
        ),
        "{report:?}"
    );
}

#[tokio::test]
async fn the_agent_sees_its_environment_its_folder_and_nothing_else() {
    let bench = Bench::new();
    let mut launch = bench.launch("");
    launch.argv = vec!["env".to_owned()];
    launch.env.insert("GREETING".into(), "hello world".into());
    let mark = launch.mark.as_str().to_owned();
    let report = ended(bench.spawn(launch).await).await;
    assert_eq!(report.end, End::Exited { code: 0 });
    let text = String::from_utf8(bench.stored(Stream::Stdout)).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let marked = format!("MUSTER_MARK={mark}");
    assert_eq!(
        lines,
        ["GREETING=hello world", &marked, "PATH=/usr/bin:/bin"]
    );

    let bench = Bench::new();
    let script = "pwd -P; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l";
    bench.run(script).await;
    let text = String::from_utf8(bench.stored(Stream::Stdout)).unwrap();
    let folder = bench.dir().canonicalize().unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines[..2], [folder.to_str().unwrap(), "/dev/null"]);
}
