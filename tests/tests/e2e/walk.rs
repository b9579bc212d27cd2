//! The walk of `terraform/README.md`, line by line as a stranger types it, against what stands in for AWS.
//!
//! The lines are taken from the guide itself. What it says that cannot be typed as it stands is in
//! [`Walk::as_typed`] and [`Walk::given`]; every block and every line is used, or the scenario fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use muster_tests::Programs;
use muster_tests::ec2::{
    Client, Downloads, Head, Hypervisor, MACHINES, Moto, Place, command_line, configure_terraform,
    copy_modules,
};
use muster_tests::process::{Output, Program};
use muster_tests::wait::{LONG, SOON, until, until_true};

use serde_json::Value;

use crate::{Scenario, say};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[(
    "the_terraform_guide_is_walked_line_by_line_from_nothing_to_a_plan_and_back",
    walk,
)];

/// The stranger's key, told apart from the tests' own in what the stand-in notes.
const KEY: &str = "AKIASTRANGER00000000";
/// An apply or a destroy of everything.
const PATIENCE: Duration = Duration::from_secs(300);
/// Where the programs are published.
const SITE: &str = "downloads.example.net";
/// Addresses that the coordinator's instance has for what is on the Internet.
const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const AWS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Why it cannot be walked here, if so.
pub(crate) fn missing(programs: &Programs) -> Option<String> {
    let lacks = |program: &str| {
        let ran = Command::new(program).arg("--version").output();
        ran.is_err().then(|| format!("needs the program {program}"))
    };
    let needed = ["bash", "openssl", "dpkg-deb", "mkfs.ext4", "runuser"];
    let no_aws = || {
        let aws = command_line(&programs.source).0;
        (!aws.is_file()).then(|| "needs the AWS command line: run .ci/cloud".to_owned())
    };
    crate::ec2::missing(programs)
        .or_else(no_aws)
        .or_else(crate::terraform::without_loops)
        .or_else(|| needed.into_iter().find_map(lacks))
}

/// A block of the guide.
#[derive(Debug)]
struct Block {
    language: String,
    text: String,
    /// The paragraph before it.
    before: String,
}

fn blocks(guide: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut before = String::new();
    let mut open: Option<Block> = None;
    // How far the block is indented, as part of a list.
    let mut indent = "";
    for line in guide.lines() {
        let inside = line.strip_prefix(indent).unwrap_or(line);
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                indent = line.split('`').next().unwrap_or_default();
                open = Some(Block {
                    language: language.to_owned(),
                    text: String::new(),
                    before: std::mem::take(&mut before),
                });
            }
            (Some(_), Some(_)) => {
                blocks.extend(open.take());
                indent = "";
            }
            (None, Some(block)) => {
                block.text.push_str(inside);
                block.text.push('\n');
            }
            (None, None) => {
                before.push_str(line);
                before.push('\n');
            }
        }
    }
    blocks
}

/// The last path that a text names with that ending.
fn file_named(text: &str, ending: &str) -> Option<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let names = quoted.filter(|name| name.ends_with(ending) && !name.contains(' '));
    names.last().map(str::to_owned)
}

/// A stranger's shell, and all that stands in for what they have.
struct Walk<'p> {
    programs: &'p Programs,
    folder: PathBuf,
    // Ended in this order: machines first.
    hypervisor: Option<Hypervisor>,
    downloads: Downloads,
    moto: Moto,
    client: Client,
    /// What the last command printed.
    printed: String,
    /// How often `terraform apply` was typed.
    applied: usize,
    instance: String,
}

fn walk(programs: &Programs) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("muster-ec2-").tempdir()?;
    // Tasks are run by another user.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))?;
    let mut walk = Walk::new(programs, folder.path())?;
    let guide = std::fs::read_to_string(programs.source.join("terraform/README.md"))?;
    let walked = walk.all(&guide).and_then(|()| walk.nothing_is_left());
    walked.map_err(|error| {
        let machines = walk.hypervisor.as_ref().map(Hypervisor::story);
        let moto = walk.moto.story();
        anyhow::anyhow!(
            "{error:#}\n{}\n--- moto\n{moto}",
            machines.unwrap_or_default()
        )
    })
}

