//! A folder, a launch, and ways to wait for what becomes of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use worker_agent::clock;
use worker_agent::supervisor::{
    CgroupUse, Content, Event, ExitReport, Launch, Mark, OutputReader, Stream, SupervisedProcess,
};

pub(crate) const EXECUTABLE: &str = env!("CARGO_BIN_EXE_worker-agent");

/// Far more than anything here takes, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the condition gives a value.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Waits until the process has ended; one that nobody waited for yet has.
pub(crate) fn until_ended(pid: i32) {
    until(&format!("the end of process {pid}"), || {
        (!alive(pid)).then_some(())
    });
}

pub(crate) fn alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

pub(crate) struct Bench {
    pub(crate) folder: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Is a launch of a shell script in the folder, with ten minutes to go.
    pub(crate) fn launch(&self, script: &str) -> Launch {
        Launch {
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            cwd: self.dir().to_owned(),
            env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
            deadline: clock::now().after(Duration::from_secs(600)),
            term_grace_ms: 10_000,
            output_bytes_max: 1 << 20,
            cgroup: CgroupUse::Never,
            mark: Mark::random(),
            masked: BTreeSet::new(),
            unseen: Vec::new(),
        }
    }

    pub(crate) async fn spawn(&self, launch: Launch) -> SupervisedProcess {
        SupervisedProcess::spawn(Path::new(EXECUTABLE), launch, self.dir())
            .await
            .unwrap()
    }

    /// Runs a script to its end.
    pub(crate) async fn run(&self, script: &str) -> ExitReport {
        let process = self.spawn(self.launch(script)).await;
        ended(process).await
    }

    /// Waits for a file that a script writes with `echo`, and returns what it says.
    pub(crate) fn told(&self, file: &str) -> String {
        let path: PathBuf = self.dir().join(file);
        until(file, || {
            fs::read_to_string(&path)
                .ok()?
                .strip_suffix('\n')
                .map(str::to_owned)
        })
    }

    /// Waits for a process id that a script writes.
    pub(crate) fn pid(&self, file: &str) -> i32 {
        self.told(file).parse().unwrap()
    }

    /// Finds the supervisor: the one parent of the process.
    pub(crate) fn parent_of(&self, pid: i32) -> i32 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .unwrap();
        line.trim().parse().unwrap()
    }

    pub(crate) fn contents(&self) -> Vec<Content> {
        let mut reader = OutputReader::open(self.dir(), 0).unwrap();
        std::iter::from_fn(|| reader.next_record().unwrap())
            .map(|record| record.content)
            .collect()
    }

    /// Returns everything stored of a stream.
    pub(crate) fn stored(&self, wanted: Stream) -> Vec<u8> {
        let mut all = Vec::new();
        for content in self.contents() {
            if let Content::Output { stream, bytes } = content
                && stream == wanted
            {
                all.extend(bytes);
            }
        }
        all
    }
}

pub(crate) async fn ended(process: SupervisedProcess) -> ExitReport {
    tokio::time::timeout(PATIENCE, process.wait())
        .await
        .expect("it does not end")
        .unwrap()
}

/// Waits for the first event that the picker takes.
pub(crate) async fn event<T>(
    process: &mut SupervisedProcess,
    pick: impl Fn(Event) -> Option<T>,
) -> T {
    let wanted = async {
        loop {
            let event = process
                .next_event()
                .await
                .expect("it ended before the event");
            if let Some(picked) = pick(event) {
                return picked;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wanted)
        .await
        .expect("the event does not come")
}

pub(crate) async fn started(process: &mut SupervisedProcess) -> i32 {
    event(process, |event| match event {
        Event::Started { pid, .. } => Some(pid),
        Event::Output { .. } | Event::Exited(_) | Event::Gone => None,
    })
    .await
}
