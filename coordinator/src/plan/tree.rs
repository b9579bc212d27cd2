//! A file as a tree of values that know their place, built within bounds.

use std::collections::HashMap;
use std::rc::Rc;

use coordinator_core::limits::TASKS_PER_RUN;
use granit_parser::{Event, Marker, Parser, ScalarStyle, StructureStyle, Tag};

use super::problem::{Position, Problem, Problems, quote};

/// Longest file that is read: the largest plan the core takes (200,000 tasks) is about 30 MB.
pub const FILE_BYTES_MAX: usize = 32 << 20;
/// Deepest nesting; a plan needs six levels. Everything that walks a tree may therefore recurse.
const NESTING_MAX: u32 = 64;
/// Values that aliases may stand for, together: enough for shared settings, not for a bomb.
const ALIASED_VALUES_MAX: u32 = 1_000_000;
/// Bytes of text that aliases may stand for, together.
const ALIASED_BYTES_MAX: u32 = 32 << 20;
/// Values of a file, keys included: twenty for each of the 200,000 tasks of the largest plan. It
/// bounds the memory of a file that is all commas to some 400 MB.
pub(super) const VALUES_MAX: u32 = 4_000_000;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
    /// Values in this tree, itself included, aliases counted as what they stand for.
    values: u32,
    bytes: u32,
    height: u32,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Text, and whether it can only be text (quoted, block or tagged) or may be read as a number.
    Scalar(Box<str>, Reading),
    List(Vec<Rc<Node>>),
    /// In the order of the file; keys may repeat.
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    Text,
    Plain,
}

/// What a plain scalar means in YAML 1.2.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Meaning<'a> {
    Null,
    Bool(bool),
    Integer(i64),
    /// A number that is not an integer of 64 bits.
    Float,
    Text(&'a str),
}

impl Node {
    fn new(at: Position, value: Value) -> Self {
        let mut node = Self {
            at,
            value,
            values: 1,
            bytes: 0,
            height: 1,
        };
        let mut count = |child: &Node| {
            node.values = node.values.saturating_add(child.values);
            node.bytes = node.bytes.saturating_add(child.bytes);
            node.height = node.height.max(child.height + 1);
        };
        match &node.value {
            Value::Scalar(text, _) => node.bytes = u32::try_from(text.len()).unwrap_or(u32::MAX),
            Value::List(items) => items.iter().for_each(|item| count(item)),
            Value::Map(entries) => {
                for (key, value) in entries {
                    count(key);
                    count(value);
                }
            }
        }
        node
    }

    /// Gives what a scalar means; `None` for lists and mappings.
    pub(super) fn meaning(&self) -> Option<Meaning<'_>> {
        let Value::Scalar(text, reading) = &self.value else {
            return None;
        };
        if *reading == Reading::Text {
            return Some(Meaning::Text(text));
        }
        Some(match &**text {
            "" | "~" | "null" | "Null" | "NULL" => Meaning::Null,
            "true" | "True" | "TRUE" => Meaning::Bool(true),
            "false" | "False" | "FALSE" => Meaning::Bool(false),
            text => match text.parse::<i64>() {
                Ok(number) => Meaning::Integer(number),
                Err(_) if is_number(text) => Meaning::Float,
                Err(_) => Meaning::Text(text),
            },
        })
    }

    /// True for an absent value (`key:` with nothing behind it, or `null`).
    pub(super) fn is_null(&self) -> bool {
        self.meaning() == Some(Meaning::Null)
    }

    /// Names what was found, for "expected …, found …".
    pub(super) fn found(&self) -> String {
        match (&self.value, self.meaning()) {
            (Value::List(_), _) => "a list".to_owned(),
            (Value::Map(_), _) => "a mapping".to_owned(),
            (_, Some(Meaning::Null)) => "nothing".to_owned(),
            (Value::Scalar(text, _), Some(Meaning::Bool(_))) => text.to_string(),
            (Value::Scalar(text, _), Some(Meaning::Integer(_) | Meaning::Float)) => {
                format!("the number {text}")
            }
            (Value::Scalar(text, _), _) => format!("the text {}", quote(text)),
        }
    }
}

/// True for floats and for the other integer notations of YAML.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if let Some(hex) = digits.strip_prefix("0x") {
        return !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
    }
    if let Some(octal) = digits.strip_prefix("0o") {
        return !octal.is_empty() && octal.bytes().all(|b| (b'0'..=b'7').contains(&b));
    }
    // Rust also takes "inf", "nan" and "infinity", which are words in YAML.
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.ends_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.parse::<f64>().is_ok()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    List,
    Map,
}

