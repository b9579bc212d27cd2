//! What this host has of agents: programs are looked for, and only those that its operator chose are
//! asked for their version.

use std::collections::BTreeMap;
use std::path::Path;

use muster_proto::v1::{AgentOffer, AgentsFound, DeclaredAgent, LookedFor};

use super::{KINDS, Own, version};

/// Declared agents that one coordinator may have looked for; it asks for less.
const LOOKED_FOR_MAX: usize = 256;

/// Whether programs are asked for their versions, which may take seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// They are not started: what they said before is what is known.
    Nothing,
    /// Those that have not said it yet are asked.
    Versions,
}

/// How agents are started here by the operator's own word, by name.
pub(crate) type Overrides = BTreeMap<String, Vec<String>>;

/// Finds the agents that this host has by itself.
pub(crate) fn offers(own: Own<'_>, overrides: &Overrides, asking: Asking) -> Vec<AgentOffer> {
    let offers = KINDS.iter().filter_map(|agent| {
        let mut offer = match named(overrides, agent.kind()) {
            Some(word) => AgentOffer {
                name: agent.kind().to_owned(),
                program: place_of(word, own)?,
                version: String::new(),
            },
            None => agent.find(own)?,
        };
        if !offer.program.is_empty() {
            offer.version = match asking {
                Asking::Nothing => version::known(&offer.program).unwrap_or_default(),
                Asking::Versions => agent.version(&offer.program),
            };
        }
        Some(offer)
    });
    offers.collect()
}

/// Finds the agents that this host has by itself, and those that it was told to look for.
pub(crate) fn found(
    wanted: &[DeclaredAgent],
    own: Own<'_>,
    overrides: &Overrides,
    asking: Asking,
) -> AgentsFound {
    let offers = offers(own, overrides, asking);
    let looked_for = wanted.iter().take(LOOKED_FOR_MAX).map(|agent| LookedFor {
        found: declared(agent, &offers, own, overrides),
        agent: Some(agent.clone()),
    });
    let looked_for = looked_for.collect();
    AgentsFound { offers, looked_for }
}

/// Looks for the program of a declared agent. It is not started before a task asks for it.
fn declared(
    agent: &DeclaredAgent,
    offers: &[AgentOffer],
    own: Own<'_>,
    overrides: &Overrides,
) -> Option<AgentOffer> {
    let kind = KINDS.iter().find(|kind| kind.kind() == agent.kind)?;
    let declared = Some(agent.program.as_str()).filter(|program| !program.is_empty());
    let Some(word) = named(overrides, &agent.name).or(declared) else {
        // The kind's own, if there is one.
        let mut offers = offers.iter().filter(|offer| offer.name == kind.kind());
        return offers
            .find(|offer| !offer.program.is_empty() || !kind.needs_command())
            .cloned();
    };
    let program = place_of(word, own)?;
    Some(AgentOffer {
        name: agent.name.clone(),
        version: version::known(&program).unwrap_or_default(),
        program,
    })
}

fn named<'a>(overrides: &'a Overrides, name: &str) -> Option<&'a str> {
    let command = overrides.get(name)?;
    command.first().map(String::as_str)
}

/// Tells whether a program would be found when it is started.
pub(crate) fn is_there(word: &str, own: Own<'_>) -> bool {
    place_of(word, own).is_some()
}

/// Gives where a program is, as it would be found when it is started; `None` if it is not there. One
/// that is named relative to the work tree is taken for there: it comes with the repository.
fn place_of(word: &str, own: Own<'_>) -> Option<String> {
    if !word.contains('/') {
        return program(word, &own("PATH").unwrap_or_default());
    }
    let path = Path::new(word);
    (!path.is_absolute() || may_run(path)).then(|| word.to_owned())
}

/// Finds a program in the folders of `path`.
pub(super) fn program(name: &str, path: &str) -> Option<String> {
    let mut candidates = path.split(':').filter(|folder| folder.starts_with('/'));
    candidates.find_map(|folder| {
        let candidate = Path::new(folder).join(name);
        may_run(&candidate).then(|| candidate.to_string_lossy().into_owned())
    })
}

pub(super) fn may_run(candidate: &Path) -> bool {
    candidate.is_file() && rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn wanted(kind: &str, name: &str, program: &str) -> DeclaredAgent {
        DeclaredAgent {
            kind: kind.into(),
            name: name.into(),
            program: program.into(),
        }
    }

    #[test]
    fn a_declared_agent_is_found_where_it_would_be_started_and_nothing_is_started_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let tool = folder.path().join("tool");
        let asked = folder.path().join("asked");
        fs::write(&tool, format!("#!/bin/sh\ntouch {}\n", asked.display())).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        let (folder, tool) = (folder.path().to_string_lossy(), tool.to_string_lossy());
        let own = |name: &str| (name == "PATH").then(|| format!("{folder}:/bin"));
        let overrides = [("theirs".to_owned(), vec![tool.to_string()])].into();
        let bare = wanted("acp", "acp", "");
        let of_acp = [("acp".to_owned(), vec![tool.to_string()])].into();
        let by_operator = found(std::slice::from_ref(&bare), &own, &of_acp, Asking::Nothing);
        assert!(by_operator.looked_for[0].found.is_some());
        for (agent, expected) in [
            (wanted("acp", "a", "tool"), Some(&*tool)),
            (wanted("acp", "a", &tool), Some(&*tool)),
            (wanted("claude", "a", &tool), Some(&*tool)),
            (wanted("acp", "theirs", "nowhere"), Some(&*tool)),
            (
                wanted("command", "a", "./of-the-tree"),
                Some("./of-the-tree"),
            ),
            (wanted("command", "a", ""), Some("/bin/sh")),
            (wanted("scripted", "a", ""), Some("")),
            (bare, None),
            (wanted("acp", "a", "nowhere"), None),
            (wanted("acp", "a", "/nowhere/tool"), None),
            (wanted("codex", "a", ""), None),
            (wanted("of-tomorrow", "a", &tool), None),
        ] {
            let found = found(
                std::slice::from_ref(&agent),
                &own,
                &overrides,
                Asking::Versions,
            );
            let [looked] = &found.looked_for[..] else {
                panic!("one was asked for");
            };
            assert_eq!(looked.agent.as_ref(), Some(&agent));
            let program = looked.found.as_ref().map(|found| &*found.program);
            assert_eq!(program, expected, "{agent:?}");
        }
        assert!(!asked.exists());
    }

    #[test]
    fn programs_of_the_operator_are_asked_for_their_version_when_there_is_time() {
        let folder = tempfile::tempdir().unwrap();
        let tool = folder.path().join("my-codex");
        fs::write(&tool, "#!/bin/sh\necho codex-cli 0.1.2\n").unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        let tool = tool.to_string_lossy().into_owned();
        let overrides = [("codex".to_owned(), vec![tool.clone()])].into();
        let version = |asking| {
            let offers = offers(&|_| None, &overrides, asking);
            let codex = offers.into_iter().find(|offer| offer.name == "codex");
            codex.map(|codex| (codex.program, codex.version))
        };
        assert_eq!(
            version(Asking::Nothing),
            Some((tool.clone(), String::new()))
        );
        assert_eq!(
            version(Asking::Versions),
            Some((tool.clone(), "0.1.2".into()))
        );
        assert_eq!(version(Asking::Nothing), Some((tool, "0.1.2".into())));
    }
}
