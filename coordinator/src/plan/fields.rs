//! Reads the tree's values one by one; whatever is wrong becomes a problem, and reading goes on.

use std::rc::Rc;

use super::problem::{PROBLEMS_MAX, Position, Problems, nearest, quote};
use super::tree::{Meaning, Node, Value};
use super::values::{Duration, Size};

/// What people who come from elsewhere write, and what it is called here.
const FOREIGN_KEYS: [(&str, &str); 29] = [
    ("after", "depends_on"),
    ("branch", "base"),
    ("check", "verify"),
    ("checks", "verify"),
    ("cmd", "run"),
    ("command", "run"),
    ("concurrency", "max_parallel"),
    ("cpu", "cpus"),
    ("dependencies", "depends_on"),
    ("deps", "depends_on"),
    ("description", "prompt"),
    ("environment", "env"),
    ("files", "paths"),
    ("gpu", "gpus"),
    ("id", "name"),
    ("instructions", "prompt"),
    ("jobs", "tasks"),
    ("max_retries", "retries"),
    ("mem", "memory"),
    ("needs", "depends_on"),
    ("repository", "repo"),
    ("requires", "depends_on"),
    ("retry", "retries"),
    ("script", "run"),
    ("steps", "tasks"),
    ("tags", "labels"),
    ("test", "verify"),
    ("tests", "verify"),
    ("title", "name"),
];

/// What happens to keys that are not known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    Refused,
    /// They become warnings.
    Tolerated,
}

/// The entries of a mapping whose keys are known.
pub(super) struct Fields<'t> {
    pub(super) at: Position,
    entries: Vec<(&'t str, &'t Node)>,
}

impl<'t> Fields<'t> {
    /// Gives the value of a key; `None` when it is absent or nothing.
    pub(super) fn get(&self, key: &str) -> Option<&'t Node> {
        self.entries
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| *value)
            .filter(|value| !value.is_null())
    }
}

/// Reads values and collects problems.
pub(super) struct Reader<'p> {
    pub(super) problems: &'p mut Problems,
    pub(super) warnings: &'p mut Problems,
    /// Where we are, such as `task "api": `; put before each message.
    pub(super) context: String,
}

