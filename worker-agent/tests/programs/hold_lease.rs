//! Plays a worker for the supervisor's tests: a process of its own that they can kill and stop. It
//! renews its launch's lease, always for the time it was told, as long as it lives.
//!
//! Arguments: the executable that supervises, the launch's folder, the time in milliseconds, and
//! the shell script to run.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use worker_agent::clock;
use worker_agent::supervisor::{CgroupUse, Launch, Mark, SupervisedProcess};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [executable, folder, ttl_ms, script] = arguments.as_slice() else {
        return Err("usage: hold-lease EXECUTABLE FOLDER MILLISECONDS SCRIPT".into());
    };
    let ttl = Duration::from_millis(ttl_ms.parse()?);
    let launch = Launch {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        cwd: folder.into(),
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        deadline: clock::now().after(ttl),
        term_grace_ms: 200,
        output_bytes_max: 1 << 20,
        cgroup: CgroupUse::Never,
        mark: Mark::random(),
        masked: [].into(),
        unseen: Vec::new(),
    };
    let mut process =
        SupervisedProcess::spawn(Path::new(executable), launch, Path::new(folder)).await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    loop {
        tokio::select! {
            event = process.next_event() => if event.is_none() { return Ok(()) },
            _ = ticks.tick() => process.renew(clock::now().after(ttl)),
        }
    }
}
