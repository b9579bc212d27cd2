//! What is said of a run when it has ended, or when someone asks.

use std::fmt::Write as _;
use std::path::PathBuf;

use jiff::Timestamp;
use muster_proto::v1;

use super::context::Context;
use super::error::Exit;
use super::table::Table;
use super::{show, usage};
use crate::output::{Paint, harmless, one_line};

/// Lines of a failed task's output that are shown.
const OUTPUT_LINES: usize = 10;
/// Files of a conflict that are listed.
const FILES_MAX: usize = 10;
/// Failures that are shown whole; the table names the others.
const FAILURES_MAX: usize = 5;
/// Tasks that are listed; with more only those are that did not simply succeed.
const TASKS_MAX: usize = 60;

/// How to get at a run from where the person sits.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The run is of a folder, whose history lands in a repository of its own.
    pub(crate) of_folder: bool,
    /// The program and the options that lead to the coordinator, as they would be typed.
    pub(crate) program: String,
    /// The home whose hosted repositories can be read as folders.
    pub(crate) home: Option<PathBuf>,
}

impl Place {
    pub(crate) fn of(context: &Context) -> Self {
        Self {
            of_folder: false,
            program: context.program.clone(),
            home: context.local_home().map(ToOwned::to_owned),
        }
    }

    /// Gives the command that fetches the integrated branch.
    fn fetch(&self, run: &v1::Run) -> String {
        match (&self.home, &run.repository) {
            (Some(home), Some(repository)) => {
                let folder = crate::git::repository::folder(home).join(format!("{repository}.git"));
                format!(
                    "git fetch {} refs/heads/muster/{run}/integration:refs/remotes/muster/{run}/integration",
                    quoted(&folder.to_string_lossy()),
                    run = run.run
                )
            }
            _ => format!("{} fetch {}", self.program, run.run),
        }
    }
}

/// Tells what a run's end means for the exit code; a run that goes on is fine.
pub(crate) fn exit(run: &v1::Run) -> Exit {
    let conflict = run
        .integration
        .as_ref()
        .is_some_and(|integration| integration.state == "conflict");
    match run.state.as_str() {
        "failed" if conflict => Exit::IntegrationConflict,
        "failed" => Exit::RunFailed,
        "cancelled" => Exit::Cancelled,
        _ => Exit::Success,
    }
}

/// Writes everything that a person wants to know at the end: the tasks, what failed and where to
/// read on, the result and how to get it.
pub(crate) fn text(run: &v1::Run, place: &Place, now: Timestamp, paint: Paint) -> String {
    let mut text = headline(run, now, paint);
    text.push_str("\n\n");
    for line in tasks(run, now, paint) {
        let _ = writeln!(text, "  {line}");
    }
    failures(&mut text, run, place, paint);
    result(&mut text, run, place, paint);
    mirror(&mut text, run, paint);
    if let Some(used) = usage::line(run.usage.as_ref()) {
        let _ = writeln!(text, "{} {used}", paint.dim("used:"));
    }
    text.truncate(text.trim_end().len());
    text
}

fn headline(run: &v1::Run, now: Timestamp, paint: Paint) -> String {
    let submitted = show::time(run.submitted_at.as_ref()).unwrap_or(now);
    let until = show::time(run.ended_at.as_ref()).unwrap_or(now);
    let time = show::duration(show::between(submitted, until));
    let joint = if show::has_ended(run) { "in" } else { "for" };
    let counts: Vec<String> = show::counts(&run.tasks)
        .into_iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    format!(
        "{} {} {joint} {time}: {}",
        paint.bold(&format!("run {}", harmless(&run.run))),
        show::state(paint, &run.state),
        counts.join(", ")
    )
}

fn tasks(run: &v1::Run, now: Timestamp, paint: Paint) -> Vec<String> {
    let mut table =
        Table::new(&["TASK", "STATE", "TRIES", "TIME", ""].map(|heading| paint.dim(heading)));
    let few = run.tasks.len() <= TASKS_MAX;
    let interesting =
        |task: &&v1::Task| few || task.state != "succeeded" || task.attempts.len() > 1;
    for task in run.tasks.iter().filter(interesting).take(TASKS_MAX) {
        table.row(vec![
            harmless(&task.name).into_owned(),
            show::state(paint, &task.state),
            match task.attempts.len() {
                0 => "-".to_owned(),
                tries => tries.to_string(),
            },
            worked(task, now).map(show::duration).unwrap_or_default(),
            paint.dim(&remark(task)),
        ]);
    }
    let left_out = run.tasks.len() - table.len();
    if table.len() == 0 {
        return vec![format!(
            "all {} tasks succeeded, each at its first attempt",
            run.tasks.len()
        )];
    }
    let mut lines = table.lines(None);
    if left_out > 0 {
        lines.push(paint.dim(&format!("… and {left_out} more")));
    }
    lines
}

