//! A real Slurm cluster on this machine: a controller and some nodes of our own, in a process
//! namespace, so that all of it, jobs included, ends with its value.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::hosts::Hosts;
use crate::traces;
use crate::wait::{SOON, until_true};

/// What must be installed: Debian's `slurm-wlm`, `slurmctld`, `slurmd`, `slurm-client` and
/// `slurm-wlm-basic-plugins`.
const PROGRAMS: [&str; 8] = [
    "slurmctld",
    "slurmd",
    "sbatch",
    "squeue",
    "scancel",
    "sinfo",
    "scontrol",
    "unshare",
];
/// What a daemon is called in orders to [`INIT`].
const CONTROLLER: &str = "controller";

/// The first process of the namespace. It starts and kills daemons as its input says, and ends, with
/// everything else, when nobody holds that any more.
const INIT: &str = r#"
declare -A pids
begin() {
    local place=PLACE_$1
    if [ "$1" = controller ]; then
        ${!place} slurmctld -D -f "$SLURM_CONF" $2 >/dev/null 2>&1 </dev/null &
    else
        ${!place} slurmd -D -N "$1" -f "$SLURM_CONF" >/dev/null 2>&1 </dev/null &
    fi
    pids[$1]=$!
}
while read -r order name how; do
    case $order in
    begin) begin "$name" "$how" ;;
    kill) kill -KILL "${pids[$name]}"; wait "${pids[$name]}" 2>/dev/null ;;
    stop) kill -STOP "${pids[$name]}" ;;
    continue) kill -CONT "${pids[$name]}" ;;
    esac
    echo done
done
"#;

/// A cluster; gone when dropped.
#[derive(Debug)]
pub struct Slurm {
    configuration: PathBuf,
    /// Words before a client.
    place: Vec<String>,
    init: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Where a daemon runs.
#[derive(Clone, Debug)]
struct Place {
    address: String,
    /// Before its command line.
    words: Vec<String>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            address: "127.0.0.1".to_owned(),
            words: vec![],
        }
    }
}

/// Why no cluster can be started on this machine, if so.
#[must_use]
pub fn missing() -> Option<String> {
    for program in PROGRAMS {
        let is_in = |folder: &Path| folder.join(program).is_file();
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| is_in(&folder)));
        if !found {
            return Some(format!("needs Slurm: there is no {program}"));
        }
    }
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to start a Slurm cluster".to_owned());
    }
    None
}

impl Slurm {
    /// Starts a cluster of `nodes` nodes `n1`, `n2`, … with four CPUs each, and waits until all are
    /// idle. Jobs of partition `debug`, the usual one, are requeued for those of `hi`.
    ///
    /// # Errors
    /// It does not come up; what was started has ended.
    pub fn start(folder: &Path, nodes: usize) -> Result<Self> {
        Self::start_at(folder, &vec![Place::default(); nodes + 1])
    }

    /// As [`Slurm::start`], each node on a host of its own behind the first, the controller's and the
    /// clients'.
    ///
    /// # Errors
    /// As [`Slurm::start`].
    pub fn start_on(folder: &Path, hosts: &Hosts, names: &[&str]) -> Result<Self> {
        let places = names.iter().enumerate().map(|(index, name)| Place {
            address: Hosts::address(index),
            words: hosts.inside(name),
        });
        Self::start_at(folder, &places.collect::<Vec<_>>())
    }

