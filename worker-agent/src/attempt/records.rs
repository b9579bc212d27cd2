//! Reads what agents keep in files of their own.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::agent::conversation::{Record, Recorded};
use crate::agent::lines::{Line, Lines};

/// Bytes of the end of a file that are read; conversations of days are shorter.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Lines that are given, the last ones.
const LINES_MAX: usize = 32_768;
const CHUNK_BYTES: usize = 1 << 20;

/// Gives the lines of such files that have their word, in order, and that those are all.
pub(super) async fn read(records: Vec<Record>) -> Vec<Recorded> {
    if records.is_empty() {
        return vec![Recorded::End];
    }
    let read = tokio::task::spawn_blocking(move || {
        let mut found = VecDeque::new();
        for Record { file, word } in records {
            if let Err(error) = read_one(&file, word.as_bytes(), &mut found) {
                let shown = file.display();
                tracing::warn!(file = %shown, %error, "cannot read an agent's record of its conversation");
                found.push_back(Recorded::Unreadable(file));
            }
        }
        found.push_back(Recorded::End);
        found.into()
    });
    // Fails only if it panicked.
    read.await.unwrap_or_default()
}

fn read_one(file: &Path, word: &[u8], found: &mut VecDeque<Recorded>) -> std::io::Result<()> {
    // An agent may have put anything there: a pipe must not hold the worker.
    let mut file = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(file)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    file.seek(SeekFrom::Start(
        metadata.len().saturating_sub(FILE_BYTES_MAX),
    ))?;
    let mut file = file.take(FILE_BYTES_MAX);
    let mut lines = Lines::default();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        for line in lines.push(chunk.get(..count).unwrap_or_default()) {
            let Line::Whole(line) = line else {
                continue;
            };
            if line.windows(word.len()).any(|part| part == word) {
                if found.len() >= LINES_MAX {
                    found.pop_front();
                }
                found.push_back(Recorded::Line(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_with_the_word_are_given_and_files_that_cannot_be_read_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| Record {
            file: folder.path().join(name),
            word: "usage",
        };
        let long = "x".repeat(3 * CHUNK_BYTES);
        let text = format!("usage 1\nother\n{long}\n  usage 2\nusage cut");
        std::fs::write(folder.path().join("a"), text).unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        let pipe = folder.path().join("c");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let found = read(vec![of("a"), of("b"), of("c"), of("none")]).await;
        let line = |text: &str| Recorded::Line(text.into());
        let unreadable = |name: &str| Recorded::Unreadable(of(name).file);
        let expected = [
            line("usage 1"),
            line("  usage 2"),
            unreadable("b"),
            unreadable("c"),
            unreadable("none"),
            Recorded::End,
        ];
        assert_eq!(found, expected);
    }
}