impl<'p> Walk<'p> {
    fn new(programs: &'p Programs, folder: &Path) -> Result<Self> {
        let source = &programs.source;
        let repository = folder.join("repository");
        std::fs::create_dir_all(repository.join("target/release"))?;
        copy_modules(source, &repository.join("terraform"))?;
        let built = [
            ("coordinator", &programs.coordinator),
            ("worker-agent", &programs.worker_agent),
        ];
        let mut files = BTreeMap::new();
        for (name, from) in built {
            let to = repository.join("target/release").join(name);
            std::fs::copy(from, &to)?;
            files.insert(format!("/muster/{name}"), to);
        }
        let session = folder.join("amazon-ssm-agent.deb");
        session_agent(&folder.join("package"), &session)?;
        let place = "/amazon-ssm-eu-west-1/latest/debian_amd64/amazon-ssm-agent.deb";
        files.insert(place.to_owned(), session);
        let names = [SITE, "s3.eu-west-1.amazonaws.com"];
        let downloads = Downloads::open(&names, files)?;

        let moto = Moto::start(source, folder)?;
        configure_terraform(folder)?;
        std::fs::create_dir(folder.join("home"))?;
        std::fs::create_dir(folder.join("bin"))?;
        let script = std::path::absolute(source.join("tests/cloud/aws"))?;
        let aws = folder.join("bin/aws");
        std::fs::write(
            &aws,
            format!("#!/bin/sh\nexec bash '{}' \"$@\"\n", script.display()),
        )?;
        std::fs::set_permissions(&aws, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            programs,
            client: moto.client(),
            moto,
            downloads,
            hypervisor: None,
            folder: folder.to_owned(),
            printed: String::new(),
            applied: 0,
            instance: String::new(),
        })
    }

    fn all(&mut self, guide: &str) -> Result<()> {
        for block in blocks(guide) {
            match block.language.as_str() {
                "console" => {
                    for line in block.text.lines() {
                        let command = line.strip_prefix("$ ");
                        let command = command.with_context(|| format!("no command: {line}"))?;
                        self.types(command)?;
                    }
                }
                "hcl" => self.writes(&block, ".tfvars")?,
                "yaml" => self.writes(&block, ".yaml")?,
                // The walk stands before what it needs.
                "json" => self.was_enough(&serde_json::from_str(&block.text)?)?,
                other => bail!("a block of {other} is not tried: {}", block.text),
            }
        }
        Ok(())
    }

    /// Writes a file as the guide has it, with what is the stranger's own.
    fn writes(&self, block: &Block, ending: &str) -> Result<()> {
        let name = file_named(&block.before, ending);
        let name = name.with_context(|| format!("no name of a file: {}", block.before))?;
        let mut text = block.text.clone();
        if ending == ".tfvars" {
            for (name, program) in [
                ("coordinator", &self.programs.coordinator),
                ("worker-agent", &self.programs.worker_agent),
            ] {
                let (before, after) = text
                    .split_once(&format!("https://example.org/muster/{name}\""))
                    .context("no such program")?;
                let sum = sum(program)?;
                let after = after.replacen(&"0".repeat(64), &sum, 1);
                text = format!("{before}https://{SITE}/muster/{name}\"{after}");
            }
            ensure!(text.contains("203.0.113.7/32"), "nobody may connect");
            text = text.replace("203.0.113.7/32", "127.0.0.1/32");
        }
        let file = self.folder.join("given");
        std::fs::write(&file, text)?;
        self.shell(&format!("cat > {name}"), &file)?.success()?;
        Ok(())
    }

    /// Types a command, and sees that it did what the guide says.
    fn types(&mut self, command: &str) -> Result<()> {
        let begun = Instant::now();
        self.before(command)?;
        let given = self.folder.join("given");
        std::fs::write(&given, self.given(command)?)?;
        let typed = self.as_typed(command)?;
        let said = self.shell(&typed, &given)?.success()?;
        ensure!(!typed.contains('…'), "not filled in: {typed}");
        self.printed = said.out;
        let printed = self.printed.clone();
        self.after(command, &printed)
            .with_context(|| format!("after `{command}`, which printed:\n{printed}{}", said.err))?;
        let shown: String = command.chars().take(60).collect();
        say(&format!("{:6.1} s  {shown}", begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// What is typed where a line cannot be typed as it stands.
    fn as_typed(&self, command: &str) -> Result<String> {
        if command.starts_with("cargo build ") {
            // They are built: the ones that are tested.
            let is_whole = ["-p coordinator", "-p worker-agent", "coordinator/ec2"];
            ensure!(
                is_whole.iter().all(|words| command.contains(words)),
                "{command}"
            );
            return Ok("true".to_owned());
        }
        Ok(command.replace("snap-…", self.printed.trim()))
    }

    /// What somebody gives to a command that asks.
    fn given(&self, command: &str) -> Result<String> {
        if ["terraform apply", "terraform destroy"].contains(&command) {
            return Ok("yes\n".to_owned());
        }
        if command.starts_with("install -m 0600 /dev/stdin ") {
            let mut lines = self.printed.lines();
            let token = lines.find(|line| line.starts_with("muster_"));
            return Ok(format!("{}\n", token.context("no token was shown")?.trim()));
        }
        Ok(String::new())
    }

    /// What the guide says should be so before a command.
    fn before(&mut self, command: &str) -> Result<()> {
        if command.starts_with("aws ec2 get-console-output") {
            let machines = self.hypervisor.as_ref().context("no machines")?;
            let console = self.machine("console");
            // "The coordinator starts in some minutes."
            until_true("the certificate is on the console", LONG, || {
                let text = std::fs::read_to_string(&console).unwrap_or_default();
                Ok(text.contains("-----END CERTIFICATE-----"))
            })
            .with_context(|| machines.story())?;
        }
        if command == "terraform destroy" {
            self.permissions()?;
            self.made_anew()?;
        }
        Ok(())
    }

    /// A coordinator that is made anew has the same home and address: worker and stranger find it again.
    fn made_anew(&mut self) -> Result<()> {
        let machines = self.hypervisor.as_ref().context("no machines")?;
        let before = machines.running();
        ensure!(before.len() == 2, "a coordinator and a worker: {before:?}");
        let nothing = self.nothing()?;
        let anew = "terraform apply -no-color -auto-approve -replace=module.coordinator.aws_instance.coordinator";
        let said = self.shell(anew, &nothing)?.success()?;
        // The instance and what attaches its volume: what the coordinator did with its group is no change.
        let alone = "Plan: 2 to add, 0 to change, 2 to destroy.";
        ensure!(said.out.contains(alone), "not only that: {}", said.out);
        let instance = self.output("instance_id")?;
        ensure!(instance != self.instance, "it is the same one");
        let machines = self.hypervisor.as_ref().context("no machines")?;
        machines.until_running(2)?;
        let again = "at submit hello/plan.yaml --idempotency-key again && at watch";
        let watched = until("the coordinator is back", LONG, || {
            let said = self.shell("at pool show build", &nothing)?;
            Ok((said.code() == 0).then_some(()))
        })
        .and_then(|()| self.shell(again, &nothing)?.success())?;
        ensure!(watched.out.contains("succeeded"), "{}", watched.out);
        let after = machines.running();
        let worker = before.iter().find(|id| **id != self.instance);
        ensure!(
            after.len() == 2 && worker.is_some_and(|worker| after.contains(worker)),
            "the worker is another one: {before:?}, {after:?}"
        );
        self.instance = instance;
        Ok(())
    }

    /// What the guide says should be so after one.
    fn after(&mut self, command: &str, printed: &str) -> Result<()> {
        let has = |text: &str| -> Result<()> {
            ensure!(printed.contains(text), "no {text:?}");
            Ok(())
        };
        match command {
            "terraform apply" => {
                self.applied += 1;
                if self.applied == 1 {
                    ensure!(self.limit()? == "0", "instances that could not join");
                    self.start_machines()?;
                } else {
                    ensure!(self.limit()? == "4", "the group cannot grow");
                    let instance = self.output("instance_id")?;
                    ensure!(instance == self.instance, "the coordinator was made anew");
                }
                Ok(())
            }
            "at pool show build" => has("build"),
            "at watch" => has("succeeded"),
            "at logs @last where" => {
                ensure!(printed.lines().count() >= 2, "no host and date");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Lets everything that the account has run from now on.
    fn start_machines(&mut self) -> Result<()> {
        self.instance = self.output("instance_id")?;
        let address: SocketAddr = self.output("address")?.parse()?;
        // An elastic address of the stand-in is one of loopback.
        ensure!(address.ip().is_loopback(), "{address}");
        let volumes = self.client.call("ec2", "DescribeNetworkInterfaces", &[])?;
        let private = volumes.split("<privateIpAddress>").nth(1);
        let private = private.and_then(|rest| rest.split('<').next());
        let private: Ipv4Addr = private.context("no interface")?.parse()?;
        let moto = self.moto.url().replace("http://", "").parse()?;
        let hosts = format!("127.0.0.1 localhost\n{INTERNET} {SITE} s3.eu-west-1.amazonaws.com\n");
        let head = Head {
            reaches: vec![
                ((INTERNET, 443).into(), self.downloads.address()),
                ((AWS, 80).into(), moto),
            ],
            files: vec![
                ("/etc/hosts", hosts),
                (
                    "/etc/ssl/certs/ca-certificates.crt",
                    self.downloads.ca_pem().to_owned(),
                ),
            ],
            variables: vec![("AWS_ENDPOINT_URL", format!("http://{AWS}"))],
        };
        let place = Place {
            source: self.programs.source.clone(),
            folder: self.folder.join(MACHINES),
            dialled: (private, address.port()),
            listens: address,
            head: Some(head),
        };
        self.hypervisor = Some(Hypervisor::start(self.client, place));
        Ok(())
    }

    /// The coordinator may do what the guide's table says, does nothing else, and workers do nothing.
    fn permissions(&self) -> Result<()> {
        let guide = std::fs::read_to_string(self.programs.source.join("terraform/README.md"))?;
        let table: BTreeSet<&str> = guide
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .filter(|name| is_action(name))
            .collect();
        let mut policies = String::new();
        for name in ["groups", "sessions"] {
            let parameters = [("RoleName", "muster-coordinator"), ("PolicyName", name)];
            let document = self.client.call("iam", "GetRolePolicy", &parameters)?;
            policies.push_str(&document.replace("%22", "\"").replace("%3A", ":"));
        }
        let words = policies.split('"');
        let policy: BTreeSet<&str> = words.filter(|word| is_action(word)).collect();
        ensure!(
            policy == table,
            "the policies have {policy:?}, the guide {table:?}"
        );
        let calls = self.moto.calls();
        ensure!(!calls.contains(" denied\n"), "{calls}");
        let of = |role: &str| -> BTreeSet<&str> {
            let lines = calls
                .lines()
                .map(|line| line.split(' ').collect::<Vec<_>>());
            let own = lines.filter(|words| words[0] == role);
            own.map(|words| words[1]).collect()
        };
        let asked = of("muster-coordinator");
        say(&format!("the coordinator called {asked:?}"));
        ensure!(
            asked.contains("autoscaling:SetDesiredCapacity"),
            "it was not its own identity"
        );
        for action in &asked {
            ensure!(
                table.contains(action),
                "{action} is not in the guide's table"
            );
        }
        let workers = of("muster-worker-build");
        ensure!(
            workers == BTreeSet::from(["sts:GetCallerIdentity"]),
            "{workers:?}"
        );
        Ok(())
    }

    /// Whoever walks needs no more than what the guide says.
    fn was_enough(&self, policy: &Value) -> Result<()> {
        let statements = policy["Statement"].as_array().context("no statements")?;
        let actions = statements
            .iter()
            .filter_map(|statement| statement["Action"].as_array());
        let allowed: Vec<&str> = actions.flatten().filter_map(Value::as_str).collect();
        let calls = self.moto.calls();
        let own = calls
            .lines()
            .filter_map(|line| line.strip_prefix(KEY)?.split_whitespace().next());
        let missing: BTreeSet<&str> = own
            .filter(|action| {
                let fits = |pattern: &&str| match pattern.strip_suffix('*') {
                    Some(begin) => action.starts_with(begin),
                    None => action == pattern,
                };
                // One of several ways in which the provider finds out the account; another is enough.
                *action != "iam:GetUser" && !allowed.iter().any(fits)
            })
            .collect();
        ensure!(missing.is_empty(), "not in the guide's policy: {missing:?}");
        ensure!(calls.contains(KEY), "nobody was seen to walk");
        Ok(())
    }

    fn nothing_is_left(&self) -> Result<()> {
        for (service, action, tag) in [
            (
                "autoscaling",
                "DescribeAutoScalingGroups",
                "<AutoScalingGroupName>",
            ),
            ("ec2", "DescribeLaunchTemplates", "<launchTemplateId>"),
            ("ec2", "DescribeVolumes", "<volumeId>"),
            ("ec2", "DescribeAddresses", "<allocationId>"),
            ("ec2", "DescribeNetworkInterfaces", "<networkInterfaceId>"),
            ("iam", "ListInstanceProfiles", "<InstanceProfileId>"),
            ("iam", "ListRoles", "<RoleId>"),
        ] {
            let xml = self.client.call(service, action, &[])?;
            ensure!(!xml.contains(tag), "{action}: {xml}");
        }
        let snapshots = self.client.call("ec2", "DescribeSnapshots", &[])?;
        ensure!(!snapshots.contains("muster-"), "{snapshots}");
        let groups = self.client.call("ec2", "DescribeSecurityGroups", &[])?;
        ensure!(!groups.contains("muster-"), "{groups}");
        let left = self.client.instances()?;
        let left: Vec<_> = left.iter().filter(|it| it.state != "terminated").collect();
        ensure!(left.is_empty(), "{left:?}");
        self.hypervisor
            .as_ref()
            .context("no machines")?
            .until_running(0)?;
        let machines = self.folder.join(MACHINES);
        until_true("nothing of a machine runs any more", SOON, || {
            Ok(muster_tests::traces::mentioning(&machines.to_string_lossy()).is_empty())
        })
    }

    /// The group's `max`.
    fn limit(&self) -> Result<String> {
        let xml = self
            .client
            .call("autoscaling", "DescribeAutoScalingGroups", &[])?;
        let after = xml.split("<MaxSize>").nth(1);
        let limit = after.and_then(|rest| rest.split('<').next());
        Ok(limit.context("no group")?.to_owned())
    }

    fn machine(&self, file: &str) -> PathBuf {
        self.folder.join(MACHINES).join(&self.instance).join(file)
    }

    fn output(&self, name: &str) -> Result<String> {
        let said = self.shell(&format!("terraform output -raw {name}"), &self.nothing()?)?;
        Ok(said.success()?.out)
    }

    fn nothing(&self) -> Result<PathBuf> {
        let file = self.folder.join("nothing");
        std::fs::write(&file, "")?;
        Ok(file)
    }

    /// Runs a line in the one shell: it finds folder, functions and exported variables as the line before
    /// has left them.
    fn shell(&self, line: &str, given: &Path) -> Result<Output> {
        let script = format!(
            "set -o pipefail\n\
             if [ -e \"$STATE\" ]; then . \"$STATE\"; else cd \"$REPOSITORY\"; fi\n\
             {{\n{line}\n}} <\"$GIVEN\"\n\
             code=$?\n\
             {{ printf 'cd %q\\n' \"$PWD\"; declare -px PATH; declare -px AWS_DEFAULT_REGION; declare -f; }} >\"$STATE\" 2>/dev/null\n\
             exit $code\n"
        );
        let path = std::env::var("PATH").unwrap_or_default();
        let (aws, python) = command_line(&self.programs.source);
        let mut program = Program::new(Path::new("bash"), &self.folder)
            .args(["-c", &script])
            .var(
                "PATH",
                format!("{}:{path}", self.folder.join("bin").display()),
            )
            .var("HOME", self.folder.join("home"))
            .var("LANG", "C.UTF-8")
            .var("STATE", self.folder.join("state"))
            .var("REPOSITORY", self.folder.join("repository"))
            .var("GIVEN", given)
            // The account.
            .var("AWS_ENDPOINT_URL", self.moto.url())
            .var("AWS_ACCESS_KEY_ID", KEY)
            .var("AWS_SECRET_ACCESS_KEY", "test")
            .var("AWS_EC2_METADATA_DISABLED", "true")
            .var("TF_VAR_endpoint", self.moto.url())
            .var("TF_CLI_CONFIG_FILE", self.folder.join("terraform.rc"))
            .var("CHECKPOINT_DISABLE", "1");
        program = program
            .var("AWS", std::path::absolute(aws)?)
            .var("PYTHON", std::path::absolute(python)?)
            .var("MACHINES", self.folder.join(MACHINES));
        program.run(&self.folder, PATIENCE)
    }
}

/// Tells whether a word is an action as policies name them, such as `ssm:StartSession`.
fn is_action(word: &str) -> bool {
    let Some((service, action)) = word.split_once(':') else {
        return false;
    };
    let is_service = ["autoscaling", "ec2", "iam", "ssm", "ssmmessages", "sts"].contains(&service);
    is_service && !action.is_empty() && action.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// The package of the agent of Systems Manager, as far as it is seen: a service.
fn session_agent(folder: &Path, package: &Path) -> Result<()> {
    let units = folder.join("etc/systemd/system");
    std::fs::create_dir_all(&units)?;
    std::fs::create_dir_all(folder.join("DEBIAN"))?;
    let unit = "[Service]\nExecStart=/bin/sleep infinity\n";
    std::fs::write(units.join("amazon-ssm-agent.service"), unit)?;
    let control = "Package: amazon-ssm-agent\nVersion: 3.3\nArchitecture: all\n\
                   Maintainer: tests <tests@example.org>\nDescription: stands in for the real one\n";
    std::fs::write(folder.join("DEBIAN/control"), control)?;
    let built = Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .args([folder, package])
        .output()?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "dpkg-deb: {said}");
    Ok(())
}

fn sum(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8(output.stdout)?;
    let sum = text.split_whitespace().next();
    Ok(sum.context("sha256sum says nothing")?.to_owned())
}
