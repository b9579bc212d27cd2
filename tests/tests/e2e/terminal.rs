//! The live table in a real terminal: keys, sizes, broken connections, and what it leaves behind.

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::cluster::Cluster;
use muster_tests::files::Gates;
use muster_tests::terminal::Terminal;
use muster_tests::wait::SOON;
use rustix::process::Signal;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "watch_in_a_terminal_scrolls_shows_details_and_follows_the_size_of_its_window",
        looks_around,
    ),
    (
        "watch_in_a_terminal_says_that_its_coordinator_is_away_and_goes_on_when_it_is_back",
        survives_a_restart,
    ),
    (
        "watch_gives_the_terminal_back_however_it_ends",
        gives_it_back,
    ),
];

/// Lines that the task at work has said.
const WORDS: usize = 90;
const UP: &str = "\x1b[A";
const DOWN: &str = "\x1b[B";
const END: &str = "\x1b[F";
const PAGE_UP: &str = "\x1b[5~";

/// Starts a run of thirty tasks, of which the first is at work and has said much.
fn at_work(cluster: &mut Cluster) -> Result<(Gates, String, muster_tests::Process)> {
    let gates = Gates::new(cluster.folder())?;
    cluster.serve()?;
    let worker = cluster.start_worker("w", 1)?;
    let mut text = format!(
        "name: many\ndefaults: {{ timeout: 10m }}\ntasks:\n  - name: first\n    run: |\n      \
         for n in $(seq {WORDS}); do echo word $n of many; done\n      {}\n",
        gates.wait("first")
    );
    for number in 2..=30 {
        text.push_str(&format!(
            "  - {{ name: later-{number:02}, run: 'true', depends_on: [first] }}\n"
        ));
    }
    let run = cluster.submit(&cluster.write_plan("many.yaml", &text)?)?;
    Ok((gates, run, worker))
}

fn watch(cluster: &Cluster, run: &str, columns: u16, lines: u16) -> Result<Terminal> {
    Terminal::start(&cluster.call(["watch", run]), columns, lines)
}

fn shows(lines: &[String], what: &str) -> bool {
    lines.iter().any(|line| line.contains(what))
}

/// Tells whether the whole window is used and nothing is cut in a way that hides the table.
fn fills(lines: &[String], height: usize) -> bool {
    let last = lines.last().is_some_and(|line| line.contains("q quit"));
    lines.len() == height && last && shows(lines, "TASK")
}

fn looks_around(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (_gates, run, _worker) = at_work(cluster)?;
        let mut terminal = watch(cluster, &run, 80, 24)?;
        let running = |lines: &[String]| {
            lines
                .iter()
                .any(|line| line.starts_with("first") && line.contains("running"))
        };
        let seen = terminal.until("the table is there", SOON, |lines| {
            fills(lines, 24) && running(lines) && shows(lines, "word 90 of many")
        })?;
        ensure!(terminal.is_taken(), "it drew on the person's own screen");
        ensure!(seen[0].starts_with(&run), "{seen:#?}");
        ensure!(!shows(&seen, "later-30"), "{seen:#?}");

        terminal.types(END)?;
        terminal.until("the end of the list", SOON, |lines| {
            shows(lines, "later-30") && !running(lines)
        })?;
        for _ in 0..29 {
            terminal.types(UP)?;
        }
        terminal.until("its beginning", SOON, |lines| running(lines))?;
        terminal.types(DOWN)?;
        terminal.types("\r")?;
        terminal.until("the second task's details", SOON, |lines| {
            shows(lines, "── later-02 ") && shows(lines, "after      first")
        })?;
        terminal.types(UP)?;
        terminal.until("the first task's details", SOON, |lines| {
            shows(lines, "── first ") && shows(lines, "│ word 90 of many")
        })?;
        terminal.types("\t")?;
        terminal.types(PAGE_UP)?;
        terminal.until("what was said before", SOON, |lines| {
            shows(lines, "lines below") && !shows(lines, "│ word 90 of many")
        })?;
        terminal.types("G\t")?;

        terminal.resize(120, 40)?;
        terminal.until("a large window is used", SOON, |lines| {
            fills(lines, 40)
                && shows(lines, "│ word 90 of many")
                && lines.iter().any(|line| line.chars().count() == 120)
        })?;
        terminal.resize(40, 10)?;
        let seen = terminal.until("a small window is used", SOON, |lines| {
            lines.len() == 10
                && lines.last().is_some_and(|line| line.starts_with("q quit"))
                && shows(lines, "first ")
        })?;
        ensure!(
            seen.iter().all(|line| line.chars().count() <= 40),
            "{seen:#?}"
        );
        // Nothing but a size: a window that is drawn over by someone is not seen as that.
        terminal.types("\x1b")?;
        terminal.until("the list alone", SOON, |lines| {
            fills(lines, 10) && !shows(lines, "── first")
        })?;
        terminal.resize(80, 24)?;
        terminal.until("the window of the beginning", SOON, |lines| {
            fills(lines, 24) && running(lines)
        })?;
        terminal.types("/later-2\r")?;
        terminal.until("only what fits the filter", SOON, |lines| {
            shows(lines, "later-29") && !running(lines) && !shows(lines, "later-30")
        })?;

        terminal.types("q")?;
        let status = terminal.left_in_order(SOON)?;
        ensure!(status.code() == Some(0), "{status}");
        let left = terminal.lines();
        ensure!(shows(&left, &format!("run {run} goes on")), "{left:#?}");
        ensure!(!shows(&left, "TASK"), "{left:#?}");
        Ok(())
    })
}

