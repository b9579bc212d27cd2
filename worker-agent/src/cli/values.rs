//! Values of options, as people write them.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::attempt;

/// More processes on one machine are a typing error.
const SLOTS_MAX: u32 = 4_096;
/// Less is not enough to end an agent that withstands and to push its edits; with more the machine had better not be used at all.
const HAND_OVER_MIN: Duration = Duration::from_secs(15);
const HAND_OVER_MAX: Duration = Duration::from_secs(3_600);
/// Units of sizes, largest first.
const SIZE_UNITS: [(&str, u64); 4] = [
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// A number of bytes, written as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = SIZE_UNITS
            .iter()
            .find(|(_, bytes)| self.0 != 0 && self.0.is_multiple_of(*bytes));
        match unit {
            Some((name, bytes)) => write!(out, "{}{name}", self.0 / bytes),
            None => write!(out, "{}B", self.0),
        }
    }
}

pub(super) fn allowed(text: &str) -> Result<String, String> {
    rule(text, attempt::allows_nothing(text))
}

pub(super) fn denied(text: &str) -> Result<String, String> {
    rule(text, attempt::denies_nothing(text))
}

fn rule(text: &str, useless: Option<char>) -> Result<String, String> {
    const HOW: &str = "write the plain words of one command, such as 'git push'";
    match useless {
        Some(character) => Err(format!(
            "no command fits it, for its {:?}: {HOW}; give the option again for another",
            character.to_string()
        )),
        None if text.trim().is_empty() => Err(HOW.to_owned()),
        None => Ok(text.to_owned()),
    }
}

pub(super) fn slots(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|slots| (1..=SLOTS_MAX).contains(slots))
        .ok_or_else(|| format!("a whole number from 1 to {SLOTS_MAX} is needed"))
}

pub(super) fn label(text: &str) -> Result<String, String> {
    let key = text.split('=').next().unwrap_or_default();
    if key.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(
            "write it as key or key=value, without spaces: plans ask for no other".to_owned(),
        );
    }
    Ok(text.to_owned())
}

pub(super) fn resource(text: &str) -> Result<(String, u64), String> {
    let (name, amount) = text.split_once('=').ok_or("write it as name=amount")?;
    if name.is_empty() {
        return Err("the name is missing".to_owned());
    }
    let amount = amount
        .parse()
        .map_err(|_| format!("{amount:?} is not a whole number"))?;
    Ok((name.to_owned(), amount))
}

pub(super) fn size(text: &str) -> Result<Size, String> {
    const HOW: &str = "write it as 500kB, 800MB or 2GB";
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| HOW.to_owned())?;
    let unit = text.get(digits.len()..).unwrap_or_default().trim();
    let known = SIZE_UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let (_, bytes) = known.ok_or(HOW)?;
    number
        .checked_mul(*bytes)
        .map(Size)
        .ok_or_else(|| "that is more than any disk has".to_owned())
}

pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    let moment = match text.strip_prefix('@') {
        Some(seconds) => seconds.parse().ok().and_then(since_1970),
        None => text.parse().ok(),
    };
    let how = "write it as 2026-11-21T18:00:00Z or @1795284000";
    moment.ok_or_else(|| how.to_owned())
}

pub(super) fn since_1970(seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(seconds).ok()
}

pub(super) fn hand_over(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| {
        let allowed = HAND_OVER_MIN..=HAND_OVER_MAX;
        let checked = allowed.contains(&time).then_some(time);
        checked.ok_or_else(|| "from 15s to 1h is allowed".to_owned())
    })
}

pub(super) fn wip_interval(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|interval| {
        let allowed = Duration::from_secs(1)..=Duration::from_secs(600);
        let checked = allowed.contains(&interval).then_some(interval);
        checked.ok_or_else(|| "from 1s to 10m is allowed".to_owned())
    })
}

pub(super) fn agent(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, command) = text.split_once('=').unwrap_or_default();
    let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    if name.is_empty() || command.is_empty() {
        return Err("write it as NAME=PROGRAM, such as codex=/opt/codex/bin/codex".to_owned());
    }
    Ok((name.to_owned(), command))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "write it as 90s, 10m or 2h".to_owned())?;
    let unit = match text.get(digits.len()..) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3_600,
        Some("d") => 86_400,
        _ => return Err("write it as 90s, 10m or 2h".to_owned()),
    };
    Ok(Duration::from_secs(number.saturating_mul(unit)))
}
