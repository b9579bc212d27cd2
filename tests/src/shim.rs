//! Small C libraries that are preloaded into a program to stand in for a part of the system that
//! fails. They are compiled when a test needs them, so that nothing has to be installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A library that was compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shim {
    path: PathBuf,
}

impl Shim {
    /// Compiles `tests/shims/NAME.c` of the repository at `source` into `folder`.
    ///
    /// # Errors
    /// Why it cannot be had on this machine, in words that follow the name of a skipped test.
    pub fn compile(source: &Path, name: &str, folder: &Path) -> Result<Self, String> {
        if !cfg!(target_os = "linux") {
            return Err("needs Linux, whose linker preloads libraries".to_owned());
        }
        let code = source.join("tests/shims").join(format!("{name}.c"));
        let path = folder.join(format!("muster-{name}.so"));
        let compiler = std::env::var_os("CC").unwrap_or_else(|| OsString::from("cc"));
        let output = Command::new(&compiler)
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&path)
            .arg(&code)
            .args(["-ldl", "-lpthread"])
            .output()
            .map_err(|error| format!("needs the C compiler {}: {error}", compiler.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let first = said.lines().find(|line| line.contains("error"));
            let first = first.or(said.lines().next()).unwrap_or("it said nothing");
            return Err(format!(
                "needs a C compiler that takes {name}.c, but: {first}"
            ));
        }
        Ok(Self { path })
    }

    /// Gives the value of `LD_PRELOAD` that loads it.
    #[must_use]
    pub fn preload(&self) -> OsString {
        self.path.clone().into()
    }
}
