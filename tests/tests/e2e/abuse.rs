//! Peers that should not get in, or are not even peers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_connect::{Bearer, Endpoint, bootstrap_ca, read_token_file};
use muster_proto::v1;
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use muster_tests::cluster::Options;
use muster_tests::wait::SOON;
use muster_tests::{Cluster, Programs};

use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    ("a_token_opens_only_the_doors_of_its_role", roles),
    (
        "a_token_of_another_coordinator_is_refused_by_both_sides",
        another_coordinator,
    ),
    (
        "an_unknown_major_version_is_refused_with_both_versions_named",
        major_version,
    ),
    (
        "a_worker_whose_token_is_revoked_is_sent_away",
        revoked_token,
    ),
    ("garbage_on_the_port_harms_nobody", garbage),
    (
        "a_task_whose_agent_no_worker_has_waits_and_says_so",
        missing_agent,
    ),
];

fn with_token(cluster: &Cluster, token: &std::path::Path, words: &[&str]) -> Result<i32> {
    let file = token.to_string_lossy().into_owned();
    let address = cluster.address();
    let option = ["--coordinator", &address, "--token-file", &file];
    let output = cluster.ask(option.iter().chain(words).copied())?;
    Ok(output.code())
}

fn roles(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let (worker, viewer) = (cluster.token("worker")?, cluster.token("viewer")?);
        let operator = cluster.token("operator")?;
        let plan = cluster.write_plan("p.yaml", "tasks:\n  - { name: t, run: 'true' }\n")?;
        let plan = plan.to_string_lossy().into_owned();
        ensure!(
            with_token(cluster, &viewer, &["status"])? == 0,
            "a viewer may look"
        );
        ensure!(
            with_token(cluster, &viewer, &["submit", &plan])? != 0,
            "a viewer submitted"
        );
        ensure!(
            with_token(cluster, &worker, &["status"])? != 0,
            "a worker looked"
        );
        ensure!(
            with_token(cluster, &operator, &["submit", &plan])? == 0,
            "an operator may submit"
        );
        let make = ["token", "create", "--role", "admin"];
        ensure!(
            with_token(cluster, &operator, &make)? != 0,
            "an operator made a token"
        );

        // A token that is not a worker's does not make a worker, and it does not try for ever.
        let program = cluster.worker("w", &cluster.address(), 1)?;
        let token = program.folder.join("token");
        std::fs::copy(&operator, &token)?;
        let refused = program.run(&cluster.logs(), SOON)?;
        ensure!(
            refused.code() == 3,
            "exit code {}: {}",
            refused.code(),
            refused.err
        );
        ensure!(
            cluster.workers()?.is_empty(),
            "an operator's token made a worker"
        );
        Ok(())
    })
}

fn another_coordinator(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |other| {
        other.serve()?;
        let foreign = other.token("operator")?;
        with_cluster(programs, None, |cluster| {
            cluster.serve()?;
            ensure!(
                with_token(cluster, &foreign, &["status"])? == 4,
                "a foreign token was accepted"
            );
            Ok(())
        })
    })
}

fn major_version(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let token = read_token_file(&cluster.token("worker")?)?;
        let address = cluster.address();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let refused = runtime.block_on(async {
            let ca = bootstrap_ca(&address, token.ca, Duration::from_secs(10)).await?;
            let channel = Endpoint::new(&address, ca)?.channel_lazy()?;
            let hello = v1::Hello {
                version: Some(v1::ProtocolVersion {
                    major: 99,
                    minor: 7,
                    ..v1::ProtocolVersion::default()
                }),
                worker: "from-the-future".to_owned(),
                incarnation: 1,
                slots: 1,
                ..v1::Hello::default()
            };
            let message = v1::WorkerMessage {
                kind: Some(v1::worker_message::Kind::Hello(hello)),
            };
            let mut client = WorkerServiceClient::with_interceptor(channel, Bearer::token(&token)?);
            let opened = client.session(tokio_stream::once(message)).await;
            let refused = match opened {
                Ok(answer) => answer.into_inner().message().await.err(),
                Err(status) => Some(status),
            };
            refused.context("a worker of an unknown major version got in")
        })?;
        let said = refused.message();
        ensure!(
            said.contains("99.7"),
            "the worker's version is not named: {said}"
        );
        let ours = format!("{}.", muster_proto::PROTOCOL_MAJOR);
        ensure!(
            said.contains(&ours),
            "the coordinator's version is not named: {said}"
        );
        Ok(())
    })
}