/// Gives the time from the first lease to the last end.
fn worked(task: &v1::Task, now: Timestamp) -> Option<std::time::Duration> {
    let first = show::time(task.attempts.first()?.granted_at.as_ref())?;
    let last = show::time(task.attempts.last()?.ended_at.as_ref()).unwrap_or(now);
    Some(show::between(first, last))
}

fn remark(task: &v1::Task) -> String {
    let last = task.attempts.last();
    match task.state.as_str() {
        "succeeded" if task.no_change => "no change".to_owned(),
        "succeeded" => task
            .commit
            .as_deref()
            .map(|commit| show::short(commit).to_owned())
            .unwrap_or_default(),
        "failed" => task
            .failure
            .as_ref()
            .map(|failure| failure.class.clone())
            .unwrap_or_default(),
        "leased" | "verifying" => last.map(placed).unwrap_or_default(),
        _ => one_line(&task.reason),
    }
}

fn placed(attempt: &v1::Attempt) -> String {
    let place = format!("on {}", one_line(&attempt.worker));
    match attempt.continues {
        0 => place,
        from if attempt.anew => format!("{place}, began anew with a summary of attempt {from}"),
        from => format!("{place}, goes on from attempt {from}"),
    }
}

fn failures(text: &mut String, run: &v1::Run, place: &Place, paint: Paint) {
    let failed: Vec<&v1::Task> = run
        .tasks
        .iter()
        .filter(|task| task.state == "failed")
        .collect();
    for task in failed.iter().take(FAILURES_MAX) {
        let Some(failure) = &task.failure else {
            continue;
        };
        let number = task.attempts.last().map(|attempt| attempt.number);
        let attempt = number.map(|number| format!(" (attempt {number})"));
        let _ = writeln!(
            text,
            "\n{} {}{}: {}",
            paint.red("failed:"),
            paint.bold(&harmless(&task.name)),
            attempt.unwrap_or_default(),
            one_line(&failure.message)
        );
        output_tail(text, &failure.output, paint);
        if let Some(number) = number {
            let verify = if failure.class.starts_with("verify") {
                " --verify"
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "  all of it: {} logs {} {} --attempt {number}{verify}",
                place.program, run.run, task.name
            );
        }
    }
    if failed.len() > FAILURES_MAX {
        let _ = writeln!(
            text,
            "\n{} more failed, as the table shows: {} explain {} TASK",
            failed.len() - FAILURES_MAX,
            place.program,
            run.run
        );
    }
    // A conflict is told in full with the result.
    let told = !failed.is_empty() || exit(run) == Exit::IntegrationConflict;
    if let Some(failure) = run.failure.as_ref().filter(|_| !told) {
        let _ = writeln!(
            text,
            "\n{} {}",
            paint.red("failed:"),
            one_line(&failure.message)
        );
        output_tail(text, &failure.output, paint);
        if failure.class.starts_with("verify") || failure.class.starts_with("final_verify") {
            let _ = writeln!(
                text,
                "  all of it: {} logs {} --verify",
                place.program, run.run
            );
        }
    }
}

fn output_tail(text: &mut String, output: &str, paint: Paint) {
    let lines: Vec<String> = output
        .lines()
        .map(one_line)
        .filter(|line| !line.is_empty())
        .collect();
    for line in lines.iter().skip(lines.len().saturating_sub(OUTPUT_LINES)) {
        let _ = writeln!(text, "  {} {line}", paint.dim("│"));
    }
}

fn result(text: &mut String, run: &v1::Run, place: &Place, paint: Paint) {
    let program = &place.program;
    let name = &run.run;
    let integration = run.integration.as_ref();
    match integration.map(|of| (of.state.as_str(), of)) {
        Some(("integrated", of)) => {
            let commit = of.commit.as_deref().unwrap_or_default();
            let _ = writeln!(
                text,
                "\n{} {} at {commit}",
                paint.green("integrated:"),
                paint.bold(&harmless(&of.branch)),
            );
            let _ = writeln!(text, "  look at it:  {program} diff {name}");
            let _ = writeln!(text, "  fetch it:    {}", place.fetch(run));
            let into = if place.of_folder {
                " --repo NEW_FOLDER"
            } else {
                ""
            };
            let _ = writeln!(text, "  land it:     {program} land {name}{into}");
        }
        Some(("conflict", of)) => {
            let _ = writeln!(
                text,
                "\n{} the work of {} does not merge",
                paint.red("conflict:"),
                of.conflict_tasks.join(" and ")
            );
            for file in of.conflict_files.iter().take(FILES_MAX) {
                let _ = writeln!(text, "  {}", one_line(file));
            }
            let more = of.conflict_files.len().saturating_sub(FILES_MAX);
            if more > 0 {
                // The list that the coordinator keeps has a bound of its own.
                let _ = writeln!(text, "  … and at least {more} more");
            }
            for task in &of.conflict_tasks {
                let _ = writeln!(
                    text,
                    "  fetch one:   {program} fetch {name} {}",
                    harmless(task)
                );
            }
            let _ = writeln!(
                text,
                "  merge them by hand, or let one depend on the other in the plan and run it again"
            );
        }
        _ => {}
    }
    let unfinished = run.tasks.iter().any(|task| task.state != "succeeded");
    if unfinished && matches!(run.state.as_str(), "failed" | "cancelled") {
        let _ = writeln!(
            text,
            "\ntry again what did not succeed: {program} retry {name}"
        );
    }
}