/// An open list or mapping.
struct Frame {
    at: Position,
    anchor: usize,
    shape: Shape,
    /// In brackets.
    flow: bool,
    /// For a mapping: key, value, key, value, …
    items: Vec<Rc<Node>>,
}

/// Reads a file of at most `values_max` values into a tree. On failure the one reason is in
/// `problems`: behind it nothing can be trusted.
pub(super) fn read(bytes: &[u8], values_max: u32, problems: &mut Problems) -> Option<Rc<Node>> {
    let text = text_of(bytes, problems)?;
    let mut builder = Builder {
        problems,
        anchors: HashMap::new(),
        stack: Vec::new(),
        root: None,
        documents: 0,
        values: 0,
        values_max,
        aliased_values: 0,
        aliased_bytes: 0,
    };
    let options = granit_parser::options! {
        flow_nesting_limit: NESTING_MAX as usize * 2,
        block_nesting_limit: NESTING_MAX as usize * 2,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => {
                let start = span.tag_start().unwrap_or(span.start);
                builder.take(event, position(&start))?;
            }
            Err(error) => {
                let at = position(error.marker());
                let message = match error.kind() {
                    granit_parser::ErrorKind::RecursionLimitExceeded => too_deep(),
                    _ => format!("not readable as YAML: {}", error.info()),
                };
                let open = builder
                    .stack
                    .last()
                    .filter(|frame| frame.flow)
                    .map(|f| f.at);
                explain(builder.problems.add(at, message), text, at, open);
                return None;
            }
        }
    }
    if builder.root.is_none() {
        builder.problems.add_with(
            Position { line: 1, column: 1 },
            "the file is empty",
            "a plan needs at least `tasks:` with one task",
        );
    }
    builder.root
}

/// Adds hints for the mistakes that YAML's own messages explain badly. `open` is where the
/// innermost `[` or `{` is, if the parser was inside one.
fn explain(problem: Option<&mut Problem>, text: &str, at: Position, open: Option<Position>) {
    let Some(problem) = problem else { return };
    let line = text
        .lines()
        .nth((at.line as usize).saturating_sub(1))
        .unwrap_or_default();
    let there = line.chars().nth((at.column as usize).saturating_sub(1));
    if there == Some('\0') {
        problem
            .hints
            .push("remove the NUL character: a plan is plain text".to_owned());
    } else if let Some(marked) = text.lines().position(is_conflict_marker) {
        problem.hints.push(format!(
            "line {} is a conflict marker of git: the file was not merged to its end",
            marked + 1
        ));
    } else if line.trim_start_matches(' ').starts_with('\t') {
        problem
            .hints
            .push("indent with spaces; YAML does not allow tabs".to_owned());
    } else if let Some(open) = open {
        let Position { line, column } = open;
        problem.hints.push(format!(
            "the bracket in line {line}, column {column}, is still open here"
        ));
    } else if line.matches(": ").count() > 1 {
        problem
            .hints
            .push("text that contains `: ` needs quotes, or a block: `key: |`".to_owned());
    }
}

fn is_conflict_marker(line: &str) -> bool {
    line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ")
}

fn text_of<'a>(bytes: &'a [u8], problems: &mut Problems) -> Option<&'a str> {
    if bytes.len() > FILE_BYTES_MAX {
        problems.add_with(
            Position { line: 1, column: 1 },
            format!(
                "the file has {} bytes; at most {FILE_BYTES_MAX} are read",
                bytes.len()
            ),
            "split the plan into several runs",
        );
        return None;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let before = String::from_utf8_lossy(valid);
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            problems.add_with(
                Position {
                    line: u32::try_from(line).unwrap_or(u32::MAX),
                    column: u32::try_from(column).unwrap_or(u32::MAX),
                },
                "not UTF-8 text",
                "save the file as UTF-8",
            );
            None
        }
    }
}

fn position(marker: &Marker) -> Position {
    Position {
        line: u32::try_from(marker.line().max(1)).unwrap_or(u32::MAX),
        column: u32::try_from(marker.col() + 1).unwrap_or(u32::MAX),
    }
}

fn too_deep() -> String {
    format!("nested more than {NESTING_MAX} levels deep")
}

struct Builder<'p> {
    problems: &'p mut Problems,
    anchors: HashMap<usize, Rc<Node>>,
    stack: Vec<Frame>,
    root: Option<Rc<Node>>,
    documents: u32,
    values: u32,
    values_max: u32,
    aliased_values: u32,
    aliased_bytes: u32,
}

