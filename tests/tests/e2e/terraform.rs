//! The modules of `terraform/` without any cloud: their form, their own tests, and their user data.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use muster_tests::ec2::{Terraform, missing_terraform};
use muster_tests::process::Program;
use muster_tests::wait::{LONG, SOON};
use serde_json::json;

use crate::{Scenario, say};

/// What is run in each.
const MODULES: [&str; 4] = [
    "modules/worker-pool",
    "modules/coordinator",
    "examples/one-pool",
    "examples/pool-only",
];
/// What EC2 takes.
const USER_DATA_BYTES_MAX: usize = 16 * 1024;

/// Scenarios, each with why it cannot run here.
pub(crate) fn scenarios() -> Vec<(&'static str, Option<String>, Scenario)> {
    let lacks = |program: &str| {
        let ran = Command::new(program).arg("--version").output();
        ran.is_err().then(|| format!("needs the program {program}"))
    };
    let user_data = missing_terraform()
        .or_else(|| lacks("cloud-init"))
        .or_else(|| lacks("shellcheck"));
    let volume = muster_tests::hosts::missing().or_else(without_loops);
    vec![
        (
            "a_coordinators_volume_is_formatted_once_and_what_is_not_understood_never",
            volume,
            volumes,
        ),
        (
            "terraform_modules_are_formatted",
            lacks("terraform"),
            formatted,
        ),
        (
            "the_scripts_of_machines_pass_shellcheck",
            lacks("shellcheck"),
            shellcheck,
        ),
        ("terraform_modules_are_valid", missing_terraform(), valid),
        (
            "terraform_tests_pass_with_a_mocked_provider",
            missing_terraform(),
            tests,
        ),
        (
            "user_data_is_valid_cloud_config_and_its_script_passes_shellcheck",
            user_data,
            cloud_config,
        ),
        (
            "systemd_accepts_the_units_of_machines",
            lacks("systemd-analyze"),
            units,
        ),
    ]
}

/// Why no file can be used as a disk here, if so.
pub(crate) fn without_loops() -> Option<String> {
    let found = Command::new("losetup").arg("--find").output();
    let found = found.is_ok_and(|output| output.status.success());
    (!found).then(|| "needs loop devices".to_owned())
}

/// Three machines one after another with one volume: empty, with a home, with something else.
fn volumes(programs: &Programs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = programs.source.join("terraform/modules/coordinator");
    let program = folder.path().join("program");
    std::fs::write(&program, "#!/bin/sh\n")?;
    let mut script = Program::new(Path::new("bash"), folder.path()).args([
        programs.source.join("tests/cloud/coordinator.sh"),
        folder.path().to_owned(),
        module.join("bootstrap.sh"),
        module.join("muster-coordinator.service"),
        program,
    ]);
    let words = ["unshare", "--mount", "--propagation", "private"];
    script.wrapper = words.map(Into::into).to_vec();
    let said = script.run(folder.path(), LONG)?.success()?;
    let expected = "file system: ext4\n\
        home: muster 700, configuration: # first\n\
        program: /usr/local/bin/worker-agent-x86_64\n\
        console: muster: the coordinator's id: 3f9a1c20 muster: the coordinator's authority a certificate \n\
        the same file system\n\
        journal: kept, configuration: # second\n\
        owner: muster \n\
        fstab: 1\n\
        a wrong sum: is not what was expected, files left: 0\n\
        something else is left as it is: swap\n";
    ensure!(said.out == expected, "{}\n{}", said.out, said.err);
    Ok(())
}

fn formatted(programs: &Programs) -> Result<()> {
    let logs = tempfile::tempdir()?;
    Program::new(Path::new("terraform"), &programs.source.join("terraform"))
        .args(["fmt", "-check", "-diff", "-recursive", "-no-color"])
        .var("HOME", logs.path())
        .run(logs.path(), SOON)?
        .success()?;
    Ok(())
}

fn shellcheck(programs: &Programs) -> Result<()> {
    let logs = tempfile::tempdir()?;
    let files = [
        "terraform/modules/worker-pool/bootstrap.sh",
        "terraform/modules/coordinator/bootstrap.sh",
        "tests/cloud/aws",
        "tests/cloud/boot.sh",
        "tests/cloud/coordinator.sh",
        "tests/cloud/sudo",
        "tests/cloud/systemctl",
        ".ci/cloud",
    ];
    Program::new(Path::new("shellcheck"), &programs.source)
        .args(files)
        .run(logs.path(), SOON)?
        .success()?;
    Ok(())
}

fn valid(programs: &Programs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for module in MODULES {
        let terraform = Terraform::new(&programs.source, folder.path(), module)?;
        let said = terraform.run(&["validate", "-json"])?;
        let said = said.success().with_context(|| module.to_owned())?.json()?;
        let fine = said["valid"] == true && said["warning_count"] == 0;
        ensure!(fine, "{module}: {said}");
    }
    Ok(())
}