fn garbage(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let endless = vec![0x16; 1 << 20];
        let hello_cut_short: &[u8] = &[
            0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03,
        ];
        let messages: [&[u8]; 5] = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            hello_cut_short,
            &endless,
            b"\0",
        ];
        let mut open = Vec::new();
        for message in messages.iter().cycle().take(50) {
            let mut stream = TcpStream::connect(cluster.address())?;
            stream.set_read_timeout(Some(Duration::from_millis(200)))?;
            // It may be cut off in the middle of a message.
            drop(stream.write_all(message));
            let mut answer = [0; 64];
            drop(stream.read(&mut answer));
            // Some stay open and silent.
            open.push(stream);
        }
        cluster.ask(["status"])?.success()?;
        let plan = cluster.write_plan("p.yaml", "tasks:\n  - { name: t, run: 'true' }\n")?;
        let _worker = cluster.start_worker("w", 1)?;
        let run = cluster.submit(&plan)?;
        ensure!(
            cluster.ended(&run)?.state() == "succeeded",
            "a run among garbage"
        );
        ensure!(cluster.coordinator()?.runs()?, "the coordinator has ended");
        Ok(())
    })
}

fn missing_agent(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        cluster.serve()?;
        let worker = cluster.worker("w", &cluster.address(), 1)?;
        // Wherever Claude Code may be installed here, this worker does not look.
        let _worker = cluster.start_described(&worker.var("CLAUDE_BIN", "/nowhere/claude"), "w")?;
        let text = "tasks:\n  - { name: t, agent: claude, prompt: Do it. }\n";
        let plan = cluster.write_plan("p.yaml", text)?;
        let run = cluster.submit(&plan)?;
        let said = cluster.ask(["explain", &run, "t"])?.success()?.out;
        ensure!(
            said.contains("claude"),
            "what is missing is not named: {said}"
        );
        let status = cluster.status(&run)?;
        ensure!(status.attempts("t")?.is_empty(), "{}", status.json);
        Ok(())
    })
}

fn revoked_token(programs: &Programs) -> Result<()> {
    with_cluster(programs, Some(Options::short_leases()), |cluster| {
        cluster.serve()?;
        let mut worker = cluster.start_worker("a", 1)?;
        let text = "tasks:\n  - name: t\n    run: '[ $MUSTER_ATTEMPT = 2 ] || sleep 600'\n";
        let run = cluster.submit(&cluster.write_plan("p.yaml", text)?)?;
        cluster.until(&run, "the task is at work", SOON, |status| {
            Ok(status.task("t")?["state"] == "leased")
        })?;
        let listed = cluster
            .ask(["token", "list", "--json"])?
            .success()?
            .json()?;
        let tokens = listed["tokens"].as_array().context("no list of tokens")?;
        let token = tokens
            .iter()
            .find(|token| token["role"] == "worker")
            .and_then(|token| token["id"].as_str())
            .context("the worker's token is not listed")?;
        cluster.ask(["token", "revoke", token])?.success()?;
        let ended = worker.ended(SOON)?;
        ensure!(ended.code() == Some(3), "it ended with {ended}");
        let said = worker.errors();
        ensure!(
            said.contains("has been revoked"),
            "it does not say why: {said}"
        );
        // What it held is another's once its lease has run out.
        let _other = cluster.start_worker("b", 1)?;
        let status = cluster.ended(&run)?;
        ensure!(status.task("t")?["state"] == "succeeded", "{status:?}");
        Ok(())
    })
}
