//! Hosts that share nothing but a network.

use std::time::Instant;

use anyhow::{Result, ensure};
use muster_tests::Programs;
use muster_tests::hosts::{Connected, Hosts};
use muster_tests::process::Program;
use muster_tests::repository::Repository;

use crate::{Scenario, deaths, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "workers_on_other_hosts_join_by_ip_by_a_name_and_through_a_forwarded_port",
        other_hosts,
    ),
    (
        "a_worker_that_is_cut_off_stops_in_time_and_comes_back_in_vain",
        cut_off,
    ),
    (
        "a_daemon_deaf_to_term_is_ended_in_a_container_whose_session_began_outside",
        container,
    ),
];

/// A name that no DNS knows.
const NAME: &str = "head.cluster.invalid";

fn other_hosts(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let hosts = Hosts::new(&["head", "ip", "name", "port", "desk"], cluster.folder())?;
        cluster.run_behind(hosts.wrapper("head", &[], &[])?);
        cluster.serve()?;
        let hidden = cluster.folder().to_owned();
        let hidden = [hidden.as_path()];
        let (head, port) = (Hosts::address(0), cluster.port());
        let behind =
            |name: &str, names: &[(&str, &str)], mut program: Program| -> Result<Program> {
                program.wrapper = hosts.wrapper(name, &hidden, names)?;
                Ok(program)
            };

        let by_ip = behind(
            "ip",
            &[],
            cluster.worker("ip", &format!("{head}:{port}"), 2)?,
        )?;
        let _by_ip = cluster.start_described(&by_ip, "ip")?;
        let named = cluster.worker("name", &format!("{NAME}:{port}"), 2)?;
        let named = behind("name", &[(&head, NAME)], named)?;
        let _named = cluster.start_described(&named, "name")?;
        let forward = Program::new(&programs.forward, std::path::Path::new("/"))
            .args(["127.0.0.1:9000".to_owned(), format!("{head}:{port}")]);
        let _forward = behind("port", &[], forward)?.start(&cluster.logs(), "forward")?;
        let ported = behind("port", &[], cluster.worker("port", "127.0.0.1:9000", 2)?)?;
        let _ported = cluster.start_described(&ported, "port")?;

        let mine = Repository::foreign(&cluster.folder().join("mine"), &cluster.logs(), 120)?;
        let mut plan = format!("name: hosts\nrepo: {}\ntasks:\n", mine.path().display());
        for round in 1..=3 {
            for host in ["ip", "name", "port"] {
                let before = match round {
                    1 => String::new(),
                    _ => ["ip", "name", "port"]
                        .map(|name| format!("{name}{}", round - 1))
                        .join(", "),
                };
                plan.push_str(&format!(
                    "  - name: {host}{round}\n    depends_on: [{before}]\n    labels: ['name={host}']\n    \
                     run: ls out* | wc -l; echo {host} > out-{host}-{round}\n    \
                     verify: ['test $(ls out-* | wc -l) -eq {expected}']\n",
                    expected = (round - 1) * 3 + 1,
                ));
            }
        }
        plan.push_str("integrate:\n  verify: ['test $(ls out-* | wc -l) -eq 9']\n");
        let run = cluster.submit(&cluster.write_plan("hosts.yaml", &plan)?)?;
        let status = cluster.ended(&run)?;
        ensure!(status.state() == "succeeded", "{}", status.json);
        for host in ["ip", "name", "port"] {
            let id = cluster
                .worker_named(host)?
                .map(|worker| worker["worker"].clone());
            let worked = status.worker_of(&format!("{host}2"))?;
            ensure!(id.is_some_and(|id| id == worked), "{host}2 ran on {worked}");
        }

        // A person on a fifth host, with nothing but an address and a token.
        let token = std::fs::read(cluster.token("viewer")?)?;
        let desk = tempfile::tempdir()?;
        let file = desk.path().join("token");
        muster_connect::private_file::replace(&file, &token)?;
        let file = file.to_string_lossy().into_owned();
        let address = format!("{head}:{port}");
        let words = [
            "--coordinator",
            &address,
            "--token-file",
            &file,
            "status",
            &run,
            "--json",
        ];
        let asked = Program::new(&programs.coordinator, desk.path())
            .args(words)
            .var("HOME", desk.path());
        let seen = behind("desk", &[], asked)?.run(&cluster.logs(), muster_tests::wait::SOON)?;
        ensure!(
            seen.success()?.json()?["state"] == "succeeded",
            "what a viewer elsewhere sees"
        );
        Ok(())
    })
}

fn cut_off(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(deaths::SHORT), |cluster| {
        let hosts = Hosts::new(&["head", "one", "two"], cluster.folder())?;
        cluster.run_behind(hosts.wrapper("head", &[], &[])?);
        cluster.serve()?;
        let address = format!("{}:{}", Hosts::address(0), cluster.port());
        let folder = cluster.folder().to_owned();
        let start = |name: &str| {
            let mut worker = cluster.worker(name, &address, 1)?;
            worker.wrapper = hosts.wrapper(name, &[&folder], &[])?;
            cluster.start_described(&worker, name)
        };
        let endless = deaths::endless_on(cluster, start("one")?, start("two")?)?;
        let index = if endless.victim_name == "one" { 1 } else { 2 };
        hosts.connect(index, Connected::No)?;
        deaths::gone_before_deadline(&endless.mark, Instant::now())?;
        deaths::runs_elsewhere(cluster, &endless)?;
        deaths::comes_back_in_vain(cluster, &endless, || hosts.connect(index, Connected::Yes))
    })
}

/// In a container that was entered, not started (`docker exec`), the worker's session and process
/// group are those of a process that is not visible in it: the kernel gives both the number 0.
fn container(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let mut worker = cluster.worker("inside", &cluster.address(), 1)?;
        let words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        worker.wrapper = words.into_iter().map(Into::into).collect();
        let _worker = cluster.start_described(&worker, "inside")?;
        let plan = cluster.write_plan(
            "plan.yaml",
            "name: deaf\ntasks:\n  - name: deaf\n    \
             run: (trap '' TERM; setsid sleep 600) >/dev/null 2>&1 &\n",
        )?;
        let run = cluster.submit(&plan)?;
        let ended = cluster.ended(&run)?;
        ensure!(ended.state() == "succeeded", "{}", ended.json);
        ensure!(ended.attempts("deaf")?.len() == 1, "{}", ended.json);
        Ok(())
    })
}
