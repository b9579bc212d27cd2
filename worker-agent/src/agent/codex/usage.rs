//! What each call of the model consumed, each counted once.
//!
//! Codex tells it in three places, none of which is enough. As a call ends it tells of it at once, with
//! its exact usage, but only of threads that it began in this process, and not of calls that were cut
//! short. A notice of the thread's usage has the last call (`last`) beside a total; it comes only after
//! the commands that the call asked for have ended, and never in a review. The total is not to be
//! trusted: after an overflow of the context it is written anew, and a call whose process was killed is
//! not in it. The last call is told again whenever anything else of the same notice changes, such as
//! rate limits or an error, and once more when a thread is loaded from an earlier process. Third, each
//! call is a line in the thread's own file, written as it ends.
//!
//! So a call counts if it belongs to a turn that began in this process: when it ends, or when a notice
//! tells of it that differs, total and all, from the one before and is of no call that was counted as it
//! ended. If the program has ended in the middle of a turn, the file says what is missing of that turn.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use muster_proto::v1::ModelUsage;
use serde_json::Value;

use super::json::{number, text};

/// Threads and turns that are remembered; more at once are not heard of.
const REMEMBERED_MAX: usize = 256;
/// Calls of one turn that are remembered, to find those in the thread's file that are missing.
const CALLS_MAX: usize = 16_384;
/// What a line of a thread's file is called that tells of a call.
pub(super) const RECORD: &str = "token_usage_record";

/// What has been told so far.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Turns that began in this process, oldest first.
    begun: VecDeque<String>,
    threads: BTreeMap<String, Thread>,
}

#[derive(Debug, Default)]
struct Thread {
    model: String,
    /// Its calls are told as they end.
    is_live: bool,
    /// Where Codex keeps it.
    file: Option<PathBuf>,
    /// The notice of usage that came last.
    noticed: Option<Value>,
    /// Calls that were told as they ended, and of which no notice came yet: their turn, and what they
    /// consumed.
    ahead: VecDeque<(String, Tokens)>,
    /// The turn that began last.
    turn: String,
    /// It goes on.
    runs: bool,
    /// What was counted in it; `None` if that is too much to remember.
    counted: Option<Vec<Tokens>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tokens {
    input: u64,
    cached: u64,
    cache_write: u64,
    output: u64,
    reasoning: u64,
}

impl Tokens {
    /// Reads them as the protocol names them.
    fn of(usage: &Value) -> Self {
        Self {
            input: number(usage, "inputTokens"),
            cached: number(usage, "cachedInputTokens"),
            cache_write: number(usage, "cacheWriteInputTokens"),
            output: number(usage, "outputTokens"),
            reasoning: number(usage, "reasoningOutputTokens"),
        }
    }

    /// Reads them as files of threads, and `codex exec`, name them.
    fn of_file(usage: &Value) -> Self {
        Self {
            input: number(usage, "input_tokens"),
            cached: number(usage, "cached_input_tokens"),
            cache_write: number(usage, "cache_write_input_tokens"),
            output: number(usage, "output_tokens"),
            reasoning: number(usage, "reasoning_output_tokens"),
        }
    }

    fn since(self, before: Self) -> Option<Self> {
        Some(Self {
            input: self.input.checked_sub(before.input)?,
            cached: self.cached.checked_sub(before.cached)?,
            cache_write: self.cache_write.checked_sub(before.cache_write)?,
            output: self.output.checked_sub(before.output)?,
            reasoning: self.reasoning.checked_sub(before.reasoning)?,
        })
    }

    fn is_none(self) -> bool {
        self.input == 0 && self.output == 0
    }

    fn usage(self, model: &str, calls: u32) -> ModelUsage {
        ModelUsage {
            model: model.to_owned(),
            input_tokens: self.input,
            cached_input_tokens: self.cached,
            cache_write_tokens: self.cache_write,
            output_tokens: self.output,
            reasoning_tokens: self.reasoning,
            cost_micros: None,
            calls,
            unknown_calls: 0,
        }
    }
}

/// Makes the usage of whole turns, of whose calls nothing is known, of two totals; `None` if it is not in
/// them. A total that has gone down was begun anew.
pub(super) fn of_turns(before: &Value, after: &Value, model: &str) -> Option<ModelUsage> {
    let [before, after] = [before, after].map(Tokens::of_file);
    let added = after.since(before).unwrap_or(after);
    (!added.is_none()).then(|| added.usage(model, 0))
}

/// Makes what is known of a call of which nobody says what it consumed: that it was.
pub(super) fn unknown(model: &str) -> ModelUsage {
    ModelUsage {
        model: model.to_owned(),
        unknown_calls: 1,
        ..ModelUsage::default()
    }
}

impl Calls {
    /// Remembers that a turn of a thread began.
    pub(super) fn began(&mut self, thread: &str, turn: &str) {
        if turn.is_empty() {
            return;
        }
        if !self.begun.iter().any(|begun| begun == turn) {
            if self.begun.len() >= REMEMBERED_MAX {
                self.begun.pop_front();
            }
            self.begun.push_back(turn.to_owned());
        }
        let thread = self.thread(thread);
        thread.runs = true;
        if thread.turn != turn {
            turn.clone_into(&mut thread.turn);
            thread.counted = Some(Vec::new());
        }
    }

