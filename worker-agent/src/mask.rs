//! Hides values in texts, also in a stream that cuts them anywhere.
//!
//! A value is found as it is, broken over lines, with colours in it, line by line if it has several,
//! within a JSON text, and in base64 at each of its three alignments. Who wants to print it otherwise can: this
//! guards against accidents, not against an agent that means harm.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shortest value that is hidden, in bytes: shorter ones would black out ordinary words.
pub(crate) const VALUE_BYTES_MIN: usize = 6;
/// What stands for a value.
const STARS: &[u8] = b"***";
/// The end of a line that could begin a value is shown at once if it is shorter than this, since
/// one line in ten ends so; if the value does go on in the next line, its rest is still hidden.
const LINE_END_BYTES_MIN: usize = 4;
/// Longest run of line breaks and terminal sequences within a broken value.
const BREAKS_MAX: usize = 4;
/// Longest terminal sequence that is taken for one, in bytes.
const SEQUENCE_BYTES_MAX: usize = 24;

/// The forms in which values are looked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mask {
    /// Sorted, without line breaks.
    forms: Vec<Vec<u8>>,
    finder: Option<AhoCorasick>,
}

impl Mask {
    /// Makes a mask for values; those shorter than [`VALUE_BYTES_MIN`] are not hidden.
    pub(crate) fn of<'v>(values: impl IntoIterator<Item = &'v str>) -> Self {
        let mut forms = BTreeSet::new();
        for value in values {
            add_forms(&mut forms, value);
        }
        forms.retain(|form| form.len() >= VALUE_BYTES_MIN);
        let forms: Vec<Vec<u8>> = forms.into_iter().collect();
        // Fails only beyond two thousand million bytes of values.
        let finder = (!forms.is_empty()).then(|| AhoCorasick::new(&forms).ok());
        Self {
            forms,
            finder: finder.flatten(),
        }
    }

    /// Hides values in a whole text.
    pub(crate) fn text(&self, text: &str) -> String {
        if self.finder.is_none() {
            return text.to_owned();
        }
        let mut masker = Masker::new(self.clone());
        let mut masked = masker.push(text.as_bytes());
        masked.extend(masker.finish());
        String::from_utf8_lossy(&masked).into_owned()
    }

    /// Tells whether a value is in a text.
    fn finds(&self, text: &[u8]) -> bool {
        let (text, _) = without_breaks(text);
        let finder = self.finder.as_ref();
        finder.is_some_and(|finder| finder.is_match(&text))
    }

    /// Finds where the longest end of a text begins that could be the beginning of a form.
    fn undecided(&self, text: &[u8]) -> usize {
        let longest = self.forms.iter().map(Vec::len).max().unwrap_or_default();
        let first = (text.len() + 1).saturating_sub(longest);
        let begins_form = |end: &[u8]| {
            let next = self.forms.partition_point(|form| form.as_slice() <= end);
            self.forms
                .get(next)
                .is_some_and(|form| form.starts_with(end))
        };
        (first..text.len())
            .find(|start| text.get(*start..).is_some_and(begins_form))
            .unwrap_or(text.len())
    }

    /// Finds all parts of a text that belong to a form, in order, overlapping ones joined.
    fn parts(&self, text: &[u8], hidden: usize) -> Vec<(usize, usize)> {
        let Some(finder) = &self.finder else {
            return Vec::new();
        };
        let found = finder.find_overlapping_iter(text);
        let mut parts: Vec<_> = found.map(|found| (found.start(), found.end())).collect();
        if hidden > 0 {
            parts.push((0, hidden));
        }
        parts.sort_unstable();
        let mut joined: Vec<(usize, usize)> = Vec::new();
        for (start, end) in parts {
            match joined.last_mut() {
                Some(last) if start < last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        joined
    }
}

/// A mask that comes to be known while others hold it already; hides nothing before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hidden(Arc<OnceLock<Mask>>);

impl Hidden {
    /// Hides values from now on; the first call counts.
    pub(crate) fn set(&self, mask: Mask) {
        let _ = self.0.set(mask);
    }

    /// Tells whether anything is hidden at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.get().is_none_or(|mask| mask.finder.is_none())
    }

    /// Tells whether something hidden is in a text.
    pub(crate) fn finds(&self, text: &[u8]) -> bool {
        self.0.get().is_some_and(|mask| mask.finds(text))
    }

    /// Hides values in a whole text.
    pub(crate) fn text(&self, text: &str) -> String {
        let mask = self.0.get();
        mask.map_or_else(|| text.to_owned(), |mask| mask.text(text))
    }
}

fn add_forms(forms: &mut BTreeSet<Vec<u8>>, value: &str) {
    if value.len() < VALUE_BYTES_MIN {
        return;
    }
    forms.insert(without_breaks(value.as_bytes()).0);
    forms.extend(value.lines().map(|line| line.trim().as_bytes().to_vec()));
    // Texts always have a JSON form.
    if let Ok(json) = serde_json::to_string(value) {
        forms.extend(json.as_bytes().get(1..json.len() - 1).map(<[u8]>::to_vec));
    }
    for before in 0..3 {
        let bytes = [vec![0; before], value.as_bytes().to_vec()].concat();
        // Characters that hold nothing but bits of the value.
        let known = (before * 8).div_ceil(6)..bytes.len() * 8 / 6;
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let encoded = engine.encode(&bytes);
            forms.extend(encoded.as_bytes().get(known.clone()).map(<[u8]>::to_vec));
        }
    }
}

