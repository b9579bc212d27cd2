//! One instance that really runs: its user data, and with it a real worker or coordinator.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::network::{Listening, Network, forward};
use super::volume::Volume;
use super::{Client, Imds, Instance, imds, moto};
use crate::process::{Process, Program};

const BOOT: &str = include_str!("../../cloud/boot.sh");
/// What machines have in place of programs that need an init or are not installed everywhere.
const PROGRAMS: [(&str, &str); 2] = [
    ("systemctl", include_str!("../../cloud/systemctl")),
    ("sudo", include_str!("../../cloud/sudo")),
];
/// Where the coordinator's home is attached, as the module says.
const HOME_DEVICE: &str = "/dev/sdf";
/// What stands on a console before anything of ours.
const KERNEL: &str = "[    0.000000] Linux version 6.12.41+deb13-cloud-amd64\n\
    [   12.345678] cloud-init[512]: Cloud-init running 'modules:final'\n";

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
    /// What the coordinator's own instance has, where it is one; it is the one without a group.
    pub head: Option<Head>,
}

/// The world of the coordinator's own instance.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// What it reaches: the address as it dials it, and where that is on this host.
    pub reaches: Vec<(SocketAddr, SocketAddr)>,
    /// Files that its image has, besides those of this host.
    pub files: Vec<(&'static str, String)>,
    /// Variables of its services, besides those that their units name.
    pub variables: Vec<(&'static str, String)>,
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
    cables: Vec<Listening>,
    network: Network,
    /// The coordinator's address as it dials it, and where that is on this host.
    coordinator: (SocketAddr, SocketAddr),
    is_head: bool,
    has_home: bool,
}

impl Machine {
    /// Makes the instance's network and, if it `boots`, lets it run its user data.
    pub(super) fn start(
        place: &Place,
        client: Client,
        instance: &Instance,
        boots: bool,
    ) -> Result<Self> {
        let id = &instance.id;
        let folder = place.folder.join(id);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("console"), KERNEL)?;
        let user_data = client.user_data(id)?;
        let head = place.head.as_ref().filter(|_| instance.group.is_empty());
        let mut addresses = vec![imds::ADDRESS, place.dialled.0];
        addresses.extend(head.into_iter().flat_map(|head| {
            let dialled = head.reaches.iter().map(|(dialled, _)| dialled.ip());
            dialled.filter_map(|ip| match ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            })
        }));
        let network = Network::new(&addresses)?;
        let mut machine = Self {
            imds: Imds::start(&network, client, id, &user_data)?,
            id: id.clone(),
            folder,
            process: None,
            cables: Vec::new(),
            network,
            coordinator: (place.dialled.into(), place.listens),
            is_head: head.is_some(),
            has_home: false,
        };
        if let Some(head) = head {
            for (dialled, target) in &head.reaches {
                machine.lead(*dialled, *target)?;
            }
            machine.be_reached(place.listens, place.dialled.into())?;
        } else {
            machine.mend()?;
        }
        if boots {
            let words = machine.network.words();
            machine.unpack(&cloud_config(&place.source, &user_data)?, head)?;
            machine.boot(&words)?;
        }
        Ok(machine)
    }

    /// Lets what it dials lead to somewhere on this host.
    fn lead(&mut self, dialled: SocketAddr, target: SocketAddr) -> Result<()> {
        let listener = self.network.listen(dialled)?;
        let cable = Listening::new(listener, move |stream| {
            forward(&stream, TcpStream::connect(target));
        })?;
        self.cables.push(cable);
        Ok(())
    }

    /// Lets it be reached at an address of this host.
    fn be_reached(&mut self, at: SocketAddr, inside: SocketAddr) -> Result<()> {
        let dialer = self.network.dialer();
        let listener = TcpListener::bind(at).with_context(|| format!("listen at {at}"))?;
        let cable = Listening::new(listener, move |stream| {
            forward(&stream, dialer.connect(inside));
        })?;
        self.cables.push(cable);
        Ok(())
    }

    /// Attaches the coordinator's home once EC2 has. `volumes` keeps them all.
    pub(super) fn attach_home(
        &mut self,
        place: &Place,
        client: Client,
        volumes: &mut Vec<Volume>,
    ) -> Result<()> {
        let Some(process) = self
            .process
            .as_ref()
            .filter(|_| self.is_head && !self.has_home)
        else {
            return Ok(());
        };
        let Some(id) = client.volume(&self.id, HOME_DEVICE)? else {
            return Ok(());
        };
        if !volumes.iter().any(|volume| volume.id == id) {
            volumes.push(Volume::new(&place.folder.join("volumes"), &id)?);
        }
        let volume = volumes.iter().find(|volume| volume.id == id);
        let (major, minor) = volume.context("a volume that was just made")?.number;
        // What udev calls it: see the AWS documentation of NVMe volumes.
        let name = format!("nvme-Amazon_Elastic_Block_Store_{}", id.replace('-', ""));
        let script = format!(
            "set -e\n[ -p /dev/ready ]\nmknod /dev/nvme1n1 b {major} {minor}\nmkdir -p /dev/disk/by-id\n\
             ln -s /dev/nvme1n1 /dev/disk/by-id/{name}\n"
        );
        let inside = format!("--mount=/proc/{}/ns/mnt", process.id()?.as_raw_pid());
        let output = Command::new("nsenter")
            .args([&inside, "--", "sh", "-c", &script])
            .output()?;
        // It may not have its devices yet.
        self.has_home = output.status.success();
        Ok(())
    }

    /// Puts what cloud-init would write where the boot finds it.
    fn unpack(&self, config: &Value, head: Option<&Head>) -> Result<()> {
        for (path, text) in head.into_iter().flat_map(|head| &head.files) {
            let path = self.folder.join("files").join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().context("a path without a folder")?)?;
            std::fs::write(path, text)?;
        }
        let variables = head.into_iter().flat_map(|head| &head.variables);
        let variables: String = variables
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        std::fs::write(self.folder.join("variables"), variables)?;
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
        for (name, text) in PROGRAMS {
            let program = self.folder.join("bin").join(name);
            std::fs::write(&program, text)?;
            std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))?;
        }
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
        let process = program.start(&self.folder, "machine")?;
        // For whoever opens a session on it.
        let id = process.id()?.as_raw_pid().to_string();
        std::fs::write(self.folder.join("pid"), id)?;
        self.process = Some(process);
        Ok(())
    }

    /// Gives its metadata service.
    #[must_use]
    pub fn imds(&self) -> &Imds {
        &self.imds
    }

    /// Cuts it off from the coordinator until it is mended.
    pub fn cut(&mut self) {
        self.cables.clear();
    }

    /// Lets it reach the coordinator.
    ///
    /// # Errors
    /// It does already, or has no place to listen any more.
    pub fn mend(&mut self) -> Result<()> {
        let (dialled, listens) = self.coordinator;
        self.lead(dialled, listens)
    }

    /// Ends all that runs on it, while it runs for EC2.
    pub fn crash(&mut self) {
        // Kills `unshare`, which takes the first process of its namespace along, and that all others.
        self.process = None;
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
            "muster-coordinator.service.log",
            "muster-coordinator.service.exits",
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
        self.crash();
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
