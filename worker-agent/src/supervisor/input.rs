//! The way from a worker to its agent's standard input.
//!
//! A named pipe in the launch's folder: guard and supervisor need not know of it, the agent's shim opens
//! it, and it ends with the worker, as a pipe that was handed down would.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkfifoat};
use tokio::net::unix::pipe;

use super::{Error, files};

/// Makes the pipe of a launch that has [`Input::Pipe`](super::Input::Pipe), before it is spawned. The
/// agent reads its end once all senders are gone, or the worker is.
///
/// # Errors
/// The folder cannot be written to, or was used before.
pub fn open_input(dir: &Path) -> Result<pipe::Sender, Error> {
    let path = dir.join(files::INPUT);
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Error::file("make", &path)(error.into()))?;
    // Read-write: opening for writing alone fails while nobody reads, and nobody does before the agent.
    pipe::OpenOptions::new()
        .read_write(true)
        .open_sender(&path)
        .map_err(Error::file("open", &path))
}

/// Takes the pipe's name away once the agent runs: a program that the agent starts could write to it
/// otherwise, also from a sandbox in which it can write no file.
///
/// # Errors
/// The folder cannot be changed.
pub fn hide_input(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(files::INPUT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
