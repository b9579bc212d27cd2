//! Variables that a plan gives an agent's program, with places for values of the worker's own.

use std::collections::BTreeMap;

use muster_proto::v1::Failure;

use super::Own;
use crate::failure::{class, failure};

/// Variables of the worker that no plan gets: its own affairs.
const OWN_PREFIX: &str = "MUSTER_";

/// Variables with their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) values: BTreeMap<String, String>,
    /// Those in which something of the worker is; no output may show them.
    pub(crate) masked: Vec<String>,
}

/// Fills `${NAME}` in the values of a profile with the worker's variables of these names.
///
/// # Errors
/// The worker does not have one of them. The message names it, and no value.
pub(crate) fn expand(profile: &BTreeMap<String, String>, own: Own<'_>) -> Result<Profile, Failure> {
    let mut expanded = Profile::default();
    for (name, template) in profile {
        let mut value = String::new();
        let mut rest = template.as_str();
        while let Some((before, wanted, after)) = place(rest) {
            value.push_str(before);
            let found = Some(wanted).filter(|name| is_for_plans(name));
            let Some(found) = found.and_then(own) else {
                let message = format!(
                    "the agent's variable `{name}` needs `{wanted}` of this worker's environment, \
                     which does not have it"
                );
                return Err(failure(class::SECRET_UNAVAILABLE, &message, b""));
            };
            value.push_str(&found);
            rest = after;
        }
        value.push_str(rest);
        if value != *template {
            expanded.masked.push(name.clone());
        }
        expanded.values.insert(name.clone(), value);
    }
    Ok(expanded)
}

/// Names the variables of the worker that are in a template.
pub(crate) fn wanted(template: &str) -> impl Iterator<Item = &str> {
    let mut rest = template;
    let names = std::iter::from_fn(move || {
        let (_, wanted, after) = place(rest)?;
        rest = after;
        Some(wanted)
    });
    names.filter(|name| is_for_plans(name))
}

/// Finds the first place for a value: what is before it, the variable's name, and the rest.
fn place(template: &str) -> Option<(&str, &str, &str)> {
    let (before, after) = template.split_once("${")?;
    let (wanted, after) = after.split_once('}')?;
    Some((before, wanted, after))
}

fn is_for_plans(name: &str) -> bool {
    !name.starts_with(OWN_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(template: &str) -> Result<Profile, Failure> {
        let own = |name: &str| match name {
            "KEY" | "MUSTER_TOKEN" => Some("k3y ${KEY}".to_owned()),
            _ => None,
        };
        expand(&BTreeMap::from([("V".into(), template.into())]), &own)
    }

    #[test]
    fn a_profile_takes_values_of_the_worker_once_and_hides_them() {
        let profile = expanded("a ${KEY} b ${KEY}").unwrap();
        assert_eq!(profile.values["V"], "a k3y ${KEY} b k3y ${KEY}");
        assert_eq!(profile.masked, ["V"]);
        let plain = expanded("$KEY {KEY} ${KEY").unwrap();
        assert_eq!(plain.values["V"], "$KEY {KEY} ${KEY");
        assert_eq!(plain.masked, [""; 0]);
    }

    #[test]
    fn a_variable_that_the_worker_lacks_or_keeps_fails_by_its_name() {
        for wanted in ["NOT_THERE", "MUSTER_TOKEN", ""] {
            let failure = expanded(&format!("x${{{wanted}}}")).unwrap_err();
            assert_eq!(failure.class, "secret_unavailable");
            assert!(
                failure.message.contains(&format!("`{wanted}`")),
                "{}",
                failure.message
            );
        }
    }
}
