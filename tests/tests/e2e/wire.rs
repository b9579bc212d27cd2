//! The session and git under a bad network: a fault proxy stands between workers and coordinator.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::{Cluster, Options};
use muster_tests::files::{Gates, Ledger};
use muster_tests::proxy::{CutAfter, Direction, End, Faults, Proxy};
use muster_tests::wait::{SOON, until, until_true};
use muster_tests::{Process, Programs, RunStatus};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "connections_cut_at_any_byte_lose_nothing_and_double_nothing",
        cut_anywhere,
    ),
    ("half_a_second_of_delay_changes_nothing", delay),
    (
        "a_chatty_agent_behind_a_slow_line_keeps_its_lease",
        slow_line,
    ),
    (
        "a_push_that_is_cut_off_in_the_middle_is_made_again",
        cut_push,
    ),
    (
        "a_worker_outlives_a_port_that_vanishes_and_comes_back",
        vanishing_port,
    ),
    (
        "a_worker_that_is_half_closed_or_swallowed_finds_back",
        half_closed,
    ),
];

const TERMS: Options = Options {
    lease_ttl: Duration::from_secs(4),
    lease_grace: Duration::from_secs(2),
    heartbeat_interval: Duration::from_millis(500),
};

/// Runs a test with a proxy before its coordinator; the proxy's story is part of what fails.
fn with_proxy(
    programs: &Programs,
    terms: Options,
    test: impl FnOnce(&mut Cluster, &Proxy) -> Result<()>,
) -> Result<()> {
    with_cluster(programs, Some(terms), |cluster| {
        cluster.serve()?;
        let proxy = Proxy::start(cluster.address().parse()?)?;
        test(cluster, &proxy).map_err(|error| anyhow::anyhow!("{error:#}\n{}", proxy.story()))
    })
}

fn start_worker(cluster: &Cluster, proxy: &Proxy, name: &str, slots: u32) -> Result<Process> {
    let program = cluster.worker(name, &proxy.address().to_string(), slots)?;
    cluster.start_described(&program, name)
}

fn sessions(worker: &Process) -> usize {
    let said = worker.errors();
    let begun = said.lines().filter(|line| line.contains("session begins"));
    begun.count()
}

/// Writes a plan of one task with a repository of its own.
fn one_task(cluster: &Cluster, script: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(cluster.folder().join("seed"))?;
    std::fs::write(cluster.folder().join("seed/README"), "seed\n")?;
    let mut plan =
        "name: wire\nrepo: { from: ./seed }\ndefaults: { timeout: 5m }\ntasks:\n  - name: t\n    run: |\n"
            .to_owned();
    for line in script.lines() {
        plan.push_str(&format!("      {line}\n"));
    }
    cluster.write_plan("wire.yaml", &plan)
}

/// Insists on one attempt that succeeded.
fn once(status: &RunStatus, task: &str) -> Result<()> {
    ensure!(status.state() == "succeeded", "{}", status.json);
    let attempts = status.attempts(task)?;
    ensure!(attempts.len() == 1, "{}", status.task(task)?);
    Ok(())
}

/// What the last attempt printed, once all of it has arrived: lines from 1 to `count`, no gap and
/// no repetition.
fn transcript_is_whole(cluster: &Cluster, run: &str, task: &str, count: usize) -> Result<()> {
    let mut last = String::new();
    let arrived = until_true(&format!("all output of {task} arrived"), SOON, || {
        last = cluster.ask(["logs", run, task])?.success()?.out;
        Ok(last
            .lines()
            .filter(|line| line.starts_with("line "))
            .count()
            >= count)
    });
    let lines: Vec<&str> = last
        .lines()
        .filter(|line| line.starts_with("line "))
        .collect();
    arrived.with_context(|| format!("{} of {count} lines", lines.len()))?;
    for (index, line) in lines.iter().enumerate() {
        let number = line.split(' ').nth(1).unwrap_or_default();
        ensure!(
            number == (index + 1).to_string(),
            "{task}: line {index} is {line:.40}"
        );
    }
    ensure!(lines.len() == count, "{task}: {} lines", lines.len());
    Ok(())
}

/// Gives numbers that look like chance and are the same for the same seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