fn tests(programs: &Programs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    for module in &MODULES[..2] {
        let terraform = Terraform::new(&programs.source, folder.path(), module)?;
        let said = terraform.run(&["test"])?.success()?;
        let last = said.out.lines().last().unwrap_or_default();
        ensure!(
            last.contains(" 0 failed") && !last.contains("skipped"),
            "{last}"
        );
        say(&format!("{module}: {last}"));
    }
    Ok(())
}

/// A module of nothing but what the providers' mocks leave of another: its user data.
const RENDER: &str = r#"
mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "eu-west-1" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/x" }
  }
}
run "render" {
  assert {
    condition     = output.user_data == "nothing"
    error_message = "@@@${base64encode(output.user_data)}@@@"
  }
}
"#;

/// Renders the user data of a module with variables, by a test that fails with it.
fn rendered(programs: &Programs, module: &str, variables: &serde_json::Value) -> Result<String> {
    use base64::Engine as _;
    let folder = tempfile::tempdir()?;
    let terraform = Terraform::new(&programs.source, folder.path(), module)?;
    let tests = terraform.root().join("tests");
    std::fs::remove_dir_all(&tests)?;
    std::fs::create_dir(&tests)?;
    std::fs::write(tests.join("render.tftest.hcl"), RENDER)?;
    terraform.variables(variables)?;
    let said = terraform.run(&["test", "-json"])?;
    let encoded = said.out.split("@@@").nth(1);

    let encoded = encoded.with_context(|| format!("{}{}", said.out, said.err))?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded)?;
    Ok(String::from_utf8(bytes)?)
}

fn cloud_config(programs: &Programs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let program = json!({ "url": "https://example.org/program", "sha256": sum });
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cases = [
        (
            "modules/worker-pool",
            json!({
                "name": "build", "vpc_id": "vpc-1", "subnet_ids": ["subnet-1"], "max": 4, "ca_pem": pem,
                "coordinator": "10.0.0.10:7733", "packages": ["build-essential"], "ami_id": "ami-0a0b0c0d",
                "labels": ["a", "b=c"], "resources": { "cpus": 4 }, "worker_options": ["--cache-limit", "20GB"],
                "setup": "#!/bin/sh\n# It's \"odd\": $HOME, ${x}, %{y}\n\ttrue\n",
                "program_url": "https://example.org/program", "program_sha256": sum,
            }),
        ),
        (
            "modules/coordinator",
            json!({
                "vpc_id": "vpc-1", "subnet_id": "subnet-1", "allowed_cidrs": [], "ami_id": "ami-0a0b0c0d",
                "config": "[pools.build]\nkind = \"ec2\"\nlabels = [\"it's\"]\n",
                "programs": { "coordinator": program, "worker_agents": { "x86_64": program, "aarch64": program } },
            }),
        ),
    ];
    for (module, variables) in cases {
        let text = rendered(programs, module, &variables)?;
        say(&format!("{module}: user data of {} bytes", text.len()));
        ensure!(text.len() <= USER_DATA_BYTES_MAX, "{} bytes", text.len());
        let file = folder.path().join("user-data.yaml");
        std::fs::write(&file, &text)?;
        let arguments = ["schema", "--config-file"].map(PathBuf::from);
        Program::new(Path::new("cloud-init"), folder.path())
            .args(arguments.into_iter().chain([file]))
            .run(folder.path(), LONG)?
            .success()?;
        // The script as it arrives, not as it stands in the module.
        let script = literal(&text, "/usr/local/lib/muster/bootstrap")?;
        let file = folder.path().join("bootstrap");
        std::fs::write(&file, script)?;
        Program::new(Path::new("shellcheck"), folder.path())
            .args([file])
            .run(folder.path(), SOON)?
            .success()?;
    }
    Ok(())
}

/// Takes the block of text of a file out of user data.
fn literal(text: &str, path: &str) -> Result<String> {
    let after = text.split(&format!("path: {path}\n")).nth(1);
    let block = after.and_then(|after| after.split_once("content: |\n"));
    let (_, block) = block.with_context(|| format!("no {path}"))?;
    let lines = block.lines().map_while(|line| {
        let inside = line.strip_prefix("      ");
        inside.or_else(|| line.trim().is_empty().then_some(""))
    });
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

fn units(programs: &Programs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let modules = programs.source.join("terraform/modules");
    for (module, name) in [
        ("worker-pool", "muster-worker.service"),
        ("coordinator", "muster-coordinator.service"),
    ] {
        let text = std::fs::read_to_string(modules.join(module).join(name))?;
        // The programs are not installed here.
        let text = text
            .replace("/usr/local/bin/worker-agent", "/bin/true")
            .replace("/usr/local/bin/coordinator", "/bin/true");
        let unit = folder.path().join(name);
        std::fs::write(&unit, text)?;
        let said = Program::new(Path::new("systemd-analyze"), folder.path())
            .args([PathBuf::from("verify"), unit])
            .run(folder.path(), SOON)?
            .success()?;
        let about: Vec<&str> = said
            .err
            .lines()
            .filter(|line| line.contains(name))
            .collect();
        ensure!(about.is_empty(), "{about:?}");
    }
    Ok(())
}
