//! Instances of a group without a coordinator: that the cloud of the tests does what EC2 does, and that
//! the user data of the modules makes a service of whatever program it is given.

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::ec2::{
    ACCOUNT, Boots, Capacity, DIALLED, Door, Hypervisor, Moto, Notice, Place, Terraform,
    cloud_config,
};
use muster_tests::wait::{SOON, until, until_true};
use serde_json::json;

use crate::{Scenario, say};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "instances_run_their_user_data_and_end_as_their_group_is_told_to",
    instances,
)];

/// Why there is no such cloud here, if so.
pub(crate) fn missing(programs: &Programs) -> Option<String> {
    muster_tests::ec2::missing(&programs.source).or_else(muster_tests::ec2::missing_terraform)
}

/// Stands for a worker: says who it is and what it was started with, fails once, leaves at a notice.
const WORKER: &str = r#"#!/bin/bash
metadata=http://169.254.169.254/latest
echo "started as $(id -un) with $*"
echo "without a token $(curl -s -o /dev/null -w '%{http_code}' $metadata/meta-data/instance-id)"
token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $metadata/api/token)
get() { curl -sf -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/$1"; }
echo "is $(get instance-id) in $(get placement/region)"
role=$(get iam/security-credentials/)
echo "key $(get iam/security-credentials/$role | sed 's/.*"AccessKeyId":"\([^"]*\)".*/\1/')"
echo "state $(get autoscaling/target-lifecycle-state)"
if [ ! -e ~/before ]; then
    touch ~/before
    exit 1
fi
echo "waits"
until get spot/instance-action; do sleep 0.2; done
exit 0
"#;

fn instances(programs: &Programs) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("muster-ec2-").tempdir()?;
    let source = &programs.source;
    let moto = Moto::start(source, folder.path())?;
    let client = moto.client();
    let home = folder.path().join("home");
    std::fs::create_dir(&home)?;
    let door = Door::open(&home, WORKER)?;
    let terraform = Terraform::new(source, folder.path(), "examples/pool-only")?;
    std::fs::write(terraform.root().join("ca.pem"), door.ca_pem())?;
    terraform.variables(&json!({
        "endpoint": moto.url(),
        "coordinator": format!("{}:{}", DIALLED.0, DIALLED.1),
        "ca_pem_file": "ca.pem",
        "ami_id": "ami-0a0b0c0d",
        "labels": ["os=debian", "spot"],
    }))?;
    let begun = std::time::Instant::now();
    terraform.apply()?;
    say(&format!("apply: {:.1} s", begun.elapsed().as_secs_f64()));
    let group = terraform.output("group")?;
    let group = group.as_str().context("no name of a group")?;
    ensure!(
        client.desired(group)? == 0 && client.instances()?.is_empty(),
        "it begins empty"
    );

    let place = Place {
        source: source.clone(),
        folder: folder.path().join("machines"),
        dialled: DIALLED,
        listens: door.address(),
        head: None,
    };
    let hypervisor = Hypervisor::start(client, place);
    let scenario = || -> Result<()> {
        client.set_desired(group, 2)?;
        let ids = hypervisor.until_running(2)?;
        for id in &ids {
            until_true("the worker waits", SOON, || {
                hypervisor.with(id, |machine| machine.worker_log().contains("waits"))
            })?;
            let log = hypervisor.with(id, |machine| machine.worker_log())?;
            let size = client.user_data(id)?.len();
            say(&format!("user data: {size} bytes"));
            let said = |line: &str| ensure_line(&log, line);
            said(
                "started as muster-worker with --coordinator 10.77.0.1:7733 --ca-file \
                 /etc/muster/ca.pem --ec2 --pool build --state-dir /var/lib/muster-worker/state \
                 --slots 2 --label os=debian --label spot",
            )?;
            said("without a token 401")?;
            said(&format!("is {id} in eu-west-1"))?;
            said("state InService")?;
            // Started again after it had failed.
            ensure!(
                hypervisor.with(id, |machine| machine.exits())? == [1],
                "{log}"
            );
            let key = log.lines().rev().find_map(|line| line.strip_prefix("key "));
            let arn = client.identity(key.context("no credentials")?)?;
            let expected = format!("arn:aws:sts::{ACCOUNT}:assumed-role/muster-worker-build/{id}");
            ensure!(arn == expected, "{arn}");
            let config = cloud_config(source, &client.user_data(id)?)?;
            ensure!(
                config["packages"] == json!(["ca-certificates", "curl", "git"]),
                "{config}"
            );
        }

        // A notice reaches one alone; its worker ends well and is not started again.
        hypervisor.notice(&ids[0], Notice::Spot)?;
        until_true("it ends by itself", SOON, || {
            hypervisor.with(&ids[0], |machine| machine.exits() == [1, 0])
        })?;
        ensure!(
            hypervisor.with(&ids[1], |machine| machine.exits())? == [1],
            "the other one too"
        );

        // Exactly the one that is named goes.
        client.terminate_in_group(&ids[0])?;
        until_true("it is gone", SOON, || Ok(hypervisor.running() == ids[1..]))?;
        ensure!(client.desired(group)? == 1, "the group launches another");
        ensure!(client.terminate_in_group(&ids[0]).is_err(), "twice");

        // More than the most is refused; without capacity nothing comes, and the reason is told.
        ensure!(client.set_desired(group, 5).is_err(), "more than max");
        moto.capacity(Capacity::None)?;
        client.set_desired(group, 2)?;
        let parameters = [("AutoScalingGroupName", group)];
        let told = client.call("autoscaling", "DescribeScalingActivities", &parameters)?;
        ensure!(told.contains("UnfulfillableCapacity"), "{told}");
        hypervisor.boots(Boots::Never);
        moto.capacity(Capacity::Available)?;
        client.desired(group)?;
        let ids = hypervisor.until_running(2)?;
        let hangs = until("the new one runs", SOON, || {
            let mut found = ids.iter();
            Ok(found.find(|id| {
                hypervisor
                    .with(id, |machine| machine.worker_log().is_empty())
                    .unwrap_or_default()
            }))
        })?;
        ensure!(
            hypervisor
                .with(hangs, |machine| machine.exits())?
                .is_empty(),
            "it hangs"
        );
        Ok(())
    };
    scenario()
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}\n{}", hypervisor.story(), moto.story()))?;

    let begun = std::time::Instant::now();
    terraform.destroy()?;
    say(&format!("destroy: {:.1} s", begun.elapsed().as_secs_f64()));
    ensure!(client.groups()?.is_empty(), "a group is left");
    hypervisor.until_running(0)?;
    let machines = folder.path().join("machines");
    until_true("nothing of a machine runs any more", SOON, || {
        Ok(muster_tests::traces::mentioning(&machines.to_string_lossy()).is_empty())
    })?;
    Ok(())
}

fn ensure_line(log: &str, line: &str) -> Result<()> {
    ensure!(
        log.lines().any(|found| found == line),
        "no {line:?} in:\n{log}"
    );
    Ok(())
}
