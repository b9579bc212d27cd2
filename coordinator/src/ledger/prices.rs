//! What models cost, exactly: whole numbers of a millionth of a millionth of a dollar.
//!
//! The built-in list holds the standard prices that providers published, as of a date; it is not
//! fetched from anywhere, and the configuration may say otherwise. A model without a price has no
//! cost, which is not the same as costing nothing.

use std::collections::BTreeMap;
use std::fmt;

use super::Sums;

/// When the built-in prices were looked up.
pub const BUILT_IN_DATE: &str = "2026-06-30";
/// Decimal places of a price.
const PLACES: usize = 6;
/// No model costs a million dollars per million tokens.
const DOLLARS_MAX: u64 = 1_000_000;

/// Model, input, cached input, cache write (kept for five minutes), output: standard prices of short
/// contexts, in dollars per million tokens.
const BUILT_IN: &[(&str, [&str; 4])] = &[
    ("claude-opus-4-7", ["5", "0.5", "6.25", "25"]),
    ("claude-opus-4-6", ["5", "0.5", "6.25", "25"]),
    ("claude-opus-4-5", ["5", "0.5", "6.25", "25"]),
    ("claude-opus-4-1", ["15", "1.5", "18.75", "75"]),
    ("claude-opus-4", ["15", "1.5", "18.75", "75"]),
    ("claude-sonnet-4-6", ["3", "0.3", "3.75", "15"]),
    ("claude-sonnet-4-5", ["3", "0.3", "3.75", "15"]),
    ("claude-sonnet-4", ["3", "0.3", "3.75", "15"]),
    ("claude-haiku-4-5", ["1", "0.1", "1.25", "5"]),
    ("gpt-5.5", ["5", "0.5", "5", "30"]),
    ("gpt-5.4", ["2.5", "0.25", "2.5", "15"]),
    ("gpt-5.4-mini", ["0.75", "0.075", "0.75", "4.5"]),
    ("gpt-5.4-nano", ["0.2", "0.02", "0.2", "1.25"]),
    ("gpt-5.3-codex", ["1.75", "0.175", "1.75", "14"]),
    ("gpt-5.2-codex", ["1.75", "0.175", "1.75", "14"]),
    ("gpt-5.2", ["1.75", "0.175", "1.75", "14"]),
    ("gpt-5.1-codex-max", ["1.25", "0.125", "1.25", "10"]),
    ("gpt-5.1-codex", ["1.25", "0.125", "1.25", "10"]),
    ("gpt-5.1", ["1.25", "0.125", "1.25", "10"]),
    ("gpt-5-codex", ["1.25", "0.125", "1.25", "10"]),
    ("gpt-5", ["1.25", "0.125", "1.25", "10"]),
];

/// A price of one kind of tokens, in millionths of a dollar per million of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// Reads dollars per million tokens, as `2.5`; `None` if it is no such number, has more than six
    /// decimal places, or is beyond a million dollars.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > PLACES {
            return None;
        }
        let whole: u64 = whole.parse().ok().filter(|whole| *whole < DOLLARS_MAX)?;
        let part: u64 = format!("{part:0<PLACES$}").parse().ok()?;
        Some(Self(whole * 1_000_000 + part))
    }

    fn of(self, tokens: u64) -> u128 {
        u128::from(self.0) * u128::from(tokens)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let part = format!("{part:06}");
        match part.trim_end_matches('0') {
            "" => write!(formatter, "{whole}"),
            part => write!(formatter, "{whole}.{part}"),
        }
    }
}

/// What a model costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Input that is neither read from a cache nor written to one.
    pub input: Rate,
    pub cached_input: Rate,
    pub cache_write: Rate,
    /// All output, with reasoning.
    pub output: Rate,
    /// Added to that for reasoning; mostly nothing.
    pub reasoning: Rate,
}

impl Price {
    /// Gives the cost of what was consumed.
    #[must_use]
    pub fn cost(&self, sums: &Sums) -> Cost {
        let plain = sums.input.saturating_sub(sums.cached);
        let plain = plain.saturating_sub(sums.cache_write);
        Cost(
            self.input.of(plain)
                + self.cached_input.of(sums.cached)
                + self.cache_write.of(sums.cache_write)
                + self.output.of(sums.output)
                + self.reasoning.of(sums.reasoning),
        )
    }
}

impl fmt::Display for Price {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            input,
            cached_input,
            cache_write,
            output,
            reasoning,
        } = self;
        write!(
            formatter,
            "input {input}, cached-input {cached_input}, cache-write {cache_write}, output {output}"
        )?;
        if *reasoning == Rate::default() {
            Ok(())
        } else {
            write!(formatter, ", reasoning {reasoning} more")
        }
    }
}

/// An amount of money, exact to a millionth of a millionth of a dollar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u128);

impl Cost {
    /// Gives it in billionths of a dollar, rounded to the nearest.
    #[must_use]
    pub fn nanos(self) -> u64 {
        u64::try_from((self.0 + 500) / 1_000).unwrap_or(u64::MAX)
    }

