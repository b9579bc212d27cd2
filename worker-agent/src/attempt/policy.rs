//! Which questions of an agent are answered without a person. Pure.

use std::path::{Component, Path, PathBuf};

use muster_proto::v1::{ChoiceEffect, Question};

use crate::agent::conversation::{Decision, choice_with};
use crate::document::{ApprovalPolicy, AskMode};

/// What happens to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is answered so.
    Answered(Decision),
    /// A person is asked.
    Ask,
}

/// Where an agent works.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grounds {
    /// Root of the work tree.
    pub(crate) work: PathBuf,
    /// Where in it the agent's program was started: paths that are not absolute begin there.
    pub(crate) folder: PathBuf,
    /// The persona's skills, which the agent is told to read.
    pub(crate) skills: PathBuf,
}

/// Kinds of questions that only a person, or nobody, can answer.
const INPUT: &str = "input";
/// More rights than the sandbox gives.
const PERMISSION: &str = "permission";
/// Commands that only read the files that they name, and print them.
const READERS: [&str; 6] = ["cat", "head", "ls", "nl", "tail", "wc"];
/// What ends a command and may begin another one.
const JOINTS: [char; 8] = [';', '&', '|', '\n', '`', '$', '<', '>'];
/// What groups commands; of words that are denied it is no part.
const GROUPS: [char; 5] = ['(', ')', '{', '}', '!'];
/// What quotes; it is taken off a script before words that are denied are looked for.
const QUOTES: [char; 3] = ['\'', '"', '\\'];

/// Length from which on a text may have been cut by whoever made the question.
const DETAIL_BYTES: usize = (16 << 10) - 8;
pub(crate) const TITLE_BYTES: usize = (1 << 10) - 8;
const PATH_BYTES: usize = (4 << 10) - 8;
/// Files from which on some may have been left out.
const PATHS: usize = 100;

/// Decides on a question of an agent; `real` gives where a path leads.
///
/// The deny list wins, also over one command among several, and is no boundary: a script can hide what it
/// runs. The allow list is good for one plain command only, since nobody can tell by its beginning what a
/// script does. Of a question that is not known whole only a person can judge.
pub(crate) fn judge(
    policy: &ApprovalPolicy,
    question: &Question,
    grounds: &Grounds,
    real: impl Fn(&Path) -> PathBuf,
) -> Verdict {
    let command = question.kind == "command";
    let script = match question.detail.is_empty() {
        true => &question.title,
        false => &question.detail,
    };
    let deny = |text: String| {
        let effects = [ChoiceEffect::Deny, ChoiceEffect::DenyAndStop];
        answer(question, &effects, text)
    };
    if command && let Some(rule) = policy.deny.iter().find(|rule| contains(script, rule)) {
        return deny(format!("the task's rules do not allow `{rule}`"));
    }
    let whole = !is_cut(question);
    let listed = || {
        let plain = !question.detail.is_empty() && !question.detail.contains(JOINTS);
        plain
            && policy
                .allow
                .iter()
                .any(|rule| begins(&question.detail, rule))
    };
    let allowed = match policy.ask {
        _ if question.kind == INPUT => false,
        AskMode::Never if question.kind == PERMISSION => {
            return deny("nobody is asked, so the sandbox of this task is not left".to_owned());
        }
        AskMode::Never => whole || policy.deny.is_empty(),
        _ if !whole => false,
        _ if command && listed() => true,
        _ if reads_skills(question, grounds, &real) => true,
        AskMode::Outside => is_inside(question, grounds, &real),
        AskMode::Always => false,
    };
    if allowed {
        let effects = [ChoiceEffect::AllowOnce, ChoiceEffect::AllowSession];
        return answer(question, &effects, String::new());
    }
    Verdict::Ask
}

