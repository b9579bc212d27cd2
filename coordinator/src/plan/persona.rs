//! Who an agent is: a text and skills that a plan names by a path, and that are read where it is
//! submitted.
//!
//! The form is that of codeswarm: a file, or a folder with `AGENTS.md` and perhaps `skills/`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use super::decode::Marks;
use super::document::PlanDocument;
use super::problem::Problems;
use crate::causes::chain;

/// Longest text of a persona, and of one file of a skill.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
/// Files of a persona's skills.
pub const SKILL_FILES_MAX: usize = 200;
/// All of a persona.
pub const PERSONA_BYTES_MAX: usize = 1 << 20;
/// Personas of one plan.
pub const PERSONAS_MAX: usize = 64;
/// Folders within one another.
const DEPTH_MAX: usize = 8;
const MAIN: &str = "AGENTS.md";
const SKILLS: &str = "skills";

/// A persona that was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Persona {
    pub instructions: String,
    /// By their path below `skills/`, with `/`.
    pub skills: BTreeMap<String, String>,
}

/// Personas by their path in the plan.
pub type Personas = BTreeMap<String, Persona>;

/// Why a persona cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not text in UTF-8", .0.display())]
    NotText(PathBuf),
    #[error("{} is longer than {TEXT_BYTES_MAX} bytes", .0.display())]
    TooLong(PathBuf),
    #[error("{} has no {MAIN}: a persona is that file, or a folder with it", .0.display())]
    NoMain(PathBuf),
    #[error("{} leads out of the persona's folder", .0.display())]
    Outside(PathBuf),
    #[error(
        "the persona {0:?} has more than {SKILL_FILES_MAX} files of skills or {PERSONA_BYTES_MAX} bytes"
    )]
    TooLarge(String),
    #[error("the skill file {0:?} of a persona has a path that leads elsewhere")]
    BadPath(String),
    #[error("more than {PERSONAS_MAX} personas in one plan")]
    TooMany,
}

/// Gives the paths of the personas that a plan names.
pub fn named(document: &PlanDocument) -> Vec<&str> {
    let of_tasks = document.tasks.iter().map(|task| &task.settings);
    let mut named: Vec<&str> = std::iter::once(&document.defaults)
        .chain(of_tasks)
        .filter_map(|settings| settings.model.persona.as_deref())
        .collect();
    named.sort_unstable();
    named.dedup();
    named
}

/// Reads the personas of a plan; their paths are relative to `folder`. What is wrong with one (it is
/// not there, not text, too large, or leads out of its folder by a symbolic link) is a finding at the
/// first place that names it.
pub(super) fn read_all(
    document: &PlanDocument,
    marks: &Marks,
    folder: &Path,
    problems: &mut Problems,
) -> Personas {
    const HINT: &str = "`persona:` is a path relative to the plan file";
    let of_tasks = document.tasks.iter().zip(&marks.tasks);
    let of_tasks = of_tasks.map(|(entry, place)| (&entry.settings, &place.settings));
    let mut personas = Personas::new();
    let mut seen = BTreeSet::new();
    for (settings, place) in std::iter::once((&document.defaults, &marks.defaults)).chain(of_tasks)
    {
        let Some(path) = settings.model.persona.as_deref() else {
            continue;
        };
        if !seen.insert(path) {
            continue;
        }
        if seen.len() > PERSONAS_MAX {
            problems.add(place.persona, Error::TooMany.to_string());
            break;
        }
        let persona = read(&folder.join(path)).and_then(|persona| {
            check(path, &persona)?;
            Ok(persona)
        });
        match persona {
            Ok(persona) => {
                personas.insert(path.to_owned(), persona);
            }
            Err(error) => {
                let message = format!("`persona`: {}", chain(&error));
                problems.add_with(place.persona, message, HINT);
            }
        }
    }
    personas
}

