//! The session and git under a bad network: a fault proxy stands between workers and coordinator.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_tests::cluster::{Cluster, Options};
use muster_tests::files::{Gates, Ledger};
use muster_tests::hosts::Hosts;
use muster_tests::process::Program;
use muster_tests::proxy::{CutAfter, Direction, End, Faults, Proxy};
use muster_tests::wait::{SOON, until_true};
use muster_tests::{Process, Programs, RunStatus};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "connections_cut_at_any_byte_lose_nothing_and_double_nothing",
        cut_anywhere,
    ),
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
        "a_session_that_is_half_closed_is_followed_by_another",
        half_closed,
    ),
    (
        "a_connection_that_a_firewall_forgot_is_replaced_before_leases_run_out",
        forgotten,
    ),
];

/// Where packets cannot be delayed between hosts, the bytes of connections are.
pub(crate) const PROXY_SCENARIOS: &[(&str, Scenario)] =
    &[("a_delay_of_300_ms_each_way_changes_nothing", delay)];

/// They need hosts of their own.
pub(crate) const HOST_SCENARIOS: &[(&str, Scenario)] = &[(
    "a_worker_outlives_a_name_that_vanishes_and_comes_back_elsewhere",
    vanishing_name,
)];

/// They need a packet filter on hosts of their own.
pub(crate) const PACKET_SCENARIOS: &[(&str, Scenario)] =
    &[("packets_that_take_their_time_keep_a_lease_alive", far_host)];

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
    cluster.seed()?;
    let mut plan =
        "name: wire\nrepo: { from: ./seed }\ndefaults: { timeout: 5m }\ntasks:\n  - name: t\n    run: |\n"
            .to_owned();
    for line in script.lines() {
        plan.push_str(&format!("      {line}\n"));
    }
    cluster.write_plan("wire.yaml", &plan)
}

/// Submits a task that does something, waits at the gate `end`, and does something more; returns with
/// the run and the gate once it waits.
fn at_work(cluster: &Cluster, before: &str, after: &str) -> Result<(String, Gates)> {
    let gates = Gates::new(cluster.folder())?;
    let at_work = cluster.folder().join("at-work");
    let (note, wait) = (format!("touch {}", at_work.display()), gates.wait("end"));
    let script = format!("{before}\n{note}\n{wait}\n{after}");
    let run = cluster.submit(&one_task(cluster, &script)?)?;
    until_true("the agent works", SOON, || Ok(at_work.exists()))?;
    Ok((run, gates))
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

const ENDS: [End; 2] = [End::Reset, End::Finish];

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

/// `MUSTER_E2E_SEED=N` lets it cut elsewhere.
fn cut_anywhere(programs: &Programs) -> Result<()> {
    let seed = std::env::var("MUSTER_E2E_SEED");
    let seed: u64 = seed.ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    const CUTS: u64 = 32;
    const LINES: usize = 50;
    // Connections are cut, not leases: a worker that failed many times in a row pauses for seconds.
    let terms = Options {
        lease_ttl: Duration::from_secs(60),
        ..TERMS
    };
    with_proxy(programs, terms, |cluster, proxy| {
        let ledger = Ledger::new(cluster.folder())?;
        let _one = start_worker(cluster, proxy, "one", 2)?;
        let _two = start_worker(cluster, proxy, "two", 2)?;
        cluster.seed()?;
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
        let mut chance = Seeded(seed);
        proxy.schedule(Some(Box::new(move |number| {
            // Every third connection, in its first bytes: a handshake is some 4,000 of them down, a
            // hello some 1,500 up, a grant some 1,500 down.
            let direction = Direction::BOTH[usize::from(chance.below(2) == 1)];
            let most = [1_000, 4_000, 8_000, 16_000][usize::try_from(chance.below(4)).unwrap_or(0)];
            let bytes = chance.below(most);
            let end = ENDS[usize::from(chance.below(2) == 1)];
            (chance.below(3) == 0 && number < 3 * CUTS).then_some(CutAfter {
                direction,
                bytes,
                end,
            })
        })));
        let run = cluster.submit(&cluster.write_plan("cuts.yaml", &plan)?)?;
        // And all of them at moments that have to do with nothing: the pauses are the fault, and
        // nothing is waited for.
        let mut chance = Seeded(!seed);
        for _ in 0..CUTS {
            std::thread::sleep(Duration::from_millis(20 + chance.below(160)));
            proxy.cut(ENDS[usize::from(chance.below(2) == 1)]);
        }
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
        crate::say(&format!("seed {seed}: {counts:?}"));
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
        let run = cluster.submit(&one_task(cluster, TALK)?)?;
        let status = cluster.ended(&run)?;
        once(&status, "t")?;
        ensure!(sessions(&worker) == 1, "it lost its session");
        transcript_is_whole(cluster, &run, "t", TALK_LINES)
    })
}

/// Prints for longer than a lease lives without renewals.
const TALK: &str =
    "i=0; while [ $i -lt 22 ]; do i=$((i+1)); echo line $i; sleep 0.2; done\necho x > x";
const TALK_LINES: usize = 22;

fn far_host(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(TERMS), |cluster| {
        let hosts = Hosts::new(&["head", "far"], cluster.folder())?;
        cluster.run_behind(hosts.wrapper("head", &[], &[])?);
        cluster.serve()?;
        let delay = Path::new(env!("CARGO_BIN_EXE_delay"));
        let mut delay = Program::new(delay, cluster.folder()).args(["1", "300"]);
        delay.wrapper = hosts.wrapper("far", &[], &[])?;
        let _delay = delay.start(&cluster.logs(), "delay")?;
        hosts.queue_packets("far", 1)?;
        let address = format!("{}:{}", Hosts::address(0), cluster.port());
        let mut program = cluster.worker("far", &address, 1)?;
        program.wrapper = hosts.wrapper("far", &[], &[])?;
        let begun = Instant::now();
        let worker = cluster.start_described(&program, "far")?;
        // At least the handshakes of TCP and TLS, twice.
        let took = begun.elapsed();
        ensure!(
            took > Duration::from_millis(1_200),
            "packets were not delayed: {took:?}"
        );
        // Without a repository: git only makes it longer.
        let plan = format!(
            "tasks:\n  - name: t\n    run: |\n      {}\n",
            TALK.replace('\n', "\n      ")
        );
        let run = cluster.submit(&cluster.write_plan("far.yaml", &plan)?)?;
        once(&cluster.ended(&run)?, "t")?;
        ensure!(sessions(&worker) == 1, "it lost its session");
        transcript_is_whole(cluster, &run, "t", TALK_LINES)
    })
}

