//! Where the log goes.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::output::Paint;

/// File of the home that holds the log of embedded coordinators.
pub(crate) const FILE_NAME: &str = "coordinator.log";
/// A log that has grown beyond this is put aside once, when the next coordinator starts.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Logs to standard error: as text to a terminal, else as JSON.
pub(crate) fn serve(filter: &str, paint: Paint) {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(parsed(filter))
        .with_ansi(paint.is_enabled())
        .with_writer(io::stderr);
    // Only the first of a process counts; tests may have set one.
    if io::stderr().is_terminal() {
        drop(subscriber.try_init());
    } else {
        drop(subscriber.json().try_init());
    }
}

/// Logs to a file in the home, for a coordinator whose terminal shows something else.
///
/// The file is opened when something is logged for the first time: a coordinator that cannot start
/// makes no home for its log. Where it cannot be opened nothing is logged.
pub(crate) fn embedded(home: &Path, filter: &str) {
    let path = home.join(FILE_NAME);
    let file = OnceLock::new();
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(parsed(filter))
            .with_writer(move || -> Box<dyn io::Write> {
                let file: &Option<File> = file.get_or_init(|| opened(&path).ok());
                match file.as_ref().map(File::try_clone) {
                    Some(Ok(file)) => Box::new(file),
                    Some(Err(_)) | None => Box::new(io::sink()),
                }
            })
            .with_ansi(false)
            .try_init(),
    );
}

fn opened(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|found| found.len() > FILE_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Says only warnings, as part of the talk.
pub(crate) fn client(paint: Paint) {
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("warn"))
            .with_writer(io::stderr)
            .with_ansi(paint.is_enabled())
            .without_time()
            .with_target(false)
            .try_init(),
    );
}

/// Says nothing, since the whole terminal shows something else.
pub(crate) fn silent() {
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("off"))
            .with_writer(io::sink)
            .try_init(),
    );
}

fn parsed(filter: &str) -> EnvFilter {
    EnvFilter::builder()
        .parse(filter)
        .unwrap_or_else(|_| EnvFilter::new(crate::config::LOG_DEFAULT))
}
