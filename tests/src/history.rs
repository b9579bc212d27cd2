//! Repositories with a long and heavy history, made by git's own importer.

use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Bytes of one blob: what a large source file or a small picture has.
const BLOB_BYTES: usize = 1 << 20;
/// Blobs of one commit.
const BLOBS_PER_COMMIT: usize = 4;
/// Files that the newest commit has; the rest is history.
const FILES: usize = 16;

/// Makes a repository with a work tree at `path`, whose history holds about `megabytes` of content
/// that does not compress, and whose newest commit has sixteen of them.
///
/// # Errors
/// Git fails, or the disk is full.
pub fn make(path: &Path, megabytes: usize) -> Result<()> {
    std::fs::create_dir_all(path)?;
    let git = || {
        let mut command = Command::new("git");
        command
            .current_dir(path)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null");
        command
    };
    let succeeds = |command: &mut Command| -> Result<()> {
        ensure!(command.status()?.success(), "{command:?} failed");
        Ok(())
    };
    succeeds(git().args(["init", "-q", "-b", "main"]))?;
    let mut importer = git()
        // Content that does not compress is not to be tried at each time.
        .args(["-c", "core.compression=0", "-c", "pack.compression=0"])
        .args(["fast-import", "--quiet", "--depth=0"])
        .stdin(Stdio::piped())
        .spawn()?;
    let pipe = importer.stdin.take().context("the importer has no input")?;
    let mut stream = BufWriter::with_capacity(BLOB_BYTES, pipe);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut blob = vec![0; BLOB_BYTES];
    for number in 0..megabytes {
        if number % BLOBS_PER_COMMIT == 0 {
            let at = 1_600_000_000 + number;
            writeln!(stream, "commit refs/heads/main")?;
            writeln!(
                stream,
                "committer A B <a@example.org> {at} +0000\ndata 7\nchange\n"
            )?;
        }
        for word in blob.as_chunks_mut::<8>().0 {
            // xorshift64: cheap, and nothing that compresses.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        let file = number % FILES;
        writeln!(
            stream,
            "M 100644 inline heavy/{file}.bin\ndata {BLOB_BYTES}"
        )?;
        stream.write_all(&blob)?;
        writeln!(stream)?;
    }
    drop(
        stream
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?,
    );
    ensure!(importer.wait()?.success(), "git fast-import failed");
    succeeds(git().args(["reset", "-q", "--hard", "main"]))
}
