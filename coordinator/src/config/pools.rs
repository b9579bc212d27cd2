//! The `[pools.NAME]` tables of the configuration file.

mod ec2;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coordinator_core::pool::Policy;
use coordinator_core::worker::Offer;
use coordinator_core::{Span, limits};
use toml::Spanned;
use toml::de::DeValue;

use super::file::{Reader, kind, suggestion};
use super::{SLOTS_MAX, written};
use crate::app::LOCAL_POOL;
use crate::git::refs::valid_component;
use crate::plan::{Duration, Size, quote};
use crate::pool::settings::{PoolKind, PoolSettings, SlurmSettings};
use crate::pool::slurm::SIGNAL_EARLY;
use crate::pool::slurm::refuse_directive;

const IDLE_TIMEOUT: Span = Span::from_secs(300);
const JOIN_TIMEOUT: Span = Span::from_secs(600);
const BACKLOG: u32 = 4;
const BURST: u32 = 10;
const FAILURES: u32 = 3;
const POLL: Span = Span::from_secs(10);
/// Least time between two looks at what a provider has.
const POLL_MIN: Span = Span::from_secs(1);
const HAND_OVER: Span = Span::from_secs(120);
/// Workers of one allocation; more are typing errors.
const WORKERS_MAX: u32 = 1024;
/// Longest text and longest list of a pool.
const TEXT_BYTES_MAX: usize = 4096;
const ITEMS_MAX: usize = 256;

const KINDS: [&str; 4] = ["local", "slurm", "ec2", "external"];
/// Keys of pools whose workers people start.
const OFFERED: [&str; 7] = [
    "kind",
    "slots",
    "labels",
    "resources",
    "agents",
    "failures",
    "quarantine",
];
/// Further ones of pools that are scaled.
const SCALED: [&str; 7] = [
    "priority",
    "min",
    "max",
    "idle-timeout",
    "backlog",
    "burst",
    "join-timeout",
];
/// Kinds whose workers the coordinator starts itself, and their key for that.
const STARTED: [&str; 2] = ["local", "slurm"];
const WORKER_ARGS: &str = "worker-args";
/// Further ones of Slurm pools.
const SLURM: [&str; 18] = [
    "workers",
    "partition",
    "account",
    "qos",
    "constraint",
    "gres",
    "time",
    "cpus",
    "memory",
    "directives",
    "setup",
    "login",
    "ssh-options",
    "directory",
    "worker",
    "coordinator",
    "poll",
    "hand-over",
];

/// A value of a pool for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Said {
    pub(super) key: &'static str,
    pub(super) value: String,
    /// Where the file says it; `None` of defaults.
    pub(super) line: Option<u32>,
}

/// A pool as the file has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PoolFile {
    pub(super) settings: PoolSettings,
    pub(super) said: Vec<Said>,
}

/// Reads all pools. Those with something wrong are told of and left out.
pub(super) fn read(
    reader: &mut Reader<'_>,
    value: &Spanned<DeValue<'_>>,
) -> BTreeMap<Arc<str>, PoolFile> {
    let mut pools = BTreeMap::new();
    let Some(tables) = value.get_ref().as_table() else {
        let message = format!("`pools`: expected tables, found {}", kind(value.get_ref()));
        let hint = "write `[pools.NAME]` above the keys of each";
        reader.wrong(value.span(), message, hint);
        return pools;
    };
    for (name, value) in tables {
        let text: &str = name.get_ref();
        if let Err(error) = valid_component(text) {
            let message = format!("pool {}: {error}", quote(text));
            let hint = "name it with letters, digits, `-` and `_`, such as `gpu-big`";
            reader.wrong(name.span(), message, hint);
            continue;
        }
        if text == LOCAL_POOL {
            let message = format!("pool {}: the name is taken", quote(text));
            let hint = "the worker that `coordinator run` starts beside itself is in it, and \
                        `slots` says how much that one takes; choose another name";
            reader.wrong(name.span(), message, hint);
            continue;
        }
        let Some(pool) = pool(reader, text, value) else {
            continue;
        };
        if let Some(other) = ec2::same_group(&pools, &pool) {
            let message = format!(
                "pool {}: its group is that of the pool {} already",
                quote(text),
                quote(other)
            );
            let hint = "make a group for each: two pools of one would end each other's instances";
            reader.wrong(name.span(), message, hint);
            continue;
        }
        pools.insert(text.into(), pool);
    }
    pools
}

