//! Makes the fingerprint of the simulator: what ran for a seed is known only as long as nothing of
//! the world, and nothing that the world runs, has changed.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Sources of everything that takes part in a world, seen from this crate.
const SOURCES: [&str; 5] = [
    "src",
    "../core/src",
    "../../proto/muster",
    "../../worker-agent/src",
    "../../Cargo.lock",
];

fn main() -> io::Result<()> {
    // Asked at run time: a target folder that was copied brings a script built elsewhere.
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let mut hasher = DefaultHasher::new();
    for source in SOURCES {
        let mut files = BTreeSet::new();
        list(&root.join(source), &mut files)?;
        for file in files {
            if let Ok(name) = file.strip_prefix(&root) {
                name.hash(&mut hasher);
            }
            fs::read(&file)?.hash(&mut hasher);
        }
    }
    let fingerprint = hasher.finish();
    let mut tell = format!("cargo::rustc-env=SIMULATOR_FINGERPRINT={fingerprint:016x}\n");
    for source in SOURCES {
        tell.push_str(&format!("cargo::rerun-if-changed={source}\n"));
    }
    io::Write::write_all(&mut io::stdout(), tell.as_bytes())
}

fn list(path: &Path, files: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.insert(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        list(&entry?.path(), files)?;
    }
    Ok(())
}