/// Tells whether a part of a question may be missing.
pub(crate) fn is_cut(question: &Question) -> bool {
    question.detail.len() >= DETAIL_BYTES
        || (question.detail.is_empty() && question.title.len() >= TITLE_BYTES)
        || question.paths.len() >= PATHS
        || question.paths.iter().any(|path| path.len() >= PATH_BYTES)
}

/// Answers with the first of the effects that the question offers; else a person has to.
fn answer(question: &Question, effects: &[ChoiceEffect], text: String) -> Verdict {
    let mut effects = effects.iter();
    let choice = effects.find_map(|effect| choice_with(question, *effect));
    choice.map_or(Verdict::Ask, |choice| {
        Verdict::Answered(Decision {
            choice: choice.to_owned(),
            text,
        })
    })
}

/// Tells whether a command begins with the words of a rule.
fn begins(command: &str, rule: &str) -> bool {
    let mut words = command.split_whitespace();
    let mut rule = rule.split_whitespace().peekable();
    rule.peek().is_some() && rule.all(|word| words.next() == Some(word))
}

/// Gives a program's name without the folders that it is in.
fn name(program: &str) -> &str {
    let last = program.rsplit('/').next().unwrap_or_default();
    if last.is_empty() { program } else { last }
}

/// Gives the character for which a rule of commands that are allowed never fits any command.
#[must_use]
pub fn allows_nothing(rule: &str) -> Option<char> {
    let mut characters = rule.trim().chars();
    characters.find(|character| JOINTS.contains(character))
}

/// Gives the character for which a rule of commands that are denied never fits any script.
#[must_use]
pub fn denies_nothing(rule: &str) -> Option<char> {
    let mut characters = rule.trim().chars();
    characters.find(|character| {
        JOINTS.contains(character) || GROUPS.contains(character) || QUOTES.contains(character)
    })
}

/// Tells whether the words of a rule stand anywhere in a script, whatever is before them, however they
/// are quoted, and by whatever path the program is named here and there.
fn contains(script: &str, rule: &str) -> bool {
    let plain = |character: &char| !QUOTES.contains(character);
    let script: String = script.chars().filter(plain).collect();
    let ends = |character: char| {
        character.is_whitespace() || JOINTS.contains(&character) || GROUPS.contains(&character)
    };
    let words: Vec<&str> = script.split(ends).filter(|word| !word.is_empty()).collect();
    let rule: Vec<&str> = rule.split_whitespace().collect();
    let Some((program, rest)) = rule.split_first() else {
        return false;
    };
    words.windows(rule.len()).any(|window| {
        let first = window.first().copied().unwrap_or_default();
        name(first) == name(program) && window.iter().skip(1).eq(rest)
    })
}

/// Tells whether a question names only files of the work tree. A command may touch anything.
fn is_inside(question: &Question, grounds: &Grounds, real: &impl Fn(&Path) -> PathBuf) -> bool {
    let inside = |path: &str| {
        let path = plain(&grounds.folder.join(path));
        // What is in there runs with somebody else's commands.
        let private = path.components().any(|part| part.as_os_str() == ".git");
        !private && is_within(&path, &grounds.work, real)
    };
    ["file_change", "file_read"].contains(&question.kind.as_str())
        && !question.paths.is_empty()
        && question.paths.iter().all(|path| inside(path))
        && (question.folder.is_empty() || inside(&question.folder))
}

/// Tells whether nothing is asked but to read files of the persona's skills.
fn reads_skills(question: &Question, grounds: &Grounds, real: &impl Fn(&Path) -> PathBuf) -> bool {
    let is_skill = |path: &str| {
        !grounds.skills.as_os_str().is_empty()
            && is_within(&plain(&grounds.folder.join(path)), &grounds.skills, real)
    };
    let paths: Vec<&str> = match question.kind.as_str() {
        "file_read" => question.paths.iter().map(String::as_str).collect(),
        "command" => read_by(&question.detail).unwrap_or_default(),
        _ => return false,
    };
    !paths.is_empty() && paths.into_iter().all(is_skill)
}

