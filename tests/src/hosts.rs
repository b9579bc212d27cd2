//! Several hosts on one machine: network namespaces on a bridge of their own, each with a view of
//! the file system in which the other hosts' folders are empty.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

/// A network of hosts; gone when dropped.
#[derive(Debug)]
pub struct Hosts {
    prefix: String,
    namespaces: Vec<String>,
    folder: PathBuf,
}

/// Whether a host's cable is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connected {
    Yes,
    No,
}

/// Whether what a host sends arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Yes,
    No,
}

/// Why hosts cannot be made on this machine, if so.
#[must_use]
pub fn missing() -> Option<String> {
    for tool in ["ip", "nsenter", "unshare", "mount"] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()));
        if !found {
            return Some(format!("needs the program {tool}"));
        }
    }
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to make network namespaces".to_owned());
    }
    let name = format!("mu{}t", std::process::id());
    let made = run(&["ip", "netns", "add", &name]);
    // It may not have been made.
    let _ = run(&["ip", "netns", "del", &name]);
    made.err()
        .map(|error| format!("needs network namespaces: {error:#}"))
}

/// Why packets of one direction cannot be dropped on this machine, if so.
#[must_use]
pub fn missing_filter() -> Option<String> {
    if let Some(why) = missing() {
        return Some(why);
    }
    let tried = tempfile::tempdir()
        .map_err(anyhow::Error::from)
        .and_then(|folder| {
            let hosts = Hosts::new(&["a"], folder.path())?;
            hosts.hears("a", 1, Heard::No)
        });
    tried
        .err()
        .map(|error| format!("needs iptables, to drop packets one way: {error:#}"))
}

impl Hosts {
    /// Makes `names` on a network of their own; the host of index `i` has [`Hosts::address`]`(i)`.
    ///
    /// # Errors
    /// The system refuses; what was made is removed again.
    pub fn new(names: &[&str], folder: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("mu{}-{count}-", std::process::id());
        let mut hosts = Self {
            prefix,
            namespaces: Vec::new(),
            folder: folder.to_owned(),
        };
        let hub = hosts.namespace("hub");
        hosts.add("hub")?;
        run(&["ip", "-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        run(&["ip", "-n", &hub, "link", "set", "br0", "up"])?;
        for (index, name) in names.iter().enumerate() {
            hosts.add(name)?;
            let host = hosts.namespace(name);
            let port = format!("v{index}");
            run(&[
                "ip", "link", "add", &port, "netns", &hub, "type", "veth", "peer", "name", "eth0",
                "netns", &host,
            ])?;
            run(&[
                "ip", "-n", &hub, "link", "set", &port, "master", "br0", "up",
            ])?;
            let address = format!("{}/24", Self::address(index));
            run(&["ip", "-n", &host, "addr", "add", &address, "dev", "eth0"])?;
            run(&["ip", "-n", &host, "link", "set", "eth0", "up"])?;
            run(&["ip", "-n", &host, "link", "set", "lo", "up"])?;
        }
        Ok(hosts)
    }

    /// Gives the address of the host of that index.
    #[must_use]
    pub fn address(index: usize) -> String {
        format!("10.77.0.{}", index + 1)
    }

    /// Gives the words that let a program run on a host. `hidden` are folders that the host does not
    /// have (they appear empty); `names` are lines of its /etc/hosts, as address and name.
    ///
    /// # Errors
    /// The hosts file cannot be written.
    pub fn wrapper(
        &self,
        name: &str,
        hidden: &[&Path],
        names: &[(&str, &str)],
    ) -> Result<Vec<OsString>> {
        let file = self.name_file(name);
        self.names(name, names)?;
        let mut script = format!("set -e; mount --bind {} /etc/hosts; ", file.display());
        for path in hidden {
            script.push_str(&format!("mount -t tmpfs none {}; ", path.display()));
        }
        script.push_str("exec \"$@\"");
        let network = format!("--net=/run/netns/{}", self.namespace(name));
        // Not `ip netns exec`, which would hide the control groups.
        let words = [
            "nsenter",
            &network,
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ];
        Ok(words.into_iter().map(OsString::from).collect())
    }

    /// Gives the words that let a program use the network of a host, and all else of this one.
    #[must_use]
    pub fn inside(&self, name: &str) -> Vec<String> {
        let network = format!("--net=/run/netns/{}", self.namespace(name));
        vec!["nsenter".to_owned(), network]
    }

    /// Hands all packets that the host `name` sends and receives to a packet queue, where a program
    /// must take them.
    ///
    /// # Errors
    /// The system refuses.
    pub fn queue_packets(&self, name: &str, queue: u16) -> Result<()> {
        let network = format!("--net=/run/netns/{}", self.namespace(name));
        let queue = queue.to_string();
        for (chain, device) in [("OUTPUT", "-o"), ("INPUT", "-i")] {
            run(&[
                "nsenter",
                &network,
                "iptables",
                "-w",
                "-A",
                chain,
                device,
                "eth0",
                "-j",
                "NFQUEUE",
                "--queue-num",
                &queue,
            ])?;
        }
        Ok(())
    }

    /// Changes the names that the host `name` knows, also for programs that run on it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn names(&self, name: &str, names: &[(&str, &str)]) -> Result<()> {
        let mut text = "127.0.0.1 localhost\n".to_owned();
        for (address, name) in names {
            text.push_str(&format!("{address} {name}\n"));
        }
        // In place: it is mounted.
        std::fs::write(self.name_file(name), text).context("write a hosts file")
    }

    fn name_file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("hosts-{name}"))
    }

    /// Gives the host `name` one more address: that of a host of index `index`, which must not
    /// exist.
    ///
    /// # Errors
    /// The system refuses.
    pub fn add_address(&self, name: &str, index: usize) -> Result<()> {
        let host = self.namespace(name);
        let address = format!("{}/24", Self::address(index));
        run(&["ip", "-n", &host, "addr", "add", &address, "dev", "eth0"])
    }

    /// Cuts the host of that index off, or brings it back; its connections are not told.
    ///
    /// # Errors
    /// The system refuses.
    pub fn connect(&self, index: usize, connected: Connected) -> Result<()> {
        let state = match connected {
            Connected::Yes => "up",
            Connected::No => "down",
        };
        let (hub, port) = (self.namespace("hub"), format!("v{index}"));
        run(&["ip", "-n", &hub, "link", "set", &port, state])
    }

    /// Lets the host `name` drop whatever comes from the host of that index, or take it again. The
    /// other way stays open, and connections are not told.
    ///
    /// # Errors
    /// The system refuses.
    pub fn hears(&self, name: &str, index: usize, heard: Heard) -> Result<()> {
        let network = format!("--net=/run/netns/{}", self.namespace(name));
        let change = match heard {
            Heard::Yes => "-D",
            Heard::No => "-A",
        };
        let address = Self::address(index);
        run(&[
            "nsenter", &network, "iptables", "-w", change, "INPUT", "-s", &address, "-j", "DROP",
        ])
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn add(&mut self, name: &str) -> Result<()> {
        let namespace = self.namespace(name);
        run(&["ip", "netns", "add", &namespace])?;
        self.namespaces.push(namespace);
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.namespaces {
            // What cannot be removed now is in use by a process that is about to end.
            let _ = run(&["ip", "netns", "del", name]);
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    let (program, arguments) = words.split_first().context("nothing to run")?;
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`{}` failed: {said}",
        words.join(" ")
    );
    Ok(())
}