    fn start_at(folder: &Path, places: &[Place]) -> Result<Self> {
        let nodes = places.len() - 1;
        for name in ["etc", "run", "log", "state", "spool"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let configuration = folder.join("etc/slurm.conf");
        fs::write(&configuration, configure(folder, places)?)?;
        let names = (0..).map(|nth| match nth {
            0 => format!("PLACE_{CONTROLLER}"),
            node => format!("PLACE_n{node}"),
        });
        let words = names.zip(places.iter().map(|place| place.words.join(" ")));
        let mut init = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["bash", "-c", INIT])
            .env("SLURM_CONF", &configuration)
            .envs(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot make a process namespace")?;
        let orders = init.stdin.take().context("no input")?;
        let answers = init.stdout.take().context("no output")?;
        let mut slurm = Self {
            configuration,
            place: places[0].words.clone(),
            init,
            orders,
            answers: BufReader::new(answers),
        };
        // Without what an earlier controller kept.
        slurm.order("begin", CONTROLLER, "-c")?;
        for node in 1..=nodes {
            fs::create_dir_all(folder.join("spool").join(format!("n{node}")))?;
            slurm.begin_node(node)?;
        }
        until_true("all nodes of the cluster are idle", SOON, || {
            let states = slurm.ask("sinfo", &["-h", "-N", "-p", "debug", "-o", "%t"]);
            let states = states.unwrap_or_default();
            Ok(states.lines().filter(|state| *state == "idle").count() == nodes)
        })?;
        Ok(slurm)
    }

    /// Gives the path that clients need as SLURM_CONF.
    #[must_use]
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// Runs a client of the cluster, and gives what it says.
    ///
    /// # Errors
    /// It fails; with what it complains of.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut words = self.place.iter().map(String::as_str).chain([program]);
        let output = Command::new(words.next().unwrap_or_default())
            .args(words)
            .args(arguments)
            .env("SLURM_CONF", &self.configuration)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{program} {arguments:?}: {complaint}"
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Gives state and name of each job that has not ended, tasks of arrays one by one.
    ///
    /// # Errors
    /// The controller does not answer.
    pub fn jobs(&self) -> Result<Vec<(String, String)>> {
        let listed = self.ask("squeue", &["-h", "-r", "-o", "%T|%j"])?;
        let jobs = listed.lines().filter_map(|line| line.split_once('|'));
        Ok(jobs
            .map(|(state, name)| (state.to_owned(), name.to_owned()))
            .collect())
    }

    /// Kills the controller; jobs run on.
    ///
    /// # Errors
    /// The cluster has ended.
    pub fn kill_controller(&mut self) -> Result<()> {
        self.order("kill", CONTROLLER, "")
    }

    /// Starts the controller again, with what it had kept.
    ///
    /// # Errors
    /// The cluster has ended.
    pub fn begin_controller(&mut self) -> Result<()> {
        self.order("begin", CONTROLLER, "")
    }

    /// Freezes the controller: it takes connections and answers none.
    ///
    /// # Errors
    /// The cluster has ended.
    pub fn stop_controller(&mut self) -> Result<()> {
        self.order("stop", CONTROLLER, "")
    }

    /// Lets a frozen controller go on.
    ///
    /// # Errors
    /// The cluster has ended.
    pub fn continue_controller(&mut self) -> Result<()> {
        self.order("continue", CONTROLLER, "")
    }

    /// Kills the daemon of a node, from 1; what jobs have started there runs on.
    ///
    /// # Errors
    /// The cluster has ended.
    pub fn kill_node(&mut self, node: usize) -> Result<()> {
        self.order("kill", &format!("n{node}"), "")
    }

    /// Ends a node as a power cut does: its daemon and all that its jobs have started.
    ///
    /// # Errors
    /// The cluster has ended.
    pub fn crash_node(&mut self, node: usize) -> Result<()> {
        self.kill_node(node)?;
        let folder = self.configuration.display().to_string();
        let name = format!("n{node}");
        until_true("nothing runs on the node", SOON, || {
            let mut found = traces::with_variable("SLURMD_NODENAME", &name)?;
            // Others may have a node of that name.
            let ours: BTreeSet<u32> = traces::mentioning(&folder).into_iter().collect();
            found.retain(|id| ours.contains(id));
            // Neither the daemon of a job's step nor what tasks run has that variable.
            let steps: Vec<u32> = found.iter().filter_map(|id| step_of(*id)).collect();
            found.extend(steps);
            let found = with_descendants(found);
            for id in &found {
                let id = i32::try_from(*id).ok().and_then(Pid::from_raw);
                if let Some(id) = id {
                    // It may have ended by itself.
                    let _ = kill_process(id, Signal::KILL);
                }
            }
            Ok(found.is_empty())
        })
    }

    /// Starts the daemon of a node.
    ///
    /// # Errors
    /// The cluster has ended.
    pub fn begin_node(&mut self, node: usize) -> Result<()> {
        self.order("begin", &format!("n{node}"), "")
    }

    fn order(&mut self, order: &str, name: &str, how: &str) -> Result<()> {
        writeln!(self.orders, "{order} {name} {how}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(answer == "done\n", "the cluster has ended: {order} {name}");
        Ok(())
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // The namespace ends with its first process, which ends with this one.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
    parent.parse().ok()
}

/// Gives the daemon that has started a process, if that is one of a job's step.
fn step_of(process: u32) -> Option<u32> {
    let parent = parent_of(process)?;
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    name.starts_with("slurmstepd").then_some(parent)
}

/// Adds all that those processes have started.
fn with_descendants(processes: Vec<u32>) -> BTreeSet<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = all.filter_map(|id| Some((id, parent_of(id)?))).collect();
    let mut found: BTreeSet<u32> = processes.into_iter().collect();
    loop {
        let before = found.len();
        let children = parents.iter().filter(|(_, parent)| found.contains(parent));
        let children: Vec<u32> = children.map(|(id, _)| *id).collect();
        found.extend(children);
        if found.len() == before {
            return found;
        }
    }
}

/// Gives free ports: one for the controller and one for each node. They may be taken before they
/// are used, by others that are given ports by the system.
fn ports(count: usize) -> Result<Vec<u16>> {
    let listeners: std::io::Result<Vec<_>> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect();
    let ports = listeners?
        .into_iter()
        .map(|held| Ok(held.local_addr()?.port()));
    ports.collect()
}

fn configure(folder: &Path, places: &[Place]) -> Result<String> {
    let nodes = places.len() - 1;
    let ports = ports(nodes + 1)?;
    let (controller, of_nodes) = ports.split_first().context("no ports")?;
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let host = name.split('.').next().unwrap_or_default();
    let (folder, address) = (folder.display(), &places[0].address);
    let mut text = format!(
        "ClusterName=mini
SlurmctldHost={host}({address})
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
MinJobAge=300
CompleteWait=0
SlurmdTimeout=5
SlurmctldTimeout=20
BatchStartTimeout=10
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=2,bf_interval=1
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
"
    );
    for (index, port) in of_nodes.iter().enumerate() {
        let node = index + 1;
        let address = &places[node].address;
        text.push_str(&format!(
            "NodeName=n{node} NodeHostname={host} NodeAddr={address} Port={port} CPUs=4 \
             RealMemory=4000 State=UNKNOWN\n"
        ));
    }
    let all = format!("Nodes=n[1-{nodes}] MaxTime=INFINITE DefMemPerCPU=100 State=UP");
    text.push_str(&format!(
        "PartitionName=debug {all} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20\n\
         PartitionName=hi {all} PriorityTier=10 PreemptMode=off\n"
    ));
    Ok(text)
}
