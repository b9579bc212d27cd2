//! The configuration file: what it says and where, with everything wrong in it told at its place.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_connect::private_file;
use muster_git::Remote;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Error;
use super::pools::{self, PoolFile};
use crate::git::mirror::MirrorSettings;
use crate::git::refs::valid_component;
use crate::ledger::prices::{self, Price, Prices, Rate};
use crate::plan::{
    AGENTS_MAX, AgentDefinition, AgentKind, Position, Problems, SHORT_BYTES_MAX,
    VARIABLE_BYTES_MAX, VARIABLES_MAX, is_plain_name, nearest, quote, variable_fault,
};

const FILE_BYTES_MAX: u64 = 1024 * 1024;
const KEYS: [&str; 10] = [
    "listen",
    "slots",
    "log",
    "lease-ttl",
    "lease-grace",
    "heartbeat-interval",
    "agents",
    "mirrors",
    "prices",
    "pools",
];
const MIRROR_KEYS: [&str; 2] = ["url", "credential-file"];
const AGENT_KEYS: [&str; 3] = ["kind", "command", "env"];
const PRICE_KEYS: [&str; 5] = [
    "input",
    "cached-input",
    "cache-write",
    "output",
    "reasoning",
];

/// A value and the line that it stands in.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) line: u32,
}

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct File {
    values: BTreeMap<&'static str, Placed<String>>,
    pub(super) agents: BTreeMap<String, Placed<AgentDefinition>>,
    pub(super) mirrors: BTreeMap<String, Placed<MirrorSettings>>,
    /// By the names of models as they are written.
    pub(super) prices: BTreeMap<String, Placed<Price>>,
    pub(super) pools: BTreeMap<Arc<str>, PoolFile>,
}

impl File {
    /// Takes the text of a value; `None` if the file does not say it.
    pub(super) fn take(&mut self, key: &str) -> Option<Placed<String>> {
        self.values.remove(key)
    }
}

/// Reads the file; one that is not there is empty.
pub(super) fn read(path: &Path) -> Result<File, Error> {
    let bytes = match private_file::read_bounded(path, FILE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(File::default()),
        Err(source) => {
            let path = path.to_owned();
            return Err(Error::Read { path, source });
        }
    };
    let shown = path.display().to_string();
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(&shown, text).map_err(Error::File),
        Err(error) => {
            let mut problems = Problems::new(&shown);
            let before = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or(&[]));
            let at = place(&before, before.len());
            problems.add_with(at, "not UTF-8 text", "save the file as UTF-8");
            Err(Error::File(problems))
        }
    }
}

fn parse(shown: &str, text: &str) -> Result<File, Problems> {
    let mut reader = Reader {
        text,
        problems: Problems::new(shown),
    };
    let mut file = File::default();
    match DeTable::parse(text) {
        Ok(table) => {
            for (key, value) in table.get_ref() {
                reader.top(key, value, &mut file);
            }
        }
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            reader.wrong(
                at..at,
                format!("not readable as TOML: {message}"),
                "a line is `key = value`; texts stand in quotes",
            );
        }
    }
    let mut problems = reader.problems;
    problems.settle();
    if problems.is_empty() {
        Ok(file)
    } else {
        Err(problems)
    }
}

pub(super) struct Reader<'t> {
    text: &'t str,
    problems: Problems,
}