fn cut_anywhere(programs: &Programs) -> Result<()> {
    const SEED: u64 = 7;
    const CUTS: u64 = 80;
    const LINES: usize = 60;
    with_proxy(programs, TERMS, |cluster, proxy| {
        let ledger = Ledger::new(cluster.folder())?;
        let _one = start_worker(cluster, proxy, "one", 2)?;
        let _two = start_worker(cluster, proxy, "two", 2)?;
        std::fs::create_dir_all(cluster.folder().join("seed"))?;
        std::fs::write(cluster.folder().join("seed/README"), "seed\n")?;
        let mut plan =
            "name: cuts\nrepo: { from: ./seed }\ndefaults: { timeout: 5m }\ntasks:\n".to_owned();
        let names: Vec<String> = (1..=8).map(|number| format!("t{number}")).collect();
        for (index, name) in names.iter().enumerate() {
            let after = index.checked_sub(4).map(|before| names[before].as_str());
            plan.push_str(&format!(
                "  - name: {name}\n    depends_on: [{}]\n    run: |\n      {}\n      i=0\n      \
                 while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i $MUSTER_TASK; sleep 0.02; done\n      \
                 echo {name} > {name}.txt\n    verify: [test -e {name}.txt]\n",
                after.unwrap_or_default(),
                ledger.note(),
            ));
        }
        let mut chance = Seeded(SEED);
        let mut cuts = 0;
        proxy.schedule(Some(Box::new(move |_| {
            // Two of three connections, until there were enough: a handshake is some 4,000 bytes
            // down, a hello some 1,500 up, a grant some 1,500 down.
            if cuts == CUTS || chance.below(3) == 0 {
                return None;
            }
            cuts += 1;
            let direction = Direction::BOTH[usize::from(chance.below(2) == 1)];
            let most = [1_000, 4_000, 8_000, 16_000][usize::try_from(chance.below(4)).unwrap_or(0)];
            let bytes = chance.below(most);
            let end = [End::Reset, End::Finish][usize::from(chance.below(2) == 1)];
            Some(CutAfter {
                direction,
                bytes,
                end,
            })
        })));
        // Those that are open have no schedule.
        proxy.cut(End::Reset);
        let run = cluster.submit(&cluster.write_plan("cuts.yaml", &plan)?)?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        let lines = ledger.lines()?;
        ensure!(
            lines.values().all(|count| *count == 1),
            "an attempt was started twice: {lines:?}"
        );
        for name in &names {
            let attempts = status.attempts(name)?;
            let accepted = attempts
                .iter()
                .filter(|attempt| attempt["state"] == "succeeded");
            ensure!(accepted.count() == 1, "{name}: {attempts:?}");
            // A grant that never arrived is no start; one that did is the only one.
            let starts = lines
                .keys()
                .filter(|line| line.starts_with(&format!("{name} ")));
            ensure!(starts.count() == 1, "{name}: {lines:?}");
            transcript_is_whole(cluster, &run, name, LINES)?;
        }
        let watched = cluster.ask(["watch", &run, "--json"])?.success()?;
        let events = watched.out.lines().filter_map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).ok()?;
            // Agent events repeat the number of the last journal event.
            (event["kind"] == "journal" || event["work"].is_null())
                .then(|| event["seq"].as_u64())?
        });
        let seqs: Vec<u64> = events.collect();
        let expected: Vec<u64> = (1..=u64::try_from(seqs.len())?).collect();
        ensure!(seqs == expected, "events: {seqs:?}");
        let counts = proxy.counts();
        ensure!(counts.cut >= 20, "only {} cuts", counts.cut);
        crate::say(&format!("seed {SEED}: {counts:?}"));
        Ok(())
    })
}

fn delay(programs: &Programs) -> Result<()> {
    with_proxy(programs, TERMS, |cluster, proxy| {
        proxy.set_both(Faults {
            delay: Duration::from_millis(300),
            ..Faults::NONE
        });
        let worker = start_worker(cluster, proxy, "far", 1)?;
        // Longer than a lease lives without renewals.
        let script =
            "i=0; while [ $i -lt 25 ]; do i=$((i+1)); echo line $i; sleep 0.2; done\necho x > x";
        let run = cluster.submit(&one_task(cluster, script)?)?;
        let status = cluster.ended(&run)?;
        once(&status, "t")?;
        ensure!(sessions(&worker) == 1, "it lost its session");
        transcript_is_whole(cluster, &run, "t", 25)
    })
}

