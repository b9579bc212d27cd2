//! What each call of the model consumed, each counted once.
//!
//! Codex tells usage of a call (`last`) beside a total. The total is not to be trusted: after an
//! overflow of the context it is written anew. The last call is told again whenever anything else of
//! the same record changes, such as rate limits or an error, and once more when a thread is loaded
//! from an earlier process. So a call counts if it belongs to a turn that began in this process, and
//! differs, total and all, from what was told before.

use std::collections::{BTreeMap, VecDeque};

use muster_proto::v1::ModelUsage;
use serde_json::Value;

use super::json::{number, text};

/// Threads and turns that are remembered; more at once are not heard of.
const REMEMBERED_MAX: usize = 256;

/// What has been told so far.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Turns that began in this process, oldest first.
    begun: VecDeque<String>,
    /// What was told last of each thread.
    told: BTreeMap<String, Value>,
    /// Model of each thread.
    models: BTreeMap<String, String>,
}

impl Calls {
    /// Remembers that a turn began.
    pub(super) fn began(&mut self, turn: &str) {
        if turn.is_empty() || self.begun.iter().any(|begun| begun == turn) {
            return;
        }
        if self.begun.len() >= REMEMBERED_MAX {
            self.begun.pop_front();
        }
        self.begun.push_back(turn.to_owned());
    }

    /// Remembers with which model a thread talks.
    pub(super) fn talks_with(&mut self, thread: &str, model: &str) {
        if !model.is_empty() {
            remember(&mut self.models, thread, model.to_owned());
        }
    }

    /// Takes a notice of usage; gives what it adds.
    pub(super) fn told(&mut self, notice: &Value) -> Option<ModelUsage> {
        let thread = text(notice, "threadId");
        let usage = notice.get("tokenUsage")?;
        let again = self.told.get(thread) == Some(usage);
        remember(&mut self.told, thread, usage.clone());
        let turn = text(notice, "turnId");
        if again || !self.begun.iter().any(|begun| begun == turn) {
            return None;
        }
        let last = usage.get("last")?;
        let added = ModelUsage {
            model: self.models.get(thread).cloned().unwrap_or_default(),
            input_tokens: number(last, "inputTokens"),
            cached_input_tokens: number(last, "cachedInputTokens"),
            cache_write_tokens: number(last, "cacheWriteInputTokens"),
            output_tokens: number(last, "outputTokens"),
            reasoning_tokens: number(last, "reasoningOutputTokens"),
            cost_micros: None,
            calls: 1,
            unknown_calls: 0,
        };
        // An estimate of the context after it was written anew: nothing was called.
        (added.input_tokens != 0 || added.output_tokens != 0).then_some(added)
    }
}

fn remember<T>(map: &mut BTreeMap<String, T>, key: &str, value: T) {
    if map.len() >= REMEMBERED_MAX && !map.contains_key(key) {
        map.pop_first();
    }
    map.insert(key.to_owned(), value);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn notice(turn: &str, total: u64, last: (u64, u64)) -> Value {
        let (input, output) = last;
        json!({"threadId": "t", "turnId": turn, "tokenUsage": {
            "total": {"inputTokens": total, "totalTokens": total + 7},
            "last": {"inputTokens": input, "cachedInputTokens": input / 2,
                "outputTokens": output, "reasoningOutputTokens": 1},
        }})
    }

    fn sum(notices: &[Value]) -> (u64, u32) {
        let mut calls = Calls::default();
        calls.began("now");
        calls.talks_with("t", "m");
        let told = notices.iter().filter_map(|notice| calls.told(notice));
        told.fold((0, 0), |(input, count), usage| {
            assert_eq!(usage.model, "m");
            (input + usage.input_tokens, count + usage.calls)
        })
    }

    #[test]
    fn calls_are_added_up_though_the_total_is_written_anew() {
        let notices = [
            notice("now", 1000, (1000, 5)),
            notice("now", 2000, (1000, 5)),
            notice("now", 0, (0, 0)),
            notice("now", 1000, (1000, 5)),
        ];
        assert_eq!(sum(&notices), (3000, 3));
    }

    #[test]
    fn what_is_told_again_counts_once() {
        let one = notice("now", 1000, (1000, 5));
        assert_eq!(sum(&[one.clone(), one.clone(), one]), (1000, 1));
    }

    #[test]
    fn a_call_of_an_earlier_process_does_not_count_even_if_it_is_told_in_a_turn_of_this_one() {
        let notices = [
            notice("before", 1000, (1000, 5)),
            notice("now", 1000, (1000, 5)),
            notice("now", 1500, (500, 5)),
        ];
        assert_eq!(sum(&notices), (500, 1));
    }

    #[test]
    fn memory_stays_bounded_whatever_is_told() {
        let mut calls = Calls::default();
        for number in 0..2_000 {
            calls.began(&number.to_string());
            calls.talks_with(&number.to_string(), "m");
            calls.told(&json!({"threadId": number.to_string(), "tokenUsage": {}}));
        }
        assert!(calls.begun.len() <= REMEMBERED_MAX);
        assert!(calls.told.len() <= REMEMBERED_MAX && calls.models.len() <= REMEMBERED_MAX);
    }
}
