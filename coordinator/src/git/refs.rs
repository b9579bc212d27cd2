//! The names of the refs in a hosted repository, and nothing else.
//!
//! Every ref that Muster makes has exactly one spelling: parsing a name and formatting the result
//! gives the same name back, so two spellings can never be checked as one ref and written as
//! another.

use std::fmt;
use std::num::NonZeroU32;

/// The longest run or task name, in bytes.
///
/// A ref component is a file name, to which git appends `.lock`; 255 is the limit of common file
/// systems, and the rest is left for short-lived names that git makes itself.
pub const COMPONENT_BYTES_MAX: usize = 100;

/// Why a name cannot be part of a ref.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("the name is empty")]
    Empty,
    #[error("the name is longer than {COMPONENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the name holds {0:?}; letters, digits, '.', '_' and '-' are allowed")]
    Character(char),
    #[error("the name starts with {0:?}")]
    Start(char),
    #[error("the name ends with '.'")]
    EndsWithDot,
    #[error("the name ends with '.lock', which git keeps for itself")]
    EndsWithLock,
    #[error("the name holds '..'")]
    TwoDots,
}

/// Checks that a run, task or repository name can be one component of a ref and of a path.
///
/// Stricter than git: what it allows is also safe as a file name (also where case is ignored), as
/// an argument and in a URL.
pub fn valid_component(name: &str) -> Result<(), InvalidName> {
    let Some(first) = name.chars().next() else {
        return Err(InvalidName::Empty);
    };
    if name.len() > COMPONENT_BYTES_MAX {
        return Err(InvalidName::TooLong);
    }
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(other) = name.chars().find(|c| !allowed(c)) {
        return Err(InvalidName::Character(other));
    }
    if matches!(first, '.' | '-') {
        return Err(InvalidName::Start(first));
    }
    if name.contains("..") {
        return Err(InvalidName::TwoDots);
    }
    if name.ends_with('.') {
        return Err(InvalidName::EndsWithDot);
    }
    if name.to_ascii_lowercase().ends_with(".lock") {
        return Err(InvalidName::EndsWithLock);
    }
    Ok(())
}

/// One task of one run, by names that are safe in a ref.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskName {
    run: String,
    task: String,
}

impl TaskName {
    /// Checks both names.
    pub fn new(run: &str, task: &str) -> Result<Self, InvalidName> {
        valid_component(run)?;
        valid_component(task)?;
        Ok(Self {
            run: run.to_owned(),
            task: task.to_owned(),
        })
    }

    /// The run's name.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The task's name within its run.
    pub fn task(&self) -> &str {
        &self.task
    }

    /// The given attempt of this task.
    pub fn attempt(&self, number: NonZeroU32) -> AttemptName {
        AttemptName {
            task: self.clone(),
            number,
        }
    }
}

/// One attempt of one task; attempts are numbered from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptName {
    task: TaskName,
    number: NonZeroU32,
}

impl AttemptName {
    /// The task that is attempted.
    pub fn task(&self) -> &TaskName {
        &self.task
    }

    /// The attempt's number within its task.
    pub fn number(&self) -> NonZeroU32 {
        self.number
    }
}

/// A ref that Muster knows; its `Display` is the full ref name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParsedRef {
    /// `refs/muster/attempts/<run>/<task>/<n>`: what an attempt published.
    Attempt(AttemptName),
    /// `refs/muster/wip/<run>/<task>/<n>`: the last snapshot of an attempt's unfinished work.
    Wip(AttemptName),
    /// `refs/muster/salvage/<run>/<task>/<n>`: an unfinished edit kept after the lease had ended.
    Salvage(AttemptName),
    /// `refs/muster/base/<run>/<task>`: the commit that a task starts from.
    Base(TaskName),
    /// `refs/muster/source/<run>`: the commit that a run starts from, pushed at submit.
    Source {
        /// The run's name.
        run: String,
    },
    /// `refs/heads/muster/<run>/tasks/<task>`: the result of a succeeded task.
    TaskHead(TaskName),
    /// `refs/heads/muster/<run>/integration`: the run's integrated work.
    IntegrationHead {
        /// The run's name.
        run: String,
    },
    /// `refs/muster/candidate/<run>/<generation>`: an integration that waits for its verify.
    Candidate {
        /// The run's name.
        run: String,
        /// The generation of the integration, from 1.
        generation: NonZeroU32,
    },
}

