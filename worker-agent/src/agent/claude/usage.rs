//! What a conversation consumed, told once.
//!
//! The provider's own stream says what each call took, so a call is told when it begins and when it
//! ends, and nothing is lost with a program that is killed. The program's own sum of a turn then adds
//! what its stream did not show (subagents, side questions) and what it costs. That sum is a
//! difference in today's versions and a running total, over resumed sessions too, in others.

use std::collections::{BTreeMap, VecDeque};

use muster_proto::v1::ModelUsage;
use serde_json::Value;

use crate::agent::text;

/// Most messages that are remembered; a message is looked up soon after its stream.
const MESSAGES_MAX: usize = 64;
/// Most models of a turn.
const MODELS_MAX: usize = 64;
/// Model of what the program says itself in place of a model.
pub(super) const SYNTHETIC: &str = "<synthetic>";

/// Tokens of some calls; input is without what went through the cache, as the provider counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tokens {
    input: u64,
    cache_read: u64,
    cache_write: u64,
    output: u64,
    reasoning: u64,
}

impl Tokens {
    /// Reads what the provider says; what it leaves out stays as it was.
    fn updated(self, usage: &Value) -> Self {
        let number =
            |key: &str, before: u64| usage.get(key).and_then(Value::as_u64).unwrap_or(before);
        Self {
            input: number("input_tokens", self.input),
            cache_read: number("cache_read_input_tokens", self.cache_read),
            cache_write: number("cache_creation_input_tokens", self.cache_write),
            output: number("output_tokens", self.output),
            reasoning: usage
                .pointer("/output_tokens_details/thinking_tokens")
                .and_then(Value::as_u64)
                .unwrap_or(self.reasoning),
        }
    }

    /// Reads what the program says of one model.
    fn of_model(usage: &Value) -> Self {
        let number = |key: &str| usage.get(key).and_then(Value::as_u64).unwrap_or_default();
        Self {
            input: number("inputTokens"),
            cache_read: number("cacheReadInputTokens"),
            cache_write: number("cacheCreationInputTokens"),
            output: number("outputTokens"),
            reasoning: number("thinkingTokens"),
        }
    }

    fn zip(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            input: of(self.input, other.input),
            cache_read: of(self.cache_read, other.cache_read),
            cache_write: of(self.cache_write, other.cache_write),
            output: of(self.output, other.output),
            reasoning: of(self.reasoning, other.reasoning),
        }
    }

    fn plus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    fn minus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    fn told(self, model: &str, calls: u32) -> ModelUsage {
        ModelUsage {
            model: text::name(model),
            input_tokens: self
                .input
                .saturating_add(self.cache_read)
                .saturating_add(self.cache_write),
            cached_input_tokens: self.cache_read,
            cache_write_tokens: self.cache_write,
            output_tokens: self.output,
            reasoning_tokens: self.reasoning,
            cost_micros: None,
            calls,
            unknown_calls: 0,
        }
    }
}

/// A call whose stream runs.
#[derive(Debug)]
struct Call {
    model: String,
    tokens: Tokens,
}

/// Turns what is seen into differences.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// Told since the last sum of a turn, by model.
    told: BTreeMap<String, Tokens>,
    /// Calls that run, by the tool call whose subagent makes them; empty for the agent itself.
    running: BTreeMap<String, Call>,
    /// Messages whose tokens are told.
    messages: VecDeque<String>,
    /// Running totals at the last sum.
    baseline: BTreeMap<String, (Tokens, u64)>,
    /// Running totals count what nobody here has seen.
    resumed: bool,
}

impl Usage {
    /// Hears that the session goes on from an earlier one.
    pub(super) fn resumed(&mut self) {
        self.resumed = true;
    }

    /// Takes the beginning of a call's stream.
    pub(super) fn began(&mut self, parent: &str, message: &Value) -> Option<ModelUsage> {
        let model = text::name(text::of(message, "model"));
        let tokens = Tokens::default().updated(&message["usage"]);
        self.remember(text::of(message, "id"));
        if self.running.len() < MESSAGES_MAX {
            let model = model.clone();
            self.running
                .insert(text::name(parent), Call { model, tokens });
        }
        self.add(&model, tokens, 1)
    }

    /// Takes what a call has consumed by now.
    pub(super) fn grew(&mut self, parent: &str, usage: &Value) -> Option<ModelUsage> {
        let call = self.running.get_mut(&text::name(parent))?;
        let tokens = call.tokens.updated(usage);
        let more = tokens.minus(call.tokens);
        call.tokens = tokens;
        let model = call.model.clone();
        self.add(&model, more, 0)
    }

