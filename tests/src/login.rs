//! A login host: a real `sshd` on this machine that lets its owner in by a key made for it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::wait::{SOON, until_true};

/// Where the system has the daemon, which must be called by its whole path.
const SSHD: &str = "/usr/sbin/sshd";

/// A host to log in to; gone when dropped, with its connections.
#[derive(Debug)]
pub struct LoginHost {
    folder: PathBuf,
    port: u16,
    daemon: Option<Child>,
}

/// Why there can be no login host on this machine, if so.
#[must_use]
pub fn missing() -> Option<String> {
    for program in [
        SSHD,
        "/usr/bin/ssh",
        "/usr/bin/ssh-keygen",
        "/usr/bin/unshare",
    ] {
        if !Path::new(program).is_file() {
            return Some(format!("needs {program}"));
        }
    }
    let is_root = rustix::process::geteuid().is_root();
    (!is_root).then(|| "needs root, to start sshd".to_owned())
}

impl LoginHost {
    /// Starts one whose sessions have these variables.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(folder: &Path, variables: &[(&str, &str)]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        for name in ["host", "own"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.join(name))
                .stdin(Stdio::null())
                .status()?;
            ensure!(made.success(), "ssh-keygen: {made}");
        }
        fs::copy(folder.join("own.pub"), folder.join("authorized"))?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let shown = folder.display();
        // Of its own, since shells read what people have in theirs.
        let home = shown.to_string();
        let set: Vec<String> = [("HOME", &*home)]
            .iter()
            .chain(variables)
            .map(|(name, value)| format!("\"{name}={value}\""))
            .collect();
        let text = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {shown}/host\nPidFile {shown}/pid\n\
             AuthorizedKeysFile {shown}/authorized\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nSetEnv {}\n",
            set.join(" ")
        );
        fs::write(folder.join("sshd_config"), text)?;
        let mut host = Self {
            folder: folder.to_owned(),
            port,
            daemon: None,
        };
        host.begin()?;
        Ok(host)
    }

    /// Gives `user@host` as which it is reached.
    #[must_use]
    pub fn address(&self) -> String {
        "root@127.0.0.1".to_owned()
    }

    /// Gives the options that `ssh` needs to reach it.
    #[must_use]
    pub fn options(&self) -> Vec<String> {
        let key = self.folder.join("own").display().to_string();
        let port = self.port.to_string();
        let known = "UserKnownHostsFile=/dev/null";
        let trusting = "StrictHostKeyChecking=no";
        let words = [
            "-F",
            "/dev/null",
            "-i",
            &key,
            "-p",
            &port,
            "-o",
            known,
            "-o",
            trusting,
        ];
        words.map(str::to_owned).to_vec()
    }

    /// Ends it and cuts all its connections; what its sessions have started ends too.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn cut(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }

    /// Starts it again after it was cut.
    ///
    /// # Errors
    /// It does not come up.
    pub fn begin(&mut self) -> Result<()> {
        // A namespace ends with its first process, so a cut leaves no session behind; the daemon
        // wants a folder of its own that only an init system would make.
        let script = "mkdir -p /run/sshd && exec \"$@\"";
        let daemon = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", script, "sh", SSHD, "-D", "-e", "-f"])
            .arg(self.folder.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.folder.join("log"))?)
            .spawn()
            .context("cannot start sshd")?;
        self.daemon = Some(daemon);
        let port = self.port;
        until_true("sshd takes connections", SOON, || {
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        })
        .with_context(|| fs::read_to_string(self.folder.join("log")).unwrap_or_default())
    }
}

impl Drop for LoginHost {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = self.cut();
    }
}
