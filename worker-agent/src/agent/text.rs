//! Texts of agents, cut to what the wire takes.

use serde_json::Value;

/// Longest piece of a stream of text or output in one event.
pub(crate) const PIECE_BYTES_MAX: usize = 16 << 10;
/// Longest command, diff, arguments or result.
pub(crate) const DETAIL_BYTES_MAX: usize = 16 << 10;
/// Longest diff of a file.
pub(crate) const DIFF_BYTES_MAX: usize = 64 << 10;
/// Longest last message of a turn.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Longest title, reason or message of an error.
pub(crate) const LINE_BYTES_MAX: usize = 1_024;
/// Longest id or name that an agent gives something.
pub(crate) const NAME_BYTES_MAX: usize = 256;

/// Gives the beginning of a text that fits, cut between characters.
pub(crate) fn clip(text: &str, bytes_max: usize) -> String {
    split(text, bytes_max).0.to_owned()
}

/// Gives an id or name of an agent.
pub(crate) fn name(text: &str) -> String {
    clip(text, NAME_BYTES_MAX)
}

/// Cuts a text into pieces that fit into one event each.
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, after) = split(rest, PIECE_BYTES_MAX);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Reads a text of an object; empty if it is not there or no text.
pub(crate) fn of<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn split(text: &str, bytes_max: usize) -> (&str, &str) {
    if text.len() <= bytes_max {
        return (text, "");
    }
    text.split_at_checked(text.floor_char_boundary(bytes_max))
        .unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters_and_lose_nothing() {
        assert_eq!(clip("aé", 2), "a");
        assert_eq!(clip("aé", 3), "aé");
        let long = "é".repeat(PIECE_BYTES_MAX);
        let parts: Vec<&str> = pieces(&long).collect();
        assert!(parts.iter().all(|part| part.len() <= PIECE_BYTES_MAX));
        assert_eq!(parts.concat(), long);
        assert_eq!(pieces("").count(), 0);
    }
}
