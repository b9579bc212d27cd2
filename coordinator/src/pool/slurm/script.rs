//! The batch script of an order, and the quoting that keeps values values.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::directives::{directive, foreign};
use coordinator_core::Span;
use coordinator_core::pool::Policy;

use crate::pool::provider::OrderName;
use crate::pool::settings::SlurmSettings;

/// The script as it comes with the program; `slurm/worker.sbatch` of the sources.
pub(crate) const TEMPLATE: &str = include_str!("../../../../slurm/worker.sbatch");

/// Longest directory and longest line of `setup` or `directives`; `sbatch` reads lines up to 8 KiB.
const VALUE_MAX: usize = 4_096;
/// What Slurm can be told of the time before a signal.
const SIGNAL_MAX: u64 = 65_535;
/// What workers take for a hand-over, in seconds.
const HAND_OVER_S: (u64, u64) = (15, 3_600);
/// Why there is no script.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{what} cannot be used: it {why}")]
    Value { what: String, why: &'static str },
    #[error("the directive {0:?} cannot be used: {1}")]
    Directive(String, &'static str),
    #[error("the template names @{{{0}}}, which is nothing that can be filled in")]
    Unknown(String),
    #[error("the template has a @{{ that is not closed")]
    Open,
}

/// What the script of one order says.
#[derive(Clone, Debug)]
pub(crate) struct Script<'a> {
    pub(crate) name: &'a OrderName,
    pub(crate) count: u32,
    pub(crate) settings: &'a SlurmSettings,
    pub(crate) policy: &'a Policy,
    /// Names of Slurm's nodes.
    pub(crate) exclude: &'a BTreeSet<Arc<str>>,
    /// The program and what makes a worker of it.
    pub(crate) program: &'a [String],
    pub(crate) coordinator: &'a str,
    /// Path of the token files, without the dot and the index.
    pub(crate) tokens: &'a str,
    pub(crate) directory: &'a str,
    /// How long a worker may hold nothing before it leaves by itself.
    pub(crate) idle_exit: Span,
}

impl Script<'_> {
    /// Fills the template in.
    pub(crate) fn render(&self, template: &str) -> Result<String, Error> {
        let directives = self.directives()?;
        let worker: Vec<String> = self.worker()?.iter().map(|word| shell(word)).collect();
        let worker = worker.join(" ");
        for line in &self.settings.setup {
            usable("a line of setup", line)?;
        }
        let setup = self.settings.setup.join("\n");
        usable("the directory", self.tokens)?;
        let tokens = shell(self.tokens);
        let seconds = seconds(self.settings.time).to_string();
        fill(template, |name| match name {
            "directives" => Some(&directives),
            "worker" => Some(&worker),
            "tokens" => Some(&tokens),
            "seconds" => Some(&seconds),
            "setup" => Some(&setup),
            _ => None,
        })
    }

    fn directives(&self) -> Result<String, Error> {
        let settings = self.settings;
        let notice = seconds(settings.hand_over).min(SIGNAL_MAX);
        let logs = self.logs()?;
        let mut lines = Vec::new();
        let mut add = |option: &str, value: &str| -> Result<(), Error> {
            lines.push(format!("--{option}={}", directive(option, value)?));
            Ok(())
        };
        let texts = [
            ("partition", &settings.partition),
            ("account", &settings.account),
            ("qos", &settings.qos),
            ("constraint", &settings.constraint),
            ("gres", &settings.gres),
        ];
        for (option, value) in texts {
            if let Some(value) = value {
                add(option, value)?;
            }
        }
        add("time", &walltime(settings.time))?;
        add("nodes", &self.policy.workers.max(1).to_string())?;
        add("ntasks-per-node", "1")?;
        if let Some(cpus) = settings.cpus {
            add("cpus-per-task", &cpus.to_string())?;
        }
        if let Some(memory) = settings.memory_mib {
            add("mem", &format!("{memory}M"))?;
        }
        add("signal", &format!("B:USR1@{notice}"))?;
        add("open-mode", "append")?;
        add("output", &logs)?;
        if !self.exclude.is_empty() {
            let names: Vec<&str> = self.exclude.iter().map(|name| &**name).collect();
            add("exclude", &names.join(","))?;
        }
        lines.push("--requeue".to_owned());
        for line in &settings.directives {
            lines.push(foreign(line)?.to_owned());
        }
        let mut add = |option: &str, value: &str| -> Result<(), Error> {
            lines.push(format!("--{option}={}", directive(option, value)?));
            Ok(())
        };
        add("job-name", &self.name.to_string())?;
        if self.count > 1 {
            add("array", &format!("0-{}", self.count - 1))?;
        }
        let lines: Vec<String> = lines.iter().map(|line| format!("#SBATCH {line}")).collect();
        Ok(lines.join("\n"))
    }

    /// Gives the file that everything a job prints goes to, in Slurm's own notation.
    fn logs(&self) -> Result<String, Error> {
        if self.directory.contains('\\') {
            return Err(Error::Value {
                what: "the directory".to_owned(),
                why: "holds a backslash",
            });
        }
        let folder = self.directory.replace('%', "%%");
        let one = if self.count > 1 { "%A_%a" } else { "%j" };
        Ok(format!("{folder}/logs/%x-{one}.log"))
    }

    fn worker(&self) -> Result<Vec<String>, Error> {
        let template = &self.policy.template;
        let (least, most) = HAND_OVER_S;
        let hand_over = seconds(self.settings.hand_over).clamp(least, most);
        let mut words = self.program.to_vec();
        let mut add = |option: &str, value: String| {
            words.push(format!("--{option}"));
            words.push(value);
        };
        add("coordinator", self.coordinator.to_owned());
        add("pool", self.name.pool.to_string());
        add("slots", template.slots.to_string());
        for label in &template.labels {
            add("label", label.to_string());
        }
        for (name, amount) in &template.resources {
            add("resource", format!("{name}={amount}"));
        }
        add("hand-over", format!("{hand_over}s"));
        if self.idle_exit > Span::ZERO {
            add("idle-exit", format!("{}s", seconds(self.idle_exit)));
        }
        words.extend(self.settings.worker_args.iter().cloned());
        for word in &words {
            usable("an argument of the worker", word)?;
        }
        Ok(words)
    }
}