fn pool(reader: &mut Reader<'_>, name: &str, value: &Spanned<DeValue<'_>>) -> Option<PoolFile> {
    let of = format!("pool {}: ", quote(name));
    let Some(table) = value.get_ref().as_table() else {
        let message = format!("{of}expected a table, found {}", kind(value.get_ref()));
        reader.wrong(value.span(), message, "write `kind` below `[pools.NAME]`");
        return None;
    };
    let before = reader.problems();
    let mut keys = Keys {
        of,
        whole: value,
        keys: BTreeMap::new(),
        said: vec![],
        reader,
    };
    for (key, value) in table {
        let line = keys.reader.line(key.span().start);
        keys.keys
            .insert(key.get_ref(), (key.span().start, line, value));
    }
    let kind = keys.kind()?;
    keys.known(kind);
    let settings = match kind {
        "external" => external(&mut keys, name),
        "local" => local(&mut keys, name),
        "ec2" => ec2::read(&mut keys, name),
        _ => slurm(&mut keys, name),
    };
    let said = std::mem::take(&mut keys.said);
    let settings = settings.filter(|_| reader.problems() == before)?;
    Some(PoolFile { settings, said })
}

/// The keys of one pool that have not been read yet.
struct Keys<'k, 'r, 't> {
    of: String,
    /// All of it.
    whole: &'k Spanned<DeValue<'k>>,
    /// Byte and line of the key, and the value.
    keys: BTreeMap<&'k str, (usize, u32, &'k Spanned<DeValue<'k>>)>,
    said: Vec<Said>,
    reader: &'r mut Reader<'t>,
}