fn survives_a_restart(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (gates, run, _worker) = at_work(cluster)?;
        let mut terminal = watch(cluster, &run, 80, 24)?;
        terminal.until("the table is there", SOON, |lines| {
            fills(lines, 24) && shows(lines, "word 90 of many")
        })?;
        cluster.kill_coordinator()?;
        terminal.until("it says that it waits", SOON, |lines| shows(lines, "away"))?;
        // Keys and sizes go on meanwhile.
        terminal.types(END)?;
        terminal.until("the end of the list", SOON, |lines| {
            shows(lines, "later-30")
        })?;
        terminal.resize(100, 20)?;
        terminal.until("another size", SOON, |lines| fills(lines, 20))?;
        cluster.serve()?;
        terminal.until("it is connected again", SOON, |lines| {
            fills(lines, 20) && !shows(lines, "away")
        })?;
        gates.open("first")?;
        terminal.until("what happens now is seen", SOON, |lines| {
            shows(lines, "30 of 30 done") && shows(lines, "ended")
        })?;
        // Whoever has used a key looks on.
        terminal.types("q")?;
        let status = terminal.left_in_order(SOON)?;
        ensure!(status.code() == Some(0), "{status}");
        terminal.until("the summary", SOON, |lines| shows(lines, "succeeded"))?;
        Ok(())
    })
}

fn gives_it_back(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let (gates, run, _worker) = at_work(cluster)?;
        let open = || -> Result<Terminal> {
            let terminal = watch(cluster, &run, 80, 24)?;
            terminal.until("the table is there", SOON, |lines| fills(lines, 24))?;
            ensure!(terminal.is_taken(), "it drew on the person's own screen");
            ensure!(!terminal.is_as_before()?, "keys are shown while it draws");
            Ok(terminal)
        };
        let mut by_key = open()?;
        by_key.types("\x03")?;
        by_key.left_in_order(SOON).context("Ctrl-C")?;
        for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
            let mut terminal = open()?;
            terminal.signal(signal)?;
            let status = terminal
                .left_in_order(SOON)
                .with_context(|| format!("{signal:?}"))?;
            ensure!(status.code() == Some(130), "{signal:?}: {status}");
        }
        let mut until_the_end = open()?;
        gates.open("first")?;
        let status = until_the_end.left_in_order(SOON).context("the run's end")?;
        ensure!(status.code() == Some(0), "{status}");
        // What a program wrote last may be read after it has ended.
        until_the_end.until("the summary", SOON, |lines| shows(lines, "succeeded"))?;
        Ok(())
    })
}