impl ParsedRef {
    /// Parses a full ref name; `None` for a ref that is not one of ours or not spelled as we do.
    pub fn parse(refname: &str) -> Option<Self> {
        let mut parts = refname.strip_prefix("refs/")?.split('/');
        let parsed = match (parts.next()?, parts.next()?) {
            ("muster", "attempts") => Self::Attempt(attempt(&mut parts)?),
            ("muster", "wip") => Self::Wip(attempt(&mut parts)?),
            ("muster", "salvage") => Self::Salvage(attempt(&mut parts)?),
            ("muster", "base") => Self::Base(task(&mut parts)?),
            ("muster", "source") => Self::source(parts.next()?).ok()?,
            ("muster", "candidate") => {
                Self::candidate(parts.next()?, number(parts.next()?)?).ok()?
            }
            ("heads", "muster") => match (parts.next()?, parts.next()?) {
                (run, "tasks") => Self::TaskHead(TaskName::new(run, parts.next()?).ok()?),
                (run, "integration") => Self::integration(run).ok()?,
                _ => return None,
            },
            _ => return None,
        };
        parts.next().is_none().then_some(parsed)
    }

    /// The ref that holds the base commit of a run.
    pub fn source(run: &str) -> Result<Self, InvalidName> {
        valid_component(run)?;
        Ok(Self::Source {
            run: run.to_owned(),
        })
    }

    /// An integration of a run that waits for its verify.
    pub fn candidate(run: &str, generation: NonZeroU32) -> Result<Self, InvalidName> {
        valid_component(run)?;
        Ok(Self::Candidate {
            run: run.to_owned(),
            generation,
        })
    }

    /// The integration branch of a run.
    pub fn integration(run: &str) -> Result<Self, InvalidName> {
        valid_component(run)?;
        Ok(Self::IntegrationHead {
            run: run.to_owned(),
        })
    }
}

fn task<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<TaskName> {
    TaskName::new(parts.next()?, parts.next()?).ok()
}

fn attempt<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<AttemptName> {
    let task = task(parts)?;
    Some(task.attempt(number(parts.next()?)?))
}

fn number(digits: &str) -> Option<NonZeroU32> {
    // `parse` also takes "+1" and "01", which would be second spellings of 1.
    if !digits.bytes().all(|b| b.is_ascii_digit()) || digits.starts_with('0') {
        return None;
    }
    digits.parse().ok()
}

impl fmt::Display for ParsedRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbered = |f: &mut fmt::Formatter<'_>, kind: &str, name: &AttemptName| {
            let TaskName { run, task } = &name.task;
            write!(f, "refs/muster/{kind}/{run}/{task}/{}", name.number)
        };
        match self {
            Self::Attempt(name) => numbered(f, "attempts", name),
            Self::Wip(name) => numbered(f, "wip", name),
            Self::Salvage(name) => numbered(f, "salvage", name),
            Self::Base(TaskName { run, task }) => write!(f, "refs/muster/base/{run}/{task}"),
            Self::Source { run } => write!(f, "refs/muster/source/{run}"),
            Self::TaskHead(TaskName { run, task }) => {
                write!(f, "refs/heads/muster/{run}/tasks/{task}")
            }
            Self::Candidate { run, generation } => {
                write!(f, "refs/muster/candidate/{run}/{generation}")
            }
            Self::IntegrationHead { run } => write!(f, "refs/heads/muster/{run}/integration"),
        }
    }
}

/// What a ref holds as git's protocol spells it: an object's id (SHA-1 or SHA-256), or zeros where
/// there is no ref.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RefValue(String);