impl<'k> Keys<'k, '_, '_> {
    fn kind(&mut self) -> Option<&'static str> {
        let Some((_, line, value)) = self.keys.get("kind").copied() else {
            let message = format!("{}`kind` is missing", self.of);
            let hint = "one of local, slurm, ec2 and external";
            self.reader.wrong(self.whole.span(), message, hint);
            return None;
        };
        let text = value.get_ref().as_str().unwrap_or_default();
        let found = KINDS.into_iter().find(|kind| *kind == text);
        if let Some(found) = found {
            self.say("kind", found.to_owned(), Some(line));
        } else {
            let said = value.get_ref().as_str();
            let said = said.map_or_else(|| kind(value.get_ref()), quote);
            let message = format!("{}`kind`: there is no {said}", self.of);
            self.reader
                .wrong(value.span(), message, suggestion(text, &KINDS));
        }
        found
    }

    /// Refuses keys that pools of this kind do not have.
    fn known(&mut self, kind: &str) {
        let mut known = OFFERED.to_vec();
        if kind != "external" {
            known.extend(SCALED);
        }
        match kind {
            "slurm" => known.extend(SLURM),
            "ec2" => known.extend(ec2::EC2),
            _ => {}
        }
        if STARTED.contains(&kind) {
            known.push(WORKER_ARGS);
        }
        let others: Vec<(&str, usize)> = self
            .keys
            .iter()
            .filter(|(key, _)| !known.contains(key))
            .map(|(key, (at, ..))| (*key, *at))
            .collect();
        for (key, at) in others {
            let scaled = SCALED.contains(&key) || key == WORKER_ARGS;
            let elsewhere = scaled || SLURM.contains(&key) || ec2::EC2.contains(&key);
            let (message, hint) = if scaled && kind == "external" {
                (
                    format!("{}pools of kind `external` have no `{key}`", self.of),
                    "people start its workers: nothing is started or ended here".to_owned(),
                )
            } else if elsewhere {
                let hint = if key == WORKER_ARGS {
                    "the user data of its instances starts the worker: see `worker_options` of the \
                     Terraform module"
                } else if SLURM.contains(&key) {
                    "it belongs to pools of kind `slurm`"
                } else {
                    "it belongs to pools of kind `ec2`"
                };
                (
                    format!("{}pools of kind `{kind}` have no `{key}`", self.of),
                    hint.to_owned(),
                )
            } else {
                (
                    format!("{}unknown key {}", self.of, quote(key)),
                    suggestion(key, &known),
                )
            };
            self.reader.wrong(at..at, message, hint);
        }
    }

    fn say(&mut self, key: &'static str, value: String, line: Option<u32>) {
        self.said.push(Said { key, value, line });
    }

    fn wrong(&mut self, value: &Spanned<DeValue<'_>>, what: &str, hint: &str) {
        let message = format!("{}{what}", self.of);
        self.reader.wrong(value.span(), message, hint);
    }

    fn expected(&mut self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str, hint: &str) {
        let found = kind(value.get_ref());
        self.wrong(
            value,
            &format!("`{key}`: expected {wanted}, found {found}"),
            hint,
        );
    }

    fn missing(&mut self, key: &str, hint: &str) {
        let message = format!("{}`{key}` is missing", self.of);
        self.reader.wrong(self.whole.span(), message, hint);
    }

    fn get(&self, key: &str) -> Option<(u32, &'k Spanned<DeValue<'k>>)> {
        self.keys.get(key).map(|(_, line, value)| (*line, *value))
    }

    fn number(&mut self, key: &'static str, least: u32, most: u32) -> Option<u32> {
        let (line, value) = self.get(key)?;
        let number = integer(value.get_ref()).and_then(|number| u32::try_from(number).ok());
        let Some(number) = number.filter(|number| (least..=most).contains(number)) else {
            let wanted = format!("a whole number from {least} to {most}");
            let hint = unquoted(value.get_ref(), "write a whole number within these bounds");
            self.expected(key, value, &wanted, hint);
            return None;
        };
        self.say(key, number.to_string(), Some(line));
        Some(number)
    }

    fn number_or(&mut self, key: &'static str, least: u32, most: u32, usual: u32) -> u32 {
        if self.get(key).is_none() {
            self.say(key, usual.to_string(), None);
        }
        self.number(key, least, most).unwrap_or(usual)
    }

    fn span(&mut self, key: &'static str) -> Option<Span> {
        let (line, value) = self.get(key)?;
        let text = value.get_ref().as_str();
        let length = text.and_then(Duration::parse);
        let Some(length) = length.filter(|length| length.0 > Span::ZERO) else {
            let hint = "write it in quotes with a unit, such as \"90s\" or \"1h30m\"";
            self.expected(key, value, "a length of time", hint);
            return None;
        };
        self.say(key, text.unwrap_or_default().to_owned(), Some(line));
        Some(length.0)
    }

    fn span_or(&mut self, key: &'static str, usual: Span) -> Span {
        if self.get(key).is_none() {
            self.say(key, written(usual), None);
        }
        self.span(key).unwrap_or(usual)
    }

    /// Reads how often a provider is looked at: more often than each second helps nobody, and costs the
    /// cluster's controller or the cloud's goodwill.
    fn poll(&mut self) -> Span {
        let poll = self.span_or("poll", POLL);
        if poll >= POLL_MIN {
            return poll;
        }
        if let Some((_, value)) = self.get("poll") {
            let what = format!("`poll` is less than {}", written(POLL_MIN));
            self.wrong(value, &what, "write a longer time, such as \"10s\"");
        }
        POLL_MIN
    }

    fn flag_or(&mut self, key: &'static str, usual: bool) -> bool {
        let Some((line, value)) = self.get(key) else {
            self.say(key, usual.to_string(), None);
            return usual;
        };
        let Some(flag) = value.get_ref().as_bool() else {
            let hint = unquoted(value.get_ref(), "write one of these words");
            self.expected(key, value, "`true` or `false`", hint);
            return usual;
        };
        self.say(key, flag.to_string(), Some(line));
        flag
    }

    /// Reads one line of text that `fits`; the hint says what does.
    fn text(
        &mut self,
        key: &'static str,
        hint: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let (line, value) = self.get(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.expected(key, value, "text", "put it in quotes");
            return None;
        };
        if !is_line(text) || !fits(text) {
            self.wrong(
                value,
                &format!("`{key}`: {} will not do", quote(text)),
                hint,
            );
            return None;
        }
        self.say(key, text.to_owned(), Some(line));
        Some(text.to_owned())
    }

    fn word(&mut self, key: &'static str) -> Option<String> {
        let hint = "write one word, as the cluster names it";
        self.text(key, hint, |text| {
            !text.contains(char::is_whitespace) && !text.starts_with('-')
        })
    }

    fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let hint = "write the whole path, from /, in one line and without spaces or quotes";
        let path = self.text(key, hint, |text| {
            let plain = |c: char| !c.is_whitespace() && !"'\"\\$`%".contains(c);
            Path::new(text).is_absolute() && text.chars().all(plain)
        });
        path.map(PathBuf::from)
    }

    /// Reads lines of text that each `fit`. `secret` ones are counted, not shown.
    fn texts(
        &mut self,
        key: &'static str,
        hint: &str,
        secret: bool,
        fits: impl Fn(&str) -> bool,
    ) -> Option<Vec<String>> {
        let (line, value) = self.get(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.expected(key, value, "a list of texts", "write `[\"…\", \"…\"]`");
            return None;
        };
        if items.len() > ITEMS_MAX {
            let what = format!("`{key}` has more than {ITEMS_MAX} items");
            self.wrong(value, &what, "put them into a script and name that");
            return None;
        }
        let mut texts = vec![];
        for item in items {
            let Some(text) = item.get_ref().as_str() else {
                self.expected(key, item, "text", "put it in quotes");
                continue;
            };
            if is_line(text) && fits(text) {
                texts.push(text.to_owned());
            } else {
                let what = format!("`{key}`: {} will not do", quote(text));
                self.wrong(item, &what, hint);
            }
        }
        let shown = match texts.len() {
            1 if secret => "(1 set)".to_owned(),
            count if secret => format!("({count} set)"),
            _ => texts.join(", "),
        };
        self.say(key, shown, Some(line));
        Some(texts)
    }

    fn resources(&mut self) -> BTreeMap<Arc<str>, u64> {
        let mut resources = BTreeMap::new();
        let Some((line, value)) = self.get("resources") else {
            return resources;
        };
        let Some(table) = value.get_ref().as_table() else {
            let hint = "write `resources = { cpus = 4, memory = \"16 GiB\" }`";
            self.expected("resources", value, "a table", hint);
            return resources;
        };
        let mut shown = vec![];
        for (name, value) in table {
            let text: &str = name.get_ref();
            let size = value
                .get_ref()
                .as_str()
                .and_then(Size::parse)
                .map(Size::mib);
            let (name, amount, hint) = match text {
                "memory" => ("memory_mib", size, "write it in quotes, such as \"16 GiB\""),
                _ => (text, integer(value.get_ref()), "write a whole number"),
            };
            let plain = !name.contains(|c: char| c == '=' || c.is_whitespace() || c.is_control());
            let Some(amount) = amount.filter(|_| plain && !name.is_empty()) else {
                let key = format!("resources.{text}");
                self.expected(&key, value, "an amount", hint);
                continue;
            };
            shown.push(match text {
                "memory" => format!("memory {amount} MiB"),
                _ => format!("{name} {amount}"),
            });
            resources.insert(name.into(), amount);
        }
        self.say("resources", shown.join(", "), Some(line));
        resources
    }

    fn offer(&mut self, name: &str) -> (Offer, Option<BTreeSet<Arc<str>>>) {
        let slots = self.number_or("slots", 1, SLOTS_MAX, 1);
        let hint = "a label is `key` or `key=value`, without spaces";
        let labels = self.texts("labels", hint, false, |label| {
            let key = label.split('=').next().unwrap_or_default();
            !key.is_empty() && !label.contains(char::is_whitespace)
        });
        let resources = self.resources();
        let hint = "write the names that plans give to agents";
        let agents = self.texts("agents", hint, false, |name| {
            !name.is_empty() && !name.contains(char::is_whitespace)
        });
        let template = Offer {
            pool: name.into(),
            slots,
            labels: labels
                .unwrap_or_default()
                .into_iter()
                .map(Arc::from)
                .collect(),
            resources,
            ..Offer::default()
        };
        let agents = agents.map(|agents| agents.into_iter().map(Arc::from).collect());
        (template, agents)
    }

    /// Reads how the pool is scaled; `quarantine` says whether its hosts are quarantined usually.
    fn scaled(&mut self, name: &str, quarantine: bool) -> Policy {
        let most = u32::try_from(limits::ALLOCATIONS).unwrap_or(u32::MAX);
        let priority = self.priority();
        let min = self.number_or("min", 0, most, 0);
        if self.get("max").is_none() {
            let hint = "say how many allocations there may be at once, such as `max = 4`";
            self.missing("max", hint);
        }
        let max = self.number("max", 1, most).unwrap_or(most);
        if min > max
            && let Some((_, value)) = self.get("min")
        {
            let what = format!("`min` is {min}, and `max` is {max}");
            self.wrong(value, &what, "make `max` as large as `min` at least");
        }
        let (template, agents) = self.offer(name);
        Policy {
            priority,
            min,
            max,
            template,
            agents,
            workers: 1,
            idle_timeout: self.span_or("idle-timeout", IDLE_TIMEOUT),
            backlog: self.number_or("backlog", 1, most, BACKLOG),
            burst: self.number_or("burst", 1, most, BURST),
            join_timeout: self.span_or("join-timeout", JOIN_TIMEOUT),
            walltime: None,
            failures_max: self.number_or("failures", 1, 1000, FAILURES),
            quarantine: self.flag_or("quarantine", quarantine),
            stays: false,
        }
    }

    fn priority(&mut self) -> i32 {
        let Some((line, value)) = self.get("priority") else {
            self.say("priority", "0".to_owned(), None);
            return 0;
        };
        let number = signed(value.get_ref()).and_then(|number| i32::try_from(number).ok());
        let Some(number) = number else {
            let hint = "pools of a higher one are asked first";
            self.expected("priority", value, "a whole number", hint);
            return 0;
        };
        self.say("priority", number.to_string(), Some(line));
        number
    }
}