impl Reader<'_> {
    /// Notes a problem.
    pub(super) fn wrong(&mut self, at: Position, message: &str) {
        self.problems.add(at, format!("{}{message}", self.context));
    }

    /// Notes a problem with a hint.
    pub(super) fn wrong_with(&mut self, at: Position, message: &str, hint: impl Into<String>) {
        self.problems
            .add_with(at, format!("{}{message}", self.context), hint);
    }

    fn expected(&mut self, key: &str, expected: &str, node: &Node) {
        let found = node.found();
        self.wrong(
            node.at,
            &format!("`{key}`: expected {expected}, found {found}"),
        );
    }

    /// Opens a mapping. Keys that repeat are problems; keys that are not among `keys` are problems
    /// or warnings, with `hint` asked for an explanation before the spelling is.
    pub(super) fn fields<'t>(
        &mut self,
        what: &str,
        node: &'t Node,
        keys: &[&'static str],
        unknown: Unknown,
        hint: impl Fn(&str) -> Option<String>,
    ) -> Option<Fields<'t>> {
        let entries = self.entries(what, node)?;
        let mut known: Vec<(&str, &Node)> = Vec::with_capacity(entries.len().min(keys.len()));
        for (name, key_at, value) in entries {
            if !keys.contains(&name) {
                self.unknown(name, key_at, keys, unknown, &hint);
            } else if known.iter().any(|(seen, _)| *seen == name) {
                self.wrong(key_at, &format!("`{name}` is given twice"));
            } else {
                known.push((name, value));
            }
        }
        Some(Fields {
            at: node.at,
            entries: known,
        })
    }

    fn unknown(
        &mut self,
        name: &str,
        at: Position,
        keys: &[&'static str],
        unknown: Unknown,
        hint: &impl Fn(&str) -> Option<String>,
    ) {
        let list = match unknown {
            Unknown::Refused => &mut *self.problems,
            Unknown::Tolerated => &mut *self.warnings,
        };
        // Past the bound nobody reads the suggestion, and there may be millions.
        if list.list.len() >= PROBLEMS_MAX {
            list.omitted += 1;
            return;
        }
        let foreign = FOREIGN_KEYS
            .iter()
            .find(|(theirs, ours)| *theirs == name && keys.contains(ours))
            .map(|(_, ours)| *ours);
        let hint = hint(name)
            .or_else(|| {
                foreign
                    .or_else(|| nearest(name, keys.iter().copied()))
                    .map(|key| format!("did you mean `{key}`?"))
            })
            .unwrap_or_else(|| format!("known here: {}", keys.join(", ")));
        let quoted = quote(name);
        list.add_with(at, format!("{}unknown key {quoted}", self.context), hint);
    }

    /// Gives the entries of a mapping with text keys.
    pub(super) fn entries<'t>(
        &mut self,
        what: &str,
        node: &'t Node,
    ) -> Option<Vec<(&'t str, Position, &'t Node)>> {
        let Value::Map(entries) = &node.value else {
            self.expected(what, "a mapping", node);
            return None;
        };
        let mut texts = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            match &key.value {
                Value::Scalar(name, _) => texts.push((&**name, key.at, &**value)),
                Value::List(_) | Value::Map(_) => self.expected("key", "text", key),
            }
        }
        Some(texts)
    }

    /// Gives the items of a list.
    pub(super) fn items<'t>(&mut self, key: &str, node: &'t Node) -> Option<&'t [Rc<Node>]> {
        if let Value::List(items) = &node.value {
            return Some(items);
        }
        let found = node.found();
        let message = format!("`{key}`: expected a list, found {found}");
        match &node.value {
            Value::Scalar(text, _) if text.len() < 40 && !text.contains('\n') => {
                self.wrong_with(node.at, &message, format!("write `{key}: [{text}]`"));
            }
            _ => self.wrong(node.at, &message),
        }
        None
    }

    /// Reads text that is not empty, of at most `max` bytes.
    pub(super) fn text(&mut self, key: &str, node: &Node, max: usize) -> Option<String> {
        match node.meaning() {
            Some(Meaning::Text(text)) => self.bounded(key, node, text, max),
            Some(Meaning::Bool(_) | Meaning::Integer(_) | Meaning::Float) => {
                let found = node.found();
                self.wrong_with(
                    node.at,
                    &format!("`{key}`: expected text, found {found}"),
                    "put it in quotes",
                );
                None
            }
            Some(Meaning::Null) | None => {
                self.expected(key, "text", node);
                None
            }
        }
    }

    /// Reads text as [`Self::text`] does, but takes numbers and truth values as they are written.
    pub(super) fn word(&mut self, key: &str, node: &Node, max: usize) -> Option<String> {
        match &node.value {
            Value::Scalar(text, _) if !node.is_null() => self.bounded(key, node, text, max),
            _ => {
                self.expected(key, "text", node);
                None
            }
        }
    }

    fn bounded(&mut self, key: &str, node: &Node, text: &str, max: usize) -> Option<String> {
        if text.trim().is_empty() {
            self.wrong(node.at, &format!("`{key}` is empty"));
        } else if text.len() > max {
            let bytes = text.len();
            self.wrong(
                node.at,
                &format!("`{key}` has {bytes} bytes; at most {max} are allowed"),
            );
        } else if text.contains('\0') {
            self.wrong(node.at, &format!("`{key}` contains a NUL character"));
        } else {
            return Some(text.to_owned());
        }
        None
    }

    /// Reads a list of texts, each with its place; `read` reads one.
    pub(super) fn texts(
        &mut self,
        key: &str,
        node: &Node,
        mut read: impl FnMut(&mut Self, &str, &Node) -> Option<String>,
    ) -> Option<(Vec<String>, Vec<Position>)> {
        let items = self.items(key, node)?;
        let mut texts = Vec::with_capacity(items.len());
        let mut places = Vec::with_capacity(items.len());
        for item in items {
            if let Some(text) = read(self, key, item) {
                texts.push(text);
                places.push(item.at);
            }
        }
        Some((texts, places))
    }

    /// Reads a whole number from `min` to `max`.
    pub(super) fn integer(&mut self, key: &str, node: &Node, min: i64, max: i64) -> Option<i64> {
        match node.meaning() {
            Some(Meaning::Integer(number)) if (min..=max).contains(&number) => Some(number),
            _ => {
                self.expected(key, &format!("a whole number from {min} to {max}"), node);
                None
            }
        }
    }

    /// Reads `true` or `false`.
    pub(super) fn switch(&mut self, key: &str, node: &Node) -> Option<bool> {
        if let Some(Meaning::Bool(switch)) = node.meaning() {
            return Some(switch);
        }
        self.expected(key, "true or false", node);
        None
    }

    /// Reads a duration above zero and up to `max`.
    pub(super) fn duration(&mut self, key: &str, node: &Node, max: Duration) -> Option<Duration> {
        let parsed = match node.meaning() {
            Some(Meaning::Text(text)) => Duration::parse(text),
            _ => None,
        };
        let Some(duration) = parsed else {
            let found = node.found();
            let message =
                format!("`{key}`: expected a duration such as `90s` or `1h30m`, found {found}");
            match node.meaning() {
                Some(Meaning::Integer(number)) if number > 0 => {
                    self.wrong_with(
                        node.at,
                        &message,
                        format!("a unit is missing: `{number}s`?"),
                    );
                }
                _ => self.wrong(node.at, &message),
            }
            return None;
        };
        if duration.0.ms() == 0 || duration > max {
            let days = max.0.ms() / 86_400_000;
            self.wrong(
                node.at,
                &format!("`{key}` must be longer than zero and at most {days}d"),
            );
            return None;
        }
        Some(duration)
    }

    /// Reads a size above zero.
    pub(super) fn size(&mut self, key: &str, node: &Node) -> Option<Size> {
        let parsed = match node.meaning() {
            Some(Meaning::Text(text)) => Size::parse(text),
            _ => None,
        };
        if parsed.is_none_or(|size| size.0 == 0) {
            self.expected(key, "a size such as `512 MiB` or `4 GiB`", node);
            return None;
        }
        parsed
    }

    /// Reads one of several words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        node: &Node,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let Some(Meaning::Text(text)) = node.meaning() else {
            self.expected(key, &names(choices), node);
            return None;
        };
        let chosen = choices.iter().find(|(name, _)| *name == text);
        if chosen.is_none() {
            let message = format!(
                "`{key}`: expected {}, found {}",
                names(choices),
                node.found()
            );
            match nearest(text, choices.iter().map(|(name, _)| *name)) {
                Some(name) => {
                    self.wrong_with(node.at, &message, format!("did you mean `{name}`?"));
                }
                None => self.wrong(node.at, &message),
            }
        }
        chosen.map(|(_, choice)| *choice)
    }
}

fn names<T>(choices: &[(&'static str, T)]) -> String {
    let names: Vec<String> = choices
        .iter()
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    names.join(" or ")
}
