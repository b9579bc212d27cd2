//! The JSON Schema of plan files.

/// Gives the schema that editors use; it is checked in next to this file.
#[must_use]
pub const fn json_schema() -> &'static str {
    include_str!("schema.json")
}
