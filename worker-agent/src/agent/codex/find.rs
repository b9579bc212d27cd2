//! Where the program is.

use std::path::{Path, PathBuf};

use crate::agent::{Own, may_run, program};

/// Names the program, as codex-par does.
const PROGRAM_VARIABLE: &str = "CODEX_BIN";
const PROGRAM: &str = "codex";
/// Finds the program: the one that the worker's environment names, else the one in its path. Behind
/// the script of its npm package the native program is found, so that signals and memory are those
/// of one process.
pub(super) fn find(own: Own<'_>) -> Option<String> {
    let path = own("PATH").unwrap_or_default();
    let found = match own(PROGRAM_VARIABLE).filter(|named| !named.is_empty()) {
        Some(named) if named.contains('/') => may_run(Path::new(&named)).then_some(named),
        Some(named) => program(&named, &path),
        None => program(PROGRAM, &path),
    }?;
    Some(match native(Path::new(&found)) {
        Some(native) => native.to_string_lossy().into_owned(),
        None => found,
    })
}

/// Gives the native program of the npm package whose script this is.
fn native(script: &Path) -> Option<PathBuf> {
    let target = script.canonicalize().ok()?;
    if target.extension()? != "js" {
        return None;
    }
    let package = target.parent()?.parent()?;
    let (short, long) = match std::env::consts::ARCH {
        "x86_64" => ("x64", "x86_64"),
        "aarch64" => ("arm64", "aarch64"),
        _ => return None,
    };
    let platform = format!("codex-linux-{short}");
    let inner = format!("vendor/{long}-unknown-linux-musl/bin/{PROGRAM}");
    let folders = [
        package.join("node_modules/@openai").join(&platform),
        package.parent()?.join(&platform),
        package.to_owned(),
    ];
    folders
        .into_iter()
        .map(|folder| folder.join(&inner))
        .find(|candidate| may_run(candidate))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn executable(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_program_is_the_named_one_else_the_one_in_the_path() {
        let own = |set: &[(&str, &str)], name: &str| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let named = [("CODEX_BIN", "/bin/sh"), ("PATH", "/bin")];
        assert_eq!(find(&|name| own(&named, name)).as_deref(), Some("/bin/sh"));
        let by_path = [("CODEX_BIN", "sh"), ("PATH", "/bin")];
        assert_eq!(
            find(&|name| own(&by_path, name)).as_deref(),
            Some("/bin/sh")
        );
        let gone = [("CODEX_BIN", "/bin/no-such-program"), ("PATH", "/bin")];
        assert_eq!(find(&|name| own(&gone, name)), None);
    }

    #[test]
    fn behind_the_script_of_its_package_is_the_native_program() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().canonicalize().unwrap().join("node_modules");
        let script = modules.join("@openai/codex/bin/codex.js");
        executable(&script, "#!/usr/bin/env node\n");
        let link = modules.join(".bin/codex");
        fs::create_dir_all(modules.join(".bin")).unwrap();
        std::os::unix::fs::symlink(&script, &link).unwrap();
        let own = |name: &str| (name == "CODEX_BIN").then(|| link.to_string_lossy().into_owned());
        assert_eq!(find(&own).unwrap(), link.to_string_lossy());
        let short = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "x64"
        };
        let native = modules.join(format!(
            "@openai/codex-linux-{short}/vendor/{}-unknown-linux-musl/bin/codex",
            std::env::consts::ARCH
        ));
        executable(&native, "");
        assert_eq!(find(&own).unwrap(), native.to_string_lossy());
    }
}
