//! Which JSON Schemas the provider takes.

use serde_json::Value;

/// Keywords that the provider does not take anywhere.
const UNKNOWN: [&str; 6] = [
    "allOf",
    "oneOf",
    "not",
    "if",
    "patternProperties",
    "dependentSchemas",
];

/// Tells whether a schema is as the provider of Codex wants it: it refuses the whole request
/// otherwise. An answer can be held to such a schema; any other one is asked for in words.
pub(super) fn is_strict(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "object") && fits(schema)
}

fn fits(schema: &Value) -> bool {
    match schema {
        Value::Array(parts) => parts.iter().all(fits),
        Value::Object(table) => {
            if UNKNOWN.iter().any(|keyword| table.contains_key(*keyword)) {
                return false;
            }
            let is_object = table.get("type").is_some_and(names_object);
            if !is_object && !table.contains_key("properties") {
                return table.values().all(fits);
            }
            let Some(Value::Object(properties)) = table.get("properties") else {
                return false;
            };
            let required = table.get("required").and_then(Value::as_array);
            let required = required.map(Vec::as_slice).unwrap_or_default();
            table.get("additionalProperties") == Some(&Value::Bool(false))
                && properties
                    .keys()
                    .all(|key| required.iter().any(|name| name == key))
                && properties.values().all(fits)
                && table
                    .iter()
                    .filter(|(key, _)| *key != "properties")
                    .all(|(_, value)| fits(value))
        }
        _ => true,
    }
}

fn names_object(kind: &Value) -> bool {
    match kind {
        Value::Array(kinds) => kinds.iter().any(names_object),
        kind => kind == "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_closed_objects_with_all_their_fields_required_are_strict() {
        let closed = |properties: Value, required: Value| {
            json!({"type": "object", "properties": properties, "required": required,
                "additionalProperties": false})
        };
        let good = closed(json!({"a": {"type": "string"}}), json!(["a"]));
        for (schema, expected) in [
            (good.clone(), true),
            (closed(json!({}), json!([])), true),
            (closed(json!({"a": {}}), json!([])), false),
            (
                closed(
                    json!({"list": {"type": "array", "items": good}}),
                    json!(["list"]),
                ),
                true,
            ),
            (
                closed(json!({"in": {"type": "object"}}), json!(["in"])),
                false,
            ),
            (
                closed(json!({"in": {"type": ["object", "null"]}}), json!(["in"])),
                false,
            ),
            (closed(json!({"a": {"oneOf": []}}), json!(["a"])), false),
            (json!({"type": "object", "properties": {}}), false),
            (json!({"type": "array"}), false),
            (json!(true), false),
            (json!({}), false),
        ] {
            assert_eq!(is_strict(&schema), expected, "{schema}");
        }
    }
}