/// Gives whole seconds, rounded up, at least one.
fn seconds(span: Span) -> u64 {
    span.ms().div_ceil(1_000).max(1)
}

/// Gives a time limit as Slurm writes it; it counts in minutes.
fn walltime(span: Span) -> String {
    let minutes = span.ms().div_ceil(60_000).max(1);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    format!("{}-{:02}:{minutes:02}:00", hours / 24, hours % 24)
}

/// Replaces each `@{name}`; what is filled in is not looked at again.
fn fill<'a>(template: &str, value: impl Fn(&str) -> Option<&'a String>) -> Result<String, Error> {
    let mut filled = String::with_capacity(template.len() + 1_024);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("@{") {
        let (name, after) = after.split_once('}').ok_or(Error::Open)?;
        filled.push_str(before);
        // A comment may speak of it.
        match (name, value(name)) {
            ("...", _) => filled.push_str("@{...}"),
            (_, Some(value)) => filled.push_str(value),
            (_, None) => return Err(Error::Unknown(name.to_owned())),
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Checks what must stay on one line.
pub(super) fn usable(what: &str, value: &str) -> Result<(), Error> {
    let why = if value
        .chars()
        .any(|letter| letter.is_control() && letter != '\t')
    {
        "holds a line break or another control character"
    } else if value.len() > VALUE_MAX {
        "is too long"
    } else {
        return Ok(());
    };
    Err(Error::Value {
        what: what.to_owned(),
        why,
    })
}

/// Writes a word so that any POSIX shell reads it as it is.
pub(crate) fn shell(word: &str) -> String {
    let harmless = |letter: char| letter.is_ascii_alphanumeric() || "-_./:@=,+".contains(letter);
    if !word.is_empty() && word.chars().all(harmless) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use coordinator_core::AllocationId;
    use coordinator_core::worker::Offer;
    use proptest::prelude::*;

    use super::*;

    fn settings() -> SlurmSettings {
        SlurmSettings {
            partition: Some("gpu".to_owned()),
            account: Some("proj 1".to_owned()),
            qos: None,
            constraint: Some("a100|h100".to_owned()),
            gres: Some("gpu:2".to_owned()),
            time: Span::from_secs(26 * 3_600 + 90),
            cpus: Some(8),
            memory_mib: Some(16_000),
            directives: vec![
                "--exclusive".to_owned(),
                "--mail-user=ada@example.org".to_owned(),
            ],
            setup: vec!["module load git".to_owned()],
            login: None,
            ssh_options: Vec::new(),
            directory: PathBuf::from("/shared/ada's files/100%"),
            worker: None,
            worker_args: vec!["--agent".to_owned(), "codex=/opt/codex run".to_owned()],
            coordinator: None,
            poll: Span::from_secs(10),
            hand_over: Span::from_secs(120),
        }
    }

    fn policy() -> Policy {
        let template = Offer {
            slots: 4,
            labels: ["gpu=a100".into(), "site=north hall".into()].into(),
            resources: [("gpus".into(), 2)].into(),
            ..Offer::default()
        };
        Policy {
            priority: 0,
            min: 0,
            max: 4,
            template,
            agents: None,
            workers: 1,
            idle_timeout: Span::from_secs(300),
            backlog: 2,
            burst: 2,
            join_timeout: Span::from_secs(300),
            walltime: None,
            failures_max: 3,
            quarantine: true,
            stays: false,
        }
    }

    fn rendered(pool: &str, change: impl FnOnce(&mut SlurmSettings)) -> Result<String, Error> {
        let mut settings = settings();
        change(&mut settings);
        let name = OrderName {
            home: "3f9a1c20".into(),
            pool: pool.into(),
            first: AllocationId(17),
        };
        let directory = settings.directory.to_str().unwrap().to_owned();
        let script = Script {
            name: &name,
            count: 3,
            settings: &settings,
            policy: &policy(),
            exclude: &["n7".into(), "n9".into()].into(),
            program: &[
                "/shared/ada's files/bin/muster".to_owned(),
                "worker".to_owned(),
            ],
            coordinator: "head:7733",
            tokens: &format!("{directory}/tokens/{name}"),
            directory: &directory,
            idle_exit: Span::from_secs(900),
        };
        script.render(TEMPLATE)
    }

    #[test]
    fn the_script_of_an_order_reads_like_one_that_a_person_wrote() {
        insta::assert_snapshot!(rendered("gpu-big", |_| ()).unwrap());
    }

    fn accepts(program: &str, arguments: &[&str], script: &str) {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }

    #[test]
    fn the_script_is_good_bash() {
        accepts("bash", &["-n"], &rendered("gpu-big", |_| ()).unwrap());
    }

    #[test]
    fn values_that_are_not_one_line_are_refused() {
        let breaks: [fn(&mut SlurmSettings); 6] = [
            |s| s.partition = Some("a\nrm -rf ~".to_owned()),
            |s| s.account = Some(String::new()),
            |s| s.setup = vec!["true\nfalse".to_owned()],
            |s| s.worker_args = vec!["a\0b".to_owned()],
            |s| s.directory = PathBuf::from("/a\nb"),
            |s| s.directory = PathBuf::from("/a\\b"),
        ];
        for (index, change) in breaks.into_iter().enumerate() {
            let refused = rendered("gpu", change);
            assert!(
                matches!(refused, Err(Error::Value { .. })),
                "{index}: {refused:?}"
            );
        }
        assert!(matches!(rendered("a\nb", |_| ()), Err(Error::Value { .. })));
    }

    #[test]
    fn a_template_that_asks_for_what_there_is_not_is_refused() {
        let fill = |template| fill(template, |_| None);
        assert_eq!(fill("echo @{tokens"), Err(Error::Open));
        assert_eq!(fill("echo @{nope}"), Err(Error::Unknown("nope".to_owned())));
        assert_eq!(fill("# @{...}").as_deref(), Ok("# @{...}"));
    }

    #[test]
    fn time_limits_are_rounded_up_to_minutes() {
        assert_eq!(walltime(Span::from_secs(1)), "0-00:01:00");
        assert_eq!(walltime(Span::from_secs(3_600)), "0-01:00:00");
        assert_eq!(walltime(Span::from_secs(26 * 3_600 + 1)), "1-02:01:00");
    }

    proptest! {
        #[test]
        fn no_pool_or_value_adds_a_line(pool in "\\PC{1,20}|[ \"'\\\\#$`}@{a]{1,12}") {
            let plain = rendered("gpu", |_| ()).unwrap().lines().count();
            prop_assert_eq!(rendered(&pool, |_| ()).unwrap().lines().count(), plain);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn no_word_leaves_its_quotes_in_a_shell(word in "\\PC{0,40}|[ \"'\\\\#$`!*~a]{1,12}") {
            let line = format!("printf %s {}", shell(&word));
            let output = Command::new("sh").arg("-c").arg(line).output().unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