/// Names the files that a command reads if it does nothing else, as far as that is plain to see.
fn read_by(command: &str) -> Option<Vec<&str>> {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || "/._- ".contains(character);
    let mut words = command.split(' ').filter(|word| !word.is_empty());
    let reader = words.next()?;
    let is_option = |word: &&str| !word.starts_with("--") && word.starts_with('-');
    let is_known = READERS.contains(&reader) && command.chars().all(is_plain);
    let files: Vec<&str> = words.filter(|word| !is_option(word)).collect();
    // Where it runs is not sure.
    let absolute = files.iter().all(|file| file.starts_with('/'));
    (is_known && absolute).then_some(files)
}

fn is_within(path: &Path, root: &Path, real: &impl Fn(&Path) -> PathBuf) -> bool {
    path.starts_with(root) && real(path).starts_with(real(root))
}

/// Resolves `.` and `..` without looking at the disk.
fn plain(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                resolved.pop();
            }
            Component::CurDir => {}
            part => resolved.push(part),
        }
    }
    resolved
}

/// Gives where a path leads: links are followed as far as it exists.
pub(crate) fn real(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let Ok(real) = above.canonicalize() {
            return path
                .strip_prefix(above)
                .map_or(real.clone(), |rest| real.join(rest));
        }
        // A link that leads nowhere yet may lead anywhere later.
        if above.is_symlink() {
            return PathBuf::new();
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::Choice;

    use super::*;

    fn question(kind: &str, detail: &str, paths: &[&str]) -> Question {
        let choice = |id: &str, effect: ChoiceEffect| Choice {
            id: id.to_owned(),
            effect: effect.into(),
            ..Choice::default()
        };
        Question {
            number: 1,
            kind: kind.to_owned(),
            detail: detail.to_owned(),
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            choices: vec![
                choice("yes", ChoiceEffect::AllowOnce),
                choice("no", ChoiceEffect::Deny),
            ],
            ..Question::default()
        }
    }

    fn policy(ask: AskMode, allow: &[&str], deny: &[&str]) -> ApprovalPolicy {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        ApprovalPolicy {
            ask,
            allow: words(allow),
            deny: words(deny),
        }
    }

    fn grounds(work: impl AsRef<Path>) -> Grounds {
        Grounds {
            work: work.as_ref().to_owned(),
            folder: work.as_ref().to_owned(),
            skills: "/lease/skills".into(),
        }
    }

    fn said(policy: &ApprovalPolicy, question: &Question) -> String {
        match judge(policy, question, &grounds("/w"), Path::to_path_buf) {
            Verdict::Answered(decision) => decision.choice,
            Verdict::Ask => "ask".to_owned(),
        }
    }

    #[test]
    fn rules_are_words_at_the_beginning_of_one_plain_command() {
        let policy = policy(AskMode::Always, &["cargo test", "ls"], &["rm", "git push"]);
        for (command, expected) in [
            ("cargo test -p x", "yes"),
            ("cargo  test", "yes"),
            ("cargo tester", "ask"),
            ("cargo build", "ask"),
            ("ls; cargo build", "ask"),
            ("ls $(evil)", "ask"),
            ("ls > /etc/passwd", "ask"),
            ("lsof", "ask"),
            ("rm -r x", "no"),
            ("true && rm -r x", "no"),
            ("bash -c 'rm -r x'", "no"),
            ("git push origin", "no"),
            ("git pull", "ask"),
            ("FOO=1 rm x", "no"),
            ("/bin/rm x", "no"),
            ("sudo rm x", "no"),
            ("find . | xargs rm", "no"),
            ("! \\rm x", "no"),
            ("\"git\" push", "no"),
            ("echo firm", "ask"),
        ] {
            assert_eq!(
                said(&policy, &question("command", command, &[])),
                expected,
                "{command}"
            );
        }
    }

    #[test]
    fn a_denied_program_is_denied_by_whatever_path_rule_and_command_name_it() {
        for rule in ["./y.sh", "y.sh", "/x/y.sh"] {
            let policy = policy(AskMode::Always, &[], &[rule]);
            for command in ["./y.sh", "y.sh -f", "/x/y.sh", "true; sh ../y.sh"] {
                let asked = question("command", command, &[]);
                assert_eq!(said(&policy, &asked), "no", "{rule}: {command}");
            }
            let asked = question("command", "./my.sh x/", &[]);
            assert_eq!(said(&policy, &asked), "ask", "{rule}");
        }
        let folder = policy(AskMode::Always, &[], &["./"]);
        let asked = question("command", "ls src/", &[]);
        assert_eq!(said(&folder, &asked), "ask");
    }

    #[test]
    fn a_rule_that_is_told_to_fit_nothing_does_not_fit_its_own_words() {
        for rule in ["a|b", "a; b", "a && b", "$X", "a > b", "a\nb", "`a`"] {
            assert!(allows_nothing(rule).is_some(), "{rule}");
            assert!(denies_nothing(rule).is_some(), "{rule}");
            let policy = policy(AskMode::Always, &[rule], &[]);
            assert_eq!(said(&policy, &question("command", rule, &[])), "ask");
        }
        for rule in ["a 'b'", "\"a\"", "a\\b", "(a)", "{a}", "! a"] {
            assert!(denies_nothing(rule).is_some(), "{rule}");
            let denied = policy(AskMode::Always, &[], &[rule]);
            assert_eq!(said(&denied, &question("command", rule, &[])), "ask");
            assert_eq!(allows_nothing(rule), None, "{rule}");
            let allowed = policy(AskMode::Always, &[rule], &[]);
            assert_eq!(said(&allowed, &question("command", rule, &[])), "yes");
        }
        assert_eq!(denies_nothing("git push --force=x*\n"), None);
    }

    #[test]
    fn outside_asks_for_what_leaves_the_work_tree() {
        let policy = policy(AskMode::Outside, &[], &[]);
        for (paths, expected) in [
            (&["src/a"][..], "yes"),
            (&["/w/b", "c"], "yes"),
            (&["../x"], "ask"),
            (&["a/../../x"], "ask"),
            (&["/etc/passwd"], "ask"),
            (&["/workshop/a"], "ask"),
            (&[], "ask"),
        ] {
            let asked = question("file_change", "", paths);
            assert_eq!(said(&policy, &asked), expected, "{paths:?}");
        }
        assert_eq!(said(&policy, &question("command", "ls", &[])), "ask");
    }

    #[test]
    fn skills_are_read_without_a_question_and_nothing_else_is_done_to_them() {
        for mode in [AskMode::Outside, AskMode::Always] {
            let policy = policy(mode, &[], &["wc"]);
            for (kind, detail, paths, expected) in [
                ("file_read", "", &["/lease/skills/a/SKILL.md"][..], "yes"),
                ("file_read", "", &["../lease/skills/a"], "yes"),
                ("file_read", "", &["/lease/skills/a", "/etc/passwd"], "ask"),
                ("file_read", "", &["/lease/skills/../grant"], "ask"),
                ("file_read", "", &["/lease/skills-of-others"], "ask"),
                ("file_read", "", &[], "ask"),
                ("file_change", "", &["/lease/skills/a"], "ask"),
                ("command", "cat /lease/skills/a/SKILL.md", &[], "yes"),
                ("command", "ls -la  /lease/skills/a", &[], "yes"),
                ("command", "head -n 5 /lease/skills/a", &[], "ask"),
                ("command", "cat /lease/skills/a /etc/passwd", &[], "ask"),
                ("command", "cat /lease/skills/a; rm x", &[], "ask"),
                ("command", "cat '/lease/skills/a'", &[], "ask"),
                ("command", "cat /lease/skills/a\trm", &[], "ask"),
                ("command", "wc /lease/skills/a", &[], "no"),
                ("command", "wc --files0-from=/lease/skills/a", &[], "no"),
                ("command", "cp /lease/skills/a b", &[], "ask"),
                ("command", "cat ../lease/skills/a", &[], "ask"),
                ("command", "cat", &[], "ask"),
            ] {
                let asked = question(kind, detail, paths);
                assert_eq!(said(&policy, &asked), expected, "{kind} {detail} {paths:?}");
            }
        }
        let nowhere = Grounds::default();
        let asked = question("file_read", "", &["/lease/skills/a"]);
        let policy = policy(AskMode::Always, &[], &[]);
        let verdict = judge(&policy, &asked, &nowhere, Path::to_path_buf);
        assert_eq!(verdict, Verdict::Ask);
    }

    #[test]
    fn paths_begin_where_the_agent_was_started() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("w");
        std::fs::create_dir_all(work.join("sub")).unwrap();
        std::os::unix::fs::symlink("/etc", work.join("sub/out")).unwrap();
        let started = Grounds {
            folder: work.join("sub"),
            ..grounds(&work)
        };
        let outside = policy(AskMode::Outside, &[], &[]);
        for (path, expected) in [("out/passwd", false), ("../a", true), ("../../a", false)] {
            let asked = question("file_change", "", &[path]);
            let verdict = judge(&outside, &asked, &started, real);
            assert_eq!(verdict != Verdict::Ask, expected, "{path}");
        }
    }

    #[test]
    fn never_allows_all_but_what_is_denied_and_what_only_a_person_knows() {
        let policy = policy(AskMode::Never, &[], &["sudo"]);
        assert_eq!(said(&policy, &question("command", "make", &[])), "yes");
        assert_eq!(said(&policy, &question("command", "sudo make", &[])), "no");
        assert_eq!(said(&policy, &question("input", "which one?", &[])), "ask");
    }

    #[test]
    fn of_what_is_not_known_whole_a_person_judges() {
        let long = format!("ls{}", " ".repeat(DETAIL_BYTES));
        let asked = question("command", &long, &[]);
        assert_eq!(said(&policy(AskMode::Always, &["ls"], &[]), &asked), "ask");
        assert_eq!(said(&policy(AskMode::Never, &[], &["rm"]), &asked), "ask");
        assert_eq!(said(&policy(AskMode::Never, &[], &[]), &asked), "yes");
        let many = vec!["a"; PATHS];
        let asked = question("file_change", "", &many);
        assert_eq!(said(&policy(AskMode::Outside, &[], &[]), &asked), "ask");
    }

    #[test]
    fn links_are_followed_and_more_rights_are_not_given_where_nobody_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("w");
        std::fs::create_dir_all(work.join("src")).unwrap();
        std::os::unix::fs::symlink("/etc", work.join("out")).unwrap();
        std::os::unix::fs::symlink("nowhere", work.join("dangling")).unwrap();
        let outside = policy(AskMode::Outside, &[], &[]);
        for (path, expected) in [
            ("src/new/file", true),
            ("out/passwd", false),
            ("dangling", false),
            ("dangling/x", false),
            (".git/hooks/pre-commit", false),
        ] {
            let asked = question("file_change", "", &[path]);
            let verdict = judge(&outside, &asked, &grounds(&work), real);
            assert_eq!(verdict != Verdict::Ask, expected, "{path}");
        }
        let mut rooted = question("file_change", "", &["src/a"]);
        rooted.folder = "/".to_owned();
        assert_eq!(
            judge(&outside, &rooted, &grounds(&work), real),
            Verdict::Ask
        );
        let asked = question("permission", "network", &[]);
        assert_eq!(said(&policy(AskMode::Never, &[], &[]), &asked), "no");
    }

    #[test]
    fn a_question_without_a_fitting_choice_goes_to_a_person() {
        let mut asked = question("tool", "x", &[]);
        asked.choices.retain(|choice| choice.id == "no");
        assert_eq!(said(&policy(AskMode::Never, &[], &[]), &asked), "ask");
    }
}