/// Checks a persona that somebody else has read.
///
/// # Errors
/// It is too large, or a path of its skills is not plain.
pub fn check(name: &str, persona: &Persona) -> Result<(), Error> {
    let skills = persona.skills.iter();
    let bytes: usize = skills.map(|(path, text)| path.len() + text.len()).sum();
    if bytes + persona.instructions.len() > PERSONA_BYTES_MAX
        || persona.skills.len() > SKILL_FILES_MAX
    {
        return Err(Error::TooLarge(name.to_owned()));
    }
    let plain = |path: &str| {
        !path.is_empty()
            && !path.contains(['\0', '\\'])
            && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
    };
    match persona.skills.keys().find(|path| !plain(path)) {
        Some(path) => Err(Error::BadPath(path.clone())),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<Persona, Error> {
    let metadata = fs::metadata(path).map_err(failed(path))?;
    if !metadata.is_dir() {
        return Ok(Persona {
            instructions: text(path)?,
            skills: BTreeMap::new(),
        });
    }
    let root = path.canonicalize().map_err(failed(path))?;
    let main = path.join(MAIN);
    if !main.exists() {
        return Err(Error::NoMain(path.to_owned()));
    }
    let mut persona = Persona {
        instructions: text(&within(&root, &main)?)?,
        skills: BTreeMap::new(),
    };
    let skills = path.join(SKILLS);
    if skills.is_dir() {
        add_skills(&mut persona, &root, &skills, &skills, 0)?;
    }
    Ok(persona)
}

fn add_skills(
    persona: &mut Persona,
    root: &Path,
    skills: &Path,
    folder: &Path,
    depth: usize,
) -> Result<(), Error> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(within(root, folder)?).map_err(failed(folder))? {
        entries.push(entry.map_err(failed(folder))?.file_name());
    }
    entries.sort();
    for name in entries {
        let path = folder.join(name);
        let real = within(root, &path)?;
        if real.is_dir() && depth < DEPTH_MAX {
            add_skills(persona, root, skills, &path, depth + 1)?;
        } else if real.is_file() {
            let below = path.strip_prefix(skills).unwrap_or(&path);
            let parts = below.components().filter_map(|part| match part {
                Component::Normal(part) => part.to_str(),
                _ => None,
            });
            let name = parts.collect::<Vec<_>>().join("/");
            persona.skills.insert(name, text(&real)?);
            if persona.skills.len() > SKILL_FILES_MAX {
                return Err(Error::TooLarge(skills.display().to_string()));
            }
        }
    }
    Ok(())
}

/// Follows links, but not out of the persona's folder.
fn within(root: &Path, path: &Path) -> Result<PathBuf, Error> {
    let real = path.canonicalize().map_err(failed(path))?;
    if real.starts_with(root) {
        Ok(real)
    } else {
        Err(Error::Outside(path.to_owned()))
    }
}

fn text(path: &Path) -> Result<String, Error> {
    let file = fs::File::open(path).map_err(failed(path))?;
    let mut bytes = Vec::new();
    let limit = TEXT_BYTES_MAX as u64 + 1;
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(failed(path))?;
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(Error::TooLong(path.to_owned()));
    }
    String::from_utf8(bytes).map_err(|_| Error::NotText(path.to_owned()))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Read { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let persona = folder.path().join("dev");
        fs::create_dir_all(persona.join("skills/test/more")).unwrap();
        fs::write(persona.join(MAIN), "You test.").unwrap();
        fs::write(persona.join("skills/test/SKILL.md"), "How.").unwrap();
        fs::write(persona.join("skills/test/more/x"), "More.").unwrap();
        fs::write(persona.join("ignored"), "?").unwrap();
        fs::write(folder.path().join("secret"), "s").unwrap();
        folder
    }

    #[test]
    fn a_persona_is_a_file_or_a_folder_with_skills() {
        let folder = folder();
        let read_here = |path: &str| read(&folder.path().join(path));
        let persona = read_here("dev").unwrap();
        assert_eq!(persona.instructions, "You test.");
        let paths: Vec<&str> = persona.skills.keys().map(String::as_str).collect();
        assert_eq!(paths, ["test/SKILL.md", "test/more/x"]);
        let file = read_here("dev/AGENTS.md").unwrap();
        assert_eq!(file.instructions, "You test.");
        assert!(file.skills.is_empty());
        assert!(matches!(read_here("dev/skills"), Err(Error::NoMain(_))));
        assert!(matches!(read_here("nobody"), Err(Error::Read { .. })));
    }

    #[test]
    fn every_persona_that_cannot_be_used_is_a_finding_at_its_place_among_the_others() {
        let folder = folder();
        let text = "defaults: {agent: codex, persona: nobody}\ntasks:\n  - {name: a, prompt: x}\n  \
                    - {name: b, prompt: x, persona: dev/skills}\n  - {name: c, prompt: x, persona: \
                    nobody}\n  - {name: d, prompt: x, persona: dev, oops: 1}\n";
        let agents = BTreeMap::new();
        let read = |text: &str| {
            super::super::parse_with_personas("p", text.as_bytes(), &agents, folder.path())
        };
        let problems = read(text).unwrap_err();
        let found = problems.list.iter().map(|problem| {
            let (place, start) = (problem.at, problem.message.split(':').next().unwrap());
            format!("{}:{} {start}", place.line, place.column)
        });
        let found: Vec<String> = found.collect();
        assert_eq!(
            found,
            ["1:35 `persona`", "4:35 `persona`", "6:40 task \"d\""],
            "{problems}"
        );
        let shown = problems.to_string();
        assert!(shown.contains("nobody: No such file"), "{shown}");
        assert!(shown.contains("dev/skills has no AGENTS.md"), "{shown}");
        let right = "tasks: [{name: a, agent: codex, prompt: x, persona: dev}]";
        let (_, personas) = read(right).unwrap();
        assert_eq!(personas["dev"].instructions, "You test.");
    }

    #[test]
    fn a_persona_does_not_lead_out_of_its_folder() {
        let folder = folder();
        let link = folder.path().join("dev/skills/link");
        std::os::unix::fs::symlink("../../secret", &link).unwrap();
        assert!(matches!(
            read(&folder.path().join("dev")),
            Err(Error::Outside(_))
        ));
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("test/SKILL.md", &link).unwrap();
        assert!(
            read(&folder.path().join("dev"))
                .unwrap()
                .skills
                .contains_key("link")
        );
    }

    #[test]
    fn what_a_client_sends_is_checked_again() {
        for path in ["../x", "/x", "a//b", "a/./b", "", "a/.."] {
            let persona = Persona {
                skills: [(path.to_owned(), String::new())].into(),
                ..Persona::default()
            };
            assert!(
                matches!(check("p", &persona), Err(Error::BadPath(_))),
                "{path:?}"
            );
        }
        let large = Persona {
            instructions: "x".repeat(PERSONA_BYTES_MAX + 1),
            ..Persona::default()
        };
        assert!(matches!(check("p", &large), Err(Error::TooLarge(_))));
    }
}