fn external(keys: &mut Keys<'_, '_, '_>, name: &str) -> Option<PoolSettings> {
    let (template, agents) = keys.offer(name);
    let policy = Policy {
        priority: 0,
        min: 0,
        max: 0,
        template,
        agents,
        workers: 1,
        idle_timeout: IDLE_TIMEOUT,
        backlog: 0,
        burst: 0,
        join_timeout: JOIN_TIMEOUT,
        walltime: None,
        failures_max: keys.number_or("failures", 1, 1000, FAILURES),
        quarantine: keys.flag_or("quarantine", false),
        stays: false,
    };
    let kind = PoolKind::External;
    Some(PoolSettings { policy, kind })
}

impl Keys<'_, '_, '_> {
    /// Further arguments of the pool's workers; they may hold what nobody is to see.
    fn worker_args(&mut self) -> Vec<String> {
        let arguments = self.texts("worker-args", "write one argument each", true, |_| true);
        arguments.unwrap_or_default()
    }
}

fn local(keys: &mut Keys<'_, '_, '_>, name: &str) -> Option<PoolSettings> {
    // All its workers are on one host, so nothing is gained by leaving that out.
    let policy = keys.scaled(name, false);
    let kind = PoolKind::Local {
        worker_args: keys.worker_args(),
    };
    Some(PoolSettings { policy, kind })
}

