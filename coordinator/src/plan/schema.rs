//! The JSON Schema of plan files.

/// Gives the schema that editors use: made from the document types, checked in beside this file.
#[must_use]
pub const fn json_schema() -> &'static str {
    include_str!("schema.json")
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::document::PlanDocument;
    use super::super::problem::Problems;
    use super::super::values::{Duration, Size};
    use super::super::{codex, decode, model, settings, tree};
    use serde_json::Value;

    fn generated() -> schemars::Schema {
        let settings = schemars::generate::SchemaSettings::draft2020_12();
        settings
            .into_generator()
            .into_root_schema_for::<PlanDocument>()
    }

    #[test]
    fn the_schema_that_is_checked_in_is_that_of_the_document_types() {
        let wanted = generated();
        if std::env::var_os("UPDATE").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/plan/schema.json");
            let text = serde_json::to_string_pretty(&wanted).unwrap();
            std::fs::write(path, text + "\n").unwrap();
            return;
        }
        let found: Value = serde_json::from_str(super::json_schema()).unwrap();
        assert!(
            found == wanted.to_value(),
            "schema.json is out of date; run the test with UPDATE=1"
        );
    }

    #[test]
    fn the_schema_knows_exactly_the_keys_that_the_decoder_knows() {
        let schema = generated().to_value();
        let keys = |pointer: &str| {
            let properties = schema.pointer(pointer).and_then(Value::as_object).unwrap();
            properties.keys().cloned().collect::<BTreeSet<_>>()
        };
        let known = |keys: &[&str]| {
            keys.iter()
                .map(|key| (*key).to_owned())
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(keys("/properties"), known(&decode::PLAN_KEYS));
        for (name, wanted) in [
            ("TaskEntry", &decode::task_keys()[..]),
            ("Settings", &settings::SETTINGS_KEYS),
            ("Resources", &settings::RESOURCE_KEYS),
            ("AgentDefinition", &decode::AGENT_KEYS),
            ("IntegrateSettings", &decode::INTEGRATE_KEYS),
            ("FolderRepo", &decode::FOLDER_KEYS),
            ("HooksFolder", &settings::HOOKS_KEYS),
            ("Approvals", &model::APPROVAL_KEYS),
            ("CodexSettings", &model::CODEX_KEYS),
            ("CodexReview", &model::REVIEW_KEYS),
        ] {
            assert_eq!(
                keys(&format!("/$defs/{name}/properties")),
                known(wanted),
                "{name}"
            );
        }
    }

    #[test]
    fn the_schema_refuses_what_the_decoder_refuses() {
        for text in [
            "tasks: [{name: a, run: echo, tiemout: 1m}]",
            "tasks: [{name: a, run: echo, timeout: 45}]",
            "tasks: [{name: a b, run: echo}]",
            "tasks: [{run: echo}]",
            "tasks: []",
            "repo: {form: x}\ntasks: [{name: a, run: echo}]",
            "repo: .\ntasks: [{name: a, run: echo, hooks: yes}]",
            "repo: .\ntasks: [{name: a, run: echo, hooks: {pth: x}}]",
            "repo: .\nintegrate: {on_conflict: no}\ntasks: [{name: a, run: echo}]",
        ] {
            let checked = super::super::parse("p", text.as_bytes(), &BTreeMap::new());
            assert!(checked.is_err(), "{text}");
            assert!(accepts(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// Checks a plan file against the schema that is checked in.
    pub(in super::super) fn accepts(file: &[u8]) -> Result<(), String> {
        let schema: Value = serde_json::from_str(super::json_schema()).unwrap();
        let root = tree::read(file, tree::VALUES_MAX, &mut Problems::new("")).unwrap();
        fits(&schema, &schema, &codex::json(&root))
    }

    /// Checks a value against the part of JSON Schema that our schema uses; panics on any other.
    fn fits(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
        let Some(rules) = schema.as_object() else {
            return Ok(());
        };
        for (rule, wanted) in rules {
            let all = || wanted.as_array().unwrap().iter();
            let fine = match rule.as_str() {
                "$schema" | "$defs" | "title" | "description" | "default" | "format" => true,
                "$ref" => {
                    let pointer = wanted.as_str().unwrap().trim_start_matches('#');
                    fits(root, root.pointer(pointer).unwrap(), value)?;
                    true
                }
                "anyOf" | "oneOf" => all().any(|one| fits(root, one, value).is_ok()),
                "enum" => all().any(|one| one == value),
                "const" => wanted == value,
                "type" => match wanted {
                    Value::String(kind) => is_of(kind, value),
                    kinds => kinds
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|k| is_of(k.as_str().unwrap(), value)),
                },
                "minimum" => value.as_f64().is_none_or(|n| n >= wanted.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|n| n <= wanted.as_f64().unwrap()),
                "minItems" => value
                    .as_array()
                    .is_none_or(|v| v.len() as u64 >= wanted.as_u64().unwrap()),
                "minLength" => value
                    .as_str()
                    .is_none_or(|v| v.len() as u64 >= wanted.as_u64().unwrap()),
                "pattern" => value
                    .as_str()
                    .is_none_or(|text| matches(wanted.as_str().unwrap(), text)),
                "required" => all().all(|key| value.get(key.as_str().unwrap()).is_some()),
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        fits(root, wanted, item)?;
                    }
                    true
                }
                "properties" => {
                    for (key, schema) in wanted.as_object().unwrap() {
                        if let Some(value) = value.get(key) {
                            fits(root, schema, value)
                                .map_err(|reason| format!("{key}: {reason}"))?;
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    let known = rules.get("properties").and_then(Value::as_object);
                    for (key, value) in value.as_object().into_iter().flatten() {
                        if known.is_none_or(|known| !known.contains_key(key)) {
                            if wanted == &Value::Bool(false) {
                                return Err(format!("unknown key {key}"));
                            }
                            fits(root, wanted, value)?;
                        }
                    }
                    true
                }
                other => panic!("the schema uses {other}, which this test does not know"),
            };
            if !fine {
                return Err(format!("{rule}: {value} does not fit {wanted}"));
            }
        }
        Ok(())
    }

    fn is_of(kind: &str, value: &Value) -> bool {
        match kind {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("no type {other}"),
        }
    }

    /// Knows our three patterns by the code that reads the same form.
    fn matches(pattern: &str, text: &str) -> bool {
        if pattern.ends_with("ms)?$") {
            Duration::parse(text).is_some()
        } else if pattern.contains("KMGT") {
            Size::parse(text).is_some()
        } else {
            decode::is_plain_name(text)
        }
    }
}
