//! What `coordinator sim` takes.

use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::Range;
use std::path::PathBuf;

use clap::Args;
use coordinator_sim::ranges::Ranges;

/// Run simulated worlds and check that nothing is lost and nothing counts twice
///
/// A seed is a whole world: a coordinator with its journal, workers, agents, a git remote and
/// operators, on a simulated clock, with crashes, full disks, broken connections, frozen machines and
/// lying workers. The decisions are made by the code that also runs for real. After each step
/// everything that must always be true is checked, and once the faults stop every run has to end. The
/// same seed is the same world, to the byte.
///
/// A world that is not as it must be is shrunk to the shortest story that still breaks the same rule,
/// and shown with the command that repeats it. The exit code is 0 only if there was none.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator sim                               about ten seconds of worlds
  coordinator sim --seeds 0..1000000 --progress seeds.json
                                                long; the same again goes on
  coordinator sim --seed 4711 --story           what happens in one world
  coordinator sim --json | tail -1 | jq .violations[0].shortest.scenario >w.json
  coordinator sim --scenario w.json --story     a world that was shrunk
  coordinator sim --seeds 0..2000 --coverage    which commands met which states")]
pub(crate) struct Sim {
    /// Seeds to run, the last one left out; or several ranges, as 0..100,200..300
    #[arg(
        long,
        value_name = "A..B",
        value_parser = seeds,
        // About ten seconds on two cores.
        default_value = "0..5000",
        conflicts_with_all = ["seed", "scenario", "regressions"]
    )]
    pub(super) seeds: Ranges,
    /// One seed to run
    #[arg(long, value_name = "N", conflicts_with_all = ["scenario", "regressions"])]
    pub(super) seed: Option<u64>,
    /// File with one scenario to run, as `--json` prints it
    #[arg(long, value_name = "FILE", conflicts_with = "regressions")]
    pub(super) scenario: Option<PathBuf>,
    /// Run the worlds that have failed once, while Muster was written
    #[arg(long)]
    pub(super) regressions: bool,
    /// Tell everything that happens in the one world
    #[arg(long, conflicts_with_all = ["seeds", "regressions", "json"])]
    pub(super) story: bool,
    /// Worlds at once [default: the number of cores]
    #[arg(long, value_name = "N", conflicts_with_all = ["seed", "scenario", "regressions"])]
    pub(super) threads: Option<NonZeroUsize>,
    /// File that remembers which seeds are done; they are not run again
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "scenario", "regressions", "coverage"])]
    pub(super) progress: Option<PathBuf>,
    /// Show which commands met which states, and fail if a pair was missed
    #[arg(long, conflicts_with_all = ["seed", "scenario", "regressions"])]
    pub(super) coverage: bool,
    /// Stop at so many failing seeds
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        conflicts_with = "keep_going"
    )]
    pub(super) failures: NonZeroU32,
    /// Go on when seeds fail, until 1000 have
    #[arg(long)]
    pub(super) keep_going: bool,
    /// Print the figures, and everything about violations, as one JSON object on the last line
    #[arg(long)]
    pub(super) json: bool,
}

fn seeds(text: &str) -> Result<Ranges, String> {
    text.split(',').map(range).collect()
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| text.trim().replace('_', "").parse::<u64>();
    let ends = text.split_once("..").map(|(a, b)| (number(a), number(b)));
    let Some((Ok(start), Ok(end))) = ends else {
        return Err("a range of seeds is two numbers such as 0..1000".to_owned());
    };
    if start == end {
        return Err(format!(
            "it holds no seed, since its end is left out; {start}..{} holds one",
            start.saturating_add(1)
        ));
    }
    if start > end {
        return Err(format!(
            "it runs backwards; {end}..{start} would be a range"
        ));
    }
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use super::{Ranges, seeds};

    #[test]
    fn a_range_of_seeds_is_two_numbers_that_go_up() {
        assert_eq!(seeds("0..2000"), Ok(Ranges::from(0..2000)));
        assert_eq!(
            seeds("1_000..1_000_000"),
            Ok(Ranges::from(1_000..1_000_000))
        );
        // What is printed of a search that was cut off can be given again.
        let several: Ranges = [0..7, 64..128].into_iter().collect();
        assert_eq!(seeds(&several.to_string()), Ok(several));
        for (wrong, part) in [
            ("7", "such as 0..1000"),
            ("a..b", "such as 0..1000"),
            ("..9", "such as 0..1000"),
            ("0..=9", "such as 0..1000"),
            ("-1..4", "such as 0..1000"),
            ("0..99999999999999999999", "such as 0..1000"),
            ("0..4,", "such as 0..1000"),
            ("5..5", "5..6 holds one"),
            ("9..2", "2..9 would be"),
        ] {
            let refused = seeds(wrong).unwrap_err();
            assert!(refused.contains(part), "{wrong}: {refused}");
        }
    }
}