    /// Remembers that a thread's turn is over: all its calls were told.
    pub(super) fn ended(&mut self, thread: &str) {
        if let Some(thread) = self.threads.get_mut(thread) {
            thread.runs = false;
        }
    }

    /// Remembers with which model a thread talks.
    pub(super) fn talks_with(&mut self, thread: &str, model: &str) {
        if !model.is_empty() {
            model.clone_into(&mut self.thread(thread).model);
        }
    }

    /// Remembers in which file a thread is kept.
    pub(super) fn is_kept_in(&mut self, thread: &str, file: &str) {
        if Path::new(file).is_absolute() {
            self.thread(thread).file = Some(file.into());
        }
    }

    /// Takes the word of a call that has just ended; gives what it adds.
    pub(super) fn completed(&mut self, response: &Value) -> Option<ModelUsage> {
        let turn = text(response, "turnId");
        if !self.has_begun(turn) {
            return None;
        }
        let thread = self.thread(text(response, "threadId"));
        thread.is_live = true;
        let Some(usage) = response.get("usage").filter(|usage| usage.is_object()) else {
            return Some(unknown(&thread.model));
        };
        let tokens = Tokens::of(usage);
        if thread.ahead.len() >= REMEMBERED_MAX {
            thread.ahead.pop_front();
        }
        thread.ahead.push_back((turn.to_owned(), tokens));
        thread.count(turn, tokens)
    }

    /// Takes a notice of usage; gives what it adds.
    pub(super) fn told(&mut self, notice: &Value) -> Option<ModelUsage> {
        let turn = text(notice, "turnId");
        let has_begun = self.has_begun(turn);
        let usage = notice.get("tokenUsage")?;
        let thread = self.thread(text(notice, "threadId"));
        let again = thread.noticed.as_ref() == Some(usage);
        thread.noticed = Some(usage.clone());
        if again || !has_begun {
            return None;
        }
        let tokens = Tokens::of(usage.get("last")?);
        let mut ahead = thread.ahead.iter();
        if let Some(at) = ahead.position(|(of, ahead)| of == turn && *ahead == tokens) {
            thread.ahead.drain(..=at);
            return None;
        }
        thread.count(turn, tokens)
    }

    /// Names the files of threads in the middle of whose turn the program has ended.
    pub(super) fn cut_short(&self) -> Vec<PathBuf> {
        let threads = self.threads.values();
        let cut = threads.filter(|thread| thread.runs && thread.counted.is_some());
        cut.filter_map(|thread| thread.file.clone()).collect()
    }

    /// Takes a line of such a file; gives the call that it tells of, if that was not told.
    pub(super) fn recorded(&mut self, line: &[u8]) -> Option<ModelUsage> {
        let line: Value = serde_json::from_slice(line).ok()?;
        let record = line
            .get("payload")
            .filter(|_| text(&line, "type") == RECORD)?;
        let thread = self.threads.get_mut(text(record, "thread_id"))?;
        let turn = text(record, "turn_id");
        if !thread.runs || thread.turn != turn {
            return None;
        }
        let tokens = Tokens::of_file(record.get("usage")?);
        let counted = thread.counted.as_mut()?;
        if let Some(at) = counted.iter().position(|counted| *counted == tokens) {
            counted.swap_remove(at);
            return None;
        }
        (!tokens.is_none()).then(|| tokens.usage(&thread.model, 1))
    }

    /// Hears that such a file cannot be read: a call may be missing that only it knows.
    pub(super) fn unreadable(&mut self, file: &Path) -> Option<ModelUsage> {
        let mut threads = self.threads.values();
        let thread = threads.find(|thread| thread.file.as_deref() == Some(file))?;
        (thread.runs && !thread.is_live).then(|| unknown(&thread.model))
    }

    /// Hears that no file has more. Of other threads in the middle of a turn, such as those of the agent's
    /// helpers, nobody knows where they are kept.
    pub(super) fn lost(&self) -> Vec<ModelUsage> {
        let threads = self.threads.values();
        let lost = threads.filter(|thread| {
            let has_record = thread.file.is_some() && thread.counted.is_some();
            thread.runs && !thread.is_live && !has_record
        });
        lost.map(|thread| unknown(&thread.model)).collect()
    }

    fn has_begun(&self, turn: &str) -> bool {
        self.begun.iter().any(|begun| begun == turn)
    }

