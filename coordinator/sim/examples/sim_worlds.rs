//! Runs the worlds of a range of seeds and says what each costs; one seed alone tells its story.
//! `cargo run --release -p coordinator-sim --example sim_worlds -- FROM TO [story|coverage]`
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program that measures needs a clock and an output"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use coordinator_sim::coverage::Reached;
use coordinator_sim::{Scenario, Unwatched, Watch, run};

struct Teller;

impl Watch for Teller {
    fn line(&mut self, at_ms: u64, line: fmt::Arguments<'_>) {
        println!("{:>9.3} {line}", at_ms as f64 / 1000.0);
    }

    fn wants_lines(&self) -> bool {
        true
    }

    fn met(&mut self, _state: &'static str, _command: &'static str) {}
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |nth: usize| arguments.get(nth).map(|text| text.parse::<u64>().unwrap());
    let (from, to) = (number(0).unwrap_or(0), number(1).unwrap_or(100));
    if arguments.get(2).is_some_and(|mode| mode == "coverage") {
        let mut reached = Reached::default();
        for seed in from..to {
            if let Err(violation) = run(&Scenario::generate(seed), &mut reached) {
                println!("{seed}: {violation}");
            }
        }
        let table = reached.table();
        let mut rarest: Vec<_> = table.rows.iter().filter(|row| row.count > 0).collect();
        rarest.sort_by_key(|row| row.count);
        for row in rarest.iter().take(12) {
            println!("{:>9} {} × {}", row.count, row.met.name(), row.came.name());
        }
        for row in table.unreached() {
            println!("unreached: {} × {}", row.met.name(), row.came.name());
        }
        for row in table.refuted() {
            println!("refuted: {} × {}", row.met.name(), row.came.name());
        }
        println!("unknown: {:?}", table.unknown);
        println!("{} of {} pairs", table.reached(), table.rows.len());
        return;
    }
    if arguments.len() > 2 {
        let scenario = Scenario::generate(from);
        println!("{scenario:#?}");
        println!("{:?}", run(&scenario, &mut Teller));
        return;
    }
    let begin = Instant::now();
    let (mut steps, mut simulated, mut slowest) = (0, 0, (0, 0));
    let mut violated: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for seed in from..to {
        let scenario = Scenario::generate(seed);
        let before = Instant::now();
        match run(&scenario, &mut Unwatched) {
            Ok(ended) => {
                steps += ended.steps;
                simulated += ended.simulated_ms;
            }
            Err(violation) => {
                violated
                    .entry(violation.rule)
                    .or_default()
                    .push(format!("{seed}: {violation}"));
            }
        }
        slowest = slowest.max((before.elapsed().as_micros(), seed));
    }
    for (rule, seeds) in &violated {
        println!("{rule}: {} seeds", seeds.len());
        for seed in seeds.iter().take(6) {
            println!("   {}", seed.chars().take(300).collect::<String>());
        }
    }
    let worlds = to - from;
    let ms = begin.elapsed().as_secs_f64() * 1000.0;
    println!(
        "{worlds} worlds, {:.2} ms each, {} steps each, {} simulated s each, slowest {slowest:?}",
        ms / worlds as f64,
        steps / worlds,
        simulated / worlds / 1000
    );
}
