//! What was measured, and which promises did not hold.

use std::collections::BTreeMap;

use muster_tests::figures::Taken;

/// The figures of one mode.
#[derive(Debug)]
pub(crate) struct Report {
    mode: &'static str,
    figures: Vec<(String, String)>,
    broken: Vec<String>,
}

impl Report {
    pub(crate) fn new(mode: &'static str) -> Self {
        Self {
            mode,
            figures: Vec::new(),
            broken: Vec::new(),
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
        println!(
            "{}: {}",
            self.mode,
            match self.broken.len() {
                0 => "every promise held".to_owned(),
                count => format!("{count} broken"),
            }
        );
    }
}

/// Says how far it is, or why nothing was measured.
#[expect(clippy::print_stderr, reason = "progress and failures are talk")]
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}