    fn thread(&mut self, thread: &str) -> &mut Thread {
        if self.threads.len() >= REMEMBERED_MAX && !self.threads.contains_key(thread) {
            self.threads.pop_first();
        }
        self.threads.entry(thread.to_owned()).or_default()
    }
}

impl Thread {
    fn count(&mut self, turn: &str, tokens: Tokens) -> Option<ModelUsage> {
        // An estimate of the context after it was written anew: nothing was called.
        if tokens.is_none() {
            return None;
        }
        if self.turn == turn {
            match &mut self.counted {
                Some(counted) if counted.len() < CALLS_MAX => counted.push(tokens),
                counted => *counted = None,
            }
        }
        Some(tokens.usage(&self.model, 1))
    }
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
        calls.began("t", "now");
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
            calls.began(&number.to_string(), &number.to_string());
            calls.completed(&json!({"turnId": number.to_string(), "threadId": "t", "usage": {"inputTokens": 1}}));
            calls.talks_with(&number.to_string(), "m");
            calls.told(&json!({"threadId": number.to_string(), "tokenUsage": {}}));
        }
        assert!(calls.begun.len() <= REMEMBERED_MAX);
        assert!(calls.threads.len() <= REMEMBERED_MAX);
        assert!(calls.threads["t"].ahead.len() <= REMEMBERED_MAX);
    }
    fn completed(turn: &str, (input, output): (u64, u64)) -> Value {
        json!({"threadId": "t", "turnId": turn, "responseId": "r", "usage":
            {"inputTokens": input, "cachedInputTokens": input / 2, "outputTokens": output,
                "reasoningOutputTokens": 1}})
    }

    /// A line of the thread's file.
    fn record(turn: &str, (input, output): (u64, u64)) -> Vec<u8> {
        let line = json!({"type": RECORD, "payload": {"thread_id": "t", "turn_id": turn, "usage":
            {"input_tokens": input, "cached_input_tokens": input / 2, "output_tokens": output,
                "reasoning_output_tokens": 1}}});
        line.to_string().into_bytes()
    }

    fn input(found: Option<ModelUsage>) -> u64 {
        found.map_or(0, |usage| usage.input_tokens)
    }

    #[test]
    fn a_call_counts_as_it_ends_and_the_notice_of_it_adds_nothing() {
        let mut calls = Calls::default();
        calls.began("t", "now");
        assert_eq!(input(calls.completed(&completed("now", (1000, 5)))), 1000);
        assert_eq!(input(calls.told(&notice("now", 1000, (1000, 5)))), 0);
        assert_eq!(input(calls.told(&notice("now", 1000, (1000, 5)))), 0);
        // The next one consumed as much.
        assert_eq!(input(calls.completed(&completed("now", (1000, 5)))), 1000);
        assert_eq!(input(calls.told(&notice("now", 2000, (1000, 5)))), 0);
        // Of one that was cut short there is only the notice.
        assert_eq!(input(calls.told(&notice("now", 3000, (1000, 5)))), 1000);
        assert_eq!(input(calls.completed(&completed("before", (1000, 5)))), 0);
    }

    #[test]
    fn a_call_without_usage_is_known_to_be_unknown() {
        let mut calls = Calls::default();
        calls.began("t", "now");
        let silent = json!({"threadId": "t", "turnId": "now", "usage": null});
        let found = calls.completed(&silent).unwrap();
        assert_eq!((found.calls, found.unknown_calls), (0, 1));
    }

    #[test]
    fn of_a_turn_that_was_cut_off_the_file_says_what_was_not_told() {
        let mut calls = Calls::default();
        calls.is_kept_in("t", "/t.jsonl");
        calls.began("t", "first");
        calls.told(&notice("first", 1000, (1000, 5)));
        calls.ended("t");
        assert!(calls.cut_short().is_empty());
        calls.began("t", "now");
        assert_eq!(input(calls.told(&notice("now", 2000, (1000, 5)))), 1000);
        assert_eq!(calls.cut_short(), [PathBuf::from("/t.jsonl")]);
        let lines = [
            record("before", (1000, 5)),
            record("first", (1000, 5)),
            record("now", (1000, 5)),
            record("now", (700, 5)),
            b"{\"type\":\"token_usage_record\"".to_vec(),
            record("after", (1000, 5)),
        ];
        let found: Vec<u64> = lines
            .iter()
            .map(|line| input(calls.recorded(line)))
            .collect();
        assert_eq!(found, [0, 0, 0, 700, 0, 0]);
    }

    #[test]
    fn without_the_file_a_call_may_be_missing_unless_calls_are_told_as_they_end() {
        let mut calls = Calls::default();
        let file = Path::new("/t.jsonl");
        calls.is_kept_in("t", "/t.jsonl");
        assert_eq!(calls.unreadable(file), None);
        calls.began("t", "now");
        calls.talks_with("t", "m");
        assert_eq!(calls.unreadable(file), Some(unknown("m")));
        assert_eq!(calls.unreadable(Path::new("/other")), None);
        assert_eq!(calls.lost(), []);
        // Of a helper's thread nobody is told where it is.
        calls.began("helper", "its own");
        assert_eq!(calls.lost(), [unknown("")]);
        calls.ended("helper");
        assert_eq!(calls.lost(), []);
        calls.completed(&completed("now", (1, 1)));
        assert_eq!(calls.unreadable(file), None);
    }

    #[test]
    fn a_file_says_nothing_of_other_threads() {
        let mut calls = Calls::default();
        calls.began("other", "now");
        assert_eq!(input(calls.recorded(&record("now", (700, 5)))), 0);
        calls.is_kept_in("other", "relative.jsonl");
        assert!(calls.cut_short().is_empty());
    }
}