fn slurm(keys: &mut Keys<'_, '_, '_>, name: &str) -> Option<PoolSettings> {
    let mut policy = keys.scaled(name, true);
    policy.workers = keys.number_or("workers", 1, WORKERS_MAX, 1);
    if keys.get("time").is_none() {
        let hint = "say how long a job may run, such as `time = \"4h\"`";
        keys.missing("time", hint);
    }
    let time = keys.span("time");
    let hand_over = keys.span_or("hand-over", HAND_OVER);
    let least = hand_over + SIGNAL_EARLY + limits::WALLTIME_FLOOR;
    if let Some(time) = time
        && time <= least
        && let Some((_, value)) = keys.get("time")
    {
        let what = format!("`time` is {}, which leaves none for work", written(time));
        let hint = format!(
            "make it longer than {}: nothing is begun on a job that ends sooner, and Slurm may tell \
             it a minute too early",
            written(least)
        );
        keys.wrong(value, &what, &hint);
    }
    // What is left for work: a job hands over before its end.
    policy.walltime = time.map(|time| Span::from_ms(time.ms().saturating_sub(hand_over.ms())));
    let cpus = keys.number("cpus", 1, 1_000_000);
    let memory_mib = keys.size("memory");
    // What a job asks for is what its workers have to give, unless the file says otherwise.
    let offered = [("cpus", cpus.map(u64::from)), ("memory_mib", memory_mib)];
    for (name, amount) in offered {
        if let Some(amount) = amount {
            let resources = &mut policy.template.resources;
            resources.entry(name.into()).or_insert(amount);
        }
    }
    if keys.get("directory").is_none() {
        let hint = "name a folder that the submitting host and the nodes share, such as \
                    `directory = \"/shared/me/muster\"`";
        keys.missing("directory", hint);
    }
    let directory = keys.path("directory");
    let host = |text: &str| !text.starts_with('-') && !text.contains(char::is_whitespace);
    let settings = SlurmSettings {
        partition: keys.word("partition"),
        account: keys.word("account"),
        qos: keys.word("qos"),
        constraint: keys.word("constraint"),
        gres: keys.word("gres"),
        time: time.unwrap_or_default(),
        cpus,
        memory_mib,
        directives: keys.directives(),
        setup: keys
            .texts("setup", "write one line of shell each", true, |_| true)
            .unwrap_or_default(),
        login: keys.text("login", "write `host` or `user@host`", |text| {
            !text.is_empty() && host(text)
        }),
        ssh_options: keys
            .texts(
                "ssh-options",
                "write one argument of ssh each",
                false,
                |_| true,
            )
            .unwrap_or_default(),
        directory: directory.unwrap_or_default(),
        worker: keys.path("worker"),
        worker_args: keys.worker_args(),
        coordinator: keys.text(
            "coordinator",
            "write the address that nodes dial, such as \"head.example.org:7733\"",
            |text| {
                let split = text.rsplit_once(':');
                split.is_some_and(|(name, port)| {
                    !name.is_empty() && host(name) && port.parse::<u16>().is_ok_and(|n| n > 0)
                })
            },
        ),
        poll: keys.poll(),
        hand_over,
    };
    let kind = PoolKind::Slurm(Box::new(settings));
    Some(PoolSettings { policy, kind })
}

