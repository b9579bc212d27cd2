//! Real agents, if they are here: `.ci/agents` installs them.

use std::path::{Path, PathBuf};

/// Finds the program of Codex: the one that `CODEX_BIN` names, else the installed one.
///
/// # Errors
/// Why tests that need it are skipped.
pub fn codex(source: &Path) -> Result<PathBuf, String> {
    find(source, "CODEX_BIN", "codex")
}

/// Finds the program of Claude Code: the one that `CLAUDE_BIN` names, else the installed one.
///
/// # Errors
/// Why tests that need it are skipped.
pub fn claude(source: &Path) -> Result<PathBuf, String> {
    find(source, "CLAUDE_BIN", "claude")
}

/// Finds the program of opencode: the one that `OPENCODE_BIN` names, else the installed one.
///
/// # Errors
/// Why tests that need it are skipped.
pub fn opencode(source: &Path) -> Result<PathBuf, String> {
    find(source, "OPENCODE_BIN", "opencode")
}

fn find(source: &Path, variable: &str, name: &str) -> Result<PathBuf, String> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| source.join("target"));
    let program = named.unwrap_or_else(|| target.join("agents/node_modules/.bin").join(name));
    // A program of another folder than this test's own.
    match program.canonicalize() {
        Ok(_) => Ok(std::path::absolute(&program).unwrap_or(program)),
        Err(_) => Err(format!("skipped: no {name} found")),
    }
}