    /// Takes a whole message. It counts if it is complete and had no stream: the program repeats a call
    /// without one when its stream broke.
    pub(super) fn whole(&mut self, message: &Value) -> Option<ModelUsage> {
        let id = text::of(message, "id");
        let model = text::of(message, "model");
        let seen = self.messages.iter().any(|seen| *seen == text::name(id));
        if seen || message["stop_reason"].is_null() || model == SYNTHETIC {
            return None;
        }
        self.remember(id);
        let tokens = Tokens::default().updated(&message["usage"]);
        self.add(&text::name(model), tokens, 1)
    }

    /// Takes the program's sum of a turn: what of it was not told yet, with what it costs.
    pub(super) fn summed(&mut self, result: &Value) -> Vec<ModelUsage> {
        let told = std::mem::take(&mut self.told);
        self.running.clear();
        let sums = self.sums(result);
        // A name in the stream may say more than the one in the sum, such as a date.
        let alike = |sum: &str| {
            let sum = sum.split('[').next().unwrap_or_default();
            let mut named = told.keys().filter(|name| name.starts_with(sum));
            let first = named.next().cloned();
            first.filter(|_| named.next().is_none())
        };
        let mut others = told.clone();
        let mut sums: Vec<_> = sums
            .into_iter()
            .map(|(name, sum)| {
                let name = if told.contains_key(&name) {
                    name
                } else {
                    alike(&name).unwrap_or(name)
                };
                let known = others.remove(&name).unwrap_or_default();
                (name, sum.0.minus(known), sum.1)
            })
            .collect();
        let mut others = others.into_values().fold(Tokens::default(), Tokens::plus);
        let mut found = Vec::new();
        for (name, rest, cost) in &mut sums {
            let covered = rest.zip(others, u64::min);
            others = others.minus(covered);
            let mut rest = rest.minus(covered);
            // Nobody calls a model without input: the beginning of a broken stream is summed twice.
            if rest.input == 0 && rest.cache_read == 0 && rest.cache_write == 0 {
                rest.output = 0;
            }
            if rest != Tokens::default() || *cost > 0 {
                let mut usage = rest.told(name, 0);
                usage.cost_micros = (*cost > 0).then_some(*cost);
                found.push(usage);
            }
        }
        found
    }

    /// Reads tokens and millionths of a dollar of each model since the last sum.
    fn sums(&mut self, result: &Value) -> Vec<(String, (Tokens, u64))> {
        let models = |key: &str| {
            let models = result.get(key).and_then(Value::as_object)?;
            let models = models.iter().take(MODELS_MAX);
            Some(models.map(|(name, usage)| {
                let cost = usage["costUSD"].as_f64().unwrap_or_default();
                (text::name(name), (Tokens::of_model(usage), micros(cost)))
            }))
        };
        if let Some(since) = models("model_usage_since_last_result") {
            return since.collect();
        }
        let Some(totals) = models("modelUsage") else {
            return Vec::new();
        };
        let totals: BTreeMap<_, _> = totals.collect();
        let before = std::mem::replace(&mut self.baseline, totals.clone());
        if std::mem::take(&mut self.resumed) {
            // Tokens are known from the streams.
            return Vec::new();
        }
        let since = totals.into_iter().map(|(name, (tokens, cost))| {
            let (tokens_before, cost_before) = before.get(&name).copied().unwrap_or_default();
            // A total that shrank began anew.
            let since = if tokens.minus(tokens_before).plus(tokens_before) != tokens {
                (tokens, cost)
            } else {
                (
                    tokens.minus(tokens_before),
                    cost.saturating_sub(cost_before),
                )
            };
            (name, since)
        });
        since.collect()
    }

    fn add(&mut self, model: &str, tokens: Tokens, calls: u32) -> Option<ModelUsage> {
        if tokens == Tokens::default() {
            return None;
        }
        if self.told.len() < MODELS_MAX || self.told.contains_key(model) {
            let told = self.told.entry(model.to_owned()).or_default();
            *told = told.plus(tokens);
        }
        Some(tokens.told(model, calls))
    }

    fn remember(&mut self, message: &str) {
        if self.messages.len() == MESSAGES_MAX {
            self.messages.pop_front();
        }
        self.messages.push_back(text::name(message));
    }
}

fn micros(dollars: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a conversion from a float saturates, and a negative price is none"
    )]
    let micros = (dollars * 1e6).round() as u64;
    micros
}
