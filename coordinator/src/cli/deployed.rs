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

/// The words of a JSON list, as a Dockerfile has them and a compose file may.
fn list(value: &serde_json::Value) -> Vec<String> {
    let words = value.as_array().into_iter().flatten();
    words
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

/// What stands behind a word at the beginning of lines, with lines that go on joined.
fn instructions(file: &str, word: &str) -> Vec<String> {
    let joined = file.replace("\\\n", " ");
    let start = format!("{word} ");
    let found = joined.lines().filter_map(|line| line.strip_prefix(&start));
    found.map(ToOwned::to_owned).collect()
}

/// Finds the word behind an option.
fn option<'w>(words: &'w [String], name: &str) -> &'w str {
    let at = words.iter().position(|word| word == name);
    at.and_then(|at| words.get(at + 1)).map_or("", |word| word)
}

#[test]
fn containers_agree_on_ports_folders_and_secrets() {
    let compose = json_of_yaml(read(&root().join("deploy/compose.yaml")).as_bytes());
    let file = read(&root().join("deploy/Dockerfile"));
    let port = instructions(&file, "EXPOSE").concat();
    // A volume without a name would be left behind by each container of a worker.
    assert!(instructions(&file, "VOLUME").is_empty());
    let variables = instructions(&file, "ENV").concat();
    let home = variables.strip_prefix("MUSTER_HOME=").unwrap();
    let known_to_all = ["name", "services", "volumes", "secrets"];
    for key in compose.as_object().unwrap().keys() {
        assert!(known_to_all.contains(&key.as_str()), "{key}");
    }
    // Those of the compose specification that are used.
    let known = [
        "build",
        "cap_drop",
        "command",
        "depends_on",
        "healthcheck",
        "image",
        "ports",
        "read_only",
        "restart",
        "secrets",
        "security_opt",
        "stop_grace_period",
        "tmpfs",
        "ulimits",
        "volumes",
    ];
    let services = compose["services"].as_object().unwrap();
    for (name, service) in services {
        for key in service.as_object().unwrap().keys() {
            assert!(known.contains(&key.as_str()), "{name}: {key}");
        }
        assert_eq!(service["image"], "muster", "{name}");
        for needed in service["depends_on"].as_object().into_iter().flatten() {
            assert!(
                services[needed.0]["healthcheck"].is_object(),
                "{name}: {}",
                needed.0
            );
        }
    }
    let coordinator = &services["coordinator"];
    let command = list(&coordinator["command"]);
    assert_eq!(option(&command, "--listen"), format!("0.0.0.0:{port}"));
    let published = list(&coordinator["ports"]);
    assert_eq!(published, [format!("127.0.0.1:{port}:{port}")]);
    for volume in list(&coordinator["volumes"]) {
        let (name, at) = volume.split_once(':').unwrap();
        assert!(compose["volumes"][name].is_object(), "{volume}");
        assert_eq!(at, home);
    }
    let build = &coordinator["build"];
    let context = root()
        .join("deploy")
        .join(build["context"].as_str().unwrap());
    assert!(
        context
            .join(build["dockerfile"].as_str().unwrap())
            .is_file()
    );

    let worker = &services["worker"];
    let command = list(&worker["command"]);
    assert_eq!(
        option(&command, "--coordinator"),
        format!("coordinator:{port}")
    );
    assert!(option(&command, "--state-dir").starts_with(home));
    let secret = option(&command, "--token-file").strip_prefix("/run/secrets/");
    let secret = secret.unwrap();
    assert_eq!(list(&worker["secrets"]), [secret]);
    // The guide's redirection writes that very file.
    let from = compose["secrets"][secret]["file"].as_str().unwrap();
    let from = format!("> deploy/{}", from.trim_start_matches("./"));
    assert!(
        read(&root().join("deploy/README.md")).contains(&from),
        "{from}"
    );
}

#[test]
fn the_image_is_built_of_what_is_there() {
    let file = read(&root().join("deploy/Dockerfile"));
    let toolchain = read(&root().join("rust-toolchain.toml"));
    let from = instructions(&file, "FROM");
    let version = from[0].strip_prefix("rust:").unwrap();
    let version = version.split(['-', ' ']).next().unwrap();
    assert!(
        toolchain.contains(&format!("channel = \"{version}")),
        "{version}"
    );
    let build = instructions(&file, "RUN").concat();
    assert!(
        build.contains("cargo build --release --locked --workspace --bins"),
        "{build}"
    );
    // Both programs are made by that, each by the package of its name, and kept.
    let kept = instructions(&file, "COPY").concat();
    for program in ["coordinator", "worker-agent"] {
        assert!(
            kept.contains(&format!("/target/release/{program} ")),
            "{program}: {kept}"
        );
        assert!(root().join(program).join("src/main.rs").is_file());
        let package = read(&root().join(program).join("Cargo.toml"));
        assert!(
            package.contains(&format!("name = \"{program}\"")),
            "{program}"
        );
    }
    let entry = instructions(&file, "ENTRYPOINT").concat();
    let entry: serde_json::Value = serde_json::from_str(&entry).unwrap();
    let (program, installed) = (list(&entry)[0].replace("/usr/bin/", ""), build);
    assert!(
        installed.contains(&format!(" {program} ")),
        "{program}: {installed}"
    );
    // Everything is kept from the build but what it reads.
    let ignored = read(&root().join("deploy/Dockerfile.dockerignore"));
    assert_eq!(ignored.lines().next(), Some("*"));
    let manifest = read(&root().join("Cargo.toml"));
    let members = manifest.lines().find(|line| line.starts_with("members = "));
    let folders = members.unwrap().split('"').skip(1).step_by(2);
    let folders = folders.map(|member| member.split('/').next().unwrap());
    for name in folders.chain(["Cargo.toml", "Cargo.lock", "rust-toolchain.toml"]) {
        let given = ignored.lines().any(|line| line == format!("!{name}"));
        assert!(given && root().join(name).exists(), "{name}");
    }
    // So is what they have built in.
    let mut folders = vec![root().join("coordinator"), root().join("worker-agent")];
    let mut found = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = read(&path);
            let includes = text.split("include_str!(\"").skip(1);
            let includes = includes.chain(text.split("include_bytes!(\"").skip(1));
            for name in includes.map(|rest| rest.split('"').next().unwrap()) {
                let file = folder.join(name).canonicalize();
                let Ok(file) = file else { continue };
                let room = file.strip_prefix(root().canonicalize().unwrap()).unwrap();
                let room = room.components().next().unwrap().as_os_str();
                let room = format!("!{}", room.to_string_lossy());
                assert!(
                    ignored.lines().any(|line| line == room),
                    "{}",
                    file.display()
                );
                found += 1;
            }
        }
    }
    assert!(found > 1, "nothing is built in");
}

#[test]
fn containers_start_the_programs_with_options_that_they_take() {
    let compose = json_of_yaml(read(&root().join("deploy/compose.yaml")).as_bytes());
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
                // `install` and the like only carry the programs' files, or remove them.
                let line = line.split_once("$ ").map_or(line, |(_, line)| line);
                if [
                    "install ",
                    "rm ",
                    "docker build",
                    "systemctl ",
                    "journalctl ",
                ]
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