impl RefValue {
    /// Parses a value; `None` unless it is 40 or 64 lower-case hexadecimal digits.
    pub fn parse(hex: &str) -> Option<Self> {
        let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (digits && matches!(hex.len(), 40 | 64)).then(|| Self(hex.to_owned()))
    }

    /// Whether this says that there is no ref.
    pub fn is_zero(&self) -> bool {
        self.0.bytes().all(|b| b == b'0')
    }

    /// The hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_git_or_a_file_system_would_trip_over_are_refused() {
        let cases = [
            ("", InvalidName::Empty),
            (".", InvalidName::Start('.')),
            ("..", InvalidName::Start('.')),
            (".a", InvalidName::Start('.')),
            ("-a", InvalidName::Start('-')),
            ("a..b", InvalidName::TwoDots),
            ("a.", InvalidName::EndsWithDot),
            ("a.lock", InvalidName::EndsWithLock),
            ("a.LOCK", InvalidName::EndsWithLock),
            ("a/b", InvalidName::Character('/')),
            ("a b", InvalidName::Character(' ')),
            ("a\0b", InvalidName::Character('\0')),
            ("é", InvalidName::Character('é')),
        ];
        for (name, reason) in cases {
            assert_eq!(valid_component(name), Err(reason), "{name:?}");
        }
        let long = "a".repeat(COMPONENT_BYTES_MAX + 1);
        assert_eq!(valid_component(&long), Err(InvalidName::TooLong));
        for name in ["a", "A.b-c_d", "7", "lock", "a.locks", "x-"] {
            assert_eq!(valid_component(name), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn every_kind_of_ref_has_the_documented_spelling() {
        let task = TaskName::new("r1", "api").unwrap();
        let second = task.attempt(NonZeroU32::new(2).unwrap());
        let cases = [
            (
                ParsedRef::Attempt(second.clone()),
                "refs/muster/attempts/r1/api/2",
            ),
            (ParsedRef::Wip(second.clone()), "refs/muster/wip/r1/api/2"),
            (ParsedRef::Salvage(second), "refs/muster/salvage/r1/api/2"),
            (ParsedRef::Base(task.clone()), "refs/muster/base/r1/api"),
            (ParsedRef::source("r1").unwrap(), "refs/muster/source/r1"),
            (ParsedRef::TaskHead(task), "refs/heads/muster/r1/tasks/api"),
            (
                ParsedRef::candidate("r1", NonZeroU32::MIN).unwrap(),
                "refs/muster/candidate/r1/1",
            ),
            (
                ParsedRef::integration("r1").unwrap(),
                "refs/heads/muster/r1/integration",
            ),
        ];
        for (parsed, name) in cases {
            assert_eq!(parsed.to_string(), name);
            assert_eq!(ParsedRef::parse(name), Some(parsed));
        }
    }

    #[test]
    fn a_second_spelling_of_a_ref_is_not_a_ref_of_ours() {
        for name in [
            "refs/muster/attempts/r/t/01",
            "refs/muster/attempts/r/t/+1",
            "refs/muster/attempts/r/t/0",
            "refs/muster/attempts/r/t/",
            "refs/muster/attempts/r/t/4294967296",
            "refs/muster/attempts/r/t/1/x",
            "refs/muster/attempts/r//1",
            "refs/muster/attempts/../t/1",
            "refs/muster/source/r/",
            "refs/muster/candidate/r/01",
            "refs/heads/muster/r/integration/x",
            "refs/heads/main",
            "muster/source/r",
            "refs/muster",
            "HEAD",
            "",
        ] {
            assert_eq!(ParsedRef::parse(name), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_parsed_ref_is_printed_as_it_was_read(
            name in "refs/(muster|heads)/(attempts|wip|salvage|base|source|candidate|muster)/[a-z.0-9/-]{0,20}"
        ) {
            if let Some(parsed) = ParsedRef::parse(&name) {
                prop_assert_eq!(parsed.to_string(), name);
            }
        }
    }
}
