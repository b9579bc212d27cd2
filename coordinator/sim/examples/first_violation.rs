//! Runs the worlds of a range of seeds, in their order, up to the first in which something is not as
//! it must be. `cargo run -p coordinator-sim --example first_violation -- FROM TO`
//!
//! Prints one line of fields with tabs between: `none` and the number of worlds; or `seed`, the
//! seed, the number of worlds until it (itself included), the rule, and what was wrong.
#![expect(
    clippy::print_stdout,
    reason = "a program for a script needs an output"
)]

use std::error::Error;

use coordinator_sim::{Unwatched, runner};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |name: &str| -> Result<u64, Box<dyn Error>> {
        let text = arguments
            .next()
            .ok_or_else(|| format!("{name} is missing"))?;
        Ok(text.parse()?)
    };
    let (from, to) = (
        number("the first seed")?,
        number("the seed behind the last")?,
    );
    for seed in from..to {
        if let Err(violation) = runner::world(seed, &mut Unwatched) {
            let what: String = violation
                .what
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            println!(
                "seed\t{seed}\t{}\t{}\t{what}",
                seed - from + 1,
                violation.rule
            );
            return Ok(());
        }
    }
    println!("none\t{}", to.saturating_sub(from));
    Ok(())
}
