//! Command lines that sites copy from `deploy/` and the READMEs: each must be one that the programs
//! take.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::arguments::Arguments;
use crate::plan::json_of_yaml;

/// `worker-agent`, as its own `main` reads it.
#[derive(Debug, Parser)]
struct Worker {
    #[command(flatten)]
    _worker: worker_agent::cli::WorkerArgs,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Splits a line into words as a shell does, as far as our documents go: quotes hold words together,
/// `$(…)` too, and a comment, a pipe or a redirection ends the command.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut depth = 0;
    for (at, character) in line.char_indices() {
        match character {
            '\'' | '"' if quote == Some(character) => quote = None,
            '\'' | '"' if quote.is_none() => quote = Some(character),
            '|' | '>' | '<' | '#' | ';' | '&' if quote.is_none() && depth == 0 => break,
            ' ' if quote.is_none() && depth == 0 => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => {
                depth += i32::from(line[at..].starts_with("$("));
                depth -= i32::from(character == ')' && depth > 0);
                word.push(character);
            }
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Parses what stands behind the name of one of the programs; tells whether there was one.
fn takes(words: &[String]) -> Result<bool, String> {
    let name = |word: &String| word.rsplit('/').next().unwrap_or_default().to_owned();
    let is_ours = |word: &String| ["coordinator", "worker-agent"].contains(&name(word).as_str());
    // In a container the service is named like the program, so the last of several names counts.
    let Some(at) = words.iter().rposition(is_ours) else {
        return Ok(false);
    };
    let parsed = if name(&words[at]) == "coordinator" {
        Arguments::try_parse_from(&words[at..]).map(drop)
    } else {
        Worker::try_parse_from(&words[at..]).map(drop)
    };
    match parsed {
        Err(error) if error.use_stderr() => Err(format!("{}\n{error}", words[at..].join(" "))),
        _ => Ok(true),
    }
}

#[test]
fn units_start_the_programs_with_options_that_they_take() {
    let guide = read(&root().join("deploy/README.md"));
    let options = guide
        .lines()
        .find_map(|line| line.strip_prefix("WORKER_OPTIONS="));
    let options = options.unwrap();
    let mut found = 0;
    for entry in std::fs::read_dir(root().join("deploy/systemd")).unwrap() {
        let path = entry.unwrap().path();
        let text = read(&path);
        for line in text
            .lines()
            .filter_map(|line| line.strip_prefix("ExecStart="))
        {
            let line = line.replace("%%", "%").replace("%i", "1");
            let line = line
                .replace("${SLOTS}", "4")
                .replace("${MUSTER_COORDINATOR}", "h:1");
            let line = line.replace("$WORKER_OPTIONS", options);
            let script = line.strip_prefix("/bin/sh -c '");
            let line = script.map_or(line.as_str(), |script| script.trim_end_matches('\''));
            match takes(&words(line)) {
                Ok(ours) => found += usize::from(ours),
                Err(wrong) => panic!("{}: {wrong}", path.display()),
            }
        }
    }
    assert!(found >= 4, "only {found} units start one of the programs");
}

#[test]
fn containers_start_the_programs_with_options_that_they_take() {
    let compose = json_of_yaml(read(&root().join("deploy/compose.yaml")).as_bytes());
    let list = |value: &serde_json::Value| -> Vec<String> {
        let words = value.as_array().into_iter().flatten();
        words
            .map(|word| word.as_str().unwrap().to_owned())
            .collect()
    };
    let services = compose["services"].as_object().unwrap();
    for (name, service) in services {
        assert_eq!(takes(&list(&service["command"])), Ok(true), "{name}");
    }
    let health = list(&services["coordinator"]["healthcheck"]["test"]);
    assert_eq!(takes(&health), Ok(true), "{health:?}");
    let file = read(&root().join("deploy/Dockerfile"));
    let command = file.lines().find_map(|line| line.strip_prefix("CMD "));
    let command: serde_json::Value = serde_json::from_str(command.unwrap()).unwrap();
    assert_eq!(takes(&list(&command)), Ok(true));
}

#[test]
fn commands_in_the_documents_are_ones_that_the_programs_take() {
    for (name, least) in [("README.md", 10), ("deploy/README.md", 14)] {
        let text = read(&root().join(name));
        let mut found = 0;
        // Every second piece is a block; what programs print is in blocks of `text`.
        for block in text.split("```").skip(1).step_by(2) {
            let Some(block) = block
                .strip_prefix("console\n")
                .or(block.strip_prefix("sh\n"))
            else {
                continue;
            };
            let block = block.replace("\\\n", " ");
            for line in block.lines().filter(|line| !line.contains("cargo ")) {
                // `install` and the like only carry the programs' files.
                let line = line.split_once("$ ").map_or(line, |(_, line)| line);
                if ["install ", "docker build", "systemctl ", "journalctl "]
                    .iter()
                    .any(|other| line.trim_start_matches("sudo ").starts_with(other))
                {
                    continue;
                }
                match takes(&words(line)) {
                    Ok(ours) => found += usize::from(ours),
                    Err(wrong) => panic!("{name}: {wrong}"),
                }
            }
        }
        assert!(found >= least, "{name} shows only {found} commands");
    }
}
