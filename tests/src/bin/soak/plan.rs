//! Plans of the soak: what their tasks do, and therefore how they have to end.

use std::fmt::Write as _;
use std::path::Path;

use muster_tests::dice::Dice;

/// What a task's program does by itself, if nobody disturbs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Succeeds.
    Succeeds,
    /// Fails in attempts up to this number.
    FailsUntil(u32),
    /// Succeeds in attempts up to this number with work that its verify refuses.
    BadUntil(u32),
    /// Runs until its time limit.
    Hangs,
}

/// A number of attempts that no task reaches.
const ALWAYS: u32 = 1_000;

/// A task of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) name: String,
    /// Names of the tasks that it starts from.
    pub(crate) needs: Vec<String>,
    pub(crate) fate: Fate,
    pub(crate) retries: u32,
    pub(crate) verified: bool,
    /// Lines that its program prints.
    pub(crate) lines: u64,
    /// Whether it leaves its file behind when it succeeds.
    pub(crate) writes: bool,
}

/// A plan.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) tasks: Vec<Task>,
    /// Two of its tasks write the same file.
    pub(crate) conflicts: bool,
    pub(crate) text: String,
}

/// What all plans have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting<'a> {
    pub(crate) repository: &'a Path,
    pub(crate) script: &'a Path,
    pub(crate) ledger: &'a Path,
    /// Whether processes without any environment can be found again on this machine.
    pub(crate) naked: bool,
}

/// Gives, for each task, the indexes of the tasks before it that it needs.
fn shape(dice: &mut Dice) -> Vec<Vec<usize>> {
    let size =
        |dice: &mut Dice, least, most| usize::try_from(dice.between(least, most)).unwrap_or(1);
    match dice.below(5) {
        // A chain.
        0 => (0..size(dice, 2, 5))
            .map(|task| task.checked_sub(1).into_iter().collect())
            .collect(),
        // A diamond.
        1 => {
            let width = size(dice, 2, 4);
            let mut tasks = vec![Vec::new()];
            tasks.extend(std::iter::repeat_n(vec![0], width));
            tasks.push((1..=width).collect());
            tasks
        }
        // Many from one.
        2 => {
            let mut tasks = vec![Vec::new()];
            tasks.extend(std::iter::repeat_n(vec![0], size(dice, 3, 7)));
            tasks
        }
        // Each on its own.
        3 => vec![Vec::new(); size(dice, 1, 6)],
        // Anything.
        _ => (0..size(dice, 5, 10))
            .map(|task| {
                let mut needs: Vec<usize> = (0..dice.below(3))
                    .filter_map(|_| dice.index(task))
                    .collect();
                needs.sort_unstable();
                needs.dedup();
                needs
            })
            .collect(),
    }
}

fn fate(dice: &mut Dice) -> (Fate, u32) {
    match dice.below(100) {
        0..64 => (Fate::Succeeds, u32::from(dice.chance(50))),
        64..78 => (Fate::FailsUntil(1), 2),
        78..88 => (Fate::BadUntil(1), 2),
        88..92 => (Fate::FailsUntil(ALWAYS), u32::from(dice.chance(50))),
        92..95 => (Fate::BadUntil(ALWAYS), 0),
        95..97 => (Fate::Hangs, 0),
        _ => (Fate::Succeeds, 2),
    }
}

impl Plan {
    /// Makes the plan of that number.
    pub(crate) fn draw(seed: u64, number: u64, setting: &Setting<'_>) -> Self {
        let mut dice = Dice::new(seed, 1_000 + number);
        let name = format!("soak{number}");
        let conflicts = dice.chance(5);
        let mut text = format!(
            "name: {name}\nrepo: {}\ndefaults:\n  timeout: 5m\n  env: {{ SOAK_LEDGER: {} }}\ntasks:\n",
            setting.repository.display(),
            setting.ledger.display()
        );
        let mut tasks: Vec<Task> = Vec::new();
        let shape = if conflicts {
            vec![Vec::new(), Vec::new()]
        } else {
            shape(&mut dice)
        };
        for (index, needs) in shape.iter().enumerate() {
            let (fate, retries) = if conflicts {
                (Fate::Succeeds, 0)
            } else {
                fate(&mut dice)
            };
            let needs = needs.iter().filter_map(|need| tasks.get(*need));
            let needs: Vec<String> = needs.map(|task| task.name.clone()).collect();
            let bad = matches!(fate, Fate::BadUntil(_));
            let writes = conflicts || bad || dice.chance(92);
            let task = Task {
                name: format!("t{index}"),
                needs,
                fate,
                retries,
                verified: !conflicts && (bad || (writes && dice.chance(45))),
                lines: match dice.below(10) {
                    0 => dice.between(2_000, 8_000),
                    1 => 0,
                    _ => dice.between(1, 60),
                },
                writes,
            };
            // What a task needs must have left something to be found.
            let found: Vec<&str> = task
                .needs
                .iter()
                .filter(|need| tasks.iter().any(|task| task.name == **need && task.writes))
                .map(String::as_str)
                .collect();
            entry(&mut text, &task, &found, conflicts, setting, &mut dice);
            tasks.push(task);
        }
        if dice.chance(50) && !conflicts {
            let files = tasks.iter().filter(|task| task.writes).count();
            let count = format!("test \"$(ls work | wc -l)\" -eq {files}");
            let _ = writeln!(text, "integrate:\n  verify: ['mkdir -p work && {count}']");
        }
        Self {
            name,
            tasks,
            conflicts,
            text,
        }
    }
}

fn entry(
    text: &mut String,
    task: &Task,
    found: &[&str],
    conflicts: bool,
    setting: &Setting<'_>,
    dice: &mut Dice,
) {
    let for_ms = match dice.below(10) {
        0..5 => dice.between(0, 300),
        5..8 => dice.between(300, 1_500),
        8 => dice.between(1_500, 3_000),
        _ => dice.between(3_000, 6_000),
    };
    let mut words = format!("for={for_ms} lines={}", task.lines);
    match task.fate {
        Fate::Succeeds => {}
        Fate::FailsUntil(last) => {
            let _ = write!(words, " fails={last}");
            if dice.chance(30) {
                words.push_str(" kill");
            }
        }
        Fate::BadUntil(last) => {
            let _ = write!(words, " bad={last}");
        }
        Fate::Hangs => words.push_str(" hang"),
    }
    if !found.is_empty() {
        let _ = write!(words, " needs={}", found.join(","));
    }
    if conflicts {
        words.push_str(" file=shared.txt");
    }
    if !task.writes {
        words.push_str(" nothing");
    }
    if dice.chance(20) && task.writes {
        words.push_str(" many");
    }
    for (word, percent) in [("stubborn", 15), ("daemon", 20)] {
        if dice.chance(percent) {
            words.push(' ');
            words.push_str(word);
        }
    }
    if dice.chance(10) && setting.naked {
        words.push_str(" naked");
    }
    let script = setting.script.display();
    let _ = writeln!(
        text,
        "  - name: {}\n    depends_on: [{}]\n    retries: {}\n    run: exec bash {script} {words}",
        task.name,
        task.needs.join(", "),
        task.retries,
    );
    if task.fate == Fate::Hangs {
        text.push_str("    timeout: 5s\n");
    }
    if task.verified {
        let pause = if dice.chance(30) { "0.5" } else { "0" };
        let _ = writeln!(text, "    verify: ['bash {script} verify={pause}']");
    }
}
