//! What a turn consumed, as far as agents say: the protocol leaves it open.

use muster_proto::v1::ModelUsage;
use serde_json::Value;

use crate::agent::text;

/// Most models of a turn.
const MODELS_MAX: usize = 64;

/// Turns what agents say into differences.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// What the session has cost by now, in millionths of a US dollar, and what of it was told.
    cost: Option<u64>,
    cost_told: u64,
    /// The session began before this conversation: the first cost is that of others.
    resumed: bool,
}

impl Usage {
    /// Hears that the session goes on from an earlier one.
    pub(super) fn resumed(&mut self) {
        self.resumed = true;
    }

    /// Takes a `usage_update`, of the session's history if `is_past`. Its tokens are those in the model's
    /// window, not what was consumed.
    pub(super) fn updated(&mut self, update: &Value, is_past: bool) {
        let cost = &update["cost"];
        let dollars = cost["amount"]
            .as_f64()
            .filter(|_| cost["currency"] == "USD");
        let Some(dollars) = dollars else {
            return;
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a conversion from a float saturates, and a negative price is none"
        )]
        let micros = (dollars * 1e6).round() as u64;
        if is_past || std::mem::take(&mut self.resumed) {
            self.resumed = false;
            self.cost_told = micros;
        }
        self.cost = Some(micros);
    }

    /// Takes the answer that ends a turn.
    pub(super) fn ended(&mut self, result: &Value, model: &str) -> Vec<ModelUsage> {
        let mut found = match (&result["usage"], &result["_meta"]["quota"]) {
            (Value::Object(_), _) => vec![of_turn(&result["usage"], model)],
            (_, quota @ Value::Object(_)) => of_quota(quota, model),
            _ => Vec::new(),
        };
        found.retain(|usage| usage.input_tokens > 0 || usage.output_tokens > 0);
        if let Some(cost) = self.cost {
            // A cost that shrank began anew.
            let before = if cost < self.cost_told {
                0
            } else {
                self.cost_told
            };
            self.cost_told = cost;
            let since = cost.saturating_sub(before);
            if since > 0 {
                if found.is_empty() {
                    found.push(ModelUsage {
                        model: text::name(model),
                        ..ModelUsage::default()
                    });
                }
                // The protocol knows one sum for all models.
                if let Some(first) = found.first_mut() {
                    first.cost_micros = Some(since);
                }
            }
        }
        found
    }
}

/// Reads the usage of a turn. Whether input has the cached part in it agents do not agree on; their
/// total tells.
fn of_turn(usage: &Value, model: &str) -> ModelUsage {
    let number = |key: &str| usage[key].as_u64().unwrap_or_default();
    let (input, output) = (number("inputTokens"), number("outputTokens"));
    let (read, written) = (number("cachedReadTokens"), number("cachedWriteTokens"));
    let cached = read.saturating_add(written);
    let thought = number("thoughtTokens");
    let total = number("totalTokens");
    let is_whole = total == input.saturating_add(output)
        || total == input.saturating_add(output).saturating_add(thought);
    let is_whole = is_whole && input >= cached;
    ModelUsage {
        model: text::name(model),
        input_tokens: if is_whole {
            input
        } else {
            input.saturating_add(cached)
        },
        cached_input_tokens: read,
        cache_write_tokens: written,
        output_tokens: output,
        reasoning_tokens: thought,
        cost_micros: None,
        calls: 0,
        unknown_calls: 0,
    }
}

/// Reads what Gemini CLI adds to its answer.
fn of_quota(quota: &Value, model: &str) -> Vec<ModelUsage> {
    let of = |model: &str, count: &Value| ModelUsage {
        model: text::name(model),
        input_tokens: count["input_tokens"].as_u64().unwrap_or_default(),
        output_tokens: count["output_tokens"].as_u64().unwrap_or_default(),
        ..ModelUsage::default()
    };
    match quota["model_usage"].as_array() {
        Some(models) if !models.is_empty() => models
            .iter()
            .take(MODELS_MAX)
            .map(|used| of(text::of(used, "model"), &used["token_count"]))
            .collect(),
        _ => vec![of(model, &quota["token_count"])],
    }
}
