//! A profile of the user's settings: `NAME.config.toml` beside them.
//!
//! `codex app-server` has no `--profile`, so the file's settings are given one by one.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::agent::Own;

const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Gives the settings of a profile as overrides `key=value`.
///
/// # Errors
/// Names the file, and why it cannot be used.
pub(super) fn overrides(name: &str, own: Own<'_>) -> Result<Vec<String>, String> {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
    if name.is_empty() || !name.chars().all(plain) {
        return Err(format!("a profile of codex cannot be named {name:?}"));
    }
    let file = home(own)?.join(format!("{name}.config.toml"));
    let wrong = |why: &dyn std::fmt::Display| {
        format!("cannot use codex's profile {}: {why}", file.display())
    };
    let text = read(&file).map_err(|error| wrong(&error))?;
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| wrong(&error))?;
    let mut found = Vec::new();
    flatten("", table, &mut found);
    Ok(found)
}

fn home(own: Own<'_>) -> Result<PathBuf, String> {
    let given = |name: &str| own(name).filter(|value| !value.is_empty());
    given("CODEX_HOME")
        .map(PathBuf::from)
        .or_else(|| given("HOME").map(|home| Path::new(&home).join(".codex")))
        .ok_or_else(|| "profiles of codex need CODEX_HOME or HOME".to_owned())
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn flatten(path: &str, table: Table, found: &mut Vec<String>) {
    for (key, value) in table {
        let plain = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
        let key = if !key.is_empty() && key.chars().all(plain) {
            key
        } else {
            Value::String(key).to_string()
        };
        let path = if path.is_empty() {
            key
        } else {
            format!("{path}.{key}")
        };
        match value {
            Value::Table(inner) => flatten(&path, inner, found),
            value => found.push(format!("{path}={value}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_a_profile_is_an_override() {
        let folder = tempfile::tempdir().unwrap();
        let text = "model = \"m\"\n[features]\na = true\n[mcp_servers.x]\nargs = [\"1\", \"2\"]\n\
                    env = { A = \"b\" }\n";
        std::fs::write(folder.path().join("p.config.toml"), text).unwrap();
        let home = folder.path().to_string_lossy().into_owned();
        let own = |name: &str| (name == "CODEX_HOME").then(|| home.clone());
        let mut found = overrides("p", &own).unwrap();
        found.sort();
        let expected = [
            "features.a=true",
            "mcp_servers.x.args=[\"1\", \"2\"]",
            "mcp_servers.x.env.A=\"b\"",
            "model=\"m\"",
        ];
        assert_eq!(found, expected);
        assert!(overrides("q", &own).unwrap_err().contains("q.config.toml"));
        assert!(overrides("../p", &own).is_err());
        assert!(
            overrides("p", &|_| None)
                .unwrap_err()
                .contains("CODEX_HOME")
        );
    }
}