fn slow_line(programs: &Programs) -> Result<()> {
    const LINES: usize = 5_200;
    // A single event of 16 kB takes two seconds here.
    let terms = Options {
        lease_ttl: Duration::from_secs(6),
        ..TERMS
    };
    with_proxy(programs, terms, |cluster, proxy| {
        let worker = start_worker(cluster, proxy, "slow", 1)?;
        // Some 500 kB while the lease would have run out without renewals; they would take a
        // minute at 64 kbit/s.
        let script = format!(
            "i=0; while [ $i -lt {LINES} ]; do seq -f 'line %.0f {}' $((i+1)) $((i+40)); \
             i=$((i+40)); sleep 0.06; done; touch {}/said",
            "x".repeat(90),
            cluster.folder().display(),
        );
        proxy.set_both(Faults {
            bytes_per_second: NonZeroU32::new(8_000),
            ..Faults::NONE
        });
        let begun = Instant::now();
        let run = cluster.submit(&one_task(cluster, &script)?)?;
        let said = cluster.folder().join("said");
        until_true("the agent has said everything", SOON, || Ok(said.exists()))?;
        let took = begun.elapsed();
        let most = terms.lease_ttl + terms.lease_grace;
        ensure!(took > most, "it took only {took:?}");
        let up = proxy.counts().passed[0];
        ensure!(up < 200_000, "the line was not slow: {up} bytes had passed");
        ensure!(sessions(&worker) == 1, "it lost its session");
        proxy.heal();
        once(&cluster.ended(&run)?, "t")?;
        transcript_is_whole(cluster, &run, "t", LINES)
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
        let worker = start_worker(cluster, proxy, "one", 1)?;
        let (run, gates) = at_work(cluster, "echo line 1", "echo line 2; echo x > x")?;
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

/// A name that no DNS knows.
const NAME: &str = "head.cluster.invalid";

fn vanishing_name(programs: &Programs) -> Result<()> {
    // No lease is to run out here.
    let terms = Options {
        lease_ttl: Duration::from_secs(60),
        ..TERMS
    };
    with_cluster(programs, Some(terms), |cluster| {
        let hosts = Hosts::new(&["head", "one"], cluster.folder())?;
        cluster.run_behind(hosts.wrapper("head", &[], &[])?);
        cluster.serve()?;
        let mut program = cluster.worker("one", &format!("{NAME}:{}", cluster.port()), 1)?;
        program.wrapper = hosts.wrapper("one", &[], &[(&Hosts::address(0), NAME)])?;
        let worker = cluster.start_described(&program, "one")?;
        let (run, gates) = at_work(cluster, "", "echo line 1; echo x > x")?;
        hosts.names("one", &[])?;
        cluster.kill_coordinator()?;
        cluster.serve()?;
        until_true("it has looked for the name in vain", SOON, || {
            let said = worker.errors();
            Ok(said
                .lines()
                .filter(|line| line.contains("trying again"))
                .count()
                >= 3)
        })?;
        ensure!(sessions(&worker) == 1, "it has found a name that is gone");
        let elsewhere = 100;
        hosts.add_address("head", elsewhere)?;
        hosts.names("one", &[(&Hosts::address(elsewhere), NAME)])?;
        until_true(
            "it has a session again",
            SOON,
            || Ok(sessions(&worker) == 2),
        )?;
        gates.open("end")?;
        once(&cluster.ended(&run)?, "t")?;
        transcript_is_whole(cluster, &run, "t", 1)
    })
}

fn forgotten(programs: &Programs) -> Result<()> {
    with_proxy(programs, TERMS, |cluster, proxy| {
        let worker = start_worker(cluster, proxy, "one", 1)?;
        let (run, gates) = at_work(cluster, "", "echo line 1")?;
        proxy.set_both(Faults::BLACK_HOLE);
        until_true("something is lost", SOON, || Ok(proxy.counts().lost[0] > 0))?;
        // New connections pass; the open one is dead, and nobody is told.
        proxy.heal();
        until_true(
            "it has a session again",
            SOON,
            || Ok(sessions(&worker) == 2),
        )?;
        gates.open("end")?;
        once(&cluster.ended(&run)?, "t")?;
        transcript_is_whole(cluster, &run, "t", 1)
    })
}

fn half_closed(programs: &Programs) -> Result<()> {
    with_proxy(programs, TERMS, |cluster, proxy| {
        let worker = start_worker(cluster, proxy, "one", 1)?;
        let (run, gates) = at_work(cluster, "", "echo line 1")?;
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