    /// Adds another.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// Writes billionths of a dollar for people: `$0.0043`, or whole cents from ten dollars on.
#[must_use]
pub fn dollars(nanos: u64) -> String {
    let places: u32 = if nanos >= 10_000_000_000 { 2 } else { 4 };
    let unit = 10_u64.pow(9 - places);
    let rounded = nanos / unit + u64::from(nanos % unit >= unit / 2);
    if rounded == 0 && nanos > 0 {
        return "<$0.0001".to_owned();
    }
    let in_dollar = 10_u64.pow(places);
    let width = usize::try_from(places).unwrap_or_default();
    format!("${}.{:0width$}", rounded / in_dollar, rounded % in_dollar)
}

/// The prices that hold, by models' names without case and punctuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prices(BTreeMap<String, Price>);

impl Default for Prices {
    /// Gives the built-in list.
    fn default() -> Self {
        Self(built_in().map(|(name, price)| (key(name), price)).collect())
    }
}

impl Prices {
    /// Sets the price of a model.
    pub fn set(&mut self, model: &str, price: Price) {
        self.0.insert(key(model), price);
    }

    /// Finds the price of a model as an agent names it. Case and punctuation do not matter, nor a
    /// provider before a slash, nor a date of release at the end (`claude-haiku-4-5-20251001`).
    #[must_use]
    pub fn find(&self, model: &str) -> Option<&Price> {
        let bare = model.rsplit('/').next().unwrap_or(model);
        [model, bare].into_iter().find_map(|name| {
            let name = key(name);
            self.0
                .get(&name)
                .or_else(|| self.0.get(without_date(&name)?))
        })
    }
}

/// Gives the built-in prices in the order in which they are shown.
pub fn built_in() -> impl Iterator<Item = (&'static str, Price)> {
    BUILT_IN.iter().filter_map(|(name, rates)| {
        let [input, cached_input, cache_write, output] = rates.map(Rate::parse);
        let price = Price {
            input: input?,
            cached_input: cached_input?,
            cache_write: cache_write?,
            output: output?,
            reasoning: Rate::default(),
        };
        Some((*name, price))
    })
}

/// Gives what counts of a model's name: its letters and digits, in lower case.
#[must_use]
pub fn key(model: &str) -> String {
    let counts = |letter: &char| letter.is_alphanumeric();
    model
        .chars()
        .filter(counts)
        .flat_map(char::to_lowercase)
        .collect()
}

/// Takes a date of release off a key.
fn without_date(key: &str) -> Option<&str> {
    let (name, date) = key.split_at_checked(key.len().checked_sub(8)?)?;
    let is_date = date.starts_with("20") && date.bytes().all(|byte| byte.is_ascii_digit());
    is_date.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_exact() {
        let price = Prices::default().find("gpt-5.4").copied().unwrap();
        let sums = Sums {
            input: 1_000,
            cached: 400,
            output: 7,
            reasoning: 3,
            ..Sums::default()
        };
        // 600 at 2.5, 400 at 0.25 and 7 at 15 dollars a million.
        assert_eq!(price.cost(&sums).nanos(), 1_500_000 + 100_000 + 105_000);
        let dearer = Price {
            reasoning: Rate::parse("0.000001").unwrap(),
            ..price
        };
        let more = dearer.cost(&sums).0 - price.cost(&sums).0;
        assert_eq!(more, 3);
        let written = Sums {
            input: 100,
            cache_write: 100,
            ..Sums::default()
        };
        let claude = Prices::default().find("claude-opus-4-5").copied().unwrap();
        assert_eq!(claude.cost(&written).nanos(), 625_000);
    }

    #[test]
    fn what_an_agent_claims_beyond_all_input_takes_nothing_off() {
        let price = Prices::default().find("gpt-5").copied().unwrap();
        let sums = Sums {
            input: 1,
            cached: 8,
            ..Sums::default()
        };
        assert_eq!(price.cost(&sums).nanos(), 8 * 125);
    }

    #[test]
    fn a_model_is_found_however_its_name_is_written() {
        let prices = Prices::default();
        let known = prices.find("claude-haiku-4-5");
        assert!(known.is_some());
        for name in [
            "Claude Haiku 4.5",
            "claude_haiku_4_5",
            "anthropic/claude-haiku-4-5",
            "claude-haiku-4-5-20251001",
            "anthropic/claude-haiku-4.5-2025-10-01",
        ] {
            assert_eq!(prices.find(name), known, "{name}");
        }
        for name in [
            "",
            "haiku",
            "gpt-5.4-pro",
            "claude-haiku-4-5[1m]",
            "20251001",
        ] {
            assert_eq!(prices.find(name), None, "{name}");
        }
    }

    #[test]
    fn every_built_in_price_is_read() {
        assert_eq!(built_in().count(), BUILT_IN.len());
        assert_eq!(Prices::default().0.len(), BUILT_IN.len());
    }

    #[test]
    fn a_rate_is_a_plain_decimal() {
        for (text, shown) in [
            ("2.50", "2.5"),
            ("0", "0"),
            ("15", "15"),
            ("0.000001", "0.000001"),
        ] {
            assert_eq!(Rate::parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            ".5",
            "5.",
            "-1",
            "+1",
            "1e3",
            "0.0000001",
            "1000000",
            "nan",
            "1.2.3",
            "٣",
        ] {
            assert_eq!(Rate::parse(text), None, "{text}");
        }
    }

    #[test]
    fn money_is_rounded_only_for_people() {
        for (nanos, text) in [
            (0, "$0.0000"),
            (49_999, "<$0.0001"),
            (50_000, "$0.0001"),
            (4_312_499, "$0.0043"),
            (1_250_000_000, "$1.2500"),
            (12_345_000_000, "$12.35"),
        ] {
            assert_eq!(dollars(nanos), text);
        }
    }
}
