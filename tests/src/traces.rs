//! Finding processes by what their environment holds, wherever they hide in the process tree.

use anyhow::Result;

/// Process ids of everything that runs with `NAME=VALUE` in its environment.
///
/// Zombies do not count: they have no environment any more, and run nothing.
///
/// # Errors
/// The process table cannot be read.
pub fn with_variable(name: &str, value: &str) -> Result<Vec<u32>> {
    let wanted = format!("{name}={value}").into_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // A process may end while it is looked at.
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        if environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted)
        {
            found.push(id);
        }
    }
    Ok(found)
}

/// Process ids of everything whose arguments or environment mention `text`: a folder that only one
/// test knows. This process itself does not count.
#[must_use]
pub fn mentioning(text: &str) -> Vec<u32> {
    let wanted = text.as_bytes();
    let holds = |path: std::path::PathBuf| {
        std::fs::read(path).is_ok_and(|bytes| {
            bytes
                .windows(wanted.len().max(1))
                .any(|window| window == wanted)
        })
    };
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|id| *id != std::process::id())
        .filter(|id| {
            let folder = std::path::Path::new("/proc").join(id.to_string());
            holds(folder.join("cmdline")) || holds(folder.join("environ"))
        })
        .collect()
}
