//! The JSON Schema of plan files.

/// Gives the schema that editors use: made from the document types, checked in beside this file.
#[must_use]
pub const fn json_schema() -> &'static str {
    include_str!("schema.json")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::decode;
    use super::super::document::PlanDocument;
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
            ("TaskEntry", &decode::TASK_KEYS[..]),
            ("Settings", &decode::SETTINGS_KEYS),
            ("Resources", &decode::RESOURCE_KEYS),
            ("AgentDefinition", &decode::AGENT_KEYS),
            ("IntegrateSettings", &decode::INTEGRATE_KEYS),
            ("FolderRepo", &decode::FOLDER_KEYS),
        ] {
            assert_eq!(
                keys(&format!("/$defs/{name}/properties")),
                known(wanted),
                "{name}"
            );
        }
    }
}
