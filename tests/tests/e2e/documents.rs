//! The documents: their links, the picture of a run, and what a site copies from `deploy/`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::picture::{self, Line};
use muster_tests::process::Program;
use muster_tests::wait::LONG;

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] =
    &[("every_link_in_the_documents_leads_somewhere", links)];

/// The picture that the README shows.
const PICTURE: &str = "tests/plans/first.svg";
const COLUMNS: usize = 100;

/// Scenarios that need programs of the system, each with why it cannot run here.
pub(crate) fn scenarios() -> Vec<(&'static str, Option<String>, Scenario)> {
    let lacks = |program: &str, arguments: &[&str]| {
        let ran = Command::new(program).args(arguments).output();
        let works = ran.is_ok_and(|output| output.status.success());
        (!works).then(|| format!("`{program} {}` does not work here", arguments.join(" ")))
    };
    vec![
        (
            "the_picture_of_a_first_run_shows_what_the_program_prints",
            lacks("script", &["--version"]),
            picture,
        ),
        (
            "systemd_accepts_the_units",
            lacks("systemd-analyze", &["--version"]),
            units,
        ),
        (
            "docker_compose_accepts_the_compose_file",
            lacks("docker", &["compose", "version"]),
            compose,
        ),
    ]
}

fn tracked(programs: &Programs, ends: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![programs.source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(entry.path());
                }
            } else if name.ends_with(ends) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Headings as forges turn them into anchors.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| -> String {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

fn links(programs: &Programs) -> Result<()> {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in tracked(programs, ".md")? {
        let text = std::fs::read_to_string(&file)?;
        // Outside of blocks and of quoted code.
        let prose: String = text.split("```").step_by(2).collect();
        for part in prose.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            seen += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let at = match path {
                "" => file.clone(),
                path => file.parent().unwrap_or(Path::new(".")).join(path),
            };
            let there = if anchor.is_empty() {
                at.exists()
            } else {
                std::fs::read_to_string(&at).is_ok_and(|text| anchors(&text).contains(anchor))
            };
            if !there {
                wrong.push(format!("{}: {target}", file.display()));
            }
        }
    }
    ensure!(seen > 5, "only {seen} links were found");
    ensure!(
        wrong.is_empty(),
        "links that lead nowhere:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

fn picture(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let plan = "tests/plans/first.yaml";
        let command = format!(
            "stty cols {COLUMNS} rows 40; exec {} run {plan} --slots 4",
            programs.coordinator.display()
        );
        let record = cluster.folder().join("record");
        let script = Program::new(Path::new("script"), &programs.source)
            .args(["--quiet", "--return", "--flush", "--command", &command])
            .args([record.as_os_str()])
            .var("HOME", cluster.folder().join("user"))
            .var("MUSTER_HOME", cluster.home())
            .var("TERM", "xterm-256color");
        script.run(&cluster.logs(), LONG)?.success()?;
        let recorded = std::fs::read_to_string(&record)?;
        let recorded = recorded
            .replace(&*cluster.home().to_string_lossy(), "~/.local/state/muster")
            .replace(&*programs.coordinator.to_string_lossy(), "coordinator");
        let (moment, end) = picture::moments(&recorded).context("nothing was drawn")?;
        let prompt = Line::plain(&format!("$ coordinator run {plan}"));
        let gap = Line::plain("");
        let shown: Vec<Line> = [vec![prompt], moment, vec![gap], end].concat();
        let path = programs.source.join(PICTURE);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, picture::svg(&shown, COLUMNS))?;
            return Ok(());
        }
        let kept = picture::texts(&std::fs::read_to_string(&path)?);
        // The moment is another each time; the end must be the same but for times and names.
        let end = |lines: Vec<String>| -> Vec<String> {
            let lines = lines.iter().map(|line| picture::without_figures(line));
            lines.skip_while(|line| !line.starts_with("run ")).collect()
        };
        let (kept, now) = (
            end(kept),
            end(picture::texts(&picture::svg(&shown, COLUMNS))),
        );
        ensure!(
            kept == now && now.len() > 10,
            "{PICTURE} does not show what a run prints; renew it with `UPDATE=1 cargo test -p \
             muster-tests --test e2e the_picture`\nit shows {kept:#?}\nthe run printed {now:#?}"
        );
        Ok(())
    })
}

fn units(programs: &Programs) -> Result<()> {
    let folder = programs.source.join("deploy/systemd");
    let own = tempfile::tempdir()?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let to = own.path().join(entry.file_name());
        // The programs are not installed here.
        let text = std::fs::read_to_string(entry.path())?;
        let text = text
            .replace(
                "/usr/local/bin/coordinator",
                &programs.coordinator.to_string_lossy(),
            )
            .replace(
                "/usr/local/bin/worker-agent",
                &programs.worker_agent.to_string_lossy(),
            );
        std::fs::write(&to, text)?;
        names.push(to);
    }
    ensure!(names.len() >= 6, "{names:?}");
    let verify = Program::new(Path::new("systemd-analyze"), own.path())
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(names);
    let said = verify.run(own.path(), LONG)?.success()?;
    ensure!(said.err.trim().is_empty(), "{}", said.err);
    Ok(())
}

fn compose(programs: &Programs) -> Result<()> {
    let own = tempfile::tempdir()?;
    let config = Program::new(Path::new("docker"), &programs.source).args([
        "compose",
        "-f",
        "deploy/compose.yaml",
        "config",
        "--quiet",
    ]);
    config.run(own.path(), LONG)?.success()?;
    Ok(())
}