impl Keys<'_, '_, '_> {
    /// Reads further options of `sbatch`; those that would take from what Muster needs are refused here.
    fn directives(&mut self) -> Vec<String> {
        let hint =
            "write options of sbatch as they stand behind `#SBATCH`, such as \"--exclusive\"";
        let directives = self.texts("directives", hint, false, |text| text.starts_with('-'));
        let directives = directives.unwrap_or_default();
        let why = directives.iter().find_map(|line| refuse_directive(line));
        if let (Some(why), Some((_, value))) = (why, self.get("directives")) {
            self.wrong(value, &format!("`directives`: {why}"), "leave it out");
        }
        directives
    }

    /// Reads an amount of memory, in MiB.
    fn size(&mut self, key: &'static str) -> Option<u64> {
        let (line, value) = self.get(key)?;
        let text = value.get_ref().as_str();
        let size = text.and_then(Size::parse).filter(|size| size.0 > 0);
        let Some(size) = size else {
            let hint = "write it in quotes with a unit, such as \"16 GiB\"";
            self.expected(key, value, "an amount of memory", hint);
            return None;
        };
        self.say(key, text.unwrap_or_default().to_owned(), Some(line));
        Some(size.mib())
    }
}

/// What to do about a value that was a number or a flag, had it no quotes.
fn unquoted(value: &DeValue<'_>, otherwise: &'static str) -> &'static str {
    match value.as_str() {
        Some(_) => "write it without quotes",
        None => otherwise,
    }
}

fn is_line(text: &str) -> bool {
    text.len() <= TEXT_BYTES_MAX && !text.chars().any(|c| c.is_control() && c != '\t')
}

fn signed(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    signed(value).and_then(|number| u64::try_from(number).ok())
}