fn slow_line(programs: &Programs) -> Result<()> {
    const LINES: usize = 6_000;
    with_proxy(programs, TERMS, |cluster, proxy| {
        let gates = Gates::new(cluster.folder())?;
        let worker = start_worker(cluster, proxy, "slow", 1)?;
        // Some 600 kB, which take more than a minute at 64 kbit/s.
        let script = format!(
            "seq -f 'line %.0f {}' 1 {LINES}\ntouch {}/said\n{}",
            "x".repeat(90),
            cluster.folder().display(),
            gates.wait("end"),
        );
        proxy.set_both(Faults {
            bytes_per_second: NonZeroU32::new(8_000),
            ..Faults::NONE
        });
        let run = cluster.submit(&one_task(cluster, &script)?)?;
        let said = cluster.folder().join("said");
        until_true("the agent has said everything", SOON, || Ok(said.exists()))?;
        let begun = Instant::now();
        // Longer than a lease lives without renewals.
        let most = TERMS.lease_ttl + TERMS.lease_grace;
        until("time passes", SOON, || {
            let status = cluster.status(&run)?;
            let attempts = status.attempts("t")?.len();
            ensure!(attempts == 1, "{}", status.task("t")?);
            Ok((begun.elapsed() > most).then_some(()))
        })?;
        ensure!(sessions(&worker) == 1, "it lost its session");
        let up = proxy.counts().passed[0];
        proxy.heal();
        gates.open("end")?;
        let status = cluster.ended(&run)?;
        once(&status, "t")?;
        transcript_is_whole(cluster, &run, "t", LINES)?;
        ensure!(up < 600_000, "the line was not slow: {up} bytes had passed");
        Ok(())
    })
}

fn cut_push(programs: &Programs) -> Result<()> {
    const CUTS: u32 = 4;
    with_proxy(programs, TERMS, |cluster, proxy| {
        let worker = start_worker(cluster, proxy, "one", 1)?;
        let mut left = CUTS;
        // The session says little here, so only pushes ever get so far.
        proxy.schedule(Some(Box::new(move |_| {
            let cut = left.checked_sub(1)?;
            left = cut;
            Some(CutAfter {
                direction: Direction::Up,
                bytes: 100_000 + u64::from(cut) * 150_000,
                end: if cut % 2 == 0 {
                    End::Reset
                } else {
                    End::Finish
                },
            })
        })));
        let script = "head -c 900000 /dev/urandom > big";
        let run = cluster.submit(&one_task(cluster, script)?)?;
        let status = cluster.ended(&run)?;
        once(&status, "t")?;
        ensure!(sessions(&worker) == 1, "it lost its session");
        ensure!(proxy.counts().cut >= 2, "nothing was cut");
        let refs = cluster.hosted_refs(&status)?;
        let kept = refs
            .iter()
            .filter(|name| name.starts_with("refs/muster/attempts/"));
        ensure!(kept.count() == 1, "{refs:?}");
        Ok(())
    })
}

fn vanishing_port(programs: &Programs) -> Result<()> {
    with_proxy(programs, TERMS, |cluster, proxy| {
        let gates = Gates::new(cluster.folder())?;
        let worker = start_worker(cluster, proxy, "one", 1)?;
        let script = format!(
            "echo line 1\ntouch {}/at-work\n{}\necho line 2; echo x > x",
            cluster.folder().display(),
            gates.wait("end")
        );
        let run = cluster.submit(&one_task(cluster, &script)?)?;
        let at_work = cluster.folder().join("at-work");
        until_true("the agent works", SOON, || Ok(at_work.exists()))?;
        // Twice, for less than the lease lives; the agent ends while nobody can be reached.
        for round in 1..=2 {
            proxy.refuse()?;
            proxy.cut(End::Reset);
            until_true("it has tried in vain", SOON, || {
                let said = worker.errors();
                let tried = said
                    .lines()
                    .filter(|line| line.contains("trying again"))
                    .count();
                Ok(tried >= round * 2)
            })?;
            if round == 2 {
                gates.open("end")?;
            }
            proxy.accept()?;
            until_true("it has a session again", SOON, || {
                Ok(sessions(&worker) > round)
            })?;
        }
        let status = cluster.ended(&run)?;
        once(&status, "t")?;
        transcript_is_whole(cluster, &run, "t", 2)
    })
}

fn half_closed(programs: &Programs) -> Result<()> {
    with_proxy(programs, TERMS, |cluster, proxy| {
        let gates = Gates::new(cluster.folder())?;
        let worker = start_worker(cluster, proxy, "one", 1)?;
        let script = format!(
            "touch {}/at-work\n{}\necho line 1",
            cluster.folder().display(),
            gates.wait("end")
        );
        let run = cluster.submit(&one_task(cluster, &script)?)?;
        let at_work = cluster.folder().join("at-work");
        until_true("the agent works", SOON, || Ok(at_work.exists()))?;
        for (round, direction) in Direction::BOTH.into_iter().enumerate() {
            proxy.half_close(direction);
            until_true("it has a session again", SOON, || {
                Ok(sessions(&worker) > round + 1)
            })?;
        }
        gates.open("end")?;
        let status = cluster.ended(&run)?;
        once(&status, "t")?;
        transcript_is_whole(cluster, &run, "t", 1)
    })
}