/// Hides values in a stream. It holds back only an end that may become a value: less than a hundred
/// times the longest form, and less than five times where nothing is coloured.
#[derive(Debug)]
pub(crate) struct Masker {
    mask: Mask,
    held: Vec<u8>,
    /// How many bytes of what is held, without line breaks, are part of a value whose beginning
    /// was hidden already.
    hidden: usize,
    /// How many bytes of what is held were shown already.
    told: usize,
}

impl Masker {
    pub(crate) fn new(mask: Mask) -> Self {
        Self {
            mask,
            held: Vec::new(),
            hidden: 0,
            told: 0,
        }
    }

    /// Takes the next bytes and gives what can be shown.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.mask.finder.is_none() {
            return bytes.to_vec();
        }
        self.held.extend_from_slice(bytes);
        self.shown(false)
    }

    /// Gives what was held back; the stream is over.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.shown(true)
    }

    fn shown(&mut self, is_end: bool) -> Vec<u8> {
        let raw = std::mem::take(&mut self.held);
        let (text, places) = without_breaks(&raw);
        let place = |index: usize| places.get(index).copied().unwrap_or(raw.len());
        let until = if is_end {
            text.len()
        } else {
            self.mask.undecided(&text)
        };
        let mut shown = Vec::with_capacity(raw.len());
        let mut done = self.told;
        let mut hidden_after = 0;
        for (start, end) in self.mask.parts(&text, self.hidden) {
            if start >= until {
                if start == 0 && self.hidden > 0 {
                    hidden_after = end;
                }
                break;
            }
            shown.extend_from_slice(raw.get(done..place(start)).unwrap_or_default());
            // The beginning of what was cut has its stars.
            if start > 0 || self.hidden == 0 {
                shown.extend_from_slice(STARS);
            }
            done = if end > until {
                hidden_after = end - until;
                place(until)
            } else {
                // Line breaks behind a value are not part of it.
                place(end - 1) + 1
            };
        }
        let held = place(until);
        let is_line_end = raw.ends_with(b"\n") && text.len() - until < LINE_END_BYTES_MIN;
        let told = if is_line_end && hidden_after == 0 {
            raw.len()
        } else {
            held
        };
        shown.extend_from_slice(raw.get(done..told).unwrap_or_default());
        self.told = told.max(self.told).saturating_sub(held);
        self.held = raw.get(held..).unwrap_or_default().to_vec();
        self.hidden = hidden_after;
        shown
    }
}

/// Leaves out short runs of line breaks and of the terminal sequences that colour a text; gives the
/// rest, and where each byte of it was.
fn without_breaks(raw: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let mut text = Vec::with_capacity(raw.len());
    let mut places = Vec::with_capacity(raw.len());
    let mut run = 0;
    let mut place = 0;
    while let Some(rest) = raw.get(place..).filter(|rest| !rest.is_empty()) {
        let length = break_length(rest);
        run = if length > 0 { run + 1 } else { 0 };
        let length = length.max(1);
        // A longer run is a gap in which no value goes on.
        if run == 0 || run > BREAKS_MAX {
            text.extend(rest.iter().take(length));
            places.extend(place..place + length);
        }
        place += length;
    }
    (text, places)
}