/// Says where the branches are copied to, and why they are not there yet.
fn mirror(text: &mut String, run: &v1::Run, paint: Paint) {
    let Some(mirror) = &run.mirror else {
        return;
    };
    let detail = match mirror.detail.as_str() {
        "" => String::new(),
        detail => format!(": {}", one_line(detail)),
    };
    let url = one_line(&mirror.url);
    let _ = match mirror.state.as_str() {
        "mirrored" => writeln!(text, "\n{} {url} has its branches", paint.green("mirror:")),
        "refused" => writeln!(text, "\n{} {url} refuses{detail}", paint.red("mirror:")),
        _ => writeln!(text, "\n{} {url} is behind{detail}", paint.red("mirror:")),
    };
}

/// Writes a word so that a shell reads it as it is.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+=:@%,".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned;

    fn shown(run: &v1::Run) -> String {
        text(run, &canned::place(), canned::at(20), Paint::new(false))
    }

    #[test]
    fn a_success_says_where_the_result_is_and_how_to_get_it() {
        insta::assert_snapshot!(shown(&canned::succeeded()));
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output_and_where_to_read_on() {
        insta::assert_snapshot!(shown(&canned::failed()));
    }

    #[test]
    fn a_conflict_names_tasks_and_files() {
        insta::assert_snapshot!(shown(&canned::conflicting()));
    }

    #[test]
    fn a_run_that_goes_on_is_shown_as_it_is() {
        insta::assert_snapshot!(shown(&canned::live()));
    }

    #[test]
    fn an_attempt_that_goes_on_says_whether_its_agent_remembers_the_earlier_one() {
        let attempt = |continues, anew| v1::Attempt {
            continues,
            anew,
            ..canned::attempt(2, "running", 0, None)
        };
        for (attempt, expected) in [
            (attempt(0, false), "on laptop-0"),
            (attempt(1, false), "on laptop-0, goes on from attempt 1"),
            (
                attempt(1, true),
                "on laptop-0, began anew with a summary of attempt 1",
            ),
        ] {
            assert_eq!(placed(&attempt), expected);
        }
    }

    #[test]
    fn the_state_of_a_run_decides_the_exit_code() {
        assert_eq!(exit(&canned::succeeded()), Exit::Success);
        assert_eq!(exit(&canned::failed()), Exit::RunFailed);
        assert_eq!(exit(&canned::conflicting()), Exit::IntegrationConflict);
        assert_eq!(exit(&canned::live()), Exit::Success);
        let cancelled = v1::Run {
            state: "cancelled".to_owned(),
            ..canned::live()
        };
        assert_eq!(exit(&cancelled), Exit::Cancelled);
    }

    #[test]
    fn of_many_files_that_conflict_the_first_are_listed() {
        let mut run = canned::conflicting();
        let integration = run.integration.as_mut().unwrap();
        integration.conflict_files = (0..100).map(|number| format!("f{number}")).collect();
        let text = shown(&run);
        assert!(text.contains("f9\n  … and at least 90 more\n"), "{text}");
        assert!(!text.contains("f10"), "{text}");
    }

    #[test]
    fn a_coordinator_elsewhere_is_fetched_from_by_this_program() {
        let place = Place {
            of_folder: false,
            program: "coordinator --coordinator host:7733 --token-file t".to_owned(),
            home: None,
        };
        let text = text(
            &canned::succeeded(),
            &place,
            canned::at(80),
            Paint::new(false),
        );
        let wanted = "coordinator --coordinator host:7733 --token-file t fetch add-auth-b7itx33";
        assert!(text.contains(wanted), "{text}");
        assert!(!text.contains("git fetch"), "{text}");
    }

    #[test]
    fn words_are_quoted_for_a_shell_only_where_they_must_be() {
        assert_eq!(quoted("/a/b-c.git"), "/a/b-c.git");
        assert_eq!(quoted("/my home/x"), "'/my home/x'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
