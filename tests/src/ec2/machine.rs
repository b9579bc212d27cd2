//! One instance that really runs: its user data, and with it a real worker.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::network::{Listening, Network, forward};
use super::{Client, Imds, imds, moto};
use crate::process::{Process, Program};

const BOOT: &str = include_str!("../../cloud/boot.sh");
const SYSTEMCTL: &str = include_str!("../../cloud/systemctl");

/// Where the coordinator is, for machines and in truth.
#[derive(Clone, Debug)]
pub struct Place {
    /// The repository.
    pub source: PathBuf,
    /// Takes a folder for each machine.
    pub folder: PathBuf,
    /// The coordinator's address as the user data has it.
    pub dialled: (Ipv4Addr, u16),
    /// Where it really listens, on this host.
    pub listens: SocketAddr,
}

/// A running instance; killed with its value, and everything in it too.
#[derive(Debug)]
pub struct Machine {
    /// The instance's id.
    pub id: String,
    folder: PathBuf,
    // Ended in this order: the processes first, the network last.
    process: Option<Process>,
    imds: Imds,
    cable: Option<Listening>,
    network: Network,
}

impl Machine {
    /// Makes the instance's network and, if it `boots`, lets it run its user data.
    pub(super) fn start(place: &Place, client: Client, id: &str, boots: bool) -> Result<Self> {
        let folder = place.folder.join(id);
        std::fs::create_dir_all(&folder)?;
        let user_data = client.user_data(id)?;
        let network = Network::new(&[imds::ADDRESS, place.dialled.0])?;
        let imds = Imds::start(&network, client, id, &user_data)?;
        let target = place.listens;
        let listener = network.listen(SocketAddr::from(place.dialled))?;
        let cable = Listening::new(listener, move |stream| forward(&stream, target))?;
        let mut machine = Self {
            id: id.to_owned(),
            folder,
            process: None,
            imds,
            cable: Some(cable),
            network,
        };
        if boots {
            let words = machine.network.words();
            machine.unpack(&cloud_config(&place.source, &user_data)?)?;
            machine.boot(&words)?;
        }
        Ok(machine)
    }

    /// Puts what cloud-init would write where the boot finds it.
    fn unpack(&self, config: &Value) -> Result<()> {
        let files = config["write_files"].as_array().into_iter().flatten();
        for file in files {
            let path = file["path"].as_str().context("a file without a path")?;
            let path = self.folder.join("files").join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().context("a path without a folder")?)?;
            std::fs::write(&path, file["content"].as_str().context("no content")?)?;
            let mode = file["permissions"].as_str().unwrap_or("0644");
            let mode = u32::from_str_radix(mode, 8)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        }
        let mut script = "set -e\n".to_owned();
        for command in config["runcmd"].as_array().into_iter().flatten() {
            let words = command.as_array().context("only lists of words are run")?;
            for word in words {
                let word = word.as_str().context("only words are run")?;
                script.push_str(&format!("'{}' ", word.replace('\'', "'\\''")));
            }
            script.push('\n');
        }
        std::fs::write(self.folder.join("runcmd"), script)?;
        std::fs::create_dir_all(self.folder.join("bin"))?;
        std::fs::write(self.folder.join("boot.sh"), BOOT)?;
        let systemctl = self.folder.join("bin/systemctl");
        std::fs::write(&systemctl, SYSTEMCTL)?;
        std::fs::set_permissions(systemctl, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn boot(&mut self, network: &[String]) -> Result<()> {
        let mut program = Program::new(Path::new("bash"), &self.folder)
            .args([self.folder.join("boot.sh"), self.folder.clone()]);
        let unshare = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ];
        program.wrapper = network.iter().map(Into::into).collect();
        program.wrapper.extend(unshare.map(Into::into));
        self.process = Some(program.start(&self.folder, "machine")?);
        Ok(())
    }

    /// Gives its metadata service.
    #[must_use]
    pub fn imds(&self) -> &Imds {
        &self.imds
    }

    /// Cuts it off from the coordinator, for good.
    pub fn cut(&mut self) {
        self.cable = None;
    }

    /// Gives how its worker's service has ended so far, one exit code for each start.
    #[must_use]
    pub fn exits(&self) -> Vec<i32> {
        let text = self.read("muster-worker.service.exits");
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Gives what its worker has printed.
    #[must_use]
    pub fn worker_log(&self) -> String {
        self.read("muster-worker.service.log")
    }

    /// Gives the end of all that it has printed, for a test that failed.
    #[must_use]
    pub fn story(&self) -> String {
        let names = [
            "machine.err",
            "boot.log",
            "systemctl.log",
            "muster-worker.service.log",
            "muster-worker.service.exits",
        ];
        let mut story = format!("--- machine {}: {:?}\n", self.id, self.imds.asked());
        for name in names {
            let text = self.read(name);
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            story.push_str(&format!("{name}:\n{last}\n"));
        }
        story
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Kills `unshare`, which takes the first process of its namespace along, and that all others.
        self.process = None;
    }
}

/// Reads user data as cloud-init does.
///
/// # Errors
/// It is no cloud-config.
pub fn cloud_config(source: &Path, user_data: &str) -> Result<Value> {
    ensure!(
        user_data.starts_with("#cloud-config\n"),
        "no cloud-config: {user_data}"
    );
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), user_data)?;
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let output = Command::new(moto::python(source))
        .args(["-c", script])
        .arg(file.path())
        .stdin(Stdio::null())
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{complaint}\n{user_data}");
    Ok(serde_json::from_slice(&output.stdout)?)
}