impl Reader<'_> {
    fn top(
        &mut self,
        key: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
        file: &mut File,
    ) {
        let name = key.get_ref().as_ref();
        if name == "agents" {
            self.agents(value, file);
            return;
        }
        if name == "mirrors" {
            self.mirrors(value, file);
            return;
        }
        if name == "prices" {
            self.prices(value, file);
            return;
        }
        if name == "pools" {
            file.pools = pools::read(self, value);
            return;
        }
        let Some(known) = KEYS.into_iter().find(|known| *known == name) else {
            self.unknown(key, "", &KEYS);
            return;
        };
        let wanted_number = known == "slots";
        let value_text = match value.get_ref() {
            DeValue::String(text) if !wanted_number => text.to_string(),
            DeValue::Integer(number) if wanted_number => number.to_string(),
            found => {
                let (wanted, hint) = if wanted_number {
                    (
                        "a whole number",
                        "write it without quotes, such as `slots = 4`",
                    )
                } else {
                    ("text", "put it in quotes")
                };
                let message = format!("`{known}`: expected {wanted}, found {}", kind(found));
                self.wrong(value.span(), message, hint);
                return;
            }
        };
        let line = place(self.text, key.span().start).line;
        let placed = Placed {
            value: value_text,
            line,
        };
        file.values.insert(known, placed);
    }

    fn agents(&mut self, value: &Spanned<DeValue<'_>>, file: &mut File) {
        let Some(agents) = value.get_ref().as_table() else {
            let message = format!("`agents`: expected tables, found {}", kind(value.get_ref()));
            self.wrong(
                value.span(),
                message,
                "write `[agents.NAME]` above the keys of each",
            );
            return;
        };
        if agents.len() > AGENTS_MAX {
            let hint = "declare the rest in the plans that need them";
            self.wrong(value.span(), format!("more than {AGENTS_MAX} agents"), hint);
            return;
        }
        for (name, value) in agents {
            if !is_plain_name(name.get_ref()) {
                let message = format!("agent {}: no plan can name it so", quote(name.get_ref()));
                let hint = "a name consists of letters, digits, `.`, `_` and `-`";
                self.wrong(name.span(), message, hint);
            }
            if let Some(agent) = self.agent(name.get_ref(), value) {
                let line = place(self.text, name.span().start).line;
                let placed = Placed { value: agent, line };
                file.agents.insert(name.get_ref().to_string(), placed);
            }
        }
    }

    fn mirrors(&mut self, value: &Spanned<DeValue<'_>>, file: &mut File) {
        const HINT: &str = "write `[mirrors.REPOSITORY]` above the keys of each";
        let Some(mirrors) = value.get_ref().as_table() else {
            let message = format!(
                "`mirrors`: expected tables, found {}",
                kind(value.get_ref())
            );
            self.wrong(value.span(), message, HINT);
            return;
        };
        for (name, value) in mirrors {
            // `NAME*` stands for all repositories that begin so.
            let start = name.get_ref().strip_suffix('*').unwrap_or(name.get_ref());
            if let Err(error) = valid_component(start) {
                let message = format!("mirror {}: {error}", quote(name.get_ref()));
                let hint = "name a hosted repository, as `status RUN --json` does, or `NAME*`";
                self.wrong(name.span(), message, hint);
                continue;
            }
            if let Some(value) = self.mirror(name.get_ref(), value) {
                let line = place(self.text, name.span().start).line;
                let placed = Placed { value, line };
                file.mirrors.insert(name.get_ref().to_string(), placed);
            }
        }
    }

    fn mirror(&mut self, name: &str, value: &Spanned<DeValue<'_>>) -> Option<MirrorSettings> {
        let of = format!("mirror {}: ", quote(name));
        let Some(keys) = value.get_ref().as_table() else {
            let message = format!("{of}expected a table, found {}", kind(value.get_ref()));
            let hint = "write `url` below `[mirrors.REPOSITORY]`";
            self.wrong(value.span(), message, hint);
            return None;
        };
        let before = self.problems.count();
        let (mut url, mut credential_file) = (None, None);
        for (key, value) in keys {
            let known = key.get_ref().as_ref();
            if !MIRROR_KEYS.contains(&known) {
                self.unknown(key, &of, &MIRROR_KEYS);
                continue;
            }
            let Some(text) = value.get_ref().as_str() else {
                let found = kind(value.get_ref());
                let message = format!("{of}`{known}`: expected text, found {found}");
                self.wrong(value.span(), message, "put it in quotes");
                continue;
            };
            if known == "url" {
                // The text itself stays out of the message: it may hold a password.
                let has_password = text.split_once("://").is_some_and(|(_, rest)| {
                    let authority = rest.split('/').next().unwrap_or_default();
                    authority
                        .rsplit_once('@')
                        .is_some_and(|(user, _)| user.contains(':'))
                });
                if has_password {
                    let hint = "put `user:password` into a file and name it in `credential-file`";
                    self.wrong(value.span(), format!("{of}`url` holds a password"), hint);
                } else if let Err(error) = Remote::new(text) {
                    let hint = "write an address that git understands";
                    self.wrong(value.span(), format!("{of}`url`: {error}"), hint);
                } else {
                    url = Some(text.to_owned());
                }
            } else if Path::new(text).is_absolute() {
                credential_file = Some(PathBuf::from(text));
            } else {
                let message = format!("{of}`credential-file`: {} is not absolute", quote(text));
                self.wrong(value.span(), message, "write the whole path, from /");
            }
        }
        if self.problems.count() > before {
            return None;
        }
        if url.is_none() {
            let message = format!("{of}`url` is missing");
            self.wrong(
                value.span(),
                message,
                "say where its branches are copied to",
            );
        }
        Some(MirrorSettings {
            url: url?,
            credential_file,
        })
    }

    fn prices(&mut self, value: &Spanned<DeValue<'_>>, file: &mut File) {
        let Some(models) = value.get_ref().as_table() else {
            let message = format!("`prices`: expected tables, found {}", kind(value.get_ref()));
            let hint = "write `[prices.\"MODEL\"]` above the prices of each";
            self.wrong(value.span(), message, hint);
            return;
        };
        let mut keys: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in models {
            let model = name.get_ref().to_string();
            let key = prices::key(&model);
            if key.is_empty() {
                let message = format!("price of {}: it has no letters or digits", quote(&model));
                self.wrong(name.span(), message, "name a model as its agent does");
                continue;
            }
            if let Some(other) = keys.get(&key) {
                let message = format!(
                    "price of {}: {} is the same model, since case and punctuation do not count",
                    quote(&model),
                    quote(other)
                );
                self.wrong(name.span(), message, "remove one of them");
                continue;
            }
            keys.insert(key, model.clone());
            if let Some(value) = self.price(&model, value) {
                let line = place(self.text, name.span().start).line;
                file.prices.insert(model, Placed { value, line });
            }
        }
    }

    /// Reads the price of a model. What is not said stays as it is built in; of a model that is not,
    /// what goes through a cache costs what other input does.
    fn price(&mut self, model: &str, value: &Spanned<DeValue<'_>>) -> Option<Price> {
        let of = format!("price of {}: ", quote(model));
        let Some(keys) = value.get_ref().as_table() else {
            let message = format!("{of}expected a table, found {}", kind(value.get_ref()));
            let hint = "write `input` and `output` below `[prices.\"MODEL\"]`";
            self.wrong(value.span(), message, hint);
            return None;
        };
        let before = self.problems.count();
        let mut said: BTreeMap<&str, Rate> = BTreeMap::new();
        for (key, value) in keys {
            let name = key.get_ref().as_ref();
            let Some(known) = PRICE_KEYS.into_iter().find(|known| *known == name) else {
                self.unknown(key, &of, &PRICE_KEYS);
                continue;
            };
            let rate = match value.get_ref() {
                DeValue::Integer(number) if number.radix() == 10 => Rate::parse(number.as_str()),
                DeValue::Float(number) => Rate::parse(number.as_str()),
                DeValue::String(text) => Rate::parse(text),
                _ => None,
            };
            if let Some(rate) = rate {
                said.insert(known, rate);
            } else {
                let found = kind(value.get_ref());
                let message = format!("{of}`{known}`: expected a price, found {found}");
                let hint = "write dollars per million tokens, such as 2.5, with at most six decimal \
                            places";
                self.wrong(value.span(), message, hint);
            }
        }
        if self.problems.count() > before {
            return None;
        }
        let built_in = Prices::default().find(model).copied();
        let of_key = |key: &str, usual: fn(&Price) -> Rate| {
            said.get(key).copied().or(built_in.as_ref().map(usual))
        };
        let (input, output) = (
            of_key("input", |price| price.input),
            of_key("output", |price| price.output),
        );
        let (Some(input), Some(output)) = (input, output) else {
            let message = format!("{of}`input` and `output` are needed");
            let hint = "say what a million tokens of each cost, in dollars";
            self.wrong(value.span(), message, hint);
            return None;
        };
        let cached_input = of_key("cached-input", |price| price.cached_input);
        let cache_write = of_key("cache-write", |price| price.cache_write);
        let reasoning = of_key("reasoning", |price| price.reasoning);
        Some(Price {
            input,
            cached_input: cached_input.unwrap_or(input),
            cache_write: cache_write.unwrap_or(input),
            output,
            reasoning: reasoning.unwrap_or_default(),
        })
    }

    fn agent(&mut self, name: &str, value: &Spanned<DeValue<'_>>) -> Option<AgentDefinition> {
        let kinds = AgentKind::ALL.map(AgentKind::as_str);
        let of = format!("agent {}: ", quote(name));
        let Some(keys) = value.get_ref().as_table() else {
            let message = format!("{of}expected a table, found {}", kind(value.get_ref()));
            self.wrong(
                value.span(),
                message,
                "write `kind` and `command` below `[agents.NAME]`",
            );
            return None;
        };
        let before = self.problems.count();
        let (mut found_kind, mut command) = (None, None);
        let mut env = BTreeMap::new();
        for (key, value) in keys {
            match key.get_ref().as_ref() {
                "kind" => {
                    let text = value.get_ref().as_str().unwrap_or_default();
                    found_kind = AgentKind::ALL
                        .into_iter()
                        .find(|kind| kind.as_str() == text);
                    if found_kind.is_none() {
                        let said = value
                            .get_ref()
                            .as_str()
                            .map_or_else(|| kind(value.get_ref()), quote);
                        let message = format!("{of}`kind`: there is no {said}");
                        let hint = suggestion(text, &kinds);
                        self.wrong(value.span(), message, hint);
                    }
                }
                "command" => command = self.command(&of, value),
                "env" => env = self.env(&of, value),
                _ => self.unknown(key, &of, &AGENT_KEYS),
            }
        }
        if found_kind.is_none() && self.problems.count() == before {
            let hint = "one of command, codex, claude, acp and scripted";
            self.wrong(value.span(), format!("{of}`kind` is missing"), hint);
        }
        if kinds.contains(&name) {
            let hint = format!("declare yours under another name, such as `my-{name}`");
            self.wrong(
                value.span(),
                format!("{of}the name is a built-in agent's"),
                hint,
            );
        }
        let says_command = keys.iter().any(|(key, _)| key.get_ref() == "command");
        if found_kind == Some(AgentKind::Acp) && !says_command {
            let message = format!("{of}an agent of kind `acp` needs a `command`");
            let hint = "for instance `command = [\"my-agent\", \"--acp\"]`";
            self.wrong(value.span(), message, hint);
        }
        let kind = found_kind?;
        (self.problems.count() == before).then_some(AgentDefinition { kind, command, env })
    }

    fn env(&mut self, of: &str, value: &Spanned<DeValue<'_>>) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        let Some(table) = value.get_ref().as_table() else {
            let message = format!(
                "{of}`env`: expected a table, found {}",
                kind(value.get_ref())
            );
            self.wrong(value.span(), message, "write `env = { NAME = \"value\" }`");
            return env;
        };
        if table.len() > VARIABLES_MAX {
            let message = format!("{of}`env`: more than {VARIABLES_MAX} variables");
            self.wrong(value.span(), message, "put some of them into a file");
            return env;
        }
        for (name, value) in table {
            if let Some(fault) = variable_fault(name.get_ref()) {
                let hint = "a name consists of letters, digits and `_`, such as `API_URL`";
                self.wrong(name.span(), format!("{of}`env`: {fault}"), hint);
                continue;
            }
            match value.get_ref().as_str() {
                Some(text) if text.len() > VARIABLE_BYTES_MAX || text.contains('\0') => {
                    let message = format!(
                        "{of}`env.{}`: expected at most {VARIABLE_BYTES_MAX} bytes without NUL",
                        name.get_ref()
                    );
                    self.wrong(value.span(), message, "put the value into a file");
                }
                Some(text) => {
                    env.insert(name.get_ref().to_string(), text.to_owned());
                }
                None => {
                    let found = kind(value.get_ref());
                    let message = format!(
                        "{of}`env.{}`: expected a text, found {found}",
                        name.get_ref()
                    );
                    self.wrong(value.span(), message, "put the value in quotes");
                }
            }
        }
        env
    }

    fn command(&mut self, of: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<String>> {
        let words = match value.get_ref() {
            DeValue::String(program) => Some(vec![program.to_string()]),
            DeValue::Array(words) => words
                .iter()
                .map(|word| word.get_ref().as_str().map(str::to_owned))
                .collect(),
            _ => None,
        };
        match words {
            Some(words)
                if words
                    .iter()
                    .any(|word| word.len() > SHORT_BYTES_MAX || word.contains('\0')) =>
            {
                let message = format!(
                    "{of}`command`: expected words of at most {SHORT_BYTES_MAX} bytes without NUL"
                );
                self.wrong(value.span(), message, "put long arguments into a script");
                None
            }
            Some(words) if matches!(&words[..], [word] if word.contains(char::is_whitespace)) => {
                let list = words.iter().flat_map(|word| word.split_whitespace());
                let list: Vec<String> = list.map(quote).collect();
                let message = format!("{of}`command` is one program name or a list");
                let hint = format!("write `command = [{}]`", list.join(", "));
                self.wrong(value.span(), message, hint);
                None
            }
            Some(words) if words.first().is_some_and(|first| !first.is_empty()) => Some(words),
            found => {
                let what = if found.is_some() {
                    "is empty"
                } else {
                    "is neither a text nor a list of texts"
                };
                let hint =
                    "write a program, or a list such as `[\"codex\", \"--profile\", \"big\"]`";
                self.wrong(value.span(), format!("{of}`command` {what}"), hint);
                None
            }
        }
    }

    fn unknown(&mut self, key: &Spanned<impl AsRef<str>>, of: &str, known: &[&str]) {
        let name = key.get_ref().as_ref();
        let message = format!("{of}unknown key {}", quote(name));
        self.wrong(key.span(), message, suggestion(name, known));
    }

    /// Gives how many wrong things were found.
    pub(super) fn problems(&self) -> usize {
        self.problems.count()
    }

    /// Gives the line of a byte, counted from 1.
    pub(super) fn line(&self, byte: usize) -> u32 {
        place(self.text, byte).line
    }

    pub(super) fn wrong(&mut self, at: Range<usize>, message: String, hint: impl Into<String>) {
        self.problems
            .add_with(place(self.text, at.start), message, hint);
    }
}

pub(super) fn suggestion(text: &str, known: &[&str]) -> String {
    match nearest(text, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

pub(super) fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {}", quote(text)),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(value) => format!("`{value}`"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Gives the place of a byte; both numbers count from 1, columns in characters.
fn place(text: &str, byte: usize) -> Position {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Position {
        line: number(line),
        column: number(column),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_wrong_configuration_is_explained_at_its_place() {
        let table = include_str!("wrong-files.txt");
        let mut out = String::new();
        for case in table.split("=== ").skip(1) {
            let (title, text) = case.split_once('\n').unwrap();
            let problems = parse("config.toml", text).expect_err(title);
            let _ = writeln!(out, "=== {title}\n{problems}\n");
        }
        insta::assert_snapshot!(out);
    }

    #[test]
    fn a_file_that_is_not_text_is_refused_at_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, b"slots = 1\nlog = \"\xff\"").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("config.toml:2:8: not UTF-8 text"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[a-z\\[\\]{}=\"., \n0-9é]{0,80}") {
            let _ = parse("config.toml", &text);
        }
    }
}
