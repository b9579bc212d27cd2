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

/// Kinds of questions that only a person, or nobody, can answer.
const INPUT: &str = "input";
/// What ends a command and may begin another one.
const JOINTS: [char; 8] = [';', '&', '|', '\n', '`', '$', '<', '>'];

/// Decides on a question of an agent that works in `work`.
///
/// The deny list wins, also over one command among several; the allow list is good for one plain
/// command only, since nobody can tell by its beginning what a script does.
pub(crate) fn judge(policy: &ApprovalPolicy, question: &Question, work: &Path) -> Verdict {
    let command = question.kind == "command";
    if command
        && let Some(rule) = policy
            .deny
            .iter()
            .find(|rule| contains(&question.detail, rule))
    {
        let text = format!("the task's rules do not allow `{rule}`");
        return answer(
            question,
            &[ChoiceEffect::Deny, ChoiceEffect::DenyAndStop],
            text,
        );
    }
    let plain = !question.detail.contains(JOINTS);
    let listed = || {
        policy
            .allow
            .iter()
            .any(|rule| begins(&question.detail, rule))
    };
    let allowed = match policy.ask {
        _ if question.kind == INPUT => false,
        AskMode::Never => true,
        _ if command && plain && listed() => true,
        AskMode::Outside => is_inside(question, work),
        AskMode::Always => false,
    };
    if allowed {
        let effects = [ChoiceEffect::AllowOnce, ChoiceEffect::AllowSession];
        return answer(question, &effects, String::new());
    }
    Verdict::Ask
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

/// Tells whether any of the commands of a script begins with the words of a rule.
fn contains(script: &str, rule: &str) -> bool {
    let quotes = ['\'', '"', '(', ')', '{', '}'];
    let mut parts = script.split(JOINTS).flat_map(|part| part.split(quotes));
    parts.any(|part| begins(part, rule))
}

/// Tells whether a question names only files of the work tree. A command may touch anything.
fn is_inside(question: &Question, work: &Path) -> bool {
    let paths = || question.paths.iter();
    question.kind == "file_change"
        && paths().next().is_some()
        && paths().all(|path| plain(&work.join(path)).starts_with(work))
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

    fn said(policy: &ApprovalPolicy, question: &Question) -> String {
        match judge(policy, question, Path::new("/w")) {
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
        ] {
            assert_eq!(
                said(&policy, &question("command", command, &[])),
                expected,
                "{command}"
            );
        }
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
    fn never_allows_all_but_what_is_denied_and_what_only_a_person_knows() {
        let policy = policy(AskMode::Never, &[], &["sudo"]);
        assert_eq!(said(&policy, &question("command", "make", &[])), "yes");
        assert_eq!(said(&policy, &question("command", "sudo make", &[])), "no");
        assert_eq!(said(&policy, &question("input", "which one?", &[])), "ask");
    }

    #[test]
    fn a_question_without_a_fitting_choice_goes_to_a_person() {
        let mut asked = question("tool", "x", &[]);
        asked.choices.retain(|choice| choice.id == "no");
        assert_eq!(said(&policy(AskMode::Never, &[], &[]), &asked), "ask");
    }
}
