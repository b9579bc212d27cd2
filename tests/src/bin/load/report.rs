//! What was measured, and which promises did not hold.

use std::collections::BTreeMap;

use muster_tests::figures::Taken;

/// The part of the machine up to which others do not keep times from being judged.
const OTHERS_MAX: f64 = 0.2;

/// The figures of one mode.
#[derive(Debug)]
pub(crate) struct Report {
    mode: &'static str,
    figures: Vec<(String, String)>,
    broken: Vec<String>,
    unjudged: Vec<String>,
}

impl Report {
    pub(crate) fn new(mode: &'static str) -> Self {
        Self {
            mode,
            figures: Vec::new(),
            broken: Vec::new(),
            unjudged: Vec::new(),
        }
    }

    pub(crate) fn say(&mut self, what: &str, figure: String) {
        complain(&format!("{what}: {figure}"));
        self.figures.push((what.to_owned(), figure));
    }

    pub(crate) fn say_taken(&mut self, when: &str, taken: &Taken) {
        let figure = format!(
            "{} MiB resident, {} threads, {} descriptors",
            taken.resident_kib / 1024,
            taken.threads,
            taken.descriptors
        );
        self.say(when, figure);
    }

    /// Notes a broken promise unless it holds.
    pub(crate) fn expect(&mut self, holds: bool, broken: String) {
        if !holds {
            complain(&format!("BROKEN: {broken}"));
            self.broken.push(broken);
        }
    }

    /// Notes a broken promise about times, unless it holds or others kept the machine from showing it.
    pub(crate) fn expect_in_time(&mut self, others: f64, holds: bool, broken: String) {
        if holds || others <= OTHERS_MAX {
            self.expect(holds, broken);
            return;
        }
        let text = format!(
            "{broken}; other programs used {:.0} % of the machine",
            others * 100.0
        );
        complain(&format!("NOT JUDGED: {text}"));
        self.unjudged.push(text);
    }

    pub(crate) fn broken(&self) -> &[String] {
        &self.broken
    }

    #[expect(
        clippy::print_stdout,
        reason = "the figures are what this program is for"
    )]
    pub(crate) fn print(&self, json: bool) {
        if json {
            let figures: BTreeMap<_, _> = self.figures.iter().cloned().collect();
            let document = serde_json::json!({
                "mode": self.mode,
                "figures": figures,
                "broken": self.broken,
                "not_judged": self.unjudged,
            });
            println!("{document}");
            return;
        }
        for (what, figure) in &self.figures {
            println!("{what}: {figure}");
        }
        for broken in &self.broken {
            println!("BROKEN: {broken}");
        }
        for text in &self.unjudged {
            println!("NOT JUDGED: {text}");
        }
        println!(
            "{}: {}",
            self.mode,
            match (self.broken.len(), self.unjudged.len()) {
                (0, 0) => "every promise held".to_owned(),
                (0, count) => format!("nothing broken, {count} not judged"),
                (count, 0) => format!("{count} broken"),
                (count, unjudged) => format!("{count} broken, {unjudged} not judged"),
            }
        );
    }
}

/// Says how far it is, or why nothing was measured.
#[expect(clippy::print_stderr, reason = "progress and failures are talk")]
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}
