//! Values that a worker's operator lets tasks have.
//!
//! A plan only says where a value comes from; the worker looks it up, and only if its operator has
//! listed that very place. So no plan can read a file or a variable of a worker's host that nobody
//! meant for it, and neither the coordinator nor its journal ever sees a value.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use crate::mask::VALUE_BYTES_MIN;

/// Longest value: Linux takes 128 KiB in one variable.
const VALUE_BYTES_MAX: u64 = 64 << 10;

/// Where a plan says that a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ValueFrom {
    /// The operator knows, by this name.
    Secret(String),
    /// A variable of the worker.
    Env(String),
    /// A file on the worker's host.
    File(PathBuf),
}

/// One value that an operator lets tasks have: `NAME=FILE` with an absolute path, `NAME=env:VARIABLE`,
/// or `NAME` alone for the variable of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    name: String,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Variable(String),
    File(PathBuf),
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, source) = text.split_once('=').unwrap_or((text, "env"));
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let source = match source.strip_prefix("env:") {
            Some(variable) if is_name(variable) => Source::Variable(variable.to_owned()),
            None if source == "env" => Source::Variable(name.to_owned()),
            None if Path::new(source).is_absolute() => Source::File(source.into()),
            _ => {
                return Err(
                    "write it as NAME=/path/of/file, NAME=env:VARIABLE, or NAME alone for \
                            the variable of that name"
                        .to_owned(),
                );
            }
        };
        if !is_name(name) {
            return Err(format!("{name:?} is no name of letters, digits and `_`"));
        }
        Ok(Self {
            name: name.to_owned(),
            source,
        })
    }
}

/// Why a task cannot have a value. No message shows any part of one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The operator has not listed it.
    #[error(
        "the task wants {what} as `{name}`, which this worker does not give to tasks; its operator \
         allows it with `--secret {how}`"
    )]
    NotListed {
        name: String,
        what: String,
        how: String,
    },
    /// The variable is not set, or is no text.
    #[error("the task's `{name}` comes from the worker's variable `{variable}`, which {why}")]
    Variable {
        name: String,
        variable: String,
        why: &'static str,
    },
    /// The file cannot be read.
    #[error("the task's `{name}` comes from the worker's file {}, which cannot be read", path.display())]
    File {
        name: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It cannot be a variable.
    #[error("the value of the task's `{name}` {why}")]
    Unusable { name: String, why: String },
}

/// How short a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortest {
    /// It must be long enough to be masked.
    Masked,
    /// Any; a short one is shown.
    Any,
}

/// Gives those of the wanted values that can be had now and are long enough to be masked.
pub(crate) fn known(
    listed: &[Secret],
    own: impl Fn(&str) -> Option<String>,
    wanted: &BTreeMap<String, ValueFrom>,
) -> Vec<String> {
    let one = |(name, from): (&String, &ValueFrom)| {
        let wanted = BTreeMap::from([(name.clone(), from.clone())]);
        let found = look_up(listed, &own, &wanted, Shortest::Masked);
        found.unwrap_or_default().into_values()
    };
    wanted.iter().flat_map(one).collect()
}

/// Looks the wanted values up; `own` is the worker's environment.
pub(crate) fn look_up(
    listed: &[Secret],
    own: impl Fn(&str) -> Option<String>,
    wanted: &BTreeMap<String, ValueFrom>,
    shortest: Shortest,
) -> Result<BTreeMap<String, String>, Error> {
    let mut values = BTreeMap::new();
    for (name, from) in wanted {
        let source = place(listed, name, from)?;
        let value = read(name, source, &own)?;
        let unusable = |why: String| Error::Unusable {
            name: name.clone(),
            why,
        };
        if value.contains('\0') {
            return Err(unusable("contains a NUL".to_owned()));
        }
        if shortest == Shortest::Masked && value.len() < VALUE_BYTES_MIN {
            return Err(unusable(format!(
                "is too short to be masked: a secret has {VALUE_BYTES_MIN} bytes at least"
            )));
        }
        values.insert(name.clone(), value);
    }
    Ok(values)
}

/// Finds a wanted place among the listed ones.
fn place<'l>(listed: &'l [Secret], name: &str, from: &ValueFrom) -> Result<&'l Source, Error> {
    let found = listed.iter().find(|secret| match (from, &secret.source) {
        (ValueFrom::Secret(wanted), _) => *wanted == secret.name,
        (ValueFrom::Env(wanted), Source::Variable(variable)) => wanted == variable,
        (ValueFrom::File(wanted), Source::File(path)) => wanted == path,
        (ValueFrom::Env(_), Source::File(_)) | (ValueFrom::File(_), Source::Variable(_)) => false,
    });
    found.map(|secret| &secret.source).ok_or_else(|| {
        let (what, how) = match from {
            ValueFrom::Secret(wanted) => (
                format!("the secret `{wanted}`"),
                format!("{wanted}=FILE` or `--secret {wanted}"),
            ),
            ValueFrom::Env(variable) => (
                format!("the worker's variable `{variable}`"),
                variable.clone(),
            ),
            ValueFrom::File(path) => {
                let path = path.display();
                (
                    format!("the worker's file {path}"),
                    format!("{name}={path}"),
                )
            }
        };
        let name = name.to_owned();
        Error::NotListed { name, what, how }
    })
}