/// Gives the length of the line break or terminal sequence that a text begins with, also of one
/// that its end cuts off; 0 if it begins with neither.
fn break_length(text: &[u8]) -> usize {
    match text {
        [b'\n' | b'\r', ..] => 1,
        [0x1b] => 1,
        [0x1b, b'[', rest @ ..] => {
            let most = SEQUENCE_BYTES_MAX - 2;
            let end = rest
                .iter()
                .take(most)
                .position(|byte| !(0x20..=0x3f).contains(byte));
            match end {
                Some(end)
                    if rest
                        .get(end)
                        .is_some_and(|byte| (0x40..=0x7e).contains(byte)) =>
                {
                    2 + end + 1
                }
                None if rest.len() < most => text.len(),
                Some(_) | None => 0,
            }
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(values: &[&str], text: &str) -> String {
        Mask::of(values.iter().copied()).text(text)
    }

    fn pieces(values: &[&str], pieces: &[&[u8]]) -> String {
        let mut masker = Masker::new(Mask::of(values.iter().copied()));
        let mut shown: Vec<u8> = Vec::new();
        for piece in pieces {
            shown.extend(masker.push(piece));
        }
        shown.extend(masker.finish());
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn a_value_is_hidden_wherever_it_is_cut() {
        let text = b"begin hunter2-hunter2 end\n";
        for cut in 0..text.len() {
            let (left, right) = text.split_at(cut);
            let shown = pieces(&["hunter2-hunter2"], &[left, right]);
            assert_eq!(shown, "begin *** end\n", "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(pieces(&["hunter2-hunter2"], &bytes), "begin *** end\n");
    }

    #[test]
    fn a_value_that_is_broken_over_lines_is_hidden() {
        assert_eq!(
            whole(&["hunter2secret"], "a hunt\ner2\r\nsecret\nb"),
            "a ***\nb"
        );
        let key = "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\nabc\n-----END KEY-----";
        assert_eq!(whole(&[key], &format!("<{key}>")), "<***>");
        assert_eq!(
            whole(&[key], "grep: MIIEpAIBAAKCAQEA found"),
            "grep: *** found"
        );
    }

    #[test]
    fn a_value_with_colours_in_it_is_hidden_wherever_it_is_cut() {
        let text = b"a hunt\x1b[01;31mer2\x1b[m\x1b[Ksecret\x1b[0m b\x1b[31m\n";
        for cut in 0..text.len() {
            let (left, right) = text.split_at(cut);
            let shown = pieces(&["hunter2secret"], &[left, right]);
            assert_eq!(shown, "a ***\x1b[0m b\x1b[31m\n", "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert!(pieces(&["hunter2secret"], &bytes).starts_with("a ***\x1b"));
        // What is no sequence hides nothing behind itself.
        assert_eq!(
            whole(&["hunter2secret"], "\x1b[1\x01hunter2secret"),
            "\x1b[1\x01***"
        );
        let long = format!("\x1b[{}", "1".repeat(10_000));
        let mut masker = Masker::new(Mask::of(["hunter2secret"]));
        let shown = masker.push(long.as_bytes()).len();
        assert_eq!(shown + masker.finish().len(), long.len());
    }

    #[test]
    fn a_line_that_ends_like_a_value_begins_is_shown_and_the_rest_of_a_value_is_not() {
        let values = ["hunter2secret"];
        let mut masker = Masker::new(Mask::of(values));
        assert_eq!(masker.push(b"a hu\n"), b"a hu\n");
        assert_eq!(masker.push(b"nter2"), b"");
        assert_eq!(masker.push(b"secret b\n"), b"*** b\n");
        assert_eq!(masker.push(b"a hu\n"), b"a hu\n");
        assert_eq!(masker.push(b"man\n"), b"man\n");
        assert_eq!(pieces(&values, &[b"hu\n", b"nte", b"!"]), "hu\nnte!");
    }

    #[test]
    fn a_value_is_hidden_in_json_and_in_base64_at_each_alignment() {
        assert_eq!(
            whole(&["pass\"word\n1"], r#"{"k":"pass\"word\n1"}"#),
            r#"{"k":"***"}"#
        );
        for before in ["", "x", "xy"] {
            let encoded = STANDARD_NO_PAD.encode(format!("{before}hunter2?>hunter2:tail"));
            let shown = whole(&["hunter2?>hunter2"], &encoded);
            assert!(shown.contains("***") && shown.len() < 16, "{shown}");
        }
    }

    #[test]
    fn values_that_overlap_leave_nothing_of_either() {
        assert_eq!(whole(&["abcdefgh", "efghijkl"], "<abcdefghijkl>"), "<***>");
        assert_eq!(
            pieces(&["abcdefgh", "efghijkl"], &[b"<abcdefgh", b"ijkl>"]),
            "<***>"
        );
        assert_eq!(
            whole(&["secret", "secretive"], "secretive secret"),
            "*** ***"
        );
    }

    #[test]
    fn short_values_are_not_hidden_and_an_empty_mask_holds_nothing_back() {
        assert_eq!(whole(&["main", ""], "main: git main"), "main: git main");
        let mut masker = Masker::new(Mask::of(["main"]));
        assert_eq!(masker.push(b"ma"), b"ma");
    }

    #[test]
    fn what_cannot_become_a_value_is_shown_at_once_and_little_is_held() {
        let mut masker = Masker::new(Mask::of(["hunter2secret"]));
        assert_eq!(masker.push(b"hello!\n"), b"hello!\n");
        assert_eq!(masker.push(b"in all h\n"), b"in all h\n");
        assert_eq!(masker.push(b"half a hunt\n"), b"half a ");
        assert_eq!(masker.push(&[b'\n'; 10_000]).len(), 10_005);
        for _ in 0..1_000 {
            masker.push(b"hunter2hunter2secrehunter");
            assert!(masker.held.len() < 5 * 18, "{}", masker.held.len());
        }
    }

    proptest! {
        #[test]
        fn no_cut_shows_a_value(
            text in "([ab]{1,12}(\n|\x1b\\[3[12]m){0,2}){0,8}", value in "[ab]{6,9}", other in "[ab]{6,9}",
            cuts in proptest::collection::vec(0_usize..110, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
            let shown = pieces(&[&value, &other], &parts);
            if !text.contains(['\n', '\x1b']) {
                prop_assert_eq!(&shown, &whole(&[&value, &other], &text));
            }
            let shown = shown.replace('\n', "").replace("\x1b[31m", "").replace("\x1b[32m", "");
            prop_assert!(!shown.contains(&value) && !shown.contains(&other));
        }
    }
}