impl Builder<'_> {
    /// Takes the parser's next event; `None` when the file is refused.
    fn take(&mut self, event: Event<'_>, at: Position) -> Option<()> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.problems.add_with(
                        at,
                        "a second YAML document begins here",
                        "a plan is one document; remove the `---`",
                    );
                    return None;
                }
                Some(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let mut reading = match style {
                    ScalarStyle::Plain => Reading::Plain,
                    _ => Reading::Text,
                };
                if self.tag(tag.as_deref(), at)? == Some("str") {
                    reading = Reading::Text;
                }
                self.place(Node::new(at, Value::Scalar(text.into(), reading)), anchor)
            }
            Event::SequenceStart(style, anchor, tag) => {
                self.tag(tag.as_deref(), at)?;
                self.open(at, anchor, Shape::List, style)
            }
            Event::MappingStart(style, anchor, tag) => {
                self.tag(tag.as_deref(), at)?;
                self.open(at, anchor, Shape::Map, style)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(id) => self.alias(id, at),
            _ => Some(()),
        }
    }

    /// Gives the core tag, such as `str`; refuses tags of applications.
    fn tag<'t>(&mut self, tag: Option<&'t Tag>, at: Position) -> Option<Option<&'t str>> {
        let Some(tag) = tag else { return Some(None) };
        let core = tag.core_suffix();
        if core.is_none() && tag.suffix() != "" {
            self.problems.add(
                at,
                format!("the tag {} has no meaning here", quote(&tag.original())),
            );
            return None;
        }
        Some(core)
    }

    fn open(
        &mut self,
        at: Position,
        anchor: usize,
        shape: Shape,
        style: StructureStyle,
    ) -> Option<()> {
        if self.stack.len() as u64 >= u64::from(NESTING_MAX) {
            self.problems.add(at, too_deep());
            return None;
        }
        self.stack.push(Frame {
            at,
            anchor,
            shape,
            flow: style == StructureStyle::Flow,
            items: Vec::new(),
        });
        Some(())
    }

    fn close(&mut self) -> Option<()> {
        let frame = self.stack.pop()?;
        let value = if frame.shape == Shape::Map {
            let mut entries = Vec::with_capacity(frame.items.len() / 2);
            let mut items = frame.items.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                entries.push((key, value));
            }
            Value::Map(entries)
        } else {
            Value::List(frame.items)
        };
        self.place(Node::new(frame.at, value), frame.anchor)
    }

    fn alias(&mut self, id: usize, at: Position) -> Option<()> {
        let Some(target) = self.anchors.get(&id).cloned() else {
            self.problems.add(at, "an alias inside what it stands for");
            return None;
        };
        self.aliased_values = self.aliased_values.saturating_add(target.values);
        self.aliased_bytes = self.aliased_bytes.saturating_add(target.bytes);
        if self.aliased_values > ALIASED_VALUES_MAX || self.aliased_bytes > ALIASED_BYTES_MAX {
            self.problems.add(
                at,
                format!(
                    "aliases stand for too much: at most {ALIASED_VALUES_MAX} values and \
                     {ALIASED_BYTES_MAX} bytes"
                ),
            );
            return None;
        }
        if self.stack.len() as u64 + u64::from(target.height) > u64::from(NESTING_MAX) {
            self.problems.add(at, too_deep());
            return None;
        }
        self.put(target)
    }

    fn place(&mut self, node: Node, anchor: usize) -> Option<()> {
        self.values += 1;
        if self.values > self.values_max {
            self.problems.add_with(
                node.at,
                format!(
                    "more than {} values (keys, texts, lists and mappings together); that is the \
                     most of one plan",
                    self.values_max
                ),
                "split the plan into several runs",
            );
            return None;
        }
        let node = Rc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.put(node)
    }

    fn put(&mut self, node: Rc<Node>) -> Option<()> {
        let is_task = self.is_in_tasks();
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Some(());
        };
        if is_task && frame.items.len() >= TASKS_PER_RUN {
            self.problems.add_with(
                node.at,
                format!("more than {TASKS_PER_RUN} tasks; that is the most of one run"),
                "split the plan into several runs",
            );
            return None;
        }
        frame.items.push(node);
        Some(())
    }

    /// Tells whether the innermost list is that of the plan's tasks. They are counted here, since
    /// reading all of a much larger plan only to refuse it would cost seconds and memory.
    fn is_in_tasks(&self) -> bool {
        let [root, tasks] = self.stack.as_slice() else {
            return false;
        };
        let key = root.items.last().map(|key| &key.value);
        tasks.shape == Shape::List
            && root.shape == Shape::Map
            && root.items.len() % 2 == 1
            && matches!(key, Some(Value::Scalar(key, _)) if &**key == "tasks")
    }
}