fn read(
    name: &str,
    source: &Source,
    own: impl Fn(&str) -> Option<String>,
) -> Result<String, Error> {
    let name = name.to_owned();
    match source {
        Source::Variable(variable) => own(variable).ok_or_else(|| Error::Variable {
            name,
            variable: variable.clone(),
            why: "is not set there or is no text",
        }),
        Source::File(path) => {
            let failed = |source| Error::File {
                name: name.clone(),
                path: path.clone(),
                source,
            };
            let mut bytes = Vec::new();
            let file = std::fs::File::open(path).map_err(failed)?;
            file.take(VALUE_BYTES_MAX + 1)
                .read_to_end(&mut bytes)
                .map_err(failed)?;
            let unusable = |why: &str| Error::Unusable {
                name: name.clone(),
                why: why.to_owned(),
            };
            if bytes.len() as u64 > VALUE_BYTES_MAX {
                return Err(unusable("is longer than 64 KiB"));
            }
            let mut text = String::from_utf8(bytes).map_err(|_| unusable("is no UTF-8 text"))?;
            // The line break that editors leave at the end of a file.
            if text.ends_with('\n') {
                text.pop();
            }
            if text.ends_with('\r') {
                text.pop();
            }
            Ok(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(all: &[&str]) -> Vec<Secret> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn own(name: &str) -> Option<String> {
        (name == "TOKEN").then(|| "token-value".to_owned())
    }

    fn want(from: ValueFrom) -> BTreeMap<String, ValueFrom> {
        [("X".to_owned(), from)].into()
    }

    fn refused(listed: &[Secret], from: ValueFrom) -> String {
        let error = look_up(listed, own, &want(from), Shortest::Masked).unwrap_err();
        error.to_string()
    }

    #[test]
    fn a_task_gets_what_the_operator_listed_by_name_or_by_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "line one\nline two\n").unwrap();
        let listed = listed(&["TOKEN", &format!("KEY={}", path.display())]);
        for (from, value) in [
            (ValueFrom::Secret("TOKEN".into()), "token-value"),
            (ValueFrom::Env("TOKEN".into()), "token-value"),
            (ValueFrom::Secret("KEY".into()), "line one\nline two"),
            (ValueFrom::File(path), "line one\nline two"),
        ] {
            let got = look_up(&listed, own, &want(from), Shortest::Masked).unwrap();
            assert_eq!(got["X"], value);
        }
    }

    #[test]
    fn what_is_not_listed_is_refused_with_the_way_out() {
        let listed = listed(&["KEY=/etc/hosts", "NAMED=env:OTHER"]);
        let file = refused(&listed, ValueFrom::File("/etc/passwd".into()));
        assert!(file.contains("`--secret X=/etc/passwd`"), "{file}");
        let variable = refused(&listed, ValueFrom::Env("TOKEN".into()));
        assert!(variable.contains("`--secret TOKEN`"), "{variable}");
        let name = refused(&listed, ValueFrom::Secret("OTHER".into()));
        assert!(name.contains("`--secret OTHER=FILE`"), "{name}");
        // The same file by another way.
        refused(&listed, ValueFrom::File("/etc/../etc/hosts".into()));
    }

    #[test]
    fn what_is_listed_and_cannot_be_had_is_named_without_its_value() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let listed = listed(&[&format!("KEY={}", path.display()), "UNSET"]);
        let unset = refused(&listed, ValueFrom::Env("UNSET".into()));
        assert!(unset.contains("`UNSET`, which is not set"), "{unset}");
        let missing = refused(&listed, ValueFrom::File(path.clone()));
        assert!(missing.contains("cannot be read"), "{missing}");
        for (value, why) in [
            (&b"short"[..], "too short to be masked"),
            (b"with a \0 in it", "NUL"),
            (b"\xff\xfe\xff\xfe\xff\xfe\xff", "UTF-8"),
            (&[b'x'; 70_000], "64 KiB"),
        ] {
            std::fs::write(&path, value).unwrap();
            let said = refused(&listed, ValueFrom::Secret("KEY".into()));
            assert!(said.contains(why) && !said.contains("short\""), "{said}");
        }
        std::fs::write(&path, "on").unwrap();
        let any = want(ValueFrom::File(path));
        assert_eq!(
            look_up(&listed, own, &any, Shortest::Any).unwrap()["X"],
            "on"
        );
    }

    #[test]
    fn a_listing_is_a_name_with_a_place() {
        for wrong in [
            "",
            "=x",
            "A=relative/path",
            "A=env:",
            "A B",
            "A=env:B C",
            "-x=/y",
        ] {
            assert!(wrong.parse::<Secret>().is_err(), "{wrong}");
        }
        let by_name: Secret = "TOKEN=env".parse().unwrap();
        assert_eq!(by_name, "TOKEN".parse().unwrap());
    }
}
